"""Whether RADICAL-Pilot's own processes live, those of them that are on this machine.

Nothing is told when one of its components dies alone: the pilot stays active, and its
tasks never end. Components are known by their titles, which `processes.titles` finds.
"""

from __future__ import annotations

from collections.abc import Set

CONFIRMED = 3
"""Looks after which a title is taken for one that stays."""

PATIENCE = 20
"""Looks after which the end of a component is not that of its pilot, which is then told of."""


class Vitals:
    """The components of one pilot, or of the client.

    Args:
        grows: Whether there may be more than at the first looks. Those that a program adds to
            the client's are its own to end.
    """

    def __init__(self, *, grows: bool = True) -> None:
        self._grows = grows
        self._looks = 0
        self._seen: dict[str, int] = {}
        self._missing = 0

    def note(self, found: Set[str]) -> str | None:
        """Takes note of the titles that are there now; to be called about once a second.

        By title: a component may fork others, which end when they are done.

        Returns:
            The title that no process has had for a while, `None` where all are there.
        """
        gone = [title for title in self._seen if self.knows(title) and title not in found]
        self._looks += 1
        if not self._grows and self._looks > CONFIRMED:
            found = found & self._seen.keys()
        for title in found:
            self._seen[title] = self._seen.get(title, 0) + 1
        for title in [one for one in self._seen if not self.knows(one) and one not in found]:
            del self._seen[title]  # there for a moment only
        self._missing = self._missing + 1 if gone else 0
        return gone[0] if self._missing >= PATIENCE else None

    def knows(self, title: str) -> bool:
        """Whether the end of the processes of this title would be told of."""
        return self._seen.get(title, 0) >= CONFIRMED
