"""Profiles: which file sets an option, and mistakes in files."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import ProfileError, RetryPolicy
from rhapsody.engine.configuration import profiles
from rhapsody.engine.configuration.profiles import Value, active_profile
from tests._support.distributions import install_backend

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the project's file, or with `user=True` the user's."""
    home = tmp_path / "config"
    monkeypatch.setattr(profiles, "user_file", lambda: home / "rhapsody.toml")

    def write_file(text: str, *, user: bool = False) -> None:
        home.mkdir(exist_ok=True)
        ((home if user else tmp_path) / "rhapsody.toml").write_text(textwrap.dedent(text))

    return write_file


def sources(values: profiles.Values) -> dict[str, tuple[Any, str]]:
    return {
        name: (each.value, each.source.rpartition("/")[2].removeprefix("rhapsody.toml:"))
        for name, each in values.items()
    }


# Precedence.


def test_without_files_nothing_is_set(write: Write) -> None:
    assert active_profile() == profiles.Profile(options={"local": {}})


def test_the_project_takes_precedence_over_the_user_and_a_profile_over_the_top(
    write: Write,
) -> None:
    write(
        """
        [engine]
        max_pending = 3
        submit_timeout = 3

        [profile.a.engine]
        max_pending = 1
        """
    )
    write(
        """
        [engine]
        submit_timeout = 4
        lost_retries = 4
        [profile.a.engine]
        max_pending = 2
        push_down = false
        [profile.a.defaults]
        retries = 2
        """.replace("lost_retries = 4", 'keep_sandboxes = "none"'),
        user=True,
    )
    found = active_profile(Value("a", place="the program"))
    assert sources(found.engine) == {
        "max_pending": (1, "7"),
        "submit_timeout": (3, "4"),
        "push_down": (False, "7"),
        "keep_sandboxes": ("none", "4"),
    }
    assert found.engine["push_down"].file is not None
    assert found.engine_options()["retries"] == 2
    assert sources(active_profile().engine) == {
        "max_pending": (3, "3"),
        "submit_timeout": (3, "4"),
        "keep_sandboxes": ("none", "4"),
    }


def test_alternative_options_for_failures_come_from_one_place(write: Write) -> None:
    write("[profile.a.engine]\nfail_fast = true\n[engine]\nkeep_going = true\nmax_failures = 3\n")
    assert active_profile(Value("a")).engine_options() == {"fail_fast": True}
    assert active_profile().engine_options() == {"keep_going": True, "max_failures": 3}


def test_the_profile_is_selected_by_code_variable_project_and_user(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "\n".join(f"[profile.{name}]" for name in "abcd")
    write(f"default_profile = 'd'\n{names}", user=True)

    def selected(name: Value | None = None) -> Any:
        found = active_profile(name).name
        return found and (found.value, found.source.rpartition("/")[2])

    assert selected() == ("d", "rhapsody.toml:1")
    write("default_profile = 'c'")
    assert selected() == ("c", "rhapsody.toml:1")
    monkeypatch.setenv("RHAPSODY_PROFILE", "b")
    assert selected() == ("b", "the environment variable RHAPSODY_PROFILE")
    assert selected(Value("a", place="the program")) == ("a", "the program")
    monkeypatch.setenv("RHAPSODY_PROFILE", "")
    assert selected() == ("c", "rhapsody.toml:1")


def test_options_belong_to_the_backend_of_their_table(write: Write) -> None:
    write(
        """
        [options]
        cores = 3
        [profile.processes]
        backend = "local"
        [profile.processes.options]
        executor = "process"
        [profile.nothing]
        backend = "noop"
        """
    )
    write("[profile.processes]\noptions.grace = 3\n", user=True)

    def options(name: str | None, backend: str | None = None) -> dict[str, Any]:
        chosen = None if backend is None else Value(backend, place="-b")
        found = active_profile(None if name is None else Value(name), chosen)
        (merged,) = found.options.values()
        return {name: each.value for name, each in merged.items()}

    assert options(None) == {"cores": 3}
    assert options("processes") == {"cores": 3, "executor": "process", "grace": 3}
    assert options("processes", "LOCAL") == options("processes")
    assert options("processes", "noop") == {}
    assert options("nothing", "local") == {}


def test_several_backends_have_options_by_name(write: Write) -> None:
    write("options.grace = 3\n", user=True)
    write(
        """
        backend = ["Local", "noop"]
        [options.local]
        cores = 2
        [options.local.resources]
        memory = "2 GB"
        [profile.one]
        backend = "local"
        [profile.one.options]
        executor = "process"
        """
    )
    with pytest.raises(
        ProfileError, match=r"'grace' is none of the backends; .* \[options.local\]"
    ):
        active_profile()
    write("[options.local]\ngrace = 3\n", user=True)
    found = active_profile()
    assert found.backends == ("Local", "noop")
    assert found.is_for("NOOP")
    assert sources(found.options["local"]) == {
        "grace": (3, "2"),
        "cores": (2, "4"),
        "memory": ("2 GB", "6"),
    }
    assert found.options["noop"] == {}
    both = active_profile(None, Value(["noop", "local"], place="-b"))
    assert list(both.options) == ["noop", "local"]
    assert both.options["local"] == found.options["local"]


def test_options_may_be_in_a_table_of_resources(write: Write) -> None:
    write("[options.resources]\ncores = 3\n[options]\ngrace = 1\n")
    assert sources(*active_profile().options.values()) == {"cores": (3, "2"), "grace": (1, "4")}


# Settings of tasks.


def test_defaults_and_overrides_of_tasks(write: Write) -> None:
    write(
        """
        [defaults]
        cores = 2
        memory = "1 GB"
        retries = { attempts = 3, wait = "1 s" }
        timeout = "1 min"
        environment.A = "a"

        [profile.big.tasks."sim_*"]
        cores = 4
        retries = [1, { attempts = 2 }]
        [profile.big.tasks.sim_1]
        cores = 8
        implicit_data = false
        """
    )
    write("[tasks.sim_1]\ngpus = 1\ncores = 16\n", user=True)
    found = active_profile(Value("big"))
    assert found.engine_options() == {"retries": RetryPolicy(3, wait=1.0), "timeout": "1 min"}
    tasks = found.task_defaults({}, {})
    assert tasks.profile == "big"
    assert tasks.defaults == {
        "resources": {"cores": 2, "memory": "1 GB"},
        "environment": {"A": "a"},
    }
    assert tasks.complete("sim_1", {})["resources"] == {"cores": 8, "memory": "1 GB", "gpus": 1}
    assert tasks.complete("sim_1", {"implicit_data": True})["implicit_data"] is False
    assert tasks.complete("sim_2", {})["retries"] == [RetryPolicy(1), RetryPolicy(2)]
    assert tasks.sources("sim_2") == ["rhapsody.toml:10"]


# Paths and variables.


def test_a_path_starts_at_the_directory_of_its_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "there")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(
        """
        [engine]
        work_dir = "work"
        results_dir = "${PLACE}/$PLACE"
        journal = "~/journal.sqlite"
        """
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert active_profile().engine_options() == {
        "work_dir": str(tmp_path / "work"),
        "results_dir": str(tmp_path / "there" / "there"),
        "journal": str(tmp_path / "home" / "journal.sqlite"),
    }


def test_a_variable_that_is_not_set_is_an_error_only_where_it_is_used(write: Write) -> None:
    write("[profile.far.engine]\nwork_dir = '$SCRATCH_FAR/x'\n[profile.near]\n")
    active_profile(Value("near"))
    said = r"^rhapsody\.toml:2: the environment variable SCRATCH_FAR is not set$"
    with pytest.raises(ProfileError, match=said):
        active_profile(Value("far"))


# Mistakes.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backendd = 'x'", ":1: unknown key 'backendd'; did you mean 'backend'?"),
        ("colour = 1", ":1: unknown key 'colour'; the keys are default_profile, profile, "),
        ("profile = 'a'", ":1: profile must be a table, got 'a'; to select a profile, write "),
        ("default_profile = 1", ":1: default_profile must be a string, got 1"),
        ("default_profile = 'a'", ":1: unknown profile 'a'; write a table [profile.a] in "),
        ("profile.a = 1", ":1: profile.a must be a table, got 1"),
        ("backend = 1", ":1: backend must be a name or a list, got 1"),
        ("backend = ''", ":1: backend must be a name or a list, got ''"),
        ("backend = []", ":1: backend must be a name or a list, got []"),
        ("backend = ['local', 1]", ":1: backend must be a name or a list, got ['local', 1]"),
        ("backend = ['local', 'LOCAL']", ":1: backend names the same backend twice: ['local', "),
        ("[tool.rhapsody]", ":1: unknown key 'tool'; omit [tool.rhapsody], which is only for pypr"),
        ("options = 1", ":1: options must be a table, got 1"),
        ("[profile.a]\noption.x = 1", ":2: unknown key 'option' in [profile.a]; did you mean 'o"),
        ("[engine]\n\nmax_pendign = 1", ":3: unknown key 'max_pendign' in [engine]; did you mean"),
        ("[engine]\nmax_pending = 0", ":2: max_pending must be 1 or more, got 0"),
        ("[engine]\npush_down = 'no'", ":2: push_down must be True or False, got 'no'"),
        ("[engine]\nretries = 1", ":2: unknown key 'retries' in [engine]; write it in the table "),
        ("[engine]\nbackend = 'x'", ":2: unknown key 'backend' in [engine]; write it above the t"),
        ("[engine]\nwork_dir = 3", ":2: work_dir must be a path, got 3"),
        ("[engine]\njournal = 3", ":2: journal must be True, False or the path of a file, got 3"),
        ("[engine]\nfail_fast = true\nkeep_going = true", ":2, rhapsody.toml:3: fail_fast=True a"),
        ("[engine]\ncores = 2", ":2: unknown key 'cores' in [engine]; write it in the table defau"),
        ("[profile.a]\ncores = 2", ":2: unknown key 'cores' in [profile.a]; write it in the ta"),
        ("implicit_data = false", ":1: unknown key 'implicit_data'; write it in the table engine"),
        ("max_pending = 2", ":1: unknown key 'max_pending'; write it in the table engine"),
        ("resources = {}", ":1: unknown key 'resources'; write its fields in the table defaults: "),
        ("[defaults]\nmax_pending = 2", ":2: unknown key 'max_pending' in [defaults]; write it i"),
        ("[defaults]\ncpus = 2", ":2: unknown key 'cpus' in [defaults]; did you mean 'cores'?"),
        ("[defaults]\ncores = 'two'", ":2: resources: cores must be a number, got 'two'"),
        ("[defaults]\nmemory = 'two'", ":2: memory "),
        ("[defaults]\nretries = -1", ":2: retries must be 0 or more, got -1"),
        ("[defaults]\nretries = {on = 'x'}", ":2: retries: unknown key 'on'; the keys are "),
        ("[defaults]\nretries = ['x']", ":2: retries must be a whole number"),
        ("[defaults]\nresources = {}", ":2: unknown key 'resources' in [defaults]; write its fie"),
        ("[defaults]\nbackend = 'x'", ":2: unknown key 'backend' in [defaults]; the keys are cor"),
        ("[tasks.a]\ntimeout = 'x'", ":2: timeout must be a number of seconds or text such as "),
        ("[tasks]\na = 1", ":2: tasks.a must be a table, got 1"),
        (
            "[options]\ncore = 2",
            ":2: backend 'local' has no option 'core' in [options]; did you mean 'cores'?",
        ),
        (
            "[options]\ncores = 'two'",
            ":2: cores must be a whole number, got 'two' (cores: Number of cores for tasks)",
        ),
        ("[options]\nexecutor = 'threads'", ':2: executor must be "thread" or "process", got '),
        (
            "[options]\nresources.core = 2",
            ":2: backend 'local' has no option 'core' in [options.resources]; di",
        ),
    ],
)
def test_a_mistake_is_reported_with_file_line_and_closest_match(
    write: Write, text: str, said: str
) -> None:
    write(text)
    with pytest.raises(ProfileError, match=f"^{re.escape(f'rhapsody.toml{said}')}"):
        active_profile()


@pytest.mark.parametrize("option", ["executor = 'slurm'", "queue = 'debug'"])
def test_mistakes_in_options_without_a_backend_mention_the_default(
    write: Write, option: str
) -> None:
    write(f"[options]\n{option}\n")
    with pytest.raises(ProfileError, match=r"no backend is set, so these are options of 'local'$"):
        active_profile()
    write(f"backend = 'local'\n[options]\n{option}\n")
    with pytest.raises(ProfileError) as refused:
        active_profile()
    assert "no backend is set" not in str(refused.value)


def test_options_are_checked_without_importing_the_backend(write: Write, site: Path) -> None:
    options = ", options=[BackendOption('speed', int), BackendOption('rate', instead='use speed')]"
    _, heavy = install_backend(site, "toys", "toy", options)
    for text, said in (
        ("spede = 1", "backend 'toy' has no option 'spede' in [options]; did you mean 'speed'?"),
        ("rate = 1", "backend 'toy' has no option 'rate' in [options]; use speed"),
        ("speed = 'x'", "speed must be a whole number, got 'x'"),
    ):
        write(f"backend = 'toy'\n[options]\n{text}\n")
        with pytest.raises(ProfileError, match=re.escape(f"rhapsody.toml:3: {said}")):
            active_profile()
    write("backend = 'toy'\noptions.speed = 1\n")
    assert sources(*active_profile().options.values()) == {"speed": (1, "2")}
    assert heavy not in sys.modules


def test_a_backend_that_declares_no_options_accepts_any(write: Write, site: Path) -> None:
    install_backend(site, "toys", "toy")
    write("backend = 'toy'\noptions.anything = 1\n")
    assert sources(*active_profile().options.values()) == {"anything": (1, "2")}


def test_a_mistake_in_a_pyproject_has_its_line(write: Write, tmp_path: Path) -> None:
    text = "[project]\nname = 'x'\n[tool.rhapsody.profile.a.engine]\nmax_pending = 4\n"
    (tmp_path / "pyproject.toml").write_text(text)
    assert active_profile(Value("a")).engine_options() == {"max_pending": 4}
    (tmp_path / "pyproject.toml").write_text(text.replace("max_pending", "max_pendign"))
    with pytest.raises(ProfileError, match=r"^pyproject\.toml:4: unknown key 'max_pendign' in \["):
        active_profile()


def test_names_are_checked_in_all_profiles_and_both_files(write: Write) -> None:
    write("[profile.other.engine]\nmax_pendign = 1\n", user=True)
    with pytest.raises(ProfileError, match=r"/config/rhapsody\.toml:2: unknown key 'max_pendign'"):
        active_profile()


def test_the_backend_of_a_profile_need_not_be_installed_here(write: Write) -> None:
    write("[profile.far]\nbackend = 'elsewhere'\noptions.x = 1\n")
    assert active_profile().backend is None
    found = active_profile(Value("far"))
    assert found.backend is not None
    assert (found.backend.value, found.backend.source) == ("elsewhere", "rhapsody.toml:2")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lapto", "did you mean 'laptop'?"), ("x", "the profiles are laptop, cluster")],
)
def test_an_unknown_profile_is_reported_with_who_selects_it(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    write("[profile.laptop]\n[profile.cluster]\n")
    monkeypatch.setenv("RHAPSODY_PROFILE", name)
    said = f"unknown profile '{name}' (the environment variable RHAPSODY_PROFILE); {hint}"
    with pytest.raises(ProfileError, match=f"^{re.escape(said)}$"):
        active_profile()
