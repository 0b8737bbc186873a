"""Tests of the events for observers: tasks, the start and the end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from rhapsody import NoopExecutionBackend, StateMapper, TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import TaskEvent
from rhapsody_testing import EventRecorder
from tests._support.scripted import Inline, ManualClock, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio

PENDING, SUBMITTED, RUNNING = (
    TasksMainStates.PENDING,
    TasksMainStates.SUBMITTED,
    TasksMainStates.RUNNING,
)
DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED


class Native(Scripted):
    """Backend with its own state names."""

    async def start(self) -> None:
        StateMapper.register_backend_tasks_states(
            "native-words",
            done_state="FINISHED",
            failed_state=["ERROR", "NODE_FAIL"],
            canceled_state="REMOVED",
            running_state=["ACTIVE", "STAGING_OUT"],
            submitted="QUEUED",
        )


async def test_tasks_that_are_submitted_together_have_the_same_time() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(NoopExecutionBackend(), observers=[events]) as flow:

        @flow.function_task
        def part(number: int) -> None: ...

        futures = [part(number) for number in range(3)]
        await within(asyncio.gather(*futures))
        await turns()
        submitted = [events.of(future)[1] for future in futures]
        assert {event.state for event in submitted} == {SUBMITTED}
        assert len({event.time for event in submitted}) == 1


async def test_the_events_of_a_task_have_all_fields() -> None:
    events = EventRecorder()
    clock = ManualClock()
    backend = Native(name="native-words")
    async with WorkflowEngine.create(backend, observers=[events], clock=clock) as flow:

        @flow.function_task(name="label")
        def part() -> Any: ...

        async with flow.scope("here"):
            future = part()
        task = await backend.next()
        await clock.advance(5)
        task["worker"] = "node17"
        backend.report(task, "ACTIVE")
        await clock.advance(7)
        task["return_value"] = 1
        backend.report(task, "FINISHED")
        await within(future)
        await turns()
        mine = events.of(future)
        assert [event.state for event in mine] == [PENDING, SUBMITTED, RUNNING, DONE]
        assert all(type(event.state) is TasksMainStates for event in mine)
        assert {event.uid for event in mine} == {"task.000001"}
        assert {event.name for event in mine} == {"label"}
        assert {event.attempt for event in mine} == {1}
        assert {event.scope for event in mine} == {"here"}
        assert [event.backend for event in mine] == [None, *["native-words"] * 3]
        assert [event.native for event in mine] == [None, None, "ACTIVE", "FINISHED"]
        assert [event.monotonic for event in mine] == [1000, 1000, 1005, 1012]
        assert [event.time - 1.7e9 for event in mine] == [1000, 1000, 1005, 1012]
        assert [event.worker for event in mine] == [None, None, "node17", "node17"]
        assert {event.error for event in mine} == {None}


async def test_intermediate_states_are_reported_once() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(
        backend := Native(name="native-words"), observers=[events]
    ) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        for state in ("QUEUED", "ACTIVE", "ACTIVE", "STAGING_OUT"):
            backend.report(task, state)
            await turns()
        backend.report(task, "NODE_FAIL")
        await within(asyncio.wait([future]))
        await turns()
        assert future.exception() is not None
        assert events.states(future).count(RUNNING) == 1
        assert events.states(future)[-1] is FAILED
        assert events.of(future)[-1].native == "NODE_FAIL"


async def test_a_failures_event_has_the_exception() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(Inline(), observers=[events]) as flow:

        @flow.function_task
        def broken() -> int:
            raise LookupError("own")

        @flow.function_task
        def use(x: int) -> int:
            return x

        bad = broken()
        dependent = use(bad)
        await within(asyncio.wait([bad, dependent]))
        await turns()
        assert events.of(bad)[-1].error is bad.exception()
        assert events.of(dependent)[-1].error is dependent.exception()
        assert events.states(dependent) == [PENDING, FAILED]
        assert events.of(dependent)[-1].backend is None


async def test_each_attempt_of_a_retried_task_is_reported() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(backend := Scripted(), observers=[events]) as flow:

        @flow.function_task(retries=1)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        backend.failed(task, error := OSError("once"))
        backend.runs(task := await backend.next())
        backend.done(task, 1)
        await within(future)
        await turns()
        mine = events.of(future)
        assert [e.state for e in mine if e.attempt == 1] == [PENDING, SUBMITTED, RUNNING, FAILED]
        second = [e.state for e in mine if e.attempt == 2]
        assert second in ([SUBMITTED, RUNNING, DONE], [PENDING, SUBMITTED, RUNNING, DONE])
        assert [event.attempt for event in mine] == sorted(event.attempt for event in mine)
        assert [event.error for event in mine if event.state is FAILED] == [error]


@pytest.mark.parametrize("phase", ["waiting", "submitted", "running"])
async def test_a_cancelled_task_ends_with_that(phase: str) -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(backend := Scripted(), observers=[events]) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future = part(gate) if phase == "waiting" else part()
        if phase != "waiting":
            task = await backend.next()
            await turns()
            if phase == "running":
                backend.runs(task)
        future.cancel()
        await within(future.ended())
        await turns()
        expected = {
            "waiting": [PENDING, CANCELED],
            "submitted": [PENDING, SUBMITTED, CANCELED],
            "running": [PENDING, SUBMITTED, RUNNING, CANCELED],
        }
        assert events.states(future) == expected[phase]


async def test_blocks_and_services_are_reported_too() -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(backend := Scripted(), observers=[events]) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        @flow.block
        async def block() -> None:
            await server()

        whole = block()
        task = await backend.next()
        backend.ready(task, "address")
        await within(whole)
        await turns()
        assert events.states("block.000001") == [PENDING, RUNNING, DONE]
        assert events.states("task.000001") == [PENDING, SUBMITTED, RUNNING]
        backend.stopped(task)
        await until(lambda: not flow.components)
        await turns()
        assert events.states("task.000001")[-1] is DONE


@pytest.mark.parametrize("state", [DONE, FAILED])
async def test_a_service_that_ends_early_is_reported_once(state: TasksMainStates) -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(backend := Scripted(), observers=[events]) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        service = server()
        backend.ready(task := await backend.next(), "address")
        assert await within(service) == "address"
        task["exception"] = error = LookupError("died")
        backend.report(task, state)
        await within(service.ended())
        await turns()
        assert events.states(service) == [PENDING, SUBMITTED, RUNNING, state]
        assert events.of(service)[-1].error is error


async def test_events_are_immutable_batched_in_order_and_on_the_loop() -> None:
    threads = set()

    class Recorder(EventRecorder):
        @hookimpl
        def rhapsody_task_events(self, engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
            threads.add(threading.get_ident())
            assert engine is flow
            super().rhapsody_task_events(engine, events)

    recorder = Recorder()
    async with WorkflowEngine.create(Inline(), observers=[recorder]) as flow:

        @flow.function_task
        def part(x: Any) -> Any:
            return x

        futures = flow.map(part, range(1000))
        futures.append(part(futures[0]))
        await within(asyncio.gather(*futures))
    assert threads == {threading.get_ident()}
    assert len(recorder.events) == 4 * 1001
    assert len(recorder.batches) < 2000
    for future in futures:
        assert recorder.states(future) == [PENDING, SUBMITTED, RUNNING, DONE]
    for first, second in itertools.pairwise(recorder.events):
        assert first.monotonic <= second.monotonic
    done = recorder.events.index(recorder.of(futures[0])[-1])
    assert done < recorder.events.index(recorder.of(futures[-1])[1])
    event = recorder.events[0]
    with pytest.raises(AttributeError):
        event.name = "other"  # type: ignore[misc]
    assert isinstance(recorder.batches[0], tuple)


async def test_observers_share_the_events_and_cannot_change_the_batch() -> None:
    seen: list[Sequence[TaskEvent]] = []

    class Meddler:
        @hookimpl
        def rhapsody_task_events(self, events: Any) -> None:
            try:
                events.clear()
            except AttributeError:
                return
            raise AssertionError("the batch can be changed")

    class Watcher:
        @hookimpl
        def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
            seen.append(events)

    async with WorkflowEngine.create(Inline(), observers=[Meddler(), Watcher(), Watcher()]) as flow:

        @flow.function_task
        def part() -> None: ...

        await within(part())
    assert seen[0] is seen[1]
    assert [event.state for event in seen[0]]


async def test_started_and_finished_are_reported_once_around_everything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: list[Any] = []

    class Observer:
        @hookimpl
        def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
            said.append(("started", engine.uid, list(engine.backends)))

        @hookimpl
        def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
            said.extend((event.uid, event.state) for event in events)

        @hookimpl
        def rhapsody_workflow_finished(self, engine: WorkflowEngine, summary: Any) -> None:
            said.append(("finished", engine.uid, summary))

    flow = await WorkflowEngine.create(Scripted(), observers=[Observer()])

    @flow.function_task
    def part(x: Any = None) -> None: ...

    part(part())
    with pytest.raises(LookupError):
        async with flow:
            raise LookupError
    await within(flow.shutdown())
    await turns()
    assert said[0] == ("started", flow.uid, ["scripted"])
    assert said[-1] == ("finished", flow.uid, flow.summary)
    assert [event[0] for event in said].count("started") == 1
    assert [event[0] for event in said].count("finished") == 1
    assert said[-1][2].stats.cancelled == 2
    ended = {uid for uid, state, *_ in said if state is CANCELED}
    assert ended == {"task.000001", "task.000002"}


async def test_an_engine_that_could_not_start_tells_nothing() -> None:
    class Broken(Scripted):
        async def start(self) -> None:
            raise OSError("no cluster")

    events = EventRecorder()
    with pytest.raises(OSError, match="no cluster"):
        await WorkflowEngine.create(Broken(), observers=[events])
    assert len(events.started) == len(events.finished)


async def test_a_raising_observer_is_reported_once_and_silences_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        @hookimpl
        def rhapsody_workflow_started(self) -> None:
            raise OSError("started")

        @hookimpl
        def rhapsody_task_events(self) -> None:
            raise OSError("events")

        @hookimpl
        def rhapsody_workflow_finished(self) -> None:
            raise SystemExit("finished")

    first, last = EventRecorder(), EventRecorder()
    async with WorkflowEngine.create(Inline(), observers=[first, Broken(), last]) as flow:

        @flow.function_task
        def part(x: Any = None) -> int:
            return 1

        for _ in range(20):
            assert await within(part(part())) == 1
    assert len(first.events) == len(last.events) == 160
    for recorder in (first, last):
        assert len(recorder.started) == len(recorder.finished) == 1
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(messages) == 3
    assert all("Broken" in message for message in messages)


async def test_two_engines_tell_each_its_own() -> None:
    one, two = EventRecorder(), EventRecorder()
    async with (
        WorkflowEngine.create(Inline(), observers=[one]) as first,
        WorkflowEngine.create(Inline(), observers=[two]) as second,
    ):
        futures = []
        for flow, count in ((first, 2), (second, 3)):

            @flow.function_task
            def part(x: int) -> int:
                return x

            futures += flow.map(part, range(count))
        await within(asyncio.gather(*futures))
    assert len({event.uid for event in one.events}) == 2
    assert len({event.uid for event in two.events}) == 3


async def test_an_unused_hook_costs_nothing_per_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "all")

    class Silent:
        finished = 0

        @hookimpl
        def rhapsody_workflow_finished(self) -> None:
            self.finished += 1

    class CountingClock(ManualClock):
        asked = 0

        def time(self) -> float:
            self.asked += 1
            return super().time()

    calls: list[str] = []
    real = EngineHooks.call

    def call(self: EngineHooks, hook: Any, **arguments: Any) -> Any:
        calls.append(hook.hook)
        return real(self, hook, **arguments)

    monkeypatch.setattr(EngineHooks, "call", call)
    clock = CountingClock()
    async with WorkflowEngine.create("noop", observers=[silent := Silent()], clock=clock) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        before = clock.asked
        calls.clear()
        await within(asyncio.gather(*flow.map(part, range(1000))))
        assert calls == []
        assert clock.asked == before  # no event was even made
    assert silent.finished == 1
    assert calls == ["rhapsody_workflow_finished"]


async def test_one_raising_observer_does_not_silence_the_next() -> None:
    class Raising:
        @hookimpl
        def rhapsody_task_events(self, events: Any) -> None:
            raise OSError("broken plugin")

    before, after = EventRecorder(), EventRecorder()
    async with WorkflowEngine.create(Inline(), observers=[before, Raising(), after]) as flow:

        @flow.function_task
        def part() -> int:
            return 1

        for _ in range(3):
            await within(part())
    assert before.events
    assert before.events == after.events


async def test_the_end_waits_for_the_last_hooks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Sends:
        @hookimpl
        async def rhapsody_workflow_finished(self, summary: Any) -> None:
            await asyncio.sleep(0)
            said.append(summary.outcome)

    class Fails:
        @hookimpl
        async def rhapsody_workflow_finished(self) -> None:
            await asyncio.sleep(0)
            raise OSError("no route to host")

    class Hangs:
        @hookimpl
        async def rhapsody_workflow_finished(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                said.append("canceled")

    monkeypatch.setattr("rhapsody.plugins.manager.LAST_SECONDS", 0.05)
    observers = [Sends(), Fails(), Hangs()]
    async with WorkflowEngine.create(Inline(), observers=observers) as flow:
        pass
    assert said == ["done", "canceled"]
    await within(flow.shutdown())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "Fails: rhapsody_workflow_finished raised OSError: no route to host" in messages[0]
    assert "Hangs: rhapsody_workflow_finished raised TimeoutError: still running" in messages[1]
