"""Whether Ctrl-C came, for what has to say so in words of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rhapsody.engine.signals import registry


@contextmanager
def noticed() -> Iterator[threading.Event]:
    """Takes note of SIGINT, which whoever handles it gets all the same.

    Not where an engine does: it ends the program in its own way. Signals are the main
    thread's; on others nothing is noticed.

    Yields:
        An event that is set once the signal came.
    """
    came = threading.Event()
    found = signal.getsignal(signal.SIGINT)
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or not callable(found) or getattr(found, "__self__", None) is registry:
        yield came
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        found(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, found)
