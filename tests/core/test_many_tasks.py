"""Many tasks at once: map, imap, scopes, limits, priority and max_pending (C7.13)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from rhapsody import RetryPolicy, WorkflowEngine
from rhapsody.backends.base import ManagedBackend
from rhapsody.task import TaskDescription
from rhapsody.testing import EventRecorder
from tests.core.scripted import RUNS_ALL, Inline, ManualClock, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


class Crowd(ManagedBackend):
    """Runs tasks until the test lets them go, and knows how many are there at once."""

    name = "crowd"
    canonical_states = True
    capabilities = RUNS_ALL

    def __init__(self, name: str = "crowd") -> None:
        super().__init__()
        self.name = name
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[Any] = []
        self.all_now = self.all_most = 0
        self.gate = asyncio.Event()

    async def run_task(self, task: TaskDescription) -> Any:
        name = task["name"]
        self.order.append(task["args"][0] if task["args"] else name)
        self.now[name] += 1
        self.all_now += 1
        self.most[name] = max(self.most[name], self.now[name])
        self.all_most = max(self.all_most, self.all_now)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.now[name] -= 1
        self.all_now -= 1
        return task["args"][0] if task["args"] else None


async def test_map_returns_the_futures_in_order_as_one_batch() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def plus(x: int, y: int) -> int: ...

        futures = flow.map(plus, range(20), range(10, 10_000))
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

        first = flow.map(plus, [1, 2, 3], [10, 20])
        second = flow.map(plus, first, iter(lambda: 100, None))
        assert await within(asyncio.gather(*second)) == [111, 122]
        assert flow.map(plus, [], []) == []


async def test_imap_yields_in_order_whatever_ends_first() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: int) -> int: ...

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
        for drawn in range(1, 10_001):
            yield drawn

    async with WorkflowEngine.create(backend := Crowd()) as flow:
        backend.gate.set()

        @flow.function_task
        def part(x: int) -> int: ...

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
        def part(x: int) -> int: ...

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
        def part(x: int) -> int: ...

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
        def part(x: int) -> int: ...

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
        def part(x: int) -> int: ...

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


async def test_a_named_limit_holds_for_all_tasks_that_name_it() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:

        @flow.function_task(limit="licence:2")
        def solver(x: int) -> int: ...

        @flow.function_task(limit="licence:2")
        def mesher(x: int) -> int: ...

        @flow.function_task
        def free(x: int) -> int: ...

        limited = flow.map(solver, range(5)) + flow.map(mesher, range(5))
        others = flow.map(free, range(20))
        await until(lambda: backend.now["free"] == 20)
        assert backend.now["solver"] + backend.now["mesher"] == 2
        backend.gate.set()
        await within(asyncio.gather(*limited, *others))
        assert backend.most["solver"] <= 2
        assert backend.most["mesher"] <= 2
        assert backend.most["free"] == 20


async def test_limits_hold_across_backends() -> None:
    one, two = Crowd("one"), Crowd("two")
    async with WorkflowEngine.create([one, two]) as flow:

        @flow.function_task(limit="licence:1")
        def part(x: int) -> int: ...

        futures = [part.options(backend=name)(i) for i in range(4) for name in ("one", "two")]
        await turns()
        assert one.all_now + two.all_now == 1
        one.gate.set()
        two.gate.set()
        await within(asyncio.gather(*futures))
        assert (one.all_most, two.all_most) == (1, 1)


async def test_a_task_under_two_limits_waits_for_both_without_deadlock() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:
        backend.gate.set()

        @flow.function_task(limit=["a:1", "b:1"])
        def ab(x: int) -> int: ...

        @flow.function_task(limit=["b:1", "a:1"])
        def ba(x: int) -> int: ...

        @flow.function_task(limit="a:1")
        def only_a(x: int) -> int: ...

        futures = [task(i) for i in range(20) for task in (ab, ba, only_a)]
        await within(asyncio.gather(*futures))
        assert backend.all_most == 1


async def test_a_limit_is_given_back_by_failures_cancellations_and_retries() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(limit="x:1", retries=RetryPolicy(attempts=1, wait=10))
        def part(x: int) -> int: ...

        retried, bad, stopped, last = flow.map(part, range(4))
        backend.failed(await backend.next(), OSError())
        bad_task = await backend.next()  # the first one waits for its retry without the limit
        assert bad_task["args"] == (1,)
        await clock.advance(11)
        assert len(backend.tasks) == 2
        stopped.cancel()
        backend.done(bad_task, 1)
        third = await backend.next()
        backend.done(third, third["args"][0])
        fourth = await backend.next()
        backend.done(fourth, fourth["args"][0])
        assert await within(asyncio.gather(retried, bad, last)) == [0, 1, 3]
        assert flow.stats.cancelled == 1


@pytest.mark.parametrize("limit", ["licence", "licence:0", "licence:-1", "licence:two", ":2", 3])
async def test_a_malformed_limit_is_refused_where_it_is_written(limit: Any) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        def part() -> None: ...

        with pytest.raises((TypeError, ValueError), match="limit"):
            flow.function_task(limit=limit)(part)


async def test_higher_priority_goes_first_and_equals_in_order() -> None:
    async with WorkflowEngine.create(backend := Crowd(), max_pending=1) as flow:
        backend.gate.set()

        @flow.function_task
        def part(x: str) -> str: ...

        futures = [
            part("low 1"),
            part.options(priority=5)("high 1"),
            part.options(priority=-1)("last"),
            part("low 2"),
            part.options(priority=5)("high 2"),
        ]
        await within(asyncio.gather(*futures))
        assert backend.order == ["high 1", "high 2", "low 1", "low 2", "last"]


async def test_priority_is_honoured_among_those_that_wait_for_a_limit() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:

        @flow.function_task(limit="x:1")
        def part(x: str) -> str: ...

        first = part("first")
        await until(lambda: backend.order)
        futures = [part("low"), part.options(priority=9)("high")]
        await turns()
        backend.gate.set()
        await within(asyncio.gather(first, *futures))
        assert backend.order == ["first", "high", "low"]


async def test_max_pending_bounds_what_a_backend_holds() -> None:
    async with WorkflowEngine.create(backend := Crowd(), max_pending=4) as flow:

        @flow.function_task
        def part(x: int) -> int: ...

        futures = flow.map(part, range(100))
        await turns()
        assert backend.all_now == 4
        assert len(flow.queue) == 96
        backend.gate.set()
        assert await within(asyncio.gather(*futures)) == list(range(100))
        assert backend.all_most == 4
        assert backend.order == list(range(100))


async def test_max_pending_is_for_each_backend() -> None:
    one, two = Crowd("one"), Crowd("two")
    async with WorkflowEngine.create([one, two], max_pending=2) as flow:

        @flow.function_task
        def part(x: int) -> int: ...

        futures = flow.map(part.options(backend="one"), range(5))
        futures += flow.map(part.options(backend="two"), range(5))
        await turns()
        assert (one.all_now, two.all_now) == (2, 2)
        one.gate.set()
        two.gate.set()
        await within(asyncio.gather(*futures))


async def test_services_blocks_and_retry_waits_do_not_count_in_max_pending() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), max_pending=1, clock=clock) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        @flow.function_task(retries=RetryPolicy(attempts=1, wait=10))
        def flaky() -> str: ...

        @flow.function_task
        def part(x: Any = None) -> str: ...

        @flow.block
        async def inner() -> str:
            return await part()

        @flow.block
        async def outer() -> str:
            return await inner()

        services = [server() for _ in range(3)]
        for _ in services:
            backend.ready(await backend.next(), "address")
        await within(asyncio.gather(*services))
        retried = flaky()
        backend.failed(await backend.next(), OSError())
        whole = outer()
        task = await backend.next()
        assert task["name"] == "part"
        backend.done(task, "from within")
        assert await within(whole) == "from within"
        await clock.advance(11)
        backend.done(await backend.next(), "second time")
        assert await within(retried) == "second time"


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5])
async def test_a_wrong_max_pending_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_pending"):
        await WorkflowEngine.create(Inline(), max_pending=wrong)


async def test_a_wide_fan_does_not_keep_the_loop_from_others() -> None:
    """A fan of 100 000 must not block the loop for a second (DESIGN 5)."""
    async with WorkflowEngine.create("noop") as flow:

        @flow.function_task
        def part(x: int) -> int: ...

        loop = asyncio.get_running_loop()
        futures = flow.map(part, range(100_000))
        longest, last = 0.0, loop.time()
        async with asyncio.timeout(60):
            while not futures[-1].done():
                await asyncio.sleep(0)
                now = loop.time()
                longest, last = max(longest, now - last), now
        assert all(future.done() for future in futures)
        assert longest < 1.0
