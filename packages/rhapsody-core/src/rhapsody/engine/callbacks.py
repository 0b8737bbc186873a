"""Receiver of the states that backends report from any thread, for the scheduler on the loop.

Late, duplicate and unknown reports are ignored and counted, except repeated reports that a task is
running. `rhapsody.engine.scheduler` decides what a state means for retries and dependents.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from asyncio import _get_running_loop as running_loop
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from time import time
from typing import Any

from rhapsody.engine.background import Background
from rhapsody.engine.events import Observation
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.scheduler import Scheduler
from rhapsody.engine.states import FutureState, WorkState
from rhapsody.errors import describe_error
from rhapsody.sdk.threads import Mailbox
from rhapsody.states import TasksMainStates

log: logging.Logger = logging.getLogger("rhapsody.engine")

DONE = TasksMainStates.DONE
FAILED = TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED
RUNNING = TasksMainStates.RUNNING

STARTED = frozenset({WorkState.RUNNING, WorkState.SERVING, WorkState.CANCELING})
"""Work that has started. A backend may report several states that mean it."""

ServiceCallback = Callable[..., Any]
Report = tuple[Any, Any, ServiceCallback | None]


class Callbacks:
    """Receiver of the states of one engine's tasks.

    Args:
        uid: The engine's uid, the prefix of its tasks' uids.
        scheduler: Receives the states.
        background: Schedules calls on the loop.
        observation: Publishes states.
        crashed: Called with the place and the exception if the engine itself fails.

    Attributes:
        handing_over: Number of submissions under way. Reports on the loop meanwhile wait for
            `apply`, or for the loop's next iteration, so that no effect of a report happens inside
            a backend's `submit_tasks`.
        applied_soon: True if `apply` will be called before the loop's next iteration.
    """

    def __init__(
        self,
        uid: str,
        scheduler: Scheduler,
        background: Background,
        observation: Observation,
        crashed: Callable[[str, BaseException], object],
    ) -> None:
        self._prefix = f"{uid}."
        self._scheduler = scheduler
        self._background = background
        self._observation = observation
        self._crashed = crashed
        self._loop: asyncio.AbstractEventLoop = background.loop
        self._mailbox: Mailbox[Report] = Mailbox(background.loop, self._deliver_in_order)
        self._queued: deque[Report] = deque()
        self.handing_over: int = 0
        self.applied_soon: bool = False
        self._complained: set[tuple[str, object]] = set()

    def receive(
        self, task: Any, state: Any, service_callback: ServiceCallback | None = None
    ) -> None:
        """Receive a state; the callback that backends call from any thread."""
        if running_loop() is not self._loop:
            if not self._changes_nothing(task, state):
                self._mailbox.put((task, state, service_callback))
        elif not self.handing_over and not self._queued:
            self._deliver((task, state, service_callback))
        else:
            if not self._queued and not self.applied_soon:
                self._loop.call_soon(self.apply)
            self._queued.append((task, state, service_callback))

    def suspended(self) -> None:
        """Schedule `apply`, because a submission waits or has ended."""
        self.applied_soon = False
        if self._queued:
            self._loop.call_soon(self.apply)

    def apply(self) -> None:
        """Apply the reports that came during submissions."""
        while self._queued:
            self._deliver(self._queued.popleft())

    def _changes_nothing(self, task: Any, state: Any) -> bool:
        """Return True if a state has no effect, so that the loop need not wake. Any thread.

        A backend may report many intermediate states; RADICAL-Pilot has fifteen.
        """
        if self._scheduler.observed or type(task) is not dict:
            return False
        uid = task.get("uid")
        record = self._scheduler.inflight.get(uid) if type(uid) is str else None
        if record is None:
            return False
        try:
            main = record.backend.native.get(state)
        except Exception:  # reported when the state is applied
            return False
        if main is RUNNING:
            return record.state.work in STARTED
        return not (main is None or main is DONE or main is FAILED or main is CANCELED)

    def drain(self) -> None:
        """Apply all reports received so far."""
        self.apply()
        self._mailbox.drain()

    def _deliver_in_order(self, report: Report) -> None:
        """Apply a report from a thread, after earlier reports from the loop."""
        if self._queued:
            self.apply()
        self._deliver(report)

    def _deliver(self, report: Report) -> None:
        scheduler, (task, state, service_callback) = self._scheduler, report
        try:
            if type(task) is not dict and not isinstance(task, Mapping):
                task = task.as_dict() if hasattr(task, "as_dict") else {}
            uid = task.get("uid")
            record = scheduler.inflight.get(uid)
        except Exception as error:  # a fault of the backend, for no known task
            self._malformed(error)
            return
        if record is None:
            self._stray(uid)
            return
        try:
            try:
                main: TasksMainStates | None = record.backend.native[state]
            except (KeyError, TypeError):
                main = record.backend.main_state(state)
            if scheduler.observed and main is not None:
                record.native = str(state)
            if main is DONE or main is FAILED or main is CANCELED:
                scheduler.end(record, main, task)
            elif main is RUNNING:
                self._running(record, task, state, service_callback)
            elif main is None:
                self._unknown_state(record, state)
            elif scheduler.observed and record.state.future is FutureState.PENDING:
                self._observation.publish(record, main)
        except Exception as error:  # a fault of the engine must not be lost in a backend's thread
            self._crashed("updates", error)

    def _stray(self, uid: object) -> None:
        stats = self._scheduler.stats
        if not isinstance(uid, str) or not uid.startswith(self._prefix):
            if isinstance(uid, str) and ".task." in uid:
                return  # another engine's task on a backend that both use
            stats.unknown += 1
        else:
            stats.late += 1

    def _malformed(self, error: Exception) -> None:
        self._scheduler.stats.unknown += 1
        if ("", "malformed") not in self._complained:
            self._complained.add(("", "malformed"))
            log.error(
                "a backend reported something that cannot be read as a task with a uid; such "
                "updates are left out. Reading it raised %s", describe_error(error),
            )  # fmt: skip

    def _unknown_state(self, record: TaskRecord, state: Any) -> None:
        self._scheduler.stats.unknown += 1
        key = (record.backend.name, str(state))
        if key not in self._complained:
            self._complained.add(key)
            log.error(
                "backend %r reported the state %r, which its StateMapper does not know; such "
                "updates are left out. Register it with "
                "StateMapper.register_backend_tasks_states(...)",
                record.backend.name, state,
            )  # fmt: skip

    def _running(
        self, record: TaskRecord, task: Any, state: Any, service_callback: ServiceCallback | None
    ) -> None:
        scheduler = self._scheduler
        if not scheduler.run(record):
            if record.state.work not in STARTED:
                scheduler.stats.late += 1
            return
        record.started = time()
        if not record.task.settings.service:
            return
        if service_callback is None:
            scheduler.serve(record, record.uid, None)
            return
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.add_done_callback(partial(self._ready_anywhere, record, record.uid))
        try:
            service_callback(future, task, state)
        except Exception as error:  # a fault of the backend: this service cannot become ready
            scheduler.stop_with(record, error)

    def _ready_anywhere(
        self, record: TaskRecord, uid: str, future: concurrent.futures.Future[Any]
    ) -> None:
        call = partial(self._ready, record, uid, future)
        if not self._background.soon_from_anywhere(call):
            self._scheduler.stats.late += 1

    def _ready(self, record: TaskRecord, uid: str, future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            self._scheduler.stats.late += 1
            return
        error = future.exception()
        if error is None:
            self._scheduler.serve(record, uid, future.result())
        elif record.uid == uid:
            self._scheduler.stop_with(record, error)
