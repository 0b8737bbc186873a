"""Failure: what the future raises, and what is said of it."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    LocalExecutionBackend,
    RetryPolicy,
    TaskFailedError,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
)
from tests._support.failures import OwnError, broken_and_use, dependency_failure
from tests._support.scripted import Inline, Scripted, outcome, within

pytestmark = pytest.mark.asyncio


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """One that forbids setting attributes, `__traceback__` included."""

    code: int


async def test_a_future_raises_the_functions_own_exception_with_its_traceback() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def deep_inside() -> None:
            raise OwnError(7)

        future = deep_inside()
        error = await outcome(future)
        assert isinstance(error, OwnError)
        assert error.code == 7
        assert "in deep_inside" in "".join(traceback.format_exception(error))
        assert future.state is TasksMainStates.FAILED


@pytest.mark.parametrize("awaited", [0, 3])
async def test_failures_that_are_not_awaited_are_one_summary_line(
    awaited: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        futures = [broken() for _ in range(1000)]
        await within(asyncio.wait(futures))
        await within(asyncio.gather(*futures[:awaited], return_exceptions=True))
        futures.clear()
        gc.collect()
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(records) == 1
    assert str(1000 - awaited) in records[0].getMessage()
    assert "never retrieved" not in caplog.text + capfd.readouterr().err


async def test_failures_that_were_all_seen_are_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        await within(asyncio.gather(*[broken() for _ in range(10)], return_exceptions=True))
        with pytest.raises(OwnError):
            await broken()
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_dependents_failure_counts_as_having_looked_at_its_causes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        broken, use = broken_and_use(flow)
        await dependency_failure(use(use(broken())))
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_exception_that_a_future_cannot_hold_still_fails_the_task() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), StopIteration("over"))
        error = await outcome(future)
        assert isinstance(error, Exception)
        assert "StopIteration" in "".join(traceback.format_exception(error))
        assert future.state is TasksMainStates.FAILED


async def test_a_function_that_raises_cancelled_error_ends_its_future() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        future = part()
        dependent = part(future)
        backend.failed(await backend.next(), asyncio.CancelledError())
        assert isinstance(await outcome(future), asyncio.CancelledError)
        await outcome(dependent)
        assert len(backend.tasks) == 1


@pytest.mark.parametrize("reported", [None, "just text", {"not": "an exception"}])
async def test_a_failure_without_an_exception_object_is_a_task_failed_error(reported: Any) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        task["stderr"] = "the last words"
        if reported is None:
            backend.report(task, TasksMainStates.FAILED)
        else:
            backend.failed(task, reported)
        error = await outcome(future)
        assert isinstance(error, TaskFailedError | RuntimeError)
        assert "part" in str(error)


async def test_an_executables_failure_has_exit_code_and_the_tail_of_stderr_and_the_command() -> (
    None
):
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "tool --fast input"

        future = tool()
        task = await backend.next()
        task["exit_code"], task["stdout"] = 3, "some"
        task["stderr"] = "x" * 100_000 + "the reason"
        backend.report(task, TasksMainStates.FAILED)
        error = await outcome(future)
        assert isinstance(error, TaskFailedError)
        assert error.exit_code == future.exit_code == 3
        assert error.stderr.endswith("the reason")
        assert error.command is not None
        assert "tool --fast input" in error.command
        assert len(str(error)) < 10_000
        assert "the reason" in str(error)
        assert future.stderr == task["stderr"]


async def test_a_shared_exception_does_not_grow_with_each_await() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        broken, use = broken_and_use(flow)
        future = broken()
        dependent = use(future)
        lengths = []
        for _ in range(5):
            for one in (future, dependent):
                error = await outcome(one)
                lengths.append(len(traceback.extract_tb(error.__traceback__)))
        assert lengths[-2:] == lengths[2:4]
        assert lengths[-1] <= lengths[1]


async def test_every_await_of_a_failure_shows_where_the_function_raised_it() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def deep_inside() -> int:
            raise OwnError(7)

        future = deep_inside()
        for _ in range(3):
            error = await outcome(future)
            assert "in deep_inside" in "".join(traceback.format_exception(error))


async def test_a_fallback_takes_the_place_of_the_failure() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken(code: int) -> Any:
            raise OwnError(code)

        @flow.function_task
        def use(x: Any) -> Any:
            return x

        assert await within(use(broken.options(fallback=None)(1))) is None
        assert await within(broken.options(fallback=lambda error: error.code)(5)) == 5

        def broken_too(error: BaseException) -> int:
            raise LookupError("no fallback either")

        error = await outcome(broken.options(fallback=broken_too)(1))
        assert isinstance(error, LookupError)
        assert isinstance(error.__cause__, OwnError)
        assert error.__notes__[0] == "raised by the fallback of task 'broken' (task.000004)"

        def passes_on(error: BaseException) -> int:
            raise error

        error = await outcome(broken.options(fallback=passes_on)(1))
        assert isinstance(error, OwnError)
        assert error.__cause__ is None


async def test_each_error_of_a_task_derives_from_what_a_caller_would_catch() -> None:
    assert issubclass(DependencyFailureError, RuntimeError)
    assert issubclass(TaskFailedError, RuntimeError)
    assert issubclass(TaskTimeoutError, TimeoutError)


# Exceptions that cannot be changed.


def raise_frozen() -> None:
    raise FrozenError(7)


async def raise_frozen_later() -> None:
    raise FrozenError(7)


@pytest.mark.parametrize("executor", ["thread", "process", "own"])
@pytest.mark.parametrize("function", [raise_frozen, raise_frozen_later])
async def test_an_exception_of_a_frozen_class_keeps_its_type_on_the_local_backend(
    executor: str, function: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        backend = LocalExecutionBackend(pool if executor == "own" else executor)
        async with WorkflowEngine.create(backend) as flow:
            for resources in (None, {"cores": 0}):
                task = flow.function_task(resources=resources)(function)
                assert await outcome(task()) == FrozenError(7)


async def test_an_exception_of_a_frozen_class_keeps_its_type_wherever_it_comes_from() -> None:
    def raises(*_: Any) -> Any:
        raise FrozenError(7)

    async with WorkflowEngine.create(Inline()) as flow:

        @flow.block
        async def block() -> None:
            await flow.function_task(raise_frozen_later)()

        @flow.function_task
        async def dependent(x: Any) -> Any:
            return x

        assert await outcome(block()) == FrozenError(7)
        assert await outcome(flow.executable_task(raises)()) == FrozenError(7)
        frozen = flow.function_task(raise_frozen_later)
        assert (await dependency_failure(dependent(frozen()))).root_cause == FrozenError(7)
        assert await outcome(frozen.options(fallback=raises)()) == FrozenError(7)
        again = RetryPolicy(attempts=1, wait=raises)
        assert await outcome(frozen.options(retries=again)()) == FrozenError(7)
        with pytest.raises(FrozenError):
            async with flow.scope("part"):
                await frozen()
