"""`WorkflowEngine`, the public class of the engine, and `rhapsody.run`.

`rhapsody.engine.functions.task_function` and `rhapsody.engine.calls.submission` turn calls into
tasks, and `rhapsody.engine.core.scheduler` manages the tasks from then on.

A `main(flow)` that is not a coroutine function runs on a separate thread, as a synchronous block
does, because the engine needs the thread of its loop. Such a function is not a block: it is not
part of the graph, and an exception that it raises is an error of the program, not a failed task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import re
import sys
import uuid as uuids
import weakref
from asyncio import _get_running_loop as running_loop
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from types import CoroutineType, MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from rhapsody.aio import Clock, end_of, settable
from rhapsody.backends.base import BaseExecutionBackend, Session
from rhapsody.cards import ACTIVE, IDLE, Card
from rhapsody.compat import OlderNames
from rhapsody.context import running_task
from rhapsody.data import SavedFile
from rhapsody.engine.attempts.stage_out import save_files
from rhapsody.engine.attempts.task_builder import builds_command
from rhapsody.engine.calls.blocks import calls_tasks, enclosing_block
from rhapsody.engine.calls.submission import current_scope
from rhapsody.engine.configuration.defaults import takes_options
from rhapsody.engine.configuration.options import (
    BackendLike,
    EngineOptions,
    EngineSettings,
    KeepSandboxes,
    runs_directory,
)
from rhapsody.engine.configuration.settings import (
    Settings,
    TaskDefaults,
    TaskSettings,
    whole_number,
)
from rhapsody.engine.core.backend_handles import attach, shut_down
from rhapsody.engine.core.events import Profiler, accounts
from rhapsody.engine.core.record import TaskRecord, record_of
from rhapsody.engine.core.signals import registry as signal_registry
from rhapsody.engine.core.states import WorkState
from rhapsody.engine.functions.closures import copier_of_closures
from rhapsody.engine.functions.task_function import (
    BlockDecorator,
    CallKind,
    Command,
    ExecutableDecorator,
    FunctionDecorator,
    TaskFunction,
    definition_settings,
    make_task,
)
from rhapsody.engine.runtime import Runtime
from rhapsody.errors import is_closed_pipe
from rhapsody.identity import AttemptId
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import Stats, Summary, UsageError
from rhapsody.resources import seconds
from rhapsody.sdk.modules import Origins
from rhapsody.sdk.runner import worker_values
from rhapsody.sdk.runs import BASE
from rhapsody.sdk.threads import in_thread, start_thread
from rhapsody.sdk.value_handles import WorkerValueDecorator, WorkerValueFactory
from rhapsody.staging.stager import Stager
from rhapsody.states import StateMapper, TasksMainStates
from rhapsody.task import RetryPolicy, TaskFuture, is_async

if TYPE_CHECKING:
    from rich.table import Table

log: logging.Logger = logging.getLogger("rhapsody.engine")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_NO_FUNCTION: Any = object()
"""Default of the parameter `function`, for decorators that are called with settings only."""

_HOW_TO_CREATE = (
    "write `async with WorkflowEngine.create(...) as flow:`, or `flow = await "
    "WorkflowEngine.create(...)`, in the coroutine passed to asyncio.run()"
)


class WorkflowEngine(OlderNames):
    """Workflow engine, which runs a graph of function tasks, executables, services and blocks.

    Create an engine with `await WorkflowEngine.create(...)` or `async with
    WorkflowEngine.create(...) as flow`. The engine belongs to the event loop on which it was
    created. Call its tasks on that loop's thread, or on the threads of its synchronous blocks.
    """

    _pickle_advice: ClassVar[str] = (
        "only the program and blocks have the engine: pass data to the function, or make it a "
        "block with @flow.block"
    )

    def __init__(self, options: EngineOptions | None = None, /, *_: Any, **__: Any) -> None:
        if not isinstance(options, EngineOptions):
            raise RuntimeError(f"WorkflowEngine(...) does not start an engine: {_HOW_TO_CREATE}")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(f"an engine needs a running event loop: {_HOW_TO_CREATE}") from None
        self._options = options
        self._ending: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._finishing: list[asyncio.Task[None]] = []
        self._summary: Summary | None = None
        self._problems: tuple[str, ...] = ()
        self._left_by_error = self._reader_has_exited = self._well = False
        self._last_shown = _last_shown()
        self._still_running: tuple[str, ...] = ()
        self._began = 0.0
        self._attached: dict[str, BaseExecutionBackend] = {}
        uid = options.uid or f"engine.{uuids.uuid4().hex[:8]}"
        profile = options.profile or TaskDefaults()
        hooks = EngineHooks(
            options.observers, profile.plugins, options.values(), profile.option_sources
        )
        self._prof = Profiler(hooks)
        try:
            stager = Stager(
                options.work_dir or runs_directory(BASE),
                options.keep_sandboxes,
                in_run=uid if options.work_dir is None else None,
                uid=options.uid,
                backends=self._attached,
                results_dir=options.results_dir,
            )
        except BaseException:
            hooks.not_started()
            raise
        self._runtime = Runtime(self, uid, options, hooks, stager, quiet=hooks.shows_output)
        self._submission = self._runtime.submission
        self._forgotten = weakref.finalize(self, self._runtime.warn_of_forgotten, os.getpid())

    @classmethod
    @takes_options
    def create(
        cls,
        backend: BackendLike | Sequence[BackendLike] | None = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        *,
        backends: Mapping[str, BackendLike] | Iterable[BackendLike] | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
        record: bool | str | os.PathLike[str] = False,
        progress: bool | Literal["lines"] = False,
        retries: RetryPolicy | int | Sequence[RetryPolicy] | None = None,
        lost_retries: int = 3,
        timeout: float | str | None = None,
        shell: str | Sequence[str] = "bash",
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
        journal: bool | str | os.PathLike[str] = False,
        resume: bool | Literal["auto"] = "auto",
        journal_max_value: int | str | None = None,
        uid: str | None = None,
        clock: Clock | None = None,
        profile: str | Literal[False] | None = None,
    ) -> Starting:
        """Create an engine and start its backends.

        Plugins that are installed with core implement `journal`, `resume`, `journal_max_value`,
        `record`, `progress` and `trace`; the page about engine options describes all options.

        Returns:
            A coroutine that is also an async context manager.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, another engine uses the uid, or no backend
                with the given name is registered.
            RuntimeError: A dry run was given a backend that runs tasks.
            JournalError: The journal cannot be used, for example because it is damaged or
                writable by other users.
            ProfileError: The profile does not exist, or a file with profiles contains a mistake.
        """
        given = locals()  # only the arguments, because no other name is bound yet
        return Starting(cls._start(EngineOptions.of(given)))

    @classmethod
    async def _start(cls, options: EngineOptions) -> Self:
        engine = cls(options)
        runtime, hooks = engine._runtime, engine._runtime.hooks
        clock = runtime.background.clock
        engine._began = clock.monotonic()
        owned: list[BaseExecutionBackend] = []
        starting = attach(options, stager=runtime.stager, journal=hooks.journal, owned=owned)
        try:
            if options.handle_signals:
                starting = signal_registry.guard(starting)
            engine._attached.update(await starting)
            for name, backend in engine._attached.items():
                runtime.attach(backend, name)
            if runtime.background.clock is not clock:  # the clock of a backend
                engine._began = runtime.background.clock.monotonic()
            if options.handle_signals:
                signal_registry.add(engine, engine._interrupt, engine._settle)
            for hook in hooks.workflow_started:
                hooks.call(hook, raises=UsageError, engine=engine)
            runtime.node_samples.start(engine._attached.values())
        except BaseException:
            await engine._undo(owned)
            raise
        engine.prof.event("workflow_started", engine.uid)
        return engine

    async def _undo(self, owned: list[BaseExecutionBackend]) -> None:
        """Shut down the `owned` backends after a failed start, and leave the others running."""
        self._runtime.scheduler.closing = True
        self._forgotten.detach()
        signal_registry.remove(self)
        try:
            await self._runtime.stop_everything(skip_backends=True)
        finally:
            await shut_down(owned)
            await self._runtime.stager.close()
            self._runtime.stager.leave()
            self._runtime.hooks.not_started()

    # Decorators and calls.

    @overload
    def function_task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R]: ...
    @overload
    def function_task(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...
    @overload
    def function_task(self, /, **settings: Unpack[TaskSettings]) -> FunctionDecorator: ...
    def function_task(self, function: Any = _NO_FUNCTION, /, **settings: Any) -> Any:
        """Decorate a function so that each call runs as a task on a backend.

        A call of the decorated function immediately returns a `TaskFuture` for the result. The
        function may be synchronous or a coroutine function. It runs once all futures in its
        arguments have values, and receives the values instead of the futures.

        Args:
            function: The function to decorate.
            **settings: See `rhapsody.TaskSettings`.

        Returns:
            The decorated function, or a decorator if only settings are given.

        Raises:
            TypeError: `function` is not callable, or a setting is unknown or of the wrong type.
            ValueError: A setting is out of range.
        """
        return self._decorate("function", function, settings)

    @overload
    def executable_task(
        self, function: Callable[P, Coroutine[Any, Any, Command]], /
    ) -> TaskFunction[P, str]: ...
    @overload
    def executable_task(self, function: Callable[P, Command], /) -> TaskFunction[P, str]: ...
    @overload
    def executable_task(self, /, **settings: Unpack[TaskSettings]) -> ExecutableDecorator: ...
    def executable_task(self, function: Any = _NO_FUNCTION, /, **settings: Any) -> Any:
        """Decorate a function that returns a command. Each call runs the command as a task.

        The function runs on the engine's event loop once its dependencies have finished. It
        returns a string for a shell, or a list of arguments to run without a shell. The command
        runs in its own sandbox directory. The future's result is the command's standard output; if
        the exit code is not zero, the future fails with `TaskFailedError`.

        Args:
            function: The function to decorate.
            **settings: See `rhapsody.TaskSettings`.

        Returns:
            The decorated function, or a decorator if only settings are given.

        Raises:
            TypeError: `function` is not callable, or a setting is unknown or of the wrong type.
            ValueError: A setting is out of range.
        """
        return self._decorate("executable", function, settings)

    @overload
    def block(
        self, function: Callable[P, Coroutine[Any, Any, asyncio.Future[R]]], /
    ) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, asyncio.Future[R]], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, /, **settings: Unpack[TaskSettings]) -> BlockDecorator: ...
    def block(self, function: Any = _NO_FUNCTION, /, **settings: Any) -> Any:
        """Decorate a function that calls tasks and awaits them, as a part of the workflow.

        A coroutine function runs on the engine's loop. A synchronous one runs on a separate
        thread and waits with `rhapsody.wait`. If a block returns a future, the block's result is
        the result of that future. Canceling a block cancels its unfinished tasks.

        Args:
            function: The function to decorate.
            **settings: `name` and `after`; see `rhapsody.TaskSettings`.

        Returns:
            The decorated function, or a decorator if only settings are given.

        Raises:
            TypeError: `function` is not callable, or a setting is unknown or of the wrong type.
        """
        return self._decorate("block", function, settings)

    @overload
    def worker_value(self, factory: Callable[P, Iterator[R]], /) -> WorkerValueFactory[P, R]: ...
    @overload
    def worker_value(
        self, factory: Callable[P, AbstractContextManager[R]], /
    ) -> WorkerValueFactory[P, R]: ...
    @overload
    def worker_value(self, factory: Callable[P, R], /) -> WorkerValueFactory[P, R]: ...
    @overload
    def worker_value(
        self,
        /,
        *,
        per: Literal["process", "thread"] = ...,
        keep: int | None = ...,
        timeout: float | str | None = ...,
    ) -> WorkerValueDecorator: ...
    def worker_value(
        self,
        factory: Any = _NO_FUNCTION,
        /,
        *,
        per: Literal["process", "thread"] = "process",
        keep: int | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Decorate a function that builds a value for many tasks, such as a loaded model.

        Calling the decorated function returns a handle (`rhapsody.WorkerValue`). A function task
        that receives the handle is called with the value. Each process builds the value once, when
        a task first needs it; a worker that replaces a lost one builds it again. All tasks in a
        process receive the same object, and see changes that other tasks have made to it. Tasks
        with different GPUs do not share a value, even if they run in the same process.

        Args:
            factory: A function that returns the value, a generator function that yields it once, or
                a function decorated with `contextlib.contextmanager`. The code after the `yield`
                runs when the worker process ends or the engine shuts down, but not if the worker
                is killed.
            per: `"process"`, or `"thread"` to build a value for each thread, for objects that are
                not thread-safe.
            keep: Maximum number of values that each process, or thread, keeps, for a function that
                is called with several arguments. Before another one is built, the least recently
                used value is closed, unless a task is using it. Default: no limit.
            timeout: Maximum time for building a value, in seconds or as text such as `"10 min"`.
                Default: no limit. The `timeout` of a task starts when its values have been built.
                On backends without the capability `worker_values`, it includes the time for
                building, and is extended by this limit.

        Returns:
            The decorated function, or a decorator if only settings are given.

        Raises:
            TypeError: `factory` is not callable, or is a coroutine function; a setting has the
                wrong type.
            ValueError: `per` is neither `"process"` nor `"thread"`, `keep` is not positive, or
                `timeout` is not a duration.
        """
        if per not in ("process", "thread"):
            raise ValueError(f"per must be 'process' or 'thread', got {per!r}")
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int)):
            raise TypeError(f"keep must be a number of values or None, got {keep!r}")
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        decorate = partial(
            WorkerValueFactory,
            per_thread=per == "thread",
            keep=keep or 0,
            timeout=None if timeout is None else seconds("timeout", timeout),
            close=self._close_value,
            at_call=copier_of_closures(TaskFunction),
        )
        return decorate if factory is _NO_FUNCTION else decorate(factory)

    async def _close_value(self, key: bytes) -> None:
        """Close the worker values with a key, in this process and on the backends."""
        await in_thread(worker_values().close_value, key, self.uid)
        for attached in self._runtime.backends.values():
            close = getattr(attached.backend, "close_worker_value", None)
            if close is not None:
                await close(key)

    def _decorate(self, kind: CallKind, function: Any, settings: dict[str, Any]) -> Any:
        def decorate(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
            base = definition_settings(function) if callable(function) else {}
            return make_task(self._submission, kind, function, base, settings)

        return decorate if function is _NO_FUNCTION else decorate(function)

    def map(
        self, task: Callable[..., TaskFuture[T]], /, *iterables: Iterable[Any]
    ) -> list[TaskFuture[T]]:
        """Call a task repeatedly with one item of each iterable, as the built-in `map` does.

        Args:
            task: A decorated function.
            *iterables: Iterables of the task's arguments. Iterators and other iterables without a
                length, such as `itertools.repeat(x)`, may be longer than the others: the calls end
                with the shortest iterable.

        Returns:
            The futures, in the order of the calls.

        Raises:
            TypeError: No iterable is given, or `task` does not return a task's future.
            ValueError: The iterables have different lengths.
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable of arguments")
        lengths = [len(iterable) for iterable in iterables if isinstance(iterable, Sized)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"map() takes iterables of equal length, got {' and '.join(map(str, lengths))} "
                "items; to end with the shortest one, pass the others as iterators: iter(items)"
            )
        return [_call("map", task, *arguments) for arguments in zip(*iterables, strict=False)]

    async def imap(
        self,
        task: Callable[..., TaskFuture[T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        window: int = 1000,
    ) -> AsyncGenerator[T, None]:
        """Call a task with each item and yield the results in order, in bounded memory.

        After the first `window` items, another item is read only when the caller takes a result,
        so `iterable` may be larger than memory. If the caller stops iterating early or a
        call fails, the unfinished calls are canceled.

        Args:
            task: A decorated function of one argument.
            iterable: The arguments of the calls; may be an asynchronous iterable.
            window: Maximum number of unfinished calls.

        Yields:
            The results, in the order of the items.

        Raises:
            ValueError: `window` is less than 1.
            BaseException: The exception of the first failed call.
        """
        window = whole_number("window", 1)(window)
        futures: deque[TaskFuture[T]] = deque()
        try:
            if isinstance(iterable, AsyncIterable):
                async for item in iterable:
                    futures.append(_call("imap", task, item))
                    if len(futures) >= window:
                        yield await futures.popleft()
            else:
                for item in iterable:
                    futures.append(_call("imap", task, item))
                    if len(futures) >= window:
                        yield await futures.popleft()
            while futures:
                yield await futures.popleft()
        finally:
            for future in futures:
                future.cancel()

    def scope(self, name: str) -> Scope:
        """Label the tasks called in a `with` statement, for events, reports and traces.

        Args:
            name: The label. Inside another scope, `/` joins it to the outer label.

        Returns:
            A context manager for `with` and `async with`, whose value is the whole label.

        Raises:
            TypeError: The name is not a string, or is empty.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"scope() takes a non-empty string, got {name!r}")
        return Scope(name)

    async def save(
        self, future: TaskFuture[Any], place: str | os.PathLike[str], name: str | None = None
    ) -> list[Path]:
        """Wait for a task and copy files from its sandbox to a place of your choice.

        Use this method for files and directories without a destination; see `OutputFile`.
        Canceling this call does not remove files that were already saved.

        If the result of the task is reused from an earlier run and the file is missing, the task
        runs again, unless the destination has the recorded content. A dry run saves nothing.

        Args:
            future: The task's future.
            place: The destination, absolute or relative to `results_dir`. If it ends in `/` or is
                an existing directory, files are copied into it; otherwise it is the path of the
                copy. Directories are always copied into `place`.
            name: Name of a file or directory in the sandbox. Default: all declared outputs.

        Returns:
            The destinations.

        Raises:
            DataError: The file does not exist, or it cannot be saved at this destination.
            TypeError: `future` is not the future of a task.
            Exception: The exception of the task.
        """
        runtime, dry = self._runtime, self._options.dry_run
        return await save_files(runtime.stager, runtime.backends, future, place, name, dry=dry)

    # Views. Views of tasks show only unfinished ones.

    @property
    def uid(self) -> str:
        """Uid of the engine, and prefix of the task uids that its backends receive."""
        return self._runtime.uid

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Event loop of the engine."""
        return self._loop

    @property
    def dry_run(self) -> bool:
        """True if no task is run."""
        return self._options.dry_run

    @property
    def options(self) -> Mapping[str, Any]:
        """Options that differ from their defaults, by name; `journal` is the path in use."""
        journal = self._runtime.hooks.journal
        return MappingProxyType(
            {**self._options.changed(), **({"journal": journal} if journal else {})}
        )

    @property
    def task_defaults(self) -> TaskDefaults:
        """Settings of tasks that the profile sets."""
        return self._submission.task_defaults

    @property
    def work_dir(self) -> Path:
        """Directory of the sandboxes, an absolute path."""
        return self._runtime.stager.work_dir

    @property
    def results_dir(self) -> Path:
        """Base directory for relative destinations of saved files, an absolute path."""
        return self._runtime.stager.results.directory

    @property
    def results(self) -> tuple[SavedFile, ...]:
        """Output files that are kept, in the order in which they were saved.

        After the shutdown, this includes outputs without a destination that no task has read; see
        `keep_sandboxes`.
        """
        return tuple(self._runtime.stager.results.saved)

    @property
    def prof(self) -> Profiler:
        """Recorder with which the program adds its own events to the `trace`."""
        return self._prof

    @property
    def log(self) -> logging.Logger:
        """Logger of the engine."""
        return log

    @property
    def clock(self) -> Clock:
        """Clock of the engine."""
        return self._runtime.background.clock

    @property
    def stats(self) -> Stats:
        """Counters since the engine was created."""
        return self._runtime.scheduler.stats

    @property
    def backend(self) -> BaseExecutionBackend:
        """Default backend."""
        return next(iter(self._attached.values()))

    @property
    def backends(self) -> Mapping[str, BaseExecutionBackend]:
        """Attached backends by name, the default one first."""
        return MappingProxyType(self._attached)

    @property
    def implicit_data_mode(self) -> bool:
        """True if dependents see the files in their dependencies' sandboxes."""
        return self._options.implicit_data

    @property
    def task_states_map(self) -> StateMapper:
        """Mapper of the default backend's states to canonical states."""
        states: StateMapper = next(iter(self._runtime.backends.values())).states
        return states

    @property
    def components(self) -> Mapping[str, Mapping[str, Any]]:
        """Type, description and future of each unfinished task and block, by uid."""
        return MappingProxyType(
            {
                record.future.uid: MappingProxyType(
                    {
                        "type": record.call.task.prefix,
                        "description": record.describe(),
                        "future": record.future,
                    }
                )
                for record in self._unfinished()
            }
        )

    @property
    def dependencies(self) -> Mapping[str, tuple[Mapping[str, str], ...]]:
        """The `uid` and `name` of each dependency of each unfinished task and block, by uid."""
        return MappingProxyType(
            {
                record.future.uid: tuple(
                    MappingProxyType({"uid": future.uid, "name": future.name})
                    for future in record.call.dependencies
                    if isinstance(future, TaskFuture)
                )
                for record in self._unfinished()
            }
        )

    @property
    def resolved(self) -> frozenset[str]:
        """Uids of unfinished tasks and blocks that are no longer waiting for dependencies.

        This includes tasks that were submitted early to a backend that waits for dependencies.
        """
        return frozenset(
            n.future.uid for n in self._unfinished() if n.state.work is not WorkState.WAITING
        )

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of running tasks and blocks, including services."""
        active = (WorkState.RUNNING, WorkState.SERVING, WorkState.CANCELING)
        return tuple(n.future.uid for n in self._unfinished() if n.state.work in active)

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready but not yet submitted to a backend."""
        return tuple(n.future.uid for n in self._unfinished() if n.state.work is WorkState.READY)

    def _unfinished(self) -> list[TaskRecord]:
        live = self._runtime.scheduler.live
        return sorted(live, key=lambda record: (record.call.task.prefix, record.call.number))

    @property
    def graph(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Calls of a dry run so far, each as its uid, its name and its dependencies' uids."""
        return tuple(self._runtime.submission.made)

    @property
    def summary(self) -> Summary | None:
        """Summary of the run, or `None` before the shutdown."""
        return self._summary

    def __repr__(self) -> str:
        return f"<WorkflowEngine {self.uid} {self._state}>"

    def _repr_html_(self) -> str:
        """Return the engine as a notebook shows it."""
        return self._card().html()

    def __rich__(self) -> Table:
        """Return the engine as rich shows it."""
        return self._card().rich()

    @property
    def _state(self) -> str:
        if self._closed.done():
            return "shut down"
        return "running" if self._ending is None else "shutting down"

    def _card(self) -> Card:
        rows = {
            "state": self._state,
            "backends": ", ".join(self._attached),
            "tasks": str(self.stats),
            "files": "" if self.dry_run else str(self.work_dir),
        }
        color = IDLE if self._closed.done() else ACTIVE
        return Card(f"WorkflowEngine {self.uid}", color, rows)

    # The end.

    async def join(self) -> None:
        """Wait until all tasks have ended and services are ready.

        This includes tasks that are called during the wait. The exceptions of tasks are raised by
        their futures, not by this method. Canceling this call does not cancel any task.

        Raises:
            RuntimeError: Called inside a block or a task, which would wait for itself, or on an
                event loop other than the engine's.
        """
        if asyncio.get_running_loop() is not self._loop:
            remedy = "call it on the loop on which the engine was created"
            raise self._submission.foreign_loop_error("join()", remedy)
        task = running_task()
        if (task is not None and AttemptId.of(task.uid).task.engine == self.uid) or any(
            around is not None
            and around.scheduler is self._runtime.scheduler
            and not around.future.done()
            for around in (enclosing_block.get(), builds_command.get())
        ):
            raise RuntimeError(
                "join() would wait for the block or task that calls it; await the futures that "
                "you need instead"
            )
        await self._runtime.all_settled()

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel unfinished tasks, stop their work and shut down the backends.

        Every future is settled when this returns. Canceled tasks and work that could not be
        stopped are logged; the latter is also in the summary. Further calls only wait
        for a shutdown in progress. Canceling this call does not cancel the shutdown.

        Args:
            skip_execution_backend: True to leave the backends running, for another engine.

        Raises:
            RuntimeError: Called on an event loop other than the engine's.
        """
        if self._closed.done():
            await self._last_hooks()
            return
        if asyncio.get_running_loop() is not self._loop:
            remedy = "call it on the loop on which the engine was created"
            raise self._submission.foreign_loop_error("shutdown()", remedy)
        if self._ending is None:
            self._runtime.scheduler.closing = True
            self._ending = self._loop.create_task(
                self._end(skip_execution_backend), name=f"{self.uid} shutdown"
            )
        await end_of(self._ending)
        await signal_registry.delivered()
        await self._last_hooks()

    async def _last_hooks(self) -> None:
        """Wait for awaitables that `rhapsody_workflow_finished` has returned."""
        for task in self._finishing:
            await end_of(task)

    async def _end(self, skip: bool) -> None:
        if skip:
            log.warning(
                "engine %s: leaving backends running (skip_execution_backend=True): %s; shut "
                "down each with `await backend.shutdown()`",
                self.uid, ", ".join(map(repr, self.backends)),
            )  # fmt: skip
        await self._stop(skip_backends=skip)
        self._settle()

    async def _interrupt(self, number: int) -> None:
        """Stop all work because of a signal, and leave the futures pending for now."""
        scheduler = self._runtime.scheduler
        if self._ending is None:
            scheduler.interrupted = True
            for backend in self._attached.values():
                if isinstance(session := getattr(backend, "session", None), Session):
                    session.signal = number
            log.warning(
                "engine %s: interrupted; stopping %s (unfinished tasks: %d). "
                "Interrupt again to end immediately.",
                self.uid, ", ".join(map(repr, self.backends)), scheduler.unsettled,
            )  # fmt: skip
            self._ending = self._loop.create_task(self._stop(skip_backends=False))
        await end_of(self._ending)

    async def _stop(self, *, skip_backends: bool) -> None:
        runtime = self._runtime
        runtime.scheduler.closing = True
        self._problems = await runtime.stop_everything(skip_backends=skip_backends)
        await self._close_values()
        if not runtime.scheduler.interrupted:
            self._still_running = runtime.settle_everything()
        shown = _last_shown()
        has_shown = shown is not None and shown is not self._last_shown
        failed = runtime.unawaited.has_unseen() or runtime.cut_short or self._left_by_error
        failed = failed or has_shown
        self._well = not (failed or runtime.held_back or runtime.scheduler.interrupted)
        await runtime.stager.close(well=self._well)

    async def _close_values(self) -> None:
        """Close the worker values that only this engine's tasks have used in this process."""
        values = worker_values()
        if values.used_by(self.uid):
            try:
                await in_thread(values.close, self.uid)
            except RuntimeError:  # no more threads can be started
                values.close(self.uid)

    def _settle(self) -> None:
        """Settle the remaining futures, create the summary and call the last hooks."""
        if self._closed.done():
            return
        runtime = self._runtime
        if runtime.scheduler.interrupted:
            self._still_running = runtime.settle_everything()
        still_running = self._still_running
        for problem in self._problems:
            log.error("engine %s: %s", self.uid, problem)
        if still_running:
            log.warning(
                "engine %s: failed to stop %d of its tasks and blocks, which may still be running: "
                "%s",
                self.uid, len(still_running), ", ".join(still_running[:5]),
            )  # fmt: skip
        runtime.observation.flush()
        runtime.unawaited.quiet |= runtime.hooks.shows_failures
        runtime.unawaited.close()
        results = self.results
        self._summary = Summary(
            uid=self.uid,
            stats=runtime.scheduler.stats,
            seconds=runtime.background.clock.monotonic() - self._began,
            still_running=still_running,
            problems=self._problems,
            graph=self.graph,
            unawaited=runtime.unawaited.total,
            backends=accounts(self.backends, log),
            results=results,
            stale=tuple(
                file
                for file in runtime.submission.declared.stale(results)
                if not runtime.stager.results.claims.is_read(file.path)
            ),
            missing=tuple(runtime.stager.results.missing),
            disk_use=runtime.stager.disk_use,
            cut_short=runtime.cut_short,
            held_back=runtime.held_back,
            outcome=(
                "interrupted"
                if runtime.scheduler.interrupted or self._reader_has_exited
                else "done"
                if self._well
                else "failed"
            ),
        )
        self.prof.event("workflow_finished", self.uid)
        for hook in runtime.hooks.workflow_finished:
            result = runtime.hooks.call(hook, engine=self, summary=self._summary)
            if inspect.isawaitable(result):
                self._finishing.append(
                    self._loop.create_task(runtime.hooks.finish(hook, result), name=hook.plugin)
                )
        signal_registry.remove(self)
        self._forgotten.detach()
        runtime.stager.leave()
        self._closed.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all tasks, or cancel them if `async with` ends with an exception; shut down.

        With `keep_going`, the exception of one of the engine's tasks does not cancel the other
        tasks. Failed tasks raise nothing here; those that were never awaited are logged in one
        record.
        """
        failures = self._runtime.failures
        self._left_by_error = error is not None
        self._reader_has_exited = error is not None and is_closed_pipe(error)
        own = error is not None and failures is not None and failures.include(error)
        try:
            if error is None or own:
                await self.join()
            if own and not self._runtime.hooks.shows_failures:
                log.error("engine %s: %s", self.uid, failures)
                self._runtime.unawaited.quiet = True
        finally:
            await self.shutdown()

    # Methods behind the older names; see `rhapsody.compat`.

    async def run(self) -> None:
        """Wait until the engine has been shut down. Calling this is optional."""
        await end_of(self._closed)

    async def submit(self) -> None:
        """Wait until the backends have accepted all ready tasks. Calling this is optional."""
        await asyncio.sleep(0)  # tasks that ended in this iteration make others ready
        await asyncio.gather(
            *(dispatcher.flushed() for dispatcher in self._runtime.dispatchers.values())
        )

    def _call_block(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> asyncio.Future[Any]:
        task = TaskFunction[Any, Any](self._submission, "block", function, Settings(), {})
        return self._submission.call(task, args, kwargs, None)

    def _report(
        self,
        uid: str,
        report: Mapping[str, Any],
        state: str | Enum,
        service_callback: Callable[..., Any] | None,
    ) -> None:
        if running_loop() is self._loop and uid in self.queue:  # it was called just now
            ready = self._loop.create_task(self.submit())
            ready.add_done_callback(
                lambda _: self._report_submitted(uid, report, state, service_callback)
            )
        else:
            self._report_submitted(uid, report, state, service_callback)

    def _report_submitted(
        self,
        uid: str,
        report: Mapping[str, Any],
        state: str | Enum,
        service_callback: Callable[..., Any] | None,
    ) -> None:
        record = self._in_flight(uid)
        if record is not None:
            if state not in record.attempt.backend.native:
                record.attempt.backend.states.to_main_state(state)  # raises if it is unknown
            uid = record.attempt.uid
        self._runtime.callbacks.receive({**report, "uid": uid}, state, service_callback)

    def _in_flight(self, uid: str) -> TaskRecord | None:
        """Return the submitted task with the uid of a task or attempt.

        The result is `None` for an attempt that has ended or has not been submitted yet.

        Raises:
            ValueError: No submitted task and no attempt has this uid.
        """
        inflight = self._runtime.scheduler.inflight
        if (record := inflight.get(uid)) is not None:
            return record
        for record in list(inflight.values()):
            if record.future.uid == uid:
                return record
        attempt = re.fullmatch(rf"{re.escape(self.uid)}\.task\.(\d+)\.\d+", uid)
        if attempt is None or int(attempt[1]) > self._submission.tasks_called:
            raise ValueError(
                f"task_callbacks: no backend has a task with the uid {uid!r}; see flow.running "
                "and flow.components for the uids of unfinished tasks"
            )
        return None

    def _report_end(
        self, future: asyncio.Future[Any], report: Mapping[str, Any], state: TasksMainStates
    ) -> bool:
        record = record_of(future)
        inflight, callbacks = self._runtime.scheduler.inflight, self._runtime.callbacks
        if record is None or inflight.get(record.attempt.uid) is not record:
            return False
        if report.get("uid") not in (record.attempt.uid, record.future.uid):
            return False
        native = record.attempt.backend.states.get_backend_state(state)
        callbacks.receive({**report, "uid": record.attempt.uid}, native)
        if running_loop() is self._loop:
            callbacks.apply()  # immediately, even while the backend is accepting tasks
        return True


class Starting(Coroutine[Any, Any, WorkflowEngine]):
    """Result of `WorkflowEngine.create`: a coroutine that is also an async context manager.

    Await it, pass it to `asyncio.run`, `create_task` or a task group, or enter it with `async
    with`; see `WorkflowEngine.__aexit__`.
    """

    _engine: WorkflowEngine  # set by `__aenter__`

    def __init__(self, coroutine: Coroutine[Any, Any, WorkflowEngine]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, WorkflowEngine]:
        return self._coroutine.__await__()

    if not TYPE_CHECKING:  # type checkers would accept every attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith(("_", "cr_")):
                raise AttributeError(name)
            raise AttributeError(
                f"the engine has no attribute {name!r} before it is started: write `flow = await "
                "WorkflowEngine.create(...)`, or `async with WorkflowEngine.create(...) as flow:`"
            )

    def send(self, value: Any, /) -> Any:
        """Implement the coroutine protocol."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Implement the coroutine protocol."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Implement the coroutine protocol."""
        self._coroutine.close()

    async def __aenter__(self) -> WorkflowEngine:
        self._engine = await self._coroutine
        return self._engine

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._engine.__aexit__(kind, error, traceback)


class Scope(AbstractContextManager[str], AbstractAsyncContextManager[str]):
    """Context manager that `WorkflowEngine.scope` returns, for `with` and `async with`.

    Unlike context managers that `contextlib` creates, it does not change tracebacks.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> str:
        outer = current_scope.get()
        label = self._name if outer is None else f"{outer}/{self._name}"
        self._token = current_scope.set(label)
        return label

    def __exit__(self, *error: object) -> None:
        current_scope.reset(self._token)

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()


def _call(caller: str, task: Callable[..., Any], *arguments: Any) -> TaskFuture[Any]:
    """Call the task that a user passed to `map` or `imap`.

    Args:
        caller: The name of the method, for the error.
        task: The object that the user passed as the task.
        *arguments: The arguments of the call.

    Returns:
        The future.

    Raises:
        TypeError: `task` is not callable or does not return a task's future.
    """
    future = task(*arguments) if callable(task) else None
    if not isinstance(future, TaskFuture):
        raise TypeError(
            f"{caller}() takes a decorated function, or a callable that returns a task's future, "
            f"got {task!r}"
        )
    return future


# Programs without asyncio.


@overload
def run(
    main: Callable[[WorkflowEngine], Coroutine[Any, Any, asyncio.Future[T]]],
    /,
    **settings: Unpack[EngineSettings],
) -> T: ...
@overload
def run(
    main: Callable[[WorkflowEngine], Coroutine[Any, Any, T]], /, **settings: Unpack[EngineSettings]
) -> T: ...
@overload
def run(
    main: Callable[[WorkflowEngine], asyncio.Future[T]], /, **settings: Unpack[EngineSettings]
) -> T: ...
@overload
def run(main: Callable[[WorkflowEngine], T], /, **settings: Unpack[EngineSettings]) -> T: ...
def run(main: Callable[[WorkflowEngine], Any], /, **settings: Unpack[EngineSettings]) -> Any:
    """Call `main` with a new engine, and shut the engine down when all tasks have ended.

    Args:
        main: A function of one argument, the engine. A coroutine function runs on the engine's
            event loop. Any other function runs on a separate thread, where it calls tasks and
            waits for them with `rhapsody.wait`.
        **settings: Arguments of `WorkflowEngine.create`, such as `backend` and `profile`.

    Returns:
        The return value of `main`; if that is a future, its result.

    Raises:
        TypeError: `main` cannot be called with an engine, or an option is of the wrong type.
        ValueError: An option is out of range.
        RuntimeError: An event loop is already running on this thread.
        BaseException: The exception that `main` raises.
    """
    problem = "is not callable" if not callable(main) else not_a_main(main)
    if problem is not None:
        raise TypeError(f"rhapsody.run(): {main!r} {problem}")
    if running_loop() is not None:
        raise RuntimeError(
            "rhapsody.run() cannot be called on the thread of a running event loop; write `async "
            "with WorkflowEngine.create() as flow:` instead"
        )

    async def program() -> Any:
        async with WorkflowEngine.create(**settings) as flow:
            value = await call_main(main, flow)
        warn_of_coroutines(flow)
        return value

    return asyncio.run(program())


def not_a_main(main: Callable[..., Any]) -> str | None:
    """Return the reason why `main` cannot be called with an engine, or `None` if it can be."""
    try:
        inspect.signature(main).bind(None)
    except TypeError:
        return "must take one argument, the workflow engine"
    except ValueError:  # it has no signature
        pass
    return None


async def call_main(main: Callable[[WorkflowEngine], Any], flow: WorkflowEngine) -> Any:
    """Call a program's `main`, on a separate thread if it is not a coroutine function.

    Returns:
        The return value of `main`; if that is a future or a coroutine, its result.
    """
    value = await (main(flow) if is_async(main) else _on_thread(partial(main, flow)))
    while issubclass(type(value), asyncio.Future | CoroutineType):
        value = await value
    return value


def warn_of_coroutines(flow: WorkflowEngine) -> int:
    """Log the coroutines of the program that outlive its `main` and the engine.

    `asyncio.run` cancels them. Calls that they would have made are missing.

    Returns:
        The number of calls that were refused because the engine was shut down.
    """
    coroutines = [task.get_coro() for task in asyncio.all_tasks() - {asyncio.current_task()}]
    codes = [coroutine.cr_code for coroutine in coroutines if isinstance(coroutine, CoroutineType)]
    own = Origins().own
    named = sorted(
        f"{code.co_qualname}() ({code.co_filename}:{code.co_firstlineno})"
        for code in codes
        if own(code.co_filename)
    )
    if named:
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        log.warning(
            "engine %s: canceling coroutine %s%s, which is still running although `main` has "
            "ended; await it in `main`, for example with `asyncio.gather` or in a `TaskGroup`",
            flow.uid, named[0], more,
        )  # fmt: skip
    return flow._runtime.submission.refused


def _last_shown() -> BaseException | None:
    """Return the last uncaught error that a prompt or a notebook has shown."""
    return getattr(sys, "last_value", None)


async def _on_thread(function: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()
    context.run(calls_tasks.set, running_task() or True)

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():  # a signal has ended the program
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(settable(error, "main"))

    def call() -> None:
        value = error = None
        try:
            value = context.run(function)
        except BaseException as raised:  # raised again where `main` is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    start_thread(call, "rhapsody main")
    return await future
