"""Time for the engine: a clock that tests can replace, and one heap of deadlines.

Retry waits and time-outs come by the thousand, so they share one timer of the
event loop instead of taking one each; with no deadline there is no timer, and
an idle engine does not wake up.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol


class Cancellable(Protocol):
    """What `Clock.call_at` returns."""

    def cancel(self) -> object:
        """Forgets the call."""


class Clock(Protocol):
    """Where the engine reads the time; everything on the engine's loop."""

    def time(self) -> float:
        """Seconds since the epoch, for people."""

    def monotonic(self) -> float:
        """Seconds that never go back, for durations and deadlines."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Cancellable:
        """Calls back when `monotonic` reaches `when`."""


class LoopClock:
    """Real time, by the event loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.monotonic: Callable[[], float] = loop.time
        self._loop = loop

    def call_at(self, when: float, callback: Callable[[], object]) -> Cancellable:
        """Calls back when `monotonic` reaches `when`."""
        return self._loop.call_at(when, callback)

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()


class Timer:
    """One deadline; `cancel` forgets it."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: Timers, callback: Callable[[], object] | None) -> None:
        self._timers = timers
        self.callback = callback

    def cancel(self) -> None:
        """Forgets the deadline and what hangs on it; twice is harmless."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled()


class Timers:
    """All deadlines of one engine, on one timer of the clock.

    Args:
        clock: What to go by.
        call: Makes the calls that are due; a plain call by default.
    """

    def __init__(
        self, clock: Clock, call: Callable[[Callable[[], object]], object] | None = None
    ) -> None:
        self._clock = clock
        self._call = call or (lambda callback: callback())
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._stale = 0
        self._armed_for = float("inf")
        self._handle: Cancellable | None = None

    def after(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Calls back on the loop after `delay` seconds."""
        timer = Timer(self, callback)
        heapq.heappush(self._heap, (self._clock.monotonic() + delay, next(self._numbers), timer))
        self._arm()
        return timer

    def close(self) -> None:
        """Forgets every deadline."""
        self._heap.clear()
        self._arm()

    def cancelled(self) -> None:
        """A timer in the heap was cancelled: sweeps when most of them are."""
        self._stale += 1
        if self._stale > 64 and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._stale = 0
        self._arm()

    def _arm(self) -> None:
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._stale -= 1
        when = heap[0][0] if heap else float("inf")
        if when == self._armed_for:
            return
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = when
        self._handle = self._clock.call_at(when, self._fire) if heap else None

    def _fire(self) -> None:
        self._armed_for = float("inf")
        self._handle = None
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            callback = heapq.heappop(self._heap)[2].callback
            if callback is not None:
                self._call(callback)
            else:
                self._stale -= 1
        self._arm()
