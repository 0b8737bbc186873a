"""What authors of backends import: the interface, and what makes a backend short.

`BaseExecutionBackend` is what the engine calls. `ManagedBackend` implements all
of it that is not specific to one system, so that a new backend can be one
method. How tasks wait for each other is the engine's business, not a backend's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial, wraps
from operator import itemgetter
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

from rhapsody.backends.descriptions import completed
from rhapsody.backends.interface import BaseBackend, BaseExecutionBackend
from rhapsody.backends.session import BackendState, Session
from rhapsody.capabilities import CancelLevel, Capabilities
from rhapsody.context import TaskContext, task_context
from rhapsody.errors import BackendError, BackendUnavailableError
from rhapsody.sdk.threads import in_thread
from rhapsody.sdk.walltime import seconds_of_job
from rhapsody.states import StateMapper
from rhapsody.task import TaskDescription, task_kind

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

TaskCallback = Callable[..., Any]
"""`callback(task, state, service_callback=None)`, see `register_callback`."""


class ReferenceLostError(BackendError):
    """A task was not run, for a task in its `references` left no value.

    Reported by backends with `unfinished_dependencies`. The engine takes the task back;
    no user sees it.
    """


class CompletedExecutable(NamedTuple):
    """What `ManagedBackend.run_task` returns for an executable."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""


def _also_as_callback(method: F) -> F:
    """Lets a method's `func` be given as `callback`, without a change for those who override it."""

    @wraps(method)
    def either(self: Any, func: Any = None, *, callback: Any = None) -> Any:
        return method(self, callback if func is None else func)

    return cast("F", either)


class ManagedBackend(BaseExecutionBackend):
    """Everything of a backend that is not specific to one system.

    A minimal backend implements `run_task`. One that holds something open
    implements `start` and `stop` as well; one that hands batches to a system of
    its own replaces `submit_tasks` and `cancel_task` and calls `task_state_cb`.

    Its states are the canonical ones unless the class registers others with
    `StateMapper` under its `name`. What it keeps for itself has names that those of a
    subclass cannot meet.

    Args:
        max_running: How many `run_task` run at once; other tasks wait without being
            reported as running, so that their time-outs do not count yet. Services run
            besides. `None`: as many as there are.
        name: What this one is called in an engine, where several of its class are attached.
            Default: the class's `name`.

    Attributes:
        name_is_given: `name` was given to this object: its states are its class's.
        running_when_called: Tasks are reported as running just before `run_task` is called.
            `False` where it hands them to a system that has them wait: then it reports
            RUNNING itself, by `task_state_cb`, when the work begins.
        open_tasks: The tasks that have not ended, by uid: `accept` puts the description in, a
            terminal `task_state_cb` takes it out. A backend that keeps more of a task may put
            its own record in the description's place.

    Raises:
        ValueError: `max_running` is no number from 1, or `name` is empty.
        TypeError: `name` is no string.
    """

    capabilities: Capabilities = Capabilities(reports_running=True)
    canonical_states = True  # for `StateMapper`, where nothing else is registered
    running_when_called: bool = True
    name_is_given: bool = False

    def __init__(self, max_running: int | None = None, *, name: str | None = None) -> None:
        if max_running is not None and (type(max_running) is not int or max_running < 1):
            raise ValueError(
                f"max_running must be how many tasks run at once, a number from 1, or None, "
                f"got {max_running!r}"
            )
        if name is not None:
            self.name: str = _checked_name(name)
            self.name_is_given = True
        self.session: Session = Session()
        self.__own_session = self.session  # a backend may put its system's in the place of this
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

    # What an author writes.

    async def start(self) -> None:
        """Opens what the backend needs. Called once, on the loop, before any task."""

    async def stop(self) -> None:
        """Closes what `start` opened, also after a `start` that failed half way."""

    async def run_task(self, task: TaskDescription) -> Any:
        """Runs one task to its end, on the loop; it must not block.

        Called once per task by `submit_tasks`, each call in an asyncio task of
        its own, which is cancelled by `cancel_task` and `shutdown`. The task is
        reported as running just before: work that waits in here runs into its
        time-out. `max_running` is the place to wait, or see `running_when_called`.

        Returns:
            A function's return value, or a `CompletedExecutable`.

        Raises:
            Exception: Fails the task with this exception.
        """
        raise BackendError(f"{type(self).__name__} implements neither run_task nor submit_tasks")

    # Life.

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__started().__await__()

    @classmethod
    async def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Makes and starts a backend."""
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
                    f"backend {self.name!r} is {self.__state} and cannot be started again: "
                    f"make a new {type(self).__name__}"
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
        """The backend's state; may be awaited, too."""
        return BackendState(self.__state)

    def require_running(self) -> None:
        """Raises unless the backend was started and not shut down.

        Raises:
            BackendUnavailableError: It says what to do.
        """
        if self.__state == "running":
            return
        name = type(self).__name__
        if self.__state == "initialized":
            raise BackendUnavailableError(
                f"{name} has not been started: write `backend = await {name}(...)` "
                f"or `async with {name}(...) as backend`"
            )
        raise BackendUnavailableError(f"{name} is {self.__state}: make and start a new one")

    async def shutdown(self) -> None:
        """Cancels every task, waits for them and closes the backend.

        Removes the session's temporary directory, where something is in it.
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
        if os.path.isdir(temporary):  # noqa: ASYNC240 - one look
            remove = partial(shutil.rmtree, temporary, ignore_errors=True)
            await in_thread(remove, or_here=True)

    # Tasks.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Runs each task with `run_task` in an asyncio task of its own."""
        self.require_running()
        for task in self.admit(tasks):
            self.accept(task)
            run = asyncio.create_task(self.__run(task), name=task["uid"])
            self.__runs[task["uid"]] = run
            run.add_done_callback(partial(self.__run_ended, task))

    async def cancel_task(self, uid: str) -> bool:
        """Cancels the asyncio task that runs `run_task`.

        Returns:
            `False` for a task that is unknown or has ended, and where the
            capabilities say that tasks of its kind cannot be cancelled, or not
            once they run.
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
        """Looks at a batch before any of it is accepted. The first thing in `submit_tasks`.

        Puts in the keys that somebody who calls a backend without an engine left out. A
        description that cannot be understood is reported as failed.

        Returns:
            The tasks to run, each with the nine keys that are always there.

        Raises:
            BackendError: A task of one of the uids is open already, or two have the same.
            TypeError: Something in the batch is no description at all.
        """
        batch = list(tasks)
        problems: list[tuple[TaskDescription, Exception]] = []
        try:
            uids = {_always_there(task)[0] for task in batch}
        except (KeyError, TypeError):  # some are short; the engine's never are
            batch, problems = completed(batch)
            uids = {task["uid"] for task in batch}
        if len(uids) < len(batch) or not self.__open.keys().isdisjoint(uids):
            taken = Counter([*uids.intersection(self.__open), *(task["uid"] for task in batch)])
            uid, _ = taken.most_common(1)[0]
            raise BackendError(f"backend {self.name!r} has a task {uid!r} already")
        for task, error in problems:
            task["exception"] = error
            self.__report(task, self.get_task_states_map().FAILED)
        return batch

    def accept(self, task: TaskDescription) -> None:
        """Notes a task as open: from now on one terminal state is reported for it.

        Raises:
            BackendError: A task of this uid is open already.
        """
        if task["uid"] in self.__open:
            raise BackendError(f"backend {self.name!r} has a task {task['uid']!r} already")
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
        context = TaskContext(
            uid=task["uid"],
            name=task["name"],
            attempt=task.get("attempt", 1),
            sandbox=task.get("sandbox"),
            deadline=time.time() + task["timeout"] if "timeout" in task else None,
        )
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
        except BaseException as error:  # a task's own error, whatever it is, is its result
            task["exception"] = error
            state = states.FAILED
        self.task_state_cb(task, state)

    def __run_ended(self, task: TaskDescription, run: asyncio.Task[None]) -> None:
        self.__runs.pop(task["uid"], None)
        self.__begun.discard(task["uid"])
        if task["uid"] in self.__open:  # cancelled before its first step, or while it waited
            self.task_state_cb(task, self.get_task_states_map().CANCELED)

    @_also_as_callback
    def register_callback(self, func: TaskCallback) -> None:
        """Adds whom to tell about states; several engines in turn may share a backend.

        Takes the keyword `callback` in place of `func`, as older programs do.

        Raises:
            TypeError: It cannot be called.
        """
        if not callable(func):
            raise TypeError(f"register_callback needs something to call, got {func!r}")
        if func not in self.__callbacks:
            self.__callbacks = (*self.__callbacks, func)

    def unregister_callback(self, func: TaskCallback) -> None:
        """Stops telling `func`; unknown ones are ignored. Called by the engine when it ends."""
        self.__callbacks = tuple(one for one in self.__callbacks if one != func)

    def task_state_cb(
        self,
        task: Any,
        state: Any,
        service_callback: Callable[..., Any] | None = None,
    ) -> None:
        """Reports a state, a terminal one at most once per task. Any thread."""
        terminal = state in self.get_task_states_map().terminal_states
        if terminal and self.__open.pop(task["uid"], None) is None:
            return
        self.__report(task, state, service_callback)

    def report_state(
        self, task: Any, state: Any, service_callback: Callable[..., Any] | None = None
    ) -> None:
        """Tell everybody who was registered of a state, whatever was reported before. Any thread.

        For a backend that takes tasks out of `open_tasks` itself; others call `task_state_cb`.
        """
        for callback in self.__callbacks:
            if service_callback is None:
                callback(task, state)
            else:
                callback(task, state, service_callback=service_callback)

    __report = report_state

    def get_task_states_map(self) -> StateMapper:
        """The mapper registered for this backend, the canonical states where none was."""
        if self.__states is None:
            self.__states = StateMapper(self)
        return self.__states

    # What few backends need.

    @classmethod
    def diagnose(cls) -> Iterable[tuple[str, str, str]]:
        """What `rhapsody doctor` is to say of the installation, beyond that this class loads.

        Called in a process of its own, which has as long as a plugin may take to load.

        Returns:
            For each finding its level (`"ok"`, `"note"` or `"broken"`), what was
            found, and what to do about it, empty where nothing is to be done.
        """
        return ()

    def account(self) -> Mapping[str, Any]:
        """What the backend tells of its life, for the engine's summary; plain values.

        Called by the engine on its loop when it ends, after `shutdown` unless the
        backend goes on.
        """
        return {}

    def seconds_left(self, task: Any = None) -> float | None:
        """How long the batch job of this process goes on, which no backend outlives.

        A backend that ends by itself replaces it, and gives the smaller of the two.
        """
        return None if self.__job_ends is None else max(0.0, self.__job_ends - time.monotonic())

    def cores_in_use(self) -> tuple[float, int] | None:
        """How many cores tasks use now, and how many there are; `None` where that is not known.

        Called while a run is shown, about once a second and from any thread.
        """
        return None

    def build_task(self, *args: Any, **kwargs: Any) -> Any:
        """Gives the description back: it needs no translation."""
        return args[0] if args else kwargs

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> Any:
        """Does nothing: a backend with `capabilities.files` replaces it."""
        return None

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> Any:
        """Does nothing: a backend with `capabilities.files` replaces it."""
        return None


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be what the backend is called in an engine, got {name!r}")
    if not name.strip() or not name.isprintable():
        raise ValueError(
            f"name must be text on one line that can be read, got {name!r}; leave it out for the "
            "class's own"
        )
    return name.strip()


_always_there = itemgetter("uid", *TaskDescription.__required_keys__ - {"uid"})
"""Gives a description's keys that must be there, the uid first."""
