"""Tests of the end of blocks: canceled, with their engine, or waiting for themselves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rhapsody import (
    LocalExecutionBackend,
    WorkflowEngine,
    literal,
    wait,
)
from rhapsody.engine.core.record import BlockRecord
from tests._support.engine_fixtures import adder, engine
from tests._support.scripted import Scripted, outcome, turns, until, within

pytestmark = pytest.mark.asyncio


# Canceling.


async def test_cancelling_a_block_cancels_what_it_started_and_is_unfinished() -> None:
    backend = Scripted()
    started: list[Any] = []
    async with engine(backend) as flow:

        @flow.function_task
        async def job(x: int) -> Any: ...

        @flow.block
        async def inner() -> None:
            started.append(job(3))
            await started[-1]

        @flow.block
        async def part() -> None:
            started.extend([job(1), job(2), inner()])
            await asyncio.gather(*started)

        other = job(4)
        future = part()
        await until(lambda: len(backend.tasks) == 4)
        finished = next(task for task in backend.tasks if task["args"] == (1,))
        backend.done(finished, "kept")
        await started[0]
        assert future.cancel() is True
        assert future.cancelled()
        await future.ended()
        await asyncio.wait(started)
        assert [one.cancelled() for one in started] == [False, True, True, True]
        assert len(backend.stops) == 2
        assert not other.done()


async def test_cancelling_a_block_cancels_what_it_started_on_another_engine() -> None:
    backend = Scripted()
    async with engine() as outer, engine(backend) as inner:

        @inner.function_task
        async def job() -> Any: ...

        started: list[Any] = []

        @outer.block
        async def part() -> None:
            started.append(job())
            await asyncio.Event().wait()

        future = part()
        task = await backend.given("job")
        assert future.cancel() is True
        assert started[0].cancelled()
        await started[0].ended()
        assert backend.stops == [task["uid"]]
        assert (outer.stats.cancelled, inner.stats.cancelled) == (1, 1)
        assert dict(inner.components) == {}


async def test_cancelling_reaches_the_end_of_a_deep_chain_of_blocks() -> None:
    async with engine(Scripted()) as flow:
        deepest = asyncio.Event()

        @flow.block
        async def part(below: int) -> None:
            if below:
                await part(below - 1)
            deepest.set()
            await asyncio.Event().wait()

        future = part(300)
        await within(deepest.wait())
        assert future.cancel() is True
        await until(lambda: not flow.components)
        assert flow.stats.cancelled == 301


async def test_cancelling_a_block_that_waits_means_it_never_runs() -> None:
    backend, ran = Scripted(), []
    async with engine(backend) as flow:

        @flow.function_task
        async def first() -> Any: ...

        @flow.block
        async def part(x: Any) -> None:
            ran.append(x)

        one = first()
        future = part(one)
        assert future.cancel() is True
        backend.done(await backend.given("first"))
        await one
        await future.ended()
    assert ran == []


async def test_a_cancelled_block_may_clean_up() -> None:
    cleaned = []
    entered = asyncio.Event()
    async with engine() as flow:

        @flow.block
        async def part() -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

        future = part()
        await entered.wait()
        future.cancel()
        await future.ended()
        assert cleaned == [True]


async def test_a_cancelled_sync_block_stops_at_its_next_wait_or_call() -> None:
    backend = Scripted()
    ended: list[BaseException] = []
    async with engine(backend) as flow:

        @flow.function_task
        async def job(x: int) -> Any: ...

        @flow.block
        def waits() -> None:
            try:
                wait(job(1))
            except BaseException as error:
                ended.append(error)
                raise

        gate = threading.Event()

        @flow.block
        def calls() -> None:
            assert gate.wait(20)
            try:
                job(2)
            except BaseException as error:
                ended.append(error)
                raise

        first, second = waits(), calls()
        await until(lambda: backend.tasks)
        first.cancel()
        await first.ended()
        second.cancel()
        assert second.cancelled()
        gate.set()
        await second.ended()
        assert len(ended) == 2
        assert backend.names() == ["job"]
        assert flow.stats.tasks == 3


async def test_a_cancelled_sync_block_stops_waiting_for_what_it_did_not_start() -> None:
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    entered = threading.Event()
    async with engine(Scripted()) as flow:
        other = adder(flow)(1)

        @flow.block
        def part(future: Any) -> None:
            entered.set()
            wait(future)

        for future in (other, never):
            entered.clear()
            block = part(literal(future))
            await asyncio.to_thread(entered.wait, 20)
            block.cancel()
            await block.ended()
            assert block.cancelled()
            assert not future.done()


async def test_a_sync_block_may_cancel_what_it_started() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        add = adder(flow)

        @flow.block
        def part() -> list[bool]:
            future = add(1)
            answers = [future.cancel(), future.cancel(), future.cancelled()]
            with pytest.raises(asyncio.CancelledError):
                wait(future)
            return answers

        assert await part() == [True, False, True]


async def test_the_thread_of_a_cancelled_block_goes_on_until_then_and_ended_waits_for_it() -> None:
    gate, left = threading.Event(), []
    async with engine() as flow:

        @flow.block
        def part() -> None:
            assert gate.wait(20)
            left.append(True)

        future = part()
        await turns()
        future.cancel()
        assert future.cancelled()
        ended = asyncio.ensure_future(future.ended())
        await turns()
        assert not ended.done()
        gate.set()
        await ended
        assert left == [True]


async def test_the_end_of_the_engine_ends_blocks_and_their_threads() -> None:
    async with engine(Scripted()) as flow:
        add = adder(flow)

        @flow.block
        def sync_part() -> None:
            wait(add(1))

        @flow.block
        async def part() -> None:
            await add(1)

        futures = [sync_part(), part()]
        await turns()
    assert [future.cancelled() for future in futures] == [True, True]


# Waiting for oneself.


async def test_a_block_that_awaits_its_own_future_is_an_error_and_no_hang() -> None:
    async with engine() as flow:
        held: list[Any] = []
        gate = threading.Event()

        @flow.block
        async def part() -> None:
            await held[0]

        @flow.block
        def sync_part() -> None:
            assert gate.wait(20)
            wait(held[1])

        held += [part(), sync_part()]
        gate.set()
        for future in held:
            error = await outcome(future)
            assert isinstance(error, RuntimeError)
            assert "itself" in str(error)


@pytest.mark.parametrize(
    "together",
    [
        asyncio.gather,
        asyncio.shield,
        lambda future: asyncio.wait([future]),
        lambda future: asyncio.wait_for(future, 1000),
        lambda future: next(iter(asyncio.as_completed([future]))),
    ],
)
async def test_a_block_that_awaits_its_own_future_among_others_is_an_error(together: Any) -> None:
    async with engine() as flow:
        held: list[Any] = []

        @flow.block
        async def part() -> None:
            await together(held[0])

        held.append(part())
        error = await outcome(held[0])
        assert isinstance(error, RuntimeError)
        assert "itself" in str(error)


async def test_a_block_may_have_something_called_when_it_is_done() -> None:
    async with engine() as flow:
        held: list[Any] = []
        seen: list[Any] = []

        @flow.block
        async def part() -> int:
            held[0].add_done_callback(lambda future: seen.append(future.result()))
            return 5

        held.append(part())
        assert await held[0] == 5
        await turns()
        assert seen == [5]


async def test_a_block_that_is_given_its_own_future_is_an_error_and_no_hang() -> None:
    async with engine(Scripted()) as flow:
        held: list[Any] = []

        @flow.function_task
        async def job(x: Any) -> Any: ...

        @flow.block
        async def part() -> None:
            await job(held[0])

        held.append(part())
        assert isinstance(await outcome(held[0]), RuntimeError)


async def test_blocks_that_wait_for_each_other_are_an_error_and_no_hang() -> None:
    async with engine() as flow:
        held: dict[str, Any] = {}

        @flow.block
        async def left() -> None:
            await held["right"]

        @flow.block
        async def right() -> None:
            await held["left"]

        held.update(left=left(), right=right())
        errors = [await outcome(future) for future in held.values()]
        assert all(isinstance(error, RuntimeError) for error in errors)
        assert any("left" in str(error) and "right" in str(error) for error in errors)


async def test_sync_blocks_that_wait_for_each_other_are_an_error_and_no_hang() -> None:
    meeting = threading.Barrier(3, timeout=20)
    async with engine() as flow:
        held: dict[str, Any] = {}

        @flow.block
        def left() -> None:
            meeting.wait()
            wait(held["right"])

        @flow.block
        def right() -> None:
            meeting.wait()
            wait(held["left"])

        held.update(left=left(), right=right())
        await asyncio.to_thread(meeting.wait)
        errors = [await outcome(future) for future in held.values()]
        assert all(isinstance(error, RuntimeError) for error in errors)


async def test_two_blocks_that_await_a_third_are_no_cycle() -> None:
    gate = asyncio.Event()
    async with engine() as flow:

        @flow.block
        async def third() -> int:
            await gate.wait()
            return 3

        shared = third()

        @flow.block
        async def part() -> int:
            return await shared

        @flow.block
        async def last(x: int, y: int) -> int:
            return x + y + await shared

        future = last(part(), part())
        await turns()
        gate.set()
        assert await future == 9


async def test_a_cycle_through_three_blocks_and_an_argument_is_found() -> None:
    async with engine() as flow:
        held: dict[str, Any] = {}

        @flow.block
        async def first() -> None:
            await held["third"]

        @flow.block
        async def second(x: Any) -> None: ...

        @flow.block
        async def third() -> None:
            await held["second"]

        held["first"] = first()
        held["second"] = second(held["first"])
        held["third"] = third()
        errors = [await outcome(future) for future in held.values()]
        assert all(isinstance(error, RuntimeError) for error in errors)


async def test_a_sync_block_in_wait_is_stopped_at_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow = await WorkflowEngine.create(backend := Scripted(), handle_signals=False)
    cleaned = []

    @flow.function_task
    def never() -> Any: ...

    @flow.block
    def inner() -> None:
        try:
            wait(never())
        finally:
            cleaned.append("inner")

    @flow.block
    def outer() -> None:
        try:
            wait(inner())
        finally:
            cleaned.append("outer")

    outer()
    await within(backend.next())
    live = flow._runtime.scheduler.live
    await until(lambda: sum(isinstance(one, BlockRecord) and one.in_wait for one in live) == 2)
    await within(flow.shutdown())
    assert sorted(cleaned) == ["inner", "outer"]
    assert flow.summary is not None
    assert flow.summary.still_running == ()
    assert "could not be stopped" not in caplog.text


async def test_cancelling_execute_block_cancels_the_block_and_its_future() -> None:
    async with WorkflowEngine.create() as flow:
        begun = asyncio.Event()

        async def long() -> None:
            begun.set()
            await asyncio.Event().wait()

        future: asyncio.Future[Any] = flow.loop.create_future()
        running = asyncio.ensure_future(flow.execute_block(future, long))
        await asyncio.wait_for(begun.wait(), 20)
        running.cancel()
        assert isinstance(await outcome(future), asyncio.CancelledError)
        await until(lambda: not flow.components)


async def test_a_synchronous_block_that_goes_on_is_in_the_summary() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    flow = await WorkflowEngine.create()

    @flow.block
    def waits() -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)

    block = waits()
    await asyncio.wait_for(begun.wait(), 20)
    await flow.shutdown()
    gate.set()
    assert flow.summary is not None
    assert [uid.rpartition(".block.")[2] for uid in flow.summary.still_running] == ["000001"]
    assert block.cancelled()


@pytest.mark.asyncio
async def test_a_cycle_of_blocks_through_a_task_is_an_error() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
        futures: dict[str, Any] = {}

        @flow.function_task
        def same(x: Any) -> Any:
            return x

        @flow.block
        async def first() -> Any:
            return await futures["second"]

        @flow.block
        async def second() -> Any:
            return await same(futures["first"])

        futures["first"], futures["second"] = first(), second()
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeError, match="would wait for itself"):
                await futures["first"]
