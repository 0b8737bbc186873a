"""Communication with the backends: submission of ready tasks in batches, and receipt of states.

Each backend has a `Dispatcher`, which submits one batch at a time. Tasks that become ready during a
submission form the next batch. Preparing a batch blocks the loop for a few milliseconds at most. A
cancellation is sent immediately, unless the current submission contains the task; in that case, it
is sent after the submission.

`Callbacks` receives states, which backends may report from any thread, and passes them to the
scheduler on the loop. Late, duplicate and unknown reports are ignored. They are counted, except for
repeated reports that a task is running. `rhapsody.engine.core.scheduler` decides what a state means
for retries and dependents.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import inspect
import logging
import math
import time
from asyncio import _get_running_loop as running_loop
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rhapsody.aio import is_cancelling, resumed
from rhapsody.engine.attempts.task_builder import TaskBuilder
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.events import Observation
from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import READY, FutureState, WorkState
from rhapsody.errors import BackendUnavailableError, SubmissionError, describe_error
from rhapsody.identity import AttemptId
from rhapsody.sdk.threads import Mailbox
from rhapsody.states import TasksMainStates

log: logging.Logger = logging.getLogger("rhapsody.engine")

DONE = TasksMainStates.DONE
FAILED = TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED
RUNNING = TasksMainStates.RUNNING

STARTED = frozenset({WorkState.RUNNING, WorkState.SERVING, WorkState.CANCELING})
"""States of work in which a further report that the task is running is not an error."""

ServiceCallback = Callable[..., Any]
Report = tuple[Any, Any, ServiceCallback | None]

TIME_SLICE = 0.005
"""Seconds after which a dispatcher lets the loop run other callbacks."""

CHECK_EVERY = 32
"""Number of tasks that are prepared between two readings of the clock."""


class Dispatcher:
    """Queue of the ready tasks of one backend, and the coroutine that submits them.

    Args:
        handle: The backend.
        scheduler: The scheduler, which receives the outcome of each submission.
        task_builder: The builder of task descriptions.
        callbacks: The receiver of the backend's reports, which queues them during a submission.
        observation: The collector of events, which lets plugins trace submitted tasks.
        background: The runner of the dispatcher's coroutines.
        options: Options of the engine.
    """

    def __init__(
        self,
        handle: BackendHandle,
        scheduler: Scheduler,
        task_builder: TaskBuilder,
        callbacks: Callbacks,
        observation: Observation,
        background: Background,
        options: EngineOptions,
    ) -> None:
        self._handle = handle
        self._resumed: deque[TaskRecord] = deque()  # their preparation has started
        self._ready: deque[TaskRecord] = deque()  # of priority 0
        self._others: list[tuple[float, int, TaskRecord]] = []  # heap; highest priority first
        self._pushed = 0  # number of tasks that were in the heap
        self._scheduler = scheduler
        self._task_builder = task_builder
        self._callbacks = callbacks
        self._observation = observation
        self._background = background
        self._max_pending = math.inf if options.max_pending is None else options.max_pending
        self._submit_timeout = options.submit_timeout
        self._services: deque[TaskRecord] = deque()  # `max_pending` does not apply to these
        self._waiter: asyncio.Future[None] | None = None
        self._batch: set[TaskRecord] = set()
        self._deferred: list[TaskRecord] = []
        self._closing = False
        self._idle = asyncio.Event()
        self._pump = background.spawn(self._run(), f"{handle.name} dispatcher")

    def push(self, record: TaskRecord) -> None:
        """Queue a ready task; tasks of the same priority are first in, first out."""
        settings = record.call.task.settings
        if settings.service and self._max_pending < math.inf:
            self._services.append(record)
        elif settings.priority == 0:
            self._ready.append(record)
        else:
            self._pushed += 1
            heapq.heappush(self._others, (-settings.priority, self._pushed, record))
        if self._waiter is not None:
            self.wake()

    def resume(self, record: TaskRecord) -> None:
        """Queue a task whose preparation has started, ahead of tasks that are not yet prepared."""
        if record.call.task.settings.service and self._max_pending < math.inf:
            self._services.append(record)
        else:
            self._resumed.append(record)
        if self._waiter is not None:
            self.wake()

    def wake(self) -> None:
        """Make the dispatcher check its queues."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
            self._idle.clear()

    async def flushed(self) -> None:
        """Wait until the dispatcher has submitted all tasks that it can submit now."""
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
        ends = time.perf_counter() + TIME_SLICE
        while not self._closing:
            batch = self._take(ends)
            if batch:
                await self._submit(batch)
            del batch  # do not keep finished tasks alive until the next batch
            if self._closing:
                return
            full = self._handle.occupied >= self._max_pending
            waits = self._resumed or self._ready or self._others
            if not (self._services or (waits and not full)):
                waiter = self._waiter = loop.create_future()
                self._idle.set()
                await waiter
            elif time.perf_counter() > ends:
                await asyncio.sleep(0)  # let the loop run other callbacks
            else:
                continue
            ends = time.perf_counter() + TIME_SLICE

    def _take(self, ends: float) -> list[TaskRecord]:
        """Return the next batch: tasks that fit `max_pending` and can be prepared before `ends`."""
        batch: list[TaskRecord] = []
        resumed, ready, others, services = self._resumed, self._ready, self._others, self._services
        handle, advance = self._handle, self._task_builder.advance
        while services:
            service = services.popleft()
            if service.state is READY and advance(service, handle):
                batch.append(service)
        most = len(batch) + self._max_pending - handle.occupied
        pushes_down = handle.capabilities.unfinished_dependencies
        looked_at = 0
        while (resumed or ready or others) and len(batch) < most:
            looked_at += 1
            if looked_at % CHECK_EVERY == 0 and time.perf_counter() > ends:
                break
            if resumed:
                record = resumed.popleft()
            elif others and (others[0][0] < 0 or not ready):
                record = heapq.heappop(others)[2]
            else:
                record = ready.popleft()
            if record.state is READY and advance(record, handle):
                batch.append(record)
                if pushes_down:
                    self._scheduler.offer(record, handle)
        return batch

    async def _submit(self, batch: list[TaskRecord]) -> None:
        scheduler, callbacks = self._scheduler, self._callbacks
        batch = scheduler.submit(batch, self._handle)
        if not batch:
            return
        self._batch = set(batch)
        timeout: asyncio.Timeout | None = None
        callbacks.hold()
        try:
            descriptions = [record.attempt.description for record in batch]
            self._observation.trace(descriptions)
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
        finally:
            callbacks.release()
            self._batch = set()
            deferred, self._deferred = self._deferred, []
            for record in deferred:
                self.cancel(record)

    def _rejected(self, batch: list[TaskRecord], error: BaseException, timed_out: bool) -> None:
        tasks = f"{len(batch)} task{'s' * (len(batch) != 1)}"
        if timed_out:
            reason = f"did not accept {tasks} within {self._submit_timeout:g} s"
        else:
            reason = f"did not accept {tasks}: {describe_error(error)}"
        for record in batch:
            if timed_out and record.state.work in (WorkState.SUBMITTING, WorkState.CANCELING):
                # The backend may have accepted the task nevertheless.
                self._background.spawn(
                    self._ask(record.attempt.uid), f"cancel {record.attempt.uid}"
                )
            if isinstance(error, BackendUnavailableError):
                failure: Exception = BackendUnavailableError(str(error))
            else:
                failure = SubmissionError(f"backend {self._handle.name!r} {reason}")
            failure.__cause__ = error
            self._scheduler.reject(record, failure)

    # Cancellation.

    def cancel(self, record: TaskRecord) -> None:
        """Ask the backend to stop a task once its submission has finished."""
        if record in self._batch:
            self._deferred.append(record)
        elif record.state.work is WorkState.CANCELING:
            self._background.spawn(
                self._cancel(record, record.attempt.uid), f"cancel {record.attempt.uid}"
            )

    async def _cancel(self, record: TaskRecord, uid: str) -> None:
        known = await self._ask(uid)
        if not known and record.attempt.uid == uid and record.state.work is WorkState.CANCELING:
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


class Callbacks:
    """Receiver of the states of one engine's tasks.

    A report that a backend makes on the loop's thread inside its `submit_tasks` is queued until
    that call returns or waits. Reports from other threads go into a mailbox, which wakes the loop
    once for several reports. Reports from other threads that have no effect are dropped without
    waking the loop.

    Args:
        uid: The engine's uid, which is the prefix of its tasks' uids.
        scheduler: The scheduler, which receives the states.
        background: The runner of calls on the loop.
        observation: The collector of events, for states that the scheduler does not handle.
    """

    def __init__(
        self,
        uid: str,
        scheduler: Scheduler,
        background: Background,
        observation: Observation,
    ) -> None:
        self._uid = uid
        self._scheduler = scheduler
        self._background = background
        self._observation = observation
        self._loop: asyncio.AbstractEventLoop = background.loop
        self._mailbox: Mailbox[Report] = Mailbox(background.loop, self._deliver_in_order)
        self._queued: deque[Report] = deque()
        self._submissions = 0  # number of submissions in progress; see `hold`
        self._released_soon = False  # True if queued reports are applied before the next iteration
        self._complained: set[tuple[str, object]] = set()

    def receive(
        self, task: Any, state: Any, service_callback: ServiceCallback | None = None
    ) -> None:
        """Receive the state of a task. This is the callback that backends call, on any thread."""
        if running_loop() is not self._loop:
            if not self._changes_nothing(task, state):
                self._mailbox.put((task, state, service_callback))
        elif not self._submissions and not self._queued:
            self._deliver((task, state, service_callback))
        else:
            if not self._queued and not self._released_soon:
                self._loop.call_soon(self.apply)
            self._queued.append((task, state, service_callback))

    def hold(self) -> None:
        """Start queueing reports that arrive on the loop's thread, because a submission begins.

        This prevents reports from taking effect inside a backend's `submit_tasks`.
        """
        self._submissions += 1
        self._released_soon = True

    def suspended(self) -> None:
        """Apply the queued reports in the loop's next iteration, because a submission waits."""
        self._released_soon = False
        if self._queued:
            self._loop.call_soon(self.apply)

    def release(self) -> None:
        """Apply the queued reports, because a submission has ended."""
        self._submissions -= 1
        self._released_soon = False
        if self._queued:
            self.apply()

    def apply(self) -> None:
        """Apply the queued reports."""
        while self._queued:
            self._deliver(self._queued.popleft())

    def _changes_nothing(self, task: Any, state: Any) -> bool:
        """Return True if a report has no effect and the loop need not be woken. Thread-safe.

        A backend may report many intermediate states; RADICAL-Pilot has fifteen.
        """
        if self._scheduler.observed or type(task) is not dict:
            return False
        uid = task.get("uid")
        record = self._scheduler.inflight.get(uid) if type(uid) is str else None
        if record is None:
            return False
        try:
            main = record.attempt.backend.native.get(state)
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
        """Apply the queued reports, which are earlier, and then a report made on a thread."""
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
                main: TasksMainStates | None = record.attempt.backend.native[state]
            except (KeyError, TypeError):
                main = record.attempt.backend.main_state(state)
            if scheduler.observed and main is not None:
                record.native = str(state)
            if main is DONE or main is FAILED or main is CANCELED:
                scheduler.end(record, main, task)
            elif main is RUNNING:
                if scheduler.run(record):
                    record.attempt.started = self._background.clock.time()
                    if record.call.task.settings.service:
                        self._await_service(record, task, state, service_callback)
                elif record.state.work not in STARTED:
                    scheduler.stats.late += 1
            elif main is None:
                self._unknown_state(record, state)
            elif scheduler.observed and record.state.future is FutureState.PENDING:
                self._observation.publish(record, main)
        except Exception as error:  # a fault of the engine must not be lost in a backend's thread
            self._background.crash("updates", error)

    def _stray(self, uid: object) -> None:
        stats = self._scheduler.stats
        try:
            engine = AttemptId.of(uid).task.engine if isinstance(uid, str) else None
        except ValueError:
            engine = None
        if engine is None:
            stats.unknown += 1
        elif engine == self._uid:
            stats.late += 1
        # Otherwise, it is a task of another engine on a backend that both use.

    def _malformed(self, error: Exception) -> None:
        self._scheduler.stats.unknown += 1
        if ("", "malformed") not in self._complained:
            self._complained.add(("", "malformed"))
            log.error(
                "ignoring malformed reports of a backend: expected a task with a uid (%s)",
                describe_error(error),
            )  # fmt: skip

    def _unknown_state(self, record: TaskRecord, state: Any) -> None:
        self._scheduler.stats.unknown += 1
        backend = record.attempt.backend
        key = (backend.name, str(state))
        if key not in self._complained:
            self._complained.add(key)
            log.error(
                "backend %r: ignoring the unknown state %r; the backend must report one of %s, or "
                "register its states with StateMapper.register_backend_tasks_states(...)",
                backend.name, state, ", ".join(map(str, backend.native)),
            )  # fmt: skip

    def _await_service(
        self, record: TaskRecord, task: Any, state: Any, service_callback: ServiceCallback | None
    ) -> None:
        """Mark a service as ready once `service_callback` has set a result on its future.

        Without a callback, the service is ready now. If the callback sets an exception on the
        future, the service fails with that exception.
        """
        scheduler = self._scheduler
        if service_callback is None:
            scheduler.serve(record, record.attempt.uid, None)
            return
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.add_done_callback(partial(self._ready_anywhere, record, record.attempt.uid))
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
        elif record.attempt.uid == uid:
            self._scheduler.stop_with(record, error)
