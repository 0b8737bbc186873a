"""What the kernel says of whom it has killed for memory: the files of this process's control group.

Programs and worker processes are in the group of the process that starts them, unless they leave
it. The files are read once before the first of them begins, and then when one was ended by
SIGKILL. A kill that was counted since the last look is taken for the one that is asked about.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rhapsody.data import stderr_tail
from rhapsody.errors import OutOfMemoryError
from rhapsody.task import TaskDescription

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of what SIGKILL has ended, of itself and of the shell that ran it."""

UNLIMITED = 1 << 60
"""Bytes from which on a limit is none: version 1 has a number in place of a word."""


class Files(NamedTuple):
    """The names of files in the directory of a control group.

    Attributes:
        kills: Has the line `oom_kill COUNT`.
        limit: The bytes that the group may use.
        peak: The most bytes that it has used.
    """

    kills: str
    limit: str
    peak: str


V1 = Files("memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
V2 = Files("memory.events", "memory.max", "memory.peak")


class MemoryGroup:
    """Reads how many processes of this process's control group the kernel has killed so far.

    Args:
        own: The file that names the groups of this process.
        mount: Where control groups are mounted.
    """

    def __init__(
        self, own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
    ) -> None:
        lines = [line.split(":", 2) for line in _text(own).splitlines()]
        paths = {kind: path for _, kinds, path in lines for kind in kinds.split(",")}
        first = "memory" in paths
        self._files = V1 if first else V2
        self._top = mount / "memory" if first else mount
        inside = self._top / paths.get("memory" if first else "", "").lstrip("/")
        # In a container it may be the one that is mounted.
        self._directory = inside if (inside / self._files.kills).exists() else self._top
        self._seen = self._kills()

    def has_killed(self) -> bool:
        """Return whether the kernel has killed one of the group since this was last asked."""
        former, self._seen = self._seen, self._kills()
        return self._seen > former

    def usage(self) -> str:
        """Return how much memory the group may use and has used, for people."""
        for group in (self._directory, *self._directory.parents):
            limit = _text(group / self._files.limit).strip()
            if limit.isdecimal() and int(limit) < UNLIMITED:
                peak = _text(group / self._files.peak).strip()
                used = f", and up to {_size(peak)} of it were in use" if peak.isdecimal() else ""
                return f"the limit is {_size(limit)} for all processes of {group}{used}"
            if group == self._top:
                break
        return "no limit is known here, so it may have been all memory of the machine"

    def _kills(self) -> int:
        for line in _text(self._directory / self._files.kills).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0


@cache
def memory_group() -> MemoryGroup:
    """The group of this process; what was killed before the first call does not count."""
    return MemoryGroup()


def memory_error(task: TaskDescription, code: int | None) -> OutOfMemoryError | None:
    """Return the error of a task whose process the kernel has killed for memory, else `None`.

    Args:
        task: Its description, with its output.
        code: The exit code of the process, which nobody here has killed.
    """
    if code not in KILLED or not memory_group().has_killed():
        return None
    tail = stderr_tail(task)
    message = (
        f"task {task['name']!r} was killed by the kernel because memory ran out: "
        f"{memory_group().usage()}. Run it where there is more, or let fewer tasks run at once, as "
        "a backend does that is told with resources={'memory': ...} how much each of them needs"
    )
    message += f"\n{tail.rstrip()}" if tail.strip() else ""
    return OutOfMemoryError(message, exit_code=code, stderr=tail)


def _text(path: Path) -> str:
    with suppress(OSError):  # another kernel, or another system
        return path.read_text()
    return ""


def _size(count: str) -> str:
    return f"{int(count) / 2**20:.0f} MiB"
