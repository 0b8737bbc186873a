"""Services: programs that run until they are stopped, and how they signal readiness.

The forms of a description's `ready` are the same on every backend (`parse_ready`). `TaskService`
implements them for a program that this process starts: output is read as it arrives, and files and
ports are polled on a thread. Backends that start programs by other means use the parts.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import inspect
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from rhapsody.aio import is_cancelling
from rhapsody.data import OUTPUT_FILES, plain_name, stderr_tail, stdout_tail
from rhapsody.errors import TaskFailedError, describe_error
from rhapsody.sdk.executables import Launch, TaskProgram
from rhapsody.sdk.processes import Program
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription, is_async

__all__ = [
    "FREE",
    "QUIET",
    "Readiness",
    "Ready",
    "Search",
    "TaskService",
    "accepts",
    "call_ready",
    "parse_ready",
    "require_unused",
    "too_early",
    "wait_until",
]

FORMS = "'stdout:REGEX', 'file:NAME', 'tcp', 'tcp:PORT' or a callable"

FIRST_LOOK = 0.01
LONGEST_WAIT = 0.25
"""Seconds between two looks: they double from the first to this."""

SEEN = 1 << 16
"""Characters of output that a pattern can reach back."""

QUIET = 0.1
"""Seconds without more output after which the end of an unfinished line is taken for its end."""

HOST = "127.0.0.1"

ANSWER = 0.2
"""Seconds in which this host says whether anybody listens on a port; it does so at once."""

FREE = 0
"""Stands for a free port, to be picked when the service starts."""


class Ready(NamedTuple):
    """How a service says that it is ready, understood by `parse_ready`.

    Attributes:
        kind: `"stdout"`, `"file"`, `"tcp"` or `"call"`.
        value: The compiled pattern, the file's name, the port (`FREE` for one that is
            picked when the service starts) or the callable.
    """

    kind: str
    value: Any


def parse_ready(ready: Any) -> Ready:
    """Understand a description's `ready`; pure, on any thread.

    `stdout:REGEX` waits until the pattern is found in the service's standard output
    and gives the first group, or the whole match where it has no group; the end of a
    line that may go on is waited for, a moment. `file:NAME`
    waits for a file in the sandbox and gives its path. `tcp:PORT` waits until the
    port on this machine accepts a connection and gives `(host, port)`; `tcp` alone
    does so with a free port that the service is given. A callable is
    called with the description (awaited where it gives a coroutine, on the engine's
    loop; else it runs on a thread) and gives what it returns.

    Raises:
        ValueError: None of these; it names the accepted forms.
    """
    if callable(ready):
        return Ready("call", ready)
    if ready == "tcp":
        return Ready("tcp", FREE)
    if isinstance(ready, str):
        kind, colon, text = ready.partition(":")
        with suppress(ValueError):  # of a bad pattern, port or name
            if colon and text and kind in _PARSERS:
                return Ready(kind, _PARSERS[kind](text))
    raise ValueError(f"ready must be {FORMS}, got {ready!r}")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise ValueError(str(error)) from error


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError(f"no port {port}")
    return port


_PARSERS: dict[str, Callable[[str], Any]] = {
    "stdout": _pattern,
    "file": plain_name,
    "tcp": _port,
}


async def call_ready(ready: Callable[[Any], Any], task: Any) -> Any:
    """Return what a service's `ready` callable returns; a coroutine function runs on the loop.

    Others are called on a thread, and what they give to be awaited is awaited on the loop. A
    cancellation cancels a coroutine, and leaves a function to its thread.

    Args:
        ready: The callable.
        task: The service's description, which it is called with.

    Raises:
        RuntimeError: It raised what would end more than its service.
        Exception: The callable's own.
    """
    try:
        if is_async(ready):
            return await ready(task)
        value = await in_thread(partial(ready, task))
        return await value if inspect.isawaitable(value) else value
    except (SystemExit, asyncio.CancelledError) as error:
        if is_cancelling():
            raise
        raise RuntimeError(f"ready raised {describe_error(error)}") from error


class Search:
    """Looks for a pattern in output that grows.

    Args:
        pattern: What to look for.

    Attributes:
        found: The first group of the match, or the whole match where the pattern has no
            group; `None` before there is one.
        settled: Whether more output cannot make the match longer. One at the end of a line
            that may go on counts after `QUIET` seconds without more.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._text = ""
        self.found: str | None = None
        self.settled: bool = False

    def feed(self, text: str) -> None:
        """Look at what there is with more text."""
        if self.settled:
            return
        self._text = text = (self._text + text)[-2 * SEEN :]
        match = self._pattern.search(text)
        if match is None:
            return
        self.found = match[1] if self._pattern.groups else match[0]
        self.settled = match.end() < len(text) or text.endswith("\n")


def wait_until(condition: Callable[[], bool], stopped: threading.Event) -> None:
    """Wait until something is there that nobody tells of: a file, a port. On a thread; blocks.

    Args:
        condition: Looks once.
        stopped: Set where nobody wants to know any more.
    """
    wait = FIRST_LOOK
    while not condition() and not stopped.wait(wait):
        wait = min(2 * wait, LONGEST_WAIT)


def accepts(host: str, port: int) -> bool:
    """Return whether a port accepts a connection; blocks for a second at most."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            # Where nobody listens, the system may connect a socket to itself.
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


def require_unused(task: TaskDescription, port: int) -> None:
    """Raise where something listens on a port of this host before the service has begun.

    Blocks for a moment at most.

    Args:
        task: The service's description, for the error.
        port: The port that it names.

    Raises:
        OSError: It would be taken for the service.
    """
    try:
        socket.create_connection((HOST, port), timeout=ANSWER).close()
    except TimeoutError:
        pass  # somebody listens who is too busy to answer
    except OSError:
        return
    raise OSError(
        errno.EADDRINUSE,
        f"service {task['name']!r} has ready='tcp:{port}', and something else listens on port "
        f"{port} already: end that first, or let ready='tcp' pick a free port, which takes the "
        "place of {port} in the command and is in the variable PORT",
    )


def too_early(task: TaskDescription, code: int | None) -> TaskFailedError:
    """Return the error of a service that ended before it was ready.

    Args:
        task: Its description, with its output.
        code: Its exit code, where that is known.
    """
    tail = stderr_tail(task)
    said = f": {tail.strip()}" if tail.strip() else ""
    return TaskFailedError(
        f"service {task['name']!r} ended with exit code {code} before it was ready{said}",
        exit_code=code,
        stderr=tail,
        command=task["executable"],
        stdout=stdout_tail(task),
        sandbox=task.get("sandbox"),
    )


class Readiness:
    """Brings a service's readiness and the engine's future together, whichever comes first.

    Report RUNNING with `attach` as the service callback:
    `backend.task_state_cb(task, running, readiness.attach)`.

    Attributes:
        known: Whether the service is ready.
    """

    def __init__(self) -> None:
        self.known: bool = False
        self._value: Any = None
        self._future: Any = None

    def attach(self, future: Any, task: Any, state: Any) -> None:
        """Take the future that is to be set. The engine calls it, on any thread."""
        self._future = future
        if self.known:
            self._resolve()

    def set(self, value: Any) -> None:
        """Say that the service is ready, and with what; on any thread, once."""
        self._value = value
        self.known = True
        if self._future is not None:
            self._resolve()

    def _resolve(self) -> None:
        with suppress(InvalidStateError, asyncio.InvalidStateError):  # cancelled meanwhile
            self._future.set_result(self._value)


log: logging.Logger = logging.getLogger(__name__)


AT_ONCE = 1 << 16
"""Bytes of output that are read in one go."""


class TaskService(TaskProgram):
    """Starts the program of an executable service, and tells when it is ready.

    As `TaskProgram`. Where its description has `ready="tcp"`, it is given a free port,
    which takes the place of `{port}` in its command and is in the variable `PORT`.

    Args:
        task: The description.
        environment: Variables beside those of this process.
        ready: Called on the loop once the service is ready, with its readiness information;
            never where the description says nothing of readiness.
        launch: What starts the program.

    Raises:
        OSError: The program cannot be started, or something else listens on its port.
        ValueError: The description has no program, or a `ready` that is none.
    """

    def __init__(
        self,
        task: TaskDescription,
        environment: Mapping[str, str],
        *,
        ready: Callable[[Any], object],
        launch: Launch = Program,
    ) -> None:
        self._tell = ready
        self._ready = None if task.get("ready") is None else parse_ready(task["ready"])
        self._printed: Output | None = None
        self._port: int | None = None
        self._stop = threading.Event()
        self._known = False
        self._error: Exception | None = None
        writer = None
        if self._ready is not None and self._ready.kind == "stdout":
            capture = task.get("capture", True)
            self._printed = Output(self._ready.value, task["sandbox"], capture)
            writer = self._printed.writer
        elif self._ready is not None and self._ready.kind == "tcp":
            if self._ready.value != FREE:
                require_unused(task, self._ready.value)
            else:
                self._port = _ports.pick()
                self._ready = Ready("tcp", self._port)
                environment = {**environment, "PORT": str(self._port)}
        try:
            super().__init__(task, environment, launch=launch, stdout=writer, port=self._port)
        except BaseException:
            self._release()
            raise
        finally:
            if self._printed is not None:
                self._printed.close_writer()

    async def wait(self, grace: float) -> int:
        """Wait for the service's end, and write exit code and output into the description.

        As `TaskProgram.wait`. Its readiness is watched meanwhile.

        Raises:
            TaskFailedError: It ended before it was ready.
            OSError: Its output cannot be read.
            Exception: What its `ready` callable raised, for which it was stopped.
        """
        watch = None
        if self._ready is not None:
            watch = asyncio.ensure_future(self._watch(self._ready, grace))
        try:
            code = await super().wait(grace)
        finally:
            self._stop.set()
            if watch is not None:
                watch.cancel()
                await asyncio.wait([watch])
            self._release()
        if self._error is not None:
            raise self._error
        if self._ready is not None and not self._known:
            raise too_early(self._task, code)
        return code

    async def _watch(self, ready: Ready, grace: float) -> None:
        try:
            value = await self._readiness(ready)
        except Exception as error:  # the user's callable
            if self.running:
                self._error = error
                self.terminate(grace)
        else:
            if self.running:
                self._known = True
                self._tell(value)

    async def _readiness(self, ready: Ready) -> Any:
        if self._printed is not None:
            return await self._printed.found
        if ready.kind == "call":
            return await call_ready(ready.value, self._task)
        if ready.kind == "file":
            path = os.path.join(self._task["sandbox"], ready.value)
            await in_thread(partial(wait_until, partial(os.path.exists, path), self._stop))
            return path
        await in_thread(partial(wait_until, partial(accepts, HOST, ready.value), self._stop))
        return HOST, ready.value

    async def _collect(self, code: int) -> int:
        if self._printed is not None:
            self._printed.read_rest()
        return await super()._collect(code)

    def _release(self) -> None:
        if self._printed is not None:
            self._printed.close()
        if self._port is not None:
            _ports.give_back(self._port)
            self._port = None


class Ports:
    """The free ports that services of this process were given, so that no two have the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()

    def pick(self) -> int:
        """A port that is free on all addresses of this host."""
        with self._lock:
            while True:
                with socket.socket() as probe:
                    probe.bind(("", 0))
                    port: int = probe.getsockname()[1]
                if port not in self._taken:
                    self._taken.add(port)
                    return port

    def give_back(self, port: int) -> None:
        """Notes that the service with a port has ended."""
        with self._lock:
            self._taken.discard(port)


_ports = Ports()


class Output:
    """A service's standard output: copied to its file as it comes, and searched.

    Args:
        pattern: What to search for.
        directory: The sandbox.
        capture: As in the description.

    Attributes:
        writer: The descriptor that the service writes to.
        found: Done with the first match, once no more output can make it longer.
    """

    def __init__(self, pattern: re.Pattern[str], directory: str, capture: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._search = Search(pattern)
        self._quiet: asyncio.TimerHandle | None = None  # until a match at the very end counts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._file: int | None = None
        if capture is not False:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND
            self._path = os.path.join(directory, OUTPUT_FILES[0])
            self._file = os.open(self._path, flags, 0o600)
        self._reader: int | None
        self.writer: int
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.found: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(self._reader, self._read)

    def close_writer(self) -> None:
        """Gives up this process's own writing end, once the service has it."""
        os.close(self.writer)

    def read_rest(self) -> None:
        """Takes what is left when the service has ended."""
        while self._reader is not None and self._read():
            pass

    def close(self) -> None:
        """Stops reading."""
        if self._reader is not None:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._wait_no_more()
        if not self.found.done():
            self.found.cancel()

    def _read(self) -> bool:
        assert self._reader is not None
        try:
            data = os.read(self._reader, AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None
            self._look("", whole=True)
            return False
        if self._file is not None:
            self._keep(self._file, data)
        self._look(self._decoder.decode(data))
        return True

    def _keep(self, file: int, data: bytes) -> None:
        try:
            os.write(file, data)
        except OSError as error:  # the disk is full, say: the service goes on
            log.warning("what a service prints is no longer kept in %s: %s", self._path, error)
            os.close(file)
            self._file = None

    def _look(self, text: str, whole: bool = False) -> None:
        """Looks at what there is with more `text`, and whether that is the whole of it."""
        if self.found.done():
            return
        self._wait_no_more()
        search = self._search
        search.feed(text)
        if search.found is None:
            return
        if whole or search.settled:
            self._take(search.found)
        else:
            self._quiet = self._loop.call_later(QUIET, self._take, search.found)

    def _take(self, value: str) -> None:
        if not self.found.done():  # the service may be ending
            self.found.set_result(value)

    def _wait_no_more(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
