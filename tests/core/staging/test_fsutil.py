"""A task that failed where a disk is full says so, and which."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import OutputFile, TaskFailedError, WorkflowEngine
from rhapsody.builtin.journal.plugin import Journal
from rhapsody.errors import JournalError
from rhapsody.fsutil import disk_use, full_disk, mount_of, state_of
from tests._support.scripted import within


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, which only root can make."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def failure(future: asyncio.Future[Any]) -> tuple[BaseException, str]:
    """Return the exception of a future, and its notes."""
    await within(asyncio.wait([future]))
    error = future.exception()
    assert error is not None
    return error, "\n".join(getattr(error, "__notes__", []))


def filled(disk: Path) -> OSError:
    """Writes until nothing more goes in, and says what is raised then."""
    with open(disk / "big", "wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError as error:
                return error


@pytest.mark.asyncio
async def test_a_program_that_fills_its_disk_says_which(disk: Path) -> None:
    async with WorkflowEngine.create(work_dir=disk / "work") as flow:
        good = flow.executable_task(lambda: "exit 3")()
        error, note = await failure(good)
        assert "full" not in f"{error} {note}"
        error, note = await failure(flow.executable_task(lambda: "cat /dev/zero > big")())
        assert isinstance(error, TaskFailedError)
        said = f"ended with exit code 1 (no space left on device: {disk} is full): cat"
        assert said in str(error)
        assert "is full" not in note


@pytest.mark.asyncio
@pytest.mark.parametrize("catches", [True, False])
async def test_a_function_that_fills_its_disk_says_which(disk: Path, catches: bool) -> None:
    async with WorkflowEngine.create(work_dir=disk / "work") as flow:

        @flow.function_task
        def fill(out: OutputFile) -> None:
            try:
                Path(out).write_bytes(b"x" * 2_000_000)
            except OSError:
                if catches:
                    raise RuntimeError("as libraries do") from None
                raise

        error, note = await failure(fill(OutputFile("big")))
        assert type(error) is (RuntimeError if catches else OSError)
        assert note.count(f"no space left on device: {disk} is full") == 1


@pytest.mark.asyncio
async def test_a_sandbox_that_cannot_be_made_says_why(disk: Path) -> None:
    (disk / "work").mkdir()
    filled(disk)
    async with WorkflowEngine.create(work_dir=disk / "work") as flow:
        error, note = await failure(flow.executable_task(lambda: "echo x; exit 1")())
        assert f"no space left on device: {disk} is full" in f"{error}\n{note}"


def test_a_journal_that_cannot_begin_says_which_disk_is_full(disk: Path) -> None:
    filled(disk)
    with pytest.raises(JournalError, match=f"{disk} is full: free some space"):
        Journal(disk / "run.sqlite", disk)


def test_an_error_about_space_names_the_disk_of_its_file(disk: Path) -> None:
    error = filled(disk)
    assert error.errno == errno.ENOSPC
    error.filename = str(disk / "more" / "a.txt")
    assert full_disk(None, error) is None  # that directory is not there
    error.filename = str(disk / "a.txt")
    assert full_disk(None, error) == f"no space left on device: {disk} is full"
    assert full_disk(None, ValueError("other")) is None


def test_where_there_is_space_or_nothing_can_be_seen_nothing_is_said(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "gone"), "/proc", "with\0null", None):
        assert full_disk(path) is None
    assert full_disk(None, OSError(errno.ENOSPC, "full", str(tmp_path / "x"))) is None


def test_the_mount_point_of_a_path_is_found(tmp_path: Path) -> None:
    point = mount_of(str(tmp_path / "not" / "there"))
    assert os.path.ismount(point)
    assert os.stat(point).st_dev == os.stat(tmp_path).st_dev


@pytest.mark.asyncio
async def test_what_runs_take_on_the_disk_is_in_the_summary(here: Path) -> None:
    async with WorkflowEngine.create() as flow:
        await flow.executable_task(lambda out: f"truncate -s 2G {out}")(OutputFile("big"))
    assert flow.summary is not None
    assert flow.summary.disk_use > 2 * 1024**3
    async with WorkflowEngine.create() as flow:
        pass
    assert flow.summary is not None
    assert flow.summary.disk_use == 0
    assert disk_use(here / "nowhere") == 0


def test_a_lock_ends_with_the_program_although_a_forked_child_continues(tmp_path: Path) -> None:
    code = """
import os, sys
from rhapsody.fsutil import FileLock

lock = FileLock("lock")
if os.fork() == 0:
    lock.release()
    sys.stdin.read()
os._exit(0)
"""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=tmp_path) as program:
        assert program.wait(60) == 0
        assert state_of(tmp_path / "lock") == "left"
