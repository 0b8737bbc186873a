"""What is decided about tasks: the one place that moves them through the table of their lives.

Events come in as calls: a task was called, a backend has ended an attempt, a deadline is over.
The scheduler counts, gives slots and named limits back, tries again, and tells what depends on a
task. It knows no event loop, no backend's library and no file: what is to be done it asks of
`Actions`, by direct calls. Tests give it a stub, and run it without any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rhapsody.engine import error_messages
from rhapsody.engine.actions import Actions, HeldValues
from rhapsody.engine.attempts import LOST, NOT_COUNTED, Attempts, fallback
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.graph import Graph, SerialQueue
from rhapsody.engine.limits import Limits
from rhapsody.engine.record import Extra, TaskRecord
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.engine.states import (
    OVER,
    READY,
    SUBMITTED,
    SUBMITTING,
    FutureState,
    Transition,
    WorkState,
)
from rhapsody.errors import DependencyFailureError, is_a
from rhapsody.plugins.specs import Stats
from rhapsody.states import TasksMainStates

DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED
PENDING, CANCELING, ENDED_WELL, REVEAL = (
    FutureState.PENDING,
    WorkState.CANCELING,
    Transition.DONE,
    Transition.REVEAL,
)

STOPPING = 30.0
"""Seconds that a future waits for work over its time to stop: longer than a program's grace."""


class Scheduler:
    """All unfinished tasks and blocks of one engine, and what becomes of them.

    Args:
        attempts: Says whether a failed one is followed by another.
        max_failures: After how many failures all that is unfinished is cancelled.

    Attributes:
        actions: What it asks things of; set before the first event.
        held: Values that stay with backends.
        observed: Whether states are published.
        recording: Whether results are recorded.
        limited: Whether backends have at most so many tasks at once.
        closing: The engine ends: no task is tried again.
        interrupted: It ends by a signal: futures are left for `abandon`.
        graph: What has not ended, and what waits for what.
        inflight: What backends have, by the uids of the attempts.
        failures_left: How many more failures there may be; `None` where they are not limited.
    """

    def __init__(self, attempts: Attempts, max_failures: int | None = None) -> None:
        self.actions: Actions
        self.held: HeldValues
        self.graph: Graph = Graph(self)
        self.observed: bool = False
        self.recording: bool = False
        self.limited: bool = False
        self.closing: bool = False
        self.interrupted: bool = False
        self.stats: Stats = Stats()
        self.limits: Limits = Limits()
        self.inflight: dict[str, TaskRecord] = {}
        self._attempts = attempts
        self.failures_left: int | None = max_failures
        self._cancelled = SerialQueue(self._stop_cancelled)

    def connect(self, actions: Actions, held: HeldValues) -> None:
        """Says who does what the scheduler asks for; before the first event."""
        self.actions = self.graph.actions = actions
        self.held = self.graph.held = held

    def add(self, record: TaskRecord, parent: TaskRecord | None) -> None:
        """A task or block was called, with the dependencies it has, perhaps inside a block."""
        self.graph.live.add(record)
        if parent is not None:
            record.parent = parent
            parent.more().children[record] = None
        self.stats.tasks += 1
        if self.observed:
            self.actions.publish(record, TasksMainStates.PENDING)
        if record.dependencies:
            self.graph.link(record)
        elif record.task.prefix == "task":
            record.life = READY
            self.actions.route(record)
        else:
            self.begin(record)

    def begin(self, record: TaskRecord) -> None:
        """The dependencies of a task have ended well, and it has all of their values."""
        record.step(Transition.RESOLVE)
        if record.task.prefix == "task":
            self.actions.route(record)
        else:
            self.actions.start_block(record)

    def start_again(self, record: TaskRecord) -> None:
        """A service has ended by itself, and a task takes its place that nobody has called."""
        self.graph.live.add(record)
        self.stats.retried += 1
        self.begin(record)

    def push(self, record: TaskRecord) -> None:
        """A task goes to its backend before its dependencies have ended."""
        record.pushed = True
        self.begin(record)

    def submit(self, batch: Sequence[TaskRecord], backend: BackendHandle) -> list[TaskRecord]:
        """A batch is about to be handed to its backend; gives what was not cancelled meanwhile."""
        inflight, submitted = self.inflight, []
        for record in batch:
            if record.life is not READY:
                continue
            record.life = SUBMITTING
            submitted.append(record)
            inflight[record.uid] = record
            record.future._backend = backend.name
            if not record.task.settings.service:
                backend.occupied += 1
            if self.observed:
                self.actions.publish(record, TasksMainStates.SUBMITTED)
        return submitted

    def accept(self, batch: Sequence[TaskRecord], backend: BackendHandle) -> None:
        """The backend has taken a batch."""
        reports_running = backend.capabilities.reports_running
        for record in batch:
            if record.life is SUBMITTING:
                record.life = SUBMITTED
                if not reports_running:
                    self._started(record)

    def reject(self, record: TaskRecord, error: BaseException) -> None:
        """The backend has not taken a task of the batch; one that it runs already it has."""
        if record.life.work not in (WorkState.SUBMITTING, WorkState.CANCELING):
            return
        self._free(record)
        if record.life.future is FutureState.PENDING:
            verdict = record.extra.verdict if record.extra is not None else None
            self._attempt_failed(record, verdict or error)
        else:
            self._stopped(record)

    def refuse(self, record: TaskRecord, error: BaseException) -> None:
        """A task that is ready cannot be handed to a backend."""
        if record.life.work is not WorkState.READY:
            return  # cancelled meanwhile
        if is_a(error, asyncio.CancelledError):
            self.cancel(record)
        else:
            self._give_up(record, error)

    # What backends and blocks say.

    def run(self, record: TaskRecord) -> bool:
        """An attempt or block runs; `False` where that is no news."""
        if (after := record.life.after.get(Transition.RUN)) is None:
            return False
        record.life = after
        if self.observed:
            self.actions.publish(record, TasksMainStates.RUNNING)
        if record.task.prefix == "task":
            self._started(record)
        return True

    def _started(self, record: TaskRecord) -> None:
        """An attempt runs, as far as is known: its time counts from now."""
        if record.extra is not None and record.extra.timer is not None:
            self._disarm(record)  # of one that was taken to run from its acceptance on
        assert record.description is not None
        settings = record.task.settings
        limit = settings.ready_timeout if settings.service else record.description.get("timeout")
        if limit is not None:
            record.more().timer = self.actions.after(limit, partial(self._over_time, record, limit))

    def serve(self, record: TaskRecord, uid: str, information: Any) -> None:
        """A service is ready, in the attempt of this uid."""
        if record.uid != uid or not record.step(Transition.SERVE):
            self.stats.late += 1
            return
        self._disarm(record)
        self.stats.done += 1
        self.actions.succeed(record, information)
        self._settle(record)

    def end(self, record: TaskRecord, main: TasksMainStates, report: Any) -> None:
        """A backend has ended an attempt, in one of the three ways."""
        self._free(record)
        if record.pushed and main is FAILED and self.held.take_back(record, report):
            return
        if self.interrupted:
            return  # its future is settled when everything has stopped
        actions, life = self.actions, record.life
        if life.future is not PENDING:
            self._end_of_settled(record, main, report)
        elif life.work is CANCELING:
            verdict = record.more().verdict
            assert verdict is not None
            actions.keep(record, report, succeeded=False)
            self._attempt_failed(record, verdict)
        elif main is CANCELED:
            actions.keep(record, report, succeeded=True)
            self._stopped(record, why=error_messages.cancelled_elsewhere(record))
        elif main is DONE and "held" in report and self.held.hold(record, report):
            self._hold(record)
        else:
            value, error = actions.outcome(record, main, report)
            if error is not None:
                self._attempt_failed(record, error)
                del error  # this frame is behind that of its traceback
                return
            record.life = life.after[ENDED_WELL]
            saves = record.extra is not None and record.targets()
            if saves or (self.recording and record.task.settings.cache):
                actions.record(record, value)
            else:
                record.life = record.life.after[REVEAL]
                self._show(record, value)

    def _end_of_settled(self, record: TaskRecord, main: TasksMainStates, report: Any) -> None:
        state, error = CANCELED, None
        if record.life.work is WorkState.SERVING and main is not CANCELED:
            state, error = self.actions.ended_by_itself(record, main, report)
        elif main is DONE and record.life.future is not FutureState.DONE:
            self.stats.late += 1  # the result of a cancelled task
        self.actions.keep(record, report, succeeded=record.life.future is not FutureState.FAILED)
        self._stopped(record, state, error)

    def _hold(self, record: TaskRecord) -> None:
        """The task is done, and its value stays with the backend."""
        record.step(Transition.DONE)
        self.stats.done += 1
        if self.observed:
            self.actions.publish(record, DONE)
        self._settle(record)

    def value_lost(self) -> None:
        """A value that stayed with its backend is lost: its task has failed after all."""
        self.stats.done -= 1
        self.stats.failed += 1

    def end_block(self, record: TaskRecord, value: Any, error: BaseException | None) -> None:
        """A block has ended."""
        if record.life.work is WorkState.LOST:
            return
        if record.life.future is not FutureState.PENDING or is_a(error, asyncio.CancelledError):
            self._stopped(record)  # where it was cancelled before, what it says now is not seen
        elif error is not None:
            self.fail(record, error)
        else:
            record.step(Transition.DONE)
            self.reveal(record, value)

    def _free(self, record: TaskRecord) -> None:
        """A backend has nothing to do with an attempt any more: frees what it held."""
        if self.inflight.pop(record.uid, None) is None:
            return
        if not record.task.settings.service:
            assert record.backend is not None
            record.backend.occupied -= 1
            if self.limited:
                self.actions.room(record)
        if record.extra is not None:
            self._release(record, record.extra)

    def _release(self, record: TaskRecord, extra: Extra) -> None:
        """Takes back a deadline, and gives back places under named limits."""
        if extra.timer is not None:
            self._disarm(record)
        if extra.limits:
            for other in self.limits.give_back(record):
                self.actions.route(other)

    def _disarm(self, record: TaskRecord) -> None:
        if record.extra is not None and record.extra.timer is not None:
            record.extra.timer.cancel()
            record.extra.timer = None

    def recorded(self, record: TaskRecord, value: Any) -> None:
        """A plugin had the result of a task that is ready: it does not run."""
        if record.life is READY:
            self.stats.recorded += 1
            record.native = "reused"
            record.step(Transition.DONE)
            self.reveal(record, value)

    def reveal(self, record: TaskRecord, value: Any) -> None:
        """The result may be seen: sets the future, unless it was cancelled meanwhile."""
        if record.step(Transition.REVEAL):
            self._show(record, value)

    def _show(self, record: TaskRecord, value: Any) -> None:
        self.stats.done += 1
        self.actions.succeed(record, value)
        if self.observed:
            self.actions.publish(record, DONE)
        self._settle(record)

    def _attempt_failed(self, record: TaskRecord, error: BaseException) -> None:
        """An attempt failed: another one, or the end."""
        record.more().verdict = None
        if is_a(error, LOST):
            self.stats.lost += 1
        delay, error = (None, error) if self.closing else self._attempts.next(record, error)
        if delay is None or not record.step(Transition.RETRY):
            self._give_up(record, error)
            return
        self.stats.retried += not is_a(error, NOT_COUNTED)  # one that was held back has not run
        if self.observed:
            self.actions.publish(record, FAILED, error)
        record.start_anew()
        record.more().timer = self.actions.after(delay, partial(self._again, record))

    def _again(self, record: TaskRecord) -> None:
        if record.step(Transition.DUE):
            record.more().timer = None
            self.actions.route(record)

    def requeue(self, record: TaskRecord) -> bool:
        """A task waits once more, as its backend did not have what it needed."""
        if record.life.future is not FutureState.PENDING or not record.step(Transition.RETRY):
            return False
        record.start_anew()
        return True

    def resume_attempt(self, record: TaskRecord) -> None:
        """A task that has come back has what it needs now."""
        if record.step(Transition.DUE):
            record.pushed = False
            self.actions.route(record)

    def _give_up(self, record: TaskRecord, error: BaseException) -> None:
        """No attempt is left: the fallback, or failure."""
        value, error = self._fallback(record, error)
        if value is not NO_FALLBACK and record.step(Transition.FALL_BACK):
            self.reveal(record, value)
        else:
            self.fail(record, error)

    def _fallback(self, record: TaskRecord, error: BaseException) -> tuple[Any, BaseException]:
        return (NO_FALLBACK, error) if self.closing else fallback(record, error)

    def fail(self, record: TaskRecord, error: BaseException) -> None:
        """The task has failed for good."""
        if not record.step(Transition.FAIL):
            self.stats.late += 1
            return
        if record.life.future is FutureState.FAILED:
            self._failed(record, error)
        self._settle(record)

    def _failed(self, record: TaskRecord, error: BaseException) -> None:
        self.stats.failed += 1
        if is_a(error, DependencyFailureError):
            self.stats.skipped += 1
        error = self.actions.fail(record, error)
        if self.observed:
            self.actions.publish(record, FAILED, error)
        if self.failures_left is not None and not is_a(error, NOT_COUNTED):
            self.failures_left -= 1
            if self.failures_left <= 0 and not self.closing:
                self.cancel_all(f"{record.named()} failed, after which all is cancelled")

    # Cancelling, and stopping what runs.

    def cancel(self, record: TaskRecord, msg: Any = None) -> bool:
        """Cancels a task and, at once, all that depends on it; `False` where it was too late."""
        before = record.life
        if before.work is WorkState.SERVING:
            record.step(Transition.CANCEL)
            self.actions.stop(record)
            return True
        if before.future is not FutureState.PENDING or not record.step(Transition.CANCEL):
            return False
        self._disarm(record)
        self.stats.cancelled += 1
        self.actions.cancel(record, msg)
        stop = record.life.work is WorkState.CANCELING and before.work is not WorkState.CANCELING
        self._cancelled.put((record, stop))
        return True

    def _stop_cancelled(self, cancelled: tuple[TaskRecord, bool]) -> None:
        """Stops the work of a cancelled task and what a block has started; tells dependents."""
        record, stop = cancelled
        if stop:
            self.actions.stop(record)
        if self.observed and record.life.work is WorkState.ENDED:
            self.actions.publish(record, CANCELED)
        if record.extra is not None:
            for child in tuple(record.extra.children):
                child.cancel(None)  # by the engine that it belongs to
        self._settle(record)

    def cancel_all(self, msg: Any = None) -> None:
        """Cancels every unfinished task, services that serve included, all for the same reason."""
        with self._cancelled.together():
            for record in tuple(self.graph.live):
                self.cancel(record, msg)

    def _stopped(
        self,
        record: TaskRecord,
        state: TasksMainStates = CANCELED,
        error: BaseException | None = None,
        why: str | None = None,
    ) -> None:
        """The work of a settled future has ended, or was cancelled by whomever.

        Observers are told `state` and `error`, and who still awaits the future is told `why`.
        """
        pending = record.life.future is FutureState.PENDING
        if not record.step(Transition.STOPPED):
            self.stats.late += 1
            return
        if pending:
            self.stats.cancelled += 1
            self.actions.cancel(record, why)
        future, service = record.life.future, record.task.settings.service
        if service and future is FutureState.DONE and state is CANCELED:
            state = DONE  # it was ready, and the program stopped it
        told = future is FutureState.FAILED or (future is FutureState.DONE and not service)
        if self.observed and not told:
            self.actions.publish(record, state, error)
        self._settle(record)

    def stop_with(self, record: TaskRecord, error: BaseException) -> None:
        """Fails a pending task with `error`, stopping its work first where it has any."""
        if record.step(Transition.STOP):
            self._disarm(record)
            record.more().verdict = error
            record.more().timer = self.actions.after(STOPPING, partial(self.cannot_stop, record))
            self.actions.stop(record)
        else:
            self.fail(record, error)

    def _over_time(self, record: TaskRecord, limit: float) -> None:
        """A time-out is over: stops the work, or lets go of it where that is impossible."""
        assert record.backend is not None
        record.more().timer = None
        stops = record.backend.capabilities.cancellation(record.task.task_kind) == "running"
        (self.stop_with if stops else self._let_go)(record, error_messages.over_time(record, limit))

    def cannot_stop(self, record: TaskRecord) -> None:
        """The backend refused to stop a task that is CANCELING, or has not for too long."""
        verdict = record.extra.verdict if record.extra is not None else None
        if record.life.future is FutureState.PENDING and verdict is not None:
            self._let_go(record, verdict)

    def _let_go(self, record: TaskRecord, error: BaseException) -> None:
        value, error = self._fallback(record, error_messages.goes_on(record, error))
        if value is not NO_FALLBACK and record.step(Transition.LET_GO):
            self._show(record, value)
        elif record.step(Transition.GIVE_UP):
            self._failed(record, error)
            self._settle(record)
        else:
            return
        self.actions.stop(record)  # lets a cooperative function see `current_task().cancelled`

    # The end of all.

    def abandon(self) -> None:
        """The engine ends, and what has not by now is lost; every future is settled."""
        for record in tuple(self.graph.live):
            if record.task.prefix == "block":
                self.actions.stop(record)
            known = record.uid in self.inflight
            self._free(record)
            events = (
                (Transition.ABANDON,)
                if known
                else (Transition.STOPPED, Transition.ABANDON, Transition.CANCEL)
            )
            changed = any(record.step(event) for event in events)
            if not record.future.done():
                self.stats.cancelled += 1
                self.actions.cancel(record, None)
            if changed and self.observed and record.life.future is FutureState.CANCELLED:
                self.actions.publish(record, CANCELED)
            self._settle(record)

    def crash(self, failure: Callable[[TaskRecord], BaseException]) -> None:
        """The engine's own machinery failed: every unfinished future gets the error made for it."""
        self.closing = True
        for record in tuple(self.graph.live):
            if record.future.done():
                continue
            if record.step(Transition.GIVE_UP):
                self._failed(record, failure(record))
                self._settle(record)
                self.actions.stop(record)
            else:
                self.fail(record, failure(record))
            if not record.future.done():  # its life was ahead of it
                self.actions.fail(record, failure(record))

    def _settle(self, record: TaskRecord) -> None:
        """The future of a task has been settled: what it held is free if its work has ended."""
        self.graph.settle(record)
        if record.extra is not None and record.life.work in OVER:
            self._release(record, record.extra)
            extra, record.extra = record.extra, None
            for call in extra.waiters:
                call()
