"""Effects of a failure on dependents and on other tasks."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    TasksMainStates,
    WorkflowEngine,
)
from tests._support.failures import OwnError, broken_and_use, dependency_failure
from tests._support.scripted import Inline, Scripted, outcome, turns, within

pytestmark = pytest.mark.asyncio


async def test_a_dependent_never_runs_and_says_whose_fault_it_is() -> None:
    async with WorkflowEngine.create(backend := Inline()) as flow:
        broken, use = broken_and_use(flow)
        first = broken()
        dependent = use(first)
        error = await dependency_failure(dependent)
        assert error.failed_dependencies == ["broken"]
        assert error.root_cause is await outcome(first)
        assert error.__cause__ is error.root_cause
        assert "broken" in str(error)
        assert dependent.state is TasksMainStates.FAILED
        assert backend.ran == ["broken"]


async def test_along_a_chain_the_root_cause_stays_and_the_cause_is_the_neighbour() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        broken, use = broken_and_use(flow)
        first = broken()
        second = use.options(name="second")(first)
        third = use.options(name="third")(second)
        error = await dependency_failure(third)
        assert error.failed_dependencies == ["second"]
        assert error.__cause__ is await outcome(second)
        assert error.root_cause is await outcome(first)


async def test_a_dependent_says_how_a_failure_begins_and_its_cause_the_rest() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken() -> None:
            raise ValueError("\n".join(["no column 'b'", "there are", "'a' and 'c'"]))

        @flow.function_task
        def use(x: Any) -> None: ...

        error = await dependency_failure(use(use(broken())))
        assert str(error).endswith("broken() (task.000001) failed: ValueError: no column 'b'")
        text = "".join(traceback.format_exception(error))
        assert text.count("there are\n'a' and 'c'") == 1


@pytest.mark.parametrize("length", [8, 9, 40])
async def test_of_a_long_chain_the_causes_are_the_neighbour_a_few_more_and_the_root(
    length: int,
) -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        broken, use = broken_and_use(flow)
        chain = [broken()]
        for number in range(1, length + 1):
            chain.append(use.options(name=f"link {number}")(chain[-1]))
        errors = [await dependency_failure(future) for future in chain[1:]]
        root = await outcome(chain[0])
        for number, error in enumerate(errors, 1):
            assert error.root_cause is root
            assert error.failed_dependencies == [chain[number - 1].name]
            if number > 1:
                assert str(error.__cause__) == str(errors[number - 2])
            causes = [error.__cause__]
            while isinstance(causes[-1], DependencyFailureError):
                causes.append(causes[-1].__cause__)
            assert causes[-1] is root
            assert len(causes) <= 8
            text = "".join(traceback.format_exception(error))
            missing = number - len(causes)
            assert text.count("not shown") == (missing > 0)
            assert missing == 0 or f"not shown: {missing} failures" in text


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
        assert error.__cause__ is await outcome(middle)


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
        assert await outcome(inner) is error.__cause__


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


async def test_a_failure_with_several_paths_is_reported_once() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        error = ValueError("one object")

        @flow.function_task
        def broken() -> int:
            raise error

        @flow.function_task
        def use(*parts: Any) -> Any: ...

        first = broken()
        skipped = use(first)
        told = str(await dependency_failure(use(skipped, first, use(skipped))))
        assert "because broken() (task.000001) failed: ValueError" in told
        told = str(await dependency_failure(use(skipped, use(broken()), broken())))
        assert "because broken() (task.000001) failed (and 2 more): ValueError" in told


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
        assert isinstance(await outcome(bad), DependencyFailureError)


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
        assert isinstance(await outcome(bad), OwnError)
        for future in (running, whole, waiting):
            with pytest.raises(asyncio.CancelledError, match=r"'part' \(task.000002\) failed"):
                await within(future)
        assert await finished == 1
        await within(running.ended())
        assert backend.stops == [third["uid"]]


async def test_max_failures_cancels_all_that_is_unfinished_after_so_many() -> None:
    async with WorkflowEngine.create(backend := Scripted(), max_failures=2) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first, second, running = part(), part(), part()
        dependent = part(first)
        given = [await backend.next() for _ in range(3)]
        backend.failed(given[0], OwnError(1))
        assert isinstance(await outcome(dependent), DependencyFailureError)  # does not count
        assert not running.done()
        backend.failed(given[1], OwnError(2))
        assert isinstance(await outcome(second), OwnError)
        with pytest.raises(asyncio.CancelledError, match=r"'part' \(task.000002\)"):
            await within(running)


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


class MuteError(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ValueError


async def test_an_exception_without_text_fails_its_task_and_those_after_it() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def mute() -> int:
            raise MuteError

        @flow.block
        def mute_block() -> int:
            raise MuteError

        @flow.block
        async def mute_async_block() -> int:
            raise MuteError

        @flow.function_task
        def use(x: int) -> int:
            return x

        for task in (mute, mute_block, mute_async_block):
            first = task()
            error = await outcome(use(first))
            assert isinstance(error, DependencyFailureError)
            assert isinstance(error.root_cause, MuteError)
        assert await use(3) == 3


async def test_a_foreign_future_may_fail_with_stop_iteration() -> None:
    class Old:
        def as_dict(self) -> dict[str, Any]:
            return {"uid": "x", "exception": StopIteration(1)}

    async with WorkflowEngine.create() as flow:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        flow.handle_task_failure(Old(), future)
        assert isinstance(await outcome(future), RuntimeError)


async def test_exits_in_callables_of_the_user_fail_their_task_alone() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(service=True, ready=lambda task: sys.exit("not ready"))
        def service() -> str:
            return "sleep 60"

        def fails() -> int:
            raise ValueError

        def leaves(error: BaseException) -> int:
            sys.exit("no fallback")

        error = await outcome(service())
        assert "not ready" in str(error)
        error = await outcome(flow.function_task(fallback=leaves)(fails)())
        assert isinstance(error, SystemExit)

        async def later(error: BaseException) -> int:
            return 1

        with pytest.raises(TypeError, match="fallback must be"):
            flow.function_task(fallback=later)(fails)


async def test_a_failure_may_be_freed_while_another_is_reported() -> None:
    class CollectingError(Exception):
        def __str__(self) -> str:
            gc.collect()  # as any allocation may
            return "text"

    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def bad() -> None:
            raise CollectingError

        futures = [bad(), bad()]
        await asyncio.wait(futures)
        circle: list[Any] = [futures.pop()]
        circle.append(circle)
        del circle
        futures.clear()
        gc.collect()
        assert flow.stats.failed == 2
