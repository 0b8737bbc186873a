"""Many tasks at once: map, imap, scopes, gather and as_completed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest

from rhapsody import WorkflowEngine, wait
from rhapsody_testing import EventRecorder
from tests._support.scripted import Crowd, Inline, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


async def test_map_returns_the_futures_in_order_as_one_batch() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def plus(x: int, y: int) -> Any: ...

        futures = flow.map(plus, range(20), count(10))
        assert isinstance(futures, list)
        for _ in futures:
            task = await backend.next()
            backend.done(task, sum(task["args"]))
        assert await within(asyncio.gather(*futures)) == [10 + 2 * i for i in range(20)]
        assert [len(batch) for batch in backend.batches] == [20]


async def test_map_takes_futures_among_its_items_and_the_shortest_ends_it() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def plus(x: int, y: int) -> int:
            return x + y

        first = flow.map(plus, [1, 2, 3], iter([10, 20]))
        second = flow.map(plus, first, iter(lambda: 100, None))
        assert await within(asyncio.gather(*second)) == [111, 122]
        assert flow.map(plus, [], []) == []


async def test_map_refuses_iterables_of_different_lengths() -> None:
    async with WorkflowEngine.create("noop") as flow:

        @flow.function_task
        def plus(x: int, y: int) -> Any: ...

        with pytest.raises(ValueError, match="3 and 2"):
            flow.map(plus, [1, 2, 3], (10, 20))
        with pytest.raises(ValueError, match="0 and 3"):
            flow.map(plus, {}, iter([1]), "abc")
    assert flow.summary is not None
    assert flow.summary.stats.tasks == 0


async def test_imap_yields_in_order_whatever_ends_first() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        async def collect() -> list[int]:
            return [result async for result in flow.imap(part, range(6), window=3)]

        collecting = asyncio.create_task(collect())
        for _ in range(2):
            three = [await backend.next() for _ in range(3)]
            for task in reversed(three):
                backend.done(task, task["args"][0] * 10)
        assert await within(collecting) == [0, 10, 20, 30, 40, 50]


async def test_imap_draws_from_its_iterable_as_results_are_taken() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(1, 10_001):
            drawn = item
            yield item

    async with WorkflowEngine.create(backend := Crowd()) as flow:
        backend.gate.set()

        @flow.function_task
        def part(x: int) -> Any: ...

        taken = 0
        async with asyncio.timeout(20):
            async for result in flow.imap(part, items(), window=7):
                taken += 1
                assert result == taken
                assert drawn <= taken + 7
                if taken % 10 == 0:
                    await turns()
                    assert drawn <= taken + 7
                if taken == 200:
                    break
        assert backend.all_most <= 7


async def test_imap_takes_an_asynchronous_iterable() -> None:
    async def items() -> AsyncIterator[int]:
        for i in range(5):
            await asyncio.sleep(0)
            yield i

    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x * x

        async with asyncio.timeout(20):
            assert [r async for r in flow.imap(part, items(), window=2)] == [0, 1, 4, 9, 16]


async def test_a_failure_ends_imap_and_cancels_the_calls_under_way() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        async def consume() -> None:
            async for _ in flow.imap(part, range(100), window=3):
                pass

        consuming = asyncio.create_task(consume())
        tasks = [await backend.next() for _ in range(3)]
        backend.failed(tasks[0], LookupError("item 0"))
        with pytest.raises(LookupError, match="item 0"):
            await within(consuming)
        await until(lambda: len(backend.stops) == 2)
        await until(lambda: not flow.components)
        assert len(backend.tasks) == 3


async def test_leaving_imap_early_cancels_the_calls_under_way() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        results = flow.imap(part, range(100), window=4)
        taking = asyncio.ensure_future(anext(results))
        backend.done(await backend.next(), 0)
        assert await within(taking) == 0
        await within(results.aclose())
        await until(lambda: not flow.components)
        assert flow.stats.done == 1
        assert len(backend.tasks) <= 5


@pytest.mark.parametrize("window", [0, -1])
async def test_a_window_of_less_than_one_is_refused(window: int) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        with pytest.raises(ValueError, match="window"):
            await within(anext(flow.imap(part, [1], window=window)))


async def test_gather_and_as_completed_and_wait_are_those_of_asyncio() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        futures = flow.map(part, range(4))
        tasks = [await backend.next() for _ in range(4)]
        for position in (2, 0, 3, 1):
            backend.done(tasks[position], position)
            await turns()
        async with asyncio.timeout(20):
            assert await asyncio.gather(*futures) == [0, 1, 2, 3]
            assert sorted([await one for one in asyncio.as_completed(futures)]) == [0, 1, 2, 3]
            done, pending = await asyncio.wait(futures)
        assert done == set(futures)
        assert not pending


async def test_as_completed_gives_results_in_the_order_they_come() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        futures = flow.map(part, range(3))
        tasks = {task["args"][0]: task for task in [await backend.next() for _ in range(3)]}
        seen = []
        backend.done(tasks[2], 2)
        async with asyncio.timeout(20):
            for following, one in zip((0, 1, None), asyncio.as_completed(futures), strict=True):
                seen.append(await one)
                if following is not None:
                    backend.done(tasks[following], following)
        assert seen == [2, 0, 1]


async def test_a_scope_labels_the_tasks_made_inside() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(backend := Scripted(), observers=[events]) as flow:

        @flow.function_task
        def part(x: str) -> None: ...

        @flow.block
        async def block() -> None:
            await part("in the block")

        async def user(name: str) -> None:
            async with flow.scope(name):
                await part(name)

        part("before")
        async with flow.scope("outer"):
            part("outer")
            async with flow.scope("inner"):
                part("outer/inner")
            part("outer")
            whole = block()
        users = [asyncio.create_task(user(name)) for name in ("ann", "bob")]
        part("after")
        for _ in range(8):
            task = await backend.next()
            backend.done(task)
            label = task["args"][0]
            expected = {"before": None, "after": None, "in the block": "outer"}.get(label, label)
            assert task.get("scope") == expected
        await within(asyncio.gather(*users, whole))
        await turns()
        scopes = {event.uid: event.scope for event in events.events}
        assert Counter(scopes.values()) == Counter(
            {None: 2, "outer": 4, "outer/inner": 1, "ann": 1, "bob": 1}
        )


@pytest.mark.long
async def test_a_wide_fan_does_not_keep_the_loop_from_others() -> None:
    """A fan of 100 000 must not block the loop for a second."""
    async with WorkflowEngine.create("noop") as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        futures = flow.map(part, range(100_000))
        longest, last = 0.0, time.thread_time()  # what others do with the machine is not counted
        async with asyncio.timeout(60):
            while not futures[-1].done():
                await asyncio.sleep(0)
                now = time.thread_time()
                longest, last = max(longest, now - last), now
        assert all(future.done() for future in futures)
        assert longest < 1.0


async def test_a_scope_can_be_used_in_a_synchronous_block() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(observers=[events]) as flow:

        @flow.function_task
        def work() -> int:
            return 1

        @flow.block
        def part() -> int:
            with flow.scope("outer") as label, flow.scope("inner"):
                result = work()
            assert label == "outer"
            return wait(result)

        assert await part() == 1
    assert {event.scope for event in events.events if event.name == "work"} == {"outer/inner"}
