"""Failure: what the future raises, what dependents raise, and who goes on (C7.10, C9)."""

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
from tests.core.scripted import Inline, Scripted, turns, within

pytestmark = pytest.mark.asyncio


class OwnError(Exception):
    """An exception type of the user's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """One that forbids setting attributes, `__traceback__` included."""

    code: int


async def failure(future: asyncio.Future[Any]) -> BaseException:
    """What a future raises."""
    try:
        value = await within(future)
    except BaseException as error:  # whatever it is, the test looks at it
        return error
    raise AssertionError(f"it gave {value!r}")


async def dependency_failure(future: asyncio.Future[Any]) -> DependencyFailureError:
    error = await failure(future)
    assert isinstance(error, DependencyFailureError)
    return error


async def test_a_future_raises_the_functions_own_exception_with_its_traceback() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def deep_inside() -> None:
            raise OwnError(7)

        future = deep_inside()
        error = await failure(future)
        assert isinstance(error, OwnError)
        assert error.code == 7
        assert "in deep_inside" in "".join(traceback.format_exception(error))
        assert future.state is TasksMainStates.FAILED


async def test_a_dependent_never_runs_and_says_whose_fault_it_is() -> None:
    async with WorkflowEngine.create(backend := Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def use(x: int) -> int:
            return x

        first = broken()
        dependent = use(first)
        error = await dependency_failure(dependent)
        assert error.failed_dependencies == ["broken"]
        assert error.root_cause is await failure(first)
        assert error.__cause__ is error.root_cause
        assert "broken" in str(error)
        assert dependent.state is TasksMainStates.FAILED
        assert backend.ran == ["broken"]


async def test_along_a_chain_the_root_cause_stays_and_the_cause_is_the_neighbour() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def use(x: int) -> int:
            return x

        first = broken()
        second = use.options(name="second")(first)
        third = use.options(name="third")(second)
        error = await dependency_failure(third)
        assert error.failed_dependencies == ["second"]
        assert error.__cause__ is await failure(second)
        assert error.root_cause is await failure(first)


async def test_failed_dependencies_are_in_argument_order_not_in_order_of_failure() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(label: str) -> Any: ...

        @flow.function_task
        def use(*args: Any, **kwargs: Any) -> None: ...

        a, b, c, good = (part.options(name=label)(label) for label in ("a", "b", "c", "good"))
        dependent = use(good, [b], {"x": a}, b, last=c)
        tasks = {task["name"]: task for task in [await backend.next() for _ in range(4)]}
        for name in ("a", "c"):
            backend.failed(tasks[name], OwnError(1))
        backend.done(tasks["good"], 1)
        backend.failed(tasks["b"], OwnError(2))
        error = await dependency_failure(dependent)
        assert error.failed_dependencies == ["b", "a", "c"]
        assert isinstance(error.root_cause, OwnError)
        assert error.root_cause.code == 2
        assert error.__cause__ is error.root_cause


async def test_a_dependent_is_decided_when_its_last_dependency_has_ended() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        @flow.function_task
        def use(x: int, y: int) -> None: ...

        dependent = use(part(), part())
        first, second = await backend.next(), await backend.next()
        backend.failed(first, OwnError(1))
        await turns()
        assert not dependent.done()
        backend.done(second, 2)
        error = await dependency_failure(dependent)
        assert error.failed_dependencies == ["part"]
        assert len(backend.tasks) == 2


async def test_the_root_cause_is_of_the_first_failed_dependency() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        @flow.function_task
        def use(*parts: int) -> Any: ...

        middle = use.options(name="middle")(part.options(name="late")())
        dependent = use(middle, part.options(name="early")())
        late, early = await backend.next(), await backend.next()
        backend.failed(early, OwnError(1))
        await turns()
        backend.failed(late, OwnError(2))
        error = await dependency_failure(dependent)
        assert error.failed_dependencies == ["middle", "early"]
        assert isinstance(error.root_cause, OwnError)
        assert error.root_cause.code == 2
        assert error.__cause__ is await failure(middle)


@pytest.mark.parametrize("failed_first", [True, False])
async def test_a_dependent_of_failed_and_cancelled_tasks_is_cancelled(failed_first: bool) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        @flow.function_task
        def use(x: int, y: int) -> None: ...

        bad, stopped = part(), part()
        dependent = use(bad, stopped)
        task, _ = await backend.next(), await backend.next()
        if failed_first:
            backend.failed(task, OwnError(1))
            await turns()
            stopped.cancel()
        else:
            stopped.cancel()
            backend.failed(task, OwnError(1))
        with pytest.raises(asyncio.CancelledError):
            await within(dependent)
        assert dependent.state is TasksMainStates.CANCELED


async def test_a_failed_block_fails_its_dependents() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.block
        async def part() -> int:
            return await broken()

        @flow.block
        async def whole(x: int) -> int:
            raise AssertionError("it must not run")

        inner = part()
        error = await dependency_failure(whole(inner))
        assert error.failed_dependencies == ["part"]
        assert isinstance(error.root_cause, OwnError)
        assert await failure(inner) is error.__cause__


async def test_a_failure_of_a_task_that_another_comes_after_fails_it() -> None:
    async with WorkflowEngine.create(backend := Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def later() -> None: ...

        error = await dependency_failure(later.options(after=[broken()])())
        assert error.failed_dependencies == ["broken"]
        assert backend.ran == ["broken"]


async def test_a_failed_asyncio_future_fails_its_dependents() -> None:
    async with WorkflowEngine.create(backend := Inline()) as flow:

        @flow.function_task
        def use(x: int) -> None: ...

        plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        dependent = use(plain)
        plain.set_exception(OwnError(3))
        error = await dependency_failure(dependent)
        assert isinstance(error.root_cause, OwnError)
        assert error.__cause__ is error.root_cause
        assert len(error.failed_dependencies) == 1
        assert backend.ran == []


async def test_independent_branches_go_on() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def plus(x: int) -> int:
            return x + 1

        bad = plus(broken())
        good = plus(plus(plus(0)))
        assert await within(good) == 3
        assert isinstance(await failure(bad), DependencyFailureError)


async def test_with_fail_fast_the_first_failure_cancels_all_that_is_unfinished() -> None:
    async with WorkflowEngine.create(backend := Scripted(), fail_fast=True) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        @flow.block
        async def block() -> None:
            await asyncio.Event().wait()

        finished, bad, running = part(), part(), part()
        first, second, third = [await backend.next() for _ in range(3)]
        waiting, whole = part(running), block()
        backend.done(first, 1)
        backend.runs(third)
        await within(finished)
        backend.failed(second, OwnError(7))
        assert isinstance(await failure(bad), OwnError)
        for future in (running, waiting, whole):
            with pytest.raises(asyncio.CancelledError):
                await within(future)
        assert await finished == 1
        await within(running.ended())
        assert backend.stops == [third["uid"]]


async def test_with_fail_fast_a_retry_is_not_a_failure() -> None:
    async with WorkflowEngine.create(backend := Scripted(), fail_fast=True) as flow:

        @flow.function_task
        def part() -> Any: ...

        other, retried = part(), part.options(retries=1)()
        first, second = await backend.next(), await backend.next()
        backend.failed(second, OwnError(1))
        backend.done(await backend.next(), 2)
        assert await within(retried) == 2
        backend.done(first, 1)
        assert await within(other) == 1


@pytest.mark.parametrize("awaited", [0, 3])
async def test_failures_that_nobody_awaited_are_one_summary_line(
    awaited: int, caplog: pytest.LogCaptureFixture
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

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def use(x: int) -> int:
            return x

        await dependency_failure(use(use(broken())))
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_exception_that_a_future_cannot_hold_fails_the_task_all_the_same() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), StopIteration("over"))
        error = await failure(future)
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
        assert isinstance(await failure(future), asyncio.CancelledError)
        await failure(dependent)
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
        error = await failure(future)
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
        error = await failure(future)
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

        @flow.function_task
        def broken() -> int:
            raise OwnError(7)

        @flow.function_task
        def use(x: int) -> int:
            return x

        future = broken()
        dependent = use(future)
        lengths = []
        for _ in range(5):
            for one in (future, dependent):
                error = await failure(one)
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
            error = await failure(future)
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

        assert isinstance(await failure(broken.options(fallback=broken_too)(1)), LookupError)


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
                assert await failure(task()) == FrozenError(7)


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

        assert await failure(block()) == FrozenError(7)
        assert await failure(flow.executable_task(raises)()) == FrozenError(7)
        frozen = flow.function_task(raise_frozen_later)
        assert (await dependency_failure(dependent(frozen()))).root_cause == FrozenError(7)
        assert await failure(frozen.options(fallback=raises)()) == FrozenError(7)
        again = RetryPolicy(attempts=1, wait=raises)
        assert await failure(frozen.options(retries=again)()) == FrozenError(7)
        with pytest.raises(FrozenError):
            async with flow.scope("part"):
                await frozen()
