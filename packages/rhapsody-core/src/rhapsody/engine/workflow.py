"""The public class: makes an engine, says what it is doing, ends it.

How functions become tasks is in `rhapsody.engine.decorators`, what happens to a
task in the other modules of this package.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid as uuids
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from rhapsody.aio import end_of
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.context import running_task
from rhapsody.engine.attach import attach, shut_down
from rhapsody.engine.blocks import enclosing_block
from rhapsody.engine.calls import dependency_uids
from rhapsody.engine.decorators import Decorators
from rhapsody.engine.kept_names import KeptNames
from rhapsody.engine.life import Work
from rhapsody.engine.node import Node
from rhapsody.engine.observe import Profiler, accounts
from rhapsody.engine.settings import (
    engine_uid,
    flag,
    profile_path,
    whole_number,
    work_directory,
)
from rhapsody.engine.shell import Shell
from rhapsody.engine.shutdown import settle_everything, stop_everything, tell_forgotten
from rhapsody.engine.signals import registry as signal_registry
from rhapsody.engine.starting import Starting
from rhapsody.engine.timers import Clock, LoopClock
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.reports import Stats, Summary
from rhapsody.quantities import seconds
from rhapsody.retries import RetryPolicy
from rhapsody.staging.files import Stager
from rhapsody.states import StateMapper

log: logging.Logger = logging.getLogger("rhapsody.engine")

BackendLike = BaseExecutionBackend | str
KeepSandboxes = Literal["failed", "all", "none"]


class WorkflowEngine(Decorators, KeptNames):
    """Runs a graph of function tasks, executables, services and blocks on backends.

    Made by `await WorkflowEngine.create(...)` or `async with
    WorkflowEngine.create(...) as flow`. It lives on the event loop it was made
    on; tasks are called there, or in the threads of its synchronous blocks.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "a WorkflowEngine lives on a running event loop: write "
                "`flow = await WorkflowEngine.create(...)` inside the coroutine that "
                "asyncio.run() runs"
            ) from None
        self._settings = settings
        self._ending: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._summary: Summary | None = None
        self._problems: tuple[str, ...] = ()
        self._still_running: tuple[str, ...] = ()
        self._profiler = Profiler()

    @classmethod
    def create(
        cls,
        backend: BackendLike | Sequence[BackendLike] | None = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        *,
        backends: Mapping[str, BackendLike] | Iterable[BackendLike] | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        profile: bool | str | os.PathLike[str] | None = False,
        retries: RetryPolicy | int | None = None,
        lost_retries: int = 3,
        timeout: float | None = None,
        observers: Iterable[object] = (),
        max_pending: int | None = None,
        push_down: bool = True,
        submit_timeout: float | None = 300.0,
        handle_signals: bool = True,
        fail_fast: bool = False,
        keep_going: bool = False,
        keep_sandboxes: KeepSandboxes = "failed",
        uid: str | None = None,
        clock: Clock | None = None,
    ) -> Starting[WorkflowEngine]:
        """Makes an engine and starts its backends.

        Args:
            backend: A backend object, started or not, a registered name, or a list
                of such, of which the first is the default. Without one, the
                embedded local backend, or the noop backend for a dry run.
            dry_run: Runs nothing: every task completes at once with
                `"Dummy Output"`, and the summary holds the graph.
            implicit_data: Whether a task sees what its dependencies left in their
                sandboxes, where they declare no output files.
            backends: Further backends, or all of them under names of your own.
            work_dir: Where sandboxes are made; default `.rhapsody/<engine uid>`
                in the current directory.
            profile: Keeps profiling events in `prof`. A path: writes them there at
                the end, as JSON lines.
            retries: How many more attempts a failed task gets, or a `RetryPolicy`.
            lost_retries: How many more attempts a task gets whose worker, pilot or
                connection was lost.
            timeout: Seconds each attempt of a task may run; services run until they
                are cancelled.
            observers: Objects with methods marked `rhapsody.hookimpl`.
            max_pending: How many tasks are with a backend at once, at most.
                Services and blocks do not count.
            push_down: Whether backends that can wait for dependencies themselves get
                tasks before these are finished, and keep values until they are
                asked for.
            submit_timeout: Seconds a backend may take to accept a batch.
            handle_signals: Shuts down gracefully on SIGINT, SIGTERM and SIGHUP,
                if this is the main thread.
            fail_fast: Whether the first failure cancels all that is unfinished.
            keep_going: Whether leaving the context with the exception of one of the
                engine's own tasks waits for the others first, where they do not
                depend on it, and then gives an account of what failed.
            keep_sandboxes: Which sandboxes stay on disk.
            uid: The engine's uid, which no other engine uses at the same time, in this
                process or in `work_dir`; made up by default. What an earlier run of
                the same uid left in sandboxes stays there, and is not used again.
            clock: Where to read the time, for tests and simulations.

        Returns:
            A coroutine that is an async context manager, too.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, another engine uses the uid, or
                nobody registered a backend.
            RuntimeError: A dry run with a backend that does work.
        """
        return Starting(
            cls._create(
                backend,
                backends,
                dry_run=flag("dry_run")(dry_run),
                implicit_data=flag("implicit_data")(implicit_data),
                work_dir=work_dir,
                profile=profile_path(profile) or bool(profile),
                retries=RetryPolicy.of(retries),
                lost_retries=whole_number("lost_retries", 0)(lost_retries),
                timeout=None if timeout is None else seconds("timeout", timeout),
                observers=observers,
                max_pending=None
                if max_pending is None
                else whole_number("max_pending", 1)(max_pending),
                submit_timeout=None
                if submit_timeout is None
                else seconds("submit_timeout", submit_timeout),
                handle_signals=flag("handle_signals")(handle_signals),
                fail_fast=flag("fail_fast")(fail_fast),
                keep_going=flag("keep_going")(keep_going),
                push_down=flag("push_down")(push_down),
                keep_sandboxes=keep_sandboxes,
                uid=uid,
                clock=clock,
            )
        )

    @classmethod
    async def _create(cls, backend: Any, backends: Any, **settings: Any) -> WorkflowEngine:
        engine = cls(**settings)
        await engine._start(backend, backends, **settings)
        return engine

    async def _start(
        self,
        backend: Any,
        backends: Any,
        *,
        dry_run: bool,
        implicit_data: bool,
        work_dir: str | os.PathLike[str] | None,
        profile: bool | str | os.PathLike[str],
        observers: Iterable[object],
        handle_signals: bool,
        keep_sandboxes: KeepSandboxes,
        uid: str | None,
        clock: Clock | None,
        **limits: Any,
    ) -> None:
        chosen, uid = uid, engine_uid(f"engine.{uuids.uuid4().hex[:8]}" if uid is None else uid)
        if clock is not None and not all(hasattr(clock, n) for n in ("monotonic", "call_at")):
            raise TypeError(f"clock must be a Clock (rhapsody.engine.timers), got {clock!r}")
        if limits["fail_fast"] and limits["keep_going"]:
            raise ValueError(
                "fail_fast=True cancels all at the first failure, and keep_going=True does not: "
                "choose one of them"
            )
        self._work_dir = work_directory(work_dir, uid)
        self._dry_run = dry_run
        self._implicit_data = implicit_data
        self.prof.enabled = bool(profile)
        self._profile_path = None if isinstance(profile, bool) else profile
        hooks = EngineHooks(observers)
        attached: dict[str, BaseExecutionBackend] = {}
        shell = self._shell = Shell(
            self,
            uid=uid,
            clock=clock or LoopClock(self._loop),
            hooks=hooks,
            stager=Stager(self.work_dir, keep_sandboxes, uid=chosen, backends=attached),
            dry_run=dry_run,
            implicit_data=implicit_data,
            **limits,
        )
        self._calls = shell.calls
        ours: list[BaseExecutionBackend] = []
        starting = attach(backend, backends, dry_run=dry_run, work_dir=self.work_dir, ours=ours)
        try:
            attached.update(await (signal_registry.guard(starting) if handle_signals else starting))
            for name, one in attached.items():
                shell.attach(one, name)
            self._began = shell.clock.monotonic()
            if handle_signals:
                signal_registry.add(self, self._interrupt, self._settle)
            for hook in hooks.workflow_started:
                hooks.call(hook, engine=self)
        except BaseException:
            await self._undo(ours)
            raise
        self._forgotten = weakref.finalize(self, tell_forgotten, shell, os.getpid())
        self.prof.event("workflow_started", uid)

    async def _undo(self, ours: list[BaseExecutionBackend]) -> None:
        """The start has failed: shuts `ours` down and leaves the other backends as they were."""
        self._shell.machine.closing = True
        signal_registry.remove(self)
        try:
            await stop_everything(self._shell, skip_backends=True)
        finally:
            await shut_down(ours)
            await self._shell.stager.close()

    # What is going on: read-only views of what is unfinished.

    @property
    def uid(self) -> str:
        """The engine's uid, the beginning of every uid that its backends get."""
        return self._shell.uid

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop the engine lives on."""
        return self._loop

    @property
    def dry_run(self) -> bool:
        """Whether nothing is really run."""
        return self._dry_run

    @property
    def work_dir(self) -> Path:
        """Where sandboxes are made, an absolute path."""
        return self._work_dir

    @property
    def prof(self) -> Profiler:
        """Takes named, timestamped events; keeps them where `profile` was asked for."""
        return self._profiler

    @property
    def log(self) -> logging.Logger:
        """The engine's logger."""
        return log

    @property
    def clock(self) -> Clock:
        """Where the engine reads the time."""
        return self._shell.clock

    @property
    def stats(self) -> Stats:
        """Counters since the engine was made."""
        return self._shell.machine.stats

    @property
    def backend(self) -> BaseExecutionBackend:
        """The default backend."""
        return next(iter(self._shell.backends.values())).backend

    @property
    def backends(self) -> Mapping[str, BaseExecutionBackend]:
        """Every attached backend by its name, the default one first."""
        return MappingProxyType({name: one.backend for name, one in self._shell.backends.items()})

    @property
    def implicit_data_mode(self) -> bool:
        """Whether dependents see the files of their dependencies' sandboxes."""
        return self._implicit_data

    @property
    def task_states_map(self) -> StateMapper:
        """The states of the default backend."""
        states: StateMapper = next(iter(self._shell.backends.values())).states
        return states

    @property
    def components(self) -> Mapping[str, Mapping[str, Any]]:
        """Each unfinished task and block by uid: its type, description and future."""
        return MappingProxyType(
            {
                node.future.uid: MappingProxyType(
                    {
                        "type": node.task.prefix,
                        "description": node.describe(),
                        "future": node.future,
                    }
                )
                for node in self._nodes()
            }
        )

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """Each unfinished task and block by uid: the uids of what it depends on."""
        return MappingProxyType(
            {n.future.uid: dependency_uids(n.dependencies) for n in self._nodes()}
        )

    @property
    def resolved(self) -> frozenset[str]:
        """Uids of unfinished tasks and blocks whose dependencies have all ended."""
        return frozenset(n.future.uid for n in self._nodes() if n.life.work is not Work.WAITING)

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of tasks and blocks that are running now, services included."""
        active = (Work.RUNNING, Work.SERVING, Work.CANCELING)
        return tuple(n.future.uid for n in self._nodes() if n.life.work in active)

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready and not yet handed to a backend."""
        return tuple(n.future.uid for n in self._nodes() if n.life.work is Work.READY)

    def _nodes(self) -> list[Node]:
        live = self._shell.machine.graph.live
        return sorted(live, key=lambda node: (node.task.prefix, node.number))

    # The end.

    async def join(self) -> None:
        """Waits until all that was called has ended, and services are ready.

        What is called meanwhile is waited for, too. Failures raise nothing here: they are
        on the futures. Cancelling this call cancels nothing else.

        Raises:
            RuntimeError: Called inside a block or a task, which would wait for itself, or
                on another event loop than the engine's.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise self._calls.foreign_loop_error("join() was called on")
        block, task = enclosing_block.get(), running_task()
        own_block = block is not None and block.machine is self._shell.machine
        in_block = own_block and block is not None and not block.future.done()
        own = asyncio.current_task()  # such as one that builds a task's command, and has its uid
        uids = [task.uid if task is not None else "", own.get_name() if own is not None else ""]
        if in_block or any(uid.startswith(f"{self.uid}.") for uid in uids):
            raise RuntimeError(
                "join() waits for all that the engine does, and so would wait for the block or "
                "task that calls it: await the futures that you need"
            )
        await self._shell.all_settled()

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancels what is unfinished, stops the work and shuts the backends down.

        Every future is settled when this returns. What had to be cancelled, and what
        could not be stopped, is logged; the latter is in the summary, too. Twice is
        harmless. Cancelling this call does not cancel the shutdown.

        Args:
            skip_execution_backend: Leaves the backends running, for another engine.

        Raises:
            RuntimeError: Called on another event loop than the engine's.
        """
        if self._closed.done():
            return
        if asyncio.get_running_loop() is not self._loop:
            raise self._calls.foreign_loop_error("shutdown() was called on")
        if self._ending is None:
            self._shell.machine.closing = True
            self._ending = self._loop.create_task(
                self._end(skip_execution_backend), name=f"{self.uid} shutdown"
            )
        await end_of(self._ending)
        await signal_registry.told()

    async def _end(self, skip: bool) -> None:
        await self._stop(skip_backends=skip)
        self._settle()

    async def _interrupt(self) -> None:
        """Stops all work because of a signal; the futures stay as they are for now."""
        if self._ending is None:
            self._shell.machine.interrupted = True
            self._ending = self._loop.create_task(self._stop(skip_backends=False))
        await end_of(self._ending)

    async def _stop(self, *, skip_backends: bool) -> None:
        shell = self._shell
        shell.machine.closing = True
        self._problems = await stop_everything(shell, skip_backends=skip_backends)
        if not shell.machine.interrupted:
            self._still_running = settle_everything(shell)
        await shell.stager.close()

    def _settle(self) -> None:
        """The last step: nothing of this engine is left pending, and everybody is told."""
        if self._closed.done():
            return
        shell = self._shell
        if shell.machine.interrupted:
            self._still_running = settle_everything(shell)
        still_running = self._still_running
        for problem in self._problems:
            log.error("engine %s: %s", self.uid, problem)
        if still_running:
            log.warning(
                "engine %s: %d tasks could not be stopped and may still be running: %s",
                self.uid, len(still_running), ", ".join(still_running[:5]),
            )  # fmt: skip
        shell.observation.flush()
        shell.tally.close()
        self._summary = Summary(
            uid=self.uid,
            stats=shell.machine.stats,
            seconds=shell.clock.monotonic() - self._began,
            still_running=still_running,
            problems=self._problems,
            graph=tuple(shell.calls.made),
            unawaited=shell.tally.total,
            backends=accounts(self.backends, log),
        )
        for hook in shell.hooks.workflow_finished:
            shell.hooks.call(hook, engine=self, summary=self._summary)
        self.prof.event("workflow_finished", self.uid)
        if self._profile_path is not None:
            try:
                self.prof.write(self._profile_path)
            except Exception as error:  # a full disk, say, keeps no engine from closing
                log.error("engine %s: no profile was written: %s", self.uid, error)
        signal_registry.remove(self)
        self._forgotten.detach()
        self._closed.set_result(None)

    @property
    def summary(self) -> Summary | None:
        """How the run ended, `None` before it has."""
        return self._summary

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for all that was called, or cancels it because of an exception, and shuts down.

        Raises nothing for tasks that failed: what nobody awaited is logged in one line.
        """
        failures = self._shell.failures
        own = error is not None and failures is not None and failures.include(error)
        try:
            if error is None or own:
                await self.join()
            if own:
                log.error("engine %s: %s", self.uid, failures)
                self._shell.tally.quiet = True
        finally:
            await self.shutdown()
