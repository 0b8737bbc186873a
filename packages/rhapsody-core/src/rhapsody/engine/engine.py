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
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rhapsody.aio import end_of
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.context import running_task
from rhapsody.engine.backend_handles import attach, shut_down
from rhapsody.engine.blocks import enclosing_block
from rhapsody.engine.compat import KeptNames
from rhapsody.engine.decorators import Decorators
from rhapsody.engine.defaults import with_defaults
from rhapsody.engine.events import accounts
from rhapsody.engine.runtime import Runtime
from rhapsody.engine.settings import (
    current_directory,
    directory,
    engine_uid,
    failures_taken,
    flag,
    new_file,
    whole_number,
)
from rhapsody.engine.shutdown import settle_everything, stop_everything, tell_forgotten
from rhapsody.engine.signals import registry as signal_registry
from rhapsody.engine.stage_out import save_files
from rhapsody.engine.starting import Starting
from rhapsody.engine.timers import Clock, LoopClock
from rhapsody.engine.views import Views
from rhapsody.journal import opening
from rhapsody.observers.builtin import BuiltIn
from rhapsody.observers.progress import Progress
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import Summary
from rhapsody.quantities import seconds
from rhapsody.retries import RetryPolicy, as_policies
from rhapsody.staging.files import Stager
from rhapsody.staging.runs import BASE
from rhapsody.staging.sandboxes import check_keep
from rhapsody.task import TaskFuture

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal

log: logging.Logger = logging.getLogger("rhapsody.engine")

BackendLike = BaseExecutionBackend | str
KeepSandboxes = Literal["results", "failed", "all", "none"]


class WorkflowEngine(Decorators, Views, KeptNames):
    """Runs a graph of function tasks, executables, services and blocks on backends.

    Made by `await WorkflowEngine.create(...)` or `async with
    WorkflowEngine.create(...) as flow`. It lives on the event loop it was made
    on; tasks are called there, or in the threads of its synchronous blocks.
    """

    def __init__(self, *_: Any, **settings: Any) -> None:
        write = (
            "write `async with WorkflowEngine.create(...) as flow:`, or `flow = await "
            "WorkflowEngine.create(...)`, inside the coroutine that asyncio.run() runs"
        )
        if not settings.pop("created", False):
            raise RuntimeError(f"WorkflowEngine(...) starts nothing: {write}")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(f"an engine lives on a running event loop: {write}") from None
        self._settings = settings
        self._ending: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._summary: Summary | None = None
        self._problems: tuple[str, ...] = ()
        self._left_by_error = self._well = False
        self._still_running: tuple[str, ...] = ()

    @classmethod
    @with_defaults
    def create(
        cls,
        backend: BackendLike | Sequence[BackendLike] | None = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        *,
        backends: Mapping[str, BackendLike] | Iterable[BackendLike] | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
        progress: bool | Literal["lines"] | Progress = False,
        retries: RetryPolicy | int | Sequence[RetryPolicy] | None = None,
        lost_retries: int = 3,
        timeout: float | str | None = None,
        observers: Iterable[object] = (),
        max_pending: int | None = None,
        push_down: bool = True,
        submit_timeout: float | str | None = 300.0,
        handle_signals: bool = True,
        fail_fast: bool = False,
        max_failures: int | None = None,
        keep_going: bool = False,
        keep_sandboxes: KeepSandboxes = "results",
        results_dir: str | os.PathLike[str] | None = None,
        journal: bool | str | os.PathLike[str] | Journal = False,
        resume: bool | Literal["auto"] = "auto",
        journal_max_value: int | str | None = None,
        uid: str | None = None,
        clock: Clock | None = None,
        profile: None = None,
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
            work_dir: Where sandboxes are made; default: a directory of the engine's in that of
                the run, which is made when first needed, has the log, and is one for each
                process: `.rhapsody/<UTC time>-<program>-<4 digits>/<engine uid>`.
            trace: A file for all that happens to tasks, and for the events that the program
                gives to `prof`, as JSON lines; made anew, private to the user.
            progress: Shows on standard error what runs: a table that is kept up to date on a
                terminal or in a notebook, a line every ten seconds elsewhere and with `"lines"`;
                at the end an account of the run. While there is a table, what tasks print is
                shown above it when each ends; with `"lines"` what programs print is shown then.
            retries: How many more attempts a failed task gets, or a `RetryPolicy`, or several,
                of which the first that covers a failure counts it.
            lost_retries: How many more attempts a task gets whose worker, pilot or
                connection was lost.
            timeout: Time that each attempt of a task may run, in seconds or as text such as
                `"3 min"` or `"1h30m"`; services run until they are cancelled.
            observers: Objects with methods marked `rhapsody.hookimpl`.
            max_pending: How many tasks are with a backend at once, at most.
                Services and blocks do not count.
            push_down: Whether backends that can wait for dependencies themselves get
                tasks before these are finished, and keep values until they are
                asked for.
            submit_timeout: Time that a backend may take to accept a batch, as for `timeout`.
            handle_signals: Shuts down gracefully on SIGINT, SIGTERM and SIGHUP,
                if this is the main thread.
            fail_fast: Whether the first failure cancels all that is unfinished.
            max_failures: After how many failed tasks all that is unfinished is cancelled; those
                that did not run because of another, or were held back, do not count. Default:
                never.
            keep_going: Whether leaving the context with the exception of one of the
                engine's own tasks waits for the others first, where they do not
                depend on it, and then gives an account of what failed.
            keep_sandboxes: Which sandboxes stay on disk: `"results"`: those of failed tasks,
                and of others the declared outputs; `"failed"`: those of failed tasks; `"all"`;
                or `"none"`.
            results_dir: What the places of saved files are relative to, see `OutputFile`;
                default: the current directory.
            journal: A file that keeps the results of tasks, see `resume`; `True`: that of this
                program and its arguments, `.rhapsody/journals/<program>-<digits>.sqlite`. Private
                to the user; on a local file system several engines may use one at a time.
            resume: Whether results that the last run with this journal has kept are used in place
                of running the same tasks again; `"auto"`: where that run did not end well.
            journal_max_value: Bytes, or text such as `"16 MiB"`, that a result may have in the
                journal; a larger one is not kept. Default: any number.
            uid: The engine's uid, which no other engine uses at the same time, in this
                process or in `work_dir`; made up by default. What an earlier run of
                the same uid left in sandboxes stays there, and is not used again.
            clock: Where to read the time, for tests and simulations.
            profile: For named profiles, which do not exist yet.

        Returns:
            A coroutine that is an async context manager, too.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, another engine uses the uid, or
                nobody registered a backend.
            RuntimeError: A dry run with a backend that does work.
            JournalError: The journal cannot be used: it is damaged, say, or others may write it.
        """
        if profile not in (None, False):
            raise ValueError(
                f"profile={profile!r}: there are no profiles yet; the file of a run's events is "
                'trace="run.jsonl"'
            )
        return Starting(
            cls._create(
                backend,
                backends,
                dry_run=flag("dry_run")(dry_run),
                implicit_data=flag("implicit_data")(implicit_data),
                work_dir=work_dir,
                trace=None if trace is None else new_file("trace", trace),
                progress=progress,
                retries=as_policies(retries),
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
                max_failures=None
                if max_failures is None
                else whole_number("max_failures", 1)(max_failures),
                keep_going=flag("keep_going")(keep_going),
                push_down=flag("push_down")(push_down),
                keep_sandboxes=check_keep(keep_sandboxes),
                results_dir=None
                if results_dir is None
                else directory("results_dir", results_dir, ""),
                journal=opening.checked(journal, resume, journal_max_value),
                uid=uid,
                clock=clock,
            )
        )

    @classmethod
    async def _create(cls, backend: Any, backends: Any, **settings: Any) -> WorkflowEngine:
        engine = cls(created=True, **settings)
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
        trace: Path | None,
        progress: bool | Literal["lines"] | Progress,
        observers: Iterable[object],
        handle_signals: bool,
        keep_sandboxes: KeepSandboxes,
        results_dir: Path | None,
        journal: opening.Given,
        uid: str | None,
        clock: Clock | None,
        **limits: Any,
    ) -> None:
        chosen, uid = uid, engine_uid(f"engine.{uuids.uuid4().hex[:8]}" if uid is None else uid)
        if clock is not None and not all(hasattr(clock, n) for n in ("monotonic", "call_at")):
            raise TypeError(f"clock must be a Clock (rhapsody.engine.timers), got {clock!r}")
        limits["max_failures"] = failures_taken(
            limits.pop("fail_fast"), limits["max_failures"], limits["keep_going"]
        )
        self._dry_run = dry_run
        self._implicit_data = implicit_data
        self._built_in = BuiltIn(trace, progress, None if dry_run else journal)
        attached: dict[str, BaseExecutionBackend] = {}
        try:
            hooks = EngineHooks(observers, self._built_in.observers)
            stager = Stager(
                directory("work_dir", work_dir, BASE),
                keep_sandboxes,
                in_run=uid if work_dir is None else None,
                uid=chosen,
                backends=attached,
                results_dir=results_dir,
            )
        except BaseException:
            self._built_in.close()
            raise
        shell = self._shell = Runtime(
            self,
            uid=uid,
            clock=clock or LoopClock(self._loop),
            hooks=hooks,
            stager=stager,
            here=current_directory(),
            dry_run=dry_run,
            implicit_data=implicit_data,
            quiet=self._built_in.shows_output,
            **limits,
        )
        self._calls = shell.calls
        if self._built_in.task_log is not None:
            shell.observation.calls = self._built_in.task_log.calls
        ours: list[BaseExecutionBackend] = []
        starting = attach(backend, backends, dry_run=dry_run, stager=stager, ours=ours)
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
        self._shell.scheduler.closing = True
        signal_registry.remove(self)
        try:
            await stop_everything(self._shell, skip_backends=True)
        finally:
            await shut_down(ours)
            await self._shell.stager.close()
            self._shell.stager.leave()
            self._built_in.close()

    async def save(
        self, future: TaskFuture[Any], place: str | os.PathLike[str], name: str | None = None
    ) -> list[Path]:
        """Puts files that a task left in its sandbox where you want them; waits for the task.

        For files and directories whose place was not planned, see `OutputFile`. A cancellation
        leaves those that were saved by then.

        Args:
            future: The task's.
            place: A directory to put them in, where it ends in `/` or is one; otherwise the file
                itself. Directories are always put into it. Relative to `results_dir`, or
                absolute.
            name: The name of a file or directory in the sandbox; default: all that the task
                declares.

        Returns:
            Where they are.

        Raises:
            DataError: There is no such file, or it cannot be saved there.
            TypeError: Not the future of a task.
            Exception: What the task raised.
        """
        return await save_files(self._shell.stager, self._shell.backends, future, place, name)

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
        own_block = block is not None and block.scheduler is self._shell.scheduler
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
            self._shell.scheduler.closing = True
            self._ending = self._loop.create_task(
                self._end(skip_execution_backend), name=f"{self.uid} shutdown"
            )
        await end_of(self._ending)
        await signal_registry.told()

    async def _end(self, skip: bool) -> None:
        if skip:
            log.warning(
                "engine %s: skip_execution_backend=True leaves %s running; "
                "`await backend.shutdown()` ends a backend",
                self.uid, ", ".join(map(repr, self.backends)),
            )  # fmt: skip
        await self._stop(skip_backends=skip)
        self._settle()

    async def _interrupt(self) -> None:
        """Stops all work because of a signal; the futures stay as they are for now."""
        if self._ending is None:
            self._shell.scheduler.interrupted = True
            self._ending = self._loop.create_task(self._stop(skip_backends=False))
        await end_of(self._ending)

    async def _stop(self, *, skip_backends: bool) -> None:
        shell = self._shell
        shell.scheduler.closing = True
        self._problems = await stop_everything(shell, skip_backends=skip_backends)
        if not shell.scheduler.interrupted:
            self._still_running = settle_everything(shell)
        failed = shell.tally.has_unseen() or shell.cut_short or self._left_by_error
        self._well = not (failed or shell.held_back or shell.scheduler.interrupted)
        await shell.stager.close(well=self._well)

    def _settle(self) -> None:
        """The last step: nothing of this engine is left pending, and everybody is told."""
        if self._closed.done():
            return
        shell = self._shell
        if shell.scheduler.interrupted:
            self._still_running = settle_everything(shell)
        still_running = self._still_running
        for problem in self._problems:
            log.error("engine %s: %s", self.uid, problem)
        if still_running:
            log.warning(
                "engine %s: could not be stopped and may still be running (%d in all): %s",
                self.uid, len(still_running), ", ".join(still_running[:5]),
            )  # fmt: skip
        shell.observation.flush()
        shell.tally.quiet |= self._built_in.shows_failures
        shell.tally.close()
        self._summary = Summary(
            uid=self.uid,
            stats=shell.scheduler.stats,
            seconds=shell.clock.monotonic() - self._began,
            still_running=still_running,
            problems=self._problems,
            graph=self.graph,
            unawaited=shell.tally.total,
            backends=accounts(self.backends, log),
            results=self.results,
            stale=tuple(
                file
                for file in shell.calls.promises.stale(self.results)
                if not shell.stager.results.places.is_read(file.path)
            ),
            disk_use=shell.stager.disk_use,
            cut_short=shell.cut_short,
            held_back=shell.held_back,
        )
        for hook in shell.hooks.workflow_finished:
            shell.hooks.call(hook, engine=self, summary=self._summary)
        self.prof.event("workflow_finished", self.uid)
        interrupted = shell.scheduler.interrupted
        self._built_in.close("interrupted" if interrupted else "done" if self._well else "failed")
        signal_registry.remove(self)
        self._forgotten.detach()
        shell.stager.leave()
        self._closed.set_result(None)

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
        self._left_by_error = error is not None
        own = error is not None and failures is not None and failures.include(error)
        try:
            if error is None or own:
                await self.join()
            if own and not self._built_in.shows_failures:
                log.error("engine %s: %s", self.uid, failures)
                self._shell.tally.quiet = True
        finally:
            await self.shutdown()
