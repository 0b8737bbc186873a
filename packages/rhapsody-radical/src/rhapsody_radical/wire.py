"""Messages between a program and its RADICAL-Pilot client, and the threads of both.

A message is a tuple of its name and plain values; objects of users are pickled into bytes. Messages
are sent over an inherited socket pair, in batches. The process at the other end is our own, so
pickles can be trusted.

Messages to the client: `open` starts a session, `submit` and `cancel` submit and cancel tasks,
`ready` reports that a service is ready, `call` calls a method or function, and `close` ends the
session. Messages to the program: `reply` contains the result of `open` or of a call, the arguments
of a callback, or new attributes of an object, `running` and `end` report on tasks, `pilot` reports
changes of a pilot, and `log` contains a log record.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from rhapsody.sdk import pickler

log: logging.Logger = logging.getLogger("rhapsody.radical")

BATCH_SECONDS = 0.01
"""Default time in seconds that a message waits for other messages to be sent with it.

Each batch wakes two threads.
"""

FLAT = frozenset((str, int, float, bool, bytes, type(None)))

Message = tuple[Any, ...]


class Channel:
    """One end of the socket pair. Any thread may send; one thread receives.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._connection = Connection(os.dup(end.fileno()))
        self._sending = threading.Lock()

    def send(self, *messages: Message) -> None:
        """Send messages as one batch; block while the other side does not read.

        Raises:
            OSError: The other side has ended.
        """
        data = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            try:
                self._connection.send_bytes(data)
            except BaseException:  # such as KeyboardInterrupt: half a batch makes the rest invalid
                self.shut()
                raise

    def receive(self) -> Iterable[Message] | None:
        """Return the next batch, or `None` if the other side has ended."""
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError):  # also reset, because the other side has not read everything
            return None
        batch: Iterable[Message] = pickle.loads(data)  # noqa: S301 - from our own process
        return batch

    def shut(self) -> None:
        """End the connection for both sides, even if other processes hold copies of the socket."""
        with suppress(OSError):  # the connection has already ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptors."""
        self._socket.close()
        self._connection.close()


class AttributeDict(dict[str, Any]):
    """Dict from RADICAL-Pilot whose values are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"no attribute {name!r}; the attributes are {', '.join(self)}"
            ) from None


class _WirePickler(pickler()):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, name: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._name = name

    def persistent_id(self, thing: Any) -> Any:
        return self._name(thing)


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: bytes, find: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(packed))
        self._find = find

    def persistent_load(self, name: Any) -> Any:
        return self._find(name)


def dumps(value: Any, name: Callable[[Any], Any]) -> bytes:
    """Pickle a value, except the objects for which `name` returns a name instead of `None`."""
    file = io.BytesIO()
    _WirePickler(file, name).dump(value)
    return file.getvalue()


def loads(packed: bytes, find: Callable[[Any], Any]) -> Any:
    """Unpickle the result of `dumps`; `find` returns the object with a name."""
    return _Unpickler(packed, find).load()


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


def is_plain(value: Any) -> bool:
    """Return True if a value consists only of built-in types, which any process can unpickle."""
    if type(value) in FLAT:
        return True
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) in (dict, AttributeDict):
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


class CallThread:
    """Thread that calls functions one after the other; started by the first call.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Schedule a call of a function on the thread.

        Returns:
            The future of the result.

        Raises:
            RuntimeError: The thread was stopped.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._stopped:
                raise RuntimeError(f"thread {self._thread.name} was stopped")
            self._queue.put((function, future))
            if self._thread.ident is None:
                self._thread.start()
        return future

    def post(self, function: Callable[[], Any]) -> None:
        """Schedule a call of a function; ignore its result, and log its exception."""
        with suppress(RuntimeError):
            self.submit(function).add_done_callback(partial(_log_failure, function))

    def stop(self) -> None:
        """End the thread after it has called all functions that were submitted."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(30)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            with suppress(InvalidStateError):  # the caller no longer waits
                try:
                    value = function()
                except BaseException as error:  # passed to the caller
                    future.set_exception(error)
                else:
                    future.set_result(value)
            del function, future, item


def _log_failure(function: Callable[[], Any], future: Future[Any]) -> None:
    if (error := future.exception()) is not None:
        log.error("%r failed", function, exc_info=error)
