"""A program that runs one check of the kit in a process which stops itself in the middle.

What runs it has to make it go on after a while, as a machine that pauses does: see
`tests.testing.test_pauses`. It prints what the kit found.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from tests._support import faulty_backends, small_backend
from tests._support.kits import Quick, kit_on, run
from tests._support.small_backend import SmallBackend


class Stopping:
    """Wrapper of a backend's method that stops this process shortly after a call.

    Args:
        delay: Seconds from the call to the stop.
        calls: The numbers of the calls after which it stops.
    """

    def __init__(self, delay: float, calls: list[int]) -> None:
        self._delay = delay
        self._left = calls
        self._count = 0

    def plant(self, kind: type[SmallBackend], method: str) -> type[SmallBackend]:
        """Return a subclass whose method stops at a point."""
        usual = getattr(kind, method)

        async def called(backend: SmallBackend, *args: object) -> object:
            self._count += 1
            if self._count in self._left:
                timer = threading.Timer(self._delay, os.kill, (os.getpid(), signal.SIGSTOP))
                timer.start()
            return await usual(backend, *args)

        return type(kind.__name__, (kind,), {method: called})


def main(backend: str, check: str, method: str, delay: str, *calls: str) -> None:
    """Runs the check and prints how it ended."""
    module = small_backend if backend == "SmallBackend" else faulty_backends
    stopping = Stopping(float(delay), [int(call) for call in calls])
    kind = stopping.plant(getattr(module, backend), method)
    outcome = run(kit_on(kind, Quick), check)
    print("\nVERDICT", outcome.word, outcome.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
