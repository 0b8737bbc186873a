"""Recording results before anybody sees them, and the hold until it is done."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from rhapsody import TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins.specs import Record, Recorded
from tests._support.scripted import Inline, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


class Memory:
    """Records in memory and finds it again, keyed by name and arguments.

    Attributes:
        found: What is recorded.
        batches: What was given at once.
        answer: Called with each batch; what the hook returns.
    """

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self.batches: list[list[Record]] = []
        self.answer: Any = lambda records: None

    @hookimpl
    def rhapsody_lookup_results(self, tasks: Sequence[Any]) -> list[Recorded | None]:
        keys = [(task["name"], task["args"]) for task in tasks]
        return [Recorded(self.found[key]) if key in self.found else None for key in keys]

    @hookimpl
    def rhapsody_record_results(self, records: Sequence[Record]) -> Any:
        self.batches.append(list(records))
        for record in records:
            self.found[record.task["name"], record.task["args"]] = record.value
        return self.answer(records)

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]


async def test_what_one_engine_recorded_another_finds() -> None:
    memory = Memory()
    runs: list[int] = []
    for _ in range(2):
        async with WorkflowEngine.create(Inline(), observers=[memory]) as flow:

            @flow.function_task
            def part(x: int) -> int | None:
                runs.append(x)
                return x * 10 if x else None

            results = await within(asyncio.gather(*flow.map(part, range(4))))
            assert results == [None, 10, 20, 30]
    assert runs == [0, 1, 2, 3]
    assert len(memory.records) == 4


async def test_a_record_has_the_task_its_value_and_its_settings() -> None:
    memory = Memory()
    async with WorkflowEngine.create(Inline(), observers=[memory]) as flow:

        @flow.function_task(version="7")
        def part(x: int) -> int:
            return x + 1

        future = part(part.options(name="first")(1))
        await within(future)
        first, second = memory.records
        assert (first.uid, second.uid) == ("task.000001", "task.000002")
        assert second.task["uid"] == f"{flow.uid}.task.000002.1"
        assert (second.task["name"], second.task["args"]) == ("part", (2,))
        assert second.task["return_value"] == second.value == 3
        assert dict(second.settings) == {"cache": True, "version": "7"}


async def test_an_executables_record_has_its_output() -> None:
    memory = Memory()
    async with WorkflowEngine.create(backend := Scripted(), observers=[memory]) as flow:

        @flow.executable_task
        async def tool() -> list[str]:
            return ["tool", "--fast"]

        future = tool()
        task = await backend.next()
        task["stdout"], task["stderr"], task["exit_code"] = "out\n", "err", 0
        backend.report(task, TasksMainStates.DONE)
        await within(future)
        (record,) = memory.records
        assert record.value == "out\n"
        assert (record.task["executable"], record.task["arguments"]) == ("tool", ["--fast"])
        assert record.task["stderr"] == "err"


async def test_only_successes_are_recorded_and_only_once() -> None:
    memory = Memory()
    async with WorkflowEngine.create(backend := Scripted(), observers=[memory]) as flow:

        @flow.function_task
        def part(label: str) -> None: ...

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        @flow.block
        async def block() -> None: ...

        retried = part.options(retries=1)("retried")
        failed, stopped = part("failed"), part("stopped")
        tasks = [await backend.next() for _ in range(3)]
        backend.failed(tasks[0], OSError())
        backend.failed(tasks[1], OSError())
        stopped.cancel()
        backend.done(again := await backend.next(), 1)
        backend.done(again, 1)
        service = server()
        backend.ready(await backend.next(), "address")
        ending: list[asyncio.Future[Any]] = [retried, failed, service, block()]
        await within(asyncio.wait(ending))
        await within(stopped.ended())
        assert failed.exception() is not None
        assert [record.task["args"] for record in memory.records] == [("retried",)]


async def test_a_record_comes_before_the_future_and_its_dependents() -> None:
    memory = Memory()
    async with WorkflowEngine.create(backend := Scripted(), observers=[memory]) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        part(first)
        seen: list[Any] = []
        memory.answer = lambda records: seen.append((first.done(), len(backend.tasks)))
        backend.done(await backend.next(), 1)
        await within(first)
        assert seen == [(False, 1)]
        await backend.next()
        await flow.shutdown()


async def test_an_awaitable_holds_its_futures_until_it_is_done_and_nothing_else() -> None:
    memory = Memory()
    written = asyncio.get_running_loop().create_future()
    async with WorkflowEngine.create(backend := Scripted(), observers=[memory]) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        held = part.options(name="held")()
        dependent = part.options(name="dependent")(held)
        memory.answer = lambda records: written
        backend.done(await backend.next(), 1)
        await until(lambda: memory.batches)
        memory.answer = lambda records: None
        await turns()
        assert not held.done()
        assert len(backend.tasks) == 1
        other = part.options(name="other")()
        backend.done(await backend.next(), 2)
        assert await within(other) == 2
        assert not held.done()
        assert not dependent.done()
        written.set_result(None)
        assert await within(held) == 1
        task = await backend.next()
        assert task["args"] == (1,)
        backend.done(task, 3)
        assert await within(dependent) == 3


async def test_a_coroutine_function_may_record() -> None:
    stored: list[Any] = []

    class Store:
        @hookimpl
        async def rhapsody_record_results(self, records: Sequence[Record]) -> None:
            await asyncio.sleep(0)
            stored.extend(record.value for record in records)

    async with WorkflowEngine.create(Inline(), observers=[Store()]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x + 1

        assert await within(part(part(0))) == 2
        assert stored == [1, 2]


async def test_several_holds_are_all_waited_for() -> None:
    memories = [Memory(), Memory()]
    locks = [asyncio.get_running_loop().create_future() for _ in memories]
    for memory, lock in zip(memories, locks, strict=True):
        memory.answer = lambda records, lock=lock: lock
    async with WorkflowEngine.create(Inline(), observers=memories) as flow:

        @flow.function_task
        def part() -> int:
            return 1

        future = part()
        await until(lambda: all(memory.batches for memory in memories))
        for lock in locks:
            await turns()
            assert not future.done()
            lock.set_result(None)
        assert await within(future) == 1


@pytest.mark.parametrize("awaitable", [True, False])
async def test_recording_that_raises_is_reported_once_and_the_results_are_seen(
    awaitable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Memory):
        """Plugin with its own name in the report."""

    async def fail() -> None:
        raise OSError("disk full")

    def fail_at_once(records: Any) -> Any:
        raise OSError("disk full")

    broken, good = Broken(), Memory()
    broken.answer = (lambda records: fail()) if awaitable else fail_at_once
    broken.found = good.found = {}
    async with WorkflowEngine.create(Inline(), observers=[broken, good]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        for i in range(3):
            assert await within(part(i)) == i
        assert len(good.records) == 3
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(messages) == 1
    assert "Broken" in messages[0]
    assert "disk full" in messages[0]


async def test_a_held_task_can_be_cancelled() -> None:
    memory = Memory()
    written = asyncio.get_running_loop().create_future()
    memory.answer = lambda records: written
    async with WorkflowEngine.create(Inline(), observers=[memory]) as flow:

        @flow.function_task
        def part(x: Any = None) -> int:
            return 1

        held = part()
        dependent = part(held)
        await until(lambda: memory.batches)
        assert held.cancel() is True
        await turns()
        assert held.cancelled()
        assert dependent.cancelled()
        written.set_result(None)
        await within(held.ended())
        await turns()
        assert held.cancelled()
        assert not flow.components


async def test_shutdown_waits_for_what_is_being_recorded() -> None:
    memory = Memory()
    written = asyncio.get_running_loop().create_future()
    memory.answer = lambda records: written
    flow = await WorkflowEngine.create(Inline(), observers=[memory])

    @flow.function_task
    def part() -> int:
        return 1

    held = part()
    await until(lambda: memory.batches)
    ending = asyncio.create_task(flow.shutdown())
    await turns()
    assert not ending.done()
    written.set_result(None)
    await within(ending)
    assert await held == 1


async def test_a_recorder_that_hangs_keeps_no_other_from_recording() -> None:
    first, second = Memory(), Memory()
    hangs, recorded = asyncio.get_running_loop().create_future(), asyncio.Event()
    first.answer = lambda records: hangs

    async def keep() -> None:
        recorded.set()

    second.answer = lambda records: keep()
    async with WorkflowEngine.create(Inline(), observers=[first, second]) as flow:
        held = flow.function_task(lambda: 1)()
        await within(recorded.wait())
        assert not held.done()
        hangs.set_result(None)
        assert await within(held) == 1


async def test_completions_come_to_the_recorder_in_batches() -> None:
    memory = Memory()
    async with WorkflowEngine.create(Inline(), observers=[memory]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        await within(asyncio.gather(*flow.map(part, range(1000))))
        assert len(memory.records) == 1000
        assert len(memory.batches) < 500


async def test_a_slow_recorder_does_not_block_the_loop() -> None:
    memory, gate, writing = Memory(), threading.Event(), threading.Event()

    def write() -> None:
        writing.set()
        gate.wait(60)

    memory.answer = lambda records: asyncio.to_thread(write)
    async with WorkflowEngine.create(Inline(), observers=[memory]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        done = asyncio.gather(*flow.map(part, range(100)))
        await until(writing.is_set)
        await turns()  # which the loop takes while the recorder writes
        assert not done.done()
        gate.set()
        assert await within(done) == list(range(100))
