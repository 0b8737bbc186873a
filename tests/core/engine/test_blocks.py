"""Blocks: parts of the workflow that call tasks and wait for them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

import rhapsody
from rhapsody import DependencyFailureError, WorkflowEngine, literal, wait
from rhapsody.engine.core.background import Background
from tests._support.engine_fixtures import Machine, adder, engine, local_processes, local_threads
from tests._support.scripted import Scripted, outcome, turns, until, within

pytestmark = pytest.mark.asyncio


# Asynchronous blocks.


async def test_a_blocks_future_is_its_result() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        async def part(x: int) -> int:
            first = await add(x)
            result: int = await add(first, first)
            return result

        future = part(1)
        assert future.uid == "block.000001"
        assert await future == 4


async def test_a_block_runs_on_the_engines_loop() -> None:
    async with engine(Machine()) as flow:

        @flow.block
        async def part() -> tuple[Any, int]:
            return asyncio.get_running_loop(), threading.get_ident()

        assert await part() == (flow.loop, threading.get_ident())


async def test_a_block_can_depend_on_tasks_and_blocks_and_tasks_on_blocks() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        async def part(x: int, *, more: list[int]) -> int:
            assert type(x) is int
            return x + sum(more)

        inner = part(add(1), more=[add(2), 4])
        assert await add(part(inner, more=[inner])) == 19


async def test_a_block_starts_when_its_dependencies_have_values() -> None:
    backend, started = Scripted(), []
    async with engine(backend) as flow:

        @flow.function_task
        async def first() -> Any: ...

        @flow.block
        async def part(x: Any) -> Any:
            started.append(x)
            return x

        future = part(first())
        task = await backend.given("first")
        await turns()
        assert started == []
        assert future.state == "PENDING"
        backend.done(task, "value")
        assert await future == "value"


async def test_a_block_whose_dependency_failed_does_not_run() -> None:
    ran: list[Any] = []
    async with engine(Machine()) as flow:

        @flow.function_task
        async def fail() -> None:
            raise KeyError("first")

        @flow.block
        async def part(x: Any) -> None:
            ran.append(x)

        error = await outcome(part(fail()))
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ["fail"]
        assert isinstance(error.root_cause, KeyError)
    assert ran == []


async def test_what_a_block_raises_is_on_its_future() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        async def part() -> None:
            await add("no number")

        @flow.block
        def sync_part() -> None:
            wait(add("no number"))

        for block in (part, sync_part):
            error = await outcome(block())
            assert isinstance(error, TypeError)


async def test_a_block_can_start_tasks_and_leave_them() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job() -> Any: ...

        @flow.block
        async def part() -> list[Any]:
            return [job(), job()]

        futures = await part()
        await turns()
        assert [future.done() for future in futures] == [False, False]
        for task in backend.tasks:
            backend.done(task, task["uid"])
        assert len(await asyncio.gather(*futures)) == 2


async def test_blocks_run_side_by_side() -> None:
    both = asyncio.Barrier(3)
    async with engine(Machine()) as flow:

        @flow.block
        async def part() -> None:
            await both.wait()

        await asyncio.gather(*(part() for _ in range(3)))


async def test_async_blocks_nest() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        async def nest(depth: int) -> int:
            if depth == 0:
                return await add(0)  # type: ignore[no-any-return]
            return 1 + await nest(depth - 1)

        assert await nest(30) == 31


async def test_a_block_has_options() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def first() -> Any: ...

        @flow.block(name="named")
        async def part() -> str:
            return "ran"

        future = part.options(after=[first()])()
        assert future.name == "named"
        task = await backend.given("first")
        await turns()
        assert not future.done()
        backend.done(task)
        assert await future == "ran"


# Synchronous blocks.


async def test_a_sync_block_runs_in_a_thread_of_its_own() -> None:
    meeting = threading.Barrier(3, timeout=20)
    async with engine(Machine()) as flow:

        @flow.block
        def part() -> int:
            meeting.wait()  # all of them are there at once
            return threading.get_ident()

        idents = await asyncio.gather(*(part() for _ in range(3)))
        assert len({*idents, threading.get_ident()}) == 4


async def test_a_sync_block_calls_tasks_there_and_waits_for_them() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        def part(x: int) -> list[int]:
            first = add(x)
            assert first.uid == "task.000002"  # registered when the call returns
            futures = flow.map(add, range(3))
            return [wait(first), *(wait(future) for future in futures)]

        assert await part(add(1)) == [3, 1, 2, 3]


async def test_sync_blocks_nest_deeper_than_any_pool() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        def nest(depth: int) -> int:
            return wait(add(0)) if depth == 0 else 1 + wait(nest(depth - 1))

        assert await nest(5) == 6
        assert await asyncio.gather(*(nest(5) for _ in range(8))) == [6] * 8
        assert await nest(40) == 41


async def test_sync_and_async_blocks_nest_in_each_other() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        async def outer(depth: int) -> int:
            return 1 + await inner(depth - 1)

        @flow.block
        def inner(depth: int) -> int:
            return wait(add(0)) if depth <= 0 else 1 + wait(outer(depth - 1))

        assert await outer(5) == 6


async def test_wait_returns_after_its_timeout_and_the_task_continues() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job() -> Any: ...

        @flow.block
        def part() -> str:
            future = job()
            task = asyncio.run_coroutine_threadsafe(backend.next(), flow.loop).result(20)
            with pytest.raises(TimeoutError):
                wait(future, timeout=0.01)
            assert not future.done()
            flow.loop.call_soon_threadsafe(backend.done, task, "late")
            return str(wait(future))

        assert await part() == "late"
        assert backend.stops == []


async def test_wait_raises_what_the_task_raised_or_that_it_was_cancelled() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job() -> Any: ...

        @flow.block
        def part(future: Any) -> str:
            (hidden,) = future
            try:
                wait(hidden)
            except (KeyError, asyncio.CancelledError) as error:
                return type(error).__name__
            return "nothing"

        failing, cancelled = job(), job()
        blocks = [part(literal([failing])), part(literal([cancelled]))]
        await until(lambda: len(backend.tasks) == 2)
        backend.failed(backend.tasks[0], KeyError("x"))
        cancelled.cancel()
        assert await asyncio.gather(*blocks) == ["KeyError", "CancelledError"]


async def test_wait_takes_any_future_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    plain: asyncio.Future[int] = loop.create_future()
    loop.call_later(0.01, plain.set_result, 7)
    async with engine(Machine()) as flow:

        @flow.block
        def part(held: Any) -> int:
            future: asyncio.Future[int] = held[0]
            return wait(future)

        assert await part(literal([plain])) == 7


async def test_wait_is_refused_on_the_loop() -> None:
    async with engine(Scripted()) as flow:
        add = adder(flow)

        @flow.block
        async def part() -> None:
            wait(add(1))

        with pytest.raises(RuntimeError, match="await"):
            wait(add(1))
        error = await outcome(part())
        assert isinstance(error, RuntimeError)
        assert "await" in str(error)


@pytest.mark.parametrize("machine", [Machine, local_threads, local_processes])
async def test_wait_is_refused_in_function_tasks(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def waits(held: Any) -> None:
            wait(held[0])

        @flow.function_task
        async def waits_later(held: Any) -> None:
            wait(held[0])

        @flow.block
        def part() -> int:
            result: int = wait(adder(flow)(1))
            return result

        held = [None] if machine is local_processes else [adder(flow)(1)]
        for task in (waits, waits_later):
            error = await outcome(task(literal(held)))
            assert isinstance(error, RuntimeError), error
            assert repr(task.name) in str(error)
            assert "as an argument" in str(error)
        assert await part() == 2


@pytest.mark.parametrize("thing", [None, 5, "task.000001", [1]])
async def test_wait_takes_nothing_but_futures(thing: Any) -> None:
    with pytest.raises(TypeError, match="future"):
        wait(thing)


@pytest.mark.parametrize(
    ("time", "kind"), [([1], TypeError), ("soon", ValueError), (-1, ValueError)]
)
async def test_wait_checks_its_time(time: Any, kind: type[Exception]) -> None:
    async with engine(Machine()) as flow:

        @flow.block
        def part() -> None:
            wait(adder(flow)(1), timeout=time)

        assert isinstance(await outcome(part()), kind)


async def test_a_thread_that_no_block_started_may_not_call_tasks() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="block"):
                add(1)

        await asyncio.to_thread(elsewhere)


async def test_a_thread_that_a_sync_block_started_with_its_context_may_call_tasks() -> None:
    import contextvars

    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        def part() -> int:
            results: list[int] = []
            context = contextvars.copy_context()
            helper = threading.Thread(
                target=lambda: results.append(context.run(lambda: wait(add(1))))
            )
            helper.start()
            helper.join()
            return results[0]

        assert await part() == 2


async def test_a_wrong_call_in_a_sync_block_raises_there() -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)

        @flow.block
        def part() -> str:
            with pytest.raises(TypeError, match=r"add\(\) missing 1 required"):
                add()
            return "told"

        assert await part() == "told"


async def test_a_plain_wrapper_around_a_coroutine_function_is_a_block() -> None:
    gate = asyncio.Event()
    async with engine(Machine()) as flow:
        add = adder(flow)

        async def part(x: int) -> int:
            await gate.wait()
            return await add(x)  # type: ignore[no-any-return]

        @functools.wraps(part)
        def wrapped(x: int) -> Any:
            return part(x)

        block = flow.block(wrapped)
        first, second = block(1), block(2)
        await turns()
        second.cancel()
        await second.ended()
        gate.set()
        assert await first == 2


async def test_a_block_that_gets_no_thread_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(Machine()) as flow:
        add = adder(flow)
        await add(1)  # what needs a thread for itself has it

        @flow.block
        def part(*_: Any) -> int:
            return 3

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            futures = [part(), part(add(1))]
            errors = [await outcome(future) for future in futures]
        assert [str(error) for error in errors] == ["can't start new thread"] * 2
        assert await part() == 3


async def test_a_block_whose_arguments_cannot_be_filled_in_fails_alone() -> None:
    async with engine(Machine()) as flow:

        @flow.function_task
        async def made() -> list[int]:
            return [1]

        @flow.block
        async def part(values: Any) -> Any:
            return values

        bad = part({made()})  # a set that would hold a list
        assert isinstance(await outcome(bad), TypeError)
        assert await part(2) == 2


async def test_what_a_block_that_ended_left_behind_may_call_tasks() -> None:
    async with engine(Machine()) as flow:
        add, go_on = adder(flow), asyncio.Event()
        left: list[asyncio.Task[int]] = []

        @flow.block
        async def part() -> str:
            async def later() -> int:
                await go_on.wait()
                result: int = await add(1)
                return result

            left.append(asyncio.create_task(later()))
            return "ended"

        assert await part() == "ended"
        go_on.set()
        assert await left[0] == 2


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_block_that_returns_a_future_resolves_to_its_value(synchronous: bool) -> None:
    async with engine(Machine()) as flow:

        @flow.function_task
        def plus(x: int) -> int:
            if x < 0:
                raise LookupError("negative")
            return x + 1

        async def asynchronous_body(x: int) -> Any:
            return plus(plus(x))

        def synchronous_body(x: int) -> Any:
            return plus(plus(x))

        block = flow.block(synchronous_body if synchronous else asynchronous_body)
        assert await block(1) == 3
        assert await plus(block(1)) == 4
        with pytest.raises(DependencyFailureError, match="negative"):
            await block(-5)


async def test_a_returned_future_is_awaited_while_the_thread_of_its_block_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, former = threading.Event(), Background.soon_from_anywhere

    def reported(self: Background, function: Callable[[], object]) -> bool:
        found = former(self, function)
        if threading.current_thread() is not threading.main_thread():
            done.wait(40)  # the thread is held up after it has reported the block's end
        return found

    async with engine(Machine()) as flow:
        plus = flow.function_task(lambda x: x + 1)

        @flow.block
        def outer() -> Any:
            monkeypatch.setattr(Background, "soon_from_anywhere", reported)
            return later

        later = plus(1)
        block = outer()
        block.add_done_callback(lambda _: done.set())
        assert await asyncio.wait_for(block, 20) == 2


@pytest.mark.parametrize("synchronous", [False, True])
async def test_cancelling_a_block_cancels_the_future_that_it_has_returned(
    synchronous: bool,
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        async def asynchronous_body() -> Any:
            return part()

        def synchronous_body() -> Any:
            return part()

        block = flow.block(synchronous_body if synchronous else asynchronous_body)()
        task = await backend.next()
        block.cancel()
        await within(asyncio.wait([block]))
        assert block.cancelled()
        await until(lambda: backend.stops == [task["uid"]])


async def test_a_block_that_returns_its_own_future_is_an_error() -> None:
    async with engine(Machine()) as flow:
        futures: list[Any] = []

        @flow.block
        async def itself() -> Any:
            return futures[0]

        futures.append(itself())
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await within(futures[0])


async def test_sync_blocks_nested_deeper_than_any_pool_do_not_deadlock() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def leaf() -> int:
            return 1

        @flow.block
        def nested(depth: int) -> int:
            if depth == 0:
                return rhapsody.wait(leaf())
            return sum(rhapsody.wait(part) for part in [nested(depth - 1), nested(depth - 1)])

        assert await within(nested(5)) == 32
