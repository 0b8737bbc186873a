"""Tests of the descriptions of calls for observers, and of the data of attempts that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rhapsody import OutputFile, RetryPolicy, TasksMainStates, WorkflowEngine, hookimpl
from rhapsody.plugins.specs import TaskCall
from rhapsody_testing import EventRecorder
from tests._support.scripted import Inline, Scripted, turns, within

pytestmark = pytest.mark.asyncio

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED


class Calls:
    """Observer that stores calls and the uids of events, in order."""

    def __init__(self) -> None:
        self.calls: list[TaskCall] = []
        self.order: list[tuple[str, str]] = []

    @hookimpl
    def rhapsody_task_calls(self, calls: Sequence[TaskCall]) -> None:
        self.calls += calls
        self.order += [("call", call.uid) for call in calls]

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[Any]) -> None:
        self.order += [("event", event.uid) for event in events]

    @property
    def texts(self) -> list[str]:
        return [call.call for call in self.calls]


class OnlyCalls:
    """Observer of calls alone."""

    def __init__(self) -> None:
        self.uids: list[str] = []

    @hookimpl
    def rhapsody_task_calls(self, calls: Sequence[TaskCall]) -> None:
        self.uids += [call.uid for call in calls]


async def test_every_call_is_described_before_its_first_event() -> None:
    calls, only, recorder = Calls(), OnlyCalls(), EventRecorder()
    async with WorkflowEngine.create(Inline(), observers=[calls, only, recorder]) as flow:
        task = flow.function_task(name="part")(lambda x: x)

        @flow.block
        async def around() -> Any:
            async with flow.scope("outer"):
                return await task(task(3))

        await asyncio.gather(task(1), around())
    assert calls.texts == ["part(1)", "around()", "part(3)", "part(<task.000002>)"]
    assert only.uids == [call.uid for call in calls.calls]
    assert recorder.calls == calls.calls
    for uid in only.uids:
        assert calls.order.index(("call", uid)) < calls.order.index(("event", uid))
    first, block, inner, last = calls.calls
    assert (first.kind, first.name, first.block, first.scope) == ("function", "part", None, None)
    assert (block.kind, block.uid) == ("block", "block.000001")
    assert (inner.block, inner.scope) == ("block.000001", "outer")
    assert last.dependencies == ("task.000002",)
    assert first.time <= last.time


async def test_an_observer_of_calls_alone_receives_them() -> None:
    only = OnlyCalls()
    async with WorkflowEngine.create(Inline(), observers=[only]) as flow:
        await flow.function_task(lambda: 1)()
    assert only.uids == ["task.000001"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((1, 2.5, True, None, "short"), "1, 2.5, True, None, 'short'"),
        ((10**100,), "100000000000000000...0000000000000000000"),
        (("x" * 100,), "'xxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx'"),
        (([1, 2, 3, 4, 5, 6, 7, 8],), "[1, 2, 3, 4, 5, 6, ...]"),
        ((object(),), "<object>"),
        ((float("nan"), -0.0, "'"), 'nan, -0.0, "\'"'),
    ],
    ids=["short", "integer", "string", "list", "object", "floats"],
)
async def test_arguments_are_shortened(args: tuple[Any, ...], text: str) -> None:
    calls = Calls()
    async with WorkflowEngine.create(Inline(), observers=[calls]) as flow:
        await flow.function_task(name="f")(lambda *_: None)(*args)
    assert calls.texts == [f"f({text})"]


async def test_many_arguments_are_cut() -> None:
    calls = Calls()
    async with WorkflowEngine.create(Inline(), observers=[calls]) as flow:
        await flow.function_task(name="f")(lambda *_: None)(*range(1000))
    (text,) = calls.texts
    assert text.endswith("...)")
    assert len(text) < 220


async def test_settings_and_resources_that_differ_from_the_defaults_are_described() -> None:
    calls = Calls()

    def fallback(error: BaseException) -> None: ...

    async with WorkflowEngine.create(Scripted(), observers=[calls]) as flow:
        settings: dict[str, Any] = {
            "resources": {"cores": 2, "memory": "1 GiB"},
            "retries": [RetryPolicy(2, wait=1.5, on=OSError)],
            "environment": {"TOKEN": "a-secret-value"},
            "limit": "license:2",
            "fallback": fallback,
            "timeout": "1 min",
            "cache": False,
        }
        futures: list[Any] = [
            flow.function_task(name="f", **settings)(lambda: None)(),
            flow.executable_task(stdin="a-secret-input", retries=3)(lambda: "true")(),
            flow.function_task(lambda: None)(),
        ]
        await turns()
        for future in futures:
            future.cancel()
    first, second, third = calls.calls
    assert first.resources == {"cores": 2, "memory": 1 << 30}
    assert first.settings == {
        "retries": [{"attempts": 2, "wait": 1.5, "on": ["OSError"]}],
        "environment": ["TOKEN"],
        "limit": ["license:2"],
        "fallback": f"<function {fallback.__qualname__}>",
        "timeout": 60.0,
        "cache": False,
    }
    assert first.masked("it was a-secret-value") == "it was <TOKEN>"
    assert second.settings == {"stdin": "<14 characters>", "retries": 3}
    assert (third.resources, third.settings) == ({}, {})
    assert third.masked("it was a-secret-value") == "it was <TOKEN>"  # the name looks secret


async def test_secrets_in_backend_specific_settings_are_masked() -> None:
    calls = Calls()
    async with WorkflowEngine.create(Inline(), observers=[calls]) as flow:
        task: Any = flow.function_task(name="f", task_description={"queue": "long", "API_KEY": "x"})
        future = task(lambda: None)(task_description={"queue": "short"})
        await asyncio.wait([future])
    assert calls.calls[0].settings["task_description"] == {
        "queue": "'short'",
        "API_KEY": "<API_KEY>",
    }


async def test_secrets_of_the_process_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "open-sesame")
    calls = Calls()
    async with WorkflowEngine.create(Inline(), observers=[calls]) as flow:
        await flow.function_task(name="f")(lambda *_: None)("use open-sesame", ["open-sesame"])
    assert calls.texts == ["f('use <DATABASE_PASSWORD>', ['<DATABASE_PASSWORD>'])"]
    assert calls.calls[0].masked("open-sesame!") == "<DATABASE_PASSWORD>!"


# Ends of attempts.


async def test_the_event_of_a_failed_attempt_that_is_retried_keeps_its_worker() -> None:
    events, backend = EventRecorder(), Scripted()
    async with WorkflowEngine.create(backend, observers=[events], retries=1) as flow:
        future = flow.executable_task(lambda: "true")()
        for attempt in (1, 2):
            task = await backend.next()
            task["worker"] = f"node{attempt}"
            backend.runs(task)
            if attempt == 1:
                task["exit_code"], task["stdout"], task["stderr"] = 3, "", "no"
                backend.report(task, FAILED)
            else:
                backend.done(task, "yes")
        await within(future)
        await turns()
    failed, done = (event for event in events.of(future) if event.state in (FAILED, DONE))
    assert (failed.worker, failed.attempt, failed.retried) == ("node1", 1, True)
    assert failed.sandbox is not None
    assert failed.sandbox.endswith(".1")
    assert (failed.exit_code, failed.stderr) == (3, "no")
    assert (done.worker, done.attempt, done.retried) == ("node2", 2, False)
    assert (done.exit_code, done.stdout) == (0, "yes")


async def test_an_attempt_without_output_does_not_show_that_of_the_previous_one() -> None:
    events, backend = EventRecorder(), Scripted()
    async with WorkflowEngine.create(backend, observers=[events], retries=1) as flow:
        future = flow.function_task(lambda: None)()
        task = await backend.next()
        task["stdout"], task["usage"] = "printed", {"cpu_seconds": 1.0}
        backend.failed(task, ValueError("first"))
        backend.failed(await backend.next(), ValueError("second"))
        with pytest.raises(ValueError, match="second"):
            await within(future)
        await turns()
    first, second = (event for event in events.of(future) if event.state is FAILED)
    assert (first.stdout, first.usage) == ("printed", {"cpu_seconds": 1.0})
    assert (second.stdout, second.usage) == (None, None)


@pytest.mark.parametrize("usage", [None, {"cpu_seconds": 0.5, "read_bytes": 7}])
async def test_used_resources_reach_the_event_and_the_future(
    usage: Mapping[str, Any] | None,
) -> None:
    events, backend = EventRecorder(), Scripted()
    async with WorkflowEngine.create(backend, observers=[events]) as flow:
        future = flow.function_task(lambda: 0)()
        task = await backend.next()
        if usage is not None:
            task["usage"] = usage  # type: ignore[typeddict-item]
        backend.done(task, 1)
        assert await within(future) == 1
        await turns()
        assert future.usage == usage
    assert events.of(future)[-1].usage == usage


async def test_files_reach_the_event(here: Any) -> None:
    events = EventRecorder()
    async with WorkflowEngine.create(observers=[events]) as flow:

        @flow.executable_task(capture="files")
        async def write(out: OutputFile, kept: OutputFile) -> str:
            return f"echo printed; touch {out} {kept}"

        future = write(OutputFile("one.txt"), OutputFile("saved/two.txt"))
        await future
        await turns()
        files = events.of(future)[-1].files
    assert files is not None
    assert files.outputs["two.txt"] == str(here / "saved" / "two.txt")
    assert files.outputs["one.txt"].startswith(str(flow.work_dir))
    assert files.stdout is not None
    assert files.stdout.endswith(".rhapsody.stdout")
