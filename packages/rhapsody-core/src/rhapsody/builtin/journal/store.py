"""Journal file: an SQLite database that a run writes on a separate thread, and that reports read.

A recording is a task's result in the journal. A lineage is a run together with all runs that
resumed it, directly or indirectly; they share their recordings. Within a lineage, the n-th
recording of a key belongs to the n-th call with that key.

A run may do less than the runs before, or share the journal with other runs, so it leaves their
recordings alone. A run that resumes takes over the recordings of all lineages that it may reuse.
Recordings are removed if the same call was recorded again, if `--fresh` or `--rerun` made them
unusable, or if no run has used them for `KEPT_FOR`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import logging
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from rhapsody.builtin.journal.files import Stamp
from rhapsody.builtin.journal.values import DIGEST_SIZE
from rhapsody.errors import JournalError
from rhapsody.fsutil import (
    FileLock,
    full_disk,
    make_shared_directory,
    on_network,
    state_of,
)
from rhapsody.identity import label
from rhapsody.sdk.runs import BASE, NOTEBOOK, make_base, program

T = TypeVar("T")

log: logging.Logger = logging.getLogger("rhapsody.journal")

DIRECTORY = "journals"
"""Name of the directory in `.rhapsody` that contains the journals of programs."""

SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite uses for a database, including the database itself."""

SCHEMA = 4
"""Version of the tables, stored as the database's `user_version`."""

KEPT_FOR = 30 * 86_400.0
"""Number of seconds for which a result that no run uses is kept."""

BUSY_TIMEOUT = 30.0
"""Maximum number of seconds to wait while another process writes to the same journal."""

UNREADABLE = (sqlite3.Error, OSError, ArithmeticError, AttributeError, LookupError, RecursionError,
    SyntaxError, TypeError, ValueError)  # fmt: skip
"""Errors raised for a file that is damaged or was not written by Rhapsody."""

UNSTORABLE = (sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError, MemoryError)
"""Errors raised by `sqlite3` that concern a single value, not the journal."""

FILES_MISSING, FILES_REGENERATED = 1, 2
"""States of the files of a recording that a run has used.

`FILES_MISSING`: some are missing. `FILES_REGENERATED`: some were missing and have been produced
again. The state of all other recordings is 0.
"""

How = Literal["done", "failed", "interrupted"]
"""Outcome of a run. The outcome of a run that was killed is not recorded."""

# The clock can be set back, so events of overlapping runs are ordered by the number of the newest
# run at that time (`runs.active`, `recordings.made`). With `AUTOINCREMENT`, no number is used
# twice.
#
# The recordings have no index by key: keys are random, so each insertion would write to another
# page of the index. Runs that resume another run create the table `earlier` instead.
_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, lineage INTEGER NOT NULL, began REAL NOT NULL,
    ended REAL, how TEXT, kept INTEGER NOT NULL DEFAULT 0, reused INTEGER NOT NULL DEFAULT 0,
    fresh INTEGER NOT NULL DEFAULT 0, active INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE refused (run INTEGER, name TEXT, why TEXT NOT NULL, PRIMARY KEY (run, name));
CREATE TABLE recordings (
    id INTEGER PRIMARY KEY, lineage INTEGER NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL,
    run INTEGER NOT NULL, made INTEGER NOT NULL, used INTEGER NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0, parts TEXT NOT NULL, code BLOB, files TEXT, why TEXT,
    value BLOB NOT NULL, intact BLOB NOT NULL, opened TEXT, began REAL
);
CREATE TABLE codes (digest BLOB PRIMARY KEY, parts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE digests (
    device INTEGER, inode INTEGER, size INTEGER, changed INTEGER, digest BLOB NOT NULL,
    PRIMARY KEY (device, inode, size, changed)
) WITHOUT ROWID;
"""

_EARLIER_TABLE = """
CREATE TEMP TABLE earlier (key BLOB, number INTEGER, id INTEGER, PRIMARY KEY (key, number))
WITHOUT ROWID
"""

_EARLIER = """
INSERT OR REPLACE INTO earlier
SELECT key, number, id FROM recordings
WHERE lineage = ? AND made >= (SELECT coalesce(max(id), 0) FROM runs WHERE fresh)
ORDER BY used, id
"""

_INSERT = """
INSERT INTO recordings (
    lineage, run, made, used, key, number, name, uid, parts, code, value, intact
) VALUES (%d, %d, %d, %d, ?, ?, ?, ?, ?, ?, ?, ?)
"""
"""Statement that adds a result. The numbers that all results of a batch share are part of the
statement, because binding them to each row takes longer."""

_INSERT_MORE = """
INSERT INTO recordings (
    lineage, run, made, used, key, number, name, uid, parts, code, value, intact, files, why, opened
) VALUES (
    %d, %d, %d, %d, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''), nullif(?, ''), nullif(?, '')
)
"""
"""Statement that adds a result with files, or one that replaces an earlier one."""

OUTDATED = -1
"""Number in the column `made` of results that `--rerun` has made unusable. They are removed at the
end of the next run that succeeds."""

COPIED = 0
"""Number that stands for the run of a result that was copied from another journal. The column
`began` of such a recording contains the time at which the run that made the result began."""


class JournalInUseError(JournalError):
    """The journal is in use by another run."""


class NotYoursError(JournalError):
    """The journal belongs to another user."""


class JournaledRun(NamedTuple):
    """Run of a program, as recorded in a journal.

    Attributes:
        number: The run's number in the journal.
        lineage: The number that the run shares with the runs it resumes, directly or indirectly.
        began: The start time, in seconds since the epoch. If the clock was set back, this is just
            after the start of the previous run.
        how: The recorded outcome. If none is recorded: `"killed"`, `"running"`, or `None` if it is
            unknown which of the two is true.
        kept: Number of results that the run recorded.
        reused: Number of results of earlier runs that the run used.
        active: The number of the newest run when this run ended or was last known to be running.
        fresh: True if the run ignored all earlier results on request.
    """

    number: int
    lineage: int
    began: float
    how: str | None
    kept: int
    reused: int
    active: int
    fresh: bool


_STATUS_BY_LOCK = {"held": "running", "free": "killed", "left": "killed"}
"""Status of a run without a recorded outcome, by the state of the run's lock."""


def runs_in(database: sqlite3.Connection, path: Path) -> list[JournaledRun]:
    """Return the runs in a journal, oldest first."""
    # A run records its outcome before it releases its lock, so the locks are checked first.
    unended = database.execute("SELECT id FROM runs WHERE how IS NULL").fetchall()
    ends: dict[int, str | None] = {}
    if not on_network(path.parent):
        for (number,) in unended:
            ends[number] = _STATUS_BY_LOCK.get(state_of(lock_of(path, number)))
    rows = database.execute(
        "SELECT id, lineage, began, how, kept, reused, max(id, active), fresh FROM runs ORDER BY id"
    )
    return [
        JournaledRun(
            number, lineage, began, how or ends.get(number), kept, reused, active, bool(fresh)
        )
        for number, lineage, began, how, kept, reused, active, fresh in rows
    ]


def _unfinished(runs: Sequence[JournaledRun]) -> list[int]:
    """Return the lineages whose last run did not succeed, oldest first.

    Runs may overlap, so a run that succeeded excludes a lineage only if the lineage was inactive
    before.

    Args:
        runs: All runs of the journal, oldest first.
    """
    last: dict[int, JournaledRun] = {}
    active: dict[int, int] = {}
    succeeded = 0
    for run in runs:
        last[run.lineage] = run
        active[run.lineage] = max(run.active, active.get(run.lineage, 0))
        if run.how == "done":
            succeeded = run.number
    return [
        lineage
        for lineage, run in last.items()
        if active[lineage] >= succeeded and run.how != "done"
    ]


class Recording(NamedTuple):
    """Result of a task, as it is written to the database.

    Attributes:
        key: The digest of the task's key.
        number: The number of the call among the calls of the run with this key, starting at 1.
        name: The task's name.
        uid: The task's uid in its engine.
        parts: The parts of the key. See `rhapsody.builtin.journal.keys.as_text`.
        code: See `rhapsody.builtin.journal.keys.Key`.
        files: The files that the task wrote, as JSON; `None` if there are none.
        why: The reason why an earlier recording of the call was not used; `None` if there was no
            such recording.
        value: The pickled tuple of value, standard output, standard error and exit code.
        opened: The undeclared files that the task opened, as JSON; `None` if there are none.
    """

    key: bytes
    number: int
    name: str
    uid: str
    parts: str
    code: bytes | None
    files: str | None
    why: str | None
    value: bytes
    opened: str | None = None


class Store:
    """Journal file, opened for writing by a run. Only the store's thread uses the database.

    Args:
        path: The file's path. A missing file is created so that only the current user can read and
            write it.
        shared: True if another run may use the journal at the same time.

    Attributes:
        path: The file's path.
        run: The number of this run; 0 before `begin`.
        lineage: The number that this run shares with the runs it resumes, directly or indirectly; 0
            before `begin`.
        origin: A string that identifies the lineage, also after the journal was removed.
        reused: Number of recorded results that were available when this run began.
        began: The time at which this run began, in seconds since the epoch, and later than the
            start of each earlier run; 0 before `begin`.
        fresh_since: The start of the last run that ignored earlier results; 0 if there was none.
        outdated: The names of tasks whose results `--rerun` has made unusable since the last run
            that succeeded.
        before: The outcome of the previous run, which this run resumes; `"killed"` if this run
            resumes none or the outcome is unknown.
        kept: Number of results that this run has recorded.
        used: The state of the files (see `FILES_MISSING`) of each recorded result that this run has
            used, by the result's id in the database.

    Raises:
        JournalInUseError: Another run uses the journal, which is on a network file system and
            therefore cannot be shared.
        JournalError: The journal cannot be used.
    """

    def __init__(self, path: Path, *, shared: bool) -> None:
        self.path: Path = path
        self.run: int = 0
        self.reused: int = 0
        self.began: float = 0.0
        self.before: str = "killed"
        self.used: dict[int, int] = {}
        self._starts: dict[int, float] = {}  # of the runs before this one
        self.kept: int = 0
        self.lineage: int = 0
        self.origin: str = ""
        self.fresh_since: float = 0.0
        self.outdated: frozenset[str] = frozenset()
        self._lock: FileLock | None = None
        self._ended = False
        self._shared = shared
        require_private(path)
        self._alone = on_network(path.parent)  # SQLite's shared memory is not safe there
        self._executor = ThreadPoolExecutor(1, "rhapsody-journal")
        try:
            self._database: sqlite3.Connection = self._wait(self._open)
        except BaseException:
            self._release()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._alone:
            self._lock = self._locked(f"{self.path}.lock")
        existed = self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._file = os.fstat(descriptor)
        os.close(descriptor)
        database = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            version_of(database, self.path)  # before a database that is not a journal is changed
            if not self._alone:
                database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with _transaction(database):
                version = version_of(database, self.path)
                if version == 0:
                    if existed:
                        log.warning("journal %s is empty: there are no earlier results", self.path)
                    for statement in _TABLES.strip().split(";\n"):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {SCHEMA}")
                elif version != SCHEMA:
                    raise JournalError(
                        f"journal {self.path} was written by another version of Rhapsody (its "
                        f"tables have version {version}, expected {SCHEMA}); move it away to start "
                        "a new one"
                    )
        except BaseException:
            database.close()
            raise
        return database

    def _locked(self, path: str) -> FileLock:
        try:
            return FileLock(path)
        except BlockingIOError:
            raise JournalInUseError(
                f"journal {self.path} is in use by another run, and cannot be shared on a network "
                "file system; give each run its own journal: journal='NAME.sqlite'"
            ) from None

    # Called from any thread.

    def _wait(self, work: Callable[[], T]) -> T:
        try:
            return self._executor.submit(work).result()
        except UNREADABLE as error:
            full = full_disk(str(self.path.parent))
            hint = "move it away to start a new one" if full is None else f"{full}: free some space"
            if (length := len(os.fsencode(self.path))) > LONGEST_PATH:
                hint = (
                    f"its path has {length} bytes, but SQLite accepts at most {LONGEST_PATH}; run "
                    "the program in a directory with a shorter path, or set journal to a shorter "
                    "path"
                )
            raise JournalError(f"journal {self.path} cannot be used: {error}; {hint}") from error

    async def do(self, work: Callable[[], T]) -> T:
        """Call a function on the journal's thread, after all earlier calls; return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def begin(self, resume: bool | None, again: Collection[str] = ()) -> None:
        """Begin a run.

        Args:
            resume: True to reuse the results of the last run that has ended, False to ignore them,
                `None` to reuse them only if that run did not succeed.
            again: Names of tasks whose earlier results neither this run nor a later one may use.

        Raises:
            JournalInUseError: Another run uses the journal, and `shared` is False.
            JournalError: The journal cannot be read or written.
        """
        self._wait(lambda: self._begin(resume, again))

    def end(self, how: How, close: Callable[[], object] = lambda: None) -> None:
        """End the run once all work in progress has finished. A second call has no effect.

        Args:
            how: The outcome of the run.
            close: Function that is called first, on the journal's thread.

        Raises:
            JournalError: The journal cannot be written.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._wait(close)
            self._wait(lambda: self._end(how))
        finally:
            self._release()

    def prune(self) -> None:
        """Remove results that no run can reuse, free their space, and close the journal.

        Raises:
            JournalInUseError: A run uses the journal.
            JournalError: The journal cannot be written.
        """
        try:
            self._wait(self._prune)
        finally:
            self._release()

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a journal that is not in use.

        Raises:
            JournalInUseError: A run uses the journal.
            JournalError: The journal cannot be used.
        """
        store = Store(path, shared=False)
        try:
            store._wait(store._require_unused)
        finally:
            store.end("failed")
        for suffix in SUFFIXES:
            Path(f"{path}{suffix}").unlink(missing_ok=True)

    def _release(self) -> None:
        self._executor.shutdown()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Called on the journal's thread.

    def _begin(self, resume: bool | None, again: Collection[str]) -> None:
        database = self._database
        with _transaction(database):
            ended, living = self._earlier()
            if living and not self._shared:
                raise JournalInUseError(
                    f"journal {self.path} is in use by another run; wait until that run has ended, "
                    "or use another journal"
                )
            taken = {run.lineage for run in living}
            free = [run for run in ended if run.lineage not in taken]
            reusable = list[int]()
            if resume is not False:
                runs = sorted([*ended, *living])
                lineages = _unfinished(runs) if resume is None else {run.lineage for run in free}
                reusable = [each for each in sorted(lineages) if each not in taken]
                reusable = list(filter(self._holds, reusable))
            (newest,) = database.execute("SELECT coalesce(max(lineage), 0) FROM runs").fetchone()
            self.lineage = reusable[-1] if reusable else newest + 1
            if not reusable and resume is not False and free and free[-1].how != "done":
                self.lineage = free[-1].lineage  # without results, but its jobs may continue
            (latest,) = database.execute("SELECT coalesce(max(began), 0) FROM runs").fetchone()
            self.began = max(time.time(), latest + 1e-5)  # the clock may have been set back
            row = "INSERT INTO runs (lineage, began, fresh) VALUES (?, ?, ?)"
            values = self.lineage, self.began, resume is False
            run = database.execute(row, values).lastrowid
            assert run is not None
            if not self._alone:
                self._lock = self._locked(lock_of(self.path, run))
            self.run = run
            fresh = "SELECT began FROM runs WHERE fresh ORDER BY id DESC LIMIT 1"
            (self.fresh_since,) = database.execute(fresh).fetchone() or (0.0,)
            row = "UPDATE runs SET active = ? WHERE id = ?"
            database.executemany(row, [(run, other.number) for other in living])
            first = "SELECT began FROM runs WHERE lineage = ? ORDER BY id LIMIT 1"
            self.origin = f"{database.execute(first, (self.lineage,)).fetchone()[0]:.6f}"
            if reusable:
                last = [run for run in free if run.lineage in reusable][-1]
                self.before = last.how or "killed"
                database.executemany(
                    "UPDATE recordings SET lineage = ? WHERE lineage = ?",
                    [(self.lineage, lineage) for lineage in reusable[:-1]],
                )
                database.executemany(
                    "UPDATE recordings SET made = ? WHERE lineage = ? AND name = ?",
                    [(OUTDATED, self.lineage, name) for name in again],
                )
                database.execute(_EARLIER_TABLE)
                database.execute(_EARLIER, (self.lineage,))
                row = "SELECT count(*) FROM earlier"
                (self.reused,) = database.execute(row).fetchone()
                self._starts = dict(database.execute("SELECT id, began FROM runs"))
            names = database.execute("SELECT DISTINCT name FROM recordings WHERE made < 0")
            self.outdated = frozenset(name for (name,) in names)

    def _require_unused(self) -> None:
        if self._earlier()[1]:
            raise JournalInUseError(
                f"journal {self.path} is in use by a run; wait until the run has ended"
            )

    def _prune(self) -> None:
        with contextlib.closing(self._database) as database:
            self._require_unused()
            with _transaction(database):
                ended, _ = self._earlier()
                self._database.execute(
                    "DELETE FROM recordings "
                    "WHERE made < (SELECT coalesce(max(id), 0) FROM runs WHERE fresh)"
                )
                for run in reversed(ended):
                    if run.how == "done" or self._holds(run.lineage):
                        self._forget_others(run)
                        break
            database.execute("VACUUM")

    def _earlier(self) -> tuple[list[JournaledRun], list[JournaledRun]]:
        """Return two lists: the runs that have ended or were killed, and the running ones.

        Both are sorted from oldest to newest. The first list includes this run, once it is in the
        database, and runs whose state is unknown. The lock files of runs that were killed are
        removed.
        """
        ended, living = list[JournaledRun](), list[JournaledRun]()
        for run in runs_in(self._database, self.path):
            own = run.number == self.run
            (living if run.how == "running" and not own else ended).append(run)
            if run.how in ("killed", None) and not own:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock_of(self.path, run.number))
        return ended, living

    def _holds(self, lineage: int) -> bool:
        """Return True if a lineage has recordings from after the start of the last fresh run."""
        (found,) = self._database.execute(
            "SELECT EXISTS (SELECT 1 FROM recordings WHERE lineage = ? "
            "AND made >= (SELECT coalesce(max(id), 0) FROM runs WHERE fresh))",
            (lineage,),
        ).fetchone()
        return bool(found)

    def find(
        self, key: bytes, number: int
    ) -> tuple[int, bytes, str | None, float | None, str | None] | None:
        """Find an earlier recording.

        Args:
            key: See `Recording.key`.
            number: See `Recording.number`.

        Returns:
            The recording's id, pickled value and files, the time at which the run that made it
            began, and `Recording.opened`; `None` if there is no recording.

        Raises:
            JournalError: The recording is damaged.
        """
        if not self.reused:
            return None
        row = self._database.execute(
            "SELECT id, value, files, intact, name, uid, opened, began, run FROM recordings "
            "WHERE id = (SELECT id FROM earlier WHERE key = ? AND number = ?)",
            (key, number),
        ).fetchone()
        if row is None:
            return None
        id_, value, files, intact, name, uid, opened, began, run = row
        if intact_mark(key, number, value, files, opened) != intact:
            raise JournalError(f"the recording of {name!r} ({uid}) is damaged")
        if began is None:
            began = self._starts.get(run)
        return id_, value, files, began, opened

    def files(self) -> list[str]:
        """Return the files of all recordings with saved files. See `Recording.files`."""
        select = "SELECT files FROM recordings WHERE files LIKE '%\"place\"%'"
        return [files for (files,) in self._database.execute(select)]

    @contextlib.contextmanager
    def lookups(self) -> Iterator[None]:
        """Keep all results that are copied in the `with` block, or none after an error."""
        database = self._database
        try:
            yield
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if database.in_transaction:
            database.execute("COMMIT")

    def copy(self, recording: Recording, codes: Mapping[bytes, str], began: float | None) -> int:
        """Add a result of another journal, which this run uses. Called in a `lookups` block.

        Args:
            recording: The result. `why` names the other journal.
            codes: See `write`.
            began: The time at which the run that made the result began, if it is known.

        Returns:
            The id of the new recording.
        """
        database = self._database
        if not database.in_transaction:
            database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT OR IGNORE INTO codes VALUES (?, ?)", codes.items())
        insert = _INSERT_MORE % (self.lineage, COPIED, self.run, self.run)
        added = database.execute(insert, _longer_row(recording)).lastrowid
        assert added is not None
        database.execute("UPDATE recordings SET began = ? WHERE id = ?", (began, added))
        return added

    def value(self, recording: int) -> bytes:
        """Return the pickled value of a recording. See `Recording.value`."""
        select = "SELECT value FROM recordings WHERE id = ?"
        (packed,) = self._database.execute(select, (recording,)).fetchone()
        assert isinstance(packed, bytes)
        return packed

    def replace_files(self, recording: int, files: str) -> None:
        """Replace the files in a recording after they have been produced again."""
        database = self._database
        with _transaction(database):
            select = "SELECT key, number, value, opened FROM recordings WHERE id = ?"
            key, number, value, opened = database.execute(select, (recording,)).fetchone()
            database.execute(
                "UPDATE recordings SET files = ?, intact = ? WHERE id = ?",
                (files, intact_mark(key, number, value, files, opened), recording),
            )
        self.used[recording] = FILES_REGENERATED

    def forget(self, recording: int) -> None:
        """Remove a used recording, so that no later run can use it."""
        self._database.execute("DELETE FROM recordings WHERE id = ?", (recording,))
        self.used.pop(recording, None)

    def digest(self, stamp: Stamp) -> bytes | None:
        """Return the digest of a large file from an earlier run; `None` if none is stored."""
        row = self._database.execute(
            "SELECT digest FROM digests "
            "WHERE device = ? AND inode = ? AND size = ? AND changed = ?",
            stamp,
        ).fetchone()
        return None if row is None else row[0]

    def refuse(self, name: str, why: str) -> None:
        """Store the reason why tasks with this name are not recorded."""
        row = "INSERT OR REPLACE INTO refused VALUES (?, ?, ?)"
        texts = [each.encode("utf-8", "backslashreplace").decode() for each in (name, why)]
        self._database.execute(row, (self.run, *texts))

    def write(
        self,
        recordings: Collection[Recording],
        codes: Mapping[bytes, str],
        digests: Mapping[Stamp, bytes],
    ) -> None:
        """Write results, digests of large files, and the parts of the results' code digests.

        A result that SQLite cannot store, such as one larger than a gigabyte, is skipped, and the
        reason is stored with `refuse`.

        Args:
            recordings: The results.
            codes: The parts of each code digest, as text, by digest.
            digests: The digests of large files.
        """
        database = self._database
        try:
            with _transaction(database):
                if codes:
                    database.executemany("INSERT OR IGNORE INTO codes VALUES (?, ?)", codes.items())
                if digests:
                    database.executemany(
                        "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)",
                        [(*stamp, digest) for stamp, digest in digests.items()],
                    )
                if self.reused:
                    database.executemany(
                        "DELETE FROM recordings WHERE id = "
                        "(SELECT id FROM earlier WHERE key = ? AND number = ?)",
                        [(each.key, each.number) for each in recordings],
                    )
                (newest,) = database.execute("SELECT max(id) FROM runs").fetchone()
                where = self.lineage, self.run, newest, self.run
                most, others = list[Recording](), list[Recording]()
                for each in recordings:
                    (others if each.files or each.why or each.opened else most).append(each)
                database.executemany(_INSERT % where, map(_row, most))
                database.executemany(_INSERT_MORE % where, map(_longer_row, others))
                kept = self.kept + len(recordings)
                row = "UPDATE runs SET kept = ?, ended = ?, active = ? WHERE id = ?"
                database.execute(row, (kept, time.time(), newest, self.run))
            self.kept = kept
        except UNSTORABLE as error:
            if len(recordings) > 1:
                for each in recordings:
                    self.write([each], codes, digests)
                return
            for each in recordings:
                why = f"its result cannot be stored in the journal: {error}"
                log.warning("task %r is not recorded: %s", each.name, why)
                self.refuse(each.name, why)

    def _end(self, how: How) -> None:
        with contextlib.closing(self._database) as database:
            if not self.run:
                return
            if not (self.path.exists() and os.path.samestat(self._file, self.path.stat())):
                log.error(
                    "journal %s was removed or replaced during the run: the run's results are lost",
                    self.path,
                )
            with _transaction(database):
                database.executemany(
                    "UPDATE recordings SET used = ?, gone = ? WHERE id = ?",
                    [(self.run, gone, each) for each, gone in self.used.items()],
                )
                database.execute(
                    "UPDATE runs SET ended = ?, how = ?, reused = ?, "
                    "active = (SELECT max(id) FROM runs) WHERE id = ?",
                    (time.time(), how, len(self.used), self.run),
                )
                if how == "done":
                    self._forget_outdated()

    def _forget_outdated(self) -> None:
        """Remove the recordings that no run should use once this run has succeeded.

        These are recordings of calls that were recorded again or used later, recordings from before
        the last run that ignored earlier results, those that `--rerun` has made unusable, and those
        that have not been used for `KEPT_FOR`. Runs that are active keep theirs.
        """
        database = self._database
        others = "SELECT EXISTS (SELECT 1 FROM recordings WHERE used != ?)"
        if not database.execute(others, (self.run,)).fetchone()[0]:
            return
        taken = {run.lineage for run in self._earlier()[1]}
        database.execute("CREATE TEMP TABLE living (lineage INTEGER)")
        database.executemany("INSERT INTO living VALUES (?)", [(each,) for each in taken])
        database.execute(
            "DELETE FROM recordings WHERE lineage NOT IN living "
            "AND made < (SELECT coalesce(max(id), 0) FROM runs WHERE fresh)"
        )
        database.execute(
            "DELETE FROM recordings WHERE lineage NOT IN living AND (used NOT IN "
            "(SELECT id FROM runs WHERE coalesce(ended, began) >= ?) OR id NOT IN "
            "(SELECT id FROM (SELECT id, max(used) FROM recordings WHERE lineage NOT IN living "
            "GROUP BY key, number)))",
            (time.time() - KEPT_FOR,),
        )
        database.execute(
            "DELETE FROM runs WHERE lineage NOT IN (SELECT lineage FROM recordings) "
            "AND id NOT IN (SELECT run FROM recordings) "
            "AND lineage != ? AND NOT fresh AND lineage NOT IN living "
            "AND id NOT IN (SELECT used FROM recordings)",
            (self.lineage,),
        )
        self._forget_unused_rows()

    def _forget_others(self, last: JournaledRun) -> None:
        """Remove all recordings except those that a run used or recorded, or could resume."""
        database = self._database
        if last.how == "done":
            database.execute("DELETE FROM recordings WHERE used < ?", (last.number,))
        database.execute("DELETE FROM recordings WHERE lineage != ?", (last.lineage,))
        database.execute(
            "DELETE FROM runs WHERE lineage != ? AND NOT fresh "
            "AND id NOT IN (SELECT run FROM recordings)",
            (last.lineage,),
        )
        self._forget_unused_rows()

    def _forget_unused_rows(self) -> None:
        database = self._database
        database.execute("DELETE FROM refused WHERE run NOT IN (SELECT id FROM runs)")
        database.execute(
            "DELETE FROM codes WHERE digest NOT IN "
            "(SELECT code FROM recordings WHERE code IS NOT NULL)"
        )


def journal_of_program(
    arguments: Sequence[str] | None = None, *, function: str | None = None
) -> Path:
    """Return the path of this program's journal, for `journal=True` and `rhapsody run`.

    The same program with the same arguments has the same journal, even if its directory is moved.
    A notebook has the same journal after its kernel was restarted, although the kernel then has
    other arguments.

    Args:
        arguments: The program and its arguments. Default: `sys.argv`.
        function: The name of the function that is run; `None` means `main`.

    Raises:
        FileNotFoundError: The current directory was removed.
    """
    here = os.getcwd()
    started, *others = sys.argv if arguments is None else arguments
    path = os.path.realpath(started) if started else ""
    words = [os.path.relpath(path, here) if path.startswith(here + os.sep) else path, *others]
    if arguments is None and program() == NOTEBOOK:
        words = [NOTEBOOK, os.path.basename(_notebook())]
    made = hashlib.blake2b(digest_size=4)
    for word in [*words, *([f":{function}"] if function not in (None, "main") else [])]:
        data = os.fsencode(word)
        made.update(b"%d:%b" % (len(data), data))
    return Path(here, BASE, DIRECTORY, f"{program()}-{made.hexdigest()}.sqlite")


def make_directory(path: Path) -> None:
    """Create the directory of a program's journal, and `.rhapsody`, unless they exist.

    Raises:
        OSError: A directory cannot be created.
        DataError: Other users could replace what is in `.rhapsody`.
    """
    make_base(path.parent.parent)
    make_shared_directory(path.parent)


def _notebook() -> str:
    """Return the path of the notebook of this kernel, or an empty string if it is unknown."""
    visual_studio_code: object = getattr(sys.modules["__main__"], "__vsc_ipynb_file__", "")
    return str(visual_studio_code) or os.environ.get("JPY_SESSION_NAME", "")


def require_private(path: Path) -> None:
    """Raise an error if another user could write to a journal or its directory.

    A journal contains pickles, which can run any code when they are read.

    Raises:
        JournalError: Another user could write to the journal or its directory, or the journal
            cannot be read or is not a regular file.
        NotYoursError: The journal belongs to another user, or its directory belongs to another user
            and is not writable.
    """
    try:
        above = os.stat(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error.strerror}") from error
    if above.st_mode & stat.S_IWOTH:
        meant = above.st_mode & stat.S_ISVTX or above.st_uid != os.geteuid()  # as /tmp is
        hint = "" if meant else f", or, if you trust the journal, run: chmod o-w {path.parent}"
        raise JournalError(
            f"journal {path} is in a directory that all users can write to, so it could contain "
            f"their code; use another directory{hint}"
        )
    if above.st_uid != os.geteuid() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise NotYoursError(
            f"journal {path} would be in another user's directory; use another directory"
        )
    for suffix in SUFFIXES:
        _require_own(Path(f"{path}{suffix}"))


def _require_own(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"journal {path} is not a regular file; use another name")
    if found.st_uid != os.geteuid():
        raise NotYoursError(
            f"journal {path} belongs to another user, so it could contain their code; use another "
            "name"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise JournalError(
            f"journal {path} is writable by other users, so it could contain their code; if you "
            f"trust the journal, run: chmod 600 {path}"
        )


def lock_of(path: Path, run: int) -> str:
    """Return the path of a run's lock file. On network file systems, runs have none."""
    return f"{path}.{run}.lock"


def version_of(database: sqlite3.Connection, path: Path) -> int:
    """Return the version of a journal's tables, or 0 if they have not been created.

    Raises:
        JournalError: The database is not a journal.
    """
    names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if names and (version == 0 or ("recordings",) not in names):
        raise JournalError(f"{path} is a database, but not a journal; use another name")
    return int(version)


def intact_mark(
    key: bytes, number: int, value: bytes, files: str | None, opened: str | None
) -> bytes:
    """Return the digest that is stored with a recording to detect damage."""
    made = hashlib.blake2b(b"%b%d %d " % (key, number, len(value)), digest_size=DIGEST_SIZE)
    made.update(value)
    if files is not None:
        made.update(files.encode("utf-8", "surrogateescape"))
    if opened is not None:
        made.update(opened.encode())
    return made.digest()


def _row(recording: Recording) -> tuple[object, ...]:
    """Return the values for `_INSERT`, in a form that is fast to write.

    For each `None` or `bytes` object, the `sqlite3` module searches for an adapter, which takes
    longer than writing the object. It does not do this for a `bytearray`, so `bytes` are copied,
    except large values, for which the copy would take longer than the search.
    """
    key, number, name, uid, parts, code, files, _, value, opened = recording
    return (
        bytearray(key),
        number,
        name,
        uid,
        parts,
        code and bytearray(code),
        bytearray(value) if len(value) < 100_000 else value,
        bytearray(intact_mark(key, number, value, files, opened)),
    )


def _longer_row(recording: Recording) -> tuple[object, ...]:
    """Return the values for `_INSERT_MORE`."""
    files, why, opened = recording.files, recording.why, recording.opened
    return *_row(recording), files or "", why or "", opened or ""


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


MAX_COMPARED_CALLS = 100
"""Maximum number of recorded calls with equal arguments that a call is compared with."""

_OF_FILES = {
    FILES_MISSING: ", but some of its files are missing; it runs again if one is read or saved",
    FILES_REGENERATED: ", and ran again to regenerate its missing files",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """Explanation of whether a task of the last run ran or was reused, and why.

    Attributes:
        name: The task's name.
        uid: The task's uid; empty if the explanation concerns all tasks with this name.
        what: The explanation, as text.
    """

    name: str
    uid: str
    what: str


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """Open a journal for reading.

    Yields:
        A reader of the journal.

    Raises:
        JournalError: The journal does not exist or cannot be read.
    """
    require_private(path)
    if not path.is_file():
        raise JournalError(f"there is no journal {path}")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as database:
            version = version_of(database, path)
            if version != SCHEMA:
                raise JournalError(
                    f"journal {path} was written by another version of Rhapsody (its tables have "
                    f"version {version}, expected {SCHEMA})"
                )
            yield Reader(database, path)
    except UNREADABLE as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error


LONGEST_PATH = 504
"""Maximum number of bytes in the path of a database, with which SQLite names further files."""


class Reader:
    """Journal that is open for reading. See `opened`."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path

    def runs(self) -> list[JournaledRun]:
        """Return the runs in the journal, oldest first."""
        found = runs_in(self._database, self._path)
        for run in found:
            time.localtime(run.began)  # raises an error if the time is invalid
        return found

    def copy(self, path: Path) -> None:
        """Copy the journal into an empty file."""
        with contextlib.closing(sqlite3.connect(path)) as target:
            self._database.backup(target)

    def results(self, since: float) -> dict[tuple[bytes, int], int]:
        """Return the recordings that `--resume` would use: the ids by key and number of the call.

        Args:
            since: The time before which results are ignored.
        """
        rows = self._database.execute(
            "SELECT key, number, id FROM recordings WHERE coalesce("
            "began, (SELECT runs.began FROM runs WHERE runs.id = recordings.run), 0) >= ? "
            "AND made >= (SELECT coalesce(max(id), 0) FROM runs WHERE fresh) ORDER BY used, id",
            (since,),
        )
        return {(key, number): recording for key, number, recording in rows}

    def result(
        self, recording: int, key: bytes, number: int
    ) -> tuple[bytes, str | None, float | None, str | None]:
        """Return a recording's value, files, the time at which its run began, and opened files.

        Raises:
            JournalError: The recording is damaged, or was removed meanwhile.
        """
        row = self._database.execute(
            "SELECT value, files, coalesce("
            "began, (SELECT runs.began FROM runs WHERE runs.id = recordings.run)), opened, intact "
            "FROM recordings WHERE id = ?",
            (recording,),
        ).fetchone()
        if row is None or intact_mark(key, number, row[0], row[1], row[3]) != row[4]:
            raise JournalError(f"a result in journal {self._path} is damaged or was removed")
        value, files, began, opened, _ = row
        return value, files, began, opened

    def earlier(self, run: int, lineage: int) -> Earlier:
        """Return the recordings that a run did not use.

        Args:
            run: The run's number.
            lineage: The number of the run's lineage.
        """
        return Earlier(self._database, run, lineage)

    def explain(self, task: str | None = None) -> list[Explained]:
        """Explain which tasks of the last run ran and why, and which results were reused.

        Args:
            task: The name or uid of the tasks to explain, or the number in the uid; `None` for all
                tasks.

        Returns:
            The explanations, sorted by uid, followed by those for tasks that are not recorded.

        Raises:
            JournalError: The last run recorded no such task, or the journal contains no runs.
        """
        database = self._database
        row = database.execute("SELECT id, lineage FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            raise JournalError(f"journal {self._path} contains no runs")
        run, lineage = row
        uid = label(task) if task is not None and task.isdecimal() else task
        found = database.execute(
            "SELECT name, uid, run, gone, parts, code, why FROM recordings "
            "WHERE lineage = ? AND (? IS NULL OR name = ? OR uid = ?) AND (run = ? OR used = ?) "
            "ORDER BY uid, id",
            (lineage, task, task, uid, run, run),
        ).fetchall()
        explained = []
        earlier = self.earlier(run, lineage)
        for name, uid, made, gone, parts, code, why in found:
            if made == run:
                changed = why or earlier.what_changed(name, uid, parts, code)
                explained.append(Explained(name, uid, f"ran: {changed}"))
            else:
                source = f" ({why})" if made == COPIED else ""
                explained.append(Explained(name, uid, f"reused{source}{_OF_FILES.get(gone, '')}"))
        refused = "SELECT name, why FROM refused WHERE run = ? AND (? IS NULL OR name = ?)"
        for name, why in database.execute(refused, (run, task, task)):
            explained.append(Explained(name, "", f"ran: it is not recorded: {why}"))
        if not explained and task is not None:
            raise JournalError(self._not_there(run, task))
        return explained

    def _not_there(self, run: int, task: str) -> str:
        names = self._database.execute(
            "SELECT name FROM recordings WHERE run = ? OR used = ? "
            "UNION SELECT name FROM refused WHERE run = ? ORDER BY name LIMIT 20",
            (run, run, run),
        )
        there = ", ".join(name for (name,) in names) or "none"
        return (
            f"the last run recorded no task {task!r} (recorded: {there}); failed tasks, blocks, "
            "services, tasks with cache=False, and tasks whose results stay with a backend are "
            "not recorded"
        )

    def damage(self) -> list[str]:
        """Find all damage to the journal.

        SQLite's own check finds damaged pages. The digests that are stored with the recordings
        reveal changes that leave the pages valid.

        Returns:
            A description of each damaged part; an empty list if the journal is intact.
        """
        checked = self._database.execute("PRAGMA integrity_check")
        found = [f"the file: {text}" for (text,) in checked if text != "ok"]
        for name, uid, key, number, value, files, mark, opened in self._database.execute(
            "SELECT name, uid, key, number, value, files, intact, opened FROM recordings"
        ):
            if intact_mark(key, number, value, files, opened) != mark:
                found.append(f"the result of {name!r} ({uid})")
        return found


class Earlier:
    """Recordings that a run did not use, for comparison with the run's calls.

    If the run did not resume another run, these are the recordings that it would have used with
    `--resume`, as far as the journal still contains them.

    Args:
        database: The journal's database.
        run: The run's number.
        lineage: The number of the run's lineage.
    """

    def __init__(self, database: sqlite3.Connection, run: int, lineage: int) -> None:
        self._database = database
        self._run = run
        taken_up = "SELECT EXISTS (SELECT 1 FROM runs WHERE lineage = ? AND id < ?)"
        (took_up,) = database.execute(taken_up, (lineage, run)).fetchone()
        self._started_over = run > 1 and not took_up
        if self._started_over:
            former = database.execute(
                "SELECT lineage FROM runs WHERE id < ? AND EXISTS "
                "(SELECT 1 FROM recordings WHERE recordings.lineage = runs.lineage) "
                "ORDER BY id DESC LIMIT 1",
                (run,),
            ).fetchone()
            lineage = former[0] if former is not None else lineage
        self._lineage = lineage
        self._names: dict[str, dict[object, list[tuple[str, str, bytes | None]]]] = {}

    def what_changed(self, name: str, uid: str, parts: str, code: bytes | None) -> str:
        """Explain why a task ran: return its smallest difference from an unused recording.

        The task is compared with the unused recordings of the same call, and with up to
        `MAX_COMPARED_CALLS` unused recordings of calls with equal arguments.

        Args:
            name: The task's name.
            uid: The task's uid.
            parts: See `Recording.parts`.
            code: See `Recording.code`.

        Returns:
            The reason, as text.
        """
        if name not in self._names:
            self._names[name] = self._load(name)
        known, now = self._names[name], _parts_of(self._database, parts, code)
        differences = [
            (their_uid != uid, len(changed), changed)
            for their_uid, their_parts, their_code in (
                *known.get(uid, ()),
                *known.get(_given(parts), ())[:MAX_COMPARED_CALLS],
            )
            for changed in [_changes(_parts_of(self._database, their_parts, their_code), now)]
        ]
        if self._started_over:
            changes = min(differences)[2] if differences else ()
            nothing = ("nothing had changed",) if differences else ()
            return "; ".join(["the run started over", *(changes or nothing)])
        changes = min((each for each in differences if each[1]), default=(False, 0, ()))[2]
        return "; ".join(changes) or "it was not recorded before"

    def _load(self, name: str) -> dict[object, list[tuple[str, str, bytes | None]]]:
        found: dict[object, list[tuple[str, str, bytes | None]]] = {}
        for row in self._database.execute(
            "SELECT uid, parts, code FROM recordings "
            "WHERE lineage = ? AND name = ? AND run < ? AND used < ?",
            (self._lineage, name, self._run, self._run),
        ):
            found.setdefault(row[0], []).append(row)
            found.setdefault(_given(row[1]), []).append(row)
        return found


def _given(parts: str) -> frozenset[tuple[str, str]]:
    """Return a task's inputs: its arguments or its command, and its files."""
    return frozenset(
        (name, value)
        for name, value in ast.literal_eval(parts).items()
        if name == "command" or name.startswith(("argument ", "file ", "input file "))
    )


def _parts_of(
    database: sqlite3.Connection, parts: str, code: bytes | None
) -> dict[str, tuple[str, int | None]]:
    """Return the parts of a key by name, each with its line number if it is known."""
    found: dict[str, tuple[str, int | None]] = {
        name: (value, None) for name, value in ast.literal_eval(parts).items()
    }
    row = database.execute("SELECT parts FROM codes WHERE digest = ?", (code,)).fetchone()
    if row is not None:
        used = ast.literal_eval(row[0])
        for name, value in used["parts"].items():
            found[name] = value, used["lines"].get(name)
    return found


def _changes(
    before: Mapping[str, tuple[str, int | None]], now: Mapping[str, tuple[str, int | None]]
) -> tuple[str, ...]:
    changes = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old is None and new is not None:
            changes.append(f"{name} is new")
        elif new is None and old is not None:
            changes.append(f"{name} was removed")
        elif old is not None and new is not None and old[0] != new[0]:
            if name.startswith("after "):
                changes.append(f"{name.removeprefix('after ')}, which it comes after, ran again")
            elif name.startswith("argument ") or (_is_digest(old[0]) and _is_digest(new[0])):
                line = f" (line {new[1]})" if new[1] is not None else ""
                changes.append(f"{name}{line} changed")
            else:
                changes.append(f"{name} changed from {old[0]} to {new[0]}")
    return tuple(changes)


def _is_digest(value: str) -> bool:
    return len(value) == 32 and set(value) <= set("0123456789abcdef")
