"""Record of one call of a task or block, from the call until its work has ended.

A record stores the data of the call and implements the interface that the call's future uses. All
decisions about tasks are made in `rhapsody.engine.core.scheduler`.
"""

from __future__ import annotations

import asyncio
import contextvars
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeGuard, cast

from rhapsody.aio import Timer, on_loop
from rhapsody.engine.core import states
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.states import FutureState, TaskState, WorkState
from rhapsody.engine.functions.arguments import ArgumentScan, KeptArguments
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.staging.claims import Target
from rhapsody.staging.files import Resolved
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, Declaration, TaskDescription, TaskFuture

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
"""Description of a task without an attempt: empty, therefore false, and never changed."""


class Owner(Protocol):
    """Interface between task records and the scheduler, whose module imports this one."""

    def cancel(self, record: TaskRecord, msg: Any = None) -> bool:
        """Cancel a task. Called on the loop."""

    def dependency_done(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """Handle the end of a dependency that has no record in the scheduler."""


@dataclass(slots=True)
class Command:
    """Command of an executable, once it is built.

    Attributes:
        words: A string for a shell, or a list of arguments.
        sandbox: Path of the sandbox for which the command was built; `words` may contain this path.
        texts: Strings and paths in the arguments of the call; empty if results are not recorded.
        built: The time, in seconds since the epoch, at which the function was called.
        opened: The files that the function of a service opened; see `rhapsody.sdk.watch_files`.
            Empty if results are not recorded.
    """

    words: str | list[str]
    sandbox: str
    texts: tuple[str, ...]
    built: float = 0.0
    opened: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words if isinstance(self.words, str) else shlex.join(self.words)


@dataclass(slots=True)
class Tries:
    """Failed attempts of a task.

    Attributes:
        failures: Number of failures that each retry policy matched, by the policy's index.
        losses: Number of attempts that the infrastructure lost.
        by_backend: Number of failed attempts by backend, if the task has `other_backends`.
        elsewhere: Name of the backend in `other_backends` that the task has moved to, if any.
        restarts: Number of times that a service was restarted after it had been ready.
    """

    failures: dict[int, int] = field(default_factory=dict)
    losses: int = 0
    by_backend: dict[str, int] = field(default_factory=dict)
    elsewhere: str | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Repetition:
    """Repetition of a call whose recorded result was found, but whose files are missing.

    Attributes:
        attempt: Uid of the attempt, in this run, for which the recorded result was found.
        producers: The outputs that the repeated call's inputs stand for, as in `ArgumentScan`.
        readers: Uids of the tasks that have requested the files so far.
    """

    attempt: str
    producers: Mapping[int, Declaration]
    readers: set[str] = field(default_factory=set)


class TaskRecord:
    """Record of one call of a task or block, until its work has ended."""

    __slots__ = (
        "args",
        "attempt",
        "backend",
        "call_context",
        "command",
        "dependencies",
        "dependents",
        "description",
        "found",
        "future",
        "identity",
        "kept",
        "kwargs",
        "label",
        "left",
        "limits",
        "native",
        "number",
        "parent",
        "pushed",
        "repeats",
        "resolved",
        "scheduler",
        "scope",
        "sent",
        "sources",
        "specific",
        "started",
        "state",
        "steps",
        "task",
        "timer",
        "tries",
        "uid",
        "unfinished",
        "verdict",
        "waiters",
        "watch",
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
        dependencies: tuple[asyncio.Future[Any], ...] = (),
        found: ArgumentScan | None = None,
        scope: str | None = None,
        repeats: Repetition | None = None,
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
        self.sent: int = 0  # unfinished dependencies that have been submitted; see `pushdown`
        self.pushed: bool = False  # submitted before its dependencies have finished
        self.attempt: int = 0
        self.steps: Iterator[Any] | None = None  # remaining steps of the preparation
        self.started: float | None = None  # start of the attempt, in seconds since the epoch
        self.uid: str = ""
        self.label: str | None = None  # the future's uid, once it is needed for events
        self.native: str | None = None  # the backend's name for the last state, for events
        self.dependencies: tuple[asyncio.Future[Any], ...] = dependencies
        self.dependents: dict[TaskRecord, None] | None = None
        self.description: TaskDescription = NOT_DESCRIBED  # of the attempt
        self.identity: tuple[str, Mapping[str, str]] | None = None
        self.watch: tuple[str, ...] = ()
        self.kept: KeptArguments | None = None  # for retries in this process
        self.backend: BackendHandle  # unset until a backend has been chosen
        self.parent: BlockRecord | None = None
        self.found: ArgumentScan | None = found  # futures and files in the arguments
        self.resolved: Resolved | None = None  # the input files, once found
        self.limits: tuple[tuple[str, int], ...] = ()  # named limits that the task occupies
        self.timer: Timer | None = None  # the timeout, or the wait before a retry
        self.verdict: BaseException | None = None  # the error for which the work is being stopped
        self.scope: str | None = scope
        self.command: Command | None = None  # of an executable, once built
        self.call_context: contextvars.Context | None = None  # of the call, if the backend uses it
        self.tries: Tries | None = None  # failed attempts, if there were any
        self.repeats: Repetition | None = repeats  # set if the call repeats a recorded one
        self.sources: Sequence[AttemptInfo] = ()  # of dependencies that left files in sandboxes
        self.left: Sequence[AttemptInfo] = ()  # those whose undeclared files the task receives
        self.waiters: list[Callable[[], object]] | None = None  # called when the work has ended

    def named(self) -> str:
        """Return the name of the task for messages."""
        return f"{self.task.prefix} {self.task.name!r} ({self.future.uid})"

    def texts(self) -> tuple[str, ...]:
        """Return the strings and paths in an executable's arguments, if results are recorded."""
        return () if self.command is None else self.command.texts

    def elsewhere(self) -> str | None:
        """Return the name of the other backend that the task has moved to, or `None`."""
        return None if self.tries is None else self.tries.elsewhere

    def input_paths(self) -> Mapping[str, str | None]:
        """Return the paths of input files by name; the path of an unreadable file is `None`."""
        return _NONE if self.resolved is None else self.resolved.paths()

    def targets(self) -> Mapping[str, Target]:
        """Return the destinations of output files by name."""
        return {} if self.resolved is None else self.resolved.targets

    def matches(self) -> Mapping[str, tuple[str, ...]]:
        """Return the files that match each output pattern, after a successful attempt."""
        return {} if self.resolved is None else self.resolved.matches

    def start_anew(self) -> None:
        """Discard the data of the last attempt, before the next one."""
        self.started = self.resolved = self.steps = None
        self.description = NOT_DESCRIBED
        if self.elsewhere() is not None:
            self.future._outcome = None  # this backend may report less than the previous one

    def clear(self) -> None:
        """Release all values, because queues or tracebacks may still refer to an ended task."""
        self.dependencies = self.args = self.sources = self.left = ()
        self.kwargs = self.specific = self.found = self.resolved = self.verdict = self.kept = None
        self.call_context = None
        self.description = NOT_DESCRIBED

    def dependency_done(self, dependency: asyncio.Future[Any]) -> None:
        """Notify the scheduler. Called by dependencies that have no record in the scheduler."""
        self.scheduler.dependency_done(self, dependency)

    # For the future (`rhapsody.task.LiveNode`).

    def public_state(self) -> TasksMainStates:
        """Return the canonical state of the future, or of the work if the future is pending.

        The state of a ready service is RUNNING.
        """
        future, work = self.state.future, self.state.work
        if (
            future is FutureState.DONE
            and work is not WorkState.ENDED
            and self.task.settings.service
        ):
            return TasksMainStates.RUNNING
        return _FUTURE_STATES.get(future) or _WORK_STATES[work]

    def cancel(self, msg: Any) -> bool:
        """Cancel the task; see `TaskFuture.cancel`. May be called from any thread."""
        return on_loop(self.future.get_loop(), partial(self.scheduler.cancel, self, msg))

    async def wait_ended(self) -> None:
        """Wait until the work has ended."""
        if self.state.work in states.FINISHED and self.state.future is not FutureState.PENDING:
            return
        ended = asyncio.get_running_loop().create_future()
        self.waiters = self.waiters or []
        self.waiters.append(lambda: None if ended.done() else ended.set_result(None))
        await ended

    def describe(self) -> Mapping[str, Any]:
        """Return the attempt's description or, before there is one, a description of the call."""
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


class BlockRecord(TaskRecord):
    """Record of one call of a block.

    Attributes:
        context: The context in which the block was called.
        children: The unfinished tasks and blocks that this block has called, in order; the values
            are unused.
        computed: The latest time of `computed` (in `rhapsody.engine.core.scheduler`) of the tasks
            and blocks that this block has called and whose work has ended; 0 if there are none.
            When the block ends, its dependencies are included.
        awaiting: The tasks and blocks that this block is waiting for.
        in_wait: True while the thread of a synchronous block is in `rhapsody.wait`.
        running: The asyncio task of an asynchronous block while it runs, otherwise `None`.
    """

    __slots__ = ("awaiting", "children", "computed", "context", "in_wait", "running")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.context: contextvars.Context = contextvars.copy_context()
        self.children: dict[TaskRecord, None] = {}
        self.computed: float = 0.0
        self.awaiting: list[TaskRecord] = []
        self.in_wait: bool = False
        self.running: asyncio.Task[Any] | None = None


def is_service(future: object) -> TypeGuard[TaskFuture[Any]]:
    """Return True if `future` is the future of a service."""
    if not isinstance(future, TaskFuture):
        return False
    return cast("TaskFunction[Any, Any]", future._definition).settings.service
