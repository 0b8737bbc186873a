"""Backends that a program registers itself, by class or import path."""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from rhapsody import BackendRegistry, WorkflowEngine, discover_backends, get_backend
from rhapsody.backends import Capabilities
from tests._support.distributions import BACKEND, install_backend
from tests._support.registry import Mine, Other

pytestmark = pytest.mark.usefixtures("unregistered")


@pytest.mark.parametrize("path", [f"{Mine.__module__}.Mine", f"{Mine.__module__}:Mine"])
def test_an_import_path_is_registered(path: str) -> None:
    BackendRegistry.register_backend("Run-Time", path)
    assert "Run-Time" in BackendRegistry.list_backends()
    assert discover_backends()["Run-Time"] is True
    assert BackendRegistry.get_backend_class("run_time").__name__ == "Mine"


def test_a_class_is_registered_and_unregistered() -> None:
    BackendRegistry.register_backend("run_time", Mine)
    assert BackendRegistry.get_backend_class("run_time") is Mine
    assert BackendRegistry.describe("run_time").capabilities == Mine.capabilities
    BackendRegistry.unregister_backend("RUN-TIME")
    assert "run_time" not in BackendRegistry.list_backends()
    with pytest.raises(ValueError, match="Backend 'run_time' not found"):
        BackendRegistry.unregister_backend("run_time")


def test_registering_the_same_again_is_harmless_and_another_is_refused() -> None:
    BackendRegistry.register_backend("run_time", Mine)
    BackendRegistry.register_backend("Run-Time", Mine)
    with pytest.raises(ValueError, match=r"'run_time' is taken by .*:Mine"):
        BackendRegistry.register_backend("run_time", Other)
    assert BackendRegistry.get_backend_class("run_time") is Mine


def cell(number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the class that a notebook's cell defines, which is executed again each time."""
    source = BACKEND.format(name="mine") + f"    speed = {number}\n"
    module = types.ModuleType("a_notebook")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    return module.__dict__["Backend"]


def test_a_class_that_was_defined_anew_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cell(1, monkeypatch)
    BackendRegistry.register_backend("run_time", first)
    second = cell(2, monkeypatch)
    with pytest.raises(ValueError, match="taken by an earlier definition of a_notebook:Backend"):
        BackendRegistry.register_backend("run_time", second)
    with pytest.raises(ValueError, match=r"call BackendRegistry.unregister_backend\('run_time'\)"):
        BackendRegistry.register_backend("run_time", "a_notebook.Backend")
    assert BackendRegistry.get_backend_class("run_time") is first
    BackendRegistry.unregister_backend("run_time")
    BackendRegistry.register_backend("run_time", second)
    assert BackendRegistry.get_backend_class("run_time") is second


def test_a_path_and_the_class_that_it_names_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    current = cell(1, monkeypatch)
    monkeypatch.setattr(sys.modules["a_notebook"], "Again", current, raising=False)
    for path in ("a_notebook.Backend", "a_notebook:Again"):
        BackendRegistry.register_backend("by_path", path)
        BackendRegistry.register_backend("by_path", current)
        BackendRegistry.unregister_backend("by_path")
        BackendRegistry.register_backend("by_class", current)
        BackendRegistry.register_backend("by_class", path)
        with pytest.raises(ValueError, match="is taken by a_notebook:Backend"):
            BackendRegistry.register_backend("by_class", "a_notebook:Nothing")


def test_an_installed_backend_and_its_class_are_the_same(site: Path) -> None:
    _, heavy = install_backend(site, "toys", "toy")
    BackendRegistry.register_backend("toy", BackendRegistry.get_backend_class("toy"))
    reloaded = importlib.reload(sys.modules[heavy]).Backend
    BackendRegistry.register_backend("toy", reloaded)


def test_a_name_of_an_installed_backend_is_taken(site: Path) -> None:
    _, heavy = install_backend(site, "toys", "toy")
    with pytest.raises(ValueError, match="'toy' is taken by toys"):
        BackendRegistry.register_backend("toy", Mine)
    BackendRegistry.register_backend("toy", f"{heavy}.Backend")  # is what it is already
    assert BackendRegistry.describe("toy").distribution == "toys"
    with pytest.raises(ValueError, match="comes with a distribution"):
        BackendRegistry.unregister_backend("toy")


@pytest.mark.parametrize("name", ["noop", "LOCAL"])
def test_core_s_names_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match="is taken by rhapsody-core"):
        BackendRegistry.register_backend(name, Mine)


@pytest.mark.parametrize(
    "path",
    ["", "Class", "a..b", ".a.b", "a.b.", "a:b:c", "a:", ":b", "a b.c", "a.1b", "a.class", "a/b.c"],
)
def test_a_malformed_import_path_is_a_value_error(path: str) -> None:
    with pytest.raises(ValueError, match=r"must be 'package\.module:Class'"):
        BackendRegistry.register_backend("run_time", path)
    assert "run_time" not in BackendRegistry.list_backends()


@pytest.mark.parametrize(
    "given", [None, 3, object(), int, Mine(), b"a.b"], ids=lambda given: type(given).__name__
)
def test_neither_a_string_nor_a_backend_class_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="is not a backend class"):
        BackendRegistry.register_backend("run_time", given)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        BackendRegistry.register_backend(" ", Mine)


def test_an_abstract_class_is_refused_with_what_it_lacks() -> None:
    from rhapsody.backends.base import BaseExecutionBackend

    with pytest.raises(TypeError, match=r"is abstract.*submit_tasks"):
        BackendRegistry.register_backend("run_time", BaseExecutionBackend)


def test_a_class_whose_method_cannot_take_what_the_engine_passes_is_refused() -> None:
    class Narrow(Mine):
        async def cancel_task(self) -> bool:  # type: ignore[override]
            return False

    with pytest.raises(TypeError, match="cancel_task"):
        BackendRegistry.register_backend("run_time", Narrow)


@pytest.mark.parametrize("method", ["submit_tasks", "cancel_task", "shutdown"])
def test_a_plain_method_that_the_engine_awaits_is_refused(method: str) -> None:
    def plain(self: Any, *args: Any) -> None: ...

    wrong = type("Wrong", (Mine,), {method: plain})
    with pytest.raises(TypeError, match=rf"Wrong\.{method} must be .*`async def {method}`.*plain"):
        BackendRegistry.register_backend("run_time", wrong)
    assert "run_time" not in BackendRegistry.list_backends()
    with pytest.raises(TypeError, match=rf"'mine'.*Wrong\.{method}"):
        asyncio.run(use(wrong()))


@pytest.mark.parametrize("value", ["all", None, Capabilities, {"files": True}], ids=repr)
def test_capabilities_of_another_type_are_refused(value: Any) -> None:
    wrong = type("Wrong", (Mine,), {"capabilities": value})
    with pytest.raises(TypeError) as caught:
        BackendRegistry.register_backend("run_time", wrong)
    assert "Wrong.capabilities must be a Capabilities" in str(caught.value)
    with pytest.raises(TypeError, match=r"'mine'.*Wrong\.capabilities"):
        asyncio.run(use(wrong()))


async def use(backend: Any) -> None:
    async with WorkflowEngine.create(backend):
        pass


def test_wrapped_coroutine_functions_and_computed_capabilities_are_accepted() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    class Wrapped(Mine):
        submit_tasks = logged(Mine.submit_tasks)

        @property
        def capabilities(self) -> Capabilities:  # type: ignore[override]
            return Capabilities(executables=False)

    BackendRegistry.register_backend("run_time", Wrapped)
    assert BackendRegistry.describe("run_time").capabilities is None
    asyncio.run(use(Wrapped()))


def test_a_class_with_other_parameter_names_and_an_async_state_is_accepted() -> None:
    class Existing(Mine):
        def build_task(self, uid, task_desc, task_backend_specific_kwargs):  # type: ignore
            return None

        async def submit_tasks(self, batch):  # type: ignore
            return None

        async def state(self):  # type: ignore
            return "running"

        def register_callback(self, callback):  # type: ignore
            return None

        def task_state_cb(self, task, state):  # type: ignore
            return None

    BackendRegistry.register_backend("run_time", Existing)


def test_an_import_path_that_leads_nowhere_is_unusable_and_an_import_error() -> None:
    BackendRegistry.register_backend("run_time", "no_such_package.module.Class")
    described = BackendRegistry.describe("run_time")
    assert not described.usable
    assert "no_such_package" in (described.reason or "")
    assert discover_backends()["run_time"] is False
    with pytest.raises(ImportError, match=r"no_such_package.*passed to register_backend"):
        get_backend("run_time")


def test_an_import_path_to_something_else_is_a_type_error() -> None:
    BackendRegistry.register_backend("run_time", "collections.OrderedDict")
    with pytest.raises(TypeError, match=r"'run_time'.*OrderedDict.*is not a backend class"):
        get_backend("run_time")


def test_an_import_path_to_a_missing_class_is_an_import_error() -> None:
    BackendRegistry.register_backend("run_time", "collections.Missing")
    with pytest.raises(ImportError, match="has no class 'Missing'"):
        get_backend("run_time")


def test_threads_that_register_one_name_agree_on_one_class() -> None:
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def register(cls: type[Mine]) -> None:
        start.wait(10)
        try:
            BackendRegistry.register_backend("contended", cls)
            outcomes.append(cls.__name__)
        except ValueError:
            outcomes.append("refused")

    classes = [Mine, Other] * 4
    threads = [threading.Thread(target=register, args=(cls,)) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    winner = BackendRegistry.get_backend_class("contended").__name__
    assert sorted(outcomes) == sorted([winner] * 4 + ["refused"] * 4)
