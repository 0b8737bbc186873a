"""Records of runs for the commands that read them: selection, errors, and values as text."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.cli.clean import base_of
from rhapsody.cli.output import CommandError, complain, printable
from rhapsody.plugins.specs import UsageError
from rhapsody.resources import size_text

if TYPE_CHECKING:
    from rhapsody.history.reader import Attempt, RecordReader, RunHistory, RunRecord, TaskRun

RUN_HELP = (
    "the name of a run, the beginning of its name, its last four digits, or the path of a record "
    "(default: the newest run)"
)
TASK_HELP = "the uid, number or name of a task, or the beginning of its name"

LISTED = 20
"""Maximum number of tasks that a section lists without `--all`."""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise a `CommandError` instead of an `OSError` about a record."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from None


def open_record(run: str | None) -> tuple[RecordReader, RunHistory]:
    """Return the reader of the record that a text selects, and its content; report damage.

    Raises:
        SelectionError: The text selects no recorded run, or several.
        CommandError: The record cannot be read.
        RecordError: It is damaged.
    """
    from rhapsody.history.reader import RecordReader
    from rhapsody.history.selection import select_run

    reader = RecordReader(select_run(run, base_of(".")))
    with readable(reader.path):
        reader.update()
    history = reader.history()
    report_damage(history)
    return reader, history


def read_record(run: str | None) -> RunHistory:
    """Return the content of the record that a text selects, and report damage.

    Raises:
        SelectionError: The text selects no recorded run, or several.
        CommandError: The record cannot be read.
        RecordError: It is damaged.
    """
    return open_record(run)[1]


def chosen_task(run: str | None, task: str, history: RunHistory) -> TaskRun:
    """Return the task that a text selects.

    Raises:
        SelectionError: The text selects no task, or several.
        UsageError: The text selects a run instead.
    """
    from rhapsody.history.selection import SelectionError, select_run, select_task

    try:
        return select_task(task, history)
    except SelectionError as error:
        if run is None and not error.candidates:
            with contextlib.suppress(SelectionError):
                name = select_run(task, base_of(".")).parent.name
                raise UsageError(f"{task!r} is the run {name}; name a task of it as well") from None
        raise


def report_damage(history: RunHistory) -> None:
    """Print a warning if lines of a record are damaged."""
    found = history.problems
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        complain(f"{shown(history.run.path)} is damaged: {found[0]}{more}")


# Values as text.


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as given or relative to the current directory, whichever is shorter."""
    from rhapsody.observers.account import shown

    return printable(shown(path))


def counts_of(history: RunHistory) -> dict[str, int]:
    """Return the number of tasks and blocks by outcome, from the tasks of a record."""
    found = dict.fromkeys(COUNTED, 0)
    found["tasks"] = len(history.tasks)
    for task in history.tasks.values():
        found[task.outcome] += 1
        found["reused"] += task.reused
        found["retried"] += sum(attempt.retried for attempt in task.attempts)
    return found


OUTCOMES = ("waiting", "running", "done", "failed", "skipped", "canceled")
"""Outcomes of tasks, in the order in which they are shown."""

COUNTED = ("tasks", *OUTCOMES, "reused", "retried")
"""Keys of counts. `tasks` is the sum of those in `OUTCOMES`."""


def counts_from(stats: Any) -> dict[str, int]:
    """Return the same counts from the counters at the end of a run."""
    get = stats.get
    found = {
        "tasks": get("tasks", 0),
        "waiting": 0,
        "running": 0,
        "done": get("done", 0),
        "failed": get("failed", 0) - get("skipped", 0),
        "skipped": get("skipped", 0),
        "canceled": get("cancelled", 0),
        "reused": get("recorded", 0),
        "retried": get("retried", 0),
    }
    ended = sum(found[name] for name in ("done", "failed", "skipped", "canceled"))
    found["waiting"] = max(0, found["tasks"] - ended)
    return found


def counts_text(counts: dict[str, int]) -> str:
    """Return counts as text, without zeros except for `done`."""
    done = f"{counts['done']} done"
    if counts["reused"]:
        done += f" ({counts['reused']} of them reused)"
    order = ("failed", "skipped", "canceled", "running", "waiting", "retried")
    return ", ".join([done, *(f"{counts[name]} {name}" for name in order if counts[name])])


def may_run(run: RunRecord) -> bool:
    """Return True if a run is active, or may be active on another host."""
    if run.outcome == "unknown":
        return run.host != socket.gethostname()
    return run.outcome == "running"


def seconds_so_far(run: RunRecord) -> float | None:
    """Return the duration of a run, or of its part until now if it is running."""
    if run.outcome == "running" and run.started is not None:
        return max(0.0, time.time() - run.started)
    return run.seconds


def program_of(run: RunRecord) -> str:
    """Return the name of the program of a run."""
    return os.path.basename(run.program) or (run.program or "-")


def clock(seconds: float | None, *, day: bool = False) -> str:
    """Return a time in the local time zone, without the date if it is today."""
    from rhapsody.history.reader import is_time

    if seconds is None or not is_time(seconds):
        return "-"
    then, now = time.localtime(seconds), time.localtime()
    if not day and then[:3] == now[:3]:
        return time.strftime("%H:%M:%S", then)
    return time.strftime("%Y-%m-%d %H:%M:%S", then)


def duration(seconds: float | None) -> str:
    """Return a duration as text, with milliseconds if it is short."""
    from rhapsody.history.reader import is_time
    from rhapsody.observers.account import duration

    if seconds is None or not is_time(seconds):
        return "-"
    if seconds >= 0.9995:
        return duration(seconds)
    return f"{seconds * 1000:.{1 if 0 < seconds < 0.00995 else 0}f} ms"


def size(number: float | None) -> str:
    """Return a size in bytes as short text, `"-"` if it is unknown."""
    if number is None or not math.isfinite(number):
        return "-"
    value, _, unit = size_text(number).partition(" ")
    return f"{float(value):.0f} {unit}" if float(value) >= 10 else f"{value} {unit}"


def percent(share: float | None) -> str:
    """Return a share as percentage, `"-"` if it is unknown."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def where(attempt: Attempt | None) -> str:
    """Return the backend and worker of an attempt."""
    parts = (attempt.backend, attempt.worker) if attempt is not None else ()
    return ", ".join(each for each in parts if each) or "-"


def call_of(task: TaskRun) -> str:
    """Return the call of a task, or its name if the call is unknown."""
    return printable(task.call or task.name or task.key)


# Values as JSON.


def run_json(run: RunRecord) -> dict[str, Any]:
    """Return a run as JSON."""
    return {
        "name": run.name,
        "path": str(run.path),
        "outcome": run.outcome,
        "program": run.program,
        "arguments": list(run.arguments),
        "profile": run.profile,
        "host": run.host,
        "user": run.user,
        "pid": run.pid,
        "started": run.started,
        "ended": run.ended,
        "seconds": run.seconds,
        "backends": list(run.backends),
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as JSON."""
    found = attempt._asdict()
    error = attempt.error
    found["state"] = str(attempt.state)
    if error is not None:
        found["error"] = {
            "type": error.kind,
            "message": error.message,
            "traceback": list(error.traceback),
            "caused_by": list(error.caused_by),
        }
    for name in ("inputs", "outputs"):
        found[name] = [asdict(file) for file in found[name]]
    found["usage"] = dict(attempt.usage or {})
    found["resources"] = dict(attempt.resources or {})
    return found


def task_json(task: TaskRun) -> dict[str, Any]:
    """Return a task without its attempts as JSON."""
    return {
        "task": task.key,
        "name": task.name,
        "kind": task.kind,
        "call": task.call,
        "state": str(task.state),
        "skipped": task.skipped,
        "reused": task.reused,
        "called": task.time,
        "block": task.block,
        "scope": task.scope,
        "dependencies": list(task.dependencies),
        "resources": dict(task.resources),
        "settings": dict(task.settings),
    }
