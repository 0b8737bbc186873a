"""Around the machine: the parts of one engine, made and connected, that do what it decides."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rhapsody.aio import settable
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.engine.attach import Attached
from rhapsody.engine.attempts import Attempts
from rhapsody.engine.background import Background
from rhapsody.engine.blocks import Blocks, enclosing_block
from rhapsody.engine.calls import Calls
from rhapsody.engine.held import PushDown
from rhapsody.engine.lanes import Lane
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.notes import annotate, leave_error
from rhapsody.engine.observe import Failures, Observation, Tally
from rhapsody.engine.outcomes import Outcomes
from rhapsody.engine.preparation import Preparation
from rhapsody.engine.recording import Recording
from rhapsody.engine.saving import Saving
from rhapsody.engine.services import Services
from rhapsody.engine.timers import Clock, Timer, Timers
from rhapsody.engine.updates import Updates
from rhapsody.errors import (
    BackendError,
    DependencyFailureError,
    TaskHeldBackError,
    describe_error,
    is_a,
)
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import ObservedEngine, Recorded
from rhapsody.retries import RetryPolicy
from rhapsody.staging.files import Stager

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Shell:
    """The parts of one engine, and what the machine asks of them (`engine.actions.Actions`).

    Made on the engine's loop, and used there.

    Args:
        engine: What plugins are told is the engine.
        uid: Its uid.
        clock: Where the time is read.
        hooks: The plugins' hooks.
        stager: Its files.
        here: The current directory when it is made, `None` where that was removed.
        dry_run: Whether calls are kept for the summary.
        implicit_data: See `WorkflowEngine.create`, as for the others.
        retries: As there.
        lost_retries: As there.
        timeout: As there.
        max_pending: As there.
        submit_timeout: As there.
        max_failures: After how many failures all that is unfinished is cancelled.
        keep_going: As there.
        push_down: As there.
        quiet: Whether workers show nothing of what functions print.
    """

    def __init__(
        self,
        engine: ObservedEngine,
        *,
        uid: str,
        clock: Clock,
        hooks: EngineHooks,
        stager: Stager,
        here: str | None,
        dry_run: bool,
        implicit_data: bool,
        retries: Sequence[RetryPolicy] | None,
        lost_retries: int,
        timeout: float | None,
        max_pending: int | None,
        submit_timeout: float | None,
        max_failures: int | None,
        keep_going: bool,
        push_down: bool,
        quiet: bool,
    ) -> None:
        context = contextvars.copy_context()
        context.run(enclosing_block.set, None)
        self.uid = uid
        self.clock = clock
        self.hooks = hooks
        self.stager = stager
        self.backends: dict[str, Attached] = {}
        self.lanes: dict[str, Lane] = {}
        self._default: Lane
        self._max_pending = max_pending
        self._submit_timeout = submit_timeout

        machine: Machine = Machine(Attempts(retries, lost_retries), max_failures)
        self.machine: Machine = machine
        machine.observed = bool(hooks.task_events)
        machine.recording = bool(hooks.record_results)
        machine.limited = max_pending is not None
        background = Background(self.crashed, context)
        self.background: Background = background
        self.timers: Timers = Timers(clock, background.guarded)
        self.tally: Tally = Tally(log, uid)
        self.held_back: bool = False
        self.failures: Failures | None = Failures(uid) if keep_going else None
        self.observation: Observation = Observation(hooks, engine, clock, background.soon)
        self.calls: Calls = Calls(
            uid,
            background.loop,
            machine,
            self.backends,
            self.tally,
            here=here,
            results_dir=stager.results.directory,
            discard=stager.discard,
            keep=dry_run,
        )
        self.pushdown: PushDown = PushDown(
            machine,
            background,
            self.backends,
            plain=retries is None and timeout is None and hooks.push_down,
            wanted=push_down,
            unseen=self.tally.watch,
        )
        self.recording: Recording = Recording(
            machine,
            hooks,
            engine,
            background,
            self._resume_own,
            self._found,
            lambda node, stands_in: self.preparation.values(node, stands_in),
            implicit_data=implicit_data,
        )
        self.services: Services = Services(machine)
        self.preparation: Preparation = Preparation(
            uid,
            machine,
            background,
            self.recording,
            self.pushdown,
            self.services,
            stager,
            hooks,
            engine,
            self.backends,
            self.resume,
            timeout=timeout,
            lost_retries=lost_retries,
            implicit_data=implicit_data,
            quiet=quiet,
        )
        self.updates: Updates = Updates(uid, machine, background, self.crashed)
        self.blocks: Blocks = Blocks(machine, background, self.preparation.values)
        self.outcomes: Outcomes = Outcomes(stager, recording=machine.recording)
        self.saving: Saving = Saving(
            machine,
            background,
            stager,
            self.recording.record,
            self._resume_own,
            self.calls,
        )

        # What the machine asks for, of those who do it.
        self.after: Callable[[float, Callable[[], object]], Timer] = self.timers.after
        self.outcome: Callable[..., tuple[Any, Any]] = self.outcomes.read
        self.keep: Callable[..., None] = self.outcomes.keep
        self.leave: Callable[[Node], None] = self.outcomes.leave
        self.ended_by_itself: Callable[..., tuple[Any, Any]] = self.services.ended_by_itself
        self.record: Callable[[Node, Any], None] = self.saving.record
        self.publish: Callable[..., None] = self.observation.add
        machine.connect(self, self.pushdown)

    def attach(self, backend: BaseExecutionBackend, name: str) -> None:
        """Takes in a started backend; the first one is the default."""
        attached = self.backends[name] = Attached(backend, name)
        lane = self.lanes[name] = Lane(
            attached,
            self.machine,
            self.preparation,
            self.updates,
            self.pushdown,
            self.background,
            max_pending=self._max_pending,
            submit_timeout=self._submit_timeout,
        )
        if len(self.lanes) == 1:
            self._default = lane
        backend.register_callback(self.updates.receive)

    @property
    def cut_short(self) -> bool:
        """Whether so many tasks failed that all others were cancelled."""
        left = self.machine.failures_left
        return left is not None and left <= 0

    # What the machine asks for.

    def route(self, node: Node) -> None:
        """Puts a ready node into the lane that it names, or into the default one."""
        extra, name = node.extra, node.task.settings.backend
        if extra is not None and extra.elsewhere is not None:
            name = extra.elsewhere
        (self._default if name is None else self.lanes[name]).push(node)

    def resume(self, node: Node, backend: Attached) -> None:
        """Puts a node whose preparation goes on into its lane, before those that have not begun."""
        self.lanes[backend.name].resume(node)

    def _resume_own(self, node: Node) -> None:
        assert node.backend is not None
        self.resume(node, node.backend)

    def _found(self, node: Node, recorded: Recorded) -> None:
        self.saving.restore(node, recorded)

    def start_block(self, node: Node) -> None:
        """Runs a block whose dependencies have ended, once its services are ready again."""
        if not (self.services.any and self.services.hold_back(node)):
            self.blocks.start(node)

    def stop(self, node: Node) -> None:
        """Asks for the work of a node to be stopped."""
        if node.task.prefix == "block":
            self.blocks.stop(node)
        elif node.backend is not None:
            self.lanes[node.backend.name].cancel(node)

    def room(self, node: Node) -> None:
        """The backend that had this node has room for another task."""
        assert node.backend is not None
        self.lanes[node.backend.name].wake()

    def follow(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        """Has the machine told when a future is done that is not the engine's."""
        dependency.add_done_callback(_Follower(self, node))

    def unfollow(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        """Takes `follow` back."""
        dependency.remove_done_callback(_Follower(self, node))

    def succeed(self, node: Node, value: Any) -> None:
        """Gives a future its result."""
        if not node.future.done():
            node.future.set_result(value)
        else:
            self.services.ready_again(node, value)

    def fail(self, node: Node, error: BaseException) -> BaseException:
        """Gives a future its exception, and keeps account of it."""
        error = settable(error, f"task {node.task.name!r}")
        if not is_a(error, DependencyFailureError):
            annotate(node, error)
            leave_error(node, error)
        if self.services.any:
            self.services.explain(node, error)
        if not node.future.done():
            node.future.fail(error)
            self.tally.watch(node.future)
            self.held_back |= is_a(error, TaskHeldBackError)
        else:
            self.services.failed(node, error)
        if self.failures is not None:
            self.failures.add(node, error)
        return error

    def cancel(self, node: Node, msg: Any) -> None:
        """Cancels a future."""
        if not node.future.done():
            node.future.set_cancelled(msg)
        else:
            self.services.cancelled(node)

    # Faults of our own.

    def crashed(self, where: str, error: BaseException) -> None:
        """The engine's own machinery failed: every unfinished future says so."""
        log.critical("engine %s failed in %s", self.uid, where, exc_info=error)
        self.calls.failure = error

        def failure(_: Node) -> BackendError:
            made = BackendError(f"engine {self.uid} failed in {where}: {describe_error(error)}")
            made.__cause__ = error
            return made

        self.machine.crash(failure)

    async def all_settled(self) -> None:
        """Waits until no future is pending; those of calls made meanwhile count."""
        graph = self.machine.graph
        while pending := graph.pending():
            done = self.background.loop.create_future()
            tell: Callable[[], object] = partial(_set, done)
            join = graph.when_settled(pending, tell)
            try:
                await done
            finally:
                graph.forget(join)


class _Follower:
    """Tells the machine that a future is done that is not the engine's."""

    __slots__ = ("_node", "_shell")

    def __init__(self, shell: Shell, node: Node) -> None:
        self._shell = shell
        self._node = node

    def __call__(self, dependency: asyncio.Future[Any]) -> None:
        shell = self._shell
        tell = partial(shell.machine.graph.foreign_done, self._node, dependency)
        shell.background.guarded(tell)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Follower) and other._node is self._node

    def __hash__(self) -> int:
        return hash(self._node)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
