"""Submission of batches to backends, and the order in which their reports take effect."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rhapsody import (
    BackendError,
    BackendUnavailableError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputFile,
    RhapsodyError,
    SubmissionError,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.plugins.specs import Recorded
from rhapsody.task import TaskDescription
from rhapsody_testing import EventRecorder
from tests._support.scripted import (
    RUNS_ALL,
    ManualClock,
    Scripted,
    in_thread,
    outcome,
    turns,
    until,
    within,
)
from tests.core.engine.test_pushdown import Keeping, Kept, tasks

pytestmark = pytest.mark.asyncio


async def test_a_task_that_is_cancelled_while_its_batch_is_put_together_is_not_handed_over() -> (
    None
):
    async with WorkflowEngine.create(backend := Scripted(), fail_fast=True) as flow:

        @flow.function_task
        def part() -> None: ...

        @flow.executable_task
        def refused() -> str:
            raise LookupError("it cannot be built")

        first, second = part(), refused()
        await within(asyncio.gather(first, second, return_exceptions=True))
        await turns()
        assert first.cancelled()
        assert isinstance(second.exception(), LookupError)
        assert backend.tasks == []


async def test_a_task_over_its_time_fails_though_the_backend_then_refuses_its_batch() -> None:
    class Slow(Scripted):
        """Reports that tasks run, takes long, and refuses them after all."""

        asked: asyncio.Event
        refuse: asyncio.Event

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            for task in tasks:
                self.runs(task)
            self.asked.set()
            await self.refuse.wait()
            raise OSError("no")

    backend = Slow()
    backend.asked, backend.refuse = asyncio.Event(), asyncio.Event()
    clock = ManualClock()
    async with WorkflowEngine.create(backend, clock=clock, submit_timeout=None) as flow:

        @flow.function_task(timeout=5)
        def part() -> None: ...

        future = part()
        await within(backend.asked.wait())
        await clock.advance(6)
        backend.refuse.set()
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, TaskTimeoutError)
        assert "continues to run" not in str(error)


async def test_what_a_backend_reports_while_it_is_given_tasks_does_not_run_inside_it() -> None:
    class Eager(Scripted):
        """Says of each task how it ended before it has taken the whole batch."""

        inside = False

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            self.inside = True
            for task in tasks:
                self.failed(task, LookupError(task["args"][0]))
            self.inside = False

    seen: list[bool] = []
    async with WorkflowEngine.create(backend := Eager()) as flow:

        def instead(error: BaseException) -> Any:
            seen.append(backend.inside)
            return error.args[0]

        @flow.function_task(fallback=instead)
        def part(number: int) -> None: ...

        futures = flow.map(part, range(100))
        assert await within(asyncio.gather(*futures)) == list(range(100))
    assert seen == [False] * 100


async def test_what_is_reported_on_the_loop_comes_before_what_a_thread_reports_later() -> None:
    class Threads(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            in_thread(self.report, {"uid": "x.task.1"}, TasksMainStates.DONE)  # wakes the mailbox
            for task in tasks:
                self.runs(task)
                in_thread(self.done, task, 1)
            await turns()

    async with WorkflowEngine.create(Threads(), observers=[seen := EventRecorder()]) as flow:

        @flow.function_task
        def part() -> None: ...

        future = part()
        value: Any = await within(future)
        assert value == 1
        await turns()
        assert [event.state for event in seen.of(future)][-2:] == ["RUNNING", "DONE"]
        assert flow.stats.late == 0


async def test_reports_are_applied_after_one_that_the_engine_failed_at() -> None:
    class Odd(Scripted):
        """Reports a state at which its own mapper raises, and then an end."""

        def get_task_states_map(self) -> Any:
            mapper = super().get_task_states_map()

            class Raising:
                native: Mapping[Any, Any] = {}

                def __getattr__(self, name: str) -> Any:
                    return getattr(mapper, name)

                def to_main_state(self, state: Any) -> Any:
                    if state == "odd":
                        raise OSError("odd")
                    return mapper.to_main_state(state)

            return Raising()

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            await super().submit_tasks(tasks)
            if len(self.tasks) > 1:
                self.report(tasks[0], "odd")
                self.report(tasks[0], TasksMainStates.DONE)
                await asyncio.Event().wait()

    flow = await WorkflowEngine.create(backend := Odd(), submit_timeout=None)

    @flow.function_task
    def part() -> None: ...

    first = part()
    given = await backend.next()
    second = part()
    await backend.next()
    await until(lambda: first.done() and second.done())
    backend.done(given)
    await within(asyncio.gather(first.ended(), second.ended()))
    first.exception(), second.exception()
    await flow.shutdown()


async def test_a_cancelled_task_lets_go_of_a_value_that_is_on_its_way() -> None:
    async with WorkflowEngine.create(backend := await Keeping()) as flow:
        text, join, _ = tasks(flow)
        part = text("a")
        assert await within(join(part)) == "a"
        backend.open.clear()
        other = join.options(timeout=100)(part)  # it needs the value here
        await turns()
        assert part._callbacks
        other.cancel()
        await turns()
        assert not part._callbacks
        backend.open.set()


async def test_the_error_of_a_missing_file_is_freed_at_once(tmp_path: Path) -> None:
    backend = Scripted(capabilities=dataclasses.replace(RUNS_ALL, sandboxes=True))
    async with WorkflowEngine.create(backend, work_dir=tmp_path, retries=1) as flow:

        @flow.function_task
        def part(file: OutputFile) -> None: ...

        future = part(OutputFile("x.txt"))
        task = await backend.given("part", 1)
        gc.collect()
        gc.disable()
        try:
            backend.report(task, TasksMainStates.DONE)
            await until(lambda: flow.stats.retried == 1)
            await turns()
            alive = [one for one in gc.get_objects() if type(one).__name__ == "DataError"]
            assert not alive
        finally:
            gc.enable()
        future.cancel()


async def test_dependents_come_before_those_that_waited_for_a_limit() -> None:
    class Known:
        @hookimpl
        def rhapsody_lookup_results(self, tasks: Sequence[Any]) -> list[Recorded | None]:
            return [Recorded(7) if task["name"] == "first" else None for task in tasks]

    async with WorkflowEngine.create(backend := Scripted(), observers=[Known()]) as flow:

        @flow.function_task(limit="x:1")
        def first() -> None: ...

        @flow.function_task(limit="x:1")
        def second() -> None: ...

        @flow.function_task
        def after(value: Any) -> None: ...

        one, two = first(), second()
        three = after(one)
        await until(lambda: len(backend.tasks) == 2)
        assert backend.names() == ["after", "second"]
        for task in backend.tasks:
            backend.done(task)
        await within(asyncio.gather(one, two, three))


async def test_a_kept_name_settles_at_once_while_another_batch_is_handed_over() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> None: ...

        one = part()
        task = await backend.next()
        backend.gate.clear()
        two = part()
        other = await backend.next()
        flow.handle_task_success({**task, "return_value": 1}, one)
        assert one.done()
        backend.gate.set()
        await turns()
        backend.done(other)
        await within(asyncio.gather(one, two))


async def test_a_service_whose_value_is_held_has_ended_before_it_was_ready() -> None:
    class Holding(Scripted):
        fetched: ClassVar[list[str]] = []
        size = 0

    async with WorkflowEngine.create(backend := Holding()) as flow:

        @flow.function_task(service=True)
        def serve() -> None: ...

        future = serve()
        task: Any = await backend.next()
        task["held"] = Kept(backend, 1)  # type: ignore[arg-type]
        backend.report(task, TasksMainStates.DONE)
        await until(future.done)
        assert "before it was ready" in str(future.exception())


class Cancelling(NoopExecutionBackend):
    """A backend whose library cancels what it waits for."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        if self.where == "submit":
            self.where = ""
            raise asyncio.CancelledError
        if self.where != "cancel":
            await super().submit_tasks(tasks)

    async def cancel_task(self, uid: str) -> bool:
        if self.where == "cancel":
            raise asyncio.CancelledError
        return await super().cancel_task(uid)

    async def shutdown(self) -> None:
        await super().shutdown()
        if self.where == "shutdown":
            raise asyncio.CancelledError


@pytest.mark.parametrize("where", ["submit", "cancel", "shutdown"])
async def test_a_backend_that_raises_cancelled_error(where: str) -> None:
    flow = await WorkflowEngine.create(Cancelling(where))
    task = flow.function_task(int)
    first = task()
    if where == "cancel":
        first.cancel()
    elif where == "submit":
        assert isinstance(await outcome(first), SubmissionError)
        await asyncio.wait_for(task(), 20)
    else:
        await asyncio.wait_for(first, 20)
    await asyncio.wait_for(flow.shutdown(), 40)
    assert flow.summary is not None
    assert bool(flow.summary.problems) == (where == "shutdown")


async def test_an_unavailable_backend_is_reported_as_such() -> None:
    class Gone(NoopExecutionBackend):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            raise BackendUnavailableError("the scheduler is unreachable")

    async with WorkflowEngine.create(Gone()) as flow:
        error = await outcome(flow.function_task(int)())
        assert isinstance(error, BackendUnavailableError)
        assert str(error) == "the scheduler is unreachable"


async def test_updates_that_cannot_be_read_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def as_dict(self) -> dict[str, Any]:
            raise ValueError("broken")

    async with WorkflowEngine.create(backend := LocalExecutionBackend()) as flow:
        task = flow.function_task(int)
        future = task()
        reports: list[Any] = [{"uid": []}, Broken(), 3, None]
        for report in reports:
            backend.report_state(report, "DONE")
        assert await future == 0
        assert await task() == 0
        assert flow.stats.unknown == 4
    assert caplog.text.count("ignoring malformed reports") == 1


async def test_completions_before_submit_tasks_returned_are_not_dropped() -> None:
    class Eager(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            for position, task in enumerate(tasks):
                if position % 2:
                    self.done(task, task["args"][0])
                else:
                    thread = threading.Thread(target=self.done, args=(task, task["args"][0]))
                    thread.start()
                    thread.join()
            await super().submit_tasks(tasks)
            await turns()

    async with WorkflowEngine.create(Eager()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        assert await within(asyncio.gather(*flow.map(part, range(100)))) == list(range(100))


async def test_a_completion_from_a_backends_thread_is_noticed_at_once() -> None:
    class Threaded(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            await super().submit_tasks(tasks)
            for task in tasks:
                threading.Thread(target=self.done, args=(task, task["args"][0] + 1)).start()

    async with WorkflowEngine.create(Threaded()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        began = time.monotonic()
        value = 0
        for _ in range(50):  # each with an idle loop in between
            value = await within(part(value))
        assert value == 50
        assert time.monotonic() - began < 25  # a second each would be 50


async def test_a_chain_of_30_ms_tasks_takes_30_ms_a_link() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def link(x: int) -> int:
            time.sleep(0.03)
            return x + 1

        await within(link(0))
        ratios: list[float] = []
        while len(ratios) < 5 and min(ratios, default=3) >= 3:  # a busy machine slows some
            began = time.monotonic()
            for _ in range(20):
                await asyncio.to_thread(time.sleep, 0.03)
            bare = time.monotonic() - began
            began = time.monotonic()
            future: Any = 0
            for _ in range(20):
                future = link(future)
            assert await within(future) == 20
            ratios.append((time.monotonic() - began) / bare)
        assert min(ratios) < 3


async def test_an_error_in_the_engine_is_not_a_bare_cancelled_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        running = part()
        waiting = part(running)
        await backend.next()

        def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("a fault of ours")

        from rhapsody.engine.attempts.dispatch import Dispatcher

        monkeypatch.setattr(Dispatcher, "_take", broken)
        last = part()
        await within(asyncio.wait([running, waiting, last]))
        for future in (running, last):
            error = future.exception()
            assert isinstance(error, BackendError)
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert "a fault of ours" in str(error)
        assert isinstance(waiting.exception(), RhapsodyError)
        assert "a fault of ours" in str(waiting.exception())
        with pytest.raises(RuntimeError):
            part()
        monkeypatch.undo()


async def test_a_state_that_the_mapper_does_not_know_is_reported_once_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        future = flow.function_task(int)()
        task = await backend.next()
        for _ in range(3):
            backend.report(task, "PONDERING")
        backend.done(task, 1)
        assert await within(future) == 1
        assert flow.stats.unknown == 3
    assert caplog.text.count("PONDERING") == 1
