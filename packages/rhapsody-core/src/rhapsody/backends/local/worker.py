"""Worker process: makes one call at a time, and forwards log records to the program.

Calls and results cross the border as bytes made by cloudpickle, so that closures, lambdas and
functions of the main program work, and so that an object that cannot be pickled fails its own task
with a reason. Short calls wait here behind those before them until they are started or taken back.
The program's side is `rhapsody.backends.local.workers`; it handles log records as it configured
that.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import lru_cache
from io import BufferedIOBase, IOBase, TextIOWrapper
from logging.handlers import QueueHandler
from select import PIPE_BUF
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody.backends.local.shared_memory import LARGE, Block, WorkerMemory
from rhapsody.context import Setting, TaskContext, running_task, task_context
from rhapsody.sdk.capture import CapturedOutput, keep, streams
from rhapsody.sdk.loops import OWN_FILES, WorkerLoop
from rhapsody.sdk.runner import (
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
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LENGTHS = struct.Struct("=QQ")
"""How a reply begins: the lengths in bytes of its two parts, which follow.

The first part is an outcome, and the second the packed data that go with it. Where there is
no first part, the second is a log record.
"""

NUMBER = struct.Struct("=I")
"""Which of the calls that this worker was sent it is."""

CALL = struct.Struct("=IIBQQQ")
"""Head of a call: its number, the shared block for its result, `Call.kind`, and the lengths of
order, function and arguments, which follow."""

START = struct.Struct("=II")
"""The part of a call's head that is known when it is sent."""

BLOCK = struct.Struct("=IQ")
"""A pickle in shared memory: its block and its size."""

SCALARS = PLAIN - {str, bytes}

THREADS = "or run the task in threads: LocalExecutionBackend('thread')"


REUSABLE, SHARED = 1, 2


class Call(NamedTuple):
    """A packed call.

    Attributes:
        function: The function as bytes; empty where the arguments are the whole call.
        arguments: Positional and keyword arguments as bytes.
        kind: `REUSABLE` if no call changes the function, so that it is unpickled only once;
            `SHARED` if the arguments are a `BLOCK` of shared memory that holds the whole call.
    """

    function: bytes
    arguments: bytes | bytearray
    kind: int = 0


def work(
    connection: socket.socket,
    unbegun: Connection,
    levels: Mapping[str, int],
    memory: WorkerMemory,
) -> None:
    """Makes calls until there are no more to come. What a worker process runs.

    Args:
        connection: Where calls come from and outcomes go to. One byte is sent at first.
        unbegun: Holds the numbers of the calls that were sent; each is taken when the call
            begins, here or by the program, which then takes it back.
        levels: What of log records goes to the program, see `forward_logs`.
        memory: Where large arguments come from and large results go to.
    """
    begin()
    _runner.memory = memory
    pid, sending = os.getpid(), threading.Lock()

    def send(data: bytes) -> None:
        with sending:
            connection.sendall(data)

    forward_logs(lambda record: send(LENGTHS.pack(0, len(record)) + record), levels)
    connection.sendall(b".")
    with connection.makefile("rb", buffering=1 << 16) as stream:
        next_one = None
        while (taken := received(stream)) is not None:
            number, _runner.memory.offered, order, call = taken
            if order is None:
                sent_modules().receive(bytes(call.arguments))
                _reused.cache_clear()  # cached functions refer to the former modules
                continue
            if next_one is None:
                next_one = _taken(unbegun)
            if number == next_one:
                next_one = None
                outcome = _runner.make(order, call)
                if os.getpid() != pid:
                    os._exit(0)  # the call has forked, and its child came back
                send(reply(outcome))
                del outcome
            del taken, order, call  # not kept until the next call comes


def modules_frame(modules: bytes) -> bytearray:
    """The program's own modules as they are sent to a worker: a call without an order."""
    return bytearray(CALL.pack(0, 0, 0, 0, 0, len(modules))) + modules


def received(stream: IOBase) -> tuple[int, int, CallSpec | None, Call] | None:
    """Return the next call, or modules for it; `None` at the end, or if the program ended midway.

    Returns:
        The call's number, the block for its result, the spec (`None` for modules), and the call.
    """
    start = stream.read(CALL.size)
    if len(start) < CALL.size:
        return None
    number, block, kind, *lengths = CALL.unpack(start)
    parts = [stream.read(length) for length in lengths]
    if sum(map(len, parts)) < sum(lengths):
        return None
    order, function, arguments = parts
    call = Call(function, arguments, kind)
    # From our own program.
    return number, block, CallSpec(*pickle.loads(order)) if order else None, call  # noqa: S301


def reply(outcome: CallResult) -> bytes:
    """Return an outcome as it is sent: `plain` is `None` if its payload is in shared memory."""
    version, done, payload, *others = outcome
    if type(payload) is Block:
        others[0], payload = None, BLOCK.pack(payload.number, payload.size)
    head = pickle.dumps((version, done, *others), 5)
    return b"".join((LENGTHS.pack(len(head), len(payload)), head, payload))


def _taken(unbegun: Connection) -> int | None:
    """Takes the number of the call that is to be begun; `None` where all were taken back."""
    try:
        taken = os.read(unbegun.fileno(), NUMBER.size)
    except BlockingIOError:
        return None
    return NUMBER.unpack(taken)[0] if taken else None  # the program is gone


def begin() -> None:
    """Prepares a new worker process."""
    # In a group of its own the terminal's Ctrl-C does not reach the worker, and what
    # a function leaves running can be ended with it.
    with suppress(OSError):
        os.setsid()
    # Stops code that never returns to the interpreter, too.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    sys.stdout, sys.stderr = _in_lines(sys.stdout), _in_lines(sys.stderr)
    streams.acquire()


def execute(order: CallSpec, call: bytes) -> CallResult:
    """Makes one call on an executor that the user brings, which may be of another installation.

    Raises:
        ProtocolVersionError: It is, and of another version.
    """
    require_version(order.version, "the program", "its executor")
    streams.ensure()
    return _runner.make(order, Call(b"", call))


def _in_lines(stream: Any) -> Any:
    """Return a stream for the same descriptor that writes whole lines, see `_WholeLines`."""
    try:
        descriptor = stream.fileno()
        at_once = stream.line_buffering or stream.write_through  # a terminal, or `python -u`
    except (AttributeError, OSError, ValueError):  # it is closed
        return stream
    lines, errors = _WholeLines(descriptor, at_once), stream.errors
    return TextIOWrapper(lines, stream.encoding, errors, newline="\n", write_through=at_once)


class _WholeLines(BufferedIOBase):
    """Buffer for a standard stream that several processes write to.

    Python's own buffer is written whenever it is full, in the middle of a line, which another
    process may then continue. This one is written in pieces that end with a line and that a pipe
    takes as a whole. Only a line longer than `PIPE_BUF` (4096 bytes on Linux), or one that is
    flushed before its end, may still be mixed with others.

    Args:
        descriptor: The stream's descriptor.
        at_once: Whether each line is written as soon as it is complete, as on a terminal.
    """

    def __init__(self, descriptor: int, at_once: bool) -> None:
        self._descriptor = descriptor
        self._at_once = at_once
        self._lock = threading.Lock()
        self._data = bytearray()

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        with self._lock:
            self._data += data
            if self._at_once or len(self._data) >= PIPE_BUF:
                self._write(self._data.rfind(b"\n") + 1)
        return len(data)

    def flush(self) -> None:
        with self._lock:
            self._write(len(self._data))

    def _write(self, size: int) -> None:
        """Write the first bytes of the buffer, and drop them even if that fails."""
        data, self._data = self._data[:size], self._data[size:]
        start = 0
        while start < size:
            end = start + PIPE_BUF
            if end < size:
                end = data.rfind(b"\n", start, end) + 1 or data.find(b"\n", end) + 1 or size
            start += os.write(self._descriptor, data[start:end])


class _WorkerOutput(CapturedOutput):
    """Shows what a call printed where the worker's output goes as soon as it has ended."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.stdout or self.stderr:
            _flush()


class _Runner(Runner):
    """Makes the calls of one worker process, whose coroutines share a loop."""

    worker = "the worker process"
    place = "in a worker process"
    cure = f"return data that can be, {THREADS}"
    own_files = OWN_FILES

    def __init__(self) -> None:
        self._loop = WorkerLoop()
        self.memory = WorkerMemory(None)

    def load(self, call: Call) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        if call.kind == SHARED:
            whole: tuple[Any, Any, Any] = self.memory.load(*BLOCK.unpack(call.arguments))
            return whole
        if not call.function:
            return super().load(call.arguments)
        function = _reused(call.function) if call.kind else loads(call.function)
        if call.kind:
            function.__globals__.pop("__warningregistry__", None)  # each call warns anew
        return function, *loads(call.arguments)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(coroutine)

    def pack(self, value: Any) -> Any:
        if type(value) in SCALARS or (type(value) in PLAIN and len(value) < LARGE):
            return pickle.dumps(value, 5)
        return self.memory.dump(value)

    def pack_error(self, error: BaseException) -> Any:
        return pack_error(trimmed(error, self.own_files))

    def output(self, order: CallSpec) -> _WorkerOutput:
        return _WorkerOutput(order.directory, order.capture)

    def context(self, order: CallSpec) -> Setting[Any]:
        return task_context(TaskContext(**known(order)))


_runner = _Runner()
_reused = lru_cache(64)(loads)


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


_ATTEMPT = re.compile(r".+\.(task\.[0-9]+)\.[0-9]+", re.DOTALL)
"""The uid of an engine's attempt; the group is that of the future."""


def log_levels() -> dict[str, int]:
    """The levels that the program has set, by the names of its loggers; `""` is the root's."""
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    return {"": logging.root.level} | {
        name: logger.level for name, logger in loggers.items() if logger.level
    }


def forward_logs(send: Callable[[bytes], object], program: Mapping[str, int]) -> None:
    """In a worker: sends what is logged to the program.

    Args:
        send: Sends a packed record.
        program: The levels that the program has set.
    """
    for name, level in program.items():
        logging.getLogger(name).setLevel(level)
    logging.root.addHandler(_Forwarder(send))


def handle_log(record: bytes | memoryview) -> None:
    """In the program: handles a record that `forward_logs` has sent.

    What its handlers raise, or its own values when they are unpickled, is told as `logging` tells
    of it, and harms nobody: the outcome of the task comes behind it.
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
    """Packs records whose text is made here, since their arguments may not travel."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._send = send
        self._pid = os.getpid()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record with the task that it is from."""
        if os.getpid() != self._pid:  # the task has forked
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
    except Exception:  # what the program has added to a record may be anything
        plain = (str, int, float, type(None))
        return pickle.dumps(
            {
                name: value if type(value) in plain else repr(value)
                for name, value in attributes.items()
            }
        )
