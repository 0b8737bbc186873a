"""Tests of the decisions of plugins, and of the order of their hooks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DependencyFailureError,
    InputFile,
    PluginError,
    Resources,
    TaskTimeoutError,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.plugins.specs import Record, Recorded
from rhapsody.task import TaskDescription
from tests._support.scripted import RUNS_ALL, Inline, ManualClock, Scripted, outcome, until, within

pytestmark = pytest.mark.asyncio


class Observer:
    """An observer that records the hook calls and returns prepared answers.

    Attributes:
        asked: Each call: the hook, and what it was about.
        prepare, select, lookup: Answers: called with what the hook got.
    """

    def __init__(self, asked: list[Any] | None = None) -> None:
        self.asked: list[Any] = [] if asked is None else asked
        self.prepare: Any = lambda task: None
        self.select: Any = lambda task, candidates: None
        self.lookup: Any = lambda tasks: None

    @hookimpl
    def rhapsody_prepare_task(self, task: TaskDescription) -> None:
        self.asked.append(("prepare", task["name"]))
        self.prepare(task)

    @hookimpl
    def rhapsody_select_backend(self, task: TaskDescription, candidates: Sequence[str]) -> Any:
        self.asked.append(("select", task["name"]))
        return self.select(task, candidates)

    @hookimpl
    def rhapsody_lookup_results(self, tasks: Sequence[TaskDescription]) -> Any:
        self.asked.append(("look up", *[task["name"] for task in tasks]))
        return self.lookup(tasks)

    @hookimpl
    def rhapsody_record_results(self, records: Sequence[Record]) -> None:
        self.asked.append(("record", *[record.task["name"] for record in records]))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


async def test_the_order_for_a_task_is_fixed(tmp_path: Path) -> None:
    said: list[Any] = []

    class Files(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            said.append(("submit", *[task["name"] for task in tasks]))
            await super().submit_tasks(tasks)

        def link_explicit_data_deps(
            self,
            src_task: Any = None,
            dst_task: Any = None,
            file_name: Any = None,
            file_path: Any = None,
        ) -> None:
            said.append(("link", dst_task["name"]))

    capable = dataclasses.replace(RUNS_ALL, files=True, sandboxes=True)
    one, two = Files("one", capable), Files("two", capable)
    (tmp_path / "data.txt").write_text("data")
    async with WorkflowEngine.create([one, two], observers=[Observer(said)]) as flow:

        @flow.executable_task
        async def first() -> str:
            return "true"

        @flow.executable_task
        async def second(x: str, data: InputFile) -> str:
            said.append(("build", "second"))
            return "true"

        @flow.executable_task
        async def third(x: str) -> str:
            return "true"

        def reveal(name: str, _: asyncio.Future[Any]) -> None:
            said.append(("reveal", name))

        futures: list[asyncio.Future[Any]] = [first()]
        futures += [second(futures[0], InputFile(str(tmp_path / "data.txt")))]
        futures += [third(futures[1])]
        for future, name in zip(futures, ("first", "second", "third"), strict=True):
            future.add_done_callback(partial(reveal, name))
        for _ in futures:
            task = await one.next()
            said.append(("update", task["name"]))
            task["stdout"], task["stderr"], task["exit_code"] = "", "", 0
            one.report(task, "DONE")
        await within(asyncio.gather(*futures))
    about = [event for event in said if event[1] == "second"]
    assert [event[0] for event in about if event[0] != "build"] == [
        "prepare",
        "select",
        "look up",
        "link",
        "submit",
        "update",
        "record",
        "reveal",
    ]
    assert said.index(("reveal", "first")) < said.index(("build", "second"))
    assert said.index(("build", "second")) < said.index(("prepare", "second"))
    assert said.index(("record", "first")) < said.index(("prepare", "second"))
    assert said.index(("record", "second")) < said.index(("prepare", "third"))


# Selecting.


async def test_selecting_chooses_among_several_backends_default_first() -> None:
    observer = Observer()
    seen = []

    def select(task: TaskDescription, candidates: Sequence[str]) -> str | None:
        seen.append(list(candidates))
        return {"to two": "two", "to one": "one"}.get(task["name"])

    observer.select = select
    one, two = Inline("one"), Inline("two")
    async with WorkflowEngine.create([one, two], observers=[observer]) as flow:

        @flow.function_task
        def part() -> None: ...

        futures = [part.options(name=name)() for name in ("to one", "to two", "undecided")]
        await within(asyncio.gather(*futures))
        assert [future.backend for future in futures] == ["one", "two", "one"]
        assert (one.ran, two.ran) == (["to one", "undecided"], ["to two"])
        assert seen == [["one", "two"]] * 3


async def test_a_task_that_names_a_backend_goes_there_unasked() -> None:
    observer = Observer()
    observer.select = lambda task, candidates: "one"
    one, two = Inline("one"), Inline("two")
    async with WorkflowEngine.create([one, two], observers=[observer]) as flow:

        @flow.function_task(backend="two")
        def part() -> None: ...

        future = part()
        await within(future)
        assert future.backend == "two"
        assert ("select", "part") not in observer.asked


async def test_with_one_backend_no_plugin_selects() -> None:
    async with WorkflowEngine.create(Inline(), observers=[observer := Observer()]) as flow:

        @flow.function_task
        def part() -> None: ...

        await within(part())
        assert [hook for hook, *_ in observer.asked] == ["prepare", "look up", "record"]


async def test_the_first_plugin_that_answers_wins() -> None:
    silent, first, second = Observer(), Observer(), Observer()
    first.select = lambda task, candidates: "two"
    second.select = lambda task, candidates: "one"
    backends = [Inline("one"), Inline("two")]
    async with WorkflowEngine.create(backends, observers=[silent, first, second]) as flow:

        @flow.function_task
        def part() -> None: ...

        future = part()
        await within(future)
        assert future.backend == "two"
        assert ("select", "part") in silent.asked
        assert ("select", "part") not in second.asked


async def test_candidates_are_those_that_can_run_the_task() -> None:
    observer = Observer()
    seen = []

    def select(task: TaskDescription, candidates: Sequence[str]) -> str:
        seen.append(list(candidates))
        return candidates[0]

    observer.select = select
    functions, both = Inline("functions"), Scripted(name="both")
    async with WorkflowEngine.create([functions, both], observers=[observer]) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "tool"

        future = tool()
        task = await both.next()
        task["stdout"], task["stderr"], task["exit_code"] = "", "", 0
        both.report(task, "DONE")
        await within(future)
        assert future.backend == "both"
        assert seen == [["both"]]
        with pytest.raises(CapabilityError, match="functions"):
            await within(tool.options(backend="functions")())


async def test_a_plugin_that_selects_nonsense_or_raises_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Nonsense(Observer):
        """Plugin with its own name in reports."""

    nonsense, broken = Nonsense(), Observer()
    nonsense.select = lambda task, candidates: "three"
    broken.select = lambda task, candidates: 1 / 0
    backends = [Inline("one"), Inline("two")]
    async with WorkflowEngine.create(backends, observers=[broken, nonsense]) as flow:

        @flow.function_task
        def part() -> None: ...

        futures = [part() for _ in range(10)]
        await within(asyncio.gather(*futures))
        assert {future.backend for future in futures} == {"one"}
    messages = errors(caplog)
    assert len([m for m in messages if "ZeroDivisionError" in m]) == 1
    assert len([m for m in messages if "three" in m]) == 1
    assert len(messages) == 2


# Looking up.


async def test_a_result_that_is_found_takes_the_place_of_running() -> None:
    observer = Observer()

    def lookup(tasks: Sequence[TaskDescription]) -> list[Recorded | None]:
        return [Recorded(task["args"][0] * 10) if task["args"][0] % 2 else None for task in tasks]

    observer.lookup = lookup
    async with WorkflowEngine.create(backend := Inline(), observers=[observer]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        futures = flow.map(part, range(6))
        total = part(futures[3])
        assert await within(asyncio.gather(*futures, total)) == [0, 10, 2, 30, 4, 50, 30]
        assert len(backend.ran) == 4
        assert flow.stats.recorded == 3
        assert observer.asked.count(("look up", *["part"] * 6)) == 1
        recorded = [name for hook, *names in observer.asked if hook == "record" for name in names]
        assert len(recorded) == 4


async def test_a_recorded_none_is_a_result() -> None:
    observer = Observer()
    observer.lookup = lambda tasks: [Recorded(None) for _ in tasks]
    async with WorkflowEngine.create(backend := Inline(), observers=[observer]) as flow:

        @flow.function_task
        def part(x: Any = 0) -> Any:
            raise AssertionError("it must not run")

        assert await within(part(part())) is None
        assert backend.ran == []
        assert flow.stats.recorded == 2


async def test_plugins_are_asked_in_turn_for_what_was_not_found() -> None:
    silent, first, second = Observer(), Observer(), Observer()
    first.lookup = lambda tasks: [
        Recorded("first") if task["name"] == "a" else None for task in tasks
    ]
    second.lookup = lambda tasks: [
        Recorded(None) if task["name"] == "b" else None for task in tasks
    ]
    observers = [silent, first, second]
    async with WorkflowEngine.create(backend := Inline(), observers=observers) as flow:

        @flow.function_task
        def part() -> str:
            return "ran"

        futures = [part.options(name=name)() for name in "abc"]
        assert await within(asyncio.gather(*futures)) == ["first", None, "ran"]
        assert backend.ran == ["c"]
        assert ("look up", "a", "b", "c") in silent.asked
        assert ("look up", "b", "c") in second.asked


@pytest.mark.parametrize("answer", [[], [Recorded(1)] * 5, "nonsense", [7, 7], 7])
async def test_a_look_up_that_answers_nonsense_is_reported_and_the_tasks_run(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    observer = Observer()
    observer.lookup = lambda tasks: answer
    async with WorkflowEngine.create(Inline(), observers=[observer]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        for _ in range(2):
            assert await within(asyncio.gather(*flow.map(part, [1, 2]))) == [1, 2]
    assert len(errors(caplog)) == 1


async def test_a_look_up_that_raises_is_reported_and_the_next_plugin_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, good = Observer(), Observer()
    broken.lookup = lambda tasks: 1 / 0
    good.lookup = lambda tasks: [Recorded("found") for _ in tasks]
    async with WorkflowEngine.create(backend := Inline(), observers=[broken, good]) as flow:

        @flow.function_task
        def part() -> str:
            return "ran"

        for _ in range(3):
            assert await within(part()) == "found"
        assert backend.ran == []
    messages = errors(caplog)
    assert len(messages) == 1
    assert "Observer" in messages[0]


async def test_a_task_without_cache_is_neither_looked_up_nor_recorded() -> None:
    observer = Observer()
    observer.lookup = lambda tasks: [Recorded("found") for _ in tasks]
    async with WorkflowEngine.create(Inline(), observers=[observer]) as flow:

        @flow.function_task(cache=False)
        def part() -> str:
            return "ran"

        assert await within(part()) == "ran"
        assert [hook for hook, *_ in observer.asked] == ["prepare"]


async def test_looking_up_waits_for_the_values_of_the_dependencies() -> None:
    observer = Observer()
    seen: list[Any] = []
    observer.lookup = lambda tasks: seen.extend(task["args"] for task in tasks)
    async with WorkflowEngine.create(backend := Scripted(), observers=[observer]) as flow:

        @flow.function_task
        def part(x: Any = 0) -> Any: ...

        second = part(part())
        task = await backend.next()
        assert seen == [()]
        backend.done(task, "value")
        backend.done(await backend.next(), 1)
        await within(second)
        assert seen == [(), ("value",)]


async def test_a_result_that_is_found_needs_no_backend_that_could_run_it() -> None:
    """Selecting comes before looking up, so a task that no backend can run still fails."""
    observer = Observer()
    observer.lookup = lambda tasks: [Recorded("found") for _ in tasks]
    async with WorkflowEngine.create(Inline(), observers=[observer]) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "tool"

        future = tool()
        await within(asyncio.wait([future]))
        await until(lambda: not flow.components)
        assert isinstance(future.exception(), CapabilityError)


# Preparing.


async def test_preparing_sees_the_values_and_may_change_the_description() -> None:
    plugin = Observer()
    seen: list[Any] = []

    def prepare(task: TaskDescription) -> None:
        seen.append((task["args"], dict(task["kwargs"])))
        task["args"] = (100,)
        task["kwargs"] = {"y": 20}
        task["environment"] = {"MODE": "fast"}
        task["task_backend_specific_kwargs"]["queue"] = "short"

    async with WorkflowEngine.create(backend := Scripted(), observers=[plugin]) as flow:

        @flow.function_task
        def part(x: int = 0, y: int = 0) -> Any: ...

        first = part()
        backend.done(await backend.next(), 7)
        await within(first)
        plugin.prepare = prepare
        second = part(first, y=2)
        task = await backend.next()
        assert seen == [((7,), {"y": 2})]
        assert (task["args"], task["kwargs"]) == ((100,), {"y": 20})
        assert task["environment"] == {"MODE": "fast"}
        assert task["task_backend_specific_kwargs"] == {"queue": "short"}
        backend.done(task, 1)
        assert await within(second) == 1
        plugin.prepare = lambda task: None
        part()
        assert (await backend.next())["task_backend_specific_kwargs"] == {}
        await flow.shutdown()


async def test_preparing_may_change_an_executables_command() -> None:
    plugin = Observer()

    def prepare(task: TaskDescription) -> None:
        task["executable"] = f"nice {task['executable']}"

    plugin.prepare = prepare
    async with WorkflowEngine.create(backend := Scripted(), observers=[plugin]) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "tool --fast"

        tool()
        assert (await backend.next())["arguments"][-1].endswith("nice tool --fast")
        await flow.shutdown()


async def test_preparing_is_called_once_for_each_attempt() -> None:
    plugin = Observer()
    attempts = []
    plugin.prepare = lambda task: attempts.append((task["uid"], task["attempt"]))
    async with WorkflowEngine.create(backend := Scripted(), observers=[plugin]) as flow:

        @flow.function_task(retries=1)
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError())
        backend.done(await backend.next(), 1)
        await within(future)
        uid = f"{flow.uid}.task.000001"
        assert attempts == [(f"{uid}.1", 1), (f"{uid}.2", 2)]


async def test_preparing_may_set_a_time_out_and_resources() -> None:
    plugin, clock = Observer(), ManualClock()
    backend = Scripted(capabilities=dataclasses.replace(RUNS_ALL, resources=frozenset()))

    def prepare(task: TaskDescription) -> None:
        given: dict[str, Any] = task["task_backend_specific_kwargs"]
        task.update(given)  # type: ignore[typeddict-item]

    plugin.prepare = prepare
    async with WorkflowEngine.create(backend, observers=[plugin], clock=clock) as flow:

        def call(**settings: Any) -> Any:
            def part() -> Any: ...

            return flow.function_task(task_description=settings)(part)()

        limited = call(timeout=10)
        backend.runs(await backend.next())
        await clock.advance(10.1)
        with pytest.raises(TaskTimeoutError):
            await within(limited)
        with pytest.raises(CapabilityError, match="cores=4"):
            await within(call(resources=Resources(cores=4)))
        with pytest.raises(PluginError, match=r"invalid timeout.*'soon'"):
            await within(call(timeout="soon"))
        with pytest.raises(PluginError, match=r"not a rhapsody\.Resources"):
            await within(call(resources={"cores": 4}))


async def test_preparing_that_raises_fails_its_task_alone() -> None:
    plugin = Observer()

    def prepare(task: TaskDescription) -> None:
        if task["args"] == ("bad",):
            raise LookupError("no allocation for this one")

    plugin.prepare = prepare
    async with WorkflowEngine.create(backend := Inline(), observers=[plugin]) as flow:

        @flow.function_task
        def part(x: Any) -> Any:
            return x

        good, bad, other = part("good"), part("bad"), part("other")
        dependent = part(bad)
        assert await within(asyncio.gather(*[good, other])) == ["good", "other"]
        with pytest.raises(PluginError, match=r"Observer.*no allocation") as caught:
            await within(bad)
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(DependencyFailureError):
            await within(dependent)
        assert len(backend.ran) == 2


# Recording.


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
