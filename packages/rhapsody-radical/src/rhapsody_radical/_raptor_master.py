"""RAPTOR master that receives its calls reliably; RADICAL-Pilot loads this file in a pilot.

RAPTOR's own master publishes the address of its call queue once, a second after its start. On a
busy machine, the socket may not be connected by then, so the message is lost and calls wait
forever. This master repeats the message until the first call arrives. This file must not import
other modules of this package, because it may have been copied to another file system.
"""

from __future__ import annotations

import threading
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

RETRY_DELAYS = (5.0, 10.0, 20.0, 40.0)
"""Seconds before each repetition of the message."""


class RhapsodyMaster(rp.raptor.Master):  # type: ignore[misc,name-defined,unused-ignore]
    """RAPTOR's master, which also repeats the registration of its call queue."""

    def __init__(self) -> None:
        self._called = threading.Event()
        self._registration: tuple[Any, ...] = ()
        super().__init__()
        threading.Thread(target=self._repeat, daemon=True).start()

    def publish(self, pubsub: str, msg: Any, *more: Any, **options: Any) -> None:
        """Publish a message. A message that registers the call queue is stored to be repeated."""
        if isinstance(msg, dict) and msg.get("cmd") == "register_raptor_queue":
            self._registration = (pubsub, msg)
        super().publish(pubsub, msg, *more, **options)

    def _request_cb(self, tasks: Any) -> Any:
        self._called.set()
        return super()._request_cb(tasks)

    def _repeat(self) -> None:
        for seconds in RETRY_DELAYS:
            if self._called.wait(seconds):
                return
            super().publish(*self._registration)
