"""Files with settings: where they are found, and on which lines their keys are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody.config_files import ConfigFile, project_file, read, user_file
from rhapsody.errors import ProfileError

TEXT = '''\
# a comment: [not.a.table]
default_profile = "a"

[profile.a]
backend = "local"  # = "dask"
options = { executor = "process", workers = 2 }
engine.max_pending = 3

[profile.a.defaults]
environment.TEXT = """
[tasks]
cores = 1
"""
limit = [
  "license:2",
  "disk:1",
]
[profile."b c".tasks."align*"]
cores = 8
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("default_profile", 2),
        ("profile", 4),
        ("profile a", 4),
        ("profile a backend", 5),
        ("profile a options", 6),
        ("profile a options workers", 6),
        ("profile a engine max_pending", 7),
        ("profile a defaults", 9),
        ("profile a defaults environment TEXT", 10),
        ("profile a defaults limit", 14),
        ("profile b_c tasks align* cores", 19),
    ],
)
def test_the_line_of_a_key_is_found(tmp_path: Path, keys: str, line: int) -> None:
    path = tmp_path / "rhapsody.toml"
    path.write_text(TEXT)
    found = read(path)
    assert found is not None
    assert found.where(tuple(each.replace("_c", " c") for each in keys.split())) == (
        f"rhapsody.toml:{line}"
    )


def test_a_key_in_a_pyproject_has_the_line_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\nname = 'x'\n\n[tool.rhapsody.profile.a]\nbackend = 'noop'\n")
    found = read(path)
    assert found is not None
    assert found.data == {"profile": {"a": {"backend": "noop"}}}
    assert found.where(("profile", "a", "backend")) == "pyproject.toml:5"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = 1\nb = [1\nc = 2\n", r"^rhapsody\.toml:3: invalid TOML: Unclosed array$"),
        (b"a = " + b"[" * 100_000, r"^rhapsody\.toml: nested too deeply$"),
        (b"#" * (1 << 20 | 1), r"^rhapsody\.toml: longer than 1048576 bytes$"),
        (b"a = 1\na = 2\n", r"^rhapsody\.toml:2: invalid TOML: Cannot overwrite a value$"),
        (b"\nbackend = dask # x\n", r':2: .*; text needs quotes: backend = "dask"$'),
        (b"[engine]\ntimeout = 3h\n", r':2: .*; text needs quotes: timeout = "3h"$'),
        (b"[engine]\nresume = True\n", r":2: .*; write resume = true$"),
        (b"\n[profile\n", r"^rhapsody\.toml:2: invalid TOML: Expected "),
        (b"a = '\xff'\n", r"^rhapsody\.toml: not UTF-8: "),
    ],
)
def test_a_file_that_is_no_toml_is_reported_with_the_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "rhapsody.toml").write_bytes(content)
    with pytest.raises(ProfileError, match=said):
        project_file()


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rhapsody.toml").symlink_to("rhapsody.toml")
    with pytest.raises(ProfileError, match=r"^rhapsody\.toml: cannot be read: "):
        project_file()


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rhapsody.toml"
    for text in ("a = 1", "a = 22"):
        path.write_text(text)
        found = project_file()
        assert found is not None
        assert found.text == text


def found_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFile | None:
    directory.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(directory)
    return project_file()


def test_the_nearest_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rhapsody.toml").write_text("backend = 'noop'")
    (tmp_path / "pyproject.toml").write_text("[tool.rhapsody]\n")
    inner = tmp_path / "a"
    found = found_from(inner / "b", monkeypatch)
    assert found is not None
    assert found.path == tmp_path / "rhapsody.toml"
    assert found.where(()) == str(found.path)
    (inner / "pyproject.toml").write_text("[project]\nname = 'rhapsody-user'\n")
    assert project_file() == found  # that file has no settings of ours
    (inner / "pyproject.toml").write_text("[tool.rhapsody]\nbackend = 'local'\n")
    found = project_file()
    assert found is not None
    assert found.path == inner / "pyproject.toml"


@pytest.mark.parametrize("root", [".git", ".hg"])
def test_the_search_ends_at_the_root_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    (tmp_path / "rhapsody.toml").write_text("")
    (tmp_path / "project" / root).mkdir(parents=True)
    assert found_from(tmp_path / "project" / "a", monkeypatch) is None
    (tmp_path / "project" / "rhapsody.toml").write_text("")
    assert project_file() is not None


def test_the_search_ends_at_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rhapsody.toml").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert found_from(tmp_path / "home" / "a", monkeypatch) is None


def test_a_file_in_a_parent_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "rhapsody.toml").write_text("")
    shared.chmod(0o1777)
    assert found_from(shared / "mine", monkeypatch) is None
    assert found_from(shared, monkeypatch) is not None
    shared.chmod(0o775)
    assert found_from(shared / "mine", monkeypatch) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_a_file_in_a_parent_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rhapsody.toml").write_text("")
    os.chown(tmp_path, 12345, -1)
    assert found_from(tmp_path / "mine", monkeypatch) is None


def test_a_parent_without_permissions_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rhapsody.toml").write_text("")
    stat = os.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if Path(path).is_relative_to(tmp_path / "closed" / "mine"):
            return stat(path, **options)
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "closed" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "closed" / "mine")
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", refuse)
        assert project_file() is None
        assert read(tmp_path / "rhapsody.toml") is None


def test_a_user_without_a_home_directory_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # no entry in passwd either
    assert user_file() is None
