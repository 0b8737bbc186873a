"""Reports about a journal: its runs, why tasks ran again, and damage."""

from __future__ import annotations

import ast
import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rhapsody.errors import JournalError
from rhapsody.journal.store import (
    GONE,
    MADE_AGAIN,
    PATIENCE,
    SCHEMA,
    UNREADABLE,
    Run,
    intact_mark,
    require_private,
    runs_in,
    version_of,
)

COMPARED = 100
"""Number of recorded calls with equal arguments that a call is compared with."""

_OF_FILES = {
    GONE: ", but some of its files are missing: it ran again if one was read",
    MADE_AGAIN: ", and ran again for its missing files",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """Reason why a task of the last run ran, or did not run.

    Attributes:
        name: The task's name.
        uid: Its uid, where one call is meant.
        what: What became of it, and why, in words.
    """

    name: str
    uid: str
    what: str


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """Open a journal for reading.

    Raises:
        JournalError: There is none, or it cannot be read.
    """
    require_private(path)
    if not path.is_file():
        raise JournalError(f"there is no journal {path}")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
            version = version_of(database, path)
            if version != SCHEMA:
                raise JournalError(
                    f"journal {path} was written by another version of Rhapsody (its tables have "
                    f"version {version}, and this one reads {SCHEMA})"
                )
            yield Reader(database, path)
    except UNREADABLE as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error


class Reader:
    """A journal that is read, see `opened`."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path

    def runs(self) -> list[Run]:
        """Return the runs in the journal, the oldest first."""
        found = runs_in(self._database, self._path)
        for run in found:
            time.localtime(run.began)  # raises where it is no time
        return found

    def names(self) -> list[str]:
        """Return the names of all tasks in the journal."""
        found = self._database.execute("SELECT name FROM recordings UNION SELECT name FROM refused")
        return [name for (name,) in found]

    def copy(self, path: Path) -> None:
        """Copy the journal into an empty file."""
        with contextlib.closing(sqlite3.connect(path)) as target:
            self._database.backup(target)

    def earlier(self, run: int, lineage: int) -> Earlier:
        """Return the recordings that a run did not use."""
        return Earlier(self._database, run, lineage)

    def explain(self, task: str | None = None) -> list[Explained]:
        """Explain what the last run did with tasks: those of a name or uid, or all.

        Raises:
            JournalError: The last run had none such.
        """
        database = self._database
        row = database.execute("SELECT id, lineage FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            raise JournalError("no run is recorded there")
        run, lineage = row
        found = database.execute(
            "SELECT name, uid, run, gone, parts, code, why FROM recordings "
            "WHERE lineage = ? AND (? IS NULL OR name = ? OR uid = ?) AND (run = ? OR used = ?) "
            "ORDER BY uid, id",
            (lineage, task, task, task, run, run),
        ).fetchall()
        explained = []
        earlier = self.earlier(run, lineage)
        for name, uid, made, gone, parts, code, why in found:
            if made == run:
                changed = why or earlier.what_changed(name, uid, parts, code)
                explained.append(Explained(name, uid, f"ran: {changed}"))
            else:
                explained.append(Explained(name, uid, f"reused{_OF_FILES.get(gone, '')}"))
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
            f"the last run recorded no task {task!r}; there are {there}; what failed is not kept, "
            "nor are blocks, services, tasks with cache=False, and what stays with a backend's "
            "workers"
        )

    def damage(self) -> list[str]:
        """Describe everything that differs from what was written: an empty list if nothing does.

        SQLite's own check finds damaged pages; the digest of each recording finds changes that
        leave the pages valid.
        """
        checked = self._database.execute("PRAGMA integrity_check")
        found = [f"the file: {text}" for (text,) in checked if text != "ok"]
        for name, uid, key, number, value, files, mark in self._database.execute(
            "SELECT name, uid, key, number, value, files, intact FROM recordings"
        ):
            if intact_mark(key, number, value, files) != mark:
                found.append(f"the result of {name!r} ({uid})")
        return found


class Earlier:
    """The recordings that a run did not use, by what they have in common with its calls.

    Those of a run that started over are what `--resume` would have used instead, as long as they
    are in the journal.

    Args:
        database: The journal.
        run: The run's number.
        lineage: Its lineage.
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
        """Explain why a task ran: the smallest difference from an unused recording.

        The recording is that of the same call, or of a call with equal arguments.
        """
        if name not in self._names:
            self._names[name] = self._load(name)
        known, now = self._names[name], _ingredients(self._database, parts, code)
        differences = [
            (their_uid != uid, len(changed), changed)
            for their_uid, their_parts, their_code in (
                *known.get(uid, ()),
                *known.get(_given(parts), ())[:COMPARED],
            )
            for changed in [_changes(_ingredients(self._database, their_parts, their_code), now)]
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


def _ingredients(
    database: sqlite3.Connection, parts: str, code: bytes | None
) -> dict[str, tuple[str, int | None]]:
    """Return the ingredients of a key: each with its digest or version, and its line."""
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
            if name.startswith("argument ") or (_is_digest(old[0]) and _is_digest(new[0])):
                line = f", line {new[1]}" if new[1] is not None else ""
                changes.append(f"{name}{line} changed")
            else:
                changes.append(f"{name} {new[0]} was {old[0]}")
    return tuple(changes)


def _is_digest(value: str) -> bool:
    return len(value) == 32 and set(value) <= set("0123456789abcdef")
