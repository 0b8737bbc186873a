"""Messages between a program and its RADICAL-Pilot client, and the threads of both.

A message is a tuple of its name and plain values; objects of users are pickled into bytes. Messages
are sent over an inherited socket pair, in batches. Each batch is a frame: version, length, and the
pickled tuple of messages. The process at the other end is our own, so the pickles can be trusted.

Messages to the client: `open` starts a session, `submit` and `cancel` submit and cancel tasks,
`ready` reports that a service is ready, `release` ends RAPTOR on a pilot, `call` calls a method or
function, and `close` ends the session. Messages to the program: `started` or `failed` for the
session, `running` and `end` for tasks, `pilot` for changes of a pilot, `reply` for results of calls
and arguments of callbacks, `values` for new attributes of a remote object, `log` for log records,
and `closed` when the session has been closed.
"""

from __future__ import annotations

import logging
import math
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

log: logging.Logger = logging.getLogger(__name__)

VERSION = 1
HEADER = struct.Struct("!HQ")
BATCH_SECONDS = 0.01
"""Default time in seconds that a message waits for other messages to be sent with it.

Each batch wakes two threads.
"""

MAX_BATCH_SIZE = 1 << 40
"""Size in bytes above which a batch is invalid."""

INVALID = "invalid message on the connection between the program and RADICAL-Pilot's client"

FLAT = frozenset((str, int, float, bool, bytes, type(None)))

Message = tuple[Any, ...]


class Channel:
    """One end of the socket pair. Any thread may send; one thread receives.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._socket.fileno()

    def send(self, *messages: Message) -> None:
        """Send messages as one batch; block while the other side does not read.

        Raises:
            OSError: The other side has ended.
        """
        data = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            try:
                self._socket.sendall(HEADER.pack(VERSION, len(data)) + data)
            except BaseException:  # such as KeyboardInterrupt: half a frame makes the rest invalid
                self.shut()
                raise

    def receive(self) -> Iterable[Message] | None:
        """Return the next batch, or `None` if the other side has ended.

        Raises:
            RuntimeError: The other side uses another version of this package, or sent invalid data.
        """
        header = self._read(HEADER.size)
        if header is None:
            return None
        version, size = HEADER.unpack(header)
        if version != VERSION:
            raise RuntimeError(
                f"RADICAL-Pilot's client uses version {version} of the protocol, but this program "
                f"uses version {VERSION}: rhapsody-radical was reinstalled after the program had "
                "started. Restart the program"
            )
        if size > MAX_BATCH_SIZE:
            raise RuntimeError(f"{INVALID}: a batch of {size} bytes")
        data = self._read(size)
        if data is None:
            return None
        try:
            batch: tuple[Message, ...] = pickle.loads(data)  # noqa: S301 - from our own process
        except Exception as error:  # unpickling invalid data may raise any exception
            raise RuntimeError(f"{INVALID}: {error!r}") from error
        if not is_batch(batch):
            raise RuntimeError(f"{INVALID}: a {type(batch).__name__} is not a batch")
        return batch

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            try:
                count = self._socket.recv_into(view[filled:])
            except OSError:  # reset, because the other side ended without reading everything
                return None
            if count == 0:
                return None
            filled += count
        return data

    def shut(self) -> None:
        """End the connection for both sides, even if other processes hold copies of the socket."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the connection has already ended
            return

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()


class Outbox(threading.Thread):
    """Queue of outgoing messages, which a separate thread sends in order and in batches.

    Args:
        channel: The channel. When the other side has ended, messages are dropped.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="rhapsody-radical-outbox", daemon=True)
        self._channel = channel
        self._change = threading.Condition()
        self._waiting: list[Message] = []
        self._due = math.inf
        self._ended = False
        self.start()

    def put(self, *message: Any, within: float = BATCH_SECONDS) -> None:
        """Add a message without blocking; may be called on any thread.

        Args:
            message: The message's name and parts.
            within: Time in seconds that the message may wait to be sent together with others.
        """
        due = time.monotonic() + within
        with self._change:
            self._waiting.append(message)
            if due < self._due:
                self._due = due
                self._change.notify()

    def end(self) -> None:
        """Send the remaining messages, and end the thread."""
        with self._change:
            self._ended = True
            self._change.notify()
        self.join(10)

    def run(self) -> None:
        """Send messages until `end` is called."""
        while True:
            with self._change:
                while not self._ended and (rest := self._due - time.monotonic()) > 0:
                    self._change.wait(None if rest == math.inf else rest)
                batch, self._waiting, self._due = self._waiting, [], math.inf
            if not batch:
                return
            try:
                self._channel.send(*batch)
            except OSError:  # the other side has ended, which the reading thread detects
                continue


def is_batch(value: Any) -> bool:
    """Return True if a value is a tuple of messages."""
    return type(value) is tuple and all(
        type(each) is tuple and each and type(each[0]) is str for each in value
    )


def is_plain(value: Any) -> bool:
    """Return True if a value consists only of built-in types, which any process can unpickle."""
    if type(value) in FLAT:
        return True
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return False


class Records(logging.Handler):
    """Logging handler that sends records to the program, where they are handled again.

    Args:
        outbox: The queue of messages to the program.
    """

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record with its formatted text, and without attributes that cannot be pickled."""
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        values = {key: value for key, value in vars(record).items() if is_plain(value)}
        self._outbox.put("log", values)


class Worker:
    """Thread that calls functions one after the other.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any] | None] | None]
        self._queue = SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Schedule a call of a function on the thread.

        Returns:
            The future of the result.

        Raises:
            RuntimeError: The thread was stopped.
        """
        future: Future[Any] = Future()
        self._put(function, future)
        return future

    def post(self, function: Callable[[], Any]) -> None:
        """Schedule a call of a function; ignore its result, and log its exception."""
        with suppress(RuntimeError):
            self._put(function, None)

    def _put(self, function: Callable[[], Any], future: Future[Any] | None) -> None:
        with self._lock:
            if self._stopped:
                raise RuntimeError(f"thread {self._thread.name} was stopped")
            self._queue.put((function, future))

    def stop(self) -> None:
        """End the thread after it has called all functions that were submitted."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(30)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            try:
                value = function()
            except BaseException as error:  # passed to the caller
                if future is None:
                    log.exception("%r failed", function)
                else:
                    with suppress(InvalidStateError):  # the caller no longer waits
                        future.set_exception(error)
            else:
                if future is not None:
                    with suppress(InvalidStateError):
                        future.set_result(value)
            del function, future, item
