"""Directories of runs that another user has made, may write to, or replaces meanwhile."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine, fsutil
from tests._support.accounts import GROUP, READS, Account, Accounts

NAME = "20261120T041233-digits-7f3a"

FUNCTION = "async def main(flow): print(await flow.function_task(lambda: 'good')())"
EXECUTABLE = "async def main(flow): print(await flow.executable_task(lambda: 'echo good')())"

CLEAN = """
from rhapsody.cli import main
from rhapsody.sdk import runs

def found(base):
    listed = left_runs(base)
    print(flush=True)
    input()
    return listed

left_runs, runs.left_runs = runs.left_runs, found
print(main(["clean"]))
"""
"""`rhapsody clean`, which waits when it has listed the runs."""


def made(account: Account, path: Path, mode: int = 0o700) -> Path:
    """Make a directory of a user with a file."""
    path.mkdir()
    path.chmod(mode)
    (path / "data").write_text("x")
    account.owns(path, path / "data")
    return path


def shared(place: Path, mode: int = 0o2775) -> Path:
    """Make a `.rhapsody` directory of the group, in which its members can replace entries."""
    base = place / ".rhapsody"
    base.mkdir()
    os.chown(base, 0, GROUP)
    base.chmod(mode)
    return base


@pytest.mark.parametrize("swap", ["ln -s $PWD/$FOLDER $RUN", "mv $FOLDER $RUN"])
def test_what_replaces_a_listed_run_is_not_removed(accounts: Accounts, swap: str) -> None:
    base = shared(accounts.group)
    run = made(accounts.alice, base / NAME)
    made(accounts.alice, base / "thesis")
    clean = (sys.executable, "-c", CLEAN)
    with accounts.alice.start(*clean, cwd=accounts.group) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        words = ("sh", "-ec", f"mv $RUN aside; {swap}")
        done = accounts.mallory.run(*words, cwd=base, RUN=NAME, FOLDER="thesis")
        assert done.returncode == 0, done.stderr
        out, err = process.communicate("\n")
    assert f"cannot remove {run}" in err, (out, err)
    assert (run / "data").read_text() == "x"  # through the link, or in the directory


@pytest.mark.parametrize(
    ("owner", "mode", "cure"),
    [("mallory", 0o777, "o-w"), ("mallory", 0o755, "work_dir"), ("alice", 0o777, "o-w")],
)
def test_runs_in_a_directory_that_another_user_controls_are_not_cleaned(
    accounts: Accounts, owner: str, mode: int, cure: str
) -> None:
    base = shared(accounts.group)
    run = made(accounts.alice, base / NAME)
    base.chmod(mode)
    os.chown(base, getattr(accounts, owner).uid, -1)
    done = accounts.alice.rhapsody("clean", cwd=accounts.group)
    assert done.returncode == 1
    assert str(base) in done.stderr
    assert cure in done.stderr
    assert run.exists()


def test_a_link_of_another_user_is_no_directory_of_runs(accounts: Accounts) -> None:
    base = accounts.alice.home / "elsewhere"
    base.mkdir()
    accounts.alice.owns(base)
    run = made(accounts.alice, base / NAME)
    link = accounts.group / ".rhapsody"
    assert accounts.mallory.run("ln", "-s", str(base), str(link), cwd=accounts.group).stderr == ""
    done = accounts.alice.rhapsody("clean", cwd=accounts.group)
    assert done.returncode == 1
    assert run.exists()


def test_tasks_use_no_directory_of_another_user(accounts: Accounts) -> None:
    base = shared(accounts.group, 0o777)
    accounts.mallory.owns(base)
    for program in (FUNCTION, EXECUTABLE):
        (accounts.group / "flow.py").write_text(program)
        done = accounts.alice.rhapsody("run", "flow.py", cwd=accounts.group)
        assert done.returncode == 2
        assert "can write to it" in done.stderr
    assert list(base.iterdir()) == []


def test_functions_need_no_directory_that_belongs_to_another_user(accounts: Accounts) -> None:
    base = shared(accounts.group, 0o700)
    accounts.mallory.owns(base)
    (accounts.group / "flow.py").write_text(FUNCTION)
    done = accounts.alice.rhapsody("run", "flow.py", cwd=accounts.group)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
    assert "is not recorded" in done.stderr
    (accounts.group / "flow.py").write_text(EXECUTABLE)
    done = accounts.alice.rhapsody("run", "flow.py", cwd=accounts.group)
    assert done.returncode == 1
    assert "chmod g+rwxs,+t" in done.stderr


def test_the_members_of_a_group_share_a_directory_and_not_their_runs(accounts: Accounts) -> None:
    (accounts.group / "flow.py").write_text(EXECUTABLE)
    for account in (accounts.alice, replace(accounts.mallory, rights=READS)):
        done = account.rhapsody("run", "flow.py", cwd=accounts.group)
        assert (done.returncode, done.stdout) == (0, "good\n\n"), done.stderr
    base = accounts.group / ".rhapsody"
    for path in (base, base / "journals"):
        assert path.stat().st_mode & 0o7777 == 0o3770
    runs = [path for path in base.iterdir() if path.name[:1].isdigit()]
    assert sorted(run.stat().st_uid for run in runs) == [GROUP + 1, GROUP + 2]
    assert {run.stat().st_mode & 0o077 for run in runs} == {0}
    assert (base / "latest").lstat().st_uid == accounts.alice.uid
    theirs = next(run for run in runs if run.stat().st_uid == accounts.alice.uid)
    assert accounts.mallory.run("mv", theirs.name, "aside", cwd=base).returncode != 0


def test_the_directory_of_runs_is_private_whatever_the_umask(accounts: Accounts) -> None:
    here = accounts.alice.home
    (here / "flow.py").write_text(EXECUTABLE)
    done = accounts.alice.rhapsody("run", "flow.py", cwd=here, umask=0)
    assert done.returncode == 0, done.stderr
    found = [here / ".rhapsody", *(here / ".rhapsody").rglob("*")]
    assert [path for path in found if not path.is_symlink() and path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("how", ["group", "acl", "parent"])
def test_a_directory_is_shared_only_by_a_group_of_the_user(accounts: Accounts, how: str) -> None:
    """Another user can make one that looks like it, with a group or a list of users."""
    base = shared(accounts.group, 0o3770)
    accounts.mallory.owns(base)
    if how == "group":
        os.chown(base, -1, accounts.mallory.uid)
        base.chmod(0o3775)
    elif how == "acl":
        entries = ((1, 7, -1), (2, 7, accounts.alice.uid), (4, 7, -1), (16, 7, -1), (32, 0, -1))
        packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
        try:
            os.setxattr(base, "system.posix_acl_access", struct.pack("<I", 2) + packed)
        except OSError as error:
            pytest.skip(f"no access control lists here: {error}")
    else:
        accounts.group.chmod(0o3777)
    run = made(accounts.alice, base / NAME)
    done = accounts.alice.rhapsody("clean", cwd=accounts.group)
    assert done.returncode == 1
    assert "work_dir of your own" in done.stderr
    assert run.exists()


@pytest.mark.parametrize("name", ["trace.jsonl", "record.jsonl", "record.output.gz"])
def test_a_file_that_another_user_has_made_is_not_written(accounts: Accounts, name: str) -> None:
    file = accounts.group / name
    file.touch()
    file.chmod(0o666)
    accounts.mallory.owns(file)
    argument = name.partition(".")[0]
    options: dict[str, Any] = {argument: accounts.group / f"{argument}.jsonl"}
    with pytest.raises(ValueError, match=f"{name}.*another user"):
        WorkflowEngine.create(**options)
    if name.endswith(".jsonl"):
        with pytest.raises(PermissionError, match="another user"):
            fsutil.open_own(file, os.O_WRONLY)
