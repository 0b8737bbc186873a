"""What the parts of one engine share, and the decisions that need several of them.

Attempts that fail are retried or given up here, time-outs are enforced, and work
is stopped. The public face is `rhapsody.engine.workflow`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rhapsody.aio import begun, on_loop
from rhapsody.backends.catalog import normalise
from rhapsody.data import OutputFile
from rhapsody.engine.blocks import Blocks, enclosing_block
from rhapsody.engine.completion import Gate
from rhapsody.engine.files import Stager
from rhapsody.engine.graph import Graph
from rhapsody.engine.life import Event, Future, Work
from rhapsody.engine.limits import Limits
from rhapsody.engine.node import Node
from rhapsody.engine.observe import Failures, Observation, Tally
from rhapsody.engine.preparation import NEW, Preparation, Values
from rhapsody.engine.pushdown import PushDown
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.engine.timers import Clock, Timers
from rhapsody.engine.updates import Updates
from rhapsody.errors import (
    BackendError,
    BackendUnavailableError,
    TaskLostError,
    TaskTimeoutError,
    blame,
    describe_error,
    is_a,
)
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.reports import Stats
from rhapsody.retries import RetryPolicy
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.tasks import Task
    from rhapsody.engine.workflow import WorkflowEngine

T = TypeVar("T")

_LOST = (TaskLostError, BackendUnavailableError)

# Seconds for work over its time to stop, before its future no longer waits for it. Longer
# than backends give a program between SIGTERM and SIGKILL.
_STOPPING = 30.0


class Runtime:
    """The state of one engine. Used on its loop, except where a method says otherwise."""

    def __init__(
        self,
        engine: WorkflowEngine,
        *,
        uid: str,
        clock: Clock,
        hooks: EngineHooks,
        stager: Stager,
        implicit_data: bool,
        retries: RetryPolicy | None,
        lost_retries: int,
        timeout: float | None,
        max_pending: int | None,
        submit_timeout: float | None,
        fail_fast: bool,
        keep_going: bool,
        push_down: bool,
    ) -> None:
        self.engine = engine
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._context.run(enclosing_block.set, None)
        self.uid = uid
        self.uid_prefix: str = uid + "."
        self.clock = clock
        self.hooks = hooks
        self.stager = stager
        self.implicit_data = implicit_data
        self.retries = retries
        self.lost_retries = lost_retries
        self.timeout = timeout
        self.max_pending = max_pending
        self.submit_timeout = submit_timeout
        self.fail_fast = fail_fast
        self.log: logging.Logger = logging.getLogger("rhapsody.engine")
        self.observed: bool = bool(hooks.task_events)
        self.closing: bool = False
        self.interrupted: bool = False
        self.failure: BaseException | None = None  # of the engine's own machinery
        self.stats: Stats = Stats()
        self.timers: Timers = Timers(clock, self.guarded)
        self.limits: Limits = Limits()
        self.tally: Tally = Tally(self.log, uid)
        self.failures: Failures | None = Failures(uid) if keep_going else None
        self.observation: Observation = Observation(self)
        self.observe: Callable[..., None] = self.observation.add
        self.updates: Updates = Updates(self)
        self.gate: Gate = Gate(self)
        self.blocks: Blocks = Blocks(self)
        self.preparation: Preparation = Preparation(self)
        self.values: Callable[[Node], Values] = self.preparation.values
        self.pushdown: PushDown = PushDown(self, push_down)
        self.graph: Graph = Graph(self)
        self.lanes: dict[str, Lane] = {}
        self.default: Lane | None = None
        self._background: set[asyncio.Task[Any]] = set()

    # Places and threads.

    def lane(self, name: str) -> Lane:
        """The lane of an attached backend; names are compared as the registry does.

        Raises:
            ValueError: No backend of that name is attached.
        """
        lane = self.lanes.get(name)
        if lane is None:
            key = normalise(name)
            lane = next((one for own, one in self.lanes.items() if normalise(own) == key), None)
        if lane is None:
            raise ValueError(
                f"no backend {name!r} is attached to this engine; there are: "
                f"{', '.join(map(repr, self.lanes))}. Attach it with "
                "WorkflowEngine.create(backends=[...])"
            )
        return lane

    def route(self, node: Node) -> None:
        """Puts a ready node into the lane that it names, or into the default one."""
        name = node.task.settings.backend
        lane = self.default if name is None else self.lanes[name]
        assert lane is not None
        lane.push(node)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], name: str, *, at_once: bool = False
    ) -> asyncio.Task[T]:
        """Runs a coroutine of the engine's own, whose error ends the engine, loudly."""
        create = begun if at_once else self.loop.create_task
        task: asyncio.Task[T] = create(coroutine, name=name, context=self._context.copy())
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.crashed(task.get_name(), error)

    def crashed(self, where: str, error: BaseException) -> None:
        """The engine's own machinery failed: every unfinished future says so."""
        self.log.critical("engine %s failed in %s", self.uid, where, exc_info=error)
        self.closing = True
        self.failure = error
        for node in tuple(self.graph.live):
            if not node.future.done():
                failure = BackendError(
                    f"engine {self.uid} failed in {where}: {describe_error(error)}"
                )
                failure.__cause__ = error
                if node.step(Event.GIVE_UP):
                    self.graph.set_exception(node, failure)
                    self.graph.settled(node)
                    self.stop_work(node)
                else:
                    self.graph.fail(node, failure)
                if not node.future.done():  # its life was ahead of it
                    node.future.fail(failure)

    def guarded(self, call: Callable[[], object]) -> None:
        """Makes a call of the engine's own from the loop; what it raises ends the engine."""
        try:
            call()
        except Exception as error:  # else the loop would log it and every caller wait
            self.crashed(getattr(call, "__qualname__", repr(call)), error)

    def soon(self, call: Callable[[], object]) -> None:
        """Makes a call of the engine's own in the loop's next turn."""
        self.loop.call_soon(self.guarded, call)

    async def settle_background(self, grace: float) -> None:
        """Waits for the engine's own coroutines, and cancels those that take too long."""
        if self._background:
            _, late = await asyncio.wait(tuple(self._background), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def on_loop(self, call: Callable[[], T]) -> T:
        """Makes a call on the loop's thread and waits for what it returns. Any thread."""
        return on_loop(self.loop, call)

    def call_elsewhere(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """A task was called off the loop's thread: fine inside a block, an error elsewhere."""
        if self.closing:
            raise self.closed_error(task.name)
        if running_loop() is not None:
            raise self.foreign_loop_error(f"task {task.name!r} was called on")
        if not self.loop.is_running():
            raise RuntimeError(
                f"task {task.name!r} was called, but its engine's event loop is not running: "
                "call tasks inside the coroutine that asyncio.run() or run_until_complete() runs"
            )
        if enclosing_block.get() is None:
            raise RuntimeError(
                f"task {task.name!r} was called on thread {threading.current_thread().name!r}; "
                "tasks are called on the thread of the engine's event loop, or inside a "
                "synchronous @flow.block"
            )
        return self.on_loop(partial(task, *args, **kwargs))

    def foreign_loop_error(self, what: str) -> RuntimeError:
        """The error for what happens on a loop that is not the engine's."""
        return RuntimeError(
            f"{what} another event loop than that of engine {self.uid}: an engine belongs to the "
            "loop it was made on; make one here with `await WorkflowEngine.create(...)`"
        )

    def closed_error(self, name: str) -> RuntimeError:
        """The error for a call after the end."""
        if self.failure is not None:
            return RuntimeError(
                f"task {name!r} was called after engine {self.uid} had failed: "
                f"{describe_error(self.failure)}"
            )
        return RuntimeError(
            f"task {name!r} was called after engine {self.uid} was shut down: "
            "make a new one with `await WorkflowEngine.create(...)`"
        )

    # The life of an attempt.

    def started(self, node: Node) -> None:
        """An attempt runs, as far as is known: its time counts from now."""
        self._stop_timer(node)  # of one that was taken to run from its acceptance on
        limit: float | None = None
        if node.task.settings.service:
            limit = node.task.settings.ready_timeout
        elif node.description is not None:
            limit = node.description.get("timeout")
        if limit is not None:
            node.more().timer = self.timers.after(limit, partial(self.over_time, node, limit))

    def ready(self, node: Node, uid: str, information: Any) -> None:
        """A service is ready."""
        if node.uid != uid or not node.step(Event.SERVE):
            self.stats.late += 1
            return
        self._stop_timer(node)
        self.stats.done += 1
        if not node.future.done():
            node.future.set_result(information)
        self.graph.settled(node)

    def attempt_ended(self, node: Node) -> None:
        """A backend has nothing to do with an attempt any more: frees what it held."""
        if self.updates.inflight.pop(node.uid, None) is None:
            return
        assert node.lane is not None
        node.lane.freed(node)
        if node.extra is not None:
            self._stop_timer(node)
            self.give_back(node)

    def give_back(self, node: Node) -> None:
        """Frees the named limits that a node holds."""
        for other in self.limits.give_back(node):
            self.route(other)

    def attempt_failed(self, node: Node, error: BaseException) -> None:
        """An attempt failed: another one, or the end."""
        extra = node.more()
        extra.verdict = None
        policy = node.task.settings.retries or self.retries
        delay: float | None = None
        try:
            if is_a(error, _LOST):
                self.stats.lost += 1
                extra.losses += 1
                own = node.task.settings.lost_retries
                if extra.losses <= (self.lost_retries if own is None else own):
                    delay = 0.0
            elif policy is not None and policy.covers(error):
                extra.failures += 1
                if extra.failures <= policy.attempts:
                    delay = policy.delay(node.attempt)
        except (Exception, SystemExit) as mistake:  # the user's own `wait` raised
            blame(mistake, error, f"`wait` in the retries of {node.named()}")
            error = mistake
        if delay is None or self.closing or not node.step(Event.RETRY):
            self.give_up(node, error)
            return
        self.stats.retried += 1
        if self.observed:
            self.observe(node, TasksMainStates.FAILED, error=error)
        node.stage = NEW
        node.description = None
        extra.timer = self.timers.after(delay, partial(self._retry, node))

    def _retry(self, node: Node) -> None:
        if node.step(Event.DUE):
            node.more().timer = None
            self.route(node)

    def give_up(self, node: Node, error: BaseException) -> None:
        """No attempt is left: the fallback, or failure."""
        value, error = self._fallback(node, error)
        if value is not NO_FALLBACK and node.step(Event.FALL_BACK):
            self.gate.reveal(node, value)
        else:
            self.graph.fail(node, error)

    def _fallback(self, node: Node, error: BaseException) -> tuple[Any, BaseException]:
        """What stands in for the result, `NO_FALLBACK` for nothing, and the error to tell then."""
        fallback = node.task.settings.fallback
        if fallback is NO_FALLBACK or self.closing:
            return NO_FALLBACK, error
        try:
            return fallback(error) if callable(fallback) else fallback, error
        except (Exception, SystemExit) as mistake:  # the user's own fallback raised
            blame(mistake, error, f"the fallback of {node.named()}")
            return NO_FALLBACK, mistake

    def refuse(self, node: Node, error: BaseException) -> None:
        """A task cannot be handed to a backend."""
        if node.life.work is not Work.READY:
            return  # cancelled meanwhile
        if is_a(error, asyncio.CancelledError):
            self.graph.cancel(node)
        else:
            self.give_up(node, error)

    def stopped(
        self,
        node: Node,
        state: TasksMainStates = TasksMainStates.CANCELED,
        error: BaseException | None = None,
        why: str | None = None,
    ) -> None:
        """The work of a settled future has ended, or was cancelled by whomever.

        Args:
            node: Whose work it was.
            state: What observers are told.
            error: Why it ended, where it failed.
            why: What to tell who awaits the future, where that is still pending.
        """
        pending = node.life.future is Future.PENDING
        if not node.step(Event.STOPPED):
            self.stats.late += 1
            return
        if pending:
            self.stats.cancelled += 1
            if not node.future.done():
                node.future.set_cancelled(why)
        told = node.life.future is Future.FAILED or (
            node.life.future is Future.DONE and not node.task.settings.service
        )
        if self.observed and not told:
            self.observe(node, state, error)
        self.graph.settled(node)

    # Stopping work.

    def stop_work(self, node: Node) -> None:
        """Asks the backend to stop what it does for a node that is `canceling`."""
        if node.task.prefix == "block":
            self.blocks.stop(node)
        elif node.lane is not None:
            node.lane.cancel(node)

    def stop_with(self, node: Node, error: BaseException) -> None:
        """Fails a pending task with `error`, stopping its work first where it has any."""
        if node.step(Event.STOP):
            self._stop_timer(node)
            node.more().verdict = error
            node.more().timer = self.timers.after(_STOPPING, partial(self.cannot_stop, node))
            self.stop_work(node)
        else:
            self.graph.fail(node, error)

    def over_time(self, node: Node, limit: float) -> None:
        """A time-out is over: stops the work, or lets go of it where that is impossible."""
        task, lane = node.task, node.lane
        assert lane is not None
        node.more().timer = None
        what = f"{task.name!r} ({node.future.uid})"
        if task.settings.service:
            error = TaskTimeoutError(f"service {what} was not ready within {limit:g} s")
        else:
            error = TaskTimeoutError(f"task {what} ran for longer than its time-out of {limit:g} s")
        if lane.capabilities.cancellation(task.task_kind) == "running":
            self.stop_with(node, error)
            return
        self._let_go(node, error)

    def cannot_stop(self, node: Node) -> None:
        """The backend refused to stop a task that is `canceling`, or has not for too long."""
        verdict = node.more().verdict
        if node.life.future is Future.PENDING and verdict is not None:
            self._let_go(node, verdict)

    def _let_go(self, node: Node, error: BaseException) -> None:
        assert node.lane is not None
        if is_a(error, TaskTimeoutError):
            error = TaskTimeoutError(
                f"{error}; backend {node.lane.name!r} cannot stop it, so the work goes on and "
                "keeps its slot until it ends. Run such functions in processes, which can be "
                'stopped: LocalExecutionBackend("process")'
            )
        value, error = self._fallback(node, error)
        if value is not NO_FALLBACK and node.step(Event.LET_GO):
            self.gate.show(node, value)
        elif node.step(Event.GIVE_UP):
            self.graph.set_exception(node, error)
            self.graph.settled(node)
        else:
            return
        node.lane.cancel(node)  # lets a cooperative function see `current_task().cancelled`

    def stop_all_after(self, failed: Node) -> None:
        """`fail_fast`: the first failure cancels all that is unfinished."""
        why = f"fail_fast: task {failed.task.name!r} ({failed.future.uid}) failed"
        for node in tuple(self.graph.live):
            if node is not failed:
                self.graph.cancel(node, why)

    def cancel_all(self) -> None:
        """Cancels every unfinished node, services that serve included."""
        for node in tuple(self.graph.live):
            self.graph.cancel(node)

    def abandon(self, nodes: Iterable[Node]) -> None:
        """The engine ends and these have not: they are lost."""
        for node in tuple(nodes):
            if node.task.prefix == "block":
                self.blocks.stop(node)
            known = node.uid in self.updates.inflight
            events = (Event.ABANDON,) if known else (Event.STOPPED, Event.ABANDON, Event.CANCEL)
            changed = any(node.step(event) for event in events)
            self.updates.inflight.pop(node.uid, None)
            if not node.future.done():
                self.stats.cancelled += 1
                node.future.set_cancelled()
            if changed and self.observed and node.life.future is Future.CANCELLED:
                self.observe(node, TasksMainStates.CANCELED)
            self.graph.settled(node)

    def drop_sandbox(self, node: Node) -> None:
        """Nobody needs the sandbox of an attempt that left nothing: it was cancelled or lost."""
        outcome = node.future._outcome
        if node.description is not None and (outcome is None or outcome.uid != node.uid):
            self.stager.keep(node.description, succeeded=True)

    def check_outputs(self, node: Node) -> None:
        """Raises where a file that a finished task promised is missing."""
        assert node.lane is not None
        assert node.description is not None
        assert node.extra is not None
        assert node.extra.found is not None
        if node.lane.capabilities.shared_file_system and not node.lane.dry:
            outputs: list[OutputFile] = node.extra.found.outputs
            self.stager.check_outputs(node.description, outputs)

    def _stop_timer(self, node: Node) -> None:
        if node.extra is not None and node.extra.timer is not None:
            node.extra.timer.cancel()
            node.extra.timer = None
