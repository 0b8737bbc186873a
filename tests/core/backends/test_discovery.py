"""The registry: names, classes, descriptions and states."""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    BackendRegistry,
    LocalExecutionBackend,
    StateMapper,
    discover_backends,
    get_backend,
)
from rhapsody.backends.base import Capabilities
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.plugins.manager import install_command
from tests._support.distributions import (
    BACKEND,
    declaration,
    install,
    install_backend,
    python,
    unique,
)
from tests._support.registry import SPEC, Mine

pytestmark = pytest.mark.usefixtures("unregistered")


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


def test_an_unknown_name_gives_the_closest_match_and_all_names() -> None:
    with pytest.raises(ValueError, match="Backend 'locl' not found") as caught:
        BackendRegistry.get_backend_class("locl")
    assert "local, noop" in str(caught.value)
    assert "Did you mean 'local'?" in str(caught.value)


def test_an_unknown_name_without_a_close_match_gives_all_names() -> None:
    with pytest.raises(ValueError, match=r"Backend 'zzzzzz' not found.*local, noop"):
        get_backend("zzzzzz")
    with pytest.raises(ValueError, match="Backend 'zzzzzz' not found"):
        BackendRegistry.describe("zzzzzz")


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("dask", "rhapsody-dask"),
        ("Radical-Pilot", "rhapsody-radical"),
        ("dsk", "rhapsody-dask"),
        ("slurm", "rhapsody-radical"),
        ("simulated", "rhapsody-simulated"),
        ("dragon", "rhapsody-dragon"),
    ],
)
def test_a_published_name_says_which_distribution_to_install(name: str, distribution: str) -> None:
    if {"dask", "radical_pilot"} & set(BackendRegistry.list_backends()):
        pytest.skip("a published plugin is installed")
    with pytest.raises(ValueError, match=f"{re.escape(install_command(distribution))}$"):
        get_backend(name)


def test_a_name_of_a_plugin_that_is_left_out_says_so(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "toys", "toy")
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "toys")
    assert "toy" not in BackendRegistry.list_backends()
    with pytest.raises(
        ValueError, match="toys, which provides it, is disabled by RHAPSODY_DISABLE"
    ):
        get_backend("toy")


def test_concurrent_is_an_alias_of_local(site: Path) -> None:
    assert BackendRegistry.get_backend_class("concurrent") is LocalExecutionBackend
    assert "concurrent" not in BackendRegistry.list_backends()


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


def test_core_s_backends_need_what_core_is_installed_with() -> None:
    installed_with = requires("rhapsody-core") or []
    assert set(BackendRegistry.describe("local").requires) <= set(installed_with)


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


def test_a_backend_installed_while_the_program_runs_is_found(site: Path) -> None:
    with pytest.raises(ValueError, match="Backend 'toy' not found"):
        get_backend("toy")
    install_backend(site, "toys", "toy")
    assert get_backend("toy").name == "toy"


def test_nothing_heavy_is_imported_to_say_what_there_is() -> None:
    done = python(
        """
        from rhapsody import BackendRegistry, discover_backends
        discover_backends(), BackendRegistry.describe()
        heavy = {"distributed", "dask", "radical", "typeguard"} & set(sys.modules)
        assert not heavy, heavy
        """,
        environment={"RHAPSODY_DISABLE_PLUGINS": "all"},
    )
    assert done.returncode == 0, done.stderr


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
