"""Descriptions and futures of tasks.

The engine creates descriptions and resolves futures; backends read descriptions and write results
into them. The module also contains retry policies, which the engine applies, and re-exports
`Resources`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
)

from rhapsody._private import is_unseen, mark_seen
from rhapsody.cards import ACTIVE, BAD, GOOD, IDLE, Card
from rhapsody.context import running_task
from rhapsody.data import OUTPUT_FILES, InputFile, input_from
from rhapsody.errors import DataError, Failure, describe_error, last_failure
from rhapsody.identity import AttemptId, Prefix, label
from rhapsody.resources import Resources, builtin_number, memory_in_bytes, seconds
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Policy for retrying a failed task.

    Args:
        attempts: Maximum number of attempts after the first one.
        wait: Time before the next attempt, in seconds or as text such as `"3 min"`; or a
            callable that takes the number of the failed attempt (from 1) and returns the time.
            The callable is called on the engine's loop.
        on: The type of the exceptions after which the task is retried, or several such types.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A number is negative, or `wait` is a string that is not a duration.
    """

    attempts: int = 1
    wait: float | str | Callable[[int], float | str] = 0.0
    on: type[BaseException] | Iterable[type[BaseException]] = Exception

    def __post_init__(self) -> None:
        object.__setattr__(self, "attempts", builtin_number(self.attempts))
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"retries must be a whole number, got {self.attempts!r}")
        if self.attempts < 0:
            raise ValueError(f"retries must be 0 or more, got {self.attempts}")
        if not callable(self.wait):
            object.__setattr__(self, "wait", seconds("wait", self.wait, zero=True))
        types: tuple[object, ...] = (self.on,)
        if isinstance(self.on, Iterable) and not isinstance(self.on, type | str):
            types = tuple(self.on)
            object.__setattr__(self, "on", types)
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"on must be an exception type or a list of these, got {kind!r}")

    def covers(self, error: BaseException) -> bool:
        """Return True if the policy applies to this exception."""
        return isinstance(error, cast("type[BaseException]", self.on))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the given attempt has failed."""
        wait = self.wait(attempt) if callable(self.wait) else self.wait
        return seconds("wait", wait, zero=True)


def as_policies(
    value: RetryPolicy | int | Sequence[RetryPolicy] | None,
) -> tuple[RetryPolicy, ...] | None:
    """Convert a policy, a sequence of policies or a number of retries to a tuple of policies.

    Raises:
        TypeError: The value is of another type.
        ValueError: The number is negative.

    Returns:
        At least one policy, or `None` if the value is `None`.
    """
    if value is None:
        return None
    if isinstance(value, RetryPolicy):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (RetryPolicy(attempts=value),)
    for each in value:
        if not isinstance(each, RetryPolicy):
            raise TypeError(
                "retries must be a whole number, a RetryPolicy or a list of policies such as "
                "[RetryPolicy(3, on=MemoryError), RetryPolicy(1, on=OSError)], got a list with "
                f"{each!r}"
            )
    return tuple(value) or (RetryPolicy(attempts=0),)


class NodeSample(NamedTuple):
    """Load of one node, on average over some seconds. Sizes are in bytes.

    Attributes:
        node: The name of the host.
        seconds: The time to which the sample applies.
        cpu: The share of the time in which the node's processors were busy, from 0 to 1.
        memory: The share of the memory that was not available at the end, from 0 to 1.
        memory_size: The size of the memory.
        read: Bytes read from the node's disks per second, without network file systems.
        written: Bytes written to these disks per second.
        received: Bytes received over the network per second, without the loopback interface.
        sent: Bytes sent in the same way.
        gpus: The share of the time in which each GPU was busy, from 0 to 1.
        time: The end of the time to which the sample applies, in seconds since the epoch. The
            engine sets it when it receives the sample, because the clocks of nodes may differ.
    """

    node: str
    seconds: float
    cpu: float
    memory: float
    memory_size: int
    read: float = 0.0
    written: float = 0.0
    received: float = 0.0
    sent: float = 0.0
    gpus: tuple[float, ...] = ()
    time: float = 0.0


class Usage(TypedDict, total=False):
    """Resources that an attempt has used. A key is absent if its value is unknown.

    Attributes:
        cpu_seconds: Processor time in user and system mode, of all processes together.
        peak_memory: Maximum resident memory in bytes; of the largest process if the sum of all
            processes is unknown.
        read_bytes: Bytes read from storage.
        written_bytes: Bytes written to storage.
        build_seconds: Time in which the attempt built worker values or waited for other attempts
            that did. It is not part of the attempt's run time.
    """

    cpu_seconds: float
    peak_memory: int
    read_bytes: int
    written_bytes: int
    build_seconds: float


class SandboxOwner(Protocol):
    """Owner of sandboxes, which `rhapsody.staging` implements; `staging` imports this module."""

    def drop(self, path: str) -> None:
        """Remove a sandbox that is no longer referenced, unless it stays until the end."""

    def spare(self, path: str) -> bool:
        """Keep a sandbox even if it is no longer referenced. Return False if it is kept already."""


class Sandbox:
    """Reference to a sandbox. The sandbox stays on disk while this object is alive.

    Args:
        path: The path of the sandbox.
        owner: The object that removes the sandbox.
        needs: Other sandboxes that contain the targets of links in this one.
    """

    __slots__ = ("_owner", "needs", "path")

    def __init__(self, path: str, owner: SandboxOwner, needs: tuple[Sandbox, ...] = ()) -> None:
        self.path: str = path
        self.needs: tuple[Sandbox, ...] = needs
        self._owner = owner

    def __del__(self) -> None:
        self._owner.drop(self.path)

    def __repr__(self) -> str:
        return f"<Sandbox {self.path!r}>"

    def spare(self) -> None:
        """Keep the sandbox, and those to which its links point, even after this object is freed."""
        waiting: list[Sandbox] = [self]
        while waiting:
            sandbox = waiting.pop()
            if sandbox._owner.spare(sandbox.path):
                waiting.extend(sandbox.needs)


class Regeneration(Protocol):
    """Repetition of a call of an earlier run, which recreates its missing files.

    `rhapsody.engine` implements this interface and imports this module.

    Attributes:
        name: The name and uid of the task, for messages.
    """

    name: str

    async def __call__(self, outcome: AttemptInfo, reader: str | None) -> None:
        """Recreate the files, and update the outcome of the call.

        Args:
            outcome: The outcome of the call that is repeated.
            reader: The uid of the attempt that reads the files; `None` if `flow.save` saves them.
        """

    def before(self) -> Sequence[Regeneration]:
        """Return the repetitions of the calls that wrote this call's missing inputs."""

    async def save(
        self, outcome: AttemptInfo, names: Sequence[str], place: str | os.PathLike[str]
    ) -> list[Path] | None:
        """Save files without repeating the call, or return `None` if one of them is missing."""


_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ProducedFiles:
    """Sandbox of an attempt that has ended, and the files in it.

    Attributes:
        sandbox: The attempt's directory.
        output_files: Names of the declared files and directories that the attempt wrote.
        matches: The names of the files that match each declared pattern, by pattern.
        paths: For a task whose recorded result was found, the paths of the files that an earlier
            run wrote, by name; files that are not listed are in the sandbox.
        inherited: The undeclared files and directories that the attempt received from its
            dependencies: the path of the original, by name.
        reference: The reference that keeps the sandbox on disk while dependents need it; `None` if
            the sandbox stays.
        regeneration: The repetition that recreates missing files of an earlier run.
    """

    sandbox: str | None = None
    output_files: tuple[str, ...] = ()
    matches: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _NOTHING)
    paths: Mapping[str, str] | None = None
    inherited: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    reference: Sandbox | None = None
    regeneration: Regeneration | None = None

    def path_of(self, name: str) -> str:
        """Return the path of a file or directory that the attempt wrote."""
        if self.paths is not None and name in self.paths:
            return self.paths[name]
        return os.path.join(self.sandbox or "", name)


NO_FILES: ProducedFiles = ProducedFiles()
"""Files of all attempts without a sandbox."""


@dataclass(slots=True)
class AttemptInfo:
    """Output, files, backend and host of a task's last attempt.

    Attributes:
        uid: The uid by which the backend knows the attempt. Empty if the attempt had no files and
            left only a short output: attempts with the same output then share this object.
        stdout: The attempt's standard output, or the path of the file that contains it.
        stderr: The attempt's standard error, or the path of the file that contains it.
        exit_code: The exit code of an executable; `None` for functions.
        backend: The name of the backend that ran the attempt.
        name: The task's name.
        host: The worker or host that ran the attempt, as the backend names it.
        usage: The resources that the attempt has used, if the backend reports them.
        files: The attempt's sandbox and files; `NO_FILES` if it has no sandbox.
    """

    uid: str
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    backend: str | None = None
    name: str = ""
    host: str | None = None
    usage: Usage | None = None
    files: ProducedFiles = NO_FILES

    @property
    def task(self) -> str:
        """The task's name and uid, such as `'clean' (task.000003)`."""
        return f"{self.name!r} ({AttemptId.of(self.uid).task.label})"


class Written(NamedTuple):
    """Output of ended tasks that an input refers to.

    Attributes:
        attempts: The last attempts of the tasks that declared the output: one, or several if they
            declared one pattern. Several that declared one file are an error.
        name: The name or pattern that they declared.
        bound: True if only this output is meant. Otherwise, an output with the input's name that a
            dependency wrote takes precedence.
    """

    attempts: tuple[AttemptInfo, ...]
    name: str
    bound: bool


class Declaration(NamedTuple):
    """Output that an input refers to, with the calls that declared it; see `Written`."""

    futures: tuple[TaskFuture[Any], ...]
    name: str
    bound: bool


__all__ = [
    "AttemptInfo",
    "Definition",
    "HeldValue",
    "LiveNode",
    "Reference",
    "Resources",
    "RetryPolicy",
    "TaskDescription",
    "TaskFuture",
    "TaskKind",
    "TaskMetadata",
    "Usage",
    "is_async",
    "memory_in_bytes",
    "seconds",
    "task_kind",
]

T = TypeVar("T")

TaskKind = Literal["function", "async_function", "executable", "service", "function_service"]
"""Kinds of tasks that the capabilities of backends distinguish."""


class TaskMetadata(TypedDict):
    """Dependencies and files of a task.

    `dependencies` contains the uids by which backends know the attempts whose values or files the
    task uses. `input_files` and `output_files` contain the names of declared files and
    directories, and declared patterns.
    """

    dependencies: Sequence[str]
    input_files: Sequence[str]
    output_files: Sequence[str]


class _RequiredKeys(TypedDict):
    uid: str
    name: str
    function: Callable[..., Any] | None
    executable: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_service: bool
    task_backend_specific_kwargs: dict[str, Any]
    metadata: TaskMetadata


class TaskDescription(_RequiredKeys, total=False):
    """One attempt at one task, as the engine submits it to a backend.

    The first nine keys are always present, the others only if they apply.

    Attributes:
        uid: The attempt's uid, unique across engines: `<engine uid>.task.000001.<attempt>`.
        name: The task's name for display; not unique.
        function: The function to call with `args` and `kwargs`, or `None` for an
            executable. May be synchronous or a coroutine function.
        executable: The program to run. A shell command if `arguments` is absent, as in hooks; the
            engine passes each command to backends as a program with arguments. `None` for a
            function.
        is_service: True if the task runs until it is canceled.
        task_backend_specific_kwargs: The user's settings for this backend.
        arguments: The program's arguments, without the program itself.
        resources: The resources that the task needs; absent means one core.
        timeout: Seconds that this attempt may run. Enforced by the engine; a hint for backends.
        attempt: The number of the attempt, starting at 1.
        environment: Variables to add to the task's environment.
        shell: The shell of a command that is a string: `"bash"`, `"sh"` or the words that precede
            the command. The engine has already changed the command so that this shell runs it.
        stdin: Text for standard input; absent means empty input.
        sandbox: The path, on the engine's file system, of the directory in which the task runs or,
            with `cwd`, of the directory that contains the task's files. The backend creates the
            directory, accessible only to the user, when the directory is first needed; see
            `rhapsody.sdk.make_sandbox`. Backends with their own sandboxes replace the value.
            Present for executables, and for functions with output files, with input files that they
            cannot read in place, or with `capture="files"`.
        cwd: The absolute path of the directory in which an executable runs instead of the sandbox.
            The backend does not write its own files into this directory. The key is passed only to
            backends that declare the capability `cwd`; see `rhapsody.sdk.working_directory`.
        container: The container image. The engine has already changed the command of an executable
            so that it runs there. `rhapsody.backends.EnvironmentCall` runs a function there; such
            tasks are passed only to backends that declare the capability `function_environments`.
            The same applies to `conda`, `venv` and `modules`.
        conda: The name or path of a conda environment.
        venv: The path of a virtual environment.
        modules: The names of environment modules.
        capture: Treatment of the task's output. `True` (the default if absent) captures it, `False`
            does not, and `"files"` leaves it in files in the sandbox and stores their paths in
            `stdout` and `stderr`. `"quiet"`, used only for functions, captures the output without
            printing it on the worker, because the engine shows it.
        scope: The label of the scope in which the task was called.
        priority: The priority, if it is not 0. A backend with its own queue starts waiting tasks
            with a higher priority first.
        trace_context: The W3C trace context of the attempt, as header names (`traceparent`) and
            their values. Set by a plugin in `rhapsody_trace_tasks`. Programs receive it as
            environment variables (`TRACEPARENT`), functions in `current_task().trace_context` and,
            if OpenTelemetry is installed where they run, as its current context. It does not
            count when an earlier result is looked up.
        identity: The identity of the call, for backends whose tasks may outlive the program: a
            string that is the same for the same call in a run that resumes this one, and the
            digests of the files that its arguments name, by path. A file that did not exist yet is
            missing. Absent if the results of the task are not recorded.
        context: A copy of the context (`contextvars`) in which the task was called. Passed only to
            the local backend.
        watch: Directories, each with a trailing slash, in which the backend notes the files that
            the function opens; see `rhapsody.sdk.watch_files`. Absent if none are noted.
        opened: The files that the function opened in the directories `watch`. Set by the backend.
        keep_arguments: A function that copies the arguments for a later attempt. A backend that
            runs functions in the engine's process calls it right before `function`, on the same
            thread. Passed only to backends with `shares_memory`, if the task may be retried.
        worker_values: The worker values in the arguments of a function, and the function that
            reports when they are built; see `rhapsody.sdk.TaskValues`. Absent if there are none.
        ready: The readiness condition of a service; see `rhapsody.TaskSettings`.
        return_value: The result of a finished function. Set by the backend.
        stdout: The task's standard output. Set by the backend.
        stderr: The task's standard error. Set by the backend.
        exit_code: The exit code of a finished executable. Set by the backend.
        exception: The exception with which the task failed. Set by the backend.
        worker: The worker or host that ran the task. Set by the backend if known.
        usage: The resources that the attempt has used. Set by the backend if known.
        interval: The times, in seconds since the epoch, at which the work started and ended.
            Set by the backend if its workers measure them.
        directory: The current directory in which a function ran. Set by the backend if the
            directory differs, or may differ, from that of the program.
        references: The uids of the tasks whose values `Reference` objects in `args` and `kwargs`
            stand for; only for backends with `unfinished_dependencies`.
        lost_retries: Number of times that the backend may recompute, after the loss of a worker,
            the values that the task refers to and the task's own value while the backend holds it;
            only for backends with `unfinished_dependencies`.
        held: The handle of the task's value. Set by the backend instead of `return_value` if the
            value stays on the backend because other tasks refer to this task; only by backends with
            `unfinished_dependencies`.
    """

    arguments: list[str]
    resources: Resources
    timeout: float
    attempt: int
    environment: dict[str, str]
    shell: str | tuple[str, ...]
    stdin: str
    sandbox: str
    cwd: str
    container: str
    conda: str
    venv: str
    modules: tuple[str, ...]
    capture: bool | Literal["files", "quiet"]
    scope: str
    priority: float
    trace_context: dict[str, str]
    identity: tuple[str, Mapping[str, str]]
    context: Context
    watch: tuple[str, ...]
    opened: Mapping[str, str]
    keep_arguments: Callable[[], None]
    worker_values: Any  # a `rhapsody.sdk.TaskValues`
    ready: str | Callable[..., Any]
    return_value: Any
    stdout: str
    stderr: str
    exit_code: int
    exception: BaseException
    worker: str
    usage: Usage
    interval: tuple[float, float]
    directory: str
    references: list[str]
    lost_retries: int
    held: HeldValue


class Reference:
    """Placeholder in a task's arguments for the value of an unfinished task of the same backend.

    A placeholder may be nested at any depth in lists, tuples, dicts and sets, but not in instances
    of their subclasses. The backend replaces it with the value. If the unfinished task ends without
    a value, the task with the placeholder fails with `rhapsody.backends.base.ReferenceLostError`.

    Attributes:
        uid: The uid by which the backend knows the attempt that computes the value.
    """

    __slots__ = ("uid",)

    def __init__(self, uid: str) -> None:
        self.uid: str = uid

    def __repr__(self) -> str:
        return f"Reference({self.uid!r})"


class HeldValue(Protocol):
    """The value of a finished task that stays on the backend until it is needed.

    The engine holds this object as long as the value may be requested. The backend releases the
    value when the object is freed, which may happen on any thread.
    """

    @property
    def size(self) -> int | None:
        """The approximate size of the value in bytes, or `None` if it is unknown.

        The engine fetches a value in order to record it if the task's `interval` was longer than
        the estimated time for fetching a value of this size.
        """

    async def fetch(self) -> Mapping[str, Any]:
        """Fetch the value, and return it with the other result keys of the task's description.

        The result keys are `return_value` or `exception`, and `stdout` and `stderr` if output was
        captured. The engine awaits this method on its loop. It does so again only after the
        previous call has ended.
        """


class Definition(Protocol):
    """Interface between the futures of calls and the decorated function that was called."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def kind(self) -> str:
        """The kind of work: `"function"`, `"executable"` or `"block"`."""

    @property
    def prefix(self) -> Prefix:
        """The first part of the futures' uids: `"task"` or `"block"`."""

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Record that the exception of a failed future was never retrieved."""


class TaskFacts:
    """Facts about a task or block. Once its work has ended, its future refers only to these.

    A future reads one for each of its dependencies, so this class is neither a named tuple, whose
    attributes take longer to read, nor a frozen dataclass, which takes longer to create.

    Attributes:
        uid: The uid of the last attempt, or `None` if there was none.
        definition: The decorated function that was called.
        backend: The name of the backend that the task was last submitted to, if any.
        outcome: The last attempt that has ended, if it left anything.
    """

    __slots__ = ("_number", "backend", "definition", "outcome", "uid")

    scheduler = None  # so that schedulers treat the future as one that they did not create
    computed: float = math.inf
    """See `rhapsody.engine.core.scheduler.computed`."""
    destinations: Mapping[str, str | None] = _NOTHING
    """The destinations of declared output files by name; `None` for those without."""

    def __init__(
        self,
        uid: str | None,
        number: int,
        definition: Definition,
        backend: str | None,
        outcome: AttemptInfo | None,
    ) -> None:
        self.uid: Final = uid
        self._number: Final = number if uid is None else None  # otherwise, it is part of the uid
        self.definition: Final = definition
        self.backend: Final = backend
        self.outcome: Final = outcome

    @property
    def number(self) -> int:
        """The number of the call in its engine."""
        return AttemptId.of(self.uid or "").task.number if self._number is None else self._number

    def with_outcome(self, outcome: AttemptInfo | None) -> TaskFacts:
        """Return the same facts with another outcome."""
        return TaskFacts(self.uid, self.number, self.definition, self.backend, outcome)


class RareFacts(TaskFacts):
    """Facts about a task that declares outputs, or whose result is one of an earlier run."""

    __slots__ = ("computed", "destinations")

    def with_outcome(self, outcome: AttemptInfo | None) -> RareFacts:
        """Return the same facts with another outcome."""
        facts = RareFacts(self.uid, self.number, self.definition, self.backend, outcome)
        facts.computed, facts.destinations = self.computed, self.destinations
        return facts


class LiveNode(Protocol):
    """Interface between a task's future and the task's record, used until the work has ended."""

    @property
    def uid(self) -> str | None:
        """The uid of the last attempt, or `None` if there was none."""

    def facts(self) -> TaskFacts:
        """Return the facts about the task so far."""

    def public_state(self) -> TasksMainStates:
        """Return the canonical state of the task."""

    def cancel(self, msg: Any) -> bool:
        """Cancel the task; return True if there was anything to cancel."""

    async def wait_ended(self) -> None:
        """Wait until the work has ended."""

    def describe(self) -> Mapping[str, Any] | None:
        """Return the task's description; `None` once the work has ended."""

    @property
    def started(self) -> float | None:
        """The time at which the attempt started, in seconds since the epoch.

        `None` if the attempt has not started.
        """


# asyncio's methods, called directly because `super()` takes longer than the methods themselves.
_result: Callable[[asyncio.Future[T]], T] = asyncio.Future.result
_exception: Callable[[asyncio.Future[Any]], BaseException | None] = asyncio.Future.exception
_await: Callable[[asyncio.Future[T]], Generator[Any, None, T]] = asyncio.Future.__await__


_STATE_COLORS = {
    TasksMainStates.DONE: GOOD,
    TasksMainStates.FAILED: BAD,
    TasksMainStates.CANCELED: IDLE,
}


class TaskFuture(asyncio.Future[T]):
    """The result of one call of a task or block; awaited like any asyncio future.

    Created by calling a decorated function, never directly. It belongs to the
    engine's loop; reading its attributes is safe from any thread.
    """

    __slots__ = (
        "_failure",
        "_link",
    )

    _pickle_advice: ClassVar[str] = (
        "pass the future to the task as an argument, which receives the value"
    )

    _failure: tuple[TracebackType | None, Failure | None]  # set with the exception; see `fail`
    _link: LiveNode | TaskFacts  # used only here and in `rhapsody.engine.core.record`
    _result: T  # asyncio's own

    @property
    def uid(self) -> str:
        """The uid of the task or block in its engine, such as `task.000001` or `block.000001`."""
        facts = facts_of(self)
        return label(facts.number, facts.definition.prefix)

    @property
    def id(self) -> str:
        """The number in the uid, such as `000001`."""
        return f"{facts_of(self).number:06d}"

    @property
    def name(self) -> str:
        """Name of the task, by default the name of its function."""
        return facts_of(self).definition.name

    @property
    def attempt(self) -> int:
        """The number of the current or last attempt, starting at 1."""
        uid = self._link.uid
        return 1 if uid is None else AttemptId.of(uid).number

    @property
    def backend(self) -> str | None:
        """The name of the backend that the task was last submitted to, or `None` before that."""
        return facts_of(self).backend

    @property
    def _node(self) -> LiveNode | None:
        """The task's record; `None` once the work has ended."""
        link = self._link
        return None if isinstance(link, TaskFacts) else link

    @property
    def _outcome(self) -> AttemptInfo | None:
        return facts_of(self).outcome

    @property
    def state(self) -> TasksMainStates:
        """The canonical state of the task.

        The state of a canceled or failed future is final, although its work may still be stopping;
        see `ended`. A service that is ready is `RUNNING`.
        """
        node = self._node
        if node is not None:
            return node.public_state()
        if not self.done():
            return TasksMainStates.PENDING
        if self.cancelled():
            return TasksMainStates.CANCELED
        # Looking at the exception through `exception()` would mark it as seen.
        return TasksMainStates.DONE if self._exception is None else TasksMainStates.FAILED

    @property
    def task(self) -> Mapping[str, Any] | None:
        """The task's description until its work has ended, then `None`; `None` for a block."""
        return self._described("task")

    @property
    def block(self) -> Mapping[str, Any] | None:
        """The block's description until it has ended, then `None`; `None` for a task."""
        return self._described("block")

    def _described(self, prefix: Prefix) -> Mapping[str, Any] | None:
        node = self._node
        if node is None or node.facts().definition.prefix != prefix:
            return None
        return node.describe()

    @property
    def stdout(self) -> str | None:
        """The task's standard output, or with `capture="files"` the path of the output file.

        `None` if no attempt has ended yet, or if the attempt's output was not captured.
        """
        return None if self._outcome is None else self._outcome.stdout

    @property
    def stderr(self) -> str | None:
        """The task's standard error, or with `capture="files"` the path of the error file.

        `None` if no attempt has ended yet, or if the attempt's output was not captured.
        """
        return None if self._outcome is None else self._outcome.stderr

    @property
    def exit_code(self) -> int | None:
        """The exit code of an executable that has ended, otherwise `None`."""
        return None if self._outcome is None else self._outcome.exit_code

    @property
    def usage(self) -> Usage | None:
        """The resources that the last attempt has used, or `None` if its backend reports none."""
        return None if self._outcome is None else self._outcome.usage

    @property
    def sandbox(self) -> str | None:
        """The directory that the task runs in or ran in, or `None` if it has none.

        The path is known before an attempt is submitted; the directory is created when the attempt
        begins.
        """
        task = self.task
        if task is not None and task.get("sandbox"):
            return str(task["sandbox"])
        return None if self._outcome is None else self._outcome.files.sandbox

    @property
    def files(self) -> dict[str, InputFile]:
        """The declared output files by name, as inputs for other tasks."""
        return {name: input_from(self, name) for name in facts_of(self).destinations}

    def file(self, name: str) -> InputFile:
        """Return a declared output file as an input for another task.

        A task that receives this input depends on the task of this future and reads the file that
        this task writes, even if other tasks declare a file of the same name.

        Args:
            name: The file's name without directories, or a name that matches a declared pattern.

        Raises:
            DataError: The task declares no such file.
        """
        declared = facts_of(self).destinations
        if name in declared or any(fnmatchcase(name, pattern) for pattern in declared):
            return input_from(self, name)
        there = f"it declares {', '.join(map(repr, declared))}" if declared else (
            "it declares no files at all: pass it an OutputFile"
        )  # fmt: skip
        raise DataError(f"{self.name!r} ({self.uid}) declares no file {name!r}; {there}")

    @property
    def stdout_path(self) -> str | None:
        """The path of the file that receives an executable's output, for example for `tail -f`.

        The file exists in the sandbox from the start of the attempt until the sandbox is removed.
        There is no such file with `capture=False`, or if the backend's own settings name another
        file. The path is `None` for a function, or if the task has no sandbox.
        """
        sandbox = self.sandbox
        if sandbox is None or facts_of(self).definition.kind != "executable":
            return None
        return os.path.join(sandbox, OUTPUT_FILES[0])

    @property
    def host(self) -> str | None:
        """The worker or host of the latest attempt, as its backend names it.

        After the task has ended, the host is known only if the task had a sandbox or its output was
        kept.
        """
        task = self.task
        if task is not None and task.get("worker") is not None:
            return str(task["worker"])
        return None if self._outcome is None else self._outcome.host

    @property
    def started_at(self) -> float | None:
        """The time at which the current attempt started, in seconds since the epoch.

        `None` before the attempt starts, and after the work has ended.
        """
        node = self._node
        return None if node is None else node.started

    def result(self) -> T:
        """Return the value or raise the exception of a finished task.

        Raises:
            asyncio.InvalidStateError: The task is not done. `await` the future instead, or call
                `rhapsody.wait` on a thread without an event loop.
        """
        if self._exception is not None:
            error: Any = _exception(self)
            try:  # with the original traceback, which asyncio keeps only for the first await
                raise error.with_traceback(getattr(self, "_failure", (None,))[0])
            finally:
                del self, error  # the traceback holds this frame
        try:
            return _result(self)
        except asyncio.InvalidStateError:
            raise self._not_done() from None

    def exception(self) -> BaseException | None:
        """Return the exception of a finished task, or `None` if the task succeeded.

        Raises:
            asyncio.InvalidStateError: The task is not done. `await` the future instead, or call
                `rhapsody.wait` on a thread without an event loop.
        """
        try:
            return _exception(self)
        except asyncio.InvalidStateError:
            raise self._not_done() from None

    def __await__(self) -> Generator[Any, None, T]:
        return _await(self) if self._exception is None else self._failed()

    def _failed(self) -> Generator[Any, None, T]:
        try:
            return self.result()
        finally:
            del self  # the traceback holds this frame
        yield  # makes this a generator, which never suspends

    def __del__(self) -> None:
        # asyncio logs each exception that was not retrieved; the engine logs all in one record.
        if is_unseen(self):
            mark_seen(self)
            facts_of(self).definition.unawaited(self)

    def _not_done(self) -> asyncio.InvalidStateError:
        return asyncio.InvalidStateError(
            f"{self.name!r} ({self.uid}) is not done: {how_to_wait()}, or pass it to a task, "
            "which receives the value"
        )

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task.

        A pending future and its dependents are canceled immediately. The engine asks the backend to
        stop the work; `ended` waits until the work has stopped. A service that is ready is stopped,
        and its future keeps its result. Canceling a block also cancels the unfinished tasks that
        the block has started.

        Args:
            msg: The message of the `asyncio.CancelledError`.

        Returns:
            True if anything was canceled; `False` for a finished task.
        """
        node = self._node
        return super().cancel(msg) if node is None else node.cancel(msg)

    async def ended(self) -> None:
        """Wait until the task's work has ended, which may be later than when the future is done.

        The method returns immediately if the work has ended, and does not raise the task's
        exception.
        """
        node = self._node
        if node is not None:
            await node.wait_ended()

    def __repr__(self) -> str:
        return f"<TaskFuture {self.uid} {self.name!r} {self.state}>"

    def _repr_html_(self) -> str:
        """Return the future as a notebook shows it."""
        return self._card().html()

    def __rich__(self) -> Table:
        """Return the future as rich shows it."""
        return self._card().rich()

    def _card(self) -> Card:
        task, state = self.task, self.state
        failed = self.done() and not self.cancelled() and self._exception is not None
        lines = describe_error(self._exception).strip().splitlines() if failed else [""]
        rows = {
            "state": str(state),
            "backend": self.backend or "",
            "host": self.host or "",
            "attempt": str(self.attempt) if self.attempt > 1 else "",
            "exit code": "" if self.exit_code is None else str(self.exit_code),
            "error": lines[0],
            "sandbox": self.sandbox or "",
        }
        environment = None if task is None else task.get("environment")
        began = self._link.uid is not None
        color = _STATE_COLORS.get(state, ACTIVE if began else IDLE)
        return Card(f"{self.name} ({self.uid})", color, rows, environment)

    def set_cancelled(self, msg: Any = None) -> bool:
        """Cancel only the future, without canceling its work. Called by the engine."""
        return super().cancel(msg)

    def fail(self, error: BaseException) -> None:
        """Set the exception, and remember its traceback and the failure.

        Another task may raise the same exception object later. Called by the engine.
        """
        self._failure = error.__traceback__, last_failure(error)
        self.set_exception(error)


def facts_of(future: TaskFuture[Any]) -> TaskFacts:
    """Return the facts about a task or block."""
    link = future._link
    return link if isinstance(link, TaskFacts) else link.facts()


def failure_of(future: object) -> Failure | None:
    """Return the failure of a failed task or block, if it is known."""
    found: Failure | None = getattr(future, "_failure", (None, None))[1]
    return found


def finished(loop: asyncio.AbstractEventLoop, facts: TaskFacts) -> TaskFuture[None]:
    """Return another future of a task that has succeeded, which does not contain the value."""
    future: TaskFuture[None] = TaskFuture(loop=loop)
    future._link = facts
    future.set_result(None)
    return future


def how_to_wait() -> str:
    """Return advice on how the calling thread can wait for a future, for error messages."""
    if running_task() is not None:
        return "wait for it in a @flow.block instead of a function task"
    return "`await` the future" if running_loop() else "call `rhapsody.wait(future)`"


def _without_value(sign: str) -> Callable[..., Any]:
    def refuse(self: TaskFuture[Any], *_: object) -> Any:
        raise TypeError(
            f"{sign} needs a value, got the future of {self.name!r} ({self.uid}): "
            f"{how_to_wait()}, or pass it to a task, which receives the value"
        )

    return refuse


_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//",
    "mod": "%", "pow": "**", "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
}  # fmt: skip
_OTHERS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "neg": "-", "abs": "abs()", "int": "int()",
    "float": "float()", "index": "an index", "getitem": "[]", "contains": "in",
    "bool": "a condition", "len": "len()", "iter": "iteration",
    "format": "an f-string without `!r`",
}  # fmt: skip
_REFLECTED = {f"r{name}": sign for name, sign in _BINARY.items()}
for _name, _sign in {**_BINARY, **_REFLECTED, **_OTHERS}.items():
    setattr(TaskFuture, f"__{_name}__", _without_value(_sign))


def task_kind(task: Mapping[str, Any]) -> TaskKind:
    """Return the kind of task that a description describes."""
    function = task.get("function")
    if function is None:
        return "service" if task.get("is_service") else "executable"
    if task.get("is_service"):
        return "function_service"
    return "async_function" if is_async(function) else "function"


def is_async(function: Callable[..., Any]) -> bool:
    """Return True if calling a function, partial or callable object returns a coroutine."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = cast("Any", function).func
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(type(function).__call__)
