"""Tests of named limits, priority and max_pending."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    LocalExecutionBackend,
    NoopExecutionBackend,
    RetryPolicy,
    TasksMainStates,
    WorkflowEngine,
)
from tests._support.scripted import Crowd, Inline, ManualClock, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


async def test_a_named_limit_holds_for_all_tasks_that_name_it() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:

        @flow.function_task(limit="license:2")
        def solver(x: int) -> Any: ...

        @flow.function_task(limit="license:2")
        def mesher(x: int) -> Any: ...

        @flow.function_task
        def free(x: int) -> Any: ...

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

        @flow.function_task(limit="license:1")
        def part(x: int) -> Any: ...

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
        def ab(x: int) -> Any: ...

        @flow.function_task(limit=["b:1", "a:1"])
        def ba(x: int) -> Any: ...

        @flow.function_task(limit="a:1")
        def only_a(x: int) -> Any: ...

        futures = [task(i) for i in range(20) for task in (ab, ba, only_a)]
        await within(asyncio.gather(*futures))
        assert backend.all_most == 1


async def test_a_limit_is_given_back_by_failures_cancellations_and_retries() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(limit="x:1", retries=RetryPolicy(attempts=1, wait=10))
        def part(x: int) -> Any: ...

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
        assert await within(asyncio.gather(*[retried, bad, last])) == [0, 1, 3]
        assert flow.stats.cancelled == 1


@pytest.mark.parametrize(
    "limit",
    ["license", "license:0", "license:-1", "license:two", ":2", 3, ["a:2", "b:1", "a:3"]],
)
async def test_a_malformed_limit_is_refused_where_it_is_written(limit: Any) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        def part() -> None: ...

        with pytest.raises((TypeError, ValueError), match="limit"):
            flow.function_task(limit=limit)(part)


async def test_higher_priority_goes_first_and_equals_in_order() -> None:
    async with WorkflowEngine.create(backend := Crowd(), max_pending=1) as flow:
        backend.gate.set()

        @flow.function_task
        def part(x: str) -> Any: ...

        futures = [
            part("low 1"),
            part.options(priority=5)("high 1"),
            part.options(priority=-1)("last"),
            part("low 2"),
            part.options(priority=5)("high 2"),
        ]
        await within(asyncio.gather(*futures))
        assert backend.order == ["high 1", "high 2", "low 1", "low 2", "last"]


async def test_a_priority_of_its_own_for_each_task_costs_no_more_with_many_tasks() -> None:
    async def each(count: int) -> float:
        async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
            task = flow.function_task(lambda: None)
            tasks = [task.options(priority=number * 7919 % count) for number in range(count)]
            begin = time.process_time()
            await asyncio.gather(*(one() for one in tasks))
            return (time.process_time() - begin) / count

    few, many = min([await each(500) for _ in range(5)]), min([await each(5000) for _ in range(3)])
    assert many < 4 * few


async def test_priority_is_honoured_among_those_that_wait_for_a_limit() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:

        @flow.function_task(limit="x:1")
        def part(x: str) -> Any: ...

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
        def part(x: int) -> Any: ...

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
        def part(x: int) -> Any: ...

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
        def flaky() -> Any: ...

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        @flow.block
        async def inner() -> Any:
            return await part()

        @flow.block
        async def outer() -> Any:
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


async def test_a_service_gets_to_a_backend_that_is_full() -> None:
    """Those that fill it may be waiting for the service to answer."""
    async with WorkflowEngine.create(backend := Scripted(), max_pending=1) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        futures = flow.map(part, range(3))
        backend.runs(client := await backend.next())
        service = server()
        task = await backend.next()
        assert task["name"] == "server"
        backend.ready(task, "address")
        assert await within(service) == "address"
        await turns()
        assert len(backend.named("part")) == 1
        backend.done(client, 0)
        for _ in range(2):
            backend.done(await backend.next(), 1)
        assert await within(asyncio.gather(*futures)) == [0, 1, 1]


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5])
async def test_a_wrong_max_pending_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_pending"):
        await WorkflowEngine.create(Inline(), max_pending=wrong)


async def test_max_pending_of_one_on_a_diamond_with_a_service_does_not_deadlock() -> None:
    async with WorkflowEngine.create(max_pending=1) as flow:

        @flow.executable_task(service=True, ready="stdout:at (.*)")
        async def server() -> str:
            return "echo at port; exec sleep 1000"

        @flow.function_task
        def part(address: str, *more: Any) -> str:
            return address + "".join(more)

        @flow.block
        async def block(address: str, *more: Any) -> str:
            return await part(address, *more)

        service = server()
        left, right = part(service, "left"), block(service, "right")
        assert await within(part(service, left, right)) == "portportleftportright"
        assert service.cancel() is True
        await within(service.ended())


async def test_a_task_of_higher_priority_overtakes_those_that_wait_longer_for_a_limit() -> None:
    async with WorkflowEngine.create(backend := Crowd()) as flow:

        @flow.function_task(limit="x:1")
        def part(x: str) -> Any: ...

        futures = [part("first"), part("low 1"), part("low 2")]
        await until(lambda: backend.order)
        await turns()
        futures += [part.options(priority=9)("high 1"), part.options(priority=9)("high 2")]
        await turns()
        backend.gate.set()
        await within(asyncio.gather(*futures))
        assert backend.order == ["first", "high 1", "high 2", "low 1", "low 2"]


@pytest.mark.parametrize("kind", ["thread", "process", "executable"])
async def test_priorities_order_the_tasks_that_wait_in_the_local_backend(
    tmp_path: Path, kind: str
) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    executor: Any = "process" if kind == "process" else "thread"
    backend = LocalExecutionBackend(executor, resources={"cores": 1})
    async with WorkflowEngine.create(backend) as flow:

        def note(text: str, log: str) -> None:
            with open(log, "a") as file:
                file.write(f"{text}\n")

        def command(text: str, log: str) -> str:
            return f"echo {text} >> {log}"

        @flow.executable_task
        def blocker() -> str:
            return f"until test -e {gate}; do sleep 0.01; done"

        part: Any = flow.function_task(note)
        if kind == "executable":
            part = flow.executable_task(command)
        first = blocker()
        await until(lambda: first.state is TasksMainStates.RUNNING)
        others = [part("other", str(log)) for _ in range(20)]
        await until(lambda: all(each.state is TasksMainStates.SUBMITTED for each in others))
        soon = [part.options(priority=1)("soon", str(log)) for _ in range(2)]
        await until(lambda: all(each.state is TasksMainStates.SUBMITTED for each in soon))
        limited = part.options(priority=2, limit="license:2")
        urgent = [limited("urgent", str(log)) for _ in range(2)]
        await until(lambda: all(each.state is TasksMainStates.SUBMITTED for each in urgent))
        gate.touch()
        await within(asyncio.gather(first, *others, *soon, *urgent))
    assert log.read_text().split() == ["urgent"] * 2 + ["soon"] * 2 + ["other"] * 20
