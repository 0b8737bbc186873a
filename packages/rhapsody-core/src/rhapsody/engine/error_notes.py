"""The note on a failed task's exception (PEP 678): which call it was, where, and what it printed.

Nothing of the user's runs to make it: of an argument that is not of a built-in type it shows the
type alone. Of the values of `environment=`, and of variables of this process that look secret,
it shows the names.
"""

from __future__ import annotations

import os
import reprlib
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from rhapsody.backends.scripts import AGAIN, looks_secret
from rhapsody.data import RESERVED, File, end_of_file
from rhapsody.engine.record import TaskRecord
from rhapsody.errors import CALL, TaskFailedError, is_a, traceback_of, vars_of
from rhapsody.staging.space import full_disk, used_up
from rhapsody.task import TaskFuture
from rhapsody.tracebacks import format_error, users_part

ERROR = f"{RESERVED}error"
"""File in a failed task's sandbox that contains its traceback."""

OURS = "rhapsody: "
"""How every note of ours begins. It takes the place of another one on the same exception."""

LONGEST = 200
"""Characters of a call that are shown."""

PRINTED, LINES = 1000, 10
"""Characters and lines that are shown of what a task printed."""


SECRET = 8
"""From so many characters on, the value of a variable of a task's is shown nowhere."""


def _values(record: TaskRecord) -> list[tuple[str, str]]:
    """The values of variables that are not to be shown, longest first, and their names."""
    environment: Mapping[str, str] | None = record.task.settings.environment
    if record.description:
        environment = record.description.get("environment")
    variables = dict(environment or {})
    for name in filter(looks_secret, os.environ):
        variables.setdefault(name, os.environ.get(name, ""))
    pairs = [(value, name) for name, value in variables.items() if len(value) >= SECRET]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def hidden(record: TaskRecord, text: str) -> str:
    """A text with `<NAME>` for each value of a variable that may be secret, see `_values`."""
    if len(text) < SECRET:
        return text
    for value, name in _values(record):
        text = text.replace(value, f"<{name}>")
    return text


def printed_last(record: TaskRecord, text: object, count: int) -> str:
    """The end of what a task's task printed, or of the file that holds it, without secrets."""
    if not isinstance(text, str) or not text:
        return ""
    values = [value for value, _ in _values(record)]
    if record.task.settings.capture == "files":
        text = end_of_file(text, count + max(map(len, values), default=0))
    start = max(0, len(text) - count)
    for value in values:  # none is cut in two
        at = text.find(value, max(0, start - len(value) + 1), start + len(value) - 1)
        start = at if 0 <= at < start else start
    return hidden(record, text[start:])


class _Brief(reprlib.Repr):
    """Shows values in few characters, without code of theirs.

    Args:
        task: The task whose values they are.
    """

    def __init__(self, record: TaskRecord) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 40
        self._node = record

    def repr_str(self, x: str, level: int) -> str:
        """Shows text; what is not to be shown goes before it is shortened."""
        return super().repr_str(hidden(self._node, x), level)

    def repr_instance(self, x: Any, level: int) -> str:
        """Shows what is of no built-in type."""
        kind = type(x)
        if issubclass(kind, TaskFuture):
            return f"<{x.uid}>"
        if issubclass(kind, PurePath | File):
            return repr(x)
        if kind in (float, bool, type(None), complex):
            return repr(x)
        return f"<{kind.__name__}>"


def call_of(record: TaskRecord) -> str:
    """The call of a task as it stands in a program, shortened."""
    brief = _Brief(record)
    try:
        given = [brief.repr(value) for value in record.args]
        given += [f"{name}={brief.repr(value)}" for name, value in (record.kwargs or {}).items()]
        text = hidden(record, ", ".join(given))
    except Exception:  # an object that forbids to be looked at must not hide the failure
        text = "..."
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{record.task.name}({text})"


def annotate(record: TaskRecord, error: BaseException) -> None:
    """Puts the note of a task that has failed for good onto its exception.

    That of a block stays that of the task whose exception it passes on.
    """
    attributes = vars_of(error)
    notes = attributes.get("__notes__")
    notes = list(notes) if type(notes) is list else []
    others = [each for each in notes if not (type(each) is str and each.startswith(OURS))]
    if record.task.prefix == "block" and len(others) < len(notes):
        return
    call = call_of(record)
    attributes[CALL] = f"{call} ({record.future.uid})"
    attributes["__notes__"] = [*others, _note(record, call, error)]


def leave_error(record: TaskRecord, error: BaseException) -> None:
    """Write the traceback of a task that has failed into its sandbox, if it has one."""
    sandbox = record.description.get("sandbox")
    if sandbox is None or not os.path.isdir(sandbox):
        return
    with suppress(Exception):  # a full disk, or an exception whose own code cannot be run
        text = format_error(error, users_part(traceback_of(error)))
        with open(os.path.join(sandbox, ERROR), "w", encoding="utf-8", errors="replace") as file:
            file.write(hidden(record, text))


def _note(record: TaskRecord, call: str, error: BaseException) -> str:
    description, backend, extra = record.description, record.future._backend, record.extra
    if extra is not None and extra.elsewhere is not None:
        backend = extra.elsewhere
    where = record.future.uid
    if backend is not None:
        worker = description.get("worker")
        where += f", attempt {record.attempt}, on {backend!r}"
        where += "" if worker is None else f" ({worker})"
    elif record.task.prefix == "task":
        where += ", not submitted"
    lines = [f"{OURS}raised in {call}", f"  {where}"]
    if extra is not None and extra.elsewhere is not None:
        lines.append(
            f"  attempts: {', '.join(f'{n} on {name!r}' for name, n in extra.tried.items())}"
        )
    sandbox = description.get("sandbox")
    if backend is not None and sandbox is not None:
        lines.append(f"  sandbox: {sandbox}")
        if record.task.kind == "executable" and os.path.isfile(os.path.join(sandbox, AGAIN)):
            lines.append(f"  to run it again: sh {shlex.quote(os.path.join(sandbox, AGAIN))}")
    full = None if is_a(error, TaskFailedError) else full_disk(sandbox, error)  # it says so itself
    short = full or used_up(error, program=record.task.kind == "executable")
    if short is not None:
        lines.append(f"  {short}")
    lines += [
        f"  {place!r} is where the file is put when the task is done: the command writes {name!r}"
        for place, name in _places(record).items()
    ]
    for name, text in _printed(record, error).items():
        lines += [f"  {name} ended with:", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


def _places(record: TaskRecord) -> dict[str, str]:
    """Places of promised files that a failed command names in place of the files."""
    extra, found = record.extra, record.found
    if extra is None or extra.command is None or found is None:
        return {}
    text = extra.command if isinstance(extra.command, str) else " ".join(extra.command)
    placed = {f"{out.save}{out.filename}": out.filename for out in found.outputs if out.save}
    return {place: name for place, name in placed.items() if place in text}


def _printed(record: TaskRecord, error: BaseException) -> dict[str, str]:
    """The ends of what a task printed, by the stream, but for what the error's message tells."""
    outcome = record.future._outcome
    if outcome is None:
        return {}
    streams = {"standard output": outcome.stdout, "standard error": outcome.stderr}
    if is_a(error, TaskFailedError):
        del streams["standard error"]
    found: dict[str, str] = {}
    for name, text in streams.items():
        last = printed_last(record, text, PRINTED)
        tail = "\n".join(last.rstrip().splitlines()[-LINES:])
        if tail:
            found[name] = tail
    return found
