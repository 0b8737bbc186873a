"""Plugins that cannot be used. One broken plugin never breaks core or another plugin."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import pytest

from rhapsody import BackendRegistry, WorkflowEngine, discover_backends, get_backend
from tests._support.distributions import BACKEND, declaration, install, install_backend, unique
from tests._support.registry import SPEC, Mine, check_unusable


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('no library')", "ImportError: no library"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("", "implements no Rhapsody hook"),
        ("def rhapsody_backends(): ...", "mark rhapsody_backends with @rhapsody.hookimpl"),
        (
            "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_backend(): ...",
            "unknown hook 'rhapsody_backend'; did you mean 'rhapsody_backends'?",
        ),
        (
            "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_task_events(events): ...",
            "declares no backend: define the hook rhapsody_backends",
        ),
        (declaration(before="1 / 0"), "ZeroDivisionError"),
        (declaration("'toy'"), "TypeError"),
        (declaration("name='other', import_path='a.b:C'"), "declared: 'other'"),
        (declaration(), "declared: none"),
        (declaration(*["name='toy', import_path='a.b:C'"] * 2), "declares 2 backends"),
        (declaration("name='toy', import_path='nonsense'"), "import path must be"),
        (declaration("name='toy', import_path=3"), "import_path must be"),
        (declaration("name='toy', import_path='a:B', requires='numpy'"), "a list of strings"),
        (declaration("name='toy', import_path='a:B', requires=[1]"), "requires must be"),
        (declaration("name='toy', import_path='a:B', capabilities='all'"), "capabilities must be"),
        (declaration("name='toy', import_path='a:B', api_version='1'"), "api_version must be"),
        (declaration("name='toy', import_path='a:B', requires=['a b c']"), "'a b c'"),
        (declaration("name='toy', import_path='a:B', api_version=99"), "version 99 of the plugin"),
        (
            declaration("name='toy', import_path='no_such_package_x:B'"),
            "no module named 'no_such_package_x' (import_path 'no_such_package_x:B')",
        ),
    ],
)
def test_a_plugin_that_hands_in_nonsense_is_unusable(site: Path, source: str, reason: str) -> None:
    module = unique("nonsense")
    install(site, "nonsense", backends={"toy": module}, modules={module: source})
    install_backend(site, "fine", "fine")
    check_unusable("toy", reason, "pip install")
    assert discover_backends()["fine"] is True


def test_a_reason_that_is_a_question_is_followed_by_the_remedy(site: Path) -> None:
    module = unique("nonsense")
    source = "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_backend(): ..."
    install(site, "nonsense", backends={"toy": module}, modules={module: source})
    with pytest.raises(ImportError, match=r"'rhapsody_backends'\? pip install"):
        BackendRegistry.get_backend_class("toy")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_toys.plugin", "correct the value of the entry point in the group"),
        ("{module}:missing", "correct the value of the entry point in the group"),
        ("{module}:Toy", "A backend's class belongs in `BackendSpec.import_path`"),
        ("{module}:TOY", "implements no Rhapsody hook"),
    ],
)
def test_an_entry_point_that_names_no_plugin_is_unusable(
    site: Path, value: str, reason: str
) -> None:
    module = unique("toys")
    source = "class Toy: ...\nTOY = 3"
    entry = value.format(module=module)
    install(site, "toys", backends={"toy": entry}, modules={module: source})
    check_unusable("toy", reason, "pip install --upgrade toys")


def test_an_error_in_the_module_of_an_entry_point_does_not_blame_its_value(site: Path) -> None:
    module = unique("toys")
    modules = {module: "import no_such_library_y"}
    install(site, "toys", backends={"toy": module}, modules=modules)
    reason = BackendRegistry.describe("toy").reason or ""
    assert reason.endswith("No module named 'no_such_library_y'")


def test_the_author_of_a_plugin_is_told_where_to_correct_it(site: Path, tmp_path: Path) -> None:
    light, heavy = unique("light"), unique("heavy")
    spec = SPEC.format(name="toy", module=heavy) + ", install_hint='pip install toys'"
    info = install(site, "toys", backends={"toy": light}, modules={light: declaration(spec)})
    folder = tmp_path / "my toys"
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    remedy = f"correct the plugin in {folder}, then run: pip install -e '{folder}'"
    check_unusable("toy", f"no module named {heavy!r}", remedy)
    (site / f"{heavy}.py").write_text("")
    with pytest.raises(ImportError, match=f"has no class 'Backend'. {re.escape(remedy)}"):
        get_backend("toy")
    (site / f"{light}.py").write_text("")


@pytest.mark.parametrize("given", ["None", "3", "[3]", "{'name': 'toy'}", "1 / 0", "exit()"])
def test_a_hook_that_returns_nonsense_is_unusable(site: Path, given: str) -> None:
    module = unique("nonsense")
    source = f"""
    from rhapsody import hookimpl

    @hookimpl
    def rhapsody_backends():
        return {given}
    """
    install(site, "nonsense", backends={"toy": module}, modules={module: source})
    check_unusable("toy", "invalid declaration", "pip install --upgrade nonsense")


def test_the_error_names_the_package_to_upgrade(site: Path) -> None:
    for name, version in (("old", 0), ("new", 2)):
        module = unique(name)
        source = declaration(f"name={name!r}, import_path='a:B', api_version={version}")
        install(site, f"{name}-one", backends={name: module}, modules={module: source})
    check_unusable("old", "version 0", "pip install --upgrade old-one")
    check_unusable("new", "version 2", "pip install --upgrade rhapsody-core")


@pytest.mark.parametrize(
    ("requirement", "hint", "reason", "remedy"),
    [
        ("no-such-library>=2", "", "no-such-library>=2 is not installed", "'no-such-library>=2'"),
        ("pytest>=1000", "", "pytest>=1000 is required, but pytest", "pip install 'pytest>=1000'"),
        ("no-such-library", "conda install it", "is not installed", "conda install it"),
    ],
)
def test_a_missing_requirement_is_seen_without_import(
    site: Path, requirement: str, hint: str, reason: str, remedy: str
) -> None:
    extra = f", requires=[{requirement!r}], install_hint={hint!r}"
    _, heavy = install_backend(site, "toys", "toy", extra)
    check_unusable("toy", reason, remedy)
    assert heavy not in sys.modules


def test_requirements_for_other_systems_do_not_count(site: Path) -> None:
    install_backend(site, "toys", "toy", ", requires=['no-such-library; sys_platform == \"none\"']")
    assert BackendRegistry.describe("toy").usable


@pytest.mark.parametrize(
    ("heavy_source", "error", "reason"),
    [
        ("import no_such_library_y", ImportError, "no_such_library_y"),
        ("import sys; sys.exit(1)", ImportError, "SystemExit"),
        ("", ImportError, "has no class 'Backend'"),
        ("class Backend: ...", TypeError, "is not a backend class"),
        ("Backend = 3", TypeError, "is not a backend class"),
    ],
)
def test_a_backend_whose_class_cannot_be_had_says_why(
    site: Path, heavy_source: str, error: type[Exception], reason: str
) -> None:
    light, heavy = unique("light"), unique("heavy")
    spec = SPEC.format(name="toy", module=heavy)
    modules = {light: declaration(spec), heavy: heavy_source}
    install(site, "toys", backends={"toy": light}, modules=modules)
    with pytest.raises(error, match=reason) as caught:
        get_backend("toy")
    assert "toys" in str(caught.value)
    if error is ImportError:
        assert str(caught.value).endswith("pip install --force-reinstall toys")


MANAGED = """
from rhapsody.backends import ManagedBackend

class Backend(ManagedBackend):
    name = "toy"
"""
RUN_TASK = "    async def run_task(self, task): ...\n"


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("", "Backend implements neither run_task nor submit_tasks; define `async def run_task"),
        (
            "    def run_task(self, task): ...\n",
            "must be .*`async def run_task`",
        ),
        (
            f"{RUN_TASK}    def start(self): ...\n",
            "must be .*`async def start`",
        ),
        (f"{RUN_TASK}    def stop(self): ...\n", "must be .*`async def stop`"),
    ],
)
def test_a_mistake_in_the_methods_of_a_backend_says_what_to_write(
    site: Path, methods: str, reason: str
) -> None:
    light, heavy = unique("light"), unique("heavy")
    modules = {light: declaration(SPEC.format(name="toy", module=heavy)), heavy: MANAGED + methods}
    install(site, "toys", backends={"toy": light}, modules=modules)
    with pytest.raises(TypeError, match=reason):
        get_backend("toy")


@pytest.mark.asyncio
async def test_a_backend_that_does_not_initialize_its_base_class_says_so() -> None:
    class Forgetful(Mine):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"Forgetful.__init__ must call `super\(\).__init__\(\)`"):
        await WorkflowEngine.create(Forgetful())


def test_an_import_error_names_the_missing_module(site: Path) -> None:
    light, heavy = unique("light"), unique("heavy")
    modules = {
        light: declaration(SPEC.format(name="toy", module=heavy)),
        heavy: "import no_such_library_y",
    }
    install(site, "toys", backends={"toy": light}, modules=modules)
    with pytest.raises(ImportError) as caught:
        get_backend("toy")
    assert caught.value.name == "no_such_library_y"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_ctrl_c_while_a_class_is_imported_is_not_swallowed(site: Path) -> None:
    light, heavy = unique("light"), unique("heavy")
    modules = {
        light: declaration(SPEC.format(name="toy", module=heavy)),
        heavy: "raise KeyboardInterrupt",
    }
    install(site, "toys", backends={"toy": light}, modules=modules)
    with pytest.raises(KeyboardInterrupt):
        get_backend("toy")


def test_a_plugin_may_use_the_registry_while_it_is_imported(site: Path) -> None:
    module, heavy = unique("recursive"), unique("heavy")
    source = declaration(
        SPEC.format(name="toy", module=heavy),
        before="from rhapsody import discover_backends\nseen = discover_backends()",
    )
    modules = {module: source, heavy: BACKEND.format(name="toy")}
    install(site, "recursive", backends={"toy": module}, modules=modules)
    assert BackendRegistry.get_backend_class("toy").name == "toy"
    assert sys.modules[module].seen["noop"] is True
    assert sys.modules[module].seen["toy"] is False


def test_threads_that_ask_for_one_class_get_the_same(site: Path) -> None:
    install_backend(site, "toys", "toy")
    start = threading.Barrier(8)
    classes: list[type] = []

    def ask() -> None:
        start.wait(10)
        classes.append(BackendRegistry.get_backend_class("toy"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(classes) == 8
    assert len(set(classes)) == 1


def test_one_module_may_declare_several_backends(site: Path) -> None:
    module, heavy = unique("several"), unique("heavy")
    source = declaration(*(SPEC.format(name=name, module=heavy) for name in ("one", "two")))
    modules = {module: source, heavy: BACKEND.format(name="x")}
    install(site, "several", backends={"one": module, "two": module}, modules=modules)
    assert BackendRegistry.describe("one").usable
    assert BackendRegistry.describe("two").usable


def test_a_library_installed_after_a_failure_is_noticed(site: Path) -> None:
    install_backend(site, "toys", "toy", ", requires=['late-library>=1']")
    check_unusable("toy", "late-library>=1 is not installed", "pip install")
    install(site, "late-library", version="1.2")
    assert BackendRegistry.describe("toy").usable
