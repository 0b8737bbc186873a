"""One call of a task or block, from the call until its work has ended.

A task holds what is known of the call and answers its future's questions. What
happens to it is decided in `rhapsody.engine.scheduler`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, cast

from rhapsody.aio import on_loop
from rhapsody.engine import states
from rhapsody.engine.arguments import ArgumentScan
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.background import Timer
from rhapsody.engine.states import FutureState, TaskState, WorkState
from rhapsody.engine.task_function import TaskFunction
from rhapsody.staging.destinations import Target
from rhapsody.staging.inputs import Resolved
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, TaskDescription, TaskFuture

_FUTURE_STATES = {
    FutureState.DONE: TasksMainStates.DONE,
    FutureState.FAILED: TasksMainStates.FAILED,
    FutureState.CANCELLED: TasksMainStates.CANCELED,
}
_WORK_STATES = {
    WorkState.WAITING: TasksMainStates.PENDING,
    WorkState.READY: TasksMainStates.PENDING,
    WorkState.RETRY_WAIT: TasksMainStates.PENDING,
    WorkState.SUBMITTING: TasksMainStates.SUBMITTED,
    WorkState.SUBMITTED: TasksMainStates.SUBMITTED,
    WorkState.RUNNING: TasksMainStates.RUNNING,
    WorkState.SERVING: TasksMainStates.RUNNING,
    WorkState.CANCELING: TasksMainStates.RUNNING,
    WorkState.ENDED: TasksMainStates.RUNNING,
    WorkState.LOST: TasksMainStates.RUNNING,
}


_NONE: Mapping[Any, Any] = MappingProxyType({})

NOT_DESCRIBED: TaskDescription = cast("TaskDescription", {})
"""Description of a task without an attempt. Never changed; test whether a description is true."""


class Owner(Protocol):
    """Scheduler of a task."""

    def cancel(self, record: TaskRecord, msg: Any = None) -> bool:
        """Cancel a task; on the loop."""


class Extra:
    """What only some tasks need, kept out of the others."""

    __slots__ = (
        "awaiting",
        "block",
        "built_for",
        "children",
        "command",
        "context",
        "elsewhere",
        "failures",
        "in_wait",
        "losses",
        "made_for",
        "makes_again",
        "restarts",
        "scope",
        "sources",
        "texts",
        "tried",
        "waiters",
    )

    def __init__(self) -> None:
        self.awaiting: list[TaskRecord] = []  # the blocks that a block awaits now
        self.block: asyncio.Task[Any] | None = None  # what runs an asynchronous block
        self.built_for: str = ""  # the sandbox that `command` was built for
        self.children: dict[TaskRecord, None] = {}  # what a block has started
        self.command: str | list[str] | None = None  # an executable's, once built
        self.context: contextvars.Context | None = None  # the one a block was called in
        self.elsewhere: str | None = None  # the one of its `other_backends` that it has gone on to
        self.failures: Mapping[int, int] = (
            _NONE  # attempts that failed, by the place of their policy
        )
        self.in_wait: bool = False  # the thread of a synchronous block is in `wait`
        self.losses: int = 0  # attempts that the infrastructure lost
        self.made_for: Set[str] = frozenset()  # readers of the files that it produces again
        self.makes_again: str | None = None  # the attempt that was found, and files of it are gone
        self.restarts: int = 0  # how often a service was started again after it was ready
        self.scope: str | None = None
        self.sources: list[AttemptInfo] = []  # what its dependencies left in sandboxes
        self.texts: tuple[str, ...] = ()  # strings in an executable's arguments
        self.tried: Mapping[str, int] = (
            _NONE  # failed attempts by backend, where it has `other_backends`
        )
        self.waiters: list[Callable[[], object]] = []  # called at the end of the work


class TaskRecord:
    """One call of a task or block while its work is alive."""

    __slots__ = (
        "args",
        "attempt",
        "backend",
        "dependencies",
        "dependents",
        "description",
        "extra",
        "found",
        "future",
        "kwargs",
        "limits",
        "native",
        "number",
        "parent",
        "pushed",
        "resolved",
        "scheduler",
        "specific",
        "stage",
        "started",
        "state",
        "task",
        "timer",
        "uid",
        "unfinished",
        "unsent",
        "verdict",
    )

    def __init__(
        self,
        scheduler: Owner,
        task: TaskFunction[Any, Any],
        future: TaskFuture[Any],
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        specific: Mapping[str, Any] | None,
    ) -> None:
        self.scheduler: Owner = scheduler
        self.task: TaskFunction[Any, Any] = task
        self.future: TaskFuture[Any] = future
        self.number: int = number
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] | None = kwargs
        self.specific: Mapping[str, Any] | None = specific
        self.state: TaskState = states.START
        self.unfinished: int = 0
        self.unsent: int = 0  # dependencies that are with a backend, see `pushdown`
        self.pushed: bool = False  # it is with a backend before they are finished
        self.attempt: int = 0
        self.stage: int = 0
        self.started: float | None = None  # when it began to run, since the epoch
        self.uid: str = ""
        self.native: str | None = None  # the backend's word for the last state, for events
        self.dependencies: tuple[asyncio.Future[Any], ...] = ()
        self.dependents: dict[TaskRecord, None] | None = None
        self.description: TaskDescription = NOT_DESCRIBED  # of the attempt
        self.backend: BackendHandle  # unset until a backend has been chosen
        self.parent: TaskRecord | None = None
        self.found: ArgumentScan | None = None  # futures and files in the arguments
        self.resolved: Resolved | None = None  # the input files, once found
        self.limits: tuple[tuple[str, int], ...] = ()  # named limits that it occupies
        self.timer: Timer | None = None  # its timeout, or the wait before a retry
        self.verdict: BaseException | None = None  # why its work is being stopped
        self.extra: Extra | None = None  # rarely needed fields

    def named(self) -> str:
        """Its task in messages."""
        return f"{self.task.prefix} {self.task.name!r} ({self.future.uid})"

    def more(self) -> Extra:
        """The task's rare fields, made when first needed."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    def texts(self) -> tuple[str, ...]:
        """The strings and paths in the arguments of an executable, where results are recorded."""
        return () if self.extra is None else self.extra.texts

    def input_paths(self) -> Mapping[str, str | None]:
        """Where the input files are, by their names; `None` for what cannot be read here."""
        return _NONE if self.resolved is None else self.resolved.paths()

    def targets(self) -> Mapping[str, Target]:
        """Where its output files are to be saved, by their names."""
        return {} if self.resolved is None else self.resolved.targets

    def matches(self) -> Mapping[str, tuple[str, ...]]:
        """The files that match each pattern of its outputs, once an attempt has ended well."""
        return {} if self.resolved is None else self.resolved.matches

    def start_anew(self) -> None:
        """The next attempt is described from the beginning."""
        self.stage = 0
        self.started = None
        self.description = NOT_DESCRIBED
        if self.extra is not None and self.extra.elsewhere is not None:
            self.future._outcome = None  # this backend may keep less than the one before

    # What the future asks (`rhapsody.task.LiveNode`).

    def public_state(self) -> TasksMainStates:
        """The canonical state of the future, or of the work while that is undecided."""
        future, work = self.state.future, self.state.work
        if (
            future is FutureState.DONE
            and work is not WorkState.ENDED
            and self.task.settings.service
        ):
            return TasksMainStates.RUNNING
        return _FUTURE_STATES.get(future) or _WORK_STATES[work]

    def cancel(self, msg: Any) -> bool:
        """Cancels from any thread; see `TaskFuture.cancel`."""
        return on_loop(self.future.get_loop(), partial(self.scheduler.cancel, self, msg))

    async def wait_ended(self) -> None:
        """Waits until the task is closed."""
        if self.state.work in states.OVER and self.state.future is not FutureState.PENDING:
            return
        ended = asyncio.get_running_loop().create_future()
        self.more().waiters.append(lambda: None if ended.done() else ended.set_result(None))
        await ended

    def describe(self) -> Mapping[str, Any]:
        """The description of the attempt, or of the call before the first one."""
        if self.description:
            return MappingProxyType(self.description)
        return {
            "uid": self.future.uid,
            "name": self.task.name,
            "function": self.task.function if self.task.kind != "executable" else None,
            "executable": None,
            "args": self.args,
            "kwargs": self.kwargs or {},
            "is_service": self.task.settings.service,
            "task_backend_specific_kwargs": dict(self.specific or self.task.settings.specific),
            "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        }
