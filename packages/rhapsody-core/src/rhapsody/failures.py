"""Failures of tasks as text, in groups of similar failures."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from textwrap import dedent

from rhapsody.backends.programs import RERUN_SCRIPT
from rhapsody.errors import (
    TaskFailedError,
    describe_error,
    first_call,
    text_of,
)
from rhapsody.history.values import shown
from rhapsody.tracebacks import as_lines, last_frames, location_of

MAX_EXAMPLES = 4
"""Maximum number of failures of a group that are kept; later ones are only counted."""

MAX_GROUPS = 200
"""Maximum number of groups that are kept; failures of later groups are only counted."""

MAX_LISTED = 20
"""Maximum number of groups, results or outdated files that are listed."""

MAX_WIDTH = 160
"""Maximum number of characters of the text in a group's one-line summary."""

MAX_LINES = 10
"""Maximum number of last lines of an error, or of the output, that are shown.

The output is shown only if the error is a single line.
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that has failed.

    Attributes:
        call: The call with its shortened arguments, and the task's uid.
        error: The exception as text.
        attempt: The number of the attempt that failed, starting at 1.
        frames: The last frames of the traceback, as Python prints them.
        sandbox: The directory in which the attempt ran, or `None` if it had none.
        stdout: The end of the standard output, taken from a note on the exception; may be empty.
    """

    call: str
    error: str
    attempt: int
    frames: tuple[str, ...]
    sandbox: str | None
    stdout: str

    @property
    def summary(self) -> str:
        """One line with the call and the first line of the error."""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.call}{attempt}: {_first_line(self.error)}"

    def lines(self) -> list[str]:
        """Return the lines that describe the failure in full."""
        lines = [self.summary]
        more, printed = self.error.strip().splitlines()[1:], self.stdout.strip().splitlines()
        lines += [f"  {line}" for line in (*self.frames, *more[-MAX_LINES:])]
        if printed and not more:
            lines.append("  standard output ended with:")
            lines += [f"    {line}" for line in printed[-MAX_LINES:]]
        if self.sandbox is not None and os.path.isdir(self.sandbox):
            lines.append(f"  sandbox: {shown(self.sandbox)}")
            again = os.path.join(self.sandbox, RERUN_SCRIPT)
            if os.path.isfile(again):
                lines.append(f"  to run it again: sh {shlex.quote(shown(again))}")
        return lines


@dataclass(slots=True)
class FailureGroup:
    """Failures with the same task name, exception type and line of the user's code.

    Attributes:
        name: The name of the tasks.
        kind: The exception type, or the exit code.
        text: The first line of the error, or `None` if it is not the same for all failures.
        location: The line of the user's code, such as `stats.py:12`, or `None` if it is unknown.
        count: The number of failures.
        examples: The first failures, keyed by the task's uid. Failures that were followed by a
            retry are excluded.
    """

    name: str
    kind: str
    text: str | None
    location: str | None
    count: int = 0
    examples: dict[str, Failure] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line that describes the whole group."""
        where = f" ({self.location})" if self.location else ""
        if self.count == 1 and self.examples:
            return f"{_shortened(next(iter(self.examples.values())).summary)}{where}"
        text = _shortened(self.text or self.kind)
        return f"{self.count} \N{MULTIPLICATION SIGN} {text} in {self.name}{where}"

    def lines(self) -> list[str]:
        """Return lines that describe the group, including its first failure in full."""
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
    """The groups of a run's failures.

    Only text is kept, and only for the first groups and the first failures of each group: a million
    failures must not hold a million tracebacks.
    """

    def __init__(self) -> None:
        self._groups: dict[Key, FailureGroup] = {}  # in the order of the first failure of each
        self._latest: dict[Key, FailureGroup] = {}  # in the order of the last failure of each
        self._ungrouped = 0

    @property
    def latest(self) -> list[FailureGroup]:
        """The groups, in the order of the last failure of each."""
        return list(self._latest.values())

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
            if len(self._groups) >= MAX_GROUPS:
                self._ungrouped += 1
                return key
            group = self._groups[key] = FailureGroup(name, key[1], _first_line(text), location)
        self._latest.pop(key, None)
        self._latest[key] = group
        group.count += 1
        if group.text != _first_line(text):
            group.text = None
        if len(group.examples) < MAX_EXAMPLES:
            call, own = first_call(error), f"({uid})"
            if call is None or not (uid.startswith("block.") or call.endswith(own)):
                call = f"{name} {own}"  # the exception names the call of another task
            frames = tuple(as_lines(last_frames(error), _here()))
            stdout = _stdout(error)
            hints = [note for note in _notes(error) if note.startswith("hint: ")]
            text = "\n".join([text, *hints])
            group.examples[uid] = Failure(call, text, attempt, frames, sandbox, stdout)
        return key

    def discard(self, key: Key, uid: str) -> None:
        """Remove a failure after which the task is retried."""
        group = self._groups.get(key)
        if group is None:
            self._ungrouped -= 1
            return
        group.count -= 1
        group.examples.pop(uid, None)
        if not group.count:
            del self._groups[key], self._latest[key]

    def lines(self) -> list[str]:
        """Return lines that describe the groups, in the order of their first failures.

        Each group is described with its first failure in full. At most `MAX_LISTED` groups are
        described. The failures of the other groups are only counted.
        """
        groups = list(self._groups.values())
        lines = [line for group in groups[:MAX_LISTED] for line in group.lines()]
        more = sum(group.count for group in groups[MAX_LISTED:]) + self._ungrouped
        return lines + [f"... and {more} more"] * (more > 0)


def _here() -> str | None:
    with suppress(OSError):  # the current directory was removed
        return os.getcwd()
    return None


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 3].rstrip()}..."


def _joined(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _kind(error: BaseException | None) -> str:
    """Return the exception type or exit code that a group's failures have in common."""
    if isinstance(error, TaskFailedError) and error.exit_code is not None:
        return f"exit code {error.exit_code}"
    return type(error).__name__


def _notes(error: BaseException | None) -> list[str]:
    """Return the notes on an exception."""
    notes = None if error is None else vars(error).get("__notes__")
    return [note for note in notes if type(note) is str] if type(notes) is list else []


def _stdout(error: BaseException | None) -> str:
    """Return the end of standard output from the note on an exception. The note hides secrets."""
    for note in _notes(error):
        _, found, rest = note.partition("  standard output ended with:\n")
        if found:
            return dedent(rest.partition("\n  standard error ended with:\n")[0])
    return ""


def _in_words(name: str, uid: str, error: BaseException | None) -> str:
    """Return a task's error as text, without the task's name at the beginning of some messages."""
    if error is None:
        return ""
    text = text_of(error)
    for kind in ("task", "service"):
        own = f"{kind} {name!r} ({uid}) "
        if text.startswith(own):
            return text.removeprefix(own)
    return describe_error(error)
