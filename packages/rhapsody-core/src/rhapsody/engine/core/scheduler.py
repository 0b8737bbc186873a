"""Task scheduler: the only code that changes the state of a task.

Events come in as method calls: a task was called, a backend ended an attempt, a deadline passed.
Each of these methods selects a transition. The table of `rhapsody.engine.core.states` contains the
next state, and `ROWS` at the end of this module adds the handler that carries out the effects. A
transition without a row is an error of the engine and raises `IllegalTransitionError`. Users can
cancel at any time and a backend may report twice, so methods whose event may come too late check
for a row first.

The scheduler uses no event loop, no backend library and no files. It requests such work through
`Actions`, which tests replace with a stub in order to run the scheduler alone.

Chains of tasks may be a hundred thousand long, so effects that spread from task to task go through
`Scheduler._spread` instead of recursion.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from rhapsody.backends.base import ReferenceLostError
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.engine.configuration.settings import NO_FALLBACK
from rhapsody.engine.core import error_messages
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.events import Observation
from rhapsody.engine.core.pushdown import PushDown
from rhapsody.engine.core.record import (
    BlockRecord,
    TaskRecord,
    Tries,
    is_service,
    link_of,
    record_of,
)
from rhapsody.engine.core.results import Results
from rhapsody.engine.core.states import (
    FINISHED,
    READY,
    STATES,
    SUBMITTING,
    FutureState,
    TaskState,
    Transition,
    WorkState,
)
from rhapsody.errors import (
    BackendUnavailableError,
    DependencyFailureError,
    InputChangedError,
    InsufficientWalltimeError,
    TaskLostError,
    WorkerValueError,
    add_note,
    blame,
)
from rhapsody.plugins.specs import Stats
from rhapsody.sdk.runner import failed_handle
from rhapsody.sdk.value_handles import TaskValues, WorkerValue
from rhapsody.states import TasksMainStates
from rhapsody.task import RetryPolicy, TaskFacts, TaskFuture

Limit = tuple[tuple[str, int], ...]
"""Named limits of a task, with their sizes."""

# Members that every task needs; in Python 3.11, looking up a member in its enum takes a call.
PENDING, SUBMITTED, RUNNING = (
    TasksMainStates.PENDING,
    TasksMainStates.SUBMITTED,
    TasksMainStates.RUNNING,
)
DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED
_PENDING, _DONE, _CANCELLED = FutureState.PENDING, FutureState.DONE, FutureState.CANCELLED
_WAITING, _CANCELING = WorkState.WAITING, WorkState.CANCELING
_RESOLVE, _SUBMIT, _ACCEPT = Transition.RESOLVE, Transition.SUBMIT, Transition.ACCEPT
_RUN, _ENDED_WELL, _REVEAL = Transition.RUN, Transition.DONE, Transition.REVEAL

STOPPING: Final = 30.0
"""Seconds to wait for timed-out work to stop; longer than the grace period of programs."""

LATE: Final = 0.1
"""Number of seconds by which a timer is late if the loop was blocked or the program stopped."""

CATCH_UP: Final = 0.5
"""Minimum number of seconds in which a loop that was late may notice the ends of work."""

MAX_EXTENSIONS: Final = 5
"""Maximum number of extensions of one timeout, so that a loop that is always late has timeouts."""

MAX_FAILED_WORKERS: Final = 3
"""Number of workers on which the factory of a worker value may fail before it is given up."""

LOST = (TaskLostError, BackendUnavailableError)
"""Errors caused by the infrastructure, to which `lost_retries` applies instead of `retries`."""

UNCOUNTED_ERRORS = (DependencyFailureError, InsufficientWalltimeError)
"""Errors of tasks that did not run: counted neither toward `max_failures` nor as retries."""


class IllegalTransitionError(RuntimeError):
    """The engine attempted a transition that is not in the table."""

    def __init__(self, record: TaskRecord, transition: Transition) -> None:
        super().__init__(
            f"{record.named()}, attempt {record.attempt.number}: no transition {transition!s} from "
            f"{record.state}"
        )


class Actions(Protocol):
    """Interface through which the scheduler requests work. Its methods are called on the loop."""

    def route(self, record: TaskRecord) -> None:
        """Queue a ready task for its backend, or run a block."""

    def requeue(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Queue a task whose preparation has started, ahead of tasks that are not yet prepared."""

    def stop(self, record: TaskRecord) -> None:
        """Request that the work of a task in the state CANCELING be stopped."""

    def room(self, record: TaskRecord) -> None:
        """Let another task use the slot that this task has freed on its backend."""

    def save(self, record: TaskRecord, value: Any) -> None:
        """Save the output files of a result, then call `Scheduler.saved` or `fail`."""

    def record(self, record: TaskRecord, value: Any) -> None:
        """Record a result, then call `Scheduler.reveal` or `fail`."""

    def record_held(self, record: TaskRecord) -> None:
        """Record a result that stays on its backend, if it is worth fetching."""

    def fail(self, record: TaskRecord, error: BaseException) -> BaseException:
        """Set a pending future's exception, and return the exception that was set."""

    def service_ended(
        self, record: TaskRecord, main: TasksMainStates, report: Any
    ) -> tuple[TasksMainStates, BaseException | None]:
        """Handle the end of a ready service that was not stopped.

        Returns:
            The state and the error to publish.
        """

    def service_settled(
        self, record: TaskRecord, value: Any = None, error: BaseException | None = None
    ) -> None:
        """Handle the outcome of a restarted service, whose future is done already.

        Without `error`, the service is ready and `value` is its readiness information. Otherwise
        the service has failed or was canceled.
        """


class Limits:
    """Named limits such as `license:2`, which allows two tasks with this limit to run at once."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[float, int, TaskRecord]]] = {}  # heaps, by priority
        self._queued = 0  # number of tasks that have waited

    def declare(self, limits: Limit) -> None:
        """Set the size of each limit.

        Raises:
            ValueError: A limit with the same name has another size.
        """
        for name, size in limits:
            known = self._sizes.setdefault(name, size)
            if known != size:
                raise ValueError(
                    f"limit {name!r} must have one size, got {name}:{size} after {name}:{known} "
                    "was declared in this engine"
                )

    def take(self, record: TaskRecord, limits: Limit) -> bool:
        """Acquire all limits and return True, or queue the task for a full one and return False."""
        if record.limits:
            return True  # `give_back` has acquired them for this task
        full = self._full(limits)
        if full is not None:
            self._queued += 1
            place = -record.call.task.settings.priority, self._queued, record
            heapq.heappush(self._waiting.setdefault(full, []), place)
            return False
        self._occupy(record, limits)
        return True

    def give_back(self, record: TaskRecord) -> list[TaskRecord]:
        """Release a task's limits, and return the waiting tasks that have now acquired theirs."""
        limits, record.limits = record.limits, ()
        for name, _ in limits:
            self._used[name] -= 1
        admitted: list[TaskRecord] = []
        for name, _ in limits:
            waiting = self._waiting.get(name)
            while waiting and self._used[name] < self._sizes[name]:
                other = heapq.heappop(waiting)[2]
                if other.state.work is not WorkState.READY:
                    continue  # canceled while it waited
                if self.take(other, other.call.task.settings.limit):
                    admitted.append(other)
        return admitted

    def _full(self, limits: Limit) -> str | None:
        return next((name for name, size in limits if self._used.get(name, 0) >= size), None)

    def _occupy(self, record: TaskRecord, limits: Limit) -> None:
        for name, _ in limits:
            self._used[name] = self._used.get(name, 0) + 1
        record.limits = limits


class FailedValues:
    """Worker values that could not be built on some workers, and on no other worker since.

    Attributes:
        errors: The last error on each worker, by handle and worker.
    """

    def __init__(self) -> None:
        self.errors: dict[str, dict[str, BaseException]] = {}

    def failed(self, record: TaskRecord, values: TaskValues, error: BaseException) -> None:
        """Note that an attempt has failed, if it failed to build a value.

        The factory raised an exception, or ended its worker, or took too long. In the last two
        cases, the value is only known if the attempt uses no other ones.
        """
        handle = failed_handle(error)
        if handle is None and values.is_building and len(values.handles) == 1:
            handle = values.handles[0].handle
        if handle is not None:
            worker = str(record.attempt.description.get("worker"))
            self.errors.setdefault(handle, {})[worker] = error

    def built(self, values: TaskValues) -> None:
        """Note that an attempt with these values has ended well."""
        for handle in values.handles:
            self.errors.pop(handle.handle, None)

    def require(self, handles: Sequence[WorkerValue[Any]]) -> None:
        """Raise an error if the factory of one of these values has failed on too many workers.

        Raises:
            WorkerValueError: The factory has failed; its last error is the cause.
        """
        for handle in handles if self.errors else ():
            failed = self.errors.get(handle.handle, {})
            if len(failed) >= MAX_FAILED_WORKERS:
                raise WorkerValueError(
                    f"worker value {handle.name!r} is not built again for this handle: its "
                    f"function has failed on {len(failed)} workers and succeeded on none since"
                ) from [*failed.values()][-1]


class Scheduler:
    """Scheduler of the unfinished tasks and blocks of one engine.

    Args:
        actions: The object that carries out the decisions.
        background: The source of timers for timeouts and delays.
        results: The reader of the reports of attempts that have ended.
        observation: The collector of events, used if `observed` is true.
        pushdown: The object that decides which tasks are submitted before their dependencies have
            finished, and which values stay with backends.
        stats: Counters, which the scheduler updates.
        options: Options of the engine.
        announced: True if a plugin observes calls.
        observed: True if a plugin observes states.
        recording: True if a plugin records results.

    Attributes:
        closing: True if the engine is shutting down, so that no task is retried.
        interrupted: True if a signal is shutting the engine down. Futures then stay pending until
            `abandon` settles them.
        live: The tasks and blocks whose work has not ended.
        inflight: The tasks that were submitted and have not ended, by the uids of their attempts.
        failures_left: Number of further failures after which all tasks are canceled; `None` for
            no limit.
    """

    def __init__(
        self,
        actions: Actions,
        background: Background,
        results: Results,
        observation: Observation,
        pushdown: PushDown,
        stats: Stats,
        options: EngineOptions,
        *,
        announced: bool,
        observed: bool,
        recording: bool,
    ) -> None:
        self._actions = actions
        self._background = background
        self._results = results
        self._observation = observation
        self._pushdown = pushdown
        self._retries: Sequence[RetryPolicy] = options.retries or (RetryPolicy(attempts=0),)
        self._lost_retries = options.lost_retries
        self._limited = options.max_pending is not None
        self.failures_left: int | None = options.max_failures
        self.announced: bool = announced
        self.observed: bool = observed
        self.recording: bool = recording
        self.closing: bool = False
        self.interrupted: bool = False
        self.stats: Stats = stats
        self.limits: Limits = Limits()
        self.values: FailedValues = FailedValues()
        self.live: set[TaskRecord] = set()
        self.inflight: dict[str, TaskRecord] = {}
        self._when_settled: list[Callable[[], object]] = []
        self._steps: deque[tuple[Callable[[TaskRecord], object], TaskRecord]] = deque()
        self._spreading = False

    def _move(self, record: TaskRecord, transition: Transition, argument: Any = None) -> None:
        """Apply a transition to a task: set the next state and call the transition's handler.

        Args:
            record: The task.
            transition: The transition.
            argument: The argument for the handler, such as a result or an error.

        Raises:
            IllegalTransitionError: The table has no such transition from the task's state.
        """
        row = ROWS[record.state].get(transition)
        if row is None:
            raise IllegalTransitionError(record, transition)
        record.state, handler = row
        handler(self, record, argument)

    def _spread(self, step: Callable[[TaskRecord], object], record: TaskRecord) -> None:
        """Queue `step` for a task, and take all queued steps in order. Steps may queue others."""
        self._steps.append((step, record))
        self._take_steps()

    def _take_steps(self) -> None:
        if self._spreading:
            return  # the call that is taking steps takes these as well
        self._spreading = True
        try:
            while self._steps:
                step, record = self._steps.popleft()
                step(record)
        finally:
            self._spreading = False

    # From the call to the backend.

    def add(self, record: TaskRecord, parent: BlockRecord | None) -> None:
        """Add a task or block that was called, possibly inside the block `parent`."""
        self.live.add(record)
        if parent is not None:
            record.parent = parent
            parent.children[record] = None
        self.stats.tasks += 1
        if self.announced or self.observed:
            when = self._observation.now()
            if self.announced:
                self._observation.announce(record, when)
            if self.observed:
                self._observation.publish(record, PENDING, when=when)
        if record.call.dependencies:
            self._link(record)
        else:
            record.state = READY  # the transition RESOLVE, without the search for its row
            self._actions.route(record)

    def start_again(self, record: TaskRecord) -> None:
        """Add the record that replaces the record of a service that has ended."""
        self.live.add(record)
        self.stats.retried += 1
        self._move(record, Transition.RESOLVE)

    def resume(self, record: TaskRecord) -> None:
        """Continue with a ready task or block that had to wait for a service or a limit."""
        self._on_resolve(record, None)

    def requeue(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Put a ready task back in its queue after it has waited for files, a command or a lookup.

        Args:
            record: The task.
            backend: The backend in whose queue the task was.
        """
        self._actions.requeue(record, backend)

    def _on_resolve(self, record: TaskRecord, _: None) -> None:
        self._actions.route(record)

    def offer(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Push down the dependents of a task that was added to the next batch for its backend."""
        for dependent in self._pushdown.followers(record, backend):
            self._push(dependent)

    def _push(self, record: TaskRecord) -> None:
        """Queue a task for submission before its dependencies have ended."""
        record.pushed = True
        self._move(record, Transition.RESOLVE)

    def submit(self, batch: Sequence[TaskRecord], backend: BackendHandle) -> list[TaskRecord]:
        """Mark a batch as being submitted; return the tasks that have not been canceled."""
        submitted = [record for record in batch if record.state is READY]
        after, handler = ROWS[READY][_SUBMIT]
        for record in submitted:
            record.state = after
            handler(self, record, backend)
        if self.observed:
            when = self._observation.now()  # the backend receives all of them in one call
            for record in submitted:
                self._observation.publish(record, SUBMITTED, when=when)
        return submitted

    def _on_submit(self, record: TaskRecord, backend: BackendHandle) -> None:
        self.inflight[record.attempt.uid] = record
        record.submitted_to = backend.name
        if not record.call.task.settings.service:
            backend.occupied += 1

    def accept(self, batch: Sequence[TaskRecord], backend: BackendHandle) -> None:
        """Mark a batch as accepted by its backend."""
        after, handler = ROWS[SUBMITTING][_ACCEPT]
        starts = not backend.capabilities.reports_running
        for record in batch:
            if record.state is SUBMITTING:
                record.state = after
                if starts:  # otherwise, there is nothing to do until the task runs
                    handler(self, record, None)

    def _on_accept(self, record: TaskRecord, _: None) -> None:
        if "timeout" in record.attempt.description or record.call.task.settings.service:
            self._start_clock(record)

    def reject(self, record: TaskRecord, error: BaseException) -> None:
        """Handle a task that its backend did not accept, unless it is running or has ended."""
        if record.state.work not in (WorkState.SUBMITTING, WorkState.CANCELING):
            return
        self._free(record)
        if record.state.future is FutureState.PENDING:
            self._attempt_failed(record, record.verdict or error)
        else:
            self._move(record, Transition.STOPPED)

    def refuse(self, record: TaskRecord, error: BaseException) -> None:
        """Fail a ready task that cannot be submitted, or cancel it if `error` is a cancellation.

        If the task has a fallback, the task is not failed but completed with the fallback, unless
        one of its inputs has changed or its backend has too little walltime left.
        """
        if record.state.work is not WorkState.READY:
            return  # canceled in the meantime
        if isinstance(error, asyncio.CancelledError):
            self.cancel(record)
        elif isinstance(error, (InputChangedError, InsufficientWalltimeError)):
            self.fail(record, error)
        else:
            self._give_up(record, error)

    # Reports of backends and blocks.

    def run(self, record: TaskRecord) -> bool:
        """Mark a task or block as running; return `False` if it is already running or has ended."""
        row = ROWS[record.state].get(_RUN)
        if row is None:
            return False
        record.state, handler = row
        handler(self, record, None)
        return True

    def _on_run(self, record: TaskRecord, _: None) -> None:
        if self.observed:
            self._observation.publish(record, RUNNING)
        description = record.attempt.description
        if (
            "timeout" in description
            or record.call.task.settings.service
            or ("worker_values" in description and description["worker_values"].is_building)
        ):
            self._start_clock(record)

    def building(self, uid: str) -> None:
        """Start the timeout of an attempt anew that begins or ends to build a worker value."""
        record = self.inflight.get(uid)
        if record is not None and record.state.work in (WorkState.SUBMITTED, WorkState.RUNNING):
            self._start_clock(record)

    def _start_clock(self, record: TaskRecord) -> None:
        """Start the timeout of an attempt."""
        if record.timer is not None:
            self._disarm(record)  # the timer was started when the task was accepted
        settings = record.call.task.settings
        description = record.attempt.description
        limit = settings.ready_timeout if settings.service else description.get("timeout")
        values = description.get("worker_values")
        if values is not None and values.is_building:
            limit = values.limit
        elif values is not None and limit is not None:
            known = record.attempt.backend.capabilities.worker_values
            limit += 0.0 if known else values.limit or 0.0  # the time for building is not reported
        if limit is not None:
            self._set_timer(record, limit, limit, MAX_EXTENSIONS)

    def _set_timer(self, record: TaskRecord, limit: float, delay: float, extensions: int) -> None:
        """Check in `delay` seconds if an attempt has exceeded its timeout."""
        when = self._background.monotonic() + delay
        over = partial(self._over_time, record, limit, when, extensions)
        record.timer = self._background.after(delay, over)

    def serve(self, record: TaskRecord, uid: str, information: Any) -> None:
        """Mark a service as ready, unless the attempt with this uid is no longer running.

        Args:
            record: The service.
            uid: The uid of the attempt.
            information: The readiness information, which becomes the service's result.
        """
        if record.attempt.uid == uid and Transition.SERVE in record.state.after:
            self._move(record, Transition.SERVE, information)
        else:
            self.stats.late += 1

    def _on_serve(self, record: TaskRecord, information: Any) -> None:
        self._disarm(record)
        if record.future.done():  # a restarted service
            self._actions.service_settled(record, information)
        else:
            self.stats.done += 1
            record.future.set_result(information)
        self._settle(record)

    def end(self, record: TaskRecord, main: TasksMainStates, report: Mapping[str, Any]) -> None:
        """Handle the end of an attempt; `main` is DONE, FAILED or CANCELED."""
        self._free(record)
        if record.pushed and main is FAILED and self._returned(record, report):
            return
        if self.interrupted:
            return  # its future is settled when everything has stopped
        state = record.state
        if state.future is not _PENDING:
            self._end_of_settled(record, main, report)
        elif state.work is _CANCELING:
            self._results.keep(record, report, succeeded=False)
            verdict = record.verdict or error_messages.of_attempt(record, report)
            changed = self._results.input_changed(record, verdict)
            self._attempt_failed(record, changed or verdict)
        elif main is CANCELED:
            self._results.keep(record, report, succeeded=True)
            self._move(record, Transition.STOPPED, error_messages.cancelled_elsewhere(record))
        elif main is DONE and "held" in report and self._pushdown.hold(record, report):
            self._move(record, Transition.HOLD)
        else:
            value, error = self._results.read(record, main, report)
            if error is None:
                if self.values.errors and (
                    values := record.attempt.description.get("worker_values")
                ):
                    self.values.built(values)
                record.state, handler = ROWS[record.state][_ENDED_WELL]
                handler(self, record, value)
            else:
                self._attempt_failed(record, error)
                del error  # this frame is in its traceback

    def end_block(self, record: TaskRecord, value: Any, error: BaseException | None) -> None:
        """Handle the end of a block, unless it was abandoned."""
        if record.state.work is WorkState.LOST:
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled or record.state.future is not FutureState.PENDING:
            self._move(record, Transition.STOPPED)
        elif error is not None:
            self._move(record, Transition.FAIL, error)
        else:
            self._move(record, Transition.DONE, value)

    def _on_done(self, record: TaskRecord, value: Any) -> None:
        if record.files is not None and record.files.targets:
            self._actions.save(record, value)
        elif self.recording and record.call.task.prefix == "task" and self._records(record):
            self._actions.record(record, value)
        else:
            record.state, handler = ROWS[record.state][_REVEAL]
            handler(self, record, value)

    def saved(self, record: TaskRecord, value: Any) -> None:
        """Record a result whose files were saved; if nothing is recorded, set it on the future."""
        if self._records(record):
            self._actions.record(record, value)
        else:
            self.reveal(record, value)

    def _records(self, record: TaskRecord) -> bool:
        """Return True if the result of a task is recorded; placeholders of dry backends are not."""
        return self.recording and record.call.task.settings.cache and not record.attempt.backend.dry

    def recorded(self, record: TaskRecord, value: Any) -> None:
        """Use a recorded result for a ready task instead of running the task."""
        if record.state is READY:
            self.stats.recorded += 1
            record.native = "reused"
            self._move(record, Transition.SUBSTITUTE, value)

    def reveal(self, record: TaskRecord, value: Any) -> None:
        """Set the result of a task whose work succeeded, unless it has been canceled."""
        row = ROWS[record.state].get(_REVEAL)
        if row is not None:
            record.state, handler = row
            handler(self, record, value)

    def _on_reveal(self, record: TaskRecord, value: Any) -> None:
        if record.future.done():  # a restarted service
            self._actions.service_settled(record, value)
        else:
            self.stats.done += 1
            record.future.set_result(value)
        if self.observed:
            error = record.verdict if record.native == "fallback" else None
            self._observation.publish(record, DONE, error)
        self._settle(record)

    def _on_substitute(self, record: TaskRecord, value: Any) -> None:
        self._move(record, Transition.REVEAL, value)

    def _on_hold(self, record: TaskRecord, _: None) -> None:
        """Handle the end of a task whose value stays on the backend."""
        self.stats.done += 1
        if self.observed:
            self._observation.publish(record, DONE)
        if self._records(record):
            self._actions.record_held(record)
        self._settle(record)

    def _free(self, record: TaskRecord) -> None:
        """Release the slot, deadline and limits of an attempt that has left its backend."""
        attempt = record.attempt
        if self.inflight.pop(attempt.uid, None) is None:
            return
        if not record.call.task.settings.service:
            attempt.backend.occupied -= 1
            if self._limited:
                self._actions.room(record)
        if record.timer is not None or record.limits:
            self._release(record)

    def _release(self, record: TaskRecord) -> None:
        """Cancel the task's deadline and release its named limits."""
        self._disarm(record)
        if record.limits:
            for other in self.limits.give_back(record):
                self._actions.route(other)

    def _disarm(self, record: TaskRecord) -> None:
        if record.timer is not None:
            record.timer.cancel()
            record.timer = None

    # Failures and retries.

    def _attempt_failed(self, record: TaskRecord, error: BaseException) -> None:
        """Retry a task whose attempt has failed, or give up if it has no attempt left."""
        record.verdict = None
        if isinstance(error, InputChangedError):
            self.fail(record, error)  # another attempt or a fallback would hide the change
            return
        if isinstance(error, LOST):
            self.stats.lost += 1
        values = record.attempt.description.get("worker_values")
        if values is not None:
            self.values.failed(record, values, error)
        delay, error = (None, error) if self.closing else self._next_attempt(record, error)
        if delay is None or Transition.RETRY not in record.state.after:
            self._give_up(record, error)
            return
        if self.observed:  # before the data of the attempt are discarded
            self._observation.publish(record, FAILED, error, retried=True)
        self._move(record, Transition.RETRY)
        held_back = isinstance(error, UNCOUNTED_ERRORS)
        self.stats.retried += not held_back
        record.timer = self._background.after(delay, partial(self._again, record))

    def _next_attempt(
        self, record: TaskRecord, error: BaseException
    ) -> tuple[float | None, BaseException]:
        """Count a failed attempt and determine when the next one starts.

        Returns:
            The delay of the next attempt in seconds, or `None` if there is none; and the exception
            with which the task then fails: `error`, or the one that the user's `wait` raised.
        """
        try:
            delay = self._retry_delay(record, error)
        except (Exception, SystemExit) as mistake:  # the user's own `wait` raised
            blame(mistake, error, f"`wait` in the retries of {record.named()}")
            return None, mistake
        if delay is not None and record.kept is not None and record.kept.consumed is not None:
            add_note(error, error_messages.not_retried(record, record.kept.consumed))
            return None, error
        return delay, error

    def _retry_delay(self, record: TaskRecord, error: BaseException) -> float | None:
        settings, tries = record.call.task.settings, record.tries
        if tries is None:
            tries = record.tries = Tries()
        if tries.restarts:  # a service that was ready before
            tries.restarts += 1
            return 0.0 if tries.restarts <= settings.restarts else None
        other = _next_backend(record, tries) if settings.other_backends else None
        # Backends with a queue report that the walltime is insufficient.
        if isinstance(error, (*LOST, InsufficientWalltimeError)):
            tries.losses += 1
            most = self._lost_retries if settings.lost_retries is None else settings.lost_retries
            leaves = other is not None and isinstance(
                error, (BackendUnavailableError, InsufficientWalltimeError)
            )
            if tries.losses <= most and not leaves:
                return 0.0
        else:
            policies = settings.retries or self._retries
            covering = (place for place, each in enumerate(policies) if each.covers(error))
            place = next(covering, None)
            if place is None:
                return None
            spent = tries.failures[place] = tries.failures.get(place, 0) + 1
            if spent <= policies[place].attempts:
                return policies[place].delay(record.attempt.number)
        if other is None:
            return None
        tries.elsewhere, tries.failures, tries.losses = other, {}, 0
        return 0.0

    def _on_retry(self, record: TaskRecord, _: None) -> None:
        record.start_anew()

    def _again(self, record: TaskRecord) -> None:
        """Start the next attempt after its delay."""
        record.timer = None
        self._move(record, Transition.DUE)

    def _give_up(self, record: TaskRecord, error: BaseException) -> None:
        """Complete a task that has no attempts left: use its fallback, or fail the task."""
        value, error = self._fallback(record, error)
        if value is not NO_FALLBACK and Transition.SUBSTITUTE in record.state.after:
            self._replaced(record, error)
            self._move(record, Transition.SUBSTITUTE, value)
        else:
            self.fail(record, error)

    def _fallback(self, record: TaskRecord, error: BaseException) -> tuple[Any, BaseException]:
        """Evaluate the fallback of a task that has no attempt left.

        Returns:
            The fallback's value, or `NO_FALLBACK` if there is none; and the exception with which
            the task then fails: `error`, or the one that the user's fallback function raised.
        """
        given = record.call.task.settings.fallback
        if given is NO_FALLBACK or self.closing:
            return NO_FALLBACK, error
        try:
            return given(error) if callable(given) else given, error
        except (Exception, SystemExit) as mistake:  # the user's own fallback raised
            blame(mistake, error, f"the fallback of {record.named()}")
            return NO_FALLBACK, mistake

    def _replaced(self, record: TaskRecord, error: BaseException) -> None:
        """Count a failure that the fallback replaces, and keep its error for the event."""
        self.stats.fallbacks += 1
        record.native, record.verdict = "fallback", error

    def fail(self, record: TaskRecord, error: BaseException) -> None:
        """Fail a task without further attempts, unless its future has been settled already."""
        if record.state.future is FutureState.PENDING and Transition.FAIL in record.state.after:
            self._move(record, Transition.FAIL, error)
        else:
            self.stats.late += 1

    def _on_fail(self, record: TaskRecord, error: BaseException) -> None:
        self._failed(record, error)
        self._settle(record)

    def _failed(self, record: TaskRecord, error: BaseException) -> None:
        """Set the exception of a future and count the failure."""
        started_again = record.future.done()
        error = self._actions.fail(record, error)
        if started_again:
            self._actions.service_settled(record, error=error)
        else:
            self.stats.failed += 1
            self.stats.skipped += isinstance(error, DependencyFailureError)
        if self.observed:
            self._observation.publish(record, FAILED, error)
        if self.failures_left is not None and not isinstance(error, UNCOUNTED_ERRORS):
            self.failures_left -= 1
            if self.failures_left <= 0 and not self.closing:
                self.cancel_all(f"canceled because {record.named()} failed")

    # Cancellation, and work that exceeds its timeout.

    def cancel(self, record: TaskRecord, msg: Any = None) -> bool:
        """Cancel a task and its dependents immediately; return `False` if it is too late."""
        if Transition.CANCEL not in record.state.after:
            return False
        self._move(record, Transition.CANCEL, msg)
        return True

    def _on_cancel(self, record: TaskRecord, msg: Any) -> None:
        self._disarm(record)
        self._cancel_future(record, msg)
        self._spread(self._cancelled, record)

    def _on_cancel_work(self, record: TaskRecord, msg: Any) -> None:
        self._disarm(record)
        self._cancel_future(record, msg)
        self._spread(self._stop_cancelled, record)

    def _on_cancel_service(self, record: TaskRecord, _: object) -> None:
        self._actions.stop(record)

    def _cancel_future(self, record: TaskRecord, msg: Any = None) -> None:
        if record.future.done():
            self._actions.service_settled(record, error=asyncio.CancelledError())
        else:
            self.stats.cancelled += 1
            record.future.set_cancelled(msg)

    def _stop_cancelled(self, record: TaskRecord) -> None:
        """Stop the work of a canceled task."""
        self._actions.stop(record)
        self._cancelled(record)

    def _cancelled(self, record: TaskRecord) -> None:
        """Cancel the children of a canceled block, and notify dependents."""
        if self.observed and record.state.work is WorkState.ENDED:
            self._observation.publish(record, CANCELED)
        if isinstance(record, BlockRecord):
            for child in tuple(record.children):
                child.cancel(None)  # through its own engine, which may be another one
        self._settle(record)

    def cancel_all(self, msg: Any = None) -> None:
        """Cancel all unfinished tasks and ready services, with the same message."""
        outer, self._spreading = self._spreading, True
        for record in tuple(self.live):
            self.cancel(record, msg)
        self._spreading = outer
        self._take_steps()

    def _on_stopped(self, record: TaskRecord, why: str | None) -> None:
        """Handle a pending task whose work was canceled, but not by the scheduler."""
        self._cancel_future(record, why)
        if self.observed:
            self._observation.publish(record, CANCELED)
        self._settle(record)

    def _end_of_settled(
        self, record: TaskRecord, main: TasksMainStates, report: Mapping[str, Any]
    ) -> None:
        """Handle the end of an attempt of a task whose future is settled already."""
        state, error = CANCELED, None
        if record.state.work is WorkState.SERVING and main is not CANCELED:
            state, error = self._actions.service_ended(record, main, report)
        elif main is DONE and record.state.future is not FutureState.DONE:
            self.stats.late += 1  # the result of a canceled task
        succeeded = record.state.future is not FutureState.FAILED
        self._results.keep(record, report, succeeded=succeeded)
        self._move(record, Transition.STOPPED, (state, error))

    def _on_end_of_settled(
        self, record: TaskRecord, ended: tuple[TasksMainStates, BaseException | None] | None
    ) -> None:
        state, error = ended or (CANCELED, None)
        future, service = record.state.future, record.call.task.settings.service
        if service and future is FutureState.DONE and state is CANCELED:
            state = DONE  # a ready service that was stopped on purpose
        published = future is FutureState.FAILED or (future is FutureState.DONE and not service)
        if self.observed and not published:
            self._observation.publish(record, state, error)
        self._settle(record)

    def stop_with(self, record: TaskRecord, error: BaseException) -> None:
        """Stop a task's work and fail the attempt with `error`; fail a task that has no work."""
        if Transition.STOP in record.state.after:
            self._move(record, Transition.STOP, error)
        else:
            self.fail(record, error)

    def _on_stop(self, record: TaskRecord, error: BaseException) -> None:
        self._disarm(record)
        record.verdict = error
        record.timer = self._background.after(STOPPING, partial(self.cannot_stop, record))
        self._actions.stop(record)

    def _over_time(self, record: TaskRecord, limit: float, when: float, extensions: int) -> None:
        """Stop work that exceeds its timeout; if that is impossible, settle the future anyway.

        If the timer is late, the loop was blocked or the program was stopped. The work may have
        ended in time without being noticed, so the timeout is extended.
        """
        record.timer = None
        late = self._background.monotonic() - when
        if late > LATE and extensions:
            self._set_timer(record, limit, max(min(late, limit), CATCH_UP), extensions - 1)
            return
        values = record.attempt.description.get("worker_values")
        if values is not None and values.is_building:
            error = error_messages.not_built(record, limit)
        else:
            error = error_messages.over_time(record, limit)
        if record.attempt.backend.stops(record.call.task.task_kind, record.attempt.description):
            self.stop_with(record, error)
        else:
            self._let_go(record, error)

    def cannot_stop(self, record: TaskRecord) -> None:
        """Settle the future of timed-out work that its backend cannot stop, or has not stopped."""
        if record.state.future is FutureState.PENDING and record.verdict is not None:
            self._let_go(record, record.verdict)

    def _let_go(self, record: TaskRecord, error: BaseException) -> None:
        """Settle a future with the fallback or `error`, while the work continues."""
        value, error = self._fallback(record, error_messages.of_unstoppable_work(record, error))
        if value is not NO_FALLBACK and Transition.LET_GO in record.state.after:
            self._replaced(record, error)
            self._move(record, Transition.LET_GO, value)
        elif Transition.GIVE_UP in record.state.after:
            self._move(record, Transition.GIVE_UP, error)

    def _on_let_go(self, record: TaskRecord, value: Any) -> None:
        self._on_reveal(record, value)
        self._actions.stop(record)  # a cooperative function sees `current_task().cancelled`

    def _on_give_up(self, record: TaskRecord, error: BaseException) -> None:
        self._on_fail(record, error)
        self._actions.stop(record)

    # Dependencies.

    def _link(self, record: TaskRecord) -> None:
        """Make a new task wait for its unfinished dependencies; continue with it if it has none."""
        pushdown = self._pushdown
        cancelled = record.wait_for_dependencies(pushdown.is_held if pushdown.holds else None)
        if cancelled:
            self.cancel(record)
        elif record.unfinished == 0:
            self._all_ended(record)
        elif pushdown.may_follow(record):
            self._push(record)

    def _unlink(self, record: TaskRecord) -> None:
        for dependency in record.call.dependencies:
            if self._pushdown.is_at_rest(dependency) or dependency.done():
                continue
            other = record_of(dependency)
            if other is None or other.scheduler is not self:
                dependency.remove_done_callback(record.dependency_done)
            elif other.dependents is not None:
                other.dependents.pop(record, None)

    def dependency_done(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """Handle the end of a dependency that has no record in this scheduler.

        Such a dependency is a future that this engine did not create, or a future whose value was
        fetched from a backend.
        """
        self._background.guarded(partial(self._foreign_done, record, dependency))

    def _foreign_done(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        if record.pushed or record.state.work is WorkState.WAITING:
            self._dependency_settled(record, dependency)

    def _notify_dependents(self, record: TaskRecord) -> None:
        dependents, record.dependents = record.dependents, None
        cancelled = record.state.future is _CANCELLED
        for dependent in dependents or ():
            if dependent.unfinished > 1 and not cancelled:
                dependent.unfinished -= 1
            elif dependent.pushed or dependent.state.work is _WAITING:
                self._dependency_settled(dependent, record.future)

    def _dependency_settled(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        record.unfinished -= 1
        if dependency.cancelled():
            name = error_messages.future_name(dependency)
            self.cancel(record, f"its dependency {name!r} was canceled")
        elif record.unfinished == 0:
            if not record.pushed:
                self._all_ended(record)
            elif record.state.work is WorkState.RETRY_WAIT:
                self._resume_pushed(record)

    def _all_ended(self, record: TaskRecord) -> None:
        """Handle the end of the last dependency: make the task ready, fail it, or fetch values."""
        if self._fail_with_dependencies(record):
            return
        if not self._pushdown.needs_values(record) or not self._fetch_values(record):
            self._move(record, _RESOLVE)

    def _fail_with_dependencies(self, record: TaskRecord) -> bool:
        """Fail a task if one of its dependencies has failed; all of them have ended.

        Returns:
            True if a dependency has failed.
        """
        failed = [
            d
            for d in self._pushdown.with_values(record)
            if not (isinstance(d, TaskFuture) and d._exception is None)  # fast path for most
            and not d.cancelled()
            and d.exception() is not None
        ]
        if failed:
            self.fail(record, error_messages.of_dependencies(record, failed))
        return bool(failed)

    def _fetch_values(self, record: TaskRecord) -> bool:
        """Start fetching dependencies' values from backends; return False if there are none."""
        for dependency in self._pushdown.remote(record):
            record.unfinished += 1
            dependency.add_done_callback(record.dependency_done)
        return record.unfinished > 0

    # Pushed-down tasks that come back because their backend lacks the value of a dependency.

    def _returned(self, record: TaskRecord, report: Mapping[str, Any]) -> bool:
        """Handle a pushed-down task that failed because its backend lacks a dependency's value.

        The task waits for its dependencies in the engine, and is then submitted with their values.

        Returns:
            True if the task was handled; False if the attempt ended in another way.
        """
        lost = isinstance(report.get("exception"), ReferenceLostError)
        pending = record.state.future is FutureState.PENDING
        if not (lost and pending and Transition.RETRY in record.state.after):
            return False
        self._move(record, Transition.RETRY)
        if record.unfinished == 0:
            self._resume_pushed(record)
        return True

    def _resume_pushed(self, record: TaskRecord) -> None:
        """Submit a task again after `_returned`, now with the values of its dependencies."""
        if any(dependency.cancelled() for dependency in record.call.dependencies):
            self.cancel(record)
        elif not (self._fail_with_dependencies(record) or self._fetch_values(record)):
            record.pushed = False
            self._move(record, Transition.DUE)

    # The end of tasks, and of the engine.

    def _settle(self, record: TaskRecord) -> None:
        """Notify dependents and waiters of a settled task, and close it if its work has ended."""
        if record.dependents is not None:
            self._spread(self._notify_dependents, record)
        if record.state.work in FINISHED:
            self._close(record)
        if self._when_settled and not self.unsettled:
            self._call_when_settled()

    def _call_when_settled(self) -> None:
        calls, self._when_settled = self._when_settled, []
        for call in calls:
            call()

    def _close(self, record: TaskRecord) -> None:
        """Release everything held by a task whose work has ended."""
        self.live.discard(record)
        if record.kept is not None:
            record.kept.release()
        if record.files is not None:
            record.files.release()
        if record.unfinished:
            self._unlink(record)
        if self.recording:
            _note_computed(record)
        record.let_go()
        if record.parent is not None:
            record.parent.children.pop(record, None)
            record.parent = None
        if record.timer is not None or record.limits:
            self._release(record)
        if record.state.future is not _DONE:
            record.clear()
        if record.waiters is not None:
            waiters, record.waiters = record.waiters, None
            for call in waiters:
                call()

    def pending(self) -> set[TaskRecord]:
        """Return the tasks whose futures are not settled."""
        return {record for record in self.live if record.state.future is FutureState.PENDING}

    @property
    def unsettled(self) -> int:
        """Number of tasks and blocks whose futures are not settled."""
        stats = self.stats
        return stats.tasks - stats.done - stats.failed - stats.cancelled if self.live else 0

    def when_settled(self, call: Callable[[], object]) -> None:
        """Call `call` once, as soon as no future is pending."""
        self._when_settled.append(call)

    def abandon(self) -> None:
        """Settle all futures and abandon unfinished work when the engine shuts down."""
        for record in tuple(self.live):
            if record not in self.live:
                continue  # it ended when another task was abandoned
            block = isinstance(record, BlockRecord)
            if block:
                self._actions.stop(record)
            ways = _ABANDON if block or record.attempt.uid in self.inflight else _ABANDON_ENDED
            self._free(record)
            self._move(record, next((way for way in ways if way in record.state.after), ways[0]))
            if not record.future.done():  # an error interrupted its last transition
                self._cancel_future(record)
        self._call_when_settled()

    def _on_abandon(self, record: TaskRecord, _: None) -> None:
        if record.state.future is FutureState.CANCELLED:
            if not record.future.cancelled():
                self._cancel_future(record)
            if self.observed:
                self._observation.publish(record, CANCELED)
        self._settle(record)

    def crash(self, failure: Callable[[TaskRecord], BaseException]) -> None:
        """Fail every unfinished future after an error of the engine itself.

        Args:
            failure: Function that creates the exception for the future of a task.
        """
        self.closing = True
        for record in tuple(self.live):
            if record.future.done():
                continue
            if Transition.GIVE_UP in record.state.after:
                self._move(record, Transition.GIVE_UP, failure(record))
            else:
                self.fail(record, failure(record))
            if not record.future.done():  # the error interrupted its last transition
                self._actions.fail(record, failure(record))
        self._call_when_settled()


def computed(future: TaskFuture[Any]) -> float:
    """Return the time at which the run that computed a result began, in seconds since the epoch.

    The time is infinite for this run. For a block, it is the latest time of the tasks that the
    block has called or waited for before it began, except services, or 0 if there are none.
    """
    link = link_of(future)
    return link.computed if isinstance(link, TaskFacts) else math.inf


def _note_computed(record: TaskRecord) -> None:
    """Set the time of `computed` for a block that has ended, and update that of its block."""
    if isinstance(record, BlockRecord):
        for future in record.call.dependencies:
            if not isinstance(future, TaskFuture):
                record.computed = math.inf  # it may wait for tasks that ran in this run
            elif not is_service(future):
                record.computed = max(record.computed, computed(future))
        if record.children:
            record.computed = math.inf
    if record.parent is not None and not record.call.task.settings.service:
        record.parent.computed = max(record.parent.computed, record.computed)


def _next_backend(record: TaskRecord, tries: Tries) -> str | None:
    """Count a failed attempt on the task's backend; return the next untried backend, or `None`."""
    tried, name = tries.by_backend, record.attempt.backend.name
    tried[name] = tried.get(name, 0) + 1
    return next(
        (other for other in record.call.task.settings.other_backends if other not in tried), None
    )


_ABANDON = (Transition.ABANDON, Transition.CANCEL)
_ABANDON_ENDED = (Transition.STOPPED, Transition.ABANDON, Transition.CANCEL)

Handler = Callable[[Scheduler, TaskRecord, Any], None]
"""Function that carries out the effects of a transition, after the state has changed."""

_ON_PENDING: Final[Mapping[Transition, Handler]] = {
    Transition.RESOLVE: Scheduler._on_resolve,
    Transition.SUBMIT: Scheduler._on_submit,
    Transition.ACCEPT: Scheduler._on_accept,
    Transition.RUN: Scheduler._on_run,
    Transition.SERVE: Scheduler._on_serve,
    Transition.DONE: Scheduler._on_done,
    Transition.HOLD: Scheduler._on_hold,
    Transition.SUBSTITUTE: Scheduler._on_substitute,
    Transition.LET_GO: Scheduler._on_let_go,
    Transition.REVEAL: Scheduler._on_reveal,
    Transition.FAIL: Scheduler._on_fail,
    Transition.RETRY: Scheduler._on_retry,
    Transition.DUE: Scheduler._on_resolve,
    Transition.STOPPED: Scheduler._on_stopped,
    Transition.CANCEL: Scheduler._on_cancel,
    Transition.STOP: Scheduler._on_stop,
    Transition.GIVE_UP: Scheduler._on_give_up,
    Transition.ABANDON: Scheduler._on_abandon,
}
"""Handlers of the transitions of tasks whose futures are pending."""

_ON_SETTLED: Final[Mapping[Transition, Handler]] = {
    Transition.CANCEL: Scheduler._on_cancel_service,
    Transition.STOPPED: Scheduler._on_end_of_settled,
    Transition.ABANDON: Scheduler._on_abandon,
}
"""Handlers of the transitions of tasks whose futures are settled while their work continues."""

_ON_WORK: Final[Mapping[Transition, Handler]] = {Transition.CANCEL: Scheduler._on_cancel_work}
"""Handlers that replace those in `_ON_PENDING` while a backend has the task."""


def _handlers(state: TaskState) -> Mapping[Transition, Handler]:
    if state.future is not FutureState.PENDING:
        return _ON_SETTLED
    with_backend = (WorkState.SUBMITTING, WorkState.SUBMITTED, WorkState.RUNNING)
    return {**_ON_PENDING, **_ON_WORK} if state.work in with_backend else _ON_PENDING


ROWS: Final[Mapping[TaskState, Mapping[Transition, tuple[TaskState, Handler]]]] = {
    state: {event: (after, _handlers(state)[event]) for event, after in state.after.items()}
    for state in STATES.values()
}
"""Next state and handler of each transition, for each state in `rhapsody.engine.core.states`."""
