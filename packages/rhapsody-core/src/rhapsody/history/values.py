"""Values of records as text, for the commands and the report."""

from __future__ import annotations

import math
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from rhapsody.resources import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rhapsody.history.reader import Attempt, RunHistory, RunRecord, TaskRun


RUN_HELP: str = (
    "the name of a run, the beginning of its name, its last four digits, or the path of a record "
    "(default: your newest run)"
)
"""Description of the texts that `open_run` and `select_run` accept, for the help of a command."""


def counts_of(history: RunHistory) -> dict[str, int]:
    """Return the number of tasks and blocks by outcome, from the tasks of a record."""
    found = dict.fromkeys(COUNTED, 0)
    found["tasks"] = len(history.tasks)
    for task in history.tasks.values():
        found[task.outcome] += 1
        found["reused"] += task.reused
        found["fallback"] += task.fallback
        found["retried"] += sum(attempt.retried for attempt in task.attempts)
    return found


OUTCOMES = ("waiting", "running", "done", "failed", "skipped", "canceled")
"""Outcomes of tasks, in the order in which they are shown."""

COUNTED = ("tasks", *OUTCOMES, "reused", "retried", "fallback")
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
        "fallback": get("fallbacks", 0),
    }
    ended = sum(found[name] for name in ("done", "failed", "skipped", "canceled"))
    found["waiting"] = max(0, found["tasks"] - ended)
    return found


def counts_text(counts: dict[str, int]) -> str:
    """Return counts as text, without zeros except for `done`."""
    if not counts["tasks"]:
        return "no tasks"
    parts = [f"{counts['reused']} of them reused"] if counts["reused"] else []
    parts += [f"{counts['fallback']} by fallback"] if counts["fallback"] else []
    done = f"{counts['done']} done" + (f" ({', '.join(parts)})" if parts else "")
    order = ("failed", "skipped", "canceled", "running", "waiting", "retried")
    return ", ".join([done, *(f"{counts[name]} {name}" for name in order if counts[name])])


def may_run(run: RunRecord) -> bool:
    """Return True if a run is active, or may be active on another host."""
    if run.outcome == "unknown":
        return run.host != socket.gethostname()
    return run.outcome == "running"


def seconds_so_far(run: RunRecord) -> float | None:
    """Return the duration of a run or, if it is running, the time since its start."""
    if run.outcome == "running" and run.started is not None:
        return max(0.0, time.time() - run.started)
    return run.seconds


def program_of(run: RunRecord) -> str:
    """Return the name of the program of a run."""
    return os.path.basename(run.program) or (run.program or "-")


def clock(seconds: float | None, *, day: bool = False) -> str:
    """Format a time in the local time zone, without the date if it is today's."""
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

    if seconds is None or not is_time(seconds):
        return "-"
    if seconds >= 0.9995:
        return duration_text(seconds)
    return f"{seconds * 1000:.{1 if 0 < seconds < 0.00995 else 0}f} ms"


def size(number: float | None) -> str:
    """Return a size in bytes as short text, `"-"` if it is unknown."""
    if number is None or not math.isfinite(number):
        return "-"
    value, _, unit = size_text(number).partition(" ")
    return f"{float(value):.0f} {unit}" if float(value) >= 10 else f"{value} {unit}"


def resources_text(given: Mapping[str, Any]) -> str:
    """Return requested resources as text."""
    return ", ".join(
        f"{name} {size(value) if name == 'memory' and isinstance(value, int | float) else value}"
        for name, value in given.items()
    )


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


def printable(text: str) -> str:
    """Return text as one line, without characters that could control the terminal."""
    text = str(text)  # a damaged record may contain something else
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as given or relative to the current directory, whichever is shorter."""
    try:
        return min(os.path.relpath(path), os.fspath(path), key=len)
    except OSError:  # the current directory was removed
        return os.fspath(path)


def warnings_of(history: RunHistory) -> list[str]:
    """Return warnings for readers: the record is that of another user, or lines are damaged."""
    run, found = history.run, history.problems
    path = printable(shown(run.path))
    warnings = [] if run.owner is None else [f"{path} is the record of user {printable(run.owner)}"]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.append(f"{path} is damaged: {found[0]}{more}")
    return warnings
