"""Groups of equal failures: thirty tasks with the same fault are one entry."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from textwrap import dedent

from rhapsody.backends.scripts import AGAIN
from rhapsody.errors import TaskFailedError, describe_error, first_call, is_a, text_of, vars_of
from rhapsody.tracebacks import as_lines, last_frames, location_of

EXAMPLES = 4
"""Number of failures of a group that are kept, the first ones."""

GROUPS = 200
"""Number of groups that are kept, the first ones."""

LISTED = 20
"""Number of groups that are listed."""

WIDTH = 160
"""Number of characters of a group's summary, which is a single line."""

PRINTED = 10
"""Number of last lines shown of an error, after its first line, or else of standard output."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that has failed.

    Attributes:
        call: The call with its arguments, shortened, and the uid.
        error: Its exception in words.
        attempt: Which attempt it was, from 1.
        frames: The last frames of its traceback, as Python prints them.
        sandbox: The directory that it ran in, `None` if it had none.
        stdout: The end of its standard output, from the note on its exception.
    """

    call: str
    error: str
    attempt: int
    frames: tuple[str, ...]
    sandbox: str | None
    stdout: str

    @property
    def summary(self) -> str:
        """The call, and the first line of the error."""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.call}{attempt}: {_first_line(self.error)}"

    def lines(self) -> list[str]:
        """Describe it in full."""
        lines = [self.summary]
        more, printed = self.error.strip().splitlines()[1:], self.stdout.strip().splitlines()
        lines += [f"  {line}" for line in (*self.frames, *more[-PRINTED:])]
        if printed and not more:
            lines.append("  standard output ended with:")
            lines += [f"    {line}" for line in printed[-PRINTED:]]
        if self.sandbox is not None and os.path.isdir(self.sandbox):
            lines.append(f"  sandbox: {shown(self.sandbox)}")
            again = os.path.join(self.sandbox, AGAIN)
            if os.path.isfile(again):
                lines.append(f"  to run it again: sh {shlex.quote(shown(again))}")
        return lines


@dataclass(slots=True)
class FailureGroup:
    """Failures with the same task name, type and place in the user's code.

    Attributes:
        name: The tasks' name.
        kind: The exception's type, or the exit code.
        text: The first line of the error, `None` if the failures differ in it.
        location: The place, such as `stats.py:12`, `None` if there is none.
        count: How many there are.
        examples: The first failures by uid, without those that were retried.
    """

    name: str
    kind: str
    text: str | None
    location: str | None
    count: int = 0
    examples: dict[str, Failure] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line that describes all of them."""
        where = f" ({self.location})" if self.location else ""
        if self.count == 1 and self.examples:
            return f"{_shortened(next(iter(self.examples.values())).summary)}{where}"
        text = _shortened(self.text or self.kind)
        return f"{self.count} \N{MULTIPLICATION SIGN} {text} in {self.name}{where}"

    def lines(self) -> list[str]:
        """Describe all of them, and the first in full."""
        examples = list(self.examples.values())
        if not examples:
            return [self.summary]
        if self.count == 1:
            return examples[0].lines()
        lines = [f"{self.summary}; the first:", *(f"  {line}" for line in examples[0].lines())]
        calls, more = [each.call for each in examples[1:]], self.count - len(examples)
        calls += [f"{more} more"] * (more > 0)
        if calls:
            lines.append(f"  the others: {_joined(calls)}")
        return lines


Key = tuple[str, str, str | None]
"""Key of a group: the tasks' name, `kind` and `location`."""


class FailureGroups:
    """The groups of a run's failures, in the order of the first failure of each.

    Only text is kept, for the first groups and the first failures of each: a million failures must
    not hold a million tracebacks.
    """

    def __init__(self) -> None:
        self._groups: dict[Key, FailureGroup] = {}
        self._ungrouped = 0

    @property
    def latest(self) -> list[FailureGroup]:
        """The groups, the most recent one at the end."""
        return list(self._groups.values())

    def add(
        self,
        name: str,
        uid: str,
        error: BaseException | None,
        *,
        attempt: int,
        sandbox: str | None,
    ) -> Key:
        """Add the failure of a task, and return the key of its group."""
        location, text = location_of(error), _in_words(name, uid, error)
        key = (name, _kind(error), location)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS:
                self._ungrouped += 1
                return key
            group = self._groups[key] = FailureGroup(name, key[1], _first_line(text), location)
        group.count += 1
        if group.text != _first_line(text):
            group.text = None
        if len(group.examples) < EXAMPLES:
            call, own = first_call(error), f"({uid})"
            if call is None or not (uid.startswith("block.") or call.endswith(own)):
                call = f"{name} {own}"  # others have raised that exception, too
            frames = tuple(as_lines(last_frames(error), _here()))
            stdout = _stdout(error)
            hints = [note for note in _notes(error) if note.startswith("hint: ")]
            text = "\n".join([text, *hints])
            group.examples[uid] = Failure(call, text, attempt, frames, sandbox, stdout)
        return key

    def discard(self, key: Key, uid: str) -> None:
        """Remove the failure of an attempt that is followed by another one."""
        group = self._groups.get(key)
        if group is None:
            self._ungrouped -= 1
            return
        group.count -= 1
        group.examples.pop(uid, None)
        if not group.count:
            del self._groups[key]

    def lines(self) -> list[str]:
        """Describe every group, and the first failure of each in full; nothing without failures."""
        groups = self.latest
        lines = [line for group in groups[:LISTED] for line in group.lines()]
        more = sum(group.count for group in groups[LISTED:]) + self._ungrouped
        return lines + [f"... and {more} more"] * (more > 0)


def shown(path: str | os.PathLike[str]) -> str:
    """The shortest form of a path from the current directory."""
    try:
        return min(os.path.relpath(path), os.fspath(path), key=len)
    except OSError:  # the current directory was removed
        return os.fspath(path)


def _here() -> str | None:
    with suppress(OSError):  # the current directory was removed
        return os.getcwd()
    return None


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


def _shortened(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3].rstrip()}..."


def _joined(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _kind(error: BaseException | None) -> str:
    """The exception type or exit code that a group's failures have in common."""
    if is_a(error, TaskFailedError) and error.exit_code is not None:
        return f"exit code {error.exit_code}"
    return type(error).__name__


def _notes(error: BaseException | None) -> list[str]:
    """Return the notes on an exception."""
    notes = None if error is None else vars_of(error).get("__notes__")
    return [note for note in notes if type(note) is str] if type(notes) is list else []


def _stdout(error: BaseException | None) -> str:
    """The standard output in the note on an exception, with secrets hidden."""
    for note in _notes(error):
        _, found, rest = note.partition("  standard output ended with:\n")
        if found:
            return dedent(rest.partition("\n  standard error ended with:\n")[0])
    return ""


def _in_words(name: str, uid: str, error: BaseException | None) -> str:
    """The error of a task, without the task's name, with which some messages begin."""
    if error is None:
        return ""
    text = text_of(error)
    for kind in ("task", "service"):
        own = f"{kind} {name!r} ({uid}) "
        if text.startswith(own):
            return text.removeprefix(own)
    return describe_error(error)
