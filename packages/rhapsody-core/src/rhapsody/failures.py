"""Failures of tasks: what is known about each, and groups of similar failures for summaries."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rhapsody.errors import TaskFailedError, in_words, parts_of
from rhapsody.history.values import shown
from rhapsody.tracebacks import Frame, as_lines, is_users_code, last_frames

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

Key = tuple[str, str, int | None, str | None]
"""Key of a group: the tasks' name, and the kind, exit code and place of their failures."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Failure of an attempt of a task, or the reason why a task did not run. Texts have no secrets.

    Attributes:
        task: The name of the task or block.
        uid: Its uid in the engine.
        attempt: The number of the attempt that failed, starting at 1; 0 if there was none.
        call: The call that raised the exception, with shortened arguments and the uid of its task.
            A block, and a task that did not run, can fail because of the call of another task.
        kind: The name of the exception's type.
        message: The text of the exception, without the task's name at its beginning, the output and
            the hints.
        exit_code: The exit code of a command that failed.
        backend: The name of the backend, or `None` if the task was not submitted.
        worker: The worker or host, if the backend has reported it.
        attempts: The backends with their numbers of failed attempts, if the task was moved.
        frames: The last frames of the traceback; see `rhapsody.tracebacks.last_frames`.
        sandbox: The directory in which the attempt ran, or `None` if it had none.
        rerun: The path of a script that runs the command again, if there is one.
        stdout: The end of the standard output.
        stderr: The end of the standard error.
        hints: What may have caused the failure, and what helps.
        causes: For a task that did not run, the uids of the tasks that failed first.
    """

    task: str
    uid: str
    attempt: int
    call: str
    kind: str
    message: str
    exit_code: int | None = None
    backend: str | None = None
    worker: str | None = None
    attempts: tuple[tuple[str, int], ...] = ()
    frames: tuple[Frame, ...] = ()
    sandbox: str | None = None
    rerun: str | None = None
    stdout: str = ""
    stderr: str = ""
    hints: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def place(self) -> str | None:
        """The last line of the user's code in the traceback, such as `stats.py:12`."""
        own = [frame for frame in self.frames if is_users_code(frame.file)]
        return own[-1].location if own else None

    @property
    def key(self) -> Key:
        """The key of the group of similar failures."""
        return self.task, self.kind, self.exit_code, self.place

    @property
    def text(self) -> str:
        """The kind and the message of the failure. The exit code of a command needs no kind."""
        return in_words(self.kind, self.message)

    @property
    def summary(self) -> str:
        """One line with the call and the first line of the error."""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.call}{attempt}: {_first_line(self.text)}"

    def details(self) -> list[str]:
        """Return the further lines of the error, and the hints."""
        more = self.text.strip().splitlines()[1:]
        if self.of_command:
            more += self.stderr.strip().splitlines()
        return [*more[-MAX_LINES:], *(f"hint: {hint}" for hint in self.hints)]

    @property
    def of_command(self) -> bool:
        """True if a command has failed, whose standard error belongs to the failure."""
        return self.kind == TaskFailedError.__name__ or self.exit_code is not None

    def lines(self) -> list[str]:
        """Return the lines that describe the failure in full."""
        more = self.details()
        frames = as_lines(self.frames, _here())
        lines = [self.summary, *(f"  {line}" for line in (*frames, *more))]
        if self.stdout and len(more) == len(self.hints):
            lines.append("  standard output ended with:")
            lines += [f"    {line}" for line in self.stdout.splitlines()[-MAX_LINES:]]
        if self.sandbox is not None and os.path.isdir(self.sandbox):
            lines.append(f"  sandbox: {shown(self.sandbox)}")
            if self.rerun is not None:
                lines.append(f"  to run it again: sh {shlex.quote(shown(self.rerun))}")
        return lines


def failure_from(error: BaseException, task: str, uid: str, attempt: int = 0) -> Failure:
    """Return what an exception itself tells about a failure.

    Args:
        error: The exception.
        task: The name of the task or block.
        uid: Its uid.
        attempt: The number of the attempt, or 0 if there was none.
    """
    parts = parts_of(error)
    code = error.exit_code if isinstance(error, TaskFailedError) else None
    return Failure(
        task, uid, attempt, f"{task} ({uid})", type(error).__name__, parts.reason, code,
        frames=tuple(last_frames(error)), stderr=parts.stderr, hints=parts.hints,
    )  # fmt: skip


@dataclass(slots=True)
class FailureGroup:
    """Failures with the same key.

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

    def add(self, failure: Failure) -> Key:
        """Add the failure of a task, and return the key of its group."""
        key, line = failure.key, _first_line(failure.text)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self._ungrouped += 1
                return key
            kind = failure.kind if failure.exit_code is None else f"exit code {failure.exit_code}"
            group = self._groups[key] = FailureGroup(failure.task, kind, line, failure.place)
        self._latest.pop(key, None)
        self._latest[key] = group
        group.count += 1
        if group.text != line:
            group.text = None
        if len(group.examples) < MAX_EXAMPLES:
            group.examples[failure.uid] = failure
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
