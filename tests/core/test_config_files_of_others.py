"""Files with settings that another user has put where a program is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rhapsody.config_files import project_file
from rhapsody.errors import ProfileError
from tests._support.accounts import Accounts

SETTINGS = "[engine]\nmax_pending = 7\n"


def test_a_file_of_another_user_is_refused_until_it_is_trusted(accounts: Accounts) -> None:
    alice, group = accounts.alice, accounts.group
    path = group / "rhapsody.toml"
    words = ("sh", "-c", f"printf '{SETTINGS}' > rhapsody.toml")
    assert accounts.mallory.run(*words, cwd=group).returncode == 0
    refused = alice.rhapsody("config", cwd=group)
    assert refused.returncode == 2
    assert f"rhapsody config trust {path}" in refused.stderr
    assert str(accounts.mallory.uid) in refused.stderr
    assert alice.rhapsody("config", "trust", cwd=group).returncode == 0
    used = alice.rhapsody("config", cwd=group)
    assert (used.returncode, "rhapsody.toml:2" in used.stdout) == (0, True), used.stderr
    assert alice.rhapsody("config", "trust", "--remove", str(path), cwd=group).returncode == 0
    assert alice.rhapsody("config", cwd=group).returncode == 2


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, in a directory that contains a file of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "project" / "rhapsody.toml"
    (path.parent / "here").mkdir(parents=True)
    path.write_text(SETTINGS)
    os.chown(path, 12345, -1)
    monkeypatch.chdir(path.parent / "here")
    return path


def test_a_file_of_another_user_in_a_directory_above_is_refused(other: Path) -> None:
    with pytest.raises(ProfileError, match="belongs to user 12345"):
        project_file()
    os.chown(other.parent, 12345, -1)
    with pytest.raises(ProfileError, match="belongs to user 12345"):
        project_file()


def test_a_trusted_file_is_used_wherever_it_is(other: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "rhapsody").mkdir(parents=True)
    (tmp_path / "config" / "rhapsody" / "trusted").write_text(f"/elsewhere\n{other}\n")
    for mode in (0o755, 0o1777):
        other.parent.chmod(mode)
        found = project_file()
        assert found is not None
        assert found.path == other


def test_anyone_may_put_a_file_into_a_directory_such_as_tmp(other: Path) -> None:
    other.parent.chmod(0o1777)
    assert project_file() is None


def test_a_link_of_another_user_is_refused(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(other.parent)
    os.chown(other, 0, -1)
    other.rename(other.with_name("mine.toml"))
    other.symlink_to("mine.toml")
    assert project_file() is not None
    os.chown(other, 12345, -1, follow_symlinks=False)
    with pytest.raises(ProfileError, match="belongs to user 12345"):
        project_file()


def test_a_file_that_all_users_can_write_to_is_refused(other: Path) -> None:
    os.chown(other, 0, -1)
    other.chmod(0o666)
    with pytest.raises(ProfileError, match="chmod o-w"):
        project_file()


def test_a_pyproject_of_another_user_without_settings_is_ignored(other: Path) -> None:
    other.unlink()
    path = other.with_name("pyproject.toml")
    path.write_text("[project]\nname = 'rhapsody-user'\n")
    os.chown(path, 12345, -1)
    assert project_file() is None
