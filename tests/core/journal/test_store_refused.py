"""Journals that cannot be used, may not be used or are damaged, and options that are none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rhapsody import JournalError, WorkflowEngine
from rhapsody.builtin.journal.store import NotYoursError, require_private
from tests._support.recorded import broken_off, chain, engine, note, ran, tasks

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("here")]


async def test_one_that_others_may_write_is_refused(here: Path) -> None:
    async with engine():
        pass
    assert (here / "run.sqlite").stat().st_mode & 0o777 == 0o600
    (here / "run.sqlite").chmod(0o620)
    with pytest.raises(JournalError, match=rf"by other users.*chmod 600 {here}/run\.sqlite"):
        await WorkflowEngine.create(journal="run.sqlite")


async def test_one_of_another_user_is_refused(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    async with engine():
        pass
    os.chown(here / "run.sqlite", 12345, 12345)
    with pytest.raises(JournalError, match="belongs to another user"):
        await WorkflowEngine.create(journal="run.sqlite")


@pytest.mark.parametrize("suffix", ["-wal", "-journal", "-shm"])
async def test_one_that_another_user_has_added_to_is_refused(here: Path, suffix: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    async with engine():
        pass
    added = here / f"run.sqlite{suffix}"
    added.touch()
    os.chown(added, 12345, 12345)
    with pytest.raises(JournalError, match=f"run.sqlite{suffix} belongs to another user"):
        await WorkflowEngine.create(journal="run.sqlite")


@pytest.mark.parametrize("mode", [0o777, 0o1777])
async def test_none_is_made_where_everybody_may_put_files(here: Path, mode: int) -> None:
    os.chmod(here, mode)
    advice = f", or, if you trust the journal, run: chmod o-w {here}"
    advice = advice if mode == 0o777 else ""  # not for /tmp
    with pytest.raises(JournalError, match=rf"use another directory{advice}$"):
        await WorkflowEngine.create(journal="run.sqlite")
    if os.geteuid() == 0:
        os.chown(here, 12345, 12345)
        with pytest.raises(JournalError, match=r"use another directory$"):
            await WorkflowEngine.create(journal="run.sqlite")
    assert not (here / "run.sqlite").exists()


async def test_none_is_made_in_a_directory_of_another_users() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        os.setresuid(12345, 12345, 0)
        try:
            with pytest.raises(NotYoursError, match="in another user's directory"):
                require_private(Path(directory, "run.sqlite"))
        finally:
            os.setresuid(0, 0, 0)


async def test_the_directory_of_programs_journals_is_private_whatever_the_umask(here: Path) -> None:
    before = os.umask(0)
    try:
        async with WorkflowEngine.create(journal=True):
            pass
    finally:
        os.umask(before)
    journals = here / ".rhapsody" / "journals"
    assert journals.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in journals.glob("*.sqlite")} == {0o600}


async def test_a_link_is_refused(here: Path) -> None:
    (here / "run.sqlite").symlink_to(here / "elsewhere")
    with pytest.raises(JournalError, match="is not a regular file"):
        await WorkflowEngine.create(journal="run.sqlite")
    assert not (here / "elsewhere").exists()


@pytest.mark.parametrize("damage", ["text", "half", "version"])
async def test_a_damaged_one_is_refused(here: Path, damage: str) -> None:
    path = here / "run.sqlite"
    await broken_off(chain)
    if damage == "text":
        path.write_text("no database" * 1000)
    elif damage == "half":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    else:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 77")
    with pytest.raises(JournalError, match="move it away to start a new one"):
        await WorkflowEngine.create(journal="run.sqlite")
    path.unlink()
    async with engine() as flow:
        assert await chain(flow) == 8


async def test_a_result_that_was_changed_in_the_file_is_not_used(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await broken_off(chain)
    with contextlib.closing(sqlite3.connect(here / "run.sqlite")) as database:
        database.execute("UPDATE recordings SET value = ? WHERE uid = 'task.000002'", (b"x",))
        database.commit()
    async with engine() as flow:
        assert await chain(flow) == 8
    assert ran()["double"] == 4
    assert "the recording of 'double' (task.000002) is damaged" in caplog.text


async def test_a_journal_that_cannot_be_written_any_more_is_said(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine() as flow:
        double, _ = tasks(flow)
        await double(1)
        with contextlib.closing(sqlite3.connect(here / "run.sqlite")) as database:
            database.execute("DROP TABLE recordings")
        assert await double(2) == 4
        assert await double(3) == 6
    assert caplog.text.count(": disabled (") == 1


async def test_a_value_that_cannot_be_stored_is_skipped_and_the_journal_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect = sqlite3.connect

    def limited(*args: Any, **more: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **more)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)  # 1 GB, as a rule
        return database

    monkeypatch.setattr(sqlite3, "connect", limited)

    async def program(flow: WorkflowEngine) -> None:
        @flow.function_task
        def made(size: int) -> bytes:
            note(f"made {size}")
            return bytes(size)

        await asyncio.gather(*[made(size) for size in (1, 2, 100_000, 3)])

    await broken_off(program)
    await broken_off(program)
    assert ran() == {"made 1": 1, "made 2": 1, "made 3": 1, "made 100000": 2}
    assert "task 'made' is not recorded: its result cannot be stored" in caplog.text
    assert ": disabled (" not in caplog.text


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"journal": 3}, TypeError, "journal must be True, False or the path of a file, got 3"),
        ({"journal": True, "resume": "yes"}, ValueError, 'resume must be "auto", True or False'),
        ({"resume": True}, ValueError, "pass journal=True as well"),
        ({"journal": True, "journal_max_value": "big"}, ValueError, "journal_max_value must look"),
    ],
)
async def test_bad_options(options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        await WorkflowEngine.create(**options)


async def test_one_whose_path_is_too_long_for_sqlite_is_refused_with_the_reason(here: Path) -> None:
    directory = here.joinpath(*["d" * 100] * 5)
    directory.mkdir(parents=True)
    with pytest.raises(JournalError, match=r"its path has \d+ bytes"):
        await WorkflowEngine.create(journal=directory / "run.sqlite")
