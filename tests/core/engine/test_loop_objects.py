"""Tests of coroutine functions that use objects of the program's event loop."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

GATE: Any = None


class OwnLock(asyncio.Lock):
    pass


async def wait_at_gate() -> None:
    await GATE.wait()


async def wait_through_helper() -> None:
    await wait_at_gate()


async def receive(queue: Any) -> Any:
    return queue


MAKERS: list[Callable[[], Any]] = [
    asyncio.Lock,
    asyncio.Event,
    asyncio.Condition,
    asyncio.Semaphore,
    asyncio.BoundedSemaphore,
    asyncio.Queue,
    asyncio.PriorityQueue,
    functools.partial(asyncio.Barrier, 2),
    OwnLock,
]


@pytest.mark.parametrize("make", MAKERS)
async def test_an_argument_or_a_variable_of_the_programs_loop_is_refused(
    flow: WorkflowEngine, make: Callable[[], Any]
) -> None:
    thing = make()

    async def captures() -> Any:
        return thing

    task, closure = flow.function_task(receive), flow.function_task(captures)
    partial = flow.function_task(functools.partial(receive, thing))
    kind = type(thing).__name__
    said = rf"task '\w+': {{}} is an asyncio {kind} .* block with @flow\.block"
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: task(thing), "argument 'queue'"),
        (lambda: task(queue=thing), "argument 'queue'"),
        (lambda: task([thing]), "argument 'queue'"),
        (lambda: task({"key": thing}), "argument 'queue'"),
        (closure, "variable 'thing'"),
        (closure, "variable 'thing'"),
        (partial, "an argument of functools.partial"),
    ]
    for call, what in calls:
        with pytest.raises(RuntimeError, match=said.format(re.escape(what))):
            call()
    assert await within(flow.block(captures)()) is thing


@pytest.mark.parametrize("function", [wait_at_gate, wait_through_helper])
@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_global_of_the_programs_loop_is_refused(
    monkeypatch: pytest.MonkeyPatch, function: Any, executor: Any
) -> None:
    monkeypatch.setitem(globals(), "GATE", asyncio.Event())
    async with WorkflowEngine.create(LocalExecutionBackend(executor)) as flow:
        for resources in ({}, {"cores": 0}):
            with pytest.raises(RuntimeError, match=r"variable 'GATE' is an asyncio Event"):
                flow.function_task(resources=resources)(function)()
        waiting = flow.block(function)()
        GATE.set()
        await within(waiting)


async def test_an_unfinished_future_is_to_be_passed_as_an_argument(flow: WorkflowEngine) -> None:
    gate = asyncio.Event()

    @flow.block
    async def late() -> int:
        await gate.wait()
        return 1

    future = late()

    async def awaits() -> Any:
        return await future

    with pytest.raises(RuntimeError, match=r"variable 'future' is a future .* as an argument"):
        flow.function_task(awaits)()
    gate.set()
    assert await within(future) == 1
    assert await within(flow.function_task(awaits)()) == 1


async def test_objects_that_work_are_accepted(flow: WorkflowEngine) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def own() -> bool:
        lock = asyncio.Lock()
        async with lock:
            return lock.locked()

    async def sends(to: Any) -> None:
        loop.call_soon_threadsafe(to.put_nowait, 1)
        loop.call_soon_threadsafe(queue.put_nowait, 2)

    def synchronous(to: Any) -> None:
        loop.call_soon_threadsafe(to.put_nowait, 3)

    assert await within(flow.function_task(own)())
    await within(flow.function_task(sends)(queue))
    assert [await within(queue.get()), await within(queue.get())] == [1, 2]
    await within(flow.function_task(synchronous)(queue))
    assert await within(queue.get()) == 3
