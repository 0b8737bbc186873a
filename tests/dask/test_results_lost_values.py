"""Values that are lost with the workers that hold them, and recomputed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import DependencyFailureError, TaskLostError

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _make(trace: str, well_again: int) -> int:
    """Return on the first start and from start `well_again` on; otherwise kill the worker."""
    with open(trace, "a") as file:
        file.write("x")
    starts = os.path.getsize(trace)
    if 1 < starts < well_again:
        os.kill(os.getpid(), signal.SIGKILL)
    return starts


def _use(value: int, more: int) -> int:
    return value + more


async def _lose(flow: WorkflowEngine, made: Any) -> None:
    """Kill each worker that has a value."""
    backend: Any = flow.backend
    (key,) = [key for key in await backend.client.who_has() if made.uid in key]
    holders = [*(await backend.client.who_has())[key]]
    for pid in (await backend.client.run(os.getpid, workers=holders)).values():
        os.kill(pid, signal.SIGKILL)


async def test_a_value_lost_with_its_worker_is_recomputed(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    use = mortal.function_task(_use)
    made = mortal.function_task(_make)(str(trace), 2)
    middle = use(made, 10)
    assert await use(middle, 100) == 111
    await _lose(mortal, made)
    assert await asyncio.gather(*(use(made, more) for more in range(3))) == [2, 3, 4]
    assert await made == 2
    assert trace.read_text() == "xx"


async def test_a_value_is_lost_if_its_next_worker_dies_too(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    use = mortal.function_task(_use)
    made = mortal.function_task(_make)(str(trace), 100)
    assert await use(made, 1) == 2
    await _lose(mortal, made)
    with pytest.raises(DependencyFailureError) as caught:
        await use(made, 2)
    assert isinstance(caught.value.root_cause, TaskLostError)
    with pytest.raises(TaskLostError):
        await made
    assert trace.read_text() == "xx"
