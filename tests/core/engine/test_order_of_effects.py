"""In which order what comes of a report is seen, and that nothing of it is kept longer."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rhapsody import OutputFile, TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins.specs import Recorded
from rhapsody.task import TaskDescription
from rhapsody.testing import EventRecorder
from tests._support.scripted import RUNS_ALL, Scripted, in_thread, turns, until, within
from tests.core.engine.test_pushdown import Keeping, Kept, tasks

pytestmark = pytest.mark.asyncio


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

    async with WorkflowEngine.create(backend := Holding()) as flow:

        @flow.function_task(service=True)
        def serve() -> None: ...

        future = serve()
        task: Any = await backend.next()
        task["held"] = Kept(backend, 1)  # type: ignore[arg-type]
        backend.report(task, TasksMainStates.DONE)
        await until(future.done)
        assert "before it was ready" in str(future.exception())
