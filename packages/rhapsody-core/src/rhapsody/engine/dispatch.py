"""Dispatchers, one for each backend: submit batches of ready tasks, and cancel tasks.

A dispatcher submits one batch at a time. Tasks that become ready meanwhile form the next batch.
Preparing a batch takes a few milliseconds of the loop at most. A cancellation does not wait for
submissions, except for the one that contains its task.
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
"""Seconds of work after which the loop may run other callbacks."""

CHECK_EVERY = 32
"""Number of tasks after which the clock is read."""


class ReadyQueue:
    """Queue of ready tasks, ordered by priority, then first in, first out."""

    def __init__(self) -> None:
        self._first: deque[TaskRecord] = deque()  # tasks of priority 0
        self._others: list[tuple[int, int, TaskRecord]] = []  # heap; highest priority first
        self._number = 0

    def push(self, record: TaskRecord, priority: int) -> None:
        """Add a task."""
        if priority == 0:
            self._first.append(record)
            return
        self._number += 1
        heapq.heappush(self._others, (-priority, self._number, record))

    def pop(self) -> TaskRecord | None:
        """Remove and return the next task; return `None` if the queue is empty."""
        others = self._others
        if others and (others[0][0] < 0 or not self._first):
            return heapq.heappop(others)[2]
        return self._first.popleft() if self._first else None

    def __len__(self) -> int:
        return len(self._first) + len(self._others)

    def __bool__(self) -> bool:
        return bool(self._first or self._others)


class Dispatcher:
    """Queue of the ready tasks of one backend, and the coroutine that submits them.

    Args:
        handle: The backend.
        scheduler: Receives the outcome of each submission.
        task_builder: Builds the descriptions of tasks.
        callbacks: Queues the backend's reports during a submission.
        background: Runs the dispatcher's coroutines.
        max_pending: Largest number of tasks that the backend has at once, except services.
        submit_timeout: Seconds within which the backend must accept a batch.
    """

    def __init__(
        self,
        handle: BackendHandle,
        scheduler: Scheduler,
        task_builder: TaskBuilder,
        callbacks: Callbacks,
        background: Background,
        *,
        max_pending: int | None,
        submit_timeout: float | None,
    ) -> None:
        self._handle = handle
        self.queue: ReadyQueue = ReadyQueue()
        self._scheduler = scheduler
        self._task_builder = task_builder
        self._callbacks = callbacks
        self._background = background
        self._max_pending = max_pending
        self._submit_timeout = submit_timeout
        self._resumed: deque[TaskRecord] = deque()
        self._services: deque[TaskRecord] = (
            deque()
        )  # with `max_pending`, which does not apply to them
        self._waiter: asyncio.Future[None] | None = None
        self._batch: set[TaskRecord] = set()
        self._deferred: list[TaskRecord] = []
        self._closing = False
        self._idle = asyncio.Event()
        self._pump = background.spawn(self._run(), f"{handle.name} dispatcher")

    def push(self, record: TaskRecord) -> None:
        """Queue a task that is ready or prepared."""
        if record.task.settings.service and self._max_pending is not None:
            self._services.append(record)
        else:
            self.queue.push(record, record.task.settings.priority)
        if self._waiter is not None:
            self.wake()

    def resume(self, record: TaskRecord) -> None:
        """Queue a task that is being prepared, ahead of tasks that are not."""
        service = record.task.settings.service and self._max_pending is not None
        (self._services if service else self._resumed).append(record)
        self.wake()

    def wake(self) -> None:
        """Make the dispatcher check its queues."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
            self._idle.clear()

    async def flushed(self) -> None:
        """Wait until all tasks that can be submitted now have been."""
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
            del batch  # do not keep finished tasks alive until the next batch
            if self._closing:
                return
            if not (self._services or ((self._resumed or self.queue) and self._room() > 0)):
                self._waiter = loop.create_future()
                self._idle.set()
                await self._waiter
                self._waiter = None
            elif time.perf_counter() > ends:
                await asyncio.sleep(0)  # let the loop run other callbacks
            else:
                continue
            ends = time.perf_counter() + SLICE

    def _take(self, ends: float) -> list[TaskRecord]:
        """Return the next batch: the tasks that can be prepared before the time slice ends."""
        batch: list[TaskRecord] = []
        queue, resumed, handle = self.queue, self._resumed, self._handle
        services, room, task_builder = self._services, self._room(), self._task_builder
        looked_at = 0
        while services or room > 0:
            looked_at += 1
            if looked_at % CHECK_EVERY == 0 and time.perf_counter() > ends:
                break
            if services:
                service = services.popleft()
                if service.state is READY and task_builder.advance(service, handle):
                    batch.append(service)
                continue
            record = resumed.popleft() if resumed else queue.pop()
            if record is None:
                break
            if record.state is READY and task_builder.advance(record, handle):
                batch.append(record)
                room -= 1
                if record.dependents:
                    self._scheduler.offer(record, handle)
        return batch

    def _room(self) -> float:
        limit = self._max_pending
        return float("inf") if limit is None else limit - self._handle.occupied

    async def _submit(self, batch: list[TaskRecord]) -> None:
        scheduler, callbacks = self._scheduler, self._callbacks
        batch = scheduler.submit(batch, self._handle)
        if not batch:
            return
        descriptions: list[Any] = [record.description for record in batch]
        self._batch = set(batch)
        timeout: asyncio.Timeout | None = None
        callbacks.handing_over += 1
        callbacks.applied_soon = True
        try:
            submission = self._handle.backend.submit_tasks(descriptions).__await__()
            try:
                waits_for = next(submission)
            except StopIteration:  # it did not wait, so it needs no timeout
                pass
            else:
                callbacks.suspended()
                async with (timeout := asyncio.timeout(self._submit_timeout)):
                    await resumed(submission, waits_for)
        except (Exception, asyncio.CancelledError) as error:  # the batch was not accepted
            if is_cancelling():
                raise
            callbacks.apply()
            self._rejected(batch, error, timeout is not None and timeout.expired())
        else:
            scheduler.accept(batch, self._handle)
            callbacks.apply()
        finally:
            callbacks.handing_over -= 1
            callbacks.suspended()
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
            if timed_out and record.state.work in (WorkState.SUBMITTING, WorkState.CANCELING):
                # The backend may have accepted it nevertheless.
                self._background.spawn(self._ask(record.uid), f"cancel {record.uid}")
            if isinstance(error, BackendUnavailableError):
                failure: Exception = BackendUnavailableError(str(error))
            else:
                failure = SubmissionError(f"backend {self._handle.name!r} {reason}")
            failure.__cause__ = error
            self._scheduler.reject(record, failure)

    # Cancellation.

    def cancel(self, record: TaskRecord) -> None:
        """Ask the backend to stop a task, after the submission that contains it."""
        if record in self._batch:
            self._deferred.append(record)
        elif record.state.work is WorkState.CANCELING:
            self._background.spawn(self._cancel(record, record.uid), f"cancel {record.uid}")

    async def _cancel(self, record: TaskRecord, uid: str) -> None:
        known = await self._ask(uid)
        if not known and record.uid == uid and record.state.work is WorkState.CANCELING:
            self._scheduler.cannot_stop(record)

    async def _ask(self, uid: str) -> bool:
        try:
            answer = self._handle.backend.cancel_task(uid)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # an error of the backend must not affect other tasks
            if is_cancelling():
                raise
            log.error(
                "backend %r failed to cancel %s: %r", self._handle.name, uid, error, exc_info=error
            )
            return False
