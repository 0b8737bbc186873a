"""The hook that sees each description before its backend, and may change it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DependencyFailureError,
    PluginError,
    Resources,
    TaskTimeoutError,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.task import TaskDescription
from tests._support.scripted import RUNS_ALL, Inline, ManualClock, Scripted, within

pytestmark = pytest.mark.asyncio


class Preparing:
    """A plugin with the hook alone.

    Attributes:
        prepare: What it does.
    """

    def __init__(self) -> None:
        self.prepare: Callable[[TaskDescription], object] = lambda task: None

    @hookimpl
    def rhapsody_prepare_task(self, task: TaskDescription) -> None:
        self.prepare(task)


async def test_preparing_sees_the_values_and_may_change_the_description() -> None:
    plugin = Preparing()
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
    plugin = Preparing()

    def prepare(task: TaskDescription) -> None:
        task["executable"] = f"nice {task['executable']}"

    plugin.prepare = prepare
    async with WorkflowEngine.create(backend := Scripted(), observers=[plugin]) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "tool --fast"

        tool()
        assert (await backend.next())["executable"] == "nice tool --fast"
        await flow.shutdown()


async def test_preparing_is_called_once_for_each_attempt() -> None:
    plugin = Preparing()
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
    plugin, clock = Preparing(), ManualClock()
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
        with pytest.raises(PluginError, match=r"no rhapsody\.Resources"):
            await within(call(resources={"cores": 4}))


async def test_preparing_that_raises_fails_its_task_alone() -> None:
    plugin = Preparing()

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
        with pytest.raises(PluginError, match=r"Preparing.*no allocation") as caught:
            await within(bad)
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(DependencyFailureError):
            await within(dependent)
        assert len(backend.ran) == 2
