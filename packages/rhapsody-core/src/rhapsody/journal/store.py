"""The file of a journal: an SQLite database, read and written on a thread of its own.

A lineage is a run and those that have taken it up: they share their recordings. In it the n-th
recording of a key belongs to the n-th call with that key.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rhapsody.errors import JournalError

T = TypeVar("T")

SCHEMA = 1
"""The version of the tables, the database's `user_version`."""

_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, lineage INTEGER NOT NULL, began REAL NOT NULL, ended REAL, how TEXT
) STRICT;
CREATE TABLE recordings (
    lineage INTEGER NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL, run INTEGER NOT NULL,
    name TEXT NOT NULL, uid TEXT NOT NULL, parts TEXT NOT NULL, code BLOB, value BLOB NOT NULL,
    PRIMARY KEY (lineage, key, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE codes (digest BLOB PRIMARY KEY, parts TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Recording:
    """A result, as it is written.

    Attributes:
        key: The digest of the task's key.
        number: Which call with that key it was in its run, from 1.
        name: The task's name.
        uid: Its uid in its engine.
        parts: What the key was made of.
        code: The digest of its code's part.
        value: The packed value.
    """

    key: bytes
    number: int
    name: str
    uid: str
    parts: Mapping[str, str]
    code: bytes | None
    value: bytes


class Store:
    """A journal's file.

    Args:
        path: Where it is, or is made: for its user alone.

    Attributes:
        run: The number of this run.
        reused: How many recordings there were to take up when this run began.

    Raises:
        JournalError: It cannot be used; the text says why and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.run: int = 0
        self.reused: int = 0
        self._lineage = 0
        self._executor = ThreadPoolExecutor(1, "rhapsody-journal")
        _require_private(path)
        try:
            self._database: sqlite3.Connection = self._executor.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._executor.shutdown()
            raise JournalError(f"journal {path}: {error}; move it away to begin another") from error

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self.path, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.strip().split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise sqlite3.DatabaseError(f"its tables have version {version}, not {SCHEMA}")
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Calls something with the database on its thread, after what came before."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, self._database)

    def begin(self, resume: bool | None) -> None:
        """Begins a run.

        Args:
            resume: Whether it takes up the recordings of the one before; `None`: where that one has
                not ended well.
        """
        self._executor.submit(self._begin, resume).result()

    def _begin(self, resume: bool | None) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        last = database.execute("SELECT lineage, how FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        lineage, how = last if last is not None else (0, "done")
        if not (how != "done" if resume is None else resume and last is not None):
            lineage += 1
        found = database.execute(
            "INSERT INTO runs (lineage, began) VALUES (?, ?) RETURNING id", (lineage, time.time())
        ).fetchone()
        self.run, self._lineage = found[0], lineage
        (self.reused,) = database.execute(
            "SELECT count(*) FROM recordings WHERE lineage = ?", (lineage,)
        ).fetchone()
        database.execute("COMMIT")

    def find(self, database: sqlite3.Connection, key: bytes, number: int) -> bytes | None:
        """The packed value of an earlier run; on the journal's thread."""
        row = database.execute(
            "SELECT value FROM recordings WHERE lineage = ? AND key = ? AND number = ? AND run < ?",
            (self._lineage, key, number, self.run),
        ).fetchone()
        return None if row is None else row[0]

    def write(
        self,
        database: sqlite3.Connection,
        recordings: Iterable[Recording],
        codes: Mapping[bytes, Mapping[str, str]],
    ) -> None:
        """Keeps results, and what the codes in them were made of; on the journal's thread."""
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(
                "INSERT OR IGNORE INTO codes VALUES (?, ?)",
                [(digest, json.dumps(parts)) for digest, parts in codes.items()],
            )
            database.executemany(
                "INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        self._lineage,
                        one.key,
                        one.number,
                        self.run,
                        one.name,
                        one.uid,
                        json.dumps(one.parts),
                        one.code,
                        one.value,
                    )
                    for one in recordings
                ],
            )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def close(self, how: str) -> None:
        """Ends the run; what is under way is done before.

        Args:
            how: `"done"`, or how it ended otherwise.
        """
        self._executor.submit(self._close, how).result()
        self._executor.shutdown()

    def _close(self, how: str) -> None:
        database = self._database
        if self.run:
            now = time.time()
            database.execute(
                "UPDATE runs SET ended = ?, how = ? WHERE id = ?", (now, how, self.run)
            )
            if how == "done":
                database.execute("DELETE FROM recordings WHERE lineage < ?", (self._lineage,))
        database.close()


def _require_private(path: Path) -> None:
    """Raises where somebody else could write into a journal: it holds pickles.

    Raises:
        JournalError: It says what to do.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error
    if found.st_uid != os.getuid():
        raise JournalError(f"journal {path} is another user's, and what is in it could be code")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise JournalError(
            f"journal {path} can be written by others, and what is in it could be code; if it is "
            f"yours alone: chmod 600 {path}"
        )
