"""Calls that share a RADICAL-Pilot task but start, end and are lost separately."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import TaskLostError, TaskTimeoutError
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_testing import Driver
from tests.radical.pilots import FUNCTION_CORES

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]

LIMIT = 60.0


def wait_for(gate: Path, here: Path) -> str:
    """In a worker: create a file, and wait for another."""
    here.touch()
    until = time.monotonic() + LIMIT
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return here.name


async def holding(paths: list[Path]) -> None:
    """Wait until files exist."""
    async with asyncio.timeout(LIMIT):
        while not all(path.exists() for path in paths):  # noqa: ASYNC110 - other processes make them
            await asyncio.sleep(0.02)


async def test_calls_share_tasks_but_have_separate_outcomes(
    made: RadicalExecutionBackend, tmp_path: Path
) -> None:
    flow = await WorkflowEngine.create(
        made, work_dir=tmp_path / "flow", handle_signals=False, lost_retries=0
    )
    gate, marks = tmp_path / "gate", [tmp_path / f"{n}" for n in range(FUNCTION_CORES)]
    too_late = tmp_path / "cancelled"
    hold = flow.function_task(wait_for)

    @flow.function_task
    def square(number: int) -> int:
        return number * number

    @flow.function_task
    def touch() -> None:
        too_late.touch()

    @flow.function_task
    def fail() -> None:
        raise KeyError("its own")

    @flow.function_task
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @flow.function_task(timeout=1.0)
    def sleep() -> None:
        time.sleep(600)

    try:
        held = [hold(gate, mark) for mark in marks]
        fan: list[Any] = [fail(), die(), sleep(), *(square(number) for number in range(20))]
        cancelled = touch()
        await holding(marks)
        assert len(await asyncio.to_thread(made.task_manager.list_tasks)) < len(fan)
        cancelled.cancel()
        await cancelled.ended()
        assert not gate.exists()
        gate.touch()
        assert await asyncio.gather(*held) == [mark.name for mark in marks]
        failed, died, timed, *squares = await asyncio.gather(*fan, return_exceptions=True)
        assert squares == [number * number for number in range(20)]
        assert isinstance(failed, KeyError)
        assert isinstance(died, TaskLostError)
        assert isinstance(timed, TaskTimeoutError)
        assert not too_late.exists()
    finally:
        await flow.shutdown(skip_execution_backend=True)


async def test_a_long_call_does_not_delay_its_group(driver: Driver, tmp_path: Path) -> None:
    gate, mark = tmp_path / "gate", tmp_path / "long"
    long, *others = (
        driver.call(wait_for, gate, mark),
        *(driver.call(abs, -number) for number in range(20)),
    )
    await driver.submit(long, *others)
    async with asyncio.timeout(LIMIT):
        ends = [await driver.finished(other) for other in others]
    assert [end.value for end in ends] == list(range(20))
    gate.touch()
    assert (await driver.finished(long)).value == mark.name


async def test_calls_queued_behind_long_calls_can_be_canceled(
    driver: Driver, tmp_path: Path
) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / "one", tmp_path / "two"]
    short = [driver.call(abs, number) for number in range(60)]  # then more are sent at once
    long = [driver.call(wait_for, gate, mark) for mark in marks]
    paths = [tmp_path / f"{number}" for number in range(60)]
    others = [driver.call(Path.touch, path) for path in paths]
    await driver.submit(*short, *long, *others)
    await holding(marks)
    for other in others:
        await driver.cancel(other)
    ends = [await driver.finished(other) for other in others]
    assert [end.state == "DONE" for end in ends] == [path.exists() for path in paths]
    assert {end.state for end in ends} <= {"DONE", "CANCELED"}
    gate.touch()
    assert [(await driver.finished(each)).value for each in long] == ["one", "two"]
    assert [end.state == "DONE" for end in ends] == [path.exists() for path in paths]


async def test_a_running_call_of_a_group_can_be_canceled(driver: Driver, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / "one", tmp_path / "two"]
    one, two = (driver.call(wait_for, gate, mark) for mark in marks)
    await driver.submit(one, two)
    await holding(marks)
    await driver.cancel(one)
    assert (await driver.finished(one)).state == "CANCELED"
    gate.touch()
    assert (await driver.finished(two)).value == "two"
