"""The hooks an engine calls: who is asked, in which order, and what a failure costs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import hookimpl
from rhapsody.errors import PluginError
from rhapsody.plugins import manager, specs
from rhapsody.plugins.manager import EngineHooks, PluginHook
from tests._support.distributions import install, install_backend, python, unique

ENGINE_HOOKS = {
    "rhapsody_workflow_started": ["engine"],
    "rhapsody_workflow_finished": ["engine", "summary"],
    "rhapsody_workflow_not_started": [],
    "rhapsody_program_event": ["time", "name", "uid", "details"],
    "rhapsody_task_calls": ["engine", "calls"],
    "rhapsody_task_events": ["engine", "events"],
    "rhapsody_node_samples": ["engine", "samples"],
    "rhapsody_trace_tasks": ["engine", "tasks"],
    "rhapsody_prepare_task": ["engine", "task"],
    "rhapsody_select_backend": ["engine", "task", "candidates"],
    "rhapsody_lookup_results": ["engine", "tasks"],
    "rhapsody_record_results": ["engine", "records"],
}
ALL_HOOKS = {
    **ENGINE_HOOKS,
    "rhapsody_backends": [],
    "rhapsody_commands": ["cli"],
    "rhapsody_engine_options": [],
    "rhapsody_observers": ["observers", "options", "engine_options", "sources"],
    "rhapsody_preview_results": ["tasks"],
    "rhapsody_run_ended": ["run", "outcome", "exit_code"],
    "rhapsody_run_options": [],
    "rhapsody_run_started": ["run"],
}

PLUGIN = """
from rhapsody import hookimpl

calls = []

@hookimpl
def rhapsody_task_events(events):
    calls.append(events)
    return "{label}"
"""


@pytest.fixture
def site(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manager, "_reported", set())
    return site


def call_all(hooks: EngineHooks, attribute: str, **arguments: Any) -> list[Any]:
    return [hooks.call(hook, **arguments) for hook in getattr(hooks, attribute)]


class Events:
    """An observer that keeps its events."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.seen: list[Any] = []

    @hookimpl
    def rhapsody_task_events(self, events: Any) -> Any:
        self.seen.append(events)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


# The specifications.


def specified() -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(specs).items()
        if hasattr(value, f"{specs.PROJECT}_spec")
    }


def test_the_specified_hooks_and_their_arguments_are_those_of_the_contract() -> None:
    signatures = {name: list(inspect.signature(f).parameters) for name, f in specified().items()}
    assert signatures == ALL_HOOKS


@pytest.mark.parametrize("name", sorted(ALL_HOOKS))
def test_every_hook_says_when_it_is_called_and_what_it_gets(name: str) -> None:
    text = inspect.getdoc(specified()[name]) or ""
    assert "Called" in text
    for argument in ALL_HOOKS[name]:
        assert f"    {argument}: " in text


@pytest.mark.parametrize("name", sorted(ENGINE_HOOKS))
def test_every_engine_hook_reaches_an_observer_with_all_its_arguments(name: str) -> None:
    arguments = ENGINE_HOOKS[name]
    namespace: dict[str, Any] = {}
    exec(f"def {name}(self, {', '.join(arguments)}): return [{', '.join(arguments)}]", namespace)
    observer = type("Observer", (), {name: hookimpl(namespace[name])})()
    hooks = EngineHooks([observer])
    given = {argument: object() for argument in arguments}
    attribute = name.removeprefix("rhapsody_")
    assert call_all(hooks, attribute, **given) == [list(given.values())]
    for other in ENGINE_HOOKS:
        if other != name:
            assert getattr(hooks, other.removeprefix("rhapsody_")) == ()


# Observers.


def test_without_plugins_and_observers_there_is_nothing_to_call() -> None:
    hooks = EngineHooks()
    assert all(getattr(hooks, name.removeprefix("rhapsody_")) == () for name in ENGINE_HOOKS)


def test_observers_are_called_in_the_order_given() -> None:
    hooks = EngineHooks([Events("first"), Events("second"), Events("third")])
    assert call_all(hooks, "task_events", engine=None, events=[]) == ["first", "second", "third"]


def test_tryfirst_and_trylast_go_before_the_order_given() -> None:
    class First(Events):
        @hookimpl(tryfirst=True)
        def rhapsody_task_events(self, events: Any) -> Any:
            return "first"

    class Last(Events):
        @hookimpl(trylast=True)
        def rhapsody_task_events(self, events: Any) -> Any:
            return "last"

    hooks = EngineHooks([Last(), Events("plain"), First()])
    assert call_all(hooks, "task_events", engine=None, events=[]) == ["first", "plain", "last"]


def test_an_observer_given_twice_is_called_once() -> None:
    observer = Events()
    assert len(EngineHooks([observer, observer]).task_events) == 1


def test_observers_that_are_equal_are_both_called() -> None:
    class Equal(Events):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert len(EngineHooks([Equal(), Equal()]).task_events) == 2


@pytest.mark.parametrize("observers", [Events(), "journal", 3, None])
def test_observers_must_be_a_list_of_objects(observers: Any) -> None:
    with pytest.raises(TypeError, match="observers must be a list of objects"):
        EngineHooks(observers)


def test_an_observer_that_is_a_class_is_refused() -> None:
    with pytest.raises(TypeError, match="got the class Events"):
        EngineHooks([Events])


def test_an_observer_without_hooks_is_refused() -> None:
    with pytest.raises(PluginError, match=r"implements no Rhapsody hook.*@rhapsody\.hookimpl"):
        EngineHooks([object()])


def test_a_hook_with_an_unknown_argument_is_refused_with_its_name() -> None:
    class Wrong:
        @hookimpl
        def rhapsody_task_events(self, evnts: Any) -> None: ...

    with pytest.raises(PluginError, match="evnts"):
        EngineHooks([Wrong()])


def test_a_misspelt_hook_is_refused_with_its_name() -> None:
    class Wrong:
        @hookimpl
        def rhapsody_task_event(self, events: Any) -> None: ...

    with pytest.raises(PluginError, match="rhapsody_task_event"):
        EngineHooks([Wrong()])


def test_a_coroutine_function_is_refused_for_synchronous_hooks() -> None:
    class Wrong:
        @hookimpl
        async def rhapsody_task_events(self, events: Any) -> None: ...

    with pytest.raises(PluginError, match="called synchronously"):
        EngineHooks([Wrong()])


def test_recording_may_be_a_coroutine_function() -> None:
    class Store:
        @hookimpl
        async def rhapsody_record_results(self, records: Any) -> Any:
            return records

    hooks = EngineHooks([Store()])
    (awaitable,) = call_all(hooks, "record_results", engine=None, records=[1])
    assert asyncio.run(awaitable) == [1]


def test_a_wrapper_is_refused() -> None:
    class Wrong:
        @hookimpl(wrapper=True)
        def rhapsody_task_events(self, events: Any) -> Any:
            yield

    with pytest.raises(PluginError, match="wrapper"):
        EngineHooks([Wrong()])


# Failures when called.


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit("no"), asyncio.CancelledError("no")], ids=repr
)
def test_a_raising_hook_is_reported_once_and_the_next_is_still_called(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    after = Events("after")
    hooks = EngineHooks([Events(error), after])
    with caplog.at_level(logging.ERROR, "rhapsody.plugins"):
        for _ in range(3):
            assert call_all(hooks, "task_events", engine=None, events=[1]) == [None, "after"]
    assert after.seen == [[1]] * 3
    assert len(caplog.records) == 1
    assert "Events" in caplog.text
    assert "rhapsody_task_events" in caplog.text
    assert vars(caplog.records[0])["hook"] == "rhapsody_task_events"


def test_ctrl_c_inside_a_hook_is_not_swallowed() -> None:
    hooks = EngineHooks([Events(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        call_all(hooks, "task_events", engine=None, events=[])


# Plugins that are installed.


def test_plugins_of_both_groups_and_objects_in_modules_are_called(site: Path) -> None:
    module, holder, backend = unique("module"), unique("holder"), unique("backend")
    install(
        site,
        "in-module",
        plugins={"x": module},
        modules={module: PLUGIN.format(label="module")},
    )
    source = """
    from rhapsody import hookimpl

    class Plugin:
        @hookimpl
        def rhapsody_task_events(self, events):
            return "object"

    class Box:
        plugin = Plugin()
    """
    install(site, "in-object", plugins={"x": f"{holder}:Box.plugin"}, modules={holder: source})
    install(
        site,
        "with-backend",
        backends={"x": backend},
        modules={backend: PLUGIN.format(label="backend")},
    )
    hooks = EngineHooks([Events("observer")])
    mine = [
        h for h in hooks.task_events if h.plugin.startswith(("in-", "with-")) or "E" in h.plugin
    ]
    assert [hooks.call(hook, engine=None, events=[]) for hook in mine] == [
        "observer", "module", "object", "backend",
    ]  # fmt: skip
    assert [hook.plugin for hook in mine[1:]] == ["in-module", "in-object", "with-backend"]


def test_a_module_that_several_entry_points_name_is_registered_once(site: Path) -> None:
    module = unique("module")
    install(
        site,
        "several",
        backends={"a": module, "b": module},
        plugins={"c": module},
        modules={module: PLUGIN.format(label="once")},
    )
    assert len([hook for hook in EngineHooks().task_events if hook.plugin == "several"]) == 1


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        ("raise ImportError('no library')", "{m}", "ImportError: no library"),
        ("import sys; sys.exit('bye')", "{m}", "SystemExit: bye"),
        ("raise BaseException('odd')", "{m}", "BaseException: odd"),
        ("1 / 0", "{m}", "ZeroDivisionError"),
        ("def broken(:", "{m}", "SyntaxError"),
        ("", "{m}", "implements no Rhapsody hook"),
        ("", "{m}:missing", "missing"),
        ("", "no_such_module_at_all", "no_such_module_at_all"),
        ("", "not a module!!", "not a module"),
        ("plugin = None", "{m}:plugin", "implements no Rhapsody hook"),
        ("class Plugin: ...", "{m}:Plugin", "got the class"),
        (
            "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_task_events(wrong): ...",
            "{m}",
            "wrong",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_left_out_and_reported_once(
    site: Path, caplog: pytest.LogCaptureFixture, source: str, value: str, reason: str
) -> None:
    module, good = unique("broken"), unique("good")
    install(site, "broken-one", plugins={"x": value.format(m=module)}, modules={module: source})
    install(site, "good-one", plugins={"x": good}, modules={good: PLUGIN.format(label="good")})
    with caplog.at_level(logging.ERROR, "rhapsody.plugins"):
        for _ in range(2):
            hooks = EngineHooks()
            assert "good-one" in [hook.plugin for hook in hooks.task_events]
            assert "broken-one" not in [hook.plugin for hook in hooks.task_events]
    records = [one for one in caplog.records if vars(one).get("plugin") == "broken-one"]
    assert len(records) == 1
    message = records[0].getMessage()
    assert reason in message
    assert "broken-one 1.0" in message
    assert message.endswith("pip uninstall broken-one")


def test_ctrl_c_while_a_plugin_is_imported_is_not_swallowed(site: Path) -> None:
    module = unique("interrupted")
    install(site, "interrupted", plugins={"x": module}, modules={module: "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        EngineHooks()


def test_a_broken_module_is_imported_once_although_many_engines_ask(site: Path) -> None:
    module = unique("broken")
    counter = site / "count"
    source = f"with open({str(counter)!r}, 'a') as file: file.write('x')\nraise ImportError"
    install(site, "counted", plugins={"x": module}, modules={module: source})
    for _ in range(3):
        EngineHooks()
    assert counter.read_text() == "x"


def test_a_plugin_that_makes_an_engine_while_it_is_imported_does_not_recurse(site: Path) -> None:
    module = unique("recursive")
    source = "from rhapsody.plugins.manager import EngineHooks\nEngineHooks()\n" + PLUGIN.format(
        label="recursive"
    )
    install(site, "recursive", plugins={"x": module}, modules={module: source})
    assert "recursive" in [hook.plugin for hook in EngineHooks().task_events]


def test_backend_classes_are_not_imported_for_an_engine(site: Path) -> None:
    light, heavy = install_backend(site, "light-plugin", "lightly")
    EngineHooks()
    assert light in sys.modules
    assert heavy not in sys.modules


def test_core_s_own_plugin_module_is_not_imported_for_an_engine() -> None:
    code = """
    from rhapsody.plugins.manager import EngineHooks
    EngineHooks()
    assert "rhapsody.backends.plugin" not in sys.modules
    assert "typeguard" not in sys.modules
    """
    done = python(code, environment={"RHAPSODY_DISABLE_PLUGINS": "all"})
    assert done.returncode == 0, done.stderr


def test_a_plugin_hook_tells_its_plugin_and_hook() -> None:
    (hook,) = EngineHooks([Events()]).task_events
    assert isinstance(hook, PluginHook)
    assert hook.plugin.endswith("Events")
    assert hook.hook == "rhapsody_task_events"
