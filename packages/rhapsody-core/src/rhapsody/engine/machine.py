"""What is decided about tasks: the one place that moves them through the table of their lives.

Events come in as calls: a task was called, a backend has ended an attempt, a deadline is over.
The machine counts, gives slots and named limits back, tries again, and tells what depends on a
task. It knows no event loop, no backend's library and no file: what is to be done it asks of
`Actions`, by direct calls. Tests give it a stub, and run it without any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rhapsody.engine import failures
from rhapsody.engine.actions import Actions, HeldValues
from rhapsody.engine.attach import Attached
from rhapsody.engine.attempts import LOST, NOT_COUNTED, Attempts, fallback
from rhapsody.engine.graph import Graph, InTurn
from rhapsody.engine.life import OVER, READY, SUBMITTED, SUBMITTING, Event, Future, Work
from rhapsody.engine.limits import Limits
from rhapsody.engine.node import Extra, Node
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.errors import DependencyFailureError, is_a
from rhapsody.plugins.specs import Stats
from rhapsody.states import TasksMainStates

DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED
PENDING, CANCELING, ENDED_WELL, REVEAL = Future.PENDING, Work.CANCELING, Event.DONE, Event.REVEAL

STOPPING = 30.0
"""Seconds that a future waits for work over its time to stop: longer than a program's grace."""


class Machine:
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
        self.inflight: dict[str, Node] = {}
        self._attempts = attempts
        self.failures_left: int | None = max_failures
        self._cancelled = InTurn(self._stop_cancelled)

    def connect(self, actions: Actions, held: HeldValues) -> None:
        """Says who does what the machine asks for; before the first event."""
        self.actions = self.graph.actions = actions
        self.held = self.graph.held = held

    def add(self, node: Node, parent: Node | None) -> None:
        """A task or block was called, with the dependencies it has, perhaps inside a block."""
        self.graph.live.add(node)
        if parent is not None:
            node.parent = parent
            parent.more().children[node] = None
        self.stats.tasks += 1
        if self.observed:
            self.actions.publish(node, TasksMainStates.PENDING)
        if node.dependencies:
            self.graph.link(node)
        elif node.task.prefix == "task":
            node.life = READY
            self.actions.route(node)
        else:
            self.begin(node)

    def begin(self, node: Node) -> None:
        """The dependencies of a node have ended well, and it has all of their values."""
        node.step(Event.RESOLVE)
        if node.task.prefix == "task":
            self.actions.route(node)
        else:
            self.actions.start_block(node)

    def start_again(self, node: Node) -> None:
        """A service has ended by itself, and a node takes its place that nobody has called."""
        self.graph.live.add(node)
        self.stats.retried += 1
        self.begin(node)

    def push(self, node: Node) -> None:
        """A node goes to its backend before its dependencies have ended."""
        node.pushed = True
        self.begin(node)

    def submit(self, batch: Sequence[Node], backend: Attached) -> list[Node]:
        """A batch is about to be handed to its backend; gives what was not cancelled meanwhile."""
        inflight, submitted = self.inflight, []
        for node in batch:
            if node.life is not READY:
                continue
            node.life = SUBMITTING
            submitted.append(node)
            inflight[node.uid] = node
            node.future._backend = backend.name
            if not node.task.settings.service:
                backend.occupied += 1
            if self.observed:
                self.actions.publish(node, TasksMainStates.SUBMITTED)
        return submitted

    def accept(self, batch: Sequence[Node], backend: Attached) -> None:
        """The backend has taken a batch."""
        reports_running = backend.capabilities.reports_running
        for node in batch:
            if node.life is SUBMITTING:
                node.life = SUBMITTED
                if not reports_running:
                    self._started(node)

    def reject(self, node: Node, error: BaseException) -> None:
        """The backend has not taken a node of the batch; one that it runs already it has."""
        if node.life.work not in (Work.SUBMITTING, Work.CANCELING):
            return
        self._free(node)
        if node.life.future is Future.PENDING:
            verdict = node.extra.verdict if node.extra is not None else None
            self._attempt_failed(node, verdict or error)
        else:
            self._stopped(node)

    def refuse(self, node: Node, error: BaseException) -> None:
        """A node that is ready cannot be handed to a backend."""
        if node.life.work is not Work.READY:
            return  # cancelled meanwhile
        if is_a(error, asyncio.CancelledError):
            self.cancel(node)
        else:
            self._give_up(node, error)

    # What backends and blocks say.

    def run(self, node: Node) -> bool:
        """An attempt or block runs; `False` where that is no news."""
        if (after := node.life.after.get(Event.RUN)) is None:
            return False
        node.life = after
        if self.observed:
            self.actions.publish(node, TasksMainStates.RUNNING)
        if node.task.prefix == "task":
            self._started(node)
        return True

    def _started(self, node: Node) -> None:
        """An attempt runs, as far as is known: its time counts from now."""
        if node.extra is not None and node.extra.timer is not None:
            self._disarm(node)  # of one that was taken to run from its acceptance on
        assert node.description is not None
        settings = node.task.settings
        limit = settings.ready_timeout if settings.service else node.description.get("timeout")
        if limit is not None:
            node.more().timer = self.actions.after(limit, partial(self._over_time, node, limit))

    def serve(self, node: Node, uid: str, information: Any) -> None:
        """A service is ready, in the attempt of this uid."""
        if node.uid != uid or not node.step(Event.SERVE):
            self.stats.late += 1
            return
        self._disarm(node)
        self.stats.done += 1
        self.actions.succeed(node, information)
        self._settle(node)

    def end(self, node: Node, main: TasksMainStates, report: Any) -> None:
        """A backend has ended an attempt, in one of the three ways."""
        self._free(node)
        if node.pushed and main is FAILED and self.held.take_back(node, report):
            return
        if self.interrupted:
            return  # its future is settled when everything has stopped
        actions, life = self.actions, node.life
        if life.future is not PENDING:
            self._end_of_settled(node, main, report)
        elif life.work is CANCELING:
            verdict = node.more().verdict
            assert verdict is not None
            actions.keep(node, report, succeeded=False)
            self._attempt_failed(node, verdict)
        elif main is CANCELED:
            actions.keep(node, report, succeeded=True)
            self._stopped(node, why=failures.cancelled_elsewhere(node))
        elif main is DONE and "held" in report and self.held.hold(node, report):
            self._hold(node)
        else:
            value, error = actions.outcome(node, main, report)
            if error is not None:
                self._attempt_failed(node, error)
                del error  # this frame is behind that of its traceback
                return
            node.life = life.after[ENDED_WELL]
            saves = node.extra is not None and node.targets()
            if saves or (self.recording and node.task.settings.cache):
                actions.record(node, value)
            else:
                node.life = node.life.after[REVEAL]
                self._show(node, value)

    def _end_of_settled(self, node: Node, main: TasksMainStates, report: Any) -> None:
        state, error = CANCELED, None
        if node.life.work is Work.SERVING and main is not CANCELED:
            state, error = self.actions.ended_by_itself(node, main, report)
        elif main is DONE and node.life.future is not Future.DONE:
            self.stats.late += 1  # the result of a cancelled task
        self.actions.keep(node, report, succeeded=node.life.future is not Future.FAILED)
        self._stopped(node, state, error)

    def _hold(self, node: Node) -> None:
        """The task is done, and its value stays with the backend."""
        node.step(Event.DONE)
        self.stats.done += 1
        if self.observed:
            self.actions.publish(node, DONE)
        self._settle(node)

    def value_lost(self) -> None:
        """A value that stayed with its backend is lost: its task has failed after all."""
        self.stats.done -= 1
        self.stats.failed += 1

    def end_block(self, node: Node, value: Any, error: BaseException | None) -> None:
        """A block has ended."""
        if node.life.work is Work.LOST:
            return
        if node.life.future is not Future.PENDING or is_a(error, asyncio.CancelledError):
            self._stopped(node)  # where it was cancelled before, what it says now is not seen
        elif error is not None:
            self.fail(node, error)
        else:
            node.step(Event.DONE)
            self.reveal(node, value)

    def _free(self, node: Node) -> None:
        """A backend has nothing to do with an attempt any more: frees what it held."""
        if self.inflight.pop(node.uid, None) is None:
            return
        if not node.task.settings.service:
            assert node.backend is not None
            node.backend.occupied -= 1
            if self.limited:
                self.actions.room(node)
        if node.extra is not None:
            self._release(node, node.extra)

    def _release(self, node: Node, extra: Extra) -> None:
        """Takes back a deadline, and gives back places under named limits."""
        if extra.timer is not None:
            self._disarm(node)
        if extra.limits:
            for other in self.limits.give_back(node):
                self.actions.route(other)

    def _disarm(self, node: Node) -> None:
        if node.extra is not None and node.extra.timer is not None:
            node.extra.timer.cancel()
            node.extra.timer = None

    def recorded(self, node: Node, value: Any) -> None:
        """A plugin had the result of a node that is ready: it does not run."""
        if node.life is READY:
            self.stats.recorded += 1
            node.native = "reused"
            node.step(Event.DONE)
            self.reveal(node, value)

    def reveal(self, node: Node, value: Any) -> None:
        """The result may be seen: sets the future, unless it was cancelled meanwhile."""
        if node.step(Event.REVEAL):
            self._show(node, value)

    def _show(self, node: Node, value: Any) -> None:
        self.stats.done += 1
        self.actions.succeed(node, value)
        if self.observed:
            self.actions.publish(node, DONE)
        self._settle(node)

    def _attempt_failed(self, node: Node, error: BaseException) -> None:
        """An attempt failed: another one, or the end."""
        node.more().verdict = None
        if is_a(error, LOST):
            self.stats.lost += 1
        delay, error = (None, error) if self.closing else self._attempts.next(node, error)
        if delay is None or not node.step(Event.RETRY):
            self._give_up(node, error)
            return
        self.stats.retried += not is_a(error, NOT_COUNTED)  # one that was held back has not run
        if self.observed:
            self.actions.publish(node, FAILED, error)
        node.start_anew()
        node.more().timer = self.actions.after(delay, partial(self._again, node))

    def _again(self, node: Node) -> None:
        if node.step(Event.DUE):
            node.more().timer = None
            self.actions.route(node)

    def come_back(self, node: Node) -> bool:
        """A node waits once more, as its backend did not have what it needed."""
        if node.life.future is not Future.PENDING or not node.step(Event.RETRY):
            return False
        node.start_anew()
        return True

    def go_again(self, node: Node) -> None:
        """A node that has come back has what it needs now."""
        if node.step(Event.DUE):
            node.pushed = False
            self.actions.route(node)

    def _give_up(self, node: Node, error: BaseException) -> None:
        """No attempt is left: the fallback, or failure."""
        value, error = self._fallback(node, error)
        if value is not NO_FALLBACK and node.step(Event.FALL_BACK):
            self.reveal(node, value)
        else:
            self.fail(node, error)

    def _fallback(self, node: Node, error: BaseException) -> tuple[Any, BaseException]:
        return (NO_FALLBACK, error) if self.closing else fallback(node, error)

    def fail(self, node: Node, error: BaseException) -> None:
        """The task has failed for good."""
        if not node.step(Event.FAIL):
            self.stats.late += 1
            return
        if node.life.future is Future.FAILED:
            self._failed(node, error)
        self._settle(node)

    def _failed(self, node: Node, error: BaseException) -> None:
        self.stats.failed += 1
        if is_a(error, DependencyFailureError):
            self.stats.skipped += 1
        error = self.actions.fail(node, error)
        if self.observed:
            self.actions.publish(node, FAILED, error)
        if self.failures_left is not None and not is_a(error, NOT_COUNTED):
            self.failures_left -= 1
            if self.failures_left <= 0 and not self.closing:
                self.cancel_all(f"{node.named()} failed, after which all is cancelled")

    # Cancelling, and stopping what runs.

    def cancel(self, node: Node, msg: Any = None) -> bool:
        """Cancels a node and, at once, all that depends on it; `False` where it was too late."""
        before = node.life
        if before.work is Work.SERVING:
            node.step(Event.CANCEL)
            self.actions.stop(node)
            return True
        if before.future is not Future.PENDING or not node.step(Event.CANCEL):
            return False
        self._disarm(node)
        self.stats.cancelled += 1
        self.actions.cancel(node, msg)
        stop = node.life.work is Work.CANCELING and before.work is not Work.CANCELING
        self._cancelled.put((node, stop))
        return True

    def _stop_cancelled(self, cancelled: tuple[Node, bool]) -> None:
        """Stops the work of a cancelled node and what a block has started; tells dependents."""
        node, stop = cancelled
        if stop:
            self.actions.stop(node)
        if self.observed and node.life.work is Work.ENDED:
            self.actions.publish(node, CANCELED)
        if node.extra is not None:
            for child in tuple(node.extra.children):
                child.cancel(None)  # by the engine that it belongs to
        self._settle(node)

    def cancel_all(self, msg: Any = None) -> None:
        """Cancels every unfinished node, services that serve included, all for the same reason."""
        with self._cancelled.together():
            for node in tuple(self.graph.live):
                self.cancel(node, msg)

    def _stopped(
        self,
        node: Node,
        state: TasksMainStates = CANCELED,
        error: BaseException | None = None,
        why: str | None = None,
    ) -> None:
        """The work of a settled future has ended, or was cancelled by whomever.

        Observers are told `state` and `error`, and who still awaits the future is told `why`.
        """
        pending = node.life.future is Future.PENDING
        if not node.step(Event.STOPPED):
            self.stats.late += 1
            return
        if pending:
            self.stats.cancelled += 1
            self.actions.cancel(node, why)
        future, service = node.life.future, node.task.settings.service
        if service and future is Future.DONE and state is CANCELED:
            state = DONE  # it was ready, and the program stopped it
        told = future is Future.FAILED or (future is Future.DONE and not service)
        if self.observed and not told:
            self.actions.publish(node, state, error)
        self._settle(node)

    def stop_with(self, node: Node, error: BaseException) -> None:
        """Fails a pending task with `error`, stopping its work first where it has any."""
        if node.step(Event.STOP):
            self._disarm(node)
            node.more().verdict = error
            node.more().timer = self.actions.after(STOPPING, partial(self.cannot_stop, node))
            self.actions.stop(node)
        else:
            self.fail(node, error)

    def _over_time(self, node: Node, limit: float) -> None:
        """A time-out is over: stops the work, or lets go of it where that is impossible."""
        assert node.backend is not None
        node.more().timer = None
        stops = node.backend.capabilities.cancellation(node.task.task_kind) == "running"
        (self.stop_with if stops else self._let_go)(node, failures.over_time(node, limit))

    def cannot_stop(self, node: Node) -> None:
        """The backend refused to stop a node that is CANCELING, or has not for too long."""
        verdict = node.extra.verdict if node.extra is not None else None
        if node.life.future is Future.PENDING and verdict is not None:
            self._let_go(node, verdict)

    def _let_go(self, node: Node, error: BaseException) -> None:
        value, error = self._fallback(node, failures.goes_on(node, error))
        if value is not NO_FALLBACK and node.step(Event.LET_GO):
            self._show(node, value)
        elif node.step(Event.GIVE_UP):
            self._failed(node, error)
            self._settle(node)
        else:
            return
        self.actions.stop(node)  # lets a cooperative function see `current_task().cancelled`

    # The end of all.

    def abandon(self) -> None:
        """The engine ends, and what has not by now is lost; every future is settled."""
        for node in tuple(self.graph.live):
            if node.task.prefix == "block":
                self.actions.stop(node)
            known = node.uid in self.inflight
            self._free(node)
            events = (Event.ABANDON,) if known else (Event.STOPPED, Event.ABANDON, Event.CANCEL)
            changed = any(node.step(event) for event in events)
            if not node.future.done():
                self.stats.cancelled += 1
                self.actions.cancel(node, None)
            if changed and self.observed and node.life.future is Future.CANCELLED:
                self.actions.publish(node, CANCELED)
            self._settle(node)

    def crash(self, failure: Callable[[Node], BaseException]) -> None:
        """The engine's own machinery failed: every unfinished future gets the error made for it."""
        self.closing = True
        for node in tuple(self.graph.live):
            if node.future.done():
                continue
            if node.step(Event.GIVE_UP):
                self._failed(node, failure(node))
                self._settle(node)
                self.actions.stop(node)
            else:
                self.fail(node, failure(node))
            if not node.future.done():  # its life was ahead of it
                self.actions.fail(node, failure(node))

    def _settle(self, node: Node) -> None:
        """The future of a node has been settled: what it held is free if its work has ended."""
        self.graph.settle(node)
        if node.extra is not None and node.life.work in OVER:
            self._release(node, node.extra)
            extra, node.extra = node.extra, None
            for call in extra.waiters:
                call()
