"""Worker process: makes one call at a time, and forwards log records to the main program.

Calls and results are pickled by cloudpickle, so that closures, lambdas and functions of the main
program work. Short calls may wait in the worker until it starts them or the program withdraws them.
The program's side is `rhapsody.backends.local.workers`.
"""

from __future__ import annotations

import importlib
import logging
import operator
import os
import pickle
import re
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from rhapsody._private import environment
from rhapsody.backends.local.shared_memory import MIN_SHARED_SIZE, Block, WorkerMemory
from rhapsody.context import Setting, TaskContext, running_task, task_context
from rhapsody.sdk.capture import CapturedOutput, keep, streams
from rhapsody.sdk.loops import OWN_FILES, WorkerLoop
from rhapsody.sdk.runner import (
    GPU_VARIABLES,
    PLAIN,
    CallResult,
    CallSpec,
    Runner,
    known,
    loads,
    pack_error,
    require_version,
    sent_modules,
    trimmed,
    worker_values,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LENGTHS = struct.Struct("=QQ")
"""Head of a reply: the lengths in bytes of the two parts that follow.

The first part is a `CallResult` without its payload, and the second is the payload. If the first
part is empty, the second is a log record.
"""

NUMBER = struct.Struct("=I")
"""Encoding of a call's number. The calls of each worker are numbered separately."""

CALL = struct.Struct("=IIBQQQQ")
"""Head of a call: the call's number, the shared block for its result, `PickledCall.kind`, and the
lengths of the parts that follow. These are the common and the own fields of the spec (see `Specs`
in `packing`), the function, and the arguments."""

START = struct.Struct("=II")
"""First part of the head of a call: the values that are known only when the call is sent."""

BLOCK = struct.Struct("=IQ")
"""Reference to a pickle in shared memory: the block's number and the pickle's size."""

SCALARS = PLAIN - {str, bytes}

THREADS = "or run the task in threads: LocalExecutionBackend('thread')"


BUILDING = 1
"""First length in the head of a message that a call begins (1) or ends (0) to build a worker value;
the second length is one of these numbers, and no data follow."""

REUSABLE, SHARED, FILTERS, CLOSES = 1, 2, 4, 8


class PickledCall(NamedTuple):
    """Pickled call.

    Attributes:
        function: The pickled function; empty if `arguments` is the whole call.
        arguments: The pickled positional and keyword arguments.
        kind: `REUSABLE` if calls cannot change the function, so that it is unpickled only once;
            `SHARED` if `arguments` is a `BLOCK` that refers to the whole call in shared memory;
            `FILTERS` for the program's warning filters; `CLOSES` for the key of a worker value to
            close; otherwise 0.
    """

    function: bytes
    arguments: bytes | bytearray
    kind: int = 0


def work(
    connection: socket.socket,
    unstarted: Connection,
    levels: Mapping[str, int],
    handlers: Collection[HandlerKey],
    memory: WorkerMemory,
) -> None:
    """Make calls until the program closes the connection: the main function of a worker.

    Args:
        connection: The socket for calls and replies. The worker sends one byte when it is ready.
        unstarted: A pipe with the numbers of the calls that were sent and have not started. The
            worker reads a number to start the call; the program reads it to withdraw the call.
        levels: The log levels of the program; see `forward_logs`.
        handlers: The log handlers of the program; see `leave_handlers_to_program`.
        memory: The shared memory for large arguments and results.
    """
    begin()
    _runner.memory, _runner.variables = memory, CallVariables()
    pid, sending = os.getpid(), threading.Lock()

    def send(data: bytes) -> None:
        with sending:
            connection.sendall(data)

    _runner.send = send
    forward_logs(lambda record: send(LENGTHS.pack(0, len(record)) + record), levels)
    leave_handlers_to_program(handlers)
    with suppress(BrokenPipeError):  # the program has ended
        connection.sendall(b".")
        # Each read of `connection.makefile` would call a function in Python.
        with open(connection.fileno(), "rb", buffering=1 << 16, closefd=False) as stream:
            next_one = None
            while (taken := received(stream)) is not None:
                number, _runner.memory.offered, order, call = taken
                if order is None and call.kind == FILTERS:
                    _runner.filters = bytes(call.arguments)
                    continue
                if order is None and call.kind == CLOSES:
                    worker_values().close_value(bytes(call.arguments))
                    continue
                if order is None:
                    sent_modules().receive(bytes(call.arguments))
                    _reused.cache_clear()  # cached functions refer to the previous modules
                    continue
                if next_one is None:
                    next_one = _taken(unstarted)
                if number == next_one:
                    next_one = None
                    outcome = _runner.make(order, call)
                    if outcome.pid != pid:
                        os._exit(0)  # this is a child that the call has forked
                    send(reply(outcome))
                    del outcome
                del taken, order, call  # release the values before waiting
    worker_values().close()


def modules_frame(modules: bytes) -> bytearray:
    """Encode the program's own modules for a worker, as a call without a spec."""
    return bytearray(CALL.pack(0, 0, 0, 0, 0, 0, len(modules))) + modules


def filters_frame(filters: bytes) -> bytearray:
    """Encode the program's warning filters for a worker, as a call without a spec."""
    return bytearray(CALL.pack(0, 0, FILTERS, 0, 0, 0, len(filters))) + filters


def closing_frame(key: bytes) -> bytearray:
    """Encode the key of a worker value to close, as a call without a spec."""
    return bytearray(CALL.pack(0, 0, CLOSES, 0, 0, 0, len(key))) + key


def received(stream: BinaryIO) -> tuple[int, int, CallSpec | None, PickledCall] | None:
    """Read the next call, or the modules for the calls that follow.

    Returns:
        The call's number, the block for its result, the spec (`None` for modules), and the call.
        `None` instead of this tuple if the program has closed the connection.
    """
    try:
        start = stream.read(CALL.size)
        if len(start) < CALL.size:
            return None
        number, block, kind, common, own, function, size = CALL.unpack(start)
        own += common
        function += own
        parts, arguments = stream.read(function), stream.read(size)
    except ConnectionResetError:  # the program closed the connection with replies unread
        return None
    if len(parts) < function or len(arguments) < size:
        return None
    order = _spec(parts[:common], parts[common:own]) if common else None
    return number, block, order, PickledCall(parts[own:], arguments, kind)


def _spec(common: bytes, own: bytes) -> CallSpec:
    version, name, timeout, cores, environment, capture, more, modules, watch = _common(common)
    uid, attempt, sandbox, directory, trace = pickle.loads(own)  # noqa: S301 - our own program's
    return CallSpec(
        version, uid, name, attempt, sandbox, timeout, cores, environment, capture, directory, more,
        modules, trace, watch,
    )  # fmt: skip


def reply(outcome: CallResult) -> bytes:
    """Encode an outcome as a reply, with `plain=None` if the payload is in shared memory."""
    version, done, payload, *others = outcome
    if type(payload) is Block:
        others[0], payload = None, BLOCK.pack(payload.number, payload.size)
    head = pickle.dumps((version, done, *others), 5)
    return b"".join((LENGTHS.pack(len(head), len(payload)), head, payload))


def _taken(unstarted: Connection) -> int | None:
    """Read the number of the next call from the pipe; return `None` if the pipe is empty."""
    try:
        taken = os.read(unstarted.fileno(), NUMBER.size)
    except BlockingIOError:
        return None
    return NUMBER.unpack(taken)[0] if taken else None  # the program has ended


def begin() -> None:
    """Prepare a new worker process."""
    # In a separate process group, the terminal's Ctrl-C does not reach the worker, and processes
    # that a function leaves running can be killed with the worker.
    with suppress(OSError):
        os.setsid()
    # The default action also stops code that does not return to the interpreter.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    for stream in (sys.stdout, sys.stderr):  # so that lines of several workers are not mixed
        with suppress(AttributeError, ValueError):  # the stream is missing or closed
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    streams.acquire()


def execute(order: CallSpec, call: bytes) -> CallResult:
    """Make one call in a process of a user's executor.

    The process may use another installation of Rhapsody.

    Returns:
        The outcome of the call.

    Raises:
        ProtocolVersionError: The other installation uses a different version of the protocol.
    """
    require_version(order.version, "the program", "its executor")
    streams.ensure()
    return _runner.make(order, PickledCall(b"", call))


class CallVariables:
    """Environment variables of the calls in a worker, which makes one call at a time.

    Setting the variables before each call and restoring them after it would take longer than a
    short call. So they stay set until a call with other variables begins. Because calls may change
    them, also from C code, they are set again before each call, with the faster `os.putenv`.
    """

    def __init__(self) -> None:
        self._variables: Mapping[str, str] = {}
        self._former: Mapping[str, str | None] = {}
        self._environ: Any = None
        self._encoded: dict[bytes, bytes] = {}

    def set(self, variables: Mapping[str, str]) -> None:
        """Set the variables of the next call, and restore those that only the last call had set."""
        former = self._variables
        if os.environ is not self._environ or (variables is not former and variables != former):
            self._change(variables)
        elif self._environ is not _environ:
            self._environ.update(variables)
        else:  # `os.environ.update` would take many times as long
            putenv = os.putenv
            for name, value in self._encoded.items():
                putenv(name, value)
            _encoded.update(self._encoded)

    def _change(self, variables: Mapping[str, str]) -> None:
        environ: Any = os.environ
        self._environ = None  # until all variables are set
        for name, value in self._former.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        self._former = {name: environ.get(name) for name in variables}
        environ.update(variables)
        encode = os.fsencode
        self._encoded = {encode(name): encode(value) for name, value in variables.items()}
        self._environ, self._variables = environ, variables


_environ = os.environ
_encoded = environment
_nothing = nullcontext()


class _WorkerOutput(CapturedOutput):
    """Captured output of a call. After a call with output, the worker's streams are flushed."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.stdout or self.stderr:
            _flush()


class _Runner(Runner):
    """Runner of the calls in a worker process. All coroutines run on one event loop."""

    worker = "the worker process"
    place = "in a worker process"
    cure = f"return data that can be pickled, {THREADS}"
    own_files = OWN_FILES

    def __init__(self) -> None:
        self._loop = WorkerLoop()
        self.memory = WorkerMemory(None)
        self.variables: CallVariables | None = None  # `None` in a user's executor
        self.send: Callable[[bytes], object] | None = None  # `None` in a user's executor
        self.filters: bytes | None = None  # the program's warning filters, until they are set
        self._set: list[Any] = []  # filters that were set before

    def load(
        self, call: PickledCall
    ) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        if call.kind == SHARED:
            whole: tuple[Any, Any, Any] = self.memory.load(*BLOCK.unpack(call.arguments))
            return whole
        if not call.function:
            return super().load(call.arguments)
        function = _reused(call.function) if call.kind else loads(call.function)
        if call.kind:
            function.__globals__.pop("__warningregistry__", None)  # each call repeats its warnings
        return function, *loads(call.arguments)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(coroutine)

    def gpus(self) -> tuple[bytes | None, ...]:
        if os.environ is not _environ:  # a call has replaced it
            return super().gpus()
        return tuple(map(_encoded.get, GPU_VARIABLES))

    def building(self, begins: bool) -> None:
        if self.send is not None:
            self.send(LENGTHS.pack(BUILDING, begins))

    def pack(self, value: Any) -> Any:
        if type(value) in SCALARS or (type(value) in PLAIN and len(value) < MIN_SHARED_SIZE):
            return pickle.dumps(value, 5)
        return self.memory.dump(value)

    def pack_error(self, error: BaseException) -> Any:
        return pack_error(trimmed(error, self.own_files))

    def output(self, order: CallSpec) -> _WorkerOutput:
        return _WorkerOutput(order.directory, order.capture)

    def environment(self, order: CallSpec) -> AbstractContextManager[Any]:
        if self.variables is None:
            return super().environment(order)
        self.variables.set(order.environment)
        return _nothing

    def context(self, order: CallSpec) -> Setting[Any]:
        # Here, because importing the classes of warnings may load numeric libraries.
        if self.filters is not None:
            self._set_filters(self.filters)
            self.filters = None
        given, decimal = order.more.get("decimal"), sys.modules.get("decimal")
        if decimal is not None:  # else no earlier call has changed the context
            # A copy, because specs of other calls share the context, and the call may change it.
            decimal.setcontext(decimal.Context() if given is None else given.copy())
        return task_context(TaskContext(**known(order)))

    def _set_filters(self, packed: bytes) -> None:
        """Set the program's warning filters, before those that this worker's modules added."""
        former, self._set = self._set, []
        for action, message, (module, name), *where in pickle.loads(packed):  # noqa: S301
            with suppress(Exception):  # only the program can import the class
                category = operator.attrgetter(name)(importlib.import_module(module))
                self._set.append((action, message, category, *where))
        others = [each for each in warnings.filters if each not in former]
        warnings.filters[:] = self._set + [each for each in others if each not in self._set]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]


_runner = _Runner()
_reused = lru_cache(64)(loads)
_common = lru_cache(64)(loads)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the stream is closed
            stream.flush()


def _die_with_parent() -> None:
    """Request that the kernel kill this worker's process group when the main program ends.

    On systems other than Linux, an idle worker ends when its connection is closed, and a busy
    worker ends after its call.
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


_ATTEMPT = re.compile(r".+\.(task\.[0-9]+)\.[0-9]+", re.DOTALL)
"""Pattern of the uid of an attempt. Its group is the uid of the future."""


class WarningFilters:
    """The program's warning filters, pickled for workers.

    Workers receive only these and the `decimal` context, which change results or hide problems.
    Context variables cannot be pickled, and only their owner knows their meaning. Libraries have
    too many settings, such as `pandas.options`, to know them all.
    """

    def __init__(self) -> None:
        self._filters: list[Any] = []
        self._packed = b""

    def packed(self) -> bytes:
        """Return the pickled filters; the same object as before if they have not changed.

        The classes of warnings are replaced with their modules and names. Filters with classes of
        the script are omitted.
        """
        if warnings.filters != self._filters or not self._packed:
            self._filters = list(warnings.filters)
            self._packed = pickle.dumps(
                [
                    (action, message, (kind.__module__, kind.__qualname__), *where)
                    for action, message, kind, *where in self._filters
                    if kind.__module__ != "__main__"
                ]
            )
        return self._packed


def log_levels() -> dict[str, int]:
    """Return the log levels that the program has set, by logger name. The root logger is `""`."""
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    return {"": logging.root.level} | {
        name: logger.level for name, logger in loggers.items() if logger.level
    }


def forward_logs(send: Callable[[bytes], object], program: Mapping[str, int]) -> None:
    """Apply the program's log levels in a worker, and forward the worker's records to the program.

    Args:
        send: Function that sends a pickled record.
        program: The log levels that the program has set; see `log_levels`.
    """
    for name, level in program.items():
        logging.getLogger(name).setLevel(level)
    logging.root.addHandler(_Forwarder(send))


HandlerKey = tuple[str, str, str]
"""Logger, class and file of a log handler."""


def _handler_key(logger: logging.Logger, handler: logging.Handler) -> HandlerKey:
    kind = type(handler)
    file = str(getattr(handler, "baseFilename", ""))
    return logger.name, f"{kind.__module__}.{kind.__qualname__}", file


def log_handlers() -> set[HandlerKey]:
    """Return the log handlers of the program."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        _handler_key(logger, handler)
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }


def leave_handlers_to_program(program: Collection[HandlerKey]) -> None:
    """Ignore the handlers that a module adds when it is imported, if the program has them too.

    Otherwise, such a handler would handle each record twice: in the worker and in the program.
    Handlers that a function adds are used.

    Args:
        program: The log handlers of the program; see `log_handlers`.
    """
    add = logging.Logger.addHandler

    def add_unless_in_program(logger: logging.Logger, handler: logging.Handler) -> None:
        if _handler_key(logger, handler) not in program or not _is_importing():
            add(logger, handler)

    logging.Logger.addHandler = add_unless_in_program  # type: ignore[method-assign, assignment]


def _is_importing() -> bool:
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def handle_log(record: bytes | memoryview) -> None:
    """Handle, in the program, a log record that `forward_logs` has sent.

    An exception raised by a handler is reported as `logging` reports such errors. The program then
    continues with the messages that follow, such as the result of the task.
    """
    made = logging.makeLogRecord({"msg": "a log record of a worker process"})
    try:
        made = logging.makeLogRecord(pickle.loads(record))  # noqa: S301 - from our own worker
        logger = logging.getLogger(made.name)
        if logger.isEnabledFor(made.levelno):
            logger.handle(made)
    except Exception:
        _reporter.handleError(made)


_reporter = logging.Handler()


class _Forwarder(QueueHandler):
    """Log handler that sends records, formatted because their arguments may be unpicklable."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._send = send
        self._pid = os.getpid()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record with the uid and name of its task."""
        if os.getpid() != self._pid:  # this is a child that the task has forked
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        attributes: dict[str, Any] = dict(vars(record))
        task = running_task()
        if task is not None:
            attempt = _ATTEMPT.fullmatch(task.uid)
            attributes.setdefault("task_uid", attempt[1] if attempt else task.uid)
            attributes.setdefault("task_name", task.name)
        if record.levelno >= logging.WARNING:
            keep("stderr", f"{record.message}\n")
        self._send(_packed(attributes))


def _packed(attributes: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(attributes)
    except Exception:  # the program may have added attributes that cannot be pickled
        plain = (str, int, float, type(None))
        return pickle.dumps(
            {
                name: value if type(value) in plain else repr(value)
                for name, value in attributes.items()
            }
        )
