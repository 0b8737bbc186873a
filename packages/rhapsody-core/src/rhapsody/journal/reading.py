"""What a journal tells people: which runs it knows, why a task ran again, whether it is whole."""

from __future__ import annotations

import ast
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rhapsody.errors import JournalError
from rhapsody.journal.places import on_network, require_private
from rhapsody.journal.store import (
    GONE,
    MADE_AGAIN,
    PATIENCE,
    SCHEMA,
    UNREADABLE,
    done_mark,
    intact_mark,
    lock_of,
    version_of,
)
from rhapsody.staging.locks import state_of

_HOW = {"held": "running", "free": "killed", "left": "killed"}
"""How a run has ended that does not say so, by the state of its lock."""

_OF_FILES = {
    GONE: ", but files of it are gone: it ran again if one was read",
    MADE_AGAIN: ", and ran again for its files, which were gone",
}


@dataclass(frozen=True, slots=True)
class RunOf:
    """A run that a journal knows.

    Attributes:
        number: Its number in the journal.
        began: When it began, in seconds since the epoch.
        how: How it ended, also `"killed"`, or `"running"`; `None` where it is one of the two and
            nobody knows which.
        kept: How many results it kept.
        reused: How many of earlier runs it used.
    """

    number: int
    began: float
    how: str | None
    kept: int
    reused: int


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a task of the last run ran, or did not.

    Attributes:
        name: The task's name.
        uid: Its uid, where one call is meant.
        what: What became of it, and why, in words.
    """

    name: str
    uid: str
    what: str


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens a journal for reading.

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
            yield database
    except UNREADABLE as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error


def runs(database: sqlite3.Connection, path: Path) -> list[RunOf]:
    """The runs that are known, the oldest first."""
    # Whoever ends says so before the lock is let go: looked at first, it tells of those below.
    open_ended = database.execute("SELECT id FROM runs WHERE how IS NULL").fetchall()
    locks = (
        {} if on_network(path.parent) else {n: state_of(lock_of(path, n)) for (n,) in open_ended}
    )
    rows = database.execute("SELECT id, began, how, kept, reused FROM runs ORDER BY id")
    marked = {n for (n,) in open_ended if os.path.exists(done_mark(path, n))}
    found = [
        RunOf(
            number,
            began,
            how or ("done" if number in marked else _HOW.get(locks.get(number, "unknown"))),
            kept,
            reused,
        )
        for number, began, how, kept, reused in rows
    ]
    for run in found:
        time.localtime(run.began)  # raises where it is no time
    return found


def explain(database: sqlite3.Connection, task: str) -> list[Explained]:
    """What became of the tasks of a name, or of a uid, in the last run.

    Raises:
        JournalError: The last run had none such.
    """
    row = database.execute("SELECT id, lineage FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    if row is None:
        raise JournalError("no run is recorded there")
    run, lineage = row
    found = database.execute(
        "SELECT name, uid, run, gone, parts, code, why FROM recordings "
        "WHERE lineage = ? AND (name = ? OR uid = ?) AND (run = ? OR used = ?) ORDER BY id",
        (lineage, task, task, run, run),
    ).fetchall()
    explained = []
    for name, uid, made, gone, parts, code, why in found:
        if made == run:
            changed = why or _what_changed(database, (run, lineage), (name, uid, parts, code))
            explained.append(Explained(name, uid, f"ran: {changed}"))
        else:
            explained.append(Explained(name, uid, f"reused{_OF_FILES.get(gone, '')}"))
    refused = "SELECT name, why FROM refused WHERE run = ? AND name = ?"
    for name, why in database.execute(refused, (run, task)):
        explained.append(Explained(name, "", f"ran: it is not recorded: {why}"))
    if not explained:
        raise JournalError(_not_there(database, run, task))
    return explained


def _not_there(database: sqlite3.Connection, run: int, task: str) -> str:
    names = database.execute(
        "SELECT name FROM recordings WHERE run = ? OR used = ? "
        "UNION SELECT name FROM refused WHERE run = ? ORDER BY name LIMIT 20",
        (run, run, run),
    )
    there = ", ".join(name for (name,) in names) or "none"
    return (
        f"the last run recorded no task {task!r}; there are {there}; what failed is not kept, nor "
        "are blocks, services, tasks with cache=False, and what stays with a backend's workers"
    )


def _what_changed(
    database: sqlite3.Connection, run: tuple[int, int], task: tuple[str, str, str, bytes | None]
) -> str:
    """What made a task run: the least that it differs in from one whose result was not reused.

    That is the same call, or one that was given the same.
    """
    (number, lineage), (name, uid, parts, code) = run, task
    taken_up = "SELECT EXISTS (SELECT 1 FROM runs WHERE lineage = ? AND id < ?)"
    if number > 1 and not database.execute(taken_up, (lineage, number)).fetchone()[0]:
        return "the run started over"
    rows = database.execute(
        "SELECT parts, code, uid = ? FROM recordings "
        "WHERE lineage = ? AND name = ? AND run < ? AND used < ?",
        (uid, lineage, name, number, number),
    ).fetchall()
    now, given = _ingredients(database, parts, code), _given(parts)
    changes = [
        (not same, len(changed), changed)
        for their_parts, their_code, same in rows
        if (same or _given(their_parts) == given)
        and (changed := _changes(_ingredients(database, their_parts, their_code), now))
    ]
    return "; ".join(min(changes)[2]) if changes else "nothing of it was kept before"


def _given(parts: str) -> dict[str, str]:
    """What a task was given: its arguments or its command, and its files, as in its key."""
    return {
        name: value
        for name, value in ast.literal_eval(parts).items()
        if name == "command" or name.startswith(("argument ", "file ", "input file "))
    }


def _ingredients(
    database: sqlite3.Connection, parts: str, code: bytes | None
) -> dict[str, tuple[str, int | None]]:
    """What a key was made of: for each ingredient its digest or version, and its line."""
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
            changes.append(f"{name} is gone")
        elif old is not None and new is not None and old[0] != new[0]:
            if name.startswith("argument ") or (_is_digest(old[0]) and _is_digest(new[0])):
                line = f", line {new[1]}" if new[1] is not None else ""
                changes.append(f"{name}{line} changed")
            else:
                changes.append(f"{name} {new[0]} was {old[0]}")
    return tuple(changes)


def _is_digest(value: str) -> bool:
    return len(value) == 32 and set(value) <= set("0123456789abcdef")


def damage(database: sqlite3.Connection) -> list[str]:
    """What is not as it was written, in words; nothing where all is whole."""
    found = [
        f"the file: {text}"
        for (text,) in database.execute("PRAGMA integrity_check")
        if text != "ok"
    ]
    for name, uid, key, number, value, files, mark in database.execute(
        "SELECT name, uid, key, number, value, files, intact FROM recordings"
    ):
        if intact_mark(key, number, value, files) != mark:
            found.append(f"the result of {name!r} ({uid})")
    return found
