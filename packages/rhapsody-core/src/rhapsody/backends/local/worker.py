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
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from io import IOBase
from typing import TYPE_CHECKING, Any

from rhapsody.backends.local import logs
from rhapsody.context import Setting, TaskContext, task_context
from rhapsody.sdk import calls
from rhapsody.sdk.capture import Recorded, streams
from rhapsody.sdk.loops import OWN_FILES, WorkerLoop
from rhapsody.sdk.runner import Order, Outcome, Runner, known, require_version
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rhapsody.backends.local.jobs import Job

LENGTHS = struct.Struct("=QQ")
"""How a frame begins: the lengths in bytes of its two parts, which follow.

The first part is an order or an outcome, and the second the packed data that go with it. Where
there is no first part, the second is a log record.
"""

THREADS = "or run the task in threads: LocalExecutionBackend('thread')"


# In the process of the backend.


def pack_call(task: TaskDescription) -> bytes:
    """The function and its arguments as bytes.

    Raises:
        TypeError: It names the argument that cannot be pickled.
    """
    cure = f"pass data that can be, {THREADS}"
    return calls.pack_call(task, worker="a worker process", cure=cure)


def take(job: Job, outcome: Outcome) -> None:
    """Puts what came back into the job: the output, and the value or the error."""
    job.recorder = None  # nothing was printed here
    calls.report(job.task, outcome)
    job.value, job.error = calls.result(job.task, outcome)


def frame(head: Order | Outcome, payload: bytes | memoryview) -> bytes:
    """An order or an outcome and the packed data that go with it, as they are sent."""
    packed = pickle.dumps(tuple(head))
    return b"".join((LENGTHS.pack(len(packed), len(payload)), packed, payload))


# In the worker.


def work(connection: socket.socket, begun: Connection, levels: Mapping[str, int]) -> None:
    """Makes calls until there are no more to come. What a worker process runs.

    Args:
        connection: Where calls come from and outcomes go to. One byte is sent at first.
        begun: Holds a byte for each call that was sent; it is taken when the call begins.
        levels: What of log records goes to the program, see `logs.forward`.
    """
    begin()
    pid, sending = os.getpid(), threading.Lock()

    def send(data: bytes) -> None:
        with sending:
            connection.sendall(data)

    logs.forward(lambda record: send(LENGTHS.pack(0, len(record)) + record), levels)
    connection.sendall(b".")
    with connection.makefile("rb", buffering=1 << 16) as stream:
        while (taken := received(stream)) is not None:
            order, call = taken
            os.read(begun.fileno(), 1)
            outcome = _runner.make(order, call)
            if os.getpid() != pid:
                os._exit(0)  # the call has forked, and its child came back
            send(frame(outcome._replace(payload=b""), outcome.payload))
            del taken, order, call, outcome  # not kept until the next call comes


def received(stream: IOBase) -> tuple[Order, bytes] | None:
    """The next order and its call; `None` at the end, also where the program ended midway."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    first, second = LENGTHS.unpack(lengths)
    packed, call = stream.read(first), stream.read(second)
    if len(packed) < first or len(call) < second:
        return None
    return Order(*pickle.loads(packed)), call  # noqa: S301 - from our own program


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


def execute(order: Order, call: bytes) -> Outcome:
    """Makes one call on an executor that the user brings, which may be of another installation.

    Raises:
        ProtocolVersionError: It is, and of another version.
    """
    require_version(order.version, "the program", "its executor")
    streams.ensure()
    return _runner.make(order, call)


class _Recorded(Recorded):
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

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(coroutine)

    def output(self, order: Order) -> _Recorded:
        return _Recorded(order.directory, order.capture)

    def context(self, order: Order) -> Setting[Any]:
        return task_context(TaskContext(**known(order)))


_runner = _Runner()


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
