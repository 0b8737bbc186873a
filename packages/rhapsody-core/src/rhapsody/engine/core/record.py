"""Record of one call of a task or block, from the call until its work has ended.

`Call` is the request, `AttemptRecord` contains the data of one attempt, and `TaskRecord` the state
in the scheduler. A record also implements the interface that the call's future uses. All decisions
about tasks are made in `rhapsody.engine.core.scheduler`.

With one object for all three, each attempt would have to reset what the last one left, and whatever
it forgot would leak into the next. The three objects take 0.7 µs more for each task; properties
that forward to them would leave open where an attribute belongs. When the work has ended,
`TaskRecord.let_go` leaves the future only its `TaskFacts`: a finished function without output takes
480 bytes, and a waiting one 760. The uid of the last attempt is kept instead of its number, because
the descriptions of dependents contain it.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeGuard, cast

from rhapsody.aio import Timer, on_loop
from rhapsody.engine.core import states
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.states import FutureState, TaskState, WorkState
from rhapsody.engine.functions.arguments import ArgumentScan, KeptArguments
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.identity import label
from rhapsody.staging.claims import Target
from rhapsody.staging.flow import FileFlow, FilePhase
from rhapsody.states import TasksMainStates
from rhapsody.task import (
    AttemptInfo,
    Declaration,
    LiveNode,
    RareFacts,
    TaskDescription,
    TaskFacts,
    TaskFuture,
    facts_of,
)

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


_INFINITE = math.inf


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


class Call:
    """Request of a task or block, with the futures and files that its arguments contain.

    A call does not change, except that the engine adds facts about the files to `found`. Attempts,
    restarts of a service and repetitions read the same call.
    """

    __slots__ = (
        "args",
        "context",
        "definition",
        "dependencies",
        "found",
        "kwargs",
        "number",
        "repeats",
        "scope",
        "specific",
        "task",
    )

    def __init__(
        self,
        definition: TaskFunction[Any, Any],
        task: TaskFunction[Any, Any],
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        specific: Mapping[str, Any] | None,
        dependencies: tuple[asyncio.Future[Any], ...] = (),
        found: ArgumentScan | None = None,
        scope: str | None = None,
        repeats: Repetition | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self.definition: Final = definition  # as decorated, without the values of its closure
        self.task: Final = task  # the definition, with the values of its closure at the call
        self.number: Final = number
        self.args: Final = args
        self.kwargs: Final = kwargs
        self.specific: Final = specific  # settings for the backend; `None` for those of `task`
        self.dependencies: Final = dependencies
        self.found: Final = found  # futures and files in the arguments
        self.scope: Final = scope
        self.repeats: Final = repeats  # set if the call repeats a recorded one
        self.context: Final = context  # set if the backend uses it

    def without_arguments(self) -> Call:
        """Return a call that refers to no values, for a record that outlives its task."""
        return Call(self.definition, self.task, self.number, (), None, None, scope=self.scope)


class AttemptRecord:
    """One attempt at a task, from its preparation until the attempt has ended.

    Attributes:
        number: The number of the attempt, starting at 1.
        uid: The uid by which the backend knows the attempt.
        backend: The backend that the attempt is prepared for, and later submitted to.
        description: The description that the backend receives. After the attempt, it is empty.
        command: The command of an executable, once it is built.
        prepared: Number of steps of the preparation that are done; `None` before the preparation.
        started: The time at which the work started, in seconds since the epoch, if it has started.
        outcome: The output and files of the attempt, if it has ended and left any.
    """

    __slots__ = (
        "backend",
        "command",
        "description",
        "number",
        "outcome",
        "prepared",
        "started",
        "uid",
    )

    def __init__(
        self,
        number: int,
        uid: str,
        backend: BackendHandle,
        description: TaskDescription,
        command: Command | None,
    ) -> None:
        self.number: Final = number
        self.uid: Final = uid
        self.backend: BackendHandle = backend
        self.description: Final = description
        self.command: Command | None = command
        self.prepared: int | None = None
        self.started: float | None = None
        self.outcome: AttemptInfo | None = None

    def ended(self) -> AttemptRecord:
        """Return an attempt that contains only what the next one needs to know of this one."""
        remains = AttemptRecord(self.number, self.uid, self.backend, NOT_DESCRIBED, self.command)
        remains.outcome = self.outcome
        return remains


NO_ATTEMPT: Final = AttemptRecord(0, "", cast("BackendHandle", None), NOT_DESCRIBED, None)
"""Attempt of all tasks that have not been prepared, and of blocks."""


class TaskRecord:
    """State of one call of a task or block in the scheduler, until its work has ended.

    Attributes:
        scheduler: The scheduler of the task.
        call: The request.
        future: The user's future.
        attempt: The current attempt or, between two attempts, the remaining data of the last one.
        outcome: The last attempt that has ended, if it left anything.
        submitted_to: The name of the backend that the task was last submitted to, if any.
        computed: See `rhapsody.engine.core.scheduler.computed`. While a block runs, the latest time
            of the tasks and blocks that it has called and whose work has ended, at first 0.
        state: The state in the transition table.
        unfinished: Number of dependencies that have not ended.
        sent: Number of unfinished dependencies that have been submitted; see `pushdown`.
        pushed: True if the task was submitted before its dependencies have finished.
        dependents: The tasks that wait for this one, in order; the values are unused.
        parent: The block in which the task was called.
        limits: The named limits that the task occupies.
        timer: The timeout of the attempt, or the wait before the next one.
        verdict: The error for which the work is being stopped.
        tries: The failed attempts, if there were any.
        kept: Copies of the arguments for further attempts in this process.
        lookup: The keys that a lookup has added to the description of each attempt.
        waiters: Functions to call when the work has ended.
        label: The future's uid, once it is needed; see `future_uid`.
        native: The backend's name for the last state, for events.
        files: The files of the attempt, if it has a sandbox or files.
    """

    __slots__ = (
        "attempt",
        "call",
        "computed",
        "dependents",
        "files",
        "future",
        "kept",
        "label",
        "limits",
        "lookup",
        "native",
        "outcome",
        "parent",
        "pushed",
        "scheduler",
        "sent",
        "state",
        "submitted_to",
        "timer",
        "tries",
        "unfinished",
        "verdict",
        "waiters",
    )

    def __init__(self, scheduler: Owner, call: Call, future: TaskFuture[Any]) -> None:
        self.scheduler: Final = scheduler
        self.call: Call = call
        self.future: Final = future
        self.outcome: AttemptInfo | None = None
        self.submitted_to: str | None = None
        self.computed: float = _INFINITE
        self.attempt: AttemptRecord = NO_ATTEMPT
        self.state: TaskState = states.START
        self.unfinished: int = 0
        self.sent: int = 0
        self.pushed: bool = False
        self.dependents: dict[TaskRecord, None] | None = None
        self.parent: BlockRecord | None = None
        self.limits: tuple[tuple[str, int], ...] = ()
        self.timer: Timer | None = None
        self.verdict: BaseException | None = None
        self.tries: Tries | None = None
        self.kept: KeptArguments | None = None
        self.lookup: dict[str, Any] | None = None
        self.waiters: list[Callable[[], object]] | None = None
        self.label: str | None = None
        self.native: str | None = None
        self.files: FileFlow | None = None
        future._link = self

    def named(self) -> str:
        """Return the name of the task for messages."""
        return f"{self.call.task.prefix} {self.call.task.name!r} ({self.future.uid})"

    def future_uid(self) -> str:
        """Return the uid of the future."""
        if self.label is None:
            self.label = label(self.call.number, self.call.definition.prefix)
        return self.label

    def texts(self) -> tuple[str, ...]:
        """Return the strings and paths in an executable's arguments, if results are recorded."""
        command = self.attempt.command
        return () if command is None else command.texts

    def elsewhere(self) -> str | None:
        """Return the name of the other backend that the task has moved to, or `None`."""
        return None if self.tries is None else self.tries.elsewhere

    def input_paths(self) -> Mapping[str, str | None]:
        """Return the paths of input files by name; the path of an unreadable file is `None`."""
        if self.files is None:
            return _NONE
        return {name: place.path for name, place in self.files.places.items()}

    def targets(self) -> Mapping[str, Target]:
        """Return the destinations of output files by name."""
        return _NONE if self.files is None else self.files.targets

    def start_anew(self) -> None:
        """End the last attempt, before the next one."""
        self.attempt = self.attempt.ended()
        if self.files is not None and self.files.phase is FilePhase.PLACED:
            self.files.stop()  # the backend has not reported how the attempt ended
        if self.elsewhere() is not None:
            # This backend may report less than the previous one.
            self.outcome = self.attempt.outcome = None

    def clear(self) -> None:
        """Release all values, because queues or tracebacks may still refer to an ended task."""
        self.call, self.attempt = self.call.without_arguments(), self.attempt.ended()
        self.files = self.verdict = self.kept = None

    def wait_for_dependencies(self, is_held: Callable[[Any], bool] | None) -> bool:
        """Count the unfinished dependencies, and arrange to be notified when they end.

        Args:
            is_held: Function that returns True for a dependency whose value a backend holds, so
                that the task need not wait; `None` if there are none.

        Returns:
            True if a dependency was canceled.
        """
        unfinished, cancelled, scheduler = 0, False, self.scheduler
        for dependency in self.call.dependencies:
            if is_held is not None and is_held(dependency):
                continue
            if dependency.done():
                cancelled = cancelled or dependency.cancelled()
                continue
            unfinished += 1
            other = getattr(dependency, "_link", None)
            if other is None or other.scheduler is not scheduler:
                dependency.add_done_callback(self.dependency_done)
            elif other.dependents is None:
                other.dependents = {self: None}
            else:
                other.dependents[self] = None
        self.unfinished = unfinished
        return cancelled

    def dependency_done(self, dependency: asyncio.Future[Any]) -> None:
        """Notify the scheduler. Called by dependencies that have no record in the scheduler."""
        self.scheduler.dependency_done(self, dependency)

    def note_outcome(self, outcome: AttemptInfo) -> None:
        """Store what the current attempt has left."""
        self.outcome = self.attempt.outcome = outcome

    def let_go(self) -> None:
        """Leave the future with the facts that remain, because the work has ended."""
        future = self.future
        if future._link is self:
            future._link = self.facts()

    # For the future (`rhapsody.task.LiveNode`).

    def facts(self) -> TaskFacts:
        """Return the facts about the task so far."""
        call, uid = self.call, self.attempt.uid or None
        number, definition, backend = call.number, call.definition, self.submitted_to
        if self.computed is _INFINITE and (call.found is None or not call.found.destinations):
            return TaskFacts(uid, number, definition, backend, self.outcome)
        facts = RareFacts(uid, number, definition, backend, self.outcome)
        facts.computed = self.computed
        facts.destinations = (
            TaskFacts.destinations if call.found is None else call.found.destinations
        )
        return facts

    @property
    def uid(self) -> str | None:
        """The uid of the last attempt, or `None` if there was none."""
        return self.attempt.uid or None

    def public_state(self) -> TasksMainStates:
        """Return the canonical state of the future, or of the work if the future is pending.

        The state of a ready service is RUNNING.
        """
        future, work = self.state.future, self.state.work
        if (
            future is FutureState.DONE
            and work is not WorkState.ENDED
            and self.call.task.settings.service
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
        call, task = self.call, self.call.task
        if self.attempt.description:
            return MappingProxyType(self.attempt.description)
        return {
            "uid": self.future.uid,
            "name": task.name,
            "function": task.function if task.kind != "executable" else None,
            "executable": None,
            "args": call.args,
            "kwargs": call.kwargs or {},
            "is_service": task.settings.service,
            "task_backend_specific_kwargs": dict(call.specific or task.settings.specific),
            "metadata": {"dependencies": (), "input_files": (), "output_files": ()},
        }

    @property
    def started(self) -> float | None:
        """The time at which the attempt started, in seconds since the epoch, or `None`."""
        return self.attempt.started


class BlockRecord(TaskRecord):
    """Record of one call of a block.

    Attributes:
        context: The context in which the block was called.
        children: The unfinished tasks and blocks that this block has called, in order; the values
            are unused.
        awaiting: The tasks and blocks that this block is waiting for.
        in_wait: True while the thread of a synchronous block is in `rhapsody.wait`.
        running: The asyncio task of an asynchronous block while it runs, otherwise `None`.
    """

    __slots__ = ("awaiting", "children", "context", "in_wait", "running")

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
    return cast("TaskFunction[Any, Any]", facts_of(future).definition).settings.service


def link_of(future: asyncio.Future[Any]) -> object:
    """Return the record, the held value or the facts that a future refers to, if it is a task's."""
    return getattr(future, "_link", None)


def record_of(future: asyncio.Future[Any]) -> TaskRecord | None:
    """Return the record of a task or block whose work has not ended."""
    link = getattr(future, "_link", None)
    return link if isinstance(link, TaskRecord) else None


def replace_link(future: TaskFuture[Any], former: object, link: LiveNode | TaskFacts) -> None:
    """Let a future refer to another object, unless it does not refer to `former` any more."""
    if future._link is former:
        future._link = link


def attempt_uids(futures: Iterable[asyncio.Future[Any]]) -> list[str]:
    """Return the uids of the last attempts of those futures that are tasks with attempts."""
    return [
        uid
        for future in futures
        if isinstance(future, TaskFuture) and (uid := future._link.uid) is not None
    ]
