"""Batches of ready tasks to the backends, one dispatcher for each attached backend.

A dispatcher hands over one batch at a time; what becomes ready meanwhile forms the
next one. Preparing a batch takes a few milliseconds of the loop at most.
Cancellations do not queue behind submissions.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
import time
from collections import deque
from typing import Any

from rhapsody.aio import is_cancelling, resumed
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.background import Background
from rhapsody.engine.callbacks import Callbacks
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.scheduler import Scheduler
from rhapsody.engine.states import READY, WorkState
from rhapsody.engine.task_builder import TaskBuilder
from rhapsody.errors import BackendUnavailableError, SubmissionError, describe_error

log: logging.Logger = logging.getLogger("rhapsody.engine")

SLICE = 0.005
"""Seconds of work before the loop gets its turn."""

CHECK_EVERY = 32
"""Tasks between two looks at the clock."""


class ReadyQueue:
    """Nodes by priority, first come first served within one."""

    def __init__(self) -> None:
        self._first: deque[TaskRecord] = deque()  # of priority 0, as most are
        self._others: list[tuple[int, int, TaskRecord]] = []  # a heap, the highest priority first
        self._number = 0

    def push(self, record: TaskRecord, priority: int) -> None:
        """Adds a task."""
        if priority == 0:
            self._first.append(record)
            return
        self._number += 1
        heapq.heappush(self._others, (-priority, self._number, record))

    def pop(self) -> TaskRecord | None:
        """The next task, `None` where there is none."""
        others = self._others
        if others and (others[0][0] < 0 or not self._first):
            return heapq.heappop(others)[2]
        return self._first.popleft() if self._first else None

    def __len__(self) -> int:
        return len(self._first) + len(self._others)

    def __bool__(self) -> bool:
        return bool(self._first or self._others)


class Dispatcher:
    """One attached backend and what is on its way to it.

    Args:
        attached: The backend.
        scheduler: Decides what becomes of tasks that are handed over, or are not.
        preparation: Makes descriptions of tasks.
        updates: Keeps what the backend reports while it is given a batch.
        background: Runs the dispatcher.
        max_pending: How many tasks the backend may have, services apart.
        submit_timeout: Seconds that it may take to accept a batch.
    """

    def __init__(
        self,
        attached: BackendHandle,
        scheduler: Scheduler,
        preparation: TaskBuilder,
        updates: Callbacks,
        background: Background,
        *,
        max_pending: int | None,
        submit_timeout: float | None,
    ) -> None:
        self.attached: BackendHandle = attached
        self.queue: ReadyQueue = ReadyQueue()
        self._scheduler = scheduler
        self._preparation = preparation
        self._updates = updates
        self._background = background
        self._max_pending = max_pending
        self._submit_timeout = submit_timeout
        self._resumed: deque[TaskRecord] = deque()
        self._services: deque[TaskRecord] = deque()  # where `max_pending` holds up the others
        self._waiter: asyncio.Future[None] | None = None
        self._batch: set[TaskRecord] = set()
        self._deferred: list[TaskRecord] = []
        self._closing = False
        self._idle = asyncio.Event()
        self._pump = background.spawn(self._run(), f"{attached.name} lane")

    def push(self, record: TaskRecord) -> None:
        """Queues a task that is ready or prepared."""
        if record.task.settings.service and self._max_pending is not None:
            self._services.append(record)
        else:
            self.queue.push(record, record.task.settings.priority)
        if self._waiter is not None:
            self.wake()

    def resume(self, record: TaskRecord) -> None:
        """Queues a task whose preparation goes on, before those that have not begun."""
        service = record.task.settings.service and self._max_pending is not None
        (self._services if service else self._resumed).append(record)
        self.wake()

    def wake(self) -> None:
        """Makes the dispatcher look at its queues."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
            self._idle.clear()

    async def flushed(self) -> None:
        """Waits until the backend has had all that can be handed over now."""
        idle = asyncio.ensure_future(self._idle.wait())
        try:
            await asyncio.wait([idle, self._pump], return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    async def close(self, grace: float) -> None:
        """Stop the dispatcher once the current submission ends, or after `grace` seconds."""
        self._closing = True
        self.wake()
        _, late = await asyncio.wait([self._pump], timeout=grace)
        if late:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    async def _run(self) -> None:
        loop = self._background.loop
        ends = time.perf_counter() + SLICE
        while not self._closing:
            batch = self._take(ends)
            if batch:
                await self._submit(batch)
            del batch  # its tasks may be finished and forgotten long before the next ones
            if self._closing:
                return
            if not (self._services or ((self._resumed or self.queue) and self._room() > 0)):
                self._waiter = loop.create_future()
                self._idle.set()
                await self._waiter
                self._waiter = None
            elif time.perf_counter() > ends:
                await asyncio.sleep(0)  # the loop's turn
            else:
                continue
            ends = time.perf_counter() + SLICE

    def _take(self, ends: float) -> list[TaskRecord]:
        """The next batch: as many tasks as can be prepared until the slice of time ends."""
        batch: list[TaskRecord] = []
        queue, resumed, attached = self.queue, self._resumed, self.attached
        services, room, preparation = self._services, self._room(), self._preparation
        looked_at = 0
        while services or room > 0:
            looked_at += 1
            if looked_at % CHECK_EVERY == 0 and time.perf_counter() > ends:
                break
            if services:
                service = services.popleft()
                if service.life is READY and preparation.advance(service, attached):
                    batch.append(service)
                continue
            record = resumed.popleft() if resumed else queue.pop()
            if record is None:
                break
            if record.life is READY and preparation.advance(record, attached):
                batch.append(record)
                room -= 1
                if record.dependents:
                    self._scheduler.offer(record, attached)
        return batch

    def _room(self) -> float:
        limit = self._max_pending
        return float("inf") if limit is None else limit - self.attached.occupied

    async def _submit(self, batch: list[TaskRecord]) -> None:
        scheduler, updates = self._scheduler, self._updates
        batch = scheduler.submit(batch, self.attached)
        if not batch:
            return
        descriptions: list[Any] = [record.description for record in batch]
        self._batch = set(batch)
        timeout: asyncio.Timeout | None = None
        updates.handing_over += 1
        updates.applied_soon = True
        try:
            submission = self.attached.backend.submit_tasks(descriptions).__await__()
            try:
                waits_for = next(submission)
            except StopIteration:  # it did not wait: nor need anybody see to it that it ends
                pass
            else:
                updates.suspended()
                async with (timeout := asyncio.timeout(self._submit_timeout)):
                    await resumed(submission, waits_for)
        except (Exception, asyncio.CancelledError) as error:  # it says: not accepted
            if is_cancelling():
                raise
            updates.apply()
            self._rejected(batch, error, timeout is not None and timeout.expired())
        else:
            scheduler.accept(batch, self.attached)
            updates.apply()
        finally:
            updates.handing_over -= 1
            updates.suspended()
            self._batch = set()
            deferred, self._deferred = self._deferred, []
            for record in deferred:
                self.cancel(record)

    def _rejected(self, batch: list[TaskRecord], error: BaseException, timed_out: bool) -> None:
        if timed_out:
            reason = f"did not accept {len(batch)} tasks within {self._submit_timeout} s"
        else:
            reason = f"did not accept {len(batch)} tasks: {describe_error(error)}"
        for record in batch:
            if timed_out and record.life.work in (WorkState.SUBMITTING, WorkState.CANCELING):
                # It may have been accepted all the same.
                self._background.spawn(self._ask(record.uid), f"cancel {record.uid}")
            if isinstance(error, BackendUnavailableError):
                failure: Exception = BackendUnavailableError(str(error))
            else:
                failure = SubmissionError(f"backend {self.attached.name!r} {reason}")
            failure.__cause__ = error
            self._scheduler.reject(record, failure)

    # Cancellation.

    def cancel(self, record: TaskRecord) -> None:
        """Asks the backend to stop a task; waits for a submission that holds it."""
        if record in self._batch:
            self._deferred.append(record)
        elif record.life.work is WorkState.CANCELING:
            self._background.spawn(self._cancel(record, record.uid), f"cancel {record.uid}")

    async def _cancel(self, record: TaskRecord, uid: str) -> None:
        known = await self._ask(uid)
        if not known and record.uid == uid and record.life.work is WorkState.CANCELING:
            self._scheduler.cannot_stop(record)

    async def _ask(self, uid: str) -> bool:
        try:
            answer = self.attached.backend.cancel_task(uid)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        except (Exception, asyncio.CancelledError) as error:  # must not hurt other tasks
            if is_cancelling():
                raise
            log.error(
                "backend %r failed to cancel %s: %r", self.attached.name, uid, error, exc_info=error
            )
            return False
