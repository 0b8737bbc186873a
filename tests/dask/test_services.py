"""Services whose readiness is a callable on the engine's side."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from rhapsody import WorkflowEngine

pytestmark = pytest.mark.asyncio


def _exits(task: Any) -> None:
    sys.exit("not today")


async def _exits_on_the_loop(task: Any) -> None:
    sys.exit("not today")


async def _is_cancelled(task: Any) -> None:
    raise asyncio.CancelledError("not today")


@pytest.mark.parametrize("ready", [_exits, _exits_on_the_loop, _is_cancelled])
async def test_a_ready_that_would_end_the_program_fails_its_service_only(
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
