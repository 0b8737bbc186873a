"""One event loop for the coroutines of tasks without cores, of which a worker may have many.

Each of them keeps a thread, where Dask waits for its reply, but no loop of its own:
a loop needs several descriptors, and a process has not many.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from rhapsody.sdk import SharedLoop

STOP = 1.0
"""Seconds to wait for the end of a loop on which nothing runs."""


class WaitingLoop:
    """The loop of one site, made when the first coroutine needs it."""

    def __init__(self) -> None:
        self._loop = SharedLoop("rhapsody-coroutines")
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def run(
        self, coroutine: Coroutine[Any, Any, Any], started: Callable[[Any, Any], object]
    ) -> Any:
        """Runs a coroutine to its end, and blocks the calling thread meanwhile.

        Args:
            coroutine: What to run.
            started: Called with the loop and the task that runs the coroutine.

        Returns:
            What the coroutine returned.

        Raises:
            BaseException: What it raised.
        """
        outcome: Future[Any] = Future()
        context = contextvars.copy_context()

        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(error)

        def start() -> None:
            task = self._loop.start(lambda: coroutine, ended, context)
            started(task.get_loop(), task)

        with self._lock:
            self._users += 1
            self._loop.call(start)
        try:
            return outcome.result()
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._loop.stop(STOP)

    def close(self) -> None:
        """Ends the loop once nothing runs on it any more."""
        with self._lock:
            self._closed = True
            idle = not self._users
        if idle:
            self._loop.stop(STOP)
