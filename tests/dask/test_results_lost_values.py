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


async def _lose(flow: WorkflowEngine, *futures: Any) -> None:
    """Kill each worker that has one of these values."""
    backend: Any = flow.backend
    held = (await backend.client.who_has()).items()
    holders = {
        worker
        for key, workers in held
        for worker in workers
        if any(future.uid in key for future in futures)
    }
    assert holders
    for pid in (await backend.client.run(os.getpid, workers=[*holders])).values():
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


async def test_a_value_lost_several_times_is_computed_again_while_retries_are_left(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    use = mortal.function_task(_use)
    made = mortal.function_task(_make)(str(trace), 4)
    middle = use(made, 10)
    assert await use(middle, 100) == 111
    await _lose(mortal, made, middle)
    assert await use(middle, 100) == 114
    assert await made == 4
    assert trace.read_text() == "xxxx"


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_value_is_lost_if_no_retries_are_left(
    mortal: WorkflowEngine, tmp_path: Path, retries: int
) -> None:
    trace = tmp_path / "trace"
    use = mortal.function_task(_use)
    made = mortal.function_task(lost_retries=retries)(_make)(str(trace), 100)
    assert await use(made, 1) == 2
    await _lose(mortal, made)
    with pytest.raises(DependencyFailureError) as caught:
        await use(made, 2)
    assert isinstance(caught.value.root_cause, TaskLostError)
    with pytest.raises(TaskLostError):
        await made
    assert trace.read_text() == "xx" + retries * "x"
