"""Failures of tasks as text, in groups of similar failures."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rhapsody.errors import MAX_LINES, Failure, FailureKey, TaskFailedError, first_line, parts_of
from rhapsody.history.values import shown
from rhapsody.tracebacks import as_lines, is_users_code, last_frames

MAX_EXAMPLES = 4
"""Maximum number of failures of a group that are kept; later ones are only counted."""

MAX_GROUPS = 200
"""Maximum number of groups that are kept; failures of later groups are only counted."""

MAX_LISTED = 20
"""Maximum number of groups, results or outdated files that are listed."""

MAX_WIDTH = 160
"""Maximum number of characters of the text in a group's one-line summary."""


def lines_of(failure: Failure) -> list[str]:
    """Return the lines that describe a failure in full."""
    more = failure.details()
    frames = as_lines(failure.frames, _here())
    lines = [failure.summary, *(f"  {line}" for line in (*frames, *more))]
    if failure.stdout and len(more) == len(failure.hints):
        lines.append("  standard output ended with:")
        lines += [f"    {line}" for line in failure.stdout.splitlines()[-MAX_LINES:]]
    if failure.sandbox is not None and os.path.isdir(failure.sandbox):
        lines.append(f"  sandbox: {shown(failure.sandbox)}")
        if failure.rerun is not None:
            lines.append(f"  to run it again: sh {shlex.quote(shown(failure.rerun))}")
    return lines


def failure_from(error: BaseException, task: str, uid: str, attempt: int = 0) -> Failure:
    """Return what an exception itself tells about a failure.

    Args:
        error: The exception.
        task: The name of the task or block.
        uid: Its uid.
        attempt: The number of the attempt, or 0 if there was none.
    """
    parts, frames = parts_of(error), last_frames(error)
    own = [frame for frame in frames if is_users_code(frame.file)]
    code = error.exit_code if isinstance(error, TaskFailedError) else None
    return Failure(
        task, uid, attempt, f"{task} ({uid})", type(error).__name__, parts.reason, code,
        place=own[-1].location if own else None, frames=tuple(frames),
        stderr=parts.stderr, hints=parts.hints,
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
            return lines_of(examples[0])
        lines = [f"{self.summary}; the first:", *(f"  {line}" for line in lines_of(examples[0]))]
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
        # In the order of the first failure of each group, and in that of the last one.
        self._groups: dict[FailureKey, FailureGroup] = {}
        self._latest: dict[FailureKey, FailureGroup] = {}
        self._ungrouped = 0

    @property
    def latest(self) -> list[FailureGroup]:
        """The groups, in the order of the last failure of each."""
        return list(self._latest.values())

    def add(self, failure: Failure) -> FailureKey:
        """Add the failure of a task, and return the key of its group."""
        key, line = failure.key, first_line(failure.text)
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

    def discard(self, key: FailureKey, uid: str) -> None:
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


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 3].rstrip()}..."


def _joined(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
