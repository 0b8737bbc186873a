"""Programs without asyncio: `rhapsody.run`, and a `main` that is not a coroutine function."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest

import rhapsody
from rhapsody import LocalExecutionBackend, WorkflowEngine


def double(x: int) -> int:
    return 2 * x


def test_a_plain_main_calls_tasks_and_waits_for_them() -> None:
    def main(flow: WorkflowEngine) -> int:
        assert threading.current_thread() is not threading.main_thread()
        task = flow.function_task(double)
        block = flow.block(lambda x: rhapsody.wait(task(x)))
        futures = flow.map(task, range(3))
        assert [rhapsody.wait(future) for future in futures] == [0, 2, 4]
        return rhapsody.wait(block(task(2)))

    assert rhapsody.run(main) == 8


def test_a_result_that_a_plain_main_reads_too_early_names_wait() -> None:
    def main(flow: WorkflowEngine) -> None:
        opened = threading.Event()
        future: Any = flow.function_task(double)(flow.block(opened.wait)(60))
        try:
            for read in (future.result, future.exception, lambda: future + 1):
                with pytest.raises(
                    (asyncio.InvalidStateError, TypeError), match=r"rhapsody\.wait"
                ) as told:
                    read()
                assert "await" not in str(told.value)
        finally:
            opened.set()
        rhapsody.wait(future)

    rhapsody.run(main)


def test_a_coroutine_function_is_run_too() -> None:
    async def main(flow: WorkflowEngine) -> int:
        return await flow.function_task(double)(1)

    assert rhapsody.run(main) == 2


def test_a_coroutine_that_outlives_main_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def study(opened: asyncio.Event) -> None:
        await opened.wait()

    async def main(flow: WorkflowEngine) -> list[asyncio.Task[None]]:
        await flow.function_task(double)(1)
        return [asyncio.create_task(study(asyncio.Event()))]

    rhapsody.run(main, backend="noop")
    (line,) = [r.getMessage() for r in caplog.records if "main" in r.getMessage()]
    assert "study() (" in line


def test_a_future_that_main_returns_is_awaited() -> None:
    def main(flow: WorkflowEngine) -> Any:
        return flow.function_task(double)(3)

    assert rhapsody.run(main) == 6


def test_the_keywords_are_those_of_create() -> None:
    def main(flow: WorkflowEngine) -> str:
        assert flow.uid == "mine"
        return flow.backend.name

    assert rhapsody.run(main, backend="noop", uid="mine") == "noop"
    with pytest.raises(TypeError, match="timeot"):
        rhapsody.run(main, timeot=3)  # type: ignore[call-overload]


def test_what_was_called_ends_before_run_returns() -> None:
    futures = []

    def main(flow: WorkflowEngine) -> None:
        futures.append(flow.function_task(double)(3))

    rhapsody.run(main)
    assert futures[0].result() == 6


@pytest.mark.parametrize("error", [KeyError("own"), StopIteration(1), SystemExit(3)])
def test_what_main_raises_is_raised_and_is_no_failed_task(error: BaseException) -> None:
    engines = []

    def main(flow: WorkflowEngine) -> None:
        engines.append(flow)
        raise error

    with pytest.raises((type(error), RuntimeError)) as raised:
        rhapsody.run(main)
    assert error in (raised.value, raised.value.__cause__)
    assert engines[0].stats.failed == 0


def test_a_signal_ends_a_main_that_waits() -> None:
    ended = threading.Event()

    def main(flow: WorkflowEngine) -> None:
        future = flow.executable_task(lambda: "sleep 60")()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            rhapsody.wait(future)
        except asyncio.CancelledError:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        rhapsody.run(main)
    assert ended.wait(20)


@pytest.mark.parametrize("main", [3, lambda: None, lambda a, b: None])
def test_a_main_that_takes_no_engine_is_refused(main: Any) -> None:
    with pytest.raises(TypeError, match=r"run\(\): .* (is not callable|must take one arg)"):
        rhapsody.run(main)


@pytest.mark.asyncio
async def test_run_is_refused_on_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match=r"async with WorkflowEngine\.create\(\) as flow:"):
        rhapsody.run(lambda flow: None)


def squares(count: int) -> int:
    """A library function that runs a small workflow."""

    def main(flow: WorkflowEngine) -> int:
        power = flow.function_task(pow)
        return sum(rhapsody.wait(each) for each in flow.map(power, range(count), [2] * count))

    return rhapsody.run(main)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_synchronous_program_may_run_inside_a_function_task(executor: str) -> None:
    async def main(flow: WorkflowEngine) -> int:
        return await flow.function_task(squares)(4)

    assert rhapsody.run(main, backend=LocalExecutionBackend(executor)) == 14


def test_a_synchronous_program_may_run_inside_a_block() -> None:
    async def main(flow: WorkflowEngine) -> int:
        return await flow.block(squares)(4)

    assert rhapsody.run(main) == 14


def test_a_task_of_a_program_inside_a_task_cannot_wait() -> None:
    def inner() -> int:
        def main(flow: WorkflowEngine) -> int:
            never: Any = None
            return len(rhapsody.wait(flow.function_task(lambda: rhapsody.wait(never))()))

        return rhapsody.run(main)

    async def outer(flow: WorkflowEngine) -> int:
        return await flow.function_task(inner)()

    with pytest.raises(RuntimeError, match="function task"):
        rhapsody.run(outer)
