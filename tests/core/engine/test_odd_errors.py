"""Unexpected exceptions and answers: each fails its own task only."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rhapsody import (
    BackendUnavailableError,
    DependencyFailureError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    SubmissionError,
    TaskDescription,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.errors import PluginError
from rhapsody.plugins.specs import Record

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def outcome(future: Awaitable[Any]) -> Any:
    """The exception of a future, which is settled soon."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(future)), 20)
    assert not isinstance(raised.value, TimeoutError)
    return raised.value


class MuteError(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ValueError


async def test_an_exception_without_text_fails_its_task_and_those_after_it() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def mute() -> int:
            raise MuteError

        @flow.block
        def mute_block() -> int:
            raise MuteError

        @flow.block
        async def mute_async_block() -> int:
            raise MuteError

        @flow.function_task
        def use(x: int) -> int:
            return x

        for task in (mute, mute_block, mute_async_block):
            first = task()
            error = await outcome(use(first))
            assert isinstance(error, DependencyFailureError)
            assert isinstance(error.root_cause, MuteError)
        assert await use(3) == 3


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


class Recording:
    """Hands back something to wait for."""

    def __init__(self, make: Callable[[], Awaitable[None]]) -> None:
        self.make = make

    @hookimpl
    def rhapsody_record_results(
        self, engine: WorkflowEngine, records: Sequence[Record]
    ) -> Awaitable[None]:
        return self.make()


async def test_a_recording_that_is_cancelled_holds_no_result_back() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with WorkflowEngine.create(observers=[Recording(cancelled)]) as flow:
        assert await asyncio.wait_for(flow.function_task(int)(), 20) == 0


async def test_a_recording_that_never_ends_does_not_hold_up_the_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rhapsody.engine.runtime.GRACE", 0.1)

    asked = asyncio.Event()

    def never() -> asyncio.Future[None]:
        asked.set()
        return asyncio.get_running_loop().create_future()

    flow = await WorkflowEngine.create(observers=[Recording(never)])
    future = flow.function_task(int)()
    async with asyncio.timeout(20):
        await asked.wait()
        await flow.shutdown()
    assert future.done()


@pytest.mark.parametrize("change", [{"uid": "other"}, {"executable": None}])
async def test_a_plugin_that_breaks_a_description_fails_that_task_alone(
    change: dict[str, Any],
) -> None:
    class Breaking:
        @hookimpl
        def rhapsody_prepare_task(self, engine: WorkflowEngine, task: dict[str, Any]) -> None:
            if task["name"] == "bad":
                for key, value in change.items():
                    task.pop(key)
                    if value:
                        task[key] = value

    async with WorkflowEngine.create(observers=[Breaking()]) as flow:
        bad, good = flow.function_task(name="bad")(int)(), flow.function_task(int)()
        error = await outcome(bad)
        assert isinstance(error, PluginError)
        assert "Breaking" in str(error)
        assert await good == 0


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
    assert caplog.text.count("cannot be read as a task") == 1


async def test_a_failure_reported_by_hand_leaves_retries_to_the_engine() -> None:
    submitted = asyncio.Event()

    class Waits(NoopExecutionBackend):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            submitted.set()
            if tasks[0]["attempt"] == 2:
                await super().submit_tasks(tasks)

    async with WorkflowEngine.create(Waits()) as flow:
        future = flow.function_task(retries=1)(int)()
        await asyncio.wait_for(submitted.wait(), 20)
        flow.handle_task_failure(future.task, future, "by hand")
        assert not future.done()
        await asyncio.wait_for(future, 20)
        assert future.attempt == 2


async def test_a_foreign_future_may_fail_with_stop_iteration() -> None:
    class Old:
        def as_dict(self) -> dict[str, Any]:
            return {"uid": "x", "exception": StopIteration(1)}

    async with WorkflowEngine.create() as flow:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        flow.handle_task_failure(Old(), future)
        assert isinstance(await outcome(future), RuntimeError)


async def test_cancelling_execute_block_cancels_the_block_and_its_future() -> None:
    async with WorkflowEngine.create() as flow:
        begun = asyncio.Event()

        async def long() -> None:
            begun.set()
            await asyncio.Event().wait()

        future: asyncio.Future[Any] = flow.loop.create_future()
        running = asyncio.ensure_future(flow.execute_block(future, long))
        await asyncio.wait_for(begun.wait(), 20)
        running.cancel()
        assert isinstance(await outcome(future), asyncio.CancelledError)
        assert not flow.components


async def test_a_synchronous_block_that_goes_on_is_in_the_summary() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    flow = await WorkflowEngine.create()

    @flow.block
    def waits() -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)

    block = waits()
    await asyncio.wait_for(begun.wait(), 20)
    await flow.shutdown()
    gate.set()
    assert flow.summary is not None
    assert [uid.rpartition(".block.")[2] for uid in flow.summary.still_running] == ["000001"]
    assert block.cancelled()


async def test_exits_in_callables_of_the_user_fail_their_task_alone() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(service=True, ready=lambda task: sys.exit("not ready"))
        def service() -> str:
            return "sleep 60"

        def fails() -> int:
            raise ValueError

        def leaves(error: BaseException) -> int:
            sys.exit("no fallback")

        error = await outcome(service())
        assert "not ready" in str(error)
        error = await outcome(flow.function_task(fallback=leaves)(fails)())
        assert isinstance(error, SystemExit)

        async def later(error: BaseException) -> int:
            return 1

        with pytest.raises(TypeError, match="fallback must be"):
            flow.function_task(fallback=later)(fails)


class Point(NamedTuple("Point", [("x", Any), ("y", Any)])):
    """A named tuple that is made in its own way."""

    def __new__(cls, x: Any) -> Point:
        return super().__new__(cls, x, "y")


async def test_dataclasses_and_named_tuples_arrive_as_they_were() -> None:
    made = []

    @dataclasses.dataclass
    class Data:
        value: Any
        start: dataclasses.InitVar[int]
        hidden: int = dataclasses.field(init=False, default=1)

        def __post_init__(self, start: int) -> None:
            made.append(self)

    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def one() -> int:
            return 1

        @flow.function_task
        def look(x: Any) -> Any:
            return x

        data = Data(one(), 5)
        data.hidden = 7
        data.more = "more"  # type: ignore[attr-defined]
        seen = await look(data)
        assert (seen.value, seen.hidden, seen.more, len(made)) == (1, 7, "more", 1)
        assert asyncio.isfuture(data.value)
        assert tuple(await look(Point(one()))) == (1, "y")


async def test_a_call_has_all_keys_of_a_description_from_the_beginning(tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path) as flow:
        gate: asyncio.Future[str] = flow.loop.create_future()
        future = flow.executable_task(lambda text: f"echo {text}")(gate)
        assert future.task is not None
        assert future.task["executable"] is None
        assert future.task["metadata"]["dependencies"] == []
        gate.set_result("x")
        assert await future == "x\n"


async def test_a_failure_may_be_freed_while_another_is_reported() -> None:
    class CollectingError(Exception):
        def __str__(self) -> str:
            gc.collect()  # as any allocation may
            return "text"

    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def bad() -> None:
            raise CollectingError

        futures = [bad(), bad()]
        await asyncio.wait(futures)
        circle: list[Any] = [futures.pop()]
        circle.append(circle)
        del circle
        futures.clear()
        gc.collect()
        assert flow.stats.failed == 2
