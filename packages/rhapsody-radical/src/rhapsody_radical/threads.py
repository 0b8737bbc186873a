"""Threads that do one thing after the other, in the program and in its client."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

log: logging.Logger = logging.getLogger(__name__)


class Worker:
    """A thread that calls one function after the other.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any] | None] | None]
        self._queue = SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function on the thread; the returned future receives its result.

        Raises:
            RuntimeError: The thread was ended.
        """
        future: Future[Any] = Future()
        self._put(function, future)
        return future

    def post(self, function: Callable[[], Any]) -> None:
        """Call a function on the thread without a result; its exception is logged."""
        with suppress(RuntimeError):
            self._put(function, None)

    def _put(self, function: Callable[[], Any], future: Future[Any] | None) -> None:
        with self._lock:
            if self._stopped:
                raise RuntimeError(f"thread {self._thread.name} was ended")
            self._queue.put((function, future))

    def stop(self) -> None:
        """End the thread after everything that was submitted."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(30)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            try:
                value = function()
            except BaseException as error:  # passed to the caller
                if future is None:
                    log.exception("%r failed", function)
                else:
                    with suppress(InvalidStateError):  # who waited has given up
                        future.set_exception(error)
            else:
                if future is not None:
                    with suppress(InvalidStateError):
                        future.set_result(value)
            del function, future, item
