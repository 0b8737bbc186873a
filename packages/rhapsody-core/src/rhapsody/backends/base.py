"""Interface of a backend, and a base class that implements most of the interface.

`BaseExecutionBackend` declares the methods that the engine calls. `ManagedBackend` implements
everything that is not specific to one system, so that a new backend can consist of a single method.
Dependencies between tasks are the engine's concern, not a backend's. Plugins import these names
from `rhapsody.backends`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

from rhapsody.aio import Clock
from rhapsody.capabilities import CancelLevel, Capabilities
from rhapsody.context import TaskContext, task_context
from rhapsody.errors import BackendError, BackendUnavailableError, CapabilityError
from rhapsody.resources import seconds_of_job
from rhapsody.sdk.threads import in_thread
from rhapsody.states import StateMapper
from rhapsody.task import NodeSample, TaskDescription, task_kind

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "BackendState",
    "BaseBackend",
    "BaseExecutionBackend",
    "CancelLevel",
    "Capabilities",
    "CompletedExecutable",
    "ManagedBackend",
    "ReferenceLostError",
    "Session",
    "TaskCallback",
]


@dataclass(slots=True)
class Session:
    """Identity of one backend object, and the directory for its files.

    Attributes:
        uid: Identifier of the backend object, unique across backends and processes.
        path: The parent directory for the backend's files, initially the current directory. An
            engine that starts the backend sets `path` to the engine's directory, unless `path` has
            already been changed. The session does not create the directory.
        earlier: The pattern, as for `glob.glob`, of the directories that were `path` in earlier
            runs. Set by the engine together with `path`; otherwise empty.
        journal: The path of the engine's journal, or an empty string. Set by the engine.
        signal: The number of the signal because of which the engine shuts the backend down, such as
            `signal.SIGTERM`; 0 otherwise. Set by the engine before `shutdown` is called.
    """

    uid: str = field(default_factory=lambda: f"rhapsody.session.{uuid.uuid4().hex[:12]}")
    path: str = field(default_factory=os.getcwd)
    earlier: str = ""
    journal: str = ""
    signal: int = 0
    _made_in: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._made_in = self.path

    @property
    def chosen(self) -> bool:
        """True if `path` was changed after the session was created."""
        return self.path != self._made_in

    @property
    def temporary(self) -> str:
        """The directory used instead of `path` while `path` is unchanged; removed on shutdown."""
        return os.path.join(tempfile.gettempdir(), self.uid)

    def directory(self, name: str) -> str:
        """Return the path for a file or directory of the backend, without creating it.

        The directory is in `path` if an engine or the backend has changed `path`, otherwise in
        `temporary`, which `ManagedBackend.shutdown` removes.
        """
        return os.path.join(self.path if self.chosen else self.temporary, name)


class BackendState(str):
    """State of a backend: a string that can also be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, BackendState]:
        return self
        yield  # never reached; makes this method a generator


class BaseExecutionBackend(ABC):
    """Interface between the engine and a backend; `ManagedBackend` implements most of it.

    Awaiting a backend object starts the backend, if it has not been started, and returns the
    object. If the start fails, the state is `"error"`, and nothing is left running. The object is
    also an asynchronous context manager. `__init__` may be called before an event loop runs, and
    acquires no resources. The engine calls the methods on its event loop, unless they state
    otherwise; they must not block it.

    Attributes:
        name: The name by which users select the backend. It also appears in messages.
        capabilities: The declared capabilities.
        dry: True if the backend only pretends to run tasks. The engine does not require, fetch or
            link the files that tasks of such a backend declare, and records no results.
        shares_memory: True if functions run in the process of the main program and see the values
            that the main program sets in its modules. If a result depends on such values, a
            resumed run reuses the result only on a backend with the same `shares_memory`.
        clock: The clock of a backend that simulates time, which the engine then uses for its own
            timers and events; `None` for real time.
        session: The identity and directory of this object.
    """

    name: str = ""
    capabilities: Capabilities = Capabilities()
    dry: bool = False
    shares_memory: bool = False
    clock: Clock | None = None
    session: Session

    @abstractmethod
    async def submit_tasks(self, tasks: Any) -> Any:
        """Start tasks; return when the backend has accepted them.

        Called by the engine with a batch of tasks. Calls do not overlap. The backend may report
        states before this method returns. If a task cannot be run, the backend reports that task
        as FAILED. If this method raises an exception, the engine assumes that no task of the batch
        was accepted, except those whose states have already been reported.

        Args:
            tasks: A list of `TaskDescription`. After the call, the descriptions belong to the
                backend.
        """

    @abstractmethod
    async def cancel_task(self, uid: Any) -> Any:
        """Request that a task be stopped; its terminal state arrives through the callback.

        Called by the engine after the `submit_tasks` call with this task has returned; also if the
        task cannot be stopped, because its function can check `current_task().cancelled`. Until the
        terminal state is reported, the task counts toward `max_pending`.

        Returns:
            `True` if the task was known and cancellation was attempted, otherwise `False`.
        """

    @abstractmethod
    def build_task(self, *args: Any, **kwargs: Any) -> Any:
        """Translate a description into the backend's own form.

        The engine does not call this method. Users can call it to see the translation.
        """

    @abstractmethod
    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: Any = None,
        file_path: Any = None,
    ) -> Any:
        """Make a declared file or directory available to a task that is about to be submitted.

        Called by the engine on its loop, once per file, before `submit_tasks`.

        A backend whose method has a further parameter `copy` supports inputs with `copy=True`, and
        calls on another thread. The engine uses another thread for all calls with `copy=True`, and
        for others as long as they are slow. With `file_path` and `copy=True`, the task must receive
        its own copy, which it can write to; see `rhapsody.sdk.copy_into`.

        Args:
            src_task: The description of the attempt that produced the file, with at least `uid`,
                `sandbox` and `metadata`; `None` if `file_path` is given.
            dst_task: The description of the task that needs the file; this method may modify it.
            file_name: The name under which `dst_task` expects the file. With `file_path`, it may be
                a path relative to the sandbox, such as `2/in.txt`; see `name_in_sandbox`.
            file_path: The absolute path of a file that the engine can read, or `None` if `src_task`
                is given.

        Returns:
            Anything; the engine ignores it.
        """

    @abstractmethod
    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> Any:
        """Copy all files in the sandbox of `src_task` into the sandbox of `dst_task`.

        Called by the engine on another thread before `submit_tasks`, if `sandboxes` is declared,
        once for each task in the arguments that left files and declares no output files. The copies
        may also be created when the task starts.
        """

    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        """Copy a file from the sandbox of an ended task to the engine's file system.

        Called by the engine on its loop if the engine cannot access the sandbox and
        `capabilities.copies_files_out` is True: when the file is to be saved, or when a task on
        another backend needs it. After an error or cancellation the engine removes `path`.

        Args:
            task: The description of the attempt that has ended, with at least `uid` and `sandbox`.
            name: The file's name in the sandbox.
            path: The destination. It does not exist, but its parent directory does.

        Raises:
            DataError: The file does not exist, or its name could lead out of the sandbox.
            CapabilityError: The backend does not copy files out.
        """
        raise CapabilityError(f"backend {self.name!r} does not copy files out of its sandboxes")

    def seconds_left(self, task: Any = None) -> float | None:
        """Return the number of seconds for which a task could run if it started now.

        Called by the engine on its loop: once when the backend is attached and, unless that call
        returns `None`, before the submission of each task with a timeout or a `walltime`. A task
        that needs more time is submitted to another backend or held back. A backend with its own
        queue may check again before it starts a task, and fail the task with
        `InsufficientWalltimeError`. If the time depends on where the task will run, return the
        longest one. `ManagedBackend` returns the remaining time of the batch job in which the
        workflow runs; a backend that ends at a known time returns the smaller value.

        Args:
            task: The task's description, which must not be modified; `None` for any task.

        Returns:
            The time in seconds, at least 0; infinity if the time at which the backend ends is not
            known yet; `None` if the backend has no time limit.
        """
        return None

    @abstractmethod
    def get_task_states_map(self) -> Any:
        """Return the `StateMapper` of the backend's states. Called once by each engine."""

    @abstractmethod
    def register_callback(self, func: Any) -> Any:
        """Register a state callback; called by each engine before its first submission.

        If the backend has a method `unregister_callback`, the engine calls it when it shuts down.

        Args:
            func: `func(task, state, service_callback=None)`, which may be called from any thread
                and never raises. `task` is the description, to which the backend has added the
                results, or an object with `as_dict()`. `state` is a native state. When the
                backend reports that a service with a readiness condition is running, it also
                passes `service_callback(future, task, state)`, which `func` calls with a future.
                When the service is ready or has failed, the backend calls the future's
                `set_result` or `set_exception`, on any thread.
        """

    @abstractmethod
    def state(self) -> Any:
        """Return the state of the backend.

        Returns:
            `"initialized"`, `"running"`, `"shutting_down"`, `"shutdown"` or `"error"`.
        """

    @abstractmethod
    def task_state_cb(self, task: Any, state: Any) -> Any:
        """Report a state to the registered callback. May be called from any thread.

        The engine processes a state that is reported on its loop inside `submit_tasks` when that
        method has returned.
        """

    @abstractmethod
    async def shutdown(self) -> Any:
        """Stop every task and release all resources. A second call does nothing.

        Called by the engine, the user or both, also before the start. Afterwards, every task has
        ended and was reported, and the state is `"shutdown"`, or still `"error"`.
        """


BaseBackend = BaseExecutionBackend
"""Alias of `BaseExecutionBackend` for existing programs."""


TaskCallback = Callable[..., Any]
"""A state callback: `callback(task, state, service_callback=None)`; see `register_callback`."""


class ReferenceLostError(BackendError):
    """The task did not run because one of its `references` no longer has a value.

    Backends with `unfinished_dependencies` report such a task as failed with this error. The engine
    submits the task again, so users do not see the error.
    """


class CompletedExecutable(NamedTuple):
    """Result of an executable task, returned by `ManagedBackend.run_task`."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""


def _also_as_callback(method: F) -> F:
    """Decorate `register_callback` so that it also accepts the keyword argument `callback`."""

    @wraps(method)
    def either(self: Any, func: Any = None, *, callback: Any = None) -> Any:
        return method(self, callback if func is None else func)

    return cast("F", either)


class ManagedBackend(BaseExecutionBackend):
    """Base class that implements every part of a backend that is not specific to one system.

    A minimal backend implements `run_task`. A backend that holds resources also implements `start`
    and `stop`. A backend that submits batches to another system overrides `submit_tasks` and
    `cancel_task` and calls `task_state_cb`.

    The backend's states are the canonical ones unless the class registers others with `StateMapper`
    under the class's `name`. Private attributes of this class cannot clash with those of a
    subclass.

    Args:
        max_running: Maximum number of concurrent calls of `run_task`, or `None` for no limit. Tasks
            beyond the limit wait and are not reported as running, so their timeouts do not start.
            Services are not counted and do not wait.
        name: The name of this object, which distinguishes it from other backends of its class in
            the same engine. Default: the class's `name`.

    Attributes:
        name_is_given: True if `name` was passed to this object. The object still uses the states
            that are registered under the class's name.
        running_when_called: True if tasks are reported as running just before `run_task` is called.
            Set it to `False` if `run_task` submits to a system with a queue, and report RUNNING
            with `task_state_cb` when the work begins.
        open_tasks: The descriptions of the tasks that have not ended, by uid. `accept` adds a
            task; `task_state_cb` with a terminal state removes it. A backend may store its own
            record of a task instead of the description.

    Raises:
        TypeError: `max_running` is neither `None` nor a whole number, or `name` is not a string.
        ValueError: `max_running` is less than 1, or `name` is empty or not printable.
    """

    capabilities: Capabilities = Capabilities(reports_running=True)
    canonical_states = True  # used by `StateMapper`, unless other states are registered
    running_when_called: bool = True
    name_is_given: bool = False

    def __init__(self, max_running: int | None = None, *, name: str | None = None) -> None:
        if max_running is not None and (type(max_running) is not int or max_running < 1):
            kind = ValueError if type(max_running) is int else TypeError
            raise kind(
                f"max_running must be a whole number of at least 1, or None for no limit, "
                f"got {max_running!r}"
            )
        if name is not None:
            self.name: str = _checked_name(name)
            self.name_is_given = True
        self.session: Session = Session()
        self.__own_session = self.session  # a subclass may replace `session`
        self.__room = None if max_running is None else asyncio.Semaphore(max_running)
        self.__begun: set[str] = set()
        job = seconds_of_job()
        self.__job_ends = None if job is None else time.monotonic() + job
        self.__state = "initialized"
        self.__states: StateMapper | None = None
        self.__lifecycle = asyncio.Lock()
        self.__callbacks: tuple[TaskCallback, ...] = ()
        self.__open: dict[str, Any] = {}
        self.open_tasks: dict[str, Any] = self.__open
        self.__runs: dict[str, asyncio.Task[None]] = {}

    # For authors to implement.

    async def start(self) -> None:
        """Acquire resources. Called once, on the loop, before the first task is submitted."""

    async def stop(self) -> None:
        """Release the resources that `start` acquired.

        Called after a failed `start`, and by `shutdown` when all calls of `run_task` have ended.
        """

    async def run_task(self, task: TaskDescription) -> Any:
        """Run one task to completion on the event loop. This method must not block.

        `submit_tasks` calls this method once per task, each time in a separate asyncio task, which
        `cancel_task` and `shutdown` cancel. By default, the task is reported as running just before
        the call, so time spent waiting in this method counts toward the task's timeout. To limit
        concurrency, pass `max_running` instead of waiting here. If the backend's system has its own
        queue; see `running_when_called`.

        Returns:
            The return value of the function, or a `CompletedExecutable` for an executable.

        Raises:
            Exception: The task fails with this exception.
        """  # noqa: DOC202, DOC501 - subclasses implement it
        raise BackendError(
            f"{type(self).__name__} implements neither run_task nor submit_tasks; define "
            "`async def run_task(self, task)`"
        )

    # Starting and stopping.

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__started().__await__()

    @classmethod
    async def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Create and start a backend."""
        return await cls(*args, **kwargs)

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def __started(self) -> Self:
        async with self.__lifecycle:
            if self.__state == "running":
                return self
            if self.__state != "initialized":
                raise BackendUnavailableError(
                    f"backend {self.name!r} is in state {self.__state!r} and cannot be started "
                    f"again: create a new {type(self).__name__}"
                )
            try:
                await self.start()
            except BaseException:
                self.__state = "error"
                await self.stop()
                await self.__tidy()
                raise
            self.__state = "running"
            return self

    def state(self) -> BackendState:
        """Return the state of the backend, as a string that can also be awaited."""
        return BackendState(self.__state)

    def require_running(self) -> None:
        """Raise an error unless the state of the backend is `"running"`.

        Raises:
            BackendUnavailableError: The backend is not running.
        """
        if self.__state == "running":
            return
        name = type(self).__name__
        if self.__state == "initialized":
            raise BackendUnavailableError(
                f"{name} has not been started: write `backend = await {name}(...)` "
                f"or `async with {name}(...) as backend`"
            )
        raise BackendUnavailableError(
            f"{name} is in state {self.__state!r}: create and start a new one"
        )

    async def shutdown(self) -> None:
        """Cancel all tasks, wait until they have ended, and release the backend's resources.

        The session's temporary directory is removed. If the backend has been shut down or has
        failed to start, this method does nothing.
        """
        async with self.__lifecycle:
            if self.__state in ("shutdown", "error"):
                return
            started = self.__state == "running"
            self.__state = "shutting_down"
            try:
                runs = list(self.__runs.values())
                for run in runs:
                    run.cancel()
                if runs:
                    await asyncio.wait(runs)
                if started:
                    await self.stop()
            finally:
                self.__state = "shutdown"
                await self.__tidy()

    async def __tidy(self) -> None:
        temporary = self.__own_session.temporary
        if os.path.isdir(temporary):  # noqa: ASYNC240 - one call
            remove = partial(shutil.rmtree, temporary, ignore_errors=True)
            await in_thread(remove, or_here=True)

    # Tasks.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Start, for each task, an asyncio task that calls `run_task`."""
        for task in self.admit(tasks):
            self.accept(task)
            run = asyncio.create_task(self.__run(task), name=task["uid"])
            self.__runs[task["uid"]] = run
            run.add_done_callback(partial(self.__run_ended, task))

    async def cancel_task(self, uid: str) -> bool:
        """Cancel the asyncio task in which `run_task` runs a task.

        Returns:
            `True` if the asyncio task was canceled. `False` if the task is unknown or has ended, or
            if the declared cancel level does not cover a task of its kind in its current state.
        """
        run, task = self.__runs.get(uid), self.__open.get(uid)
        if run is None or task is None:
            return False
        level = self.capabilities.cancellation(task_kind(task))
        if level == "none" or (level == "queued" and uid in self.__begun):
            return False
        run.cancel()
        return True

    def admit(self, tasks: Iterable[TaskDescription]) -> list[TaskDescription]:
        """Check a batch before any of its tasks is accepted.

        Backends that override `submit_tasks` call this method first. It adds missing keys, which
        only callers other than the engine may omit, and reports tasks with invalid descriptions as
        failed.

        Returns:
            The tasks to run, each with all required keys.

        Raises:
            BackendUnavailableError: The backend is not running.
            BackendError: A uid in the batch belongs to an open task or occurs twice in the batch.
            TypeError: An item of the batch is not a dict.
        """
        if self.__state != "running":
            self.require_running()
        batch = list(tasks)
        problems: list[tuple[TaskDescription, Exception]] = []
        try:
            uids = {_required_values(task)[0] for task in batch}
        except (KeyError, TypeError):  # not from the engine: its descriptions are complete
            batch, problems = _completed(batch)
            uids = {task["uid"] for task in batch}
        if len(uids) < len(batch) or not self.__open.keys().isdisjoint(uids):
            taken = Counter([*uids.intersection(self.__open), *(task["uid"] for task in batch)])
            uid, _ = taken.most_common(1)[0]
            raise BackendError(
                f"backend {self.name!r} already has a task with uid {uid!r}; uids must be unique"
            )
        for task, error in problems:
            task["exception"] = error
            self.__report(task, self.get_task_states_map().FAILED)
        return batch

    def accept(self, task: TaskDescription) -> None:
        """Add a task to `open_tasks`.

        `task_state_cb` then reports the first terminal state of the task and ignores later ones.

        Raises:
            BackendError: A task with this uid is already open.
        """
        if task["uid"] in self.__open:
            raise BackendError(
                f"backend {self.name!r} already has a task with uid {task['uid']!r}; uids must be "
                "unique"
            )
        self.__open[task["uid"]] = task

    async def __run(self, task: TaskDescription) -> None:
        if self.__room is None or task["is_service"]:
            await self.__run_now(task)
            return
        async with self.__room:
            await self.__run_now(task)

    async def __run_now(self, task: TaskDescription) -> None:
        states = self.get_task_states_map()
        self.__begun.add(task["uid"])
        context = TaskContext.of(task)
        try:
            if self.running_when_called and self.capabilities.reports_running:
                self.task_state_cb(task, states.RUNNING)
            with task_context(context):
                result = await self.run_task(task)
            if isinstance(result, CompletedExecutable):
                task["exit_code"], task["stdout"], task["stderr"] = result
            else:
                task["return_value"] = result
            failed = isinstance(result, CompletedExecutable) and result.exit_code != 0
            state = states.FAILED if failed else states.DONE
        except asyncio.CancelledError:
            state = states.CANCELED
        except BaseException as error:  # a task may raise anything
            if task.get("exception") is error:  # `finish` wrote it: this traceback is only ours
                error = error.with_traceback(None)
            task["exception"] = error
            state = states.FAILED
        self.task_state_cb(task, state)

    def __run_ended(self, task: TaskDescription, run: asyncio.Task[None]) -> None:
        self.__runs.pop(task["uid"], None)
        self.__begun.discard(task["uid"])
        if task["uid"] in self.__open:  # canceled before it ran
            self.task_state_cb(task, self.get_task_states_map().CANCELED)

    @_also_as_callback
    def register_callback(self, func: TaskCallback) -> None:
        """Register a state callback. Callbacks that other engines have registered stay in place.

        For compatibility, the argument may also be passed as the keyword `callback`.

        Raises:
            TypeError: `func` is not callable.
        """
        if not callable(func):
            raise TypeError(f"register_callback: func must be callable, got {func!r}")
        if func not in self.__callbacks:
            self.__callbacks = (*self.__callbacks, func)

    def unregister_callback(self, func: TaskCallback) -> None:
        """Remove a callback if it is registered.

        Called when an engine that has registered a callback shuts down.
        """
        self.__callbacks = tuple(one for one in self.__callbacks if one != func)

    def task_state_cb(
        self,
        task: Any,
        state: Any,
        service_callback: Callable[..., Any] | None = None,
    ) -> None:
        """Report a state. A terminal state is ignored unless the task is open. Thread-safe."""
        terminal = state in self.get_task_states_map().terminal_states
        if terminal and self.__open.pop(task["uid"], None) is None:
            return
        self.__report(task, state, service_callback)

    def report_state(
        self, task: Any, state: Any, service_callback: Callable[..., Any] | None = None
    ) -> None:
        """Report a state, regardless of earlier reports. Thread-safe.

        Backends that remove tasks from `open_tasks` themselves call this method; other backends
        call `task_state_cb`.
        """
        for callback in self.__callbacks:
            if service_callback is None:
                callback(task, state)
            else:
                callback(task, state, service_callback=service_callback)

    __report = report_state

    def get_task_states_map(self) -> StateMapper:
        """Return the mapper for the states that this backend's class has registered.

        If the class has registered none, the mapper uses the canonical states.
        """
        if self.__states is None:
            self.__states = StateMapper(self)
        return self.__states

    # For the few backends that need it.

    @classmethod
    def diagnose(cls) -> Iterable[tuple[str, str, str]]:
        """Return findings about the installation.

        Called by `rhapsody doctor` in a separate process, with the same time limit as for loading a
        plugin.

        Returns:
            For each finding, a tuple of its level (`"ok"`, `"note"` or `"broken"`), its text and
            the remedy. The remedy is empty if there is nothing to do.
        """
        return ()

    def account(self) -> Mapping[str, Any]:
        """Return the entries that this backend adds to the engine's summary, such as costs.

        Called by the engine on its loop when the engine shuts down. If the engine also shuts the
        backend down, `shutdown` is called first.

        Returns:
            A mapping of plain values, such as strings and numbers; empty if there are none.
        """
        return {}

    def seconds_left(self, task: Any = None) -> float | None:
        """Return the number of seconds left in the batch job in which this process runs.

        A backend with its own time limit overrides this method, and returns the time left
        until that limit or until the end of the batch job, whichever is shorter.

        Returns:
            The time in seconds, or `None` if this process does not run in a batch job or the end of
            the job is not known.
        """
        return None if self.__job_ends is None else max(0.0, self.__job_ends - time.monotonic())

    def watch_nodes(self, report: Callable[[NodeSample], object] | None) -> None:
        """Begin to report the load of the nodes on which this backend's workers run.

        Called by the engine on its loop after the backend has started, if a plugin wants samples,
        and again with `None` before the engine shuts down. A later call replaces `report`. This
        class reports nothing; the engine samples its own node. See `rhapsody.sdk.NodeSampler`.

        Args:
            report: Function that receives each sample, from any thread; `None` to end the reports.
        """

    def cores_in_use(self) -> tuple[float, int] | None:
        """Return the number of cores in use and the total number of cores.

        Called about once a second while the progress is shown, from any thread.

        Returns:
            The two numbers, or `None` if they are not known.
        """
        return None

    def build_task(self, *args: Any, **kwargs: Any) -> Any:
        """Return the description unchanged, because this backend does not translate it."""
        return args[0] if args else kwargs

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> Any:
        """Do nothing. Backends with `capabilities.files` override this method."""
        return None

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> Any:
        """Do nothing. Backends with `capabilities.files` override this method."""
        return None


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not name.strip() or not name.isprintable():
        raise ValueError(
            f"name must be one line of printable text, got {name!r}; omit it to use the class's "
            "name"
        )
    return name.strip()


def _completed(
    batch: list[TaskDescription],
) -> tuple[list[TaskDescription], list[tuple[TaskDescription, Exception]]]:
    """Add missing keys to the descriptions of a batch.

    Returns:
        The valid descriptions, and the invalid ones with their errors.

    Raises:
        TypeError: An item of the batch is not a dict.
    """
    valid: list[TaskDescription] = []
    problems: list[tuple[TaskDescription, Exception]] = []
    for task in batch:
        if not isinstance(task, dict):
            raise TypeError(
                f"submit_tasks takes a list of dicts, one per task; got the item {task!r}"
            )
    for task in batch:
        problem = _complete(task)
        if problem is None:
            valid.append(task)
        else:
            problems.append((task, problem))
    return valid, problems


def _complete(task: Any) -> Exception | None:
    """Add missing keys to a description, and check the description.

    Returns:
        The error, or `None` if the description is valid.
    """
    uid = task.setdefault("uid", "")
    for key, value in (("args", ()), ("kwargs", {}), ("task_backend_specific_kwargs", {})):
        if task.get(key) is None:
            task[key] = value
    for key in ("function", "executable"):
        task.setdefault(key, None)
    task.setdefault("name", str(uid))
    task.setdefault("is_service", False)
    task.setdefault("metadata", {"dependencies": [], "input_files": [], "output_files": []})
    if not isinstance(uid, str) or not uid:
        return ValueError(f"the 'uid' of a task must be a unique, non-empty string, got {uid!r}")
    function, executable = task["function"], task["executable"]
    if function is None and (not isinstance(executable, str) or not executable):
        return ValueError(
            f"task {task['name']!r} has no 'function', so its 'executable' must be a command, or "
            f"a program with its 'arguments' in a list; got {executable!r}"
        )
    if function is not None and not callable(function):
        return TypeError(f"task {task['name']!r}: 'function' must be callable, got {function!r}")
    return None


_required_values = itemgetter("uid", *TaskDescription.__required_keys__ - {"uid"})
"""Function that returns the values of a description's required keys, the uid first."""
