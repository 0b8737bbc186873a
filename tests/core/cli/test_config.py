"""`rhapsody config`: each setting with the place that sets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from tests._support.distributions import install_backend

FILE = """\
default_profile = "laptop"

[defaults]
retries = { attempts = 2, wait = 1 }

[profile.laptop]
backend = "local"
[profile.laptop.options]
executor = "process"
[profile.laptop.engine]
max_pending = 5
work_dir = "work"
[profile.laptop.tasks."sim_*"]
environment = { API_TOKEN = "abc", MODE = "fast" }
[profile.laptop.tasks.align]
cores = 8

[profile.cluster]
backend = "elsewhere"
options.queue = "debug"
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's file; the user has none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "rhapsody.toml"
    path.write_text(FILE)
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["config", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def rows(found: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    return {each["name"]: (each["value"], each["source"]) for each in found["settings"]}


def test_every_setting_is_shown_with_its_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = shown(capsys)
    assert found["files"] == ["rhapsody.toml"]
    assert found["profiles"] == ["laptop", "cluster"]
    settings = rows(found)
    assert settings["profile"] == ("laptop", "rhapsody.toml:1")
    assert settings["backend"] == ("local", "rhapsody.toml:7")
    assert settings["options.executor"] == ("process", "rhapsody.toml:9")
    assert settings["options.grace"] == (5.0, "default")
    assert settings["engine.max_pending"] == (5, "rhapsody.toml:11")
    assert settings["engine.work_dir"] == (str(tmp_path / "work"), "rhapsody.toml:12")
    assert settings["engine.push_down"] == (True, "default")
    assert settings["engine.keep_going"] == (False, "default (rhapsody run: true)")
    assert settings["defaults.cores"] == (1, "default")
    assert settings["defaults.retries"] == ({"attempts": 2, "wait": 1}, "rhapsody.toml:4")
    assert settings["tasks.align.cores"] == (8, "rhapsody.toml:16")
    environment = {"API_TOKEN": "<API_TOKEN>", "MODE": "fast"}
    assert settings['tasks."sim_*".environment'] == (environment, "rhapsody.toml:14")


def test_the_profile_may_be_selected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rows(shown(capsys, "--profile", "cluster"))
    assert settings["profile"] == ("cluster", "--profile")
    assert settings["options.queue"] == ("debug", "rhapsody.toml:20")
    monkeypatch.setenv("RHAPSODY_PROFILE", "cluster")
    settings = rows(shown(capsys))
    assert settings["profile"] == ("cluster", "the environment variable RHAPSODY_PROFILE")
    assert settings["backend"] == ("elsewhere", "rhapsody.toml:19")


def test_an_unknown_backend_is_reported(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    files.write_text("backend = 'locl'\n")
    assert main(["config", "--json"]) == 0  # the program may register it
    printed = capsys.readouterr()
    assert rows(json.loads(printed.out))["backend"] == ("locl", "rhapsody.toml:1")
    assert printed.err.startswith("rhapsody: rhapsody.toml:1: Backend 'locl' not found.")
    assert "Did you mean 'local'?" in printed.err


def test_the_users_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    user = tmp_path / "config" / "rhapsody" / "rhapsody.toml"
    user.parent.mkdir(parents=True)
    user.write_text("[profile.laptop.engine]\nmax_pending = 6\npush_down = false\n")
    found = shown(capsys)
    assert found["files"] == ["rhapsody.toml", str(user)]
    assert rows(found)["engine.max_pending"] == (5, "rhapsody.toml:11")
    assert rows(found)["engine.push_down"] == (False, f"{user}:3")


def test_dates_and_secrets_in_lists_are_shown_as_text(
    capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    files.write_text(
        "[defaults.task_description]\nat = [2026-01-02, 10:00:00]\naccess = [{ token = 'abc' }]\n"
    )
    shown_values = rows(shown(capsys))["defaults.task_description"][0]
    assert shown_values == {"at": ["2026-01-02", "10:00:00"], "access": [{"token": "<token>"}]}


def test_options_of_an_installed_backend_are_listed(
    capsys: pytest.CaptureFixture[str], site: Path, files: Path
) -> None:
    options = ", options=[BackendOption('speed', int, 3, 'Help.'), BackendOption('other')]"
    install_backend(site, "toys", "toy", options)
    files.write_text("backend = 'toy'\n")
    settings = rows(shown(capsys))
    assert settings["options.speed"] == (3, "default")
    assert "options.other" not in settings  # the library describes it
    files.write_text("backend = 'toy'\noptions.other = 'x'\n")
    assert rows(shown(capsys))["options.other"] == ("x", "rhapsody.toml:2")


def test_the_table_fits_on_a_terminal(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    files.write_text("engine.max_pending = 5\n")
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["files: rhapsody.toml", "profiles: none", ""]
    assert lines[3].split() == ["SETTING", "VALUE", "SOURCE"]
    assert [line.split() for line in lines if "max_pending" in line] == [
        ["engine.max_pending", "5", "rhapsody.toml:1"]
    ]
    assert [line.split() for line in lines if "work_dir" in line] == [
        ["engine.work_dir", "-", "default"]
    ]
    assert max(map(len, lines)) <= 80


def test_each_key_of_a_table_has_a_row(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    files.write_text('[defaults]\nenvironment = { MODE = "fast", API_TOKEN = "abc" }\n')
    assert main(["config"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["defaults.environment.MODE", '"fast"', "rhapsody.toml:2"] in lines
    assert ["defaults.environment.API_TOKEN", '"<API_TOKEN>"', "rhapsody.toml:2"] in lines


def test_without_files_only_defaults_are_shown(
    capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    files.unlink()
    found = shown(capsys)
    assert (found["files"], found["profiles"]) == ([], [])
    assert {source.partition(" ")[0] for _, source in rows(found).values()} == {"default"}


def test_a_mistake_in_a_file_is_reported(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    assert main(["config", "--profile", "lapto"]) == 2
    assert "unknown profile 'lapto' (--profile); did you mean 'laptop'?" in capsys.readouterr().err
    files.write_text("backendd = 1\n")
    assert main(["config"]) == 2
    assert "rhapsody.toml:1: unknown key 'backendd'" in capsys.readouterr().err
