"""Values that a backend keeps until they are needed, with a backend in this process."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import DependencyFailureError, TasksMainStates, WorkflowEngine, hookimpl, wait
from rhapsody.backends.base import Capabilities, ManagedBackend, ReferenceLostError
from rhapsody.errors import BackendUnavailableError, TaskLostError
from rhapsody.plugins.specs import LookupTask, Record
from rhapsody.task import Reference, TaskDescription
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio


class Kept:
    """One value that stays with the backend."""

    def __init__(self, backend: Keeping, value: Any) -> None:
        self.backend = backend
        self.value = value
        self.size = backend.size

    async def fetch(self) -> dict[str, Any]:
        self.backend.fetched.append(self.value)
        await self.backend.open.wait()
        if self.backend.loss is not None:
            raise self.backend.loss
        return {"return_value": self.value, "stdout": "printed"}


class Keeping(ManagedBackend):
    """Runs functions here, and keeps the values of those that others refer to."""

    name = "keeping"
    canonical_states = True
    capabilities = Capabilities(executables=False, unfinished_dependencies=True)

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[Any] = []
        self.size: int | None = 0
        self.seconds = 0.0
        self.loss: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.kept: weakref.WeakValueDictionary[str, Kept] = weakref.WeakValueDictionary()
        self.references: set[str] = set()
        self.values: dict[str, asyncio.Future[Any]] = {}
        self.runs: list[asyncio.Future[None]] = []

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        for task in tasks:
            self.accept(task)
            self.references.update(task.get("references", ()))
            self.values[task["uid"]] = asyncio.get_running_loop().create_future()
            # What is referred to stays at least until it was used.
            kept = [self.kept.get(uid) for uid in task.get("references", ())]
            self.runs.append(asyncio.ensure_future(self._do(task, kept)))

    async def stop(self) -> None:
        for run in self.runs:
            run.cancel()

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def _do(self, task: Any, kept: list[Kept | None]) -> None:
        states = self.get_task_states_map()
        try:
            args = [await self._value(a) if type(a) is Reference else a for a in task["args"]]
            value = task["function"](*args)
        except Exception as error:
            task["exception"] = error
            self.values.pop(task["uid"]).cancel()
            self.task_state_cb(task, states.FAILED)
            return
        if task["uid"] in self.references:
            task["interval"] = 0.0, self.seconds
            task["held"] = self.kept[task["uid"]] = Kept(self, value)
        else:
            task["return_value"] = value
        self.values.pop(task["uid"]).set_result(value)
        del args, value
        self.task_state_cb(task, states.DONE)

    async def _value(self, reference: Reference) -> Any:
        kept = self.kept.get(reference.uid)
        if kept is not None:
            return kept.value
        if reference.uid not in self.values:
            raise ReferenceLostError("it is unknown")
        try:
            return await self.values[reference.uid]
        except asyncio.CancelledError:
            raise ReferenceLostError("it failed") from None


class Text(str):
    """A value whose end can be seen."""


@pytest_asyncio.fixture
async def flow() -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine.create(await Keeping()) as engine:
        yield engine


def tasks(flow: WorkflowEngine) -> tuple[Any, Any, Any]:
    @flow.function_task
    def text(content: str) -> Text:
        return Text(content)

    @flow.function_task
    def join(*parts: str) -> Text:
        return Text("".join(parts))

    return text, join, flow.backend


async def test_only_what_is_asked_for_comes(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    parts = [text(letter) for letter in "abc"]
    whole = join(*parts)
    assert await within(join(whole, parts[0])) == "abca"
    assert backend.fetched == []
    assert [part.state for part in parts] == [TasksMainStates.DONE] * 3
    assert flow.components == {}
    assert await within(parts[1]) == "b"
    assert parts[1].stdout == "printed"
    assert backend.fetched == ["b"]


async def test_one_who_waits_already_need_not_ask(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    assert [*await within(asyncio.gather(part, join(part)))] == ["a", "a"]
    assert backend.fetched == ["a"]


async def test_two_who_ask_bring_it_once(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    await within(join(part))
    assert not part.done()
    everyone = asyncio.gather(part, part, asyncio.shield(part))
    assert [*await within(everyone)] == ["a"] * 3
    assert backend.fetched == ["a"]


async def test_a_value_goes_with_the_last_who_holds_its_future(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    whole = join(part)
    last = await within(join(whole))
    gc.collect()
    assert len(backend.kept) == 2
    del part
    gc.collect()
    assert [kept.value for kept in backend.kept.values()] == [last]
    del whole
    gc.collect()
    assert not backend.kept
    assert backend.fetched == []


async def test_a_task_that_is_not_plain_waits_for_the_value(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    await within(join(part))
    assert await within(join.options(retries=1)(part, part)) == "aa"
    assert backend.fetched == ["a"]


async def test_a_lost_reference_is_replaced_by_the_value(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    await within(join(part))
    kept = dict(backend.kept)
    backend.kept.clear()
    assert await within(join(part, "b")) == "ab"
    assert [value.value for value in kept.values()] == backend.fetched == ["a"]


@pytest.mark.parametrize("kind", [TaskLostError, BackendUnavailableError])
async def test_a_value_that_is_lost_fails_its_future_and_what_needs_it(
    flow: WorkflowEngine, kind: type[Exception]
) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    used = join(part)
    assert await within(used) == "a"
    backend.loss = kind("it is lost")
    later = join.options(retries=1)(part)
    with pytest.raises(kind, match=r"stayed with backend .* lost there: it is lost; .*push_down"):
        await within(part)
    assert used.result() == "a"
    with pytest.raises(DependencyFailureError):
        await within(later)
    assert part.state is TasksMainStates.FAILED


async def test_cancelling_ends_the_wait_and_nothing_else(flow: WorkflowEngine) -> None:
    text, join, backend = tasks(flow)
    part = text("a")
    await within(join(part))
    assert not part.cancel()
    backend.open.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(part, 0.01)
    assert part.cancelled()
    assert part.state is TasksMainStates.CANCELED
    async with asyncio.timeout(20):
        while backend.kept:
            await asyncio.sleep(0)  # the wait ends in the loop's next turns
            gc.collect()


async def test_the_end_of_the_engine_settles_every_future() -> None:
    backend = await Keeping()
    async with WorkflowEngine.create(backend) as flow:
        text, join, _ = tasks(flow)
        parts = [text("a"), text("b")]
        await within(join(*parts))
        backend.open.clear()
        waiting = asyncio.ensure_future(asyncio.wait([parts[0]]))
        while not backend.fetched:  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)
    await within(waiting)
    assert parts[0].cancelled()
    assert parts[1].done()
    with pytest.raises(BackendUnavailableError, match="stayed with backend"):
        parts[1].result()


async def test_without_push_down_nothing_is_held() -> None:
    async with WorkflowEngine.create(await Keeping(), push_down=False) as flow:
        text, join, backend = tasks(flow)
        part = text("a")
        assert await within(join(part)) == "a"
        assert part.result() == "a"
        assert backend.fetched == []


async def test_a_block_that_waits_on_its_thread_gets_a_value_that_stays_meanwhile() -> None:
    """The wait reaches the loop after the value was left with the backend."""
    async with WorkflowEngine.create(backend := Keeping()) as flow:
        waits, ended = threading.Event(), threading.Event()

        @flow.function_task
        def made() -> int:
            waits.set()
            assert ended.wait(20)  # the loop is busy until the block waits
            return 41

        @flow.function_task
        def used(value: int) -> int:
            return value

        first = made()
        second = used(first)

        @flow.block
        def part() -> int:
            assert waits.wait(20)
            threading.Timer(0.2, ended.set).start()
            return wait(first, 20)

        assert await within(part()) == 41
        assert await within(second) == 41
        assert backend.fetched == [41]


async def test_a_value_that_is_still_with_its_backend_is_fetched_on_request_and_awaited(
    flow: WorkflowEngine,
) -> None:
    text, join, backend = tasks(flow)
    parts = [text(letter) for letter in "abc"]
    assert await within(join(join(*parts))) == "abc"
    for part, ask in zip(parts, ("result", "exception"), strict=False):
        with pytest.raises(asyncio.InvalidStateError, match="has not been fetched"):
            getattr(part, ask)()
        await within(until_fetched(part))
    assert (parts[0].result(), parts[1].exception()) == ("a", None)
    assert backend.fetched == ["a", "b"]


async def until_fetched(future: Any) -> None:
    while True:
        try:
            future.exception()
        except asyncio.InvalidStateError:
            await asyncio.sleep(0)
        else:
            return


class Recorder:
    """Plugin that notes the results that it is to record."""

    push_down = True
    max_value = 1000

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.begun, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()

    @hookimpl
    def rhapsody_lookup_results(self, tasks: Sequence[LookupTask]) -> None:
        """Find nothing."""

    @hookimpl
    async def rhapsody_record_results(self, records: Sequence[Record]) -> None:
        self.begun.set()
        await self.open.wait()
        self.records += records

    @property
    def values(self) -> set[Any]:
        return {record.value for record in self.records}


async def test_values_that_cost_more_to_compute_than_to_fetch_are_recorded() -> None:
    recorder, backend = Recorder(), await Keeping()
    backend.seconds = 1.0
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        text, join, _ = tasks(flow)
        parts = [text(letter) for letter in "ab"]
        assert await within(join(*parts)) == "ab"
    assert recorder.values == {"a", "b", "ab"}
    assert {record.stdout for record in recorder.records} == {"printed", None}
    assert sorted(backend.fetched) == ["a", "b"]  # once, to record them


async def test_a_recorded_value_stays_until_it_is_requested() -> None:
    recorder, backend = Recorder(), await Keeping()
    backend.seconds = 1.0
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        text, join, _ = tasks(flow)
        part = text("a")
        assert await within(join(part)) == "a"
        await within(recorder.begun.wait())
        assert backend.kept
        assert await within(join(part, "b")) == "ab"
        assert await within(part) == "a"
    assert [record.value for record in recorder.records].count("a") == 2  # one is a `join`


async def test_a_value_is_recorded_before_the_program_receives_it() -> None:
    recorder, backend = Recorder(), await Keeping()
    backend.seconds = 1.0
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        text, join, _ = tasks(flow)
        recorder.open.clear()
        part = text("a")
        whole = join(part)
        asked = asyncio.ensure_future(asyncio.wait([part]))
        await within(recorder.begun.wait())
        await asyncio.sleep(0)
        assert not part.done()
        recorder.open.set()
        await within(asked)
        assert part.result() == "a"
        await within(whole)
    assert "a" in recorder.values


@pytest.mark.parametrize(("seconds", "size"), [(0.001, 0), (2.0, 10**9), (2.0, 2000), (2.0, None)])
async def test_values_that_are_not_worth_fetching_stay_and_a_line_says_so(
    seconds: float, size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, backend = Recorder(), await Keeping()
    backend.seconds, backend.size = seconds, size
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        text, join, _ = tasks(flow)
        assert await within(join(text("a"), text("b"))) == "ab"
    assert backend.fetched == []
    assert recorder.values == {"ab"}
    lines = [line for line in caplog.messages if "'text'" in line]
    assert len(lines) == (seconds > 1)


async def test_the_end_of_the_engine_waits_for_values_that_are_being_recorded() -> None:
    recorder, backend = Recorder(), await Keeping()
    backend.seconds = 1.0
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        text, join, _ = tasks(flow)
        backend.open.clear()
        assert await within(join(text("a"), "b")) == "ab"
        asyncio.get_running_loop().call_soon(backend.open.set)
    assert "a" in recorder.values
