"""A RAPTOR master whose calls arrive: it runs in a pilot, loaded by its path.

RAPTOR's own tells the agent's scheduler once where to send its calls, a second after it was
started. On a busy machine its socket is not connected by then, nobody hears it, and its calls
wait for ever. This one says so again until the first call is there. It must import nothing of
ours, as it may have been copied to another file system.
"""

from __future__ import annotations

import threading
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

AGAIN = (5.0, 10.0, 20.0, 40.0)
"""Seconds before each repetition."""


class RhapsodyMaster(rp.raptor.Master):  # type: ignore[misc,name-defined,unused-ignore]
    """Passes calls to its workers as RAPTOR's own does."""

    def __init__(self) -> None:
        self._called = threading.Event()
        self._registration: tuple[Any, ...] = ()
        super().__init__()
        threading.Thread(target=self._repeat, daemon=True).start()

    def publish(self, pubsub: str, msg: Any, *more: Any, **options: Any) -> None:
        """Publish a message, and keep the one with the address for calls."""
        if isinstance(msg, dict) and msg.get("cmd") == "register_raptor_queue":
            self._registration = (pubsub, msg)
        super().publish(pubsub, msg, *more, **options)

    def _request_cb(self, tasks: Any) -> Any:
        self._called.set()
        return super()._request_cb(tasks)

    def _repeat(self) -> None:
        for seconds in AGAIN:
            if self._called.wait(seconds):
                return
            super().publish(*self._registration)
