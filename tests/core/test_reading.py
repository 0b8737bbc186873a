"""Files are read without releasing the program's locks on them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody.builtin.journal.files import FileDigests, has_log
from rhapsody.reading import pieces, start_of

WRITES = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=0)
try:
    database.execute("insert into t values (1)")
except sqlite3.OperationalError as error:
    print(error)
"""


def write_elsewhere(path: Path) -> str:
    """Write to a database in another process, and return the error."""
    command = [sys.executable, "-c", WRITES, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def digest(path: str) -> object:
    return FileDigests().of(path)


def content(path: str) -> object:
    return b"".join(pieces(path))


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("read", [digest, content, has_log, lambda path: start_of(path, 5)])
def test_a_database_stays_locked(read: Callable[[str], object], rows: int, tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("create table t (a)")
        database.execute("begin")
        database.executemany("insert into t values (?)", [(n,) for n in range(rows)])
        database.execute("commit")
        database.execute("begin exclusive")
        before = psutil.Process().num_fds()
        for _ in range(3):
            read(str(path))
            assert "locked" in write_elsewhere(path)
        assert psutil.Process().num_fds() <= before + 1
        database.execute("commit")
        assert write_elsewhere(path) == ""


def test_descriptors_of_other_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table t (a)")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("text" * 100_000)
    before = psutil.Process().num_fds()
    for name in ("data.sqlite", "empty", "text"):
        assert content(str(tmp_path / name)) == (tmp_path / name).read_bytes()
        assert start_of(str(tmp_path / name), 3) == (tmp_path / name).read_bytes()[:3]
    assert psutil.Process().num_fds() == before
    with pytest.raises(FileNotFoundError):
        content(str(tmp_path / "missing"))


def test_a_replaced_database_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "data.sqlite", tmp_path / "other.sqlite"
    for place, name in ((path, "a"), (other, "b")):
        with closing(sqlite3.connect(place)) as database:
            database.execute(f"create table {name} (a)")
    with closing(sqlite3.connect(path)) as database:
        database.execute("select * from a")
        first = content(str(path))
        os.replace(other, path)
        assert content(str(path)) == path.read_bytes() != first


@pytest.mark.asyncio
async def test_tasks_read_what_the_program_has_written_to_its_database(here: Path) -> None:
    path = here / "data.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table t (a)")
        backend = LocalExecutionBackend("process", resources={"cores": 1})
        async with WorkflowEngine.create(backend, journal="run.sqlite") as flow:
            total = flow.function_task(sum_of)
            for expected in (1, 2, 3):
                database.execute("insert into t values (1)")
                database.commit()
                assert await total(str(path)) == expected


def sum_of(path: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        (number,) = database.execute("select sum(a) from t").fetchone()
        return int(number)
