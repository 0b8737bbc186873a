"""Decorators of hooks: they mark implementations as `hookimpl` does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rhapsody import NoopExecutionBackend, WorkflowEngine
from rhapsody.errors import PluginError
from rhapsody.plugins import ObservedEngine, Summary, TaskEvent, hooks, specs
from rhapsody.plugins.hooks import Hook
from rhapsody.plugins.manager import EngineHooks, register


def test_each_hook_has_a_decorator() -> None:
    found = {f"rhapsody_{name}" for name, value in vars(hooks).items() if isinstance(value, Hook)}
    assert found == {name for name, value in vars(specs).items() if hasattr(value, "rhapsody_spec")}


class Collector:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @hooks.task_events
    def collect(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        self.seen += [event.state for event in events]

    @hooks.workflow_finished
    async def rhapsody_workflow_finished(self, engine: ObservedEngine, summary: Summary) -> None:
        self.seen.append(engine.uid)


@pytest.mark.asyncio
async def test_marked_methods_are_called() -> None:
    collector = Collector()
    async with (
        asyncio.timeout(30),
        WorkflowEngine.create(NoopExecutionBackend(), observers=[collector]) as flow,
    ):
        await flow.function_task(name="nothing")(lambda: None)()
    assert collector.seen[-2:] == ["DONE", flow.uid]


def test_the_order_can_be_set() -> None:
    class Last:
        @hooks.workflow_started(trylast=True)
        def note(self, engine: ObservedEngine) -> None: ...

    class First:
        @hooks.workflow_started(tryfirst=True)
        def note(self, engine: ObservedEngine) -> None: ...

    class Between:
        @hooks.workflow_started
        def note(self, engine: ObservedEngine) -> None: ...

    called = EngineHooks([Last(), Between(), First()]).workflow_started
    assert [one.plugin.rpartition(".")[2] for one in called] == ["First", "Between", "Last"]


def test_two_implementations_of_a_hook_are_an_error() -> None:
    class Twice:
        @hooks.workflow_started
        def one(self, engine: ObservedEngine) -> None: ...

        @hooks.workflow_started
        def two(self, engine: ObservedEngine) -> None: ...

    with pytest.raises(PluginError, match="rhapsody_workflow_started must be implemented once"):
        register(Twice(), "twice", "plugin twice")


def test_wrong_arguments_are_found_without_a_type_checker() -> None:
    class Wrong:
        @hooks.workflow_started  # type: ignore[arg-type]
        def note(self, motor: ObservedEngine) -> None: ...

    with pytest.raises(PluginError, match="motor"):
        register(Wrong(), "wrong", "plugin wrong")
