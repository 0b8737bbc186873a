"""Checks of services: readiness, serving, stopping."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.errors import CapabilityError
from rhapsody.task import TaskDescription
from rhapsody.testing._suite import Suite, cancels, check
from rhapsody.testing._tasks import CANCELED, FAILED, RUNNING, Ticking, text_of

if TYPE_CHECKING:
    from rhapsody.testing._driver import Driver, Finished

STOPPABLE = cancels("running", "service")


def _wait(task: Any) -> tuple[str, bool]:
    return "up", threading.Event().wait(0.1) is False


async def _wait_async(task: Any) -> tuple[str, bool]:
    await asyncio.sleep(0)
    return "up", True


class Services(Suite):
    """Executables and functions that run until they are canceled."""

    @check("services", "services", STOPPABLE, dry=True)
    async def test_a_service_runs_until_it_is_canceled(self, driver: Driver) -> None:
        service = driver.service("sleep 600")
        await _serve(driver, service)
        assert CANCELED not in driver.history(service), "it ended early"
        await _stop(driver, service)

    @check("services", "services", STOPPABLE)
    @pytest.mark.parametrize(
        ("ready", "expected"),
        [
            (r"stdout:port (\d+)", "4711"),
            ("stdout:po.t 4", "port 4"),
            (_wait, ("up", True)),
            (_wait_async, ("up", True)),
        ],
        ids=["a group", "a match", "a function", "a coroutine function"],
    )
    async def test_it_is_ready_as_told(self, driver: Driver, ready: Any, expected: Any) -> None:
        service = driver.service("echo starting; echo port 4711; sleep 600", ready=ready)
        assert await _serve(driver, service) == expected
        await _stop(driver, service)

    @check("services", "services", "shared_file_system", STOPPABLE)
    async def test_it_is_ready_when_a_file_exists(self, driver: Driver) -> None:
        command = "echo here > part; mv part 'the file'; sleep 600"
        service = driver.service(command, ready="file:the file")
        path = await _serve(driver, service)
        assert isinstance(path, str) and os.path.isabs(path), f"its readiness is {path!r}"
        assert text_of(Path(path)) == "here\n"
        await _stop(driver, service)

    @check("services", "services", "shared_file_system", STOPPABLE)
    @pytest.mark.parametrize("ready", ["tcp:PORT", "tcp"])
    async def test_it_is_ready_when_it_listens(self, driver: Driver, ready: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        server = f"exec {shlex.quote(sys.executable)} -m http.server"
        if ready == "tcp":
            command = f'test "$PORT" = "{{port}}" && {server} {{port}} --bind 127.0.0.1'
            service = driver.service(command, ready="tcp")
        else:
            service = driver.service(f"{server} {port} --bind 127.0.0.1", ready=f"tcp:{port}")
        await driver.submit(service)
        address, end = await _ready_or_ended(driver, service)
        if end is not None:
            refused = ready == "tcp" and isinstance(end.error, CapabilityError)
            assert refused, f"`ready={ready!r}`: {end}"
            return
        assert isinstance(address, tuple) and len(address) == 2, f"its readiness is {address!r}"
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await writer.wait_closed()
        await _stop(driver, service)

    @check("services", "services", "shared_file_system")
    async def test_a_port_in_use_is_refused(self, driver: Driver) -> None:
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            service = driver.service("sleep 600", ready=f"tcp:{stranger.getsockname()[1]}")
            await driver.submit(service)
            value, end = await _ready_or_ended(driver, service)
        assert end is not None, f"its readiness is {value!r}, although it does not listen"
        assert end.state is FAILED
        assert "ready='tcp'" in str(end.error), "the error must name the alternative"

    @check("services", "services", "shared_file_system", STOPPABLE)
    async def test_it_is_not_ready_too_early(self, driver: Driver) -> None:
        gate = self.place / "gate"
        command = f"while [ ! -e '{gate}' ]; do sleep 0.05; done; echo ready; sleep 600"
        service = driver.service(command, ready="stdout:ready")
        await driver.submit(service)
        ready = asyncio.ensure_future(driver.ready(service))
        await asyncio.sleep(self.settle)
        assert not ready.done(), "it was ready before it had said so"
        gate.touch()
        await ready
        await _stop(driver, service)

    @check("services", "services")
    async def test_a_service_that_ends_too_early_fails(self, driver: Driver) -> None:
        service = driver.service("echo broken >&2; exit 3", ready="stdout:never")
        await driver.submit(service)
        value, end = await _ready_or_ended(driver, service)
        assert end is not None, f"its readiness is {value!r}"
        assert end.state is FAILED, str(end)

    @check("services", "services", "shared_file_system")
    async def test_a_service_that_ends_later_is_reported(self, driver: Driver) -> None:
        gate = self.place / "gate"
        command = f"echo ready; while [ ! -e '{gate}' ]; do sleep 0.05; done; exit 3"
        service = driver.service(command, ready="stdout:ready")
        await _serve(driver, service)
        gate.touch()
        end = await driver.finished(service)
        assert end.state is FAILED and end.exit_code == 3, str(end)

    @check("services", "shared_file_system")
    @pytest.mark.parametrize("kind", ["service", "function_service"])
    async def test_a_stopped_service_does_nothing_more(self, driver: Driver, kind: Any) -> None:
        service = Ticking(driver, kind)
        await driver.submit(service.task)
        assert await driver.running(service.task), "it was not reported running"
        await service.began()
        if self.capabilities.cancellation(kind) == "running":
            await _stop(driver, service.task)
            assert await service.is_still(), "it goes on after the terminal state"
        else:
            service.release()
            await driver.finished(service.task)


async def _serve(driver: Driver, service: TaskDescription) -> Any:
    """Submit a service and return its readiness."""
    await driver.submit(service)
    value = await driver.ready(service)
    assert RUNNING in driver.history(service), "it was not reported running"
    return value


async def _ready_or_ended(driver: Driver, service: TaskDescription) -> tuple[Any, Finished | None]:
    """Return the readiness of a service, or its end if it does not become ready."""
    try:
        return await driver.ready(service), None
    except Exception:  # any error means that it is not ready
        return None, await driver.finished(service)


async def _stop(driver: Driver, service: TaskDescription) -> None:
    assert await driver.cancel(service) is True, "cancel_task of a service that serves"
    end = await driver.finished(service)
    assert end.state is CANCELED, str(end)
