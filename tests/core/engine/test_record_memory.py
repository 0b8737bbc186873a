"""Tests that an engine keeps nothing of completed tasks that the user does not hold."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, NoopExecutionBackend, RetryPolicy, WorkflowEngine
from tests._support.scripted import Inline, ManualClock, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


class Token:
    """An argument or a result whose end can be seen."""

    def __init__(self, children: Any = None) -> None:
        self.children = children


def left(references: list[weakref.ref[Any]]) -> int:
    """Return how many of the objects still exist."""
    gc.collect()
    return sum(reference() is not None for reference in references)


async def let_go(references: list[weakref.ref[Any]]) -> None:
    """Waits until nothing is held: a worker thread drops its last task in its own time."""
    async with asyncio.timeout(20):
        while left(references):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def tracked() -> int:
    """Return the number of objects that the garbage collector tracks."""
    gc.collect()
    return len(gc.get_objects())


def backends() -> list[Any]:
    return [Inline(), NoopExecutionBackend(), LocalExecutionBackend()]


@pytest.mark.parametrize("number", range(3), ids=["inline", "noop", "local"])
async def test_arguments_go_when_a_task_has_finished_although_its_future_is_held(
    number: int,
) -> None:
    async with WorkflowEngine.create(backends()[number]) as flow:

        @flow.function_task
        def part(token: Token, *, also: list[Token]) -> int:
            return 1

        tokens = [Token() for _ in range(40)]
        references = [weakref.ref(token) for token in tokens]
        futures = [part(tokens[i], also=[tokens[i + 1]]) for i in range(0, 40, 2)]
        tokens.clear()
        await within(asyncio.gather(*futures))
        await within(asyncio.gather(*[future.ended() for future in futures]))
        await turns()
        await let_go(references)
        assert all(future.task is None for future in futures)


@pytest.mark.usefixtures("no_collection")
async def test_what_tasks_were_given_in_containers_goes_without_the_collector() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def make() -> Token:
            return Token()

        @flow.function_task
        def use(tokens: list[Token], *, also: dict[str, Token]) -> None:
            pass

        made = make()
        reference = weakref.ref(await made)
        await use([made], also={"token": made})
        del made
        await until(lambda: reference() is None)


@pytest.mark.parametrize("number", [0, 2], ids=["inline", "local"])
async def test_a_result_goes_with_the_last_one_that_holds_its_future(number: int) -> None:
    async with WorkflowEngine.create(backends()[number]) as flow:

        @flow.function_task
        def make() -> Token:
            return Token()

        @flow.function_task
        def use(token: Token) -> int:
            assert isinstance(token, Token)
            return 1

        future = make()
        reference = weakref.ref(await within(future))
        dependents = [use(future) for _ in range(3)]
        del future
        assert await within(asyncio.gather(*dependents)) == [1, 1, 1]
        await turns()
        await let_go([reference])


async def test_the_last_result_of_a_worker_process_goes_before_the_next_one_comes() -> None:
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def make() -> set[int]:
            return {1}

        future = make()
        reference = weakref.ref(await within(future))
        del future
        await until(lambda: not left([reference]))  # a thread may be about to return


async def test_the_values_along_a_chain_are_let_go_on_the_way() -> None:
    references: list[weakref.ref[Any]] = []
    alive = []

    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def link(before: Token | None) -> Token:
            gc.collect(0)
            alive.append(sum(reference() is not None for reference in references))
            token = Token()
            references.append(weakref.ref(token))
            return token

        future: Any = None
        for _ in range(300):
            future = link(future)
        assert isinstance(await within(future), Token)
        await turns()
        assert max(alive) < 20
        del future
        await let_go(references)


@pytest.mark.parametrize("way", ["fails", "cancelled", "retried", "dependency failed", "timed out"])
async def test_tasks_that_did_not_end_well_are_let_go_too(way: str) -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, timeout=50) as flow:

        @flow.function_task
        def part(*_: Any) -> Any: ...

        token = Token()
        references: list[weakref.ref[Any]] = [weakref.ref(token)]
        futures = [part.options(retries=RetryPolicy(int(way == "retried"), 5))(token)]
        if way == "dependency failed":
            futures.append(part(futures[0], token))
        del token
        backend.runs(task := await backend.next())
        if way == "cancelled":
            futures[0].cancel()
        elif way == "timed out":
            await clock.advance(60)
        else:
            backend.failed(task, LookupError())
        if way == "retried":
            await clock.advance(6)
            backend.done(await backend.next(), 1)
        await within(asyncio.wait(futures))
        for future in futures:
            await within(future.ended())
            assert future.cancelled() or future.exception() or future.result() == 1
        del task, future
        references += [weakref.ref(future) for future in futures]
        futures.clear()
        backend.forget()
        await turns()
        await let_go(references)
        assert clock.waiting == 0


async def test_nothing_is_kept_of_tasks_whose_futures_were_dropped() -> None:
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task(retries=1)
        def part(*_: Any) -> Any: ...

        @flow.block
        async def block(x: int) -> Any:
            return await part(part(x))

        async def many() -> None:
            futures = flow.map(part, range(1000))
            futures += [part([future]) for future in futures[:100]]
            futures += flow.map(block, range(100))
            await within(asyncio.gather(*futures))

        await many()
        before = tracked()
        for _ in range(4):
            await many()
        await turns()
        assert tracked() - before < 200
        assert not flow.components


async def test_a_held_future_costs_the_same_however_many_there_are() -> None:
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        before = tracked()
        futures = flow.map(part, range(5000))
        await within(asyncio.gather(*futures))
        await turns()
        per_future = (tracked() - before) / 5000
        assert per_future < 2.5  # the future, what it printed, and the list's slack
        assert sum(sys.getsizeof(future) for future in futures) / 5000 < 400


async def test_failures_that_are_not_awaited_are_not_kept() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken(token: Token) -> None:
            raise LookupError

        references = []
        for _ in range(100):
            token = Token()
            references.append(weakref.ref(token))
            future = broken(token)
            await within(asyncio.wait([future]))
        await within(future.ended())
        del token, future
        await turns()
        await let_go(references)


async def test_imap_holds_no_more_than_its_window() -> None:
    alive: weakref.WeakSet[Token] = weakref.WeakSet()
    most = 0

    def items() -> Iterator[Token]:
        for _ in range(5000):
            token = Token()
            alive.add(token)
            yield token

    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task
        def part(token: Token) -> Any: ...

        taken = 0
        async with asyncio.timeout(60):
            async for _ in flow.imap(part, items(), window=50):
                taken += 1
                most = max(most, len(alive))
        assert taken == 5000
        assert most < 4 * 50
        await turns()
        assert len(flow.components) == 0
        gc.collect()
        assert len(alive) == 0


async def test_a_consumer_that_is_slow_bounds_what_imap_draws() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        results = flow.imap(part, items(), window=10)
        for taken in range(1, 30):
            await within(anext(results))
            await turns()
            assert drawn <= taken + 10
        await within(results.aclose())


async def test_what_is_waiting_does_not_keep_what_has_finished() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        @flow.function_task
        def part(x: Any, y: Any = None) -> Token:
            return Token()

        first = part(None)
        reference = weakref.ref(await within(first))
        waiting = part([1, 2], gate)
        other = part(first)
        await within(other)
        del first, other
        await turns()
        await let_go([reference])
        gate.set_result(None)
        await within(waiting)


async def test_a_finished_engine_is_let_go() -> None:
    async def use() -> tuple[weakref.ref[Any], asyncio.Future[Any]]:
        backend = Inline()
        async with WorkflowEngine.create(backend) as flow:

            @flow.function_task
            def part(x: int) -> int:
                return x

            @flow.block
            def block() -> int:
                return 1

            await within(block())
            future = part(part(1))
            await within(future)
            return weakref.ref(backend), future

    reference, future = await use()
    await turns()
    assert await future == 1
    del future
    async with asyncio.timeout(20):
        while left([reference]):  # noqa: ASYNC110 - the thread of the block may be ending still
            await asyncio.sleep(0.01)


async def test_cancelled_tasks_do_not_pile_up_in_a_lane_that_is_full() -> None:
    async with WorkflowEngine.create(backend := Scripted(), max_pending=1) as flow:

        @flow.function_task
        def part(token: Token) -> Any: ...

        first = part(Token())
        task = await backend.next()
        references = []
        for _ in range(1000):
            token = Token()
            references.append(weakref.ref(token))
            part(token).cancel()
        del token
        await until(lambda: len(flow.components) == 1)
        await turns()
        await let_go(references)
        backend.done(task, 1)
        await within(first)
