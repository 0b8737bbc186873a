"""Whether RADICAL-Pilot's own processes live, those of them that are on this machine.

Nothing is told when one of its components dies alone: the pilot stays active, and its
tasks never end. Components are known by their titles and by where they work: those of
a pilot in its sandbox, those of the client in the session's directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set

PREFIX = "rp."
"""What the titles of RADICAL-Pilot's processes begin with."""

CONFIRMED = 3
"""Looks after which a title is taken for one that stays."""

PATIENCE = 20
"""Looks after which the end of a component is not that of its pilot, which is then told of."""


class Vitals:
    """The processes that work in one directory.

    Args:
        directory: The directory; those below it are others'.

    Attributes:
        directory: Its real path.
    """

    def __init__(self, directory: str) -> None:
        self.directory: str = os.path.realpath(directory)
        self._seen: dict[str, int] = {}
        self._missing = 0

    def note(self, found: Set[str]) -> str | None:
        """Takes note of the titles that are there now; to be called about once a second.

        By title: a component may fork others, which end when they are done.

        Returns:
            The title that no process has had for a while, `None` where all are there.
        """
        gone = [title for title in self._seen if self.knows(title) and title not in found]
        for title in found:
            self._seen[title] = self._seen.get(title, 0) + 1
        for title in [one for one in self._seen if not self.knows(one) and one not in found]:
            del self._seen[title]  # there for a moment only
        self._missing = self._missing + 1 if gone else 0
        return gone[0] if self._missing >= PATIENCE else None

    def knows(self, title: str) -> bool:
        """Whether the end of the processes of this title would be told of."""
        return self._seen.get(title, 0) >= CONFIRMED


def titles(directories: Iterable[str]) -> dict[str, set[str]]:
    """The titles of RADICAL-Pilot's living processes in each of some directories' real paths.

    One pass over all of the machine's processes, of which a login node has thousands.
    """
    found: dict[str, set[str]] = {directory: set() for directory in directories}
    for number in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not number.isdigit():
            continue
        try:
            directory = os.readlink(f"/proc/{number}/cwd")
            if directory not in found:
                continue
            with open(f"/proc/{number}/cmdline", "rb", buffering=0) as file:
                words = file.read().split(b"\0")
        except OSError:  # gone, a zombie, or somebody else's
            continue
        title = words[0].decode(errors="replace").strip()
        if title.startswith(PREFIX):
            found[directory].add(title)
    return found
