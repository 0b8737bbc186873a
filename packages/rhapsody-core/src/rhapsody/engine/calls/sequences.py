"""Order of the calls that each coroutine, block and thread makes.

A plain file name stands for the file that was declared last by the same sequence of calls. A
sequence is identified by its position in a context variable, that is the number of its last call.
asyncio copies the context of the code that starts a task, and the engine that of the code that
calls a block: these begin at the position of their creator, and continue from there on their own.
They see the calls made before they were started, but not those that their creator or its other
children make later. A coroutine that is awaited directly belongs to the sequence of its caller.

Contexts contain numbers only, so that they keep no engine or task alive.
"""

from __future__ import annotations

import contextvars
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from itertools import count
from types import MappingProxyType

_positions: contextvars.ContextVar[Mapping[int, int]] = contextvars.ContextVar(
    "rhapsody_positions", default=MappingProxyType({})
)
"""Number of the last call in the current sequence, by the key of the engine's `Sequences`."""

_keys = count()


class _Segment:
    """Part of a sequence in which no other sequence begins, except at its end.

    Attributes:
        calls: The numbers of the calls that declared each file, in ascending order.
        last: The number of the last call.
        before: The previous segment, and the number of its last call that belongs to the sequence.
    """

    __slots__ = ("before", "calls", "last")

    def __init__(self, before: tuple[_Segment, int] | None) -> None:
        self.calls: dict[str, list[int]] = {}
        self.last: int = 0
        self.before: tuple[_Segment, int] | None = before


class Sequences:
    """The sequences of calls of one engine that declare files."""

    def __init__(self) -> None:
        self._key = next(_keys)
        self._segments: dict[int, _Segment] = {}  # by number of a call

    def add(self, number: int, files: Iterable[str]) -> None:
        """Add a call to the current sequence.

        Args:
            number: The number of the call, greater than those of all earlier calls.
            files: Names or destinations of the files that the call declares.
        """
        before = _positions.get().get(self._key, 0)
        segment = self._segments.get(before)
        if segment is None or segment.last != before:  # another sequence continues this segment
            segment = _Segment(None if segment is None else (segment, before))
        for file in files:
            segment.calls.setdefault(file, []).append(number)
        segment.last = number
        self._segments[number] = segment
        self.continue_at(number)

    def continue_at(self, number: int) -> None:
        """Let the current sequence continue after a call."""
        _positions.set({**_positions.get(), self._key: number})

    def latest(self, files: Collection[str]) -> int | None:
        """Return the number of the last call in the current sequence that declared one of `files`.

        Return `None` if there is no such call.
        """
        number = _positions.get().get(self._key, 0)
        segment = self._segments.get(number)
        while segment is not None:
            found = [
                calls[end - 1]
                for file in files
                if (calls := segment.calls.get(file)) and (end := bisect_right(calls, number))
            ]
            if found:
                return max(found)
            segment, number = segment.before or (None, 0)
        return None
