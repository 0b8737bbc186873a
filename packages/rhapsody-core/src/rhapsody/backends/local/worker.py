"""What runs in a worker process: one call at a time, packed and unpacked.

Everything crosses the border as bytes made by cloudpickle, so that closures,
lambdas and functions of the main program work, and so that what cannot be
pickled fails its own task with a reason. The other side is
`rhapsody.backends.local.processes`.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from time import time
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import cloudpickle  # type: ignore[import-untyped]

from rhapsody.context import TaskContext, task_context
from rhapsody.errors import (
    TaskFailedError,
    add_note,
    args_of,
    describe_error,
    is_a,
    rebuilt,
    set_cause,
    set_traceback,
    text_of,
    traceback_of,
    vars_of,
)
from rhapsody.sdk.capture import Recorder, recording, streams
from rhapsody.sdk.loops import WorkerLoop, without_own_frames
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rhapsody.backends.local.jobs import Job

LENGTHS = struct.Struct("=QQ")
"""How a frame begins: the lengths in bytes of its two parts, which follow."""

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values run nobody's code when they are unpacked."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker has to know beside the call itself.

    Attributes:
        uid: The task's uid.
        name: The task's name.
        attempt: Counted from 1.
        sandbox: The task's directory.
        spill: The directory for large output.
        timeout: Seconds that the attempt may take.
        cores: How many threads numeric libraries may use; 0 leaves them as they are.
        environment: Variables to set while it runs.
        capture: As in the task's description.
    """

    uid: str
    name: str
    attempt: int
    sandbox: str | None
    spill: str
    timeout: float | None
    cores: int
    environment: Mapping[str, str]
    capture: bool | Literal["files"]

    @classmethod
    def of(
        cls,
        task: TaskDescription,
        *,
        spill: str,
        cores: int,
        environment: Mapping[str, str],
    ) -> Order:
        """What a worker has to know of a task."""
        return cls(
            uid=task["uid"],
            name=task["name"],
            attempt=task.get("attempt", 1),
            sandbox=task.get("sandbox"),
            spill=spill,
            timeout=task.get("timeout"),
            cores=cores,
            environment=environment,
            capture=task.get("capture", True),
        )


class Reply(NamedTuple):
    """What came of a call.

    Attributes:
        done: Whether the call returned.
        payload: What it returned, or what it raised, packed.
        plain: Whether that is of a type whose values run nobody's code when unpacked.
        stdout: What it printed, `None` where that is not kept.
        stderr: The same of standard error.
        pid: The worker's process id.
        sandbox: The directory with output that was too large, if there was any.
    """

    done: bool
    payload: bytes | memoryview
    plain: bool
    stdout: str | None
    stderr: str | None
    pid: int
    sandbox: str | None

    def output(self) -> TaskDescription:
        """What it printed, in the words of a description."""
        output = {"stdout": self.stdout, "stderr": self.stderr, "sandbox": self.sandbox}
        kept = {name: text for name, text in output.items() if text is not None}
        return cast("TaskDescription", kept)


class RemoteTraceback(Exception):  # noqa: N818 - it is the cause of an error, not one
    """The traceback of an exception from another process, as its cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


# In the process of the backend.


def pack_call(task: TaskDescription) -> bytes:
    """The function and its arguments as bytes.

    Raises:
        TypeError: It names the argument that cannot be pickled.
    """
    function, args, kwargs = task["function"], task["args"], task["kwargs"]
    try:
        return _pack((function, args, kwargs))
    except BaseException as error:  # pickling runs the objects' own code
        part, value, reason = _culprit(task, error)
        raise TypeError(
            f"task {task['name']!r}: {part} ({type(value).__qualname__}) cannot be pickled for a "
            f"worker process: {reason}; pass data that can be, or run the task in threads: "
            "LocalExecutionBackend('thread')"
        ) from error


def unpack(reply: Reply) -> Any:
    """What the call returned.

    Raises:
        BaseException: What the call raised, with the worker's traceback as its cause.
    """
    try:
        result = pickle.loads(reply.payload)  # noqa: S301 - from our own worker
    except BaseException as error:  # loading runs the objects' own code
        add_note(error, f"while unpacking what came back from worker process {reply.pid}")
        raise
    if reply.done:
        return result
    raised, text = result
    set_cause(raised, RemoteTraceback(text))
    raise raised


def _culprit(task: TaskDescription, error: BaseException) -> tuple[str, Any, str]:
    """Which part of a call cannot be pickled: in words, itself, and why."""
    function, args, kwargs = task["function"], task["args"], task["kwargs"]
    parts: list[tuple[str, Any]] = [("the function", function)]
    parts += [(f"positional argument {i}", value) for i, value in enumerate(args)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for part, value in parts:
        reason = _why_not(value)
        if reason is not None:
            return part, value, reason
    return "the call", function, describe_error(error)


def _pack(value: Any) -> bytes:
    packed: bytes = cloudpickle.dumps(value)
    return packed


def _why_not(value: Any) -> str | None:
    try:
        _pack(value)
    except BaseException as error:  # pickling runs the objects' own code
        return describe_error(error)
    return None


def take(job: Job, reply: Reply) -> None:
    """Puts what came back into the job: the output, and the value or the error."""
    job.recorder = None  # nothing was printed here
    job.task.update(reply.output())
    try:
        job.value = unpack(reply)
    except BaseException as error:  # whatever a task raises is its result
        job.error = set_traceback(error, None)


def frame(head: Order | Reply, payload: bytes | memoryview) -> bytes:
    """An order or a reply and the packed data that go with it, as they are sent."""
    packed = pickle.dumps(head)
    return b"".join((LENGTHS.pack(len(packed), len(payload)), packed, payload))


# In the worker.

_loop = WorkerLoop()
_threads: int | None = None


def work(connection: socket.socket, calls: Connection) -> None:
    """Makes calls until there are no more to come. What a worker process runs.

    Args:
        connection: Where calls come from and replies go to. One byte is sent at first.
        calls: Holds a byte for each call that was sent; it is taken when the call begins.
    """
    begin()
    pid = os.getpid()
    connection.sendall(b".")
    with connection.makefile("rb", buffering=1 << 16) as stream:
        while len(lengths := stream.read(LENGTHS.size)) == LENGTHS.size:
            first, second = LENGTHS.unpack(lengths)
            order, payload = pickle.loads(stream.read(first)), stream.read(second)  # noqa: S301 - ours
            os.read(calls.fileno(), 1)
            try:
                reply = execute(order, payload)
            except BaseException as error:  # such as that of output which cannot be written
                reply = Reply(False, pack_error(error), False, None, None, pid, None)
            if os.getpid() != pid:
                os._exit(0)  # the call has forked, and its child came back
            connection.sendall(frame(reply._replace(payload=b""), reply.payload))
            del order, payload, reply  # not kept until the next call comes


def begin() -> None:
    """Prepares a new worker process."""
    # In a group of its own the terminal's Ctrl-C does not reach the worker, and what
    # a function leaves running can be ended with it.
    with suppress(OSError):
        os.setsid()
    # Stops code that never returns to the interpreter, too.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    streams.acquire()


def execute(order: Order, payload: bytes) -> Reply:
    """Makes one call."""
    streams.ensure()  # an executor that the user brings has not called `begin`
    _limit_threads(order.cores)
    recorder = None
    if order.capture is not False:
        recorder = Recorder(order.spill, files=order.capture == "files")
    context = TaskContext(
        uid=order.uid,
        name=order.name,
        attempt=order.attempt,
        sandbox=order.sandbox,
        deadline=None if order.timeout is None else time() + order.timeout,
    )
    with _Environment(order.environment), recording(recorder), task_context(context):
        done, result, plain = _call(payload, order.name)
    stdout = stderr = None
    if recorder is not None:
        stdout, stderr = recorder.result("stdout"), recorder.result("stderr")
        if stdout or stderr:
            _flush()
    sandbox = recorder.in_files if recorder is not None else None
    return Reply(done, result, plain, stdout, stderr, os.getpid(), sandbox)


def _call(payload: bytes, name: str) -> tuple[bool, bytes, bool]:
    """Whether the call returned, what came of it, and whether that is of a plain type."""
    try:
        function, args, kwargs = pickle.loads(payload)  # noqa: S301 - from our own process
    except BaseException as error:  # loading runs the objects' own code
        add_note(error, f"while task {name!r} was unpacked in a worker process")
        return False, pack_error(error), False
    try:
        value = function(*args, **kwargs)
        if type(value) is CoroutineType:
            value = _loop.run(value)
    except BaseException as error:  # whatever a task raises is its result
        return False, pack_error(error), False
    finally:
        del function, args, kwargs
    try:
        return True, _pack(value), type(value) in PLAIN
    except BaseException as error:  # pickling runs the objects' own code
        problem = TypeError(
            f"task {name!r}: its result ({type(value).__qualname__}) cannot be pickled back "
            f"from the worker process: {describe_error(error)}; return data that can "
            "be, or run the task in threads: LocalExecutionBackend('thread')"
        )
        return False, pack_error(problem), False


def pack_error(error: BaseException) -> bytes:
    """An exception as bytes, of its own type wherever that can be had."""
    text = _formatted(without_own_frames(error))
    plain = {key: value for key, value in vars_of(error).items() if _why_not(value) is None}
    candidates: list[Any] = [error, _Rebuilt(type(error), args_of(error), plain)]
    if type(error) is SystemExit:  # tblib, which Dask installs, loses the code
        candidates = [_Exit(error.code)]
    if is_a(error, BaseExceptionGroup):
        candidates = [_RebuiltGroup(error)]
    candidates.append(_Rebuilt(type(error), (text_of(error),), plain))
    for candidate in candidates:
        try:
            packed = _pack((candidate, text))
            if type(pickle.loads(packed)[0]) is type(error):  # noqa: S301 - made above
                return packed
        except BaseException:  # noqa: S112 - an exception class may do anything; try the next way
            continue
    return _pack((TaskFailedError(describe_error(error, with_module=True)), text))


def _formatted(error: BaseException) -> str:
    """The text of an exception with its traceback."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # formatting runs the exception's own code
        frames = traceback.format_tb(traceback_of(error))
        return "".join([*frames, describe_error(error, with_module=True)])


class _RebuiltGroup:
    """Pickles as an exception group, its members packed one by one."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __reduce__(self) -> tuple[Any, ...]:
        members = [pack_error(member) for member in self._group.exceptions]
        return _rebuild_group, (type(self._group), self._group.message, members)


def _rebuild_group(
    kind: type[BaseExceptionGroup[Any]], message: str, members: list[bytes]
) -> BaseExceptionGroup[Any]:
    return kind(message, [pickle.loads(member)[0] for member in members])  # noqa: S301 - ours


class _Exit:
    """Pickles as a `SystemExit`."""

    def __init__(self, code: Any) -> None:
        self._code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return SystemExit, (self._code,)


class _Rebuilt:
    """Pickles as an exception made without calling its `__init__`."""

    def __init__(
        self, kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
    ) -> None:
        self._made_from = kind, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, self._made_from


class _Environment:
    """Sets variables while a call runs, before anything of it is imported."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        self._former = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *error: object) -> None:
        for name, value in self._former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _limit_threads(cores: int) -> None:
    """Tells numeric libraries that are loaded already about another number of cores.

    They read the variables only once. Needs threadpoolctl, which scikit-learn brings.
    """
    global _threads
    if cores == 0 or cores == _threads:
        return
    former, _threads = _threads, cores
    if former is not None:
        with suppress(ImportError):
            import_module("threadpoolctl").threadpool_limits(cores)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads
            stream.flush()


def _die_with_parent() -> None:
    """Has the system kill this worker, and what it started, when the main program is gone.

    Where the system cannot, a worker that is idle ends by itself, and one that is
    busy after its call.
    """
    import fcntl
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None or not hasattr(fcntl, "F_SETSIG"):
        return
    sentinel: Any = parent.sentinel
    with suppress(OSError):
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
