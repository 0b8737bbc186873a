"""Whether RADICAL-Pilot's own processes live, those of them that are on this machine.

Nothing is told when one of its components dies alone: the pilot stays active, and its
tasks never end. Components are known by their titles and by where they work: those of
a pilot in its sandbox, those of the client in the session's directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "rp."
"""What the titles of RADICAL-Pilot's processes begin with."""

CONFIRMED = 3
"""Looks after which a process is taken for one that stays."""

PATIENCE = 20
"""Looks after which the end of a process is not the end of its pilot, which is then told of."""


class Vitals:
    """The processes that work in one directory.

    Args:
        directory: The directory; those below it are others'.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.path.realpath(directory)
        self._seen: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._missing = 0

    def look(self) -> str | None:
        """Looks once; to be called about once a second.

        Returns:
            The name of a process that has been gone for a while, `None` where all live.
        """
        found = dict(_processes(self._directory))
        gone = [
            self._names[pid]
            for pid, looks in self._seen.items()
            if looks >= CONFIRMED and pid not in found
        ]
        self._names.update(found)
        for pid in found:
            self._seen[pid] = self._seen.get(pid, 0) + 1
        for pid in [pid for pid, n in self._seen.items() if n < CONFIRMED and pid not in found]:
            del self._seen[pid]  # forked for a moment
        self._missing = self._missing + 1 if gone else 0
        return gone[0] if self._missing >= PATIENCE else None

    def knows(self, pid: int) -> bool:
        """Whether the end of this process would be told of."""
        return self._seen.get(pid, 0) >= CONFIRMED


def _processes(directory: str) -> Iterator[tuple[int, str]]:
    """Numbers and titles of RADICAL-Pilot's living processes in a directory."""
    for number in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if number.isdigit():
            with suppress(OSError):  # gone, a zombie, or somebody else's
                if os.readlink(f"/proc/{number}/cwd") != directory:
                    continue
                words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
                title = words[0].decode(errors="replace").strip()
                if title.startswith(PREFIX):
                    yield int(number), title
