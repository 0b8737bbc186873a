"""What is reported of tasks: that they run, once, and how they ended, once.

Who finds out is in `outcome`, `losses` and `stopping`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rhapsody import StateMapper
from rhapsody.sdk import Readiness
from rhapsody_dask.calls import Call
from rhapsody_dask.held import HeldValues


class Reports:
    """The states of one backend's tasks.

    Args:
        tasks: The open tasks by their uids; one that has ended is taken out.
        keys: The tasks whose replies are awaited by their keys in Dask; the same.
        states: The backend's words for states.
        tell: Tells whoever is to know of a task's state.
        release: Gives back a task's big arguments.
        cancel: Has a task stopped.

    Attributes:
        ended: Set when a task has ended.
    """

    def __init__(
        self,
        tasks: dict[str, Call],
        keys: dict[str, Call],
        states: StateMapper,
        tell: Callable[..., None],
        release: Callable[[Call], None],
        cancel: Callable[[Call], None],
    ) -> None:
        self.ended: asyncio.Event = asyncio.Event()
        self._tasks = tasks
        self._keys = keys
        self._running: Any = states.RUNNING
        self._ends: dict[str, Any] = {
            "done": states.DONE,
            "failed": states.FAILED,
            "canceled": states.CANCELED,
        }
        self._tell = tell
        self._release = release
        self._cancel = cancel

    def announce(self, call: Call) -> None:
        """Reports that a task runs, once."""
        if call.announced:
            return
        call.announced = True
        if call.ready is None:
            self._tell(call.task, self._running)
            return
        call.readiness = Readiness()
        self._tell(call.task, self._running, call.readiness.attach)
        if callable(call.ready):
            from rhapsody_dask.ready import watch

            call.watch = asyncio.ensure_future(watch(call, self._unready))

    def _unready(self, call: Call, error: BaseException) -> None:
        """A service's callable failed: the service is stopped, and fails with that."""
        if call.uid in self._tasks:
            call.error = error
            self._cancel(call)

    def begun(self, call: Call) -> None:
        """A worker has begun with a task that is to be stopped: its reply will come."""
        call.begun = True

    def not_begun(self, call: Call) -> None:
        """No worker has begun with a task that is to be stopped, and none will."""
        if call.uid in self._tasks:
            self.end(call, "canceled" if call.error is None else "failed")

    def withdraw(self, call: Call) -> None:
        """A task was not accepted after all: it is forgotten, and nothing is reported."""
        if self._tasks.get(call.uid) is call:
            del self._tasks[call.uid]
            self._release(call)
            self.ended.set()

    def settle(self, call: Call, state: str) -> None:
        """A task has ended: `state` is `"done"`, `"failed"` or `"canceled"`."""
        if call.waiter is not None:
            HeldValues.brought(call)
        if call.uid not in self._tasks:
            return
        if call.error is None and call.cancelled:
            state = "canceled"
        if state != "canceled" or call.begun:
            self.announce(call)
        self.end(call, state if call.error is None else "failed")

    def gone(self, call: Call, error: BaseException) -> None:
        """A task was lost, or never sent: it fails, unless it was to end anyway."""
        if not call.cancelled and call.error is None:
            call.error = error
        if call.waiter is not None:
            HeldValues.brought(call)
        self.not_begun(call)

    def end(self, call: Call, state: str) -> None:
        """Reports a task's terminal state and forgets it."""
        task = call.task
        if state == "failed" and call.error is not None:
            task["exception"] = call.error
        del self._tasks[call.uid]
        self._keys.pop(call.key, None)
        call.error = None
        call.sources = []
        for watching in (call.watch, call.refusal):
            if watching is not None:
                watching.cancel()
        if "held" not in task:
            call.future = None
            self._release(call)
        self._tell(task, self._ends[state])
        self.ended.set()
