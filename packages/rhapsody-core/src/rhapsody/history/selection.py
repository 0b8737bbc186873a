"""Selection of runs and tasks by what users type: names, beginnings of names, and numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rhapsody.history.reader import RecordError, RecordReader, RunHistory, TaskRun, other_owner
from rhapsody.history.values import call_of
from rhapsody.identity import label
from rhapsody.plugins.specs import UsageError
from rhapsody.sdk.runs import BASE, LATEST, RECORD, runs_in
from rhapsody.spelling import similar

LISTED = 10
"""Maximum number of candidates in an error."""


NAMED = 5
"""Maximum number of names of tasks in an error."""


class SelectionError(UsageError):
    """The user's text selects no run or task, or several.

    Attributes:
        candidates: The names or uids that were selected; if there are none, similar ones.
    """

    def __init__(self, message: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates: tuple[str, ...] = tuple(candidates)


def runs_directory(directory: str = ".") -> Path:
    """Return the directory if its name is `.rhapsody`, otherwise the path of `.rhapsody` in it.

    Raises:
        UsageError: The directory does not exist.
    """
    path = Path(os.path.abspath(directory))
    if not path.is_dir():
        raise UsageError(f"directory {directory!r} does not exist (looked in {os.getcwd()})")
    return path if path.name == BASE else path / BASE


def open_run(text: str | None) -> RecordReader:
    """Return the reader of the record that `text` selects, which has read the present content.

    Args:
        text: The text of the user; see `select_run`. The runs are those in the current directory.

    Raises:
        SelectionError: The text selects no recorded run, or several.
        RecordError: The file cannot be read, is not a record, or was written by a newer version.
    """
    reader = RecordReader(select_run(text, runs_directory()))
    try:
        reader.update()
    except OSError as error:
        raise RecordError(f"cannot read {reader.path}: {error.strerror or error}") from None
    return reader


def select_run(text: str | None, base: Path) -> Path:
    """Return the path of a run's record.

    Args:
        text: The name of the run, the beginning of its name, or its last four digits; `None` or
            `"latest"` for the newest recorded run. Also the path of a record or of a run's
            directory. The newest run is the newest one of this user; runs of other users must be
            named.
        base: The `.rhapsody` directory.

    Raises:
        SelectionError: The text selects no recorded run, or several.
    """
    names = [
        name
        for name in reversed(runs_in(base))
        if os.path.isfile(base / name / RECORD) or not os.access(base / name, os.X_OK)
    ]
    own = [name for name in names if other_owner(base / name / RECORD) is None]
    if text is not None and text != LATEST and text not in names:
        for path in (Path(text) / RECORD, Path(text)):
            if os.path.isfile(path):
                return path
        if os.path.isdir(text) and not os.access(text, os.X_OK):
            return Path(text) / RECORD  # reading it raises the error
    newest = text is None or text == LATEST
    if newest and own:
        return base / own[0] / RECORD
    unrecorded = [name for name in runs_in(base, own=True) if name not in names]
    waiting = [] if text is None or newest else _matching(text, unrecorded)
    if not names and not waiting:
        raise SelectionError(
            f"no recorded runs in {base}; `rhapsody run` records each run, and programs pass "
            "record=True to the engine"
        )
    if text is None or text == LATEST:
        raise SelectionError(
            f"all recorded runs in {base} belong to other users; to read one of them, name it: "
            "`rhapsody runs` lists them"
        )
    others = [name for name in names if name not in own]
    found = _matching(text, own) or _matching(text, others)
    if len(found) == 1:
        return base / found[0] / RECORD
    if found:
        raise SelectionError(f"{text!r} selects {_several('runs', found)}", found)
    if waiting:
        raise SelectionError(
            f"run {waiting[0]} has no record; if it was submitted with rhapsody submit, it has not "
            f"started yet: run rhapsody attach {waiting[0]}",
            waiting,
        )
    close = similar(text, names, LISTED, 0.5)
    meant = _meant(close) or "; `rhapsody runs` lists the runs"
    raise SelectionError(f"no recorded run {text!r} in {base}{meant}", close)


def _matching(text: str, names: Sequence[str]) -> list[str]:
    """Return the names that text selects."""
    found = [name for name in names if name == text]
    found = found or [name for name in names if name.startswith(text)]
    return found or [name for name in names if text and name.endswith(f"-{text}")]


def find_tasks(text: str, history: RunHistory) -> list[TaskRun]:
    """Return the tasks that `text` selects, in the order of their calls.

    The text is a key or uid (`task.000007`), the number in a uid (`7`), a name, or the beginning of
    a name; the first of these that selects anything applies.

    Raises:
        SelectionError: The text selects no task.
    """
    tasks = history.tasks.values()
    if text in history.tasks:
        return [history.tasks[text]]
    uid = label(text) if text.isdecimal() else text
    for found in (
        [task for task in tasks if task.uid == uid],
        [task for task in tasks if task.name == text],
        [task for task in tasks if text and task.name.startswith(text)],
    ):
        if found:
            return found
    names = dict.fromkeys(task.name for task in tasks if task.name)
    close = similar(text, [*names, *history.tasks], LISTED)
    more = ", ..." if len(names) > NAMED else ""
    there = f"; its tasks are named {', '.join([*names][:NAMED])}{more}" if names else ""
    meant = _meant(close) or there
    raise SelectionError(f"no task {text!r} in run {history.run.name}{meant}", close)


def select_task(text: str, history: RunHistory) -> TaskRun:
    """Return the only task that `text` selects; see `find_tasks`.

    If several tasks are selected, the error lists failed tasks first, and then running tasks.

    Raises:
        SelectionError: The text selects no task, or several.
    """
    found = find_tasks(text, history)
    if len(found) == 1:
        return found[0]
    found = sorted(found, key=_urgency)
    keys = [task.key for task in found]
    width = max(len(key) for key in keys[:LISTED])
    shown = [f"{task.key:<{width}}  {task.outcome:<8}  {call_of(task)}" for task in found]
    raise SelectionError(f"{text!r} selects {_several('tasks', shown)}", keys)


def _urgency(task: TaskRun) -> int:
    """Return a sort key: failed tasks come first, then skipped tasks, then running tasks."""
    return {"failed": 0, "skipped": 1, "running": 2}.get(task.outcome, 3)


def _several(what: str, found: Sequence[str]) -> str:
    more = f"\n  and {len(found) - LISTED} more" if len(found) > LISTED else ""
    lines = "".join(f"\n  {each}" for each in found[:LISTED])
    return f"{len(found)} {what}; name one of them:{lines}{more}"


def _meant(close: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""
