"""Services: readiness by a callable of the program, and by a port on the worker's host."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests._support.machine import connect

pytestmark = pytest.mark.asyncio


def _exits(task: Any) -> None:
    sys.exit("not today")


async def _exits_on_the_loop(task: Any) -> None:
    sys.exit("not today")


async def _is_cancelled(task: Any) -> None:
    raise asyncio.CancelledError("not today")


@pytest.mark.parametrize("ready", [_exits, _exits_on_the_loop, _is_cancelled])
async def test_a_readiness_callable_that_exits_fails_only_its_service(
    flow: WorkflowEngine, ready: Any
) -> None:
    @flow.executable_task(service=True, ready=ready)
    async def server() -> str:
        return "sleep 600"

    @flow.function_task
    def well() -> int:
        return 1

    with pytest.raises(RuntimeError, match=r"ready raised .*not today"):
        await server()
    assert await well() == 1


async def test_a_service_receives_a_free_port_of_its_workers_host(flow: WorkflowEngine) -> None:
    @flow.executable_task(service=True, ready="tcp")
    def server() -> list[str]:
        return [sys.executable, "-m", "http.server", "{port}"]

    first, second = server(), server()
    where: list[Any] = [await first, await second]
    assert where[0] != where[1]
    for host, port in where:
        await connect(host, port)
    for service in (first, second):
        service.cancel()
        await service.ended()


async def test_a_service_does_not_start_while_its_port_is_in_use(
    flow: WorkflowEngine,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]

        @flow.executable_task(service=True, ready=f"tcp:{port}")
        def server() -> str:
            return "sleep 600"

        with pytest.raises(OSError, match=f"listens on port {port}"):
            await server()
