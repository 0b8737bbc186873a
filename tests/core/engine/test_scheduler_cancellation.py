"""Cancellation, by `cancel()` and by functions of asyncio, and the work that it stops."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rhapsody import (
    TasksMainStates,
    WorkflowEngine,
)
from tests._support.scripted import (
    UNSTOPPABLE,
    Inline,
    Scripted,
    Stubborn,
    cancelled,
    turns,
    until,
    within,
)

pytestmark = pytest.mark.asyncio


async def test_a_pending_task_is_cancelled_at_once_for_all_who_wait() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.runs(await backend.next())
        waiters = [asyncio.create_task(cancelled(future)) for _ in range(3)]
        await turns()
        assert future.cancel() is True
        assert future.cancelled()
        assert future.state is TasksMainStates.CANCELED
        assert await within(asyncio.gather(*waiters)) == [True, True, True]
        backend.stopped(backend.tasks[0])


@pytest.mark.parametrize("outcome", ["done", "failed", "cancelled"])
async def test_cancelling_a_finished_task_is_false_and_changes_nothing(outcome: str) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        if outcome == "done":
            backend.done(task, 42)
        elif outcome == "failed":
            backend.failed(task, LookupError("gone"))
        else:
            future.cancel()
        await within(asyncio.wait([future]))
        await within(future.ended())
        state = future.state
        assert future.cancel() is False
        assert future.state is state
        if outcome == "done":
            assert await future == 42
        elif outcome == "failed":
            assert isinstance(future.exception(), LookupError)
        else:
            assert future.cancelled()


async def test_the_message_of_a_cancellation_is_kept() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        future.cancel("no longer needed")
        with pytest.raises(asyncio.CancelledError, match="no longer needed"):
            await within(future)


async def test_a_waiting_task_is_cancelled_without_a_word_to_the_backend() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        second = part(first)
        task = await backend.next()
        assert second.cancel() is True
        await within(second.ended())
        backend.done(task, 1)
        assert await within(first) == 1
        await turns()
        assert len(backend.tasks) == 1
        assert backend.stops == []


async def test_a_task_cancelled_before_the_loop_turns_is_never_submitted() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        futures = [part() for _ in range(3)]
        assert futures[1].cancel() is True
        await backend.next()
        await backend.next()
        await turns()
        assert [task["uid"].split(".")[-2] for task in backend.tasks] == ["000001", "000003"]
        assert backend.stops == []
        await flow.shutdown()


async def test_a_cancellation_during_submission_is_delivered_after_it_has_returned() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        backend.gate.clear()
        future = part()
        task = await backend.next()
        assert future.cancel() is True
        await turns()
        assert future.cancelled()
        assert backend.stops == []
        backend.gate.set()
        await within(future.ended())
        assert backend.stops == [task["uid"]]


async def test_a_task_that_ends_during_submission_is_not_cancelled_afterwards() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        backend.gate.clear()
        future = part()
        task = await backend.next()
        future.cancel()
        backend.done(task, 1)
        backend.gate.set()
        await within(future.ended())
        await turns()
        assert backend.stops == []


async def test_the_backend_is_asked_once_and_ended_waits_for_the_work() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        future.cancel()
        future.cancel()
        ended = asyncio.create_task(future.ended())
        await turns()
        assert backend.stops == [task["uid"]]
        assert not ended.done()
        backend.stopped(task)
        await within(ended)


async def test_a_cancelled_task_keeps_its_slot_until_its_work_has_ended() -> None:
    async with WorkflowEngine.create(backend := Stubborn(), max_pending=1) as flow:

        @flow.function_task
        def part() -> Any: ...

        first, second = part(), part()
        backend.runs(task := await backend.next())
        first.cancel()
        await turns()
        assert len(backend.tasks) == 1
        backend.stopped(task)
        backend.done(await backend.next(), 2)
        assert await within(second) == 2


async def test_a_late_result_is_counted_and_dropped() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        future.cancel()
        await turns()
        backend.done(task, 42)
        await within(future.ended())
        assert future.cancelled()
        assert flow.stats.late == 1
        assert flow.stats.done == 0
        assert flow.stats.cancelled == 1


async def test_ended_returns_at_once_for_a_finished_task_and_raises_nothing() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        good, bad = part(), part()
        backend.done(await backend.next(), 1)
        backend.failed(await backend.next(), ValueError("bad"))
        await within(asyncio.wait([good, bad]))
        await within(good.ended())
        await within(bad.ended())
        assert isinstance(bad.exception(), ValueError)


async def test_dependents_are_cancelled_at_once_all_along_the_chain() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part(*args: Any) -> Any: ...

        first = part()
        chain = [first]
        for _ in range(2000):
            chain.append(part(chain[-1]))
        other = part()
        joined = part(other, chain[5])
        backend.runs(task := await backend.next())
        backend.runs(await backend.next())
        first.cancel()
        await turns(3)
        assert all(future.cancelled() for future in chain)
        backend.done(backend.tasks[1], 1)
        assert await cancelled(joined)
        backend.stopped(task)
        assert len(backend.tasks) == 2


async def test_cancelling_a_block_cancels_what_it_started_and_is_unfinished() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        started: list[asyncio.Future[Any]] = []

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        @flow.block
        async def inner() -> None:
            started.append(part())
            await started[-1]

        @flow.block
        async def outer() -> None:
            started.append(part())
            await started[0]
            started.extend([part(), inner()])
            await asyncio.gather(*started[1:])

        outside = part()
        tasks = [await backend.next()]
        whole = outer()
        backend.done(await backend.next(), 1)
        tasks += [await backend.next(), await backend.next()]
        assert whole.cancel() is True
        assert await cancelled(whole)
        await within(whole.ended())
        assert await started[0] == 1
        assert len(started) == 4
        assert all(future.cancelled() for future in started[1:])
        assert not outside.done()
        backend.done(tasks[0], 5)
        assert await within(outside) == 5
        assert sorted(backend.stops) == sorted(task["uid"] for task in tasks[1:])


async def test_a_block_that_does_not_let_itself_be_cancelled_has_not_ended() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        leave = asyncio.Event()
        entered = asyncio.Event()

        @flow.block
        async def block() -> None:
            while not leave.is_set():
                try:
                    entered.set()
                    await leave.wait()
                except asyncio.CancelledError:
                    continue

        future = block()
        await within(entered.wait())
        future.cancel()
        assert await cancelled(future)
        ended = asyncio.create_task(future.ended())
        await turns()
        assert not ended.done()
        leave.set()
        await within(ended)


async def test_a_service_that_serves_is_stopped_and_keeps_its_readiness() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        future = server()
        backend.ready(task := await backend.next(), "the address")
        assert await within(future) == "the address"
        assert future.state is TasksMainStates.RUNNING
        assert future.cancel() is True
        await turns()
        assert backend.stops == [task["uid"]]
        backend.stopped(task)
        await within(future.ended())
        assert future.cancel() is False
        assert await future == "the address"


async def test_a_service_is_cancelled_before_it_is_ready_like_any_task() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        future = server()
        handed: list[Any] = []
        task = await backend.next()
        backend.report(task, TasksMainStates.RUNNING, lambda ready, *_: handed.append(ready))
        await until(lambda: handed)
        assert future.cancel() is True
        assert await cancelled(future)
        handed[0].set_result("too late")
        await within(future.ended())
        assert future.cancelled()
        assert backend.stops == [task["uid"]]


async def test_work_that_cannot_be_stopped_is_still_cancelled_for_the_user() -> None:
    backend = Scripted(capabilities=UNSTOPPABLE)
    backend.stopping = None
    async with WorkflowEngine.create(backend, max_pending=1) as flow:

        @flow.function_task
        def part() -> Any: ...

        first, second = part(), part()
        backend.runs(task := await backend.next())
        assert first.cancel() is True
        assert await cancelled(first)
        await turns()
        assert len(backend.tasks) == 1
        backend.done(task, 1)
        backend.done(await backend.next(), 2)
        assert await within(second) == 2
        assert flow.stats.late == 1


async def test_a_backend_that_cannot_cancel_does_not_harm_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Stubborn):
        async def cancel_task(self, uid: str) -> bool:
            await super().cancel_task(uid)
            raise OSError("no connection")

    async with WorkflowEngine.create(backend := Broken()) as flow:

        @flow.function_task
        def part() -> Any: ...

        first, second = part(), part()
        tasks = [await backend.next(), await backend.next()]
        first.cancel()
        await until(lambda: backend.stops)
        backend.done(tasks[1], 2)
        assert await within(second) == 2
        backend.done(tasks[0], 1)
        await within(first.ended())
        assert any("no connection" in record.getMessage() for record in caplog.records)


async def test_tasks_are_cancelled_from_a_callback_of_another_future() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        dependent = part(first)
        other = part()
        first.add_done_callback(lambda _: (dependent.cancel(), other.cancel()))
        backend.done(await backend.next(), 1)
        assert await cancelled(dependent)
        assert await cancelled(other)
        await within(dependent.ended())
        await within(other.ended())


async def test_after_many_cancellations_the_engine_works_as_before() -> None:
    async with WorkflowEngine.create(Inline(), max_pending=10) as flow:

        @flow.function_task
        async def forever() -> None:
            await asyncio.Event().wait()

        @flow.function_task
        def plus(x: int) -> int:
            return x + 1

        futures = [forever() for _ in range(100)]
        await turns()
        for future in futures:
            assert future.cancel() is True
        assert await within(plus(1)) == 2
        await within(asyncio.gather(*[future.ended() for future in futures]))
        assert flow.stats.cancelled == 100
        assert not flow.components


async def test_wait_for_returns_after_its_timeout_while_the_work_continues() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        with pytest.raises(TimeoutError):
            await within(asyncio.wait_for(future, 0.05))
        assert future.cancelled()
        backend.done(task, 1)
        await within(future.ended())


async def test_asyncio_timeout_returns_in_time_while_the_work_continues() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        future = part()
        dependent = part(future)
        backend.runs(task := await backend.next())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await future
        assert future.cancelled()
        assert dependent.cancelled()
        backend.done(task, 1)
        await within(future.ended())


async def test_shield_protects_a_task_as_it_does_any_future() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(future), 0.01)
        backend.done(task, 7)
        assert await within(future) == 7


async def test_a_failure_in_a_task_group_cancels_the_tasks_its_members_wait_for() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        async def wait_for_it(future: asyncio.Future[int]) -> int:
            return await future

        bad, other = part(), part()

        async def in_a_group() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_for_it(bad))
                group.create_task(wait_for_it(other))
                backend.failed(await backend.next(), LookupError("gone"))

        with pytest.raises(ExceptionGroup) as caught:
            await within(in_a_group())
        assert caught.group_contains(LookupError)
        assert other.cancelled()
        await within(other.ended())
        assert backend.stops == [backend.tasks[1]["uid"]]


async def test_cancelling_a_gather_cancels_what_it_gathers() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        futures = [part() for _ in range(3)]
        together = asyncio.gather(*futures)
        await turns()
        together.cancel()
        assert await cancelled(together)
        assert all(future.cancelled() for future in futures)


async def test_cancelling_who_waits_cancels_the_task_and_runs_their_clean_up() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        cleaned = []

        async def user() -> None:
            try:
                await part()
            finally:
                cleaned.append(True)

        who = asyncio.create_task(user())
        backend.runs(task := await backend.next())
        who.cancel()
        assert await cancelled(who)
        assert cleaned == [True]
        await turns()
        assert backend.stops == [task["uid"]]
        backend.stopped(task)


async def test_a_dependent_of_a_cancelled_task_is_cancelled_at_once() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        backend.stopping = None

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        dependents = [part(first) for _ in range(3)]
        backend.runs(task := await backend.next())
        first.cancel()
        await asyncio.sleep(0)
        assert all(future.cancelled() for future in dependents)
        backend.stopped(task)


@pytest.mark.parametrize("way", ["wait_for", "timeout"])
async def test_a_time_limit_around_a_running_thread_task_is_kept(way: str) -> None:
    started, leave, left = threading.Event(), threading.Event(), threading.Event()
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def long() -> str:
            started.set()
            leave.wait(60)
            left.set()
            return "the result"

        future = long()
        await within(asyncio.to_thread(started.wait, 20))
        try:
            with pytest.raises(TimeoutError):
                await (asyncio.wait_for(future, 0.1) if way == "wait_for" else within(future, 0.1))
            assert future.cancelled()
            assert not left.is_set()
        finally:
            leave.set()
        await within(future.ended())
        assert future.cancelled()
