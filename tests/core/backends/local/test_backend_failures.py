"""Failures, timeouts and cancellations of real threads, processes and programs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    LocalExecutionBackend,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
    current_task,
)
from tests._support.machine import gone
from tests._support.scripted import ManualClock, until, within

pytestmark = pytest.mark.asyncio

ONE = {"workers": 1, "cores": 1}


async def written(path: Path) -> str:
    """Return what a task writes into a file, once it exists."""
    async with asyncio.timeout(30):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process writes it
            await asyncio.sleep(0.01)
    return path.read_text()  # noqa: ASYNC240


def write(path: Path, text: object) -> None:
    """Writes a file that is there at once with all that is in it."""
    path.with_suffix(".part").write_text(str(text))
    path.with_suffix(".part").rename(path)


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_an_exception_keeps_its_type_its_data_and_the_remote_traceback(
    executor: Any,
) -> None:
    class OwnError(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(code)
            self.code = code

    async with WorkflowEngine.create(LocalExecutionBackend(executor)) as flow:

        @flow.function_task
        def deep_inside(code: int) -> int:
            def deeper() -> int:
                raise OwnError(code)

            return deeper()

        @flow.function_task
        def use(x: int) -> int:
            return x

        bad = deep_inside(7)
        dependent = use(bad)
        for _ in range(2):
            with pytest.raises(Exception, match="7") as raised:
                await within(bad)
            error: Any = raised.value
            assert type(error).__name__ == "OwnError"
            assert error.args == (7,)
            assert error.code == 7
            text = "".join(traceback.format_exception(error))
            assert "in deep_inside" in text
            assert "in deeper" in text
        with pytest.raises(DependencyFailureError) as caught:
            await within(dependent)
        assert type(caught.value.root_cause).__name__ == "OwnError"


async def test_a_thread_over_its_time_keeps_its_slot_until_it_ends() -> None:
    leave, second_ran = threading.Event(), threading.Event()
    async with WorkflowEngine.create(LocalExecutionBackend(resources=ONE)) as flow:

        @flow.function_task(timeout=0.1)
        def long() -> None:
            leave.wait(30)

        @flow.function_task
        def second() -> int:
            second_ran.set()
            return 2

        first = long()
        try:
            with pytest.raises(TaskTimeoutError, match="continues to run"):
                await within(first)
            follower = second()
            await asyncio.sleep(0.2)  # time enough to start if it had a slot
            assert not second_ran.is_set()
            ended = asyncio.create_task(first.ended())
            await asyncio.sleep(0)
            assert not ended.done()
        finally:
            leave.set()
        assert await within(follower) == 2
        await within(ended)


async def test_a_process_over_its_time_is_stopped_and_its_slot_is_free() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process", resources=ONE)) as flow:

        @flow.function_task
        def long() -> None:
            time.sleep(1000)

        @flow.function_task
        def worker() -> int:
            return os.getpid()

        first = await within(worker(), 40)
        future = long.options(timeout=1)()
        with pytest.raises(TaskTimeoutError):
            await within(future, 40)
        await within(future.ended())
        assert await within(worker(), 40) != first
        assert await asyncio.to_thread(gone, [first])


async def test_a_program_over_its_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    async with WorkflowEngine.create(clock=(clock := ManualClock())) as flow:

        @flow.executable_task(timeout=10.5)
        async def long() -> str:
            pids = tmp_path / "pids"
            return f"sleep 1000 & echo $$ $! > {pids}.part; mv {pids}.part {pids}; wait"

        future = long()
        pids = [int(pid) for pid in (await written(tmp_path / "pids")).split()]
        await until(lambda: future.state is TasksMainStates.RUNNING)
        await clock.advance(11)
        with pytest.raises(TaskTimeoutError, match=r"10\.5"):
            await within(future)
        await within(future.ended())
        assert len(pids) == 2
        assert await asyncio.to_thread(gone, pids)


async def test_a_coroutine_over_its_time_is_cancelled_and_can_clean_up() -> None:
    entered, cleaned = threading.Event(), threading.Event()
    async with WorkflowEngine.create(clock=(clock := ManualClock())) as flow:

        @flow.function_task(timeout=10)
        async def long() -> None:
            try:
                entered.set()
                await asyncio.sleep(1000)
            finally:
                cleaned.set()

        future = long()
        await within(asyncio.to_thread(entered.wait, 20))
        await until(lambda: future.state is TasksMainStates.RUNNING)
        await clock.advance(11)
        with pytest.raises(TaskTimeoutError):
            await within(future)
        await within(future.ended())
        assert cleaned.is_set()


async def test_a_task_that_waits_for_a_slot_is_not_over_its_time() -> None:
    leave = threading.Event()
    backend, clock = LocalExecutionBackend(resources=ONE), ManualClock()
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task
        def first() -> None:
            leave.wait(30)

        @flow.function_task(timeout=0.3)
        def second() -> int:
            return 2

        before, waiting = first(), second()
        try:
            await until(lambda: before.state is TasksMainStates.RUNNING)
            await clock.advance(0.6)
            assert not waiting.done()
        finally:
            leave.set()
        await within(before)
        assert await within(waiting) == 2


async def test_a_cooperative_function_sees_that_it_was_cancelled() -> None:
    entered, saw = threading.Event(), threading.Event()
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def patient() -> None:
            task = current_task()
            end = time.monotonic() + 30
            entered.set()
            while not task.cancelled and time.monotonic() < end:
                time.sleep(0.005)
            if task.cancelled:
                saw.set()

        future = patient()
        await within(asyncio.to_thread(entered.wait, 20))
        assert future.state is TasksMainStates.RUNNING
        assert future.cancel() is True
        assert future.cancelled()
        await within(future.ended(), 25)
        assert saw.is_set()


async def test_a_cancelled_process_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    backend = LocalExecutionBackend("process", resources={"workers": 2, "cores": 2})
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def long(path: Path, gate: Path | None) -> int:
            write(path, os.getpid())
            end = time.monotonic() + 60
            while gate is None or not gate.exists():
                time.sleep(0.01)
                assert time.monotonic() < end
            return 1

        neighbour = long(tmp_path / "one", tmp_path / "gate")
        stopped = long(tmp_path / "two", None)
        pid = int(await written(tmp_path / "two"))
        await written(tmp_path / "one")
        assert stopped.cancel() is True
        await within(stopped.ended())
        assert await asyncio.to_thread(gone, [pid])
        (tmp_path / "gate").touch()
        assert await within(neighbour) == 1


async def test_retried_work_runs_again_in_processes(tmp_path: Path) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task(retries=2)
        def third_time(path: Path) -> int:
            attempt = current_task().attempt
            with path.open("a") as file:
                file.write(f"{attempt}\n")
            if attempt < 3:
                raise OSError(attempt)
            return attempt

        future = third_time(tmp_path / "attempts")
        assert await within(future, 40) == 3
        assert (tmp_path / "attempts").read_text().split() == ["1", "2", "3"]
