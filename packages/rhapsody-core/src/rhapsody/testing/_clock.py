"""Time as the kit judges it: the seconds in which this process could run.

A machine that pauses, or has no processor to spare, is no backend's fault. A thread
beats beside the loop: of a time in which it did not come round, only as much counts
as the process has used the processor. A backend that blocks the loop does not keep
the thread from beating, unless it computes without letting go of the interpreter,
and that uses the processor. Where the system tells (Linux), the time for which the
loop's thread waited for a processor does not count either. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self

_INTERVAL = 0.02
_MOST = 0.03  # what counts of a beat's time, unless the processor was used for longer


class _Beat(NamedTuple):
    """The last beat.

    Attributes:
        counted: The seconds counted until then.
        time: The time.
        used: The processor time of the process.
        waited: Seconds for which the loop's thread had waited for a processor.
    """

    counted: float
    time: float
    used: float
    waited: float


class Clock:
    """Counts seconds while its block runs, but for those in which the process stood still.

    To be entered on the loop's thread.
    """

    def __enter__(self) -> Self:
        try:
            statistics = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self._statistics = os.open(statistics, os.O_RDONLY)
        except FileNotFoundError:
            self._statistics = -1
        self._began = time.monotonic()
        self._beat = _Beat(0.0, self._began, time.process_time(), self._waited())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rhapsody-kit-clock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._statistics >= 0:
            os.close(self._statistics)

    def now(self) -> float:
        """The seconds counted so far; may be asked from anywhere, also from a signal's handler.

        It goes back a little when a wait for a processor is over and known.
        """
        return self._next().counted

    @property
    def lost(self) -> float:
        """The seconds that were not counted."""
        return time.monotonic() - self._began - self.now()

    async def elapse(self, seconds: float) -> None:
        """Waits until so many more seconds are counted."""
        end = self.now() + seconds
        while (left := end - self.now()) > 0:  # noqa: ASYNC110 - the time itself is waited for
            await asyncio.sleep(left)

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Limits the block to so many seconds, as `asyncio.timeout` does."""
        loop = asyncio.get_running_loop()
        end = self.now() + seconds
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            left = end - self.now()
            if left > 0:
                timer = loop.call_later(left, look)
            else:
                limit.reschedule(loop.time())

        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(seconds, look)
            try:
                yield limit
            finally:
                timer.cancel()

    def _work(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._beat = self._next()

    def _next(self) -> _Beat:
        """What a beat at this moment would be. Only the thread keeps one: nothing is locked."""
        last, now, used = self._beat, time.monotonic(), time.process_time()
        waited = self._waited()
        ran = now - last.time - (waited - last.waited)
        return _Beat(last.counted + min(ran, max(_MOST, used - last.used)), now, used, waited)

    def _waited(self) -> float:
        if self._statistics < 0:
            return 0.0
        return int(os.pread(self._statistics, 100, 0).split()[1]) / 1e9


_PAUSE = 0.005  # shorter ones are those of any loop


class Gap(NamedTuple):
    """For how long the loop did not come round, at most.

    Attributes:
        counted: Seconds, without those in which the process stood still.
        seen: Seconds, with them.
    """

    counted: float
    seen: float


class Heartbeat:
    """Measure the times for which the running loop did not come round.

    Attributes:
        worst: How long, valid after the block.
        total: The sum of all pauses of more than a few milliseconds, valid after the block.
    """

    def __init__(self, clock: Clock, interval: float = 0.005) -> None:
        self.worst = self.total = Gap(0.0, 0.0)
        self._clock = clock
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._last = self._clock.now(), time.monotonic()
        self._again()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._note()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _beat(self) -> None:
        self._note()
        self._again()

    def _note(self) -> None:
        now = self._clock.now(), time.monotonic()
        counted, seen = (now[i] - self._last[i] - self._interval for i in (0, 1))
        self.worst = Gap(max(self.worst.counted, counted), max(self.worst.seen, seen))
        if seen > _PAUSE:
            total = self.total
            self.total = Gap(total.counted + max(counted, 0.0), total.seen + seen)
        self._last = now
