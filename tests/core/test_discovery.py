"""The registry: names, classes, descriptions, registration at run time, and whose a name is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import BackendRegistry, StateMapper, discover_backends, get_backend
from rhapsody.backends import discovery
from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.backends.noop import NoopExecutionBackend
from tests.core.distributions import (
    BACKEND,
    declaration,
    install,
    install_backend,
    python,
    unique,
)

SPEC = "name={name!r}, import_path='{module}:Backend'"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RHAPSODY_DISABLE_PLUGINS", "RHAPSODY_BACKENDS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(discovery._registered)
    yield
    discovery._registered.clear()
    discovery._registered.update(before)


class Mine(ManagedBackend):
    """A backend for tests."""

    name = "mine"

    async def run_task(self, task: Any) -> Any:
        return None


class Other(Mine):
    """Another one."""


MINE = f"{__name__}.Mine"


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this module importable by its name, however pytest imported it."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Mine.__module__])


# Names.


def test_names_are_sorted_and_hold_core_s_own() -> None:
    names = BackendRegistry.list_backends()
    assert names == sorted(names)
    assert {"noop", "local"} <= set(names)


def test_listing_names_loads_nothing(site: Path) -> None:
    light, heavy = install_backend(site, "toys", "toy")
    assert "toy" in BackendRegistry.list_backends()
    assert light not in sys.modules
    assert heavy not in sys.modules


def test_describing_loads_the_light_module_only(site: Path) -> None:
    light, heavy = install_backend(site, "toys", "toy")
    assert BackendRegistry.describe("toy").usable
    assert discover_backends()["toy"] is True
    assert light in sys.modules
    assert heavy not in sys.modules


def test_the_class_is_imported_when_asked_for(site: Path) -> None:
    _, heavy = install_backend(site, "toys", "toy")
    cls = BackendRegistry.get_backend_class("toy")
    assert cls is sys.modules[heavy].Backend


@pytest.mark.parametrize("name", ["my-toy", "my_toy", "My-Toy", " MY_TOY "])
def test_names_are_compared_without_case_and_dashes_are_underscores(site: Path, name: str) -> None:
    install_backend(site, "toys", "My-Toy")
    assert "My-Toy" in BackendRegistry.list_backends()
    assert BackendRegistry.get_backend_class(name).name == "My-Toy"
    assert BackendRegistry.describe(name).usable


@pytest.mark.parametrize("name", [None, 3, Mine, ["local"]])
def test_a_name_that_is_no_string_is_a_type_error(name: Any) -> None:
    for call in (
        BackendRegistry.get_backend_class,
        BackendRegistry.unregister_backend,
        get_backend,
    ):
        with pytest.raises(TypeError, match="must be a string"):
            call(name)
    with pytest.raises(TypeError, match="must be a string"):
        BackendRegistry.register_backend(name, Mine)


# Unknown names.


def test_an_unknown_name_gives_the_closest_match_and_all_names() -> None:
    with pytest.raises(ValueError, match="no backend is named 'locl'") as caught:
        BackendRegistry.get_backend_class("locl")
    assert "local, noop" in str(caught.value)
    assert "Did you mean 'local'?" in str(caught.value)


def test_an_unknown_name_without_a_close_match_gives_all_names() -> None:
    with pytest.raises(ValueError, match=r"no backend is named 'zzzzzz'.*local, noop"):
        get_backend("zzzzzz")
    with pytest.raises(ValueError, match="no backend is named 'zzzzzz'"):
        BackendRegistry.describe("zzzzzz")


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("dask", "rhapsody-dask"), ("Radical-Pilot", "rhapsody-radical"), ("dsk", "rhapsody-dask")],
)
def test_a_published_name_says_which_distribution_to_install(name: str, distribution: str) -> None:
    if {"dask", "radical_pilot"} & set(BackendRegistry.list_backends()):
        pytest.skip("a published plugin is installed")
    with pytest.raises(ValueError, match=f"pip install {distribution}$"):
        get_backend(name)


def test_a_name_of_a_plugin_that_is_left_out_says_so(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "toys", "toy")
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "toys")
    assert "toy" not in BackendRegistry.list_backends()
    with pytest.raises(ValueError, match="toys, which has it, is left out by RHAPSODY_DISABLE"):
        get_backend("toy")


# Instances.


def test_get_backend_makes_an_instance_with_the_arguments(site: Path) -> None:
    install_backend(site, "toys", "toy")
    backend: Any = get_backend("toy", {"cores": 2}, speed=7)
    assert backend.resources == {"cores": 2}
    assert backend.speed == 7


def test_core_s_backends_are_found_through_their_entry_points() -> None:
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend
    assert isinstance(get_backend("noop"), NoopExecutionBackend)
    described = BackendRegistry.describe("local")
    assert described.distribution == "rhapsody-core"
    assert described.usable
    for name in ("noop", "local"):
        declared = BackendRegistry.describe(name).capabilities
        assert declared == BackendRegistry.get_backend_class(name).capabilities


# Registration at run time.


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("path", [MINE, f"{__name__}:Mine"])
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
    with pytest.raises(ValueError, match="no backend is named 'run_time'"):
        BackendRegistry.unregister_backend("run_time")


def test_registering_the_same_again_is_harmless_and_another_is_refused() -> None:
    BackendRegistry.register_backend("run_time", Mine)
    BackendRegistry.register_backend("Run-Time", Mine)
    with pytest.raises(ValueError, match=r"'run_time' is taken by .*:Mine"):
        BackendRegistry.register_backend("run_time", Other)
    assert BackendRegistry.get_backend_class("run_time") is Mine


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
    with pytest.raises(ValueError, match=r"malformed: write 'package\.module:Class'"):
        BackendRegistry.register_backend("run_time", path)
    assert "run_time" not in BackendRegistry.list_backends()


@pytest.mark.parametrize("given", [None, 3, object(), int, Mine(), b"a.b"], ids=repr)
def test_neither_a_string_nor_a_backend_class_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="is no backend class"):
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
    with pytest.raises(ImportError, match=r"no_such_package.*given to register_backend"):
        get_backend("run_time")


def test_an_import_path_to_something_else_is_a_type_error() -> None:
    BackendRegistry.register_backend("run_time", "collections.OrderedDict")
    with pytest.raises(TypeError, match=r"'run_time'.*OrderedDict.*is no backend class"):
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


# Descriptions.


def test_a_description_holds_what_was_declared(site: Path) -> None:
    light, heavy = unique("light"), unique("heavy")
    spec = (
        f"name='toy', import_path='{heavy}:Backend', summary='a toy', requires=['pytest>=1'], "
        "capabilities=Capabilities(executables=False, resources=frozenset({'cores'}))"
    )
    source = declaration(spec, before="from rhapsody.backends.base import Capabilities")
    modules = {light: source, heavy: BACKEND.format(name="toy")}
    install(site, "Toys", version="2.5", backends={"toy": light}, modules=modules)
    toy = BackendRegistry.describe("toy")
    assert (toy.name, toy.distribution, toy.version) == ("toy", "toys", "2.5")
    assert (toy.summary, toy.api_version, toy.requires) == ("a toy", 1, ("pytest>=1",))
    assert toy.usable
    assert toy.reason is None
    assert toy.remedy is None
    assert isinstance(toy.capabilities, Capabilities)
    assert toy.capabilities.executables is False
    assert toy.as_dict()["capabilities"]["resources"] == ["cores"]
    assert BackendRegistry.describe()["toy"] == toy


def test_descriptions_of_all_are_sorted_and_say_what_discover_says(site: Path) -> None:
    install_backend(site, "toys", "toy")
    described = BackendRegistry.describe()
    assert list(described) == BackendRegistry.list_backends()
    assert {name: one.usable for name, one in described.items()} == discover_backends()


# Plugins that cannot be used. One broken plugin never breaks core or another plugin.


def check_unusable(name: str, reason: str, remedy: str) -> None:
    described = BackendRegistry.describe(name)
    assert not described.usable
    assert reason in (described.reason or ""), described
    assert remedy in (described.remedy or ""), described
    assert discover_backends()[described.name] is False
    with pytest.raises(ImportError) as caught:
        get_backend(name)
    assert reason in str(caught.value)
    assert remedy in str(caught.value)
    assert discover_backends()["noop"] is True


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('no library')", "ImportError: no library"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("", "implements no hook"),
        (
            "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_task_events(events): ...",
            "declares no backend",
        ),
        (declaration(before="1 / 0"), "ZeroDivisionError"),
        (declaration("'toy'"), "TypeError"),
        (declaration("name='other', import_path='a.b:C'"), "declared: 'other'"),
        (declaration(), "declared: none"),
        (declaration(*["name='toy', import_path='a.b:C'"] * 2), "declares 2 backends"),
        (declaration("name='toy', import_path='nonsense'"), "malformed"),
        (declaration("name='toy', import_path=3"), "import_path=3"),
        (declaration("name='toy', import_path='a:B', requires='numpy'"), "a list of strings"),
        (declaration("name='toy', import_path='a:B', requires=[1]"), "requires=[1]"),
        (declaration("name='toy', import_path='a:B', capabilities='all'"), "capabilities='all'"),
        (declaration("name='toy', import_path='a:B', api_version='1'"), "api_version='1'"),
        (declaration("name='toy', import_path='a:B', requires=['a b c']"), "'a b c'"),
        (declaration("name='toy', import_path='a:B', api_version=99"), "version 99 of the plugin"),
        (declaration("name='toy', import_path='no_such_package_x:B'"), "'no_such_package_x'"),
    ],
)
def test_a_plugin_that_hands_in_nonsense_is_unusable(site: Path, source: str, reason: str) -> None:
    module = unique("nonsense")
    install(site, "nonsense", backends={"toy": module}, modules={module: source})
    install_backend(site, "fine", "fine")
    check_unusable("toy", reason, "pip install")
    assert discover_backends()["fine"] is True


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
    check_unusable("toy", "its declaration cannot be used", "pip install --upgrade nonsense")


def test_an_older_plugin_is_told_to_upgrade_itself_and_a_newer_one_core(site: Path) -> None:
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
        ("pytest>=1000", "", "pytest>=1000 is needed, but pytest", "pip install 'pytest>=1000'"),
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
        ("class Backend: ...", TypeError, "is no backend class"),
        ("Backend = 3", TypeError, "is no backend class"),
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


# Whose a name is.


@pytest.mark.parametrize(
    ("name", "owner"),
    [("dask", "rhapsody-dask"), ("radical_pilot", "rhapsody-radical"), ("Radical-Pilot", None)],
)
def test_a_reserved_name_claimed_by_another_distribution_is_unusable(
    site: Path, name: str, owner: str | None
) -> None:
    if any(one.lower().replace("-", "_") == name.lower().replace("-", "_")
           for one in BackendRegistry.list_backends()):  # fmt: skip
        pytest.skip("the owner is installed")
    install_backend(site, "impostor", name)
    owner = owner or "rhapsody-radical"
    check_unusable(name, f"belongs to {owner}, but is claimed by impostor", f"pip install {owner}")


def test_the_owner_of_a_reserved_name_keeps_it_and_the_claim_is_reported(site: Path) -> None:
    install_backend(site, "impostor", "noop")
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend
    (conflict,) = BackendRegistry.describe("noop").conflicts
    assert "impostor" in conflict
    assert "rhapsody-core" in conflict


def test_a_name_claimed_twice_is_unusable_until_one_is_chosen(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "first-toys", "toy")
    install_backend(site, "other-toys", "TOY")
    check_unusable(
        "toy", "first-toys and other-toys all claim the name 'toy'", "RHAPSODY_BACKENDS="
    )
    monkeypatch.setenv("RHAPSODY_BACKENDS", "something:else, Other.Toys:Toy")
    described = BackendRegistry.describe("toy")
    assert described.usable
    assert described.distribution == "other-toys"
    assert described.conflicts
    assert "first-toys" in described.conflicts[0]
    assert get_backend("toy").name == "TOY"


@pytest.mark.parametrize("choice", ["nobody:toy", "nonsense", ":", "first-toys:"])
def test_a_choice_that_names_nobody_chooses_nobody(
    site: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    install_backend(site, "first-toys", "toy")
    install_backend(site, "other-toys", "toy")
    monkeypatch.setenv("RHAPSODY_BACKENDS", choice)
    check_unusable("toy", "first-toys and other-toys", "RHAPSODY_BACKENDS=first-toys:toy")


def test_a_choice_does_not_give_away_a_reserved_name(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "impostor", "noop")
    monkeypatch.setenv("RHAPSODY_BACKENDS", "impostor:noop")
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend


def test_two_different_entry_points_of_one_name_in_one_distribution_are_unusable(
    site: Path,
) -> None:
    install(site, "muddled", backends={"my-toy": "one_module", "my_toy": "two_module"})
    check_unusable("my_toy", "2 different entry points", "pip install --upgrade muddled")


def test_entry_points_of_rhapsody_py_are_no_backends(site: Path) -> None:
    install(site, "rhapsody-py", backends={"old_one": "rhapsody.backends.x:Y"})
    assert "old_one" not in BackendRegistry.list_backends()
    with pytest.raises(ValueError, match="no backend is named 'old_one'"):
        get_backend("old_one")


def test_a_backend_installed_while_the_program_runs_is_found(site: Path) -> None:
    with pytest.raises(ValueError, match="no backend is named 'toy'"):
        get_backend("toy")
    install_backend(site, "toys", "toy")
    assert get_backend("toy").name == "toy"


def test_a_library_installed_after_a_failure_is_noticed(site: Path) -> None:
    install_backend(site, "toys", "toy", ", requires=['late-library>=1']")
    check_unusable("toy", "late-library>=1 is not installed", "pip install")
    install(site, "late-library", version="1.2")
    assert BackendRegistry.describe("toy").usable


def test_nothing_heavy_is_imported_to_say_what_there_is() -> None:
    done = python(
        """
        from rhapsody import BackendRegistry, discover_backends
        discover_backends(), BackendRegistry.describe()
        heavy = {"distributed", "dask", "radical", "pebble", "typeguard"} & set(sys.modules)
        assert not heavy, heavy
        """,
        environment={"RHAPSODY_DISABLE_PLUGINS": "all"},
    )
    assert done.returncode == 0, done.stderr


# States.


def test_states_of_a_registered_name_are_there_before_anybody_asked_for_its_class(
    site: Path,
) -> None:
    light, heavy = unique("light"), unique("heavy")
    states = """
from rhapsody.states import StateMapper
StateMapper.register_backend_tasks_states("stately", "fine", "bad", "gone", "busy")
"""
    install(
        site,
        "stately-backend",
        backends={"stately": light},
        modules={
            light: declaration(SPEC.format(name="stately", module=heavy)),
            heavy: BACKEND.format(name="stately") + states,
        },
    )
    code = """
    from rhapsody import StateMapper
    print(StateMapper("Stately").terminal_states, "{heavy}" in sys.modules)
    """
    run = python(code.format(heavy=heavy), site)
    assert run.stdout == "('fine', 'bad', 'gone') True\n", run.stderr


def test_a_registered_name_without_states_of_its_own_has_the_canonical_ones(site: Path) -> None:
    install_backend(site, "toys", "toy")
    assert StateMapper("TOY").RUNNING == "RUNNING"
    BackendRegistry.register_backend("alias", Mine)
    assert StateMapper("alias").backend == "mine"


def test_states_of_a_backend_that_cannot_be_used_are_an_error_with_its_reason(site: Path) -> None:
    light = unique("light")
    install(
        site,
        "half-installed",
        backends={"half": light},
        modules={light: declaration(SPEC.format(name="half", module="no_such_module_of_half"))},
    )
    with pytest.raises(ValueError, match="no_such_module_of_half"):
        StateMapper("half")
