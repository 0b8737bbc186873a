"""Wiring of one engine: creation of its parts, actions for the scheduler, and the shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from rhapsody.aio import settable
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.engine.attempts.dispatch import Callbacks, Dispatcher
from rhapsody.engine.attempts.memoization import Memoization
from rhapsody.engine.attempts.stage_out import StageOut
from rhapsody.engine.attempts.task_builder import TaskBuilder
from rhapsody.engine.calls.blocks import Blocks, enclosing_block
from rhapsody.engine.calls.services import ArgumentValues, Services
from rhapsody.engine.calls.submission import Submission
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.engine.configuration.settings import TaskDefaults
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.error_messages import annotate, leave_error
from rhapsody.engine.core.events import Failures, Observation, UnawaitedErrors
from rhapsody.engine.core.node_samples import NodeSamples
from rhapsody.engine.core.pushdown import PushDown
from rhapsody.engine.core.record import BlockRecord, TaskRecord
from rhapsody.engine.core.results import Results
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import FutureState, WorkState
from rhapsody.errors import (
    BackendError,
    DependencyFailureError,
    InsufficientWalltimeError,
    describe_error,
)
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import ObservedEngine, Stats
from rhapsody.staging.flow import FilePhase
from rhapsody.staging.stager import Stager
from rhapsody.states import TasksMainStates

log: logging.Logger = logging.getLogger("rhapsody.engine")

GRACE = 10.0
"""Maximum number of seconds that each step of the shutdown waits for work and coroutines to end."""

_TURNS = 20
"""Iterations of the loop in which coroutines of the program resume after the last future."""


class Runtime:
    """Container of the parts of one engine; implements `scheduler.Actions`.

    Created and used on the engine's loop.

    Args:
        engine: The engine object that is passed to hooks.
        uid: The engine's uid.
        options: The engine's options.
        hooks: The plugins' hooks.
        stager: Stager of the engine's files.
        quiet: True if workers do not show the output of functions.
    """

    def __init__(
        self,
        engine: ObservedEngine,
        uid: str,
        options: EngineOptions,
        hooks: EngineHooks,
        stager: Stager,
        *,
        quiet: bool,
    ) -> None:
        context = contextvars.copy_context()
        context.run(enclosing_block.set, None)
        self.uid = uid
        self.hooks = hooks
        self.stager = stager
        self.backends: dict[str, BackendHandle] = {}
        self.dispatchers: dict[str, Dispatcher] = {}
        self._default: Dispatcher
        self._options = options

        background = Background(self.crashed, context, options.clock)
        self.background: Background = background
        self.unawaited: UnawaitedErrors = UnawaitedErrors(log, uid)
        self.held_back: bool = False
        self.failures: Failures | None = Failures(uid) if options.keep_going else None
        self.observation: Observation = Observation(hooks, engine, background)
        recording = bool(hooks.record_results)
        self.results: Results = Results(stager, recording=recording)
        stats = Stats()
        self.pushdown: PushDown = PushDown(
            background,
            self.backends,
            self.unawaited,
            stats,
            allowed=options.push_down
            and options.retries is None
            and options.timeout is None
            and hooks.push_down,
        )
        scheduler = Scheduler(
            self,
            background,
            self.results,
            self.observation,
            self.pushdown,
            stats,
            options,
            announced=bool(hooks.task_calls),
            observed=bool(hooks.task_events),
            recording=recording,
        )
        self.scheduler: Scheduler = scheduler
        self.submission: Submission = Submission(
            uid,
            background.loop,
            scheduler,
            self.backends,
            self.unawaited,
            self.pushdown,
            stager,
            options.profile or TaskDefaults(),
            implicit_data=options.implicit_data,
            keep=options.dry_run,
        )
        self.stage_out: StageOut = StageOut(scheduler, background, stager, self.submission)
        self.services: Services = Services(scheduler)
        values = ArgumentValues(self.services, self.pushdown)
        self.memoization: Memoization = Memoization(
            scheduler,
            hooks,
            engine,
            background,
            self.stage_out,
            values,
            implicit_data=options.implicit_data,
        )
        self.task_builder: TaskBuilder = TaskBuilder(
            uid,
            scheduler,
            background,
            self.memoization,
            self.pushdown,
            self.services,
            values,
            stager,
            hooks,
            engine,
            self.backends,
            options,
            quiet=quiet,
        )
        self.callbacks: Callbacks = Callbacks(uid, scheduler, background, self.observation)
        self.blocks: Blocks = Blocks(scheduler, background, values)
        self.node_samples: NodeSamples = NodeSamples(
            hooks, engine, background, lambda: scheduler.unsettled > 0
        )
        self.observation.when_called = self.node_samples.wake

    def attach(self, backend: BaseExecutionBackend, name: str) -> None:
        """Attach a started backend; the first one is the default.

        If the backend has a clock, the engine uses it, unless the program has passed another one.
        """
        if backend.clock is not None and self._options.clock is None:
            self.background.clock = backend.clock
            self.observation.use_clock(backend.clock)
        attached = self.backends[name] = BackendHandle(backend, name)
        self.pushdown.attach(attached)
        self.submission.attach(attached)
        dispatcher = self.dispatchers[name] = Dispatcher(
            attached,
            self.scheduler,
            self.task_builder,
            self.callbacks,
            self.observation,
            self.background,
            self._options,
        )
        if len(self.dispatchers) == 1:
            self._default = dispatcher
        backend.register_callback(self.callbacks.receive)

    @property
    def cut_short(self) -> bool:
        """True if so many tasks failed that all others were canceled."""
        left = self.scheduler.failures_left
        return left is not None and left <= 0

    # Actions for the scheduler.

    def route(self, record: TaskRecord) -> None:
        """Start a ready block, or queue a ready task for its backend (or the default backend).

        A block that depends on a restarting service starts once the service is ready again.
        """
        if isinstance(record, BlockRecord):
            if not (self.services.any and self.services.hold_back(record)):
                self.blocks.start(record)
            return
        name = record.call.task.settings.backend
        if record.tries is not None and record.tries.elsewhere is not None:
            name = record.tries.elsewhere
        (self._default if name is None else self.dispatchers[name]).push(record)

    def requeue(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Queue a task whose preparation has started, ahead of tasks that are not yet prepared."""
        self.dispatchers[backend.name].resume(record)

    def stop(self, record: TaskRecord) -> None:
        """Request that the work of a task be stopped."""
        if isinstance(record, BlockRecord):
            self.blocks.stop(record)
        else:
            self.dispatchers[record.attempt.backend.name].cancel(record)

    def room(self, record: TaskRecord) -> None:
        """Let another task use the slot that this task has freed on its backend."""
        self.dispatchers[record.attempt.backend.name].wake()

    def save(self, record: TaskRecord, value: Any) -> None:
        """Save the output files of a result."""
        self.stage_out.save(record, value)

    def record(self, record: TaskRecord, value: Any) -> None:
        """Record a result."""
        self.memoization.record(record, value)

    def record_held(self, record: TaskRecord) -> None:
        """Record a result that stays on its backend, if it is worth fetching."""
        self.memoization.record_held(record)

    def fail(self, record: TaskRecord, error: BaseException) -> BaseException:
        """Annotate an exception, and set it on the future unless the future is done.

        With `keep_going`, the exception is also added to the list of failures.

        Returns:
            The exception, or its replacement if it cannot be set on a future.
        """
        error = settable(error, f"task {record.call.task.name!r}")
        if not isinstance(error, DependencyFailureError):
            annotate(record, error)
            leave_error(record, error)
        if self.services.any:
            self.services.explain(record, error)
        if not record.future.done():
            record.future.fail(error)
            self.unawaited.watch(record.future)
            self.held_back |= isinstance(error, InsufficientWalltimeError)
        if self.failures is not None:
            self.failures.add(record, error)
        return error

    def service_ended(
        self, record: TaskRecord, main: TasksMainStates, report: Mapping[str, Any]
    ) -> tuple[TasksMainStates, BaseException | None]:
        """Handle the unexpected end of a ready service, and restart it if it has restarts left."""
        return self.services.ended(record, main, report)

    def service_settled(
        self, record: TaskRecord, value: Any = None, error: BaseException | None = None
    ) -> None:
        """Resume, fail or cancel the tasks that wait for a restarted service."""
        self.services.settled(record, value, error)

    # Faults in the engine itself.

    def crashed(self, where: str, error: BaseException) -> None:
        """Fail every unfinished future because of a fault in the engine itself."""
        log.critical("engine %s: internal error in %s", self.uid, where, exc_info=error)
        self.submission.failure = error

        def failure(_: TaskRecord) -> BackendError:
            made = BackendError(
                f"engine {self.uid}: internal error in {where}: {describe_error(error)}"
            )
            made.__cause__ = error
            return made

        self.scheduler.crash(failure)

    # The end of the engine.

    async def all_settled(self) -> None:
        """Wait until no future is pending, including those of calls made during the wait.

        Coroutines that the program has started but does not await may call tasks as soon as they
        run. After the last future, the loop therefore runs until these coroutines have resumed;
        `asyncio.gather`, `wait_for` and task groups each take a few iterations. Waiting for all
        coroutines would never end if one reports progress in a loop.
        """
        turns = 0
        while turns < _TURNS and self.submission.failure is None:
            if not self.scheduler.unsettled:
                turns += 1
                await asyncio.sleep(0)
                continue
            turns = 0
            settled = self.background.loop.create_future()
            self.scheduler.when_settled(partial(_set, settled))
            await settled

    async def stop_everything(self, *, skip_backends: bool) -> tuple[str, ...]:
        """Stop the work of the engine. Called when its scheduler is `closing`.

        Pending futures are canceled, unless the scheduler is `interrupted`: in that case, they stay
        pending until `settle_everything`.

        Args:
            skip_backends: True to leave the backends running.

        Returns:
            Descriptions of the errors of backends that failed to shut down.
        """
        scheduler, problems = self.scheduler, list[str]()
        if not scheduler.interrupted:
            await self._drain()
            self._warn_of_unfinished()
            scheduler.cancel_all()
            self.pushdown.close()
        self.memoization.stop_looking()
        self.node_samples.stop()
        await asyncio.gather(*(dispatcher.close(GRACE) for dispatcher in self.dispatchers.values()))
        await self.background.settle(GRACE)
        if skip_backends:
            await self._wait_for_stoppable()
        else:
            shutdowns = (backend.shut_down() for backend in self.backends.values())
            problems += [each for each in await asyncio.gather(*shutdowns) if each]
        for attached in self.backends.values():
            unregister = getattr(attached.backend, "unregister_callback", None)
            if unregister is not None:
                unregister(self.callbacks.receive)
        self.callbacks.drain()
        await self._drain()
        if not scheduler.interrupted:
            await self.blocks.drain(GRACE)
        await self.background.settle(GRACE)
        if scheduler.interrupted:
            # Before futures are settled, because settling them removes the sandboxes of the others.
            for record in scheduler.live:
                if record.files is not None and record.files.phase is FilePhase.PLACED:
                    record.files.fail()
        return tuple(problems)

    async def _drain(self) -> None:
        await self.stage_out.drain(GRACE)
        await self.pushdown.drain(GRACE)
        await self.memoization.drain(GRACE)

    async def _wait_for_stoppable(self) -> None:
        records = [record for record in self.scheduler.live if _stoppable(record)]
        if records:
            waiters = [asyncio.ensure_future(record.wait_ended()) for record in records]
            _, late = await asyncio.wait(waiters, timeout=GRACE)
            for waiter in late:
                waiter.cancel()

    def settle_everything(self) -> tuple[str, ...]:
        """Cancel pending futures and give up on work that has not ended.

        Returns:
            The uids of tasks and synchronous blocks that could not be stopped.
        """
        scheduler = self.scheduler
        left = (
            record.attempt.uid
            for record in scheduler.live
            if record.attempt.uid in scheduler.inflight
        )
        on_threads = (f"{self.uid}.{uid}" for uid in self.blocks.on_threads)
        still_running = tuple(sorted((*left, *on_threads)))
        scheduler.abandon()
        self.pushdown.close()
        return still_running

    def _warn_of_unfinished(self) -> None:
        """Log a warning about the tasks that the shutdown cancels."""
        pending = self.scheduler.pending()
        if pending:
            log.warning(
                "engine %s: %d unfinished task%s canceled by the shutdown: %s; to let tasks "
                "finish, `await flow.join()` first",
                self.uid, len(pending), " was" if len(pending) == 1 else "s were", _names(pending),
            )  # fmt: skip

    def warn_of_forgotten(self, process: int) -> None:
        """Log the unfinished tasks of an engine that was never shut down.

        Called when the engine is garbage-collected, or at the end of the program.

        Args:
            process: Id of the process that created the engine. This method is also called in
                forked processes, where it does nothing.
        """
        pending = self.scheduler.pending()
        if pending and os.getpid() == process:
            what = "was never shut down"
            hint = (
                "; `async with WorkflowEngine.create()` waits for them, `await flow.shutdown()` "
                "cancels them"
            )
            if self.scheduler.closing:  # for example, because of a second signal
                what, hint = "was not shut down completely", ""
            log.error(
                "engine %s: %s and has %d unfinished task%s: %s%s", self.uid, what, len(pending),
                "" if len(pending) == 1 else "s", _names(pending), hint,
            )  # fmt: skip


def _names(records: Collection[TaskRecord]) -> str:
    """Return the names of the first five tasks, for messages."""
    first = sorted(records, key=lambda record: (record.call.task.prefix, record.call.number))[:5]
    names = [f"{record.call.task.name!r} ({record.future.uid})" for record in first]
    return ", ".join(names + ["..."] * (len(records) > len(first)))


def _stoppable(record: TaskRecord) -> bool:
    if isinstance(record, BlockRecord) or record.state.work is not WorkState.CANCELING:
        return False
    if record.state.future is FutureState.PENDING:
        return True
    return record.attempt.backend.stops(record.call.task.task_kind, record.attempt.description)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
