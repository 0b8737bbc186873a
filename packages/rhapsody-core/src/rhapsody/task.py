"""What a task is: its description on the wire and its future.

The engine builds descriptions and resolves futures; backends read descriptions
and write results into them. Neither logic lives here. What users set for a task,
its resources and retries, has modules of its own and can be had from here, too.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Generator, Mapping
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Literal, Protocol, TypedDict, TypeVar, cast

from rhapsody.data import OUTPUT_FILES, InputFile, input_from
from rhapsody.errors import DataError, first_call
from rhapsody.outcome import AttemptInfo
from rhapsody.quantities import memory_in_bytes, seconds
from rhapsody.resources import Resources
from rhapsody.retries import RetryPolicy
from rhapsody.states import TasksMainStates

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
    "is_async",
    "memory_in_bytes",
    "seconds",
    "task_kind",
]

T = TypeVar("T")

TaskKind = Literal["function", "async_function", "executable", "service", "function_service"]
"""What a backend distinguishes when it says what it can run and cancel."""


class TaskMetadata(TypedDict):
    """What a task is connected with.

    `dependencies` are the backend uids of the attempts whose values or files the
    task uses, `input_files` and `output_files` the names of declared files and directories,
    or the patterns.
    """

    dependencies: list[str]
    input_files: list[str]
    output_files: list[str]


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
    """One attempt at one task, as the engine hands it to a backend.

    The first nine keys are always there. Of the others only those that apply.

    Attributes:
        uid: Unique over engines and attempts: `<engine uid>.task.000001.<attempt>`.
        name: The task's name, for people; not unique.
        function: The function to call with `args` and `kwargs`, `None` for an
            executable. May be synchronous or a coroutine function.
        executable: A shell command where `arguments` is absent, else the program
            to run without a shell. `None` for a function.
        is_service: The task runs until it is cancelled.
        task_backend_specific_kwargs: The user's settings in the backend's own words.
        arguments: The program's arguments, without the program itself.
        resources: What the task needs; absent means one core.
        timeout: Seconds this attempt may run. Enforced by the engine; a backend
            may use it as a hint.
        attempt: Counted from 1.
        environment: Variables to add to the task's environment.
        stdin: Text for standard input; absent means an empty one.
        sandbox: The directory, on the engine's file system, that the task runs in, or with
            `cwd` that its files are in. The backend creates it when it first needs it, private to
            the user. Backends with sandboxes of their own replace the value.
        cwd: The directory, an absolute path, that an executable runs in instead. It stays as
            it is; only backends that declare the capability get it.
        capture: `True` (the default where absent) keeps what the task prints,
            `False` does not, `"files"` leaves it in files in the sandbox and gives
            their paths in `stdout` and `stderr`. `"quiet"`, for functions alone: as `True`,
            but what is printed is not shown by the worker, for the engine shows it.
        scope: The label of the scope the task was made in.
        ready: How a service says that it is ready, see `WorkflowEngine`.
        return_value: Set by the backend: a finished function's result.
        stdout: Set by the backend: what the task wrote to standard output.
        stderr: Set by the backend: what it wrote to standard error.
        exit_code: Set by the backend: a finished executable's exit code.
        exception: Set by the backend: why the task failed, an exception object.
        worker: Set by the backend where known: the worker or host that ran it.
        references: The uids of the tasks whose values stand as `Reference` in `args`
            and `kwargs`; only for backends with `unfinished_dependencies`.
        lost_retries: How often the backend may make the values again that the task refers
            to, and its own once it is held, where a worker is lost meanwhile; only for
            backends with `unfinished_dependencies`.
        held: Set by the backend in place of `return_value`: the value stays there, for
            other tasks refer to this one; only by backends with `unfinished_dependencies`.
    """

    arguments: list[str]
    resources: Resources
    timeout: float
    attempt: int
    environment: dict[str, str]
    stdin: str
    sandbox: str
    cwd: str
    capture: bool | Literal["files", "quiet"]
    scope: str
    ready: str | Callable[..., Any]
    return_value: Any
    stdout: str
    stderr: str
    exit_code: int
    exception: BaseException
    worker: str
    references: list[str]
    lost_retries: int
    held: HeldValue


class Reference:
    """Stands in arguments for the value of a task that its backend has not finished yet.

    In exact lists, tuples, dicts and sets at any depth. The backend replaces it with
    the value; where that task leaves none, it fails this one with
    `rhapsody.backends.base.ReferenceLostError`.

    Attributes:
        uid: The backend uid of that task's attempt.
    """

    __slots__ = ("uid",)

    def __init__(self, uid: str) -> None:
        self.uid: str = uid

    def __repr__(self) -> str:
        return f"Reference({self.uid!r})"


class HeldValue(Protocol):
    """A finished task's value that its backend keeps until somebody asks for it.

    The engine holds this object as long as anybody may ask: the backend gives the
    value up when the object goes, on whatever thread.
    """

    async def fetch(self) -> Mapping[str, Any]:
        """What else would have been in the description: `return_value` or `exception`, output.

        Awaited by the engine on its loop, once at most.
        """


class Definition(Protocol):
    """What a future knows of the decorated function it came from."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def kind(self) -> str:
        """`"function"`, `"executable"` or `"block"`."""

    @property
    def prefix(self) -> str:
        """`"task"` or `"block"`."""

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Takes note of a failure that nobody looked at."""


class LiveNode(Protocol):
    """What a future asks of the engine while its work has not ended."""

    def public_state(self) -> TasksMainStates:
        """Return the canonical state."""

    def cancel(self, msg: Any) -> bool:
        """Cancels it; whether there was anything to cancel."""

    async def wait_ended(self) -> None:
        """Waits for the end of the work."""

    def describe(self) -> Mapping[str, Any] | None:
        """Its description while its work is alive."""

    @property
    def started(self) -> float | None:
        """When its attempt began to run, in seconds since the epoch."""


# Of asyncio itself: `super()` would take longer than they do.
_result: Callable[[asyncio.Future[T]], T] = asyncio.Future.result
_exception: Callable[[asyncio.Future[Any]], BaseException | None] = asyncio.Future.exception
_await: Callable[[asyncio.Future[T]], Generator[Any, None, T]] = asyncio.Future.__await__


class TaskFuture(asyncio.Future[T]):
    """The result of one call of a task or block; awaited like any asyncio future.

    Made by calling a decorated function, never directly. It lives on the
    engine's loop; reading its attributes is safe from any thread.
    """

    __slots__ = (
        "_backend",
        "_call",
        "_definition",
        "_node",
        "_number",
        "_outcome",
        "_promised",
        "_traceback",
        "_uid",
    )

    _backend: str | None
    _call: str | None
    _definition: Definition
    _node: LiveNode | None
    _number: int
    _outcome: AttemptInfo | None
    _promised: Mapping[str, str | None]  # names of files, with their places; only where it has some
    _result: T  # asyncio's own
    _traceback: TracebackType | None
    _uid: str | None  # of the latest attempt, as backends know it

    @property
    def uid(self) -> str:
        """The task's uid in its engine, `task.000001` or `block.000001`."""
        return f"{self._definition.prefix}.{self._number:06d}"

    @property
    def id(self) -> str:
        """The number in the uid, `000001`."""
        return f"{self._number:06d}"

    @property
    def name(self) -> str:
        """The task's name: the function's, unless another was given."""
        return self._definition.name

    @property
    def attempt(self) -> int:
        """Which attempt is running or was the last one, counted from 1."""
        return 1 if self._uid is None else int(self._uid.rpartition(".")[2])

    @property
    def backend(self) -> str | None:
        """The name of the backend the task was last given to, `None` before that."""
        return self._backend

    @property
    def state(self) -> TasksMainStates:
        """Where the task is, in canonical states.

        A future that is cancelled or failed says so although its work may still
        be stopping, see `ended`; a service that is ready says `RUNNING`.
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
        """The task's description while its work is alive, else `None`."""
        node = self._node
        return None if node is None or self._definition.prefix != "task" else node.describe()

    @property
    def block(self) -> Mapping[str, Any] | None:
        """The block's description while it is alive, else `None`."""
        node = self._node
        return None if node is None or self._definition.prefix != "block" else node.describe()

    @property
    def stdout(self) -> str | None:
        """What the task wrote to standard output, or with `capture="files"` where it is."""
        return None if self._outcome is None else self._outcome.stdout

    @property
    def stderr(self) -> str | None:
        """What the task wrote to standard error, or with `capture="files"` where it is."""
        return None if self._outcome is None else self._outcome.stderr

    @property
    def exit_code(self) -> int | None:
        """An executable's exit code once it has ended."""
        return None if self._outcome is None else self._outcome.exit_code

    @property
    def sandbox(self) -> str | None:
        """The directory the task runs in or ran in, `None` where it has none.

        Known once an attempt is described, and made when it begins, see `state`.
        """
        task = self.task
        if task is not None and task.get("sandbox"):
            return str(task["sandbox"])
        return None if self._outcome is None else self._outcome.sandbox

    @property
    def files(self) -> dict[str, InputFile]:
        """The files that the task promises, as inputs for other tasks, by their names."""
        return {name: input_from(self, name) for name in getattr(self, "_promised", ())}

    def file(self, name: str) -> InputFile:
        """Return a file that the task promises, as an input for another task.

        A task that receives it depends on this task and reads its file, even if other tasks promise
        a file of the same name.

        Args:
            name: The file's name without directories, or a name that matches a promised pattern.

        Raises:
            DataError: The task promises no such file.
        """
        promised: Mapping[str, str | None] = getattr(self, "_promised", {})
        if name in promised or any(fnmatchcase(name, pattern) for pattern in promised):
            return input_from(self, name)
        there = f"it promises {', '.join(map(repr, promised))}" if promised else (
            "it promises none: pass it an OutputFile"
        )  # fmt: skip
        raise DataError(f"{self.name!r} ({self.uid}) promises no file {name!r}; {there}")

    @property
    def stdout_path(self) -> str | None:
        """The file that holds what an executable has printed so far, for `tail -f`.

        In its sandbox, from when it runs until the sandbox goes, unless `capture=False` or its
        settings in the backend's own words name another file; `None` for functions.
        """
        sandbox = self.sandbox
        if sandbox is None or self._definition.kind != "executable":
            return None
        return os.path.join(sandbox, OUTPUT_FILES[0])

    @property
    def host(self) -> str | None:
        """The worker or host that runs the task, as its backend names it, while it runs."""
        task = self.task
        worker = None if task is None else task.get("worker")
        return None if worker is None else str(worker)

    @property
    def started_at(self) -> float | None:
        """When the attempt began that runs now, in seconds since the epoch; else `None`."""
        node = self._node
        return None if node is None else node.started

    def result(self) -> T:
        """Return the value, or raise the exception, of a finished task; else `await` the future."""
        if self._exception is not None:
            error: Any = _exception(self)
            try:  # with the traceback it had at first: asyncio's second await has none
                raise error.with_traceback(getattr(self, "_traceback", None))
            finally:
                del self, error  # the traceback holds this frame
        try:
            return _result(self)
        except asyncio.InvalidStateError:
            raise self._not_done() from None

    def exception(self) -> BaseException | None:
        """Return the exception of a finished task, if it has one; else `await` the future."""
        try:
            return _exception(self)
        except asyncio.InvalidStateError:
            raise self._not_done() from None

    def __await__(self) -> Generator[Any, None, T]:
        return _await(self) if self._exception is None else self._failed()

    def __iter__(self) -> Generator[Any, None, T]:
        return self.__await__()

    def _failed(self) -> Generator[Any, None, T]:
        try:
            return self.result()
        finally:
            del self  # the traceback holds this frame
        yield  # makes this a generator, which never suspends

    def __del__(self) -> None:
        # asyncio logs each exception that was not retrieved; the engine logs all in one record.
        if self._log_traceback:
            self._log_traceback = False
            self._definition.unawaited(self)

    def _not_done(self) -> asyncio.InvalidStateError:
        return asyncio.InvalidStateError(
            f"{self.name!r} ({self.uid}) is not done: write `await` in place of `.result()` or "
            "before `.exception()`, or pass the future to a task, which gets the value"
        )

    def cancel(self, msg: Any = None) -> bool:
        """Cancels the task.

        A pending future is cancelled at once for all who wait; the backend is
        asked to stop the work, and `ended` waits until it has. A service that is
        ready keeps its result and is stopped. A block takes what it started and
        is unfinished with it. Dependents are cancelled at once.

        Args:
            msg: Handed on to the `asyncio.CancelledError`.

        Returns:
            Whether anything was cancelled; `False` for a finished task.
        """
        node = self._node
        return super().cancel(msg) if node is None else node.cancel(msg)

    async def ended(self) -> None:
        """Waits until the work itself has ended, which may be after the future is done.

        Returns at once for a finished task. Raises nothing about the task's fate.
        """
        node = self._node
        if node is not None:
            await node.wait_ended()

    def __repr__(self) -> str:
        return f"<TaskFuture {self.uid} {self.name!r} {self.state}>"

    def set_cancelled(self, msg: Any = None) -> bool:
        """Cancel the future alone, whatever its work does. Called by the engine."""
        return super().cancel(msg)

    def fail(self, error: BaseException) -> None:
        """Set the exception, with its traceback and call as they are now. Called by the engine."""
        self._traceback, self._call = error.__traceback__, first_call(error)
        self.set_exception(error)


def _without_value(sign: str) -> Callable[..., Any]:
    def refuse(self: TaskFuture[Any], *_: object) -> Any:
        raise TypeError(
            f"{sign} needs a value, and got the future of {self.name!r} ({self.uid}): write "
            "`await` before it, or pass the future to a task, which gets the value"
        )

    return refuse


_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//",
    "mod": "%", "pow": "**", "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
}  # fmt: skip
_OTHERS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "neg": "-", "abs": "abs()", "int": "int()",
    "float": "float()", "index": "an index", "getitem": "[]", "contains": "in",
}  # fmt: skip
_REFLECTED = {f"r{name}": sign for name, sign in _BINARY.items()}
for _name, _sign in {**_BINARY, **_REFLECTED, **_OTHERS}.items():
    setattr(TaskFuture, f"__{_name}__", _without_value(_sign))


def task_kind(task: Mapping[str, Any]) -> TaskKind:
    """Which kind of task a description is."""
    function = task.get("function")
    if function is None:
        return "service" if task.get("is_service") else "executable"
    if task.get("is_service"):
        return "function_service"
    return "async_function" if is_async(function) else "function"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function gives a coroutine, seen through partials and callables."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = cast("Any", function).func
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(type(function).__call__)
