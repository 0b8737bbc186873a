"""Records of runs for the commands that read them: selection, errors, and values as JSON."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.cli.output import CommandError, complain
from rhapsody.history import values
from rhapsody.history.values import printable
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.history.reader import Attempt, RecordReader, RunHistory, RunRecord, TaskRun

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
    """Return the reader of the record that `run` selects, and its content; report damage.

    Raises:
        SelectionError: The user's text selects no recorded run, or several.
        RecordError: The record cannot be read.
    """
    from rhapsody.history.selection import open_run

    reader = open_run(run)
    history = reader.history()
    for warning in values.warnings_of(history):
        complain(warning)
    return reader, history


def read_record(run: str | None) -> RunHistory:
    """Return the content of the record that `run` selects, and report damage.

    Raises:
        SelectionError: The user's text selects no recorded run, or several.
        RecordError: The record cannot be read.
    """
    return open_record(run)[1]


def chosen_task(run: str | None, task: str, history: RunHistory) -> TaskRun:
    """Return the task that `task` selects in the run that `run` selects.

    Raises:
        SelectionError: `task` selects no task, or several.
        UsageError: `task` selects a run, and `run` is `None`.
    """
    from rhapsody.history.selection import SelectionError, runs_directory, select_run, select_task

    try:
        return select_task(task, history)
    except SelectionError as error:
        if run is None and not error.candidates:
            with contextlib.suppress(SelectionError):
                name = select_run(task, runs_directory()).parent.name
                raise UsageError(f"{task!r} is the run {name}; name a task of it as well") from None
        raise


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as given or relative to the current directory, whichever is shorter."""
    return printable(values.shown(path))


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
        "owner": run.owner,
        "pid": run.pid,
        "started": run.started,
        "ended": run.ended,
        "exit_code": run.exit_code,
        "seconds": run.seconds,
        "backends": list(run.backends),
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as JSON. The whole output is for `rhapsody logs`."""
    found = attempt._asdict()
    del found["stdout_at"], found["stderr_at"]
    error = attempt.error
    found["state"] = str(attempt.state)
    if error is not None:
        found["error"] = {
            "type": error.kind,
            "message": error.message,
            "traceback": list(error.traceback),
            "caused_by": list(error.caused_by),
            "place": error.place,
            "stderr": error.stderr,
            "hints": list(error.hints),
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
        "fallback": task.fallback,
        "called": task.time,
        "block": task.block,
        "scope": task.scope,
        "dependencies": list(task.dependencies),
        "resources": dict(task.resources),
        "settings": dict(task.settings),
    }
