"""Services: programs that run until they are stopped, and their readiness signals.

Every backend accepts the same values of `ready`; see `parse_ready`. `TaskService` implements them
for a program that this process starts. A thread polls the program's output, files and ports, so
this process never blocks the program. Backends that start programs in other ways call the functions
of this module.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import InvalidStateError
from contextlib import ExitStack, suppress
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
    "Readiness",
    "Ready",
    "TaskService",
    "accepts",
    "call_ready",
    "parse_ready",
    "require_unused",
    "search_output",
    "too_early",
    "wait_until",
]

FORMS = "'stdout:REGEX', 'file:NAME', 'tcp', 'tcp:PORT' or a callable"

FIRST_WAIT = 0.01
LONGEST_WAIT = 0.25
"""Maximum number of seconds between two polls. The interval starts at `FIRST_WAIT` and doubles."""

WINDOW = 1 << 16
"""Number of bytes of output to read at a time. A match of at most this length is always found."""

LINE_TIMEOUT = 0.1
"""Seconds without further output after which an unfinished line is treated as finished."""

HOST = "127.0.0.1"

CONNECT_TIMEOUT = 0.2
"""Seconds to wait for a connection to a port of this host, which normally responds immediately."""

FREE = 0
"""Port number that stands for `ready="tcp"`: a free port is chosen when the service starts."""


class Ready(NamedTuple):
    """Readiness signal of a service, as parsed by `parse_ready`.

    Attributes:
        kind: `"stdout"`, `"file"`, `"tcp"` or `"call"`.
        value: The compiled pattern, the file's name, the port (`FREE` for one that is chosen when
            the service starts) or the callable.
    """

    kind: str
    value: Any


def parse_ready(ready: Any) -> Ready:
    """Parse the `ready` of a service's description. May be called on any thread.

    Each form states when the service is ready, and what its readiness information is:

    - `stdout:REGEX`: when its standard output contains a match. The information is the first group,
      or the whole match if there is no group. A match at the end of an unfinished line is accepted
      if no more output follows for a moment.
    - `file:NAME`: when the file exists in its sandbox. The information is the file's path.
    - `tcp:PORT`: when the port on this machine accepts a connection. The information is
      `(host, port)`. `tcp` alone does the same with a free port that is passed to the service.
    - A callable: when a call with the description has returned. A coroutine function is called on
      the engine's loop, any other callable on a thread. The information is the result.

    Returns:
        The parsed signal.

    Raises:
        ValueError: `ready` has none of these forms. The message names the accepted forms.
    """
    if callable(ready):
        return Ready("call", ready)
    if ready == "tcp":
        return Ready("tcp", FREE)
    if isinstance(ready, str):
        kind, colon, text = ready.partition(":")
        with suppress(ValueError, re.error):  # for an invalid pattern, port or name
            if colon and text and kind in _PARSERS:
                return Ready(kind, _PARSERS[kind](text))
    raise ValueError(f"ready must be {FORMS}, got {ready!r}")


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError(f"no port {port}")
    return port


_PARSERS: dict[str, Callable[[str], Any]] = {
    "stdout": partial(re.compile, flags=re.MULTILINE),
    "file": plain_name,
    "tcp": _port,
}


async def call_ready(ready: Callable[[Any], Any], task: Any) -> Any:
    """Call a service's `ready` callable and return the result.

    A coroutine function runs on the loop. Other callables run on a thread; an awaitable that such a
    callable returns is awaited on the loop. Canceling this call cancels a coroutine, but leaves a
    function running on its thread.

    Args:
        ready: The callable.
        task: The service's description, which is passed to the callable.

    Returns:
        The callable's result.

    Raises:
        RuntimeError: The callable raised `SystemExit` or `CancelledError`.
        Exception: Any other error that the callable raised.
        asyncio.CancelledError: This call was canceled.
    """  # noqa: DOC501 - SystemExit only during a cancellation
    try:
        if is_async(ready):
            return await ready(task)
        value = await in_thread(ready, task)
        return await value if inspect.isawaitable(value) else value
    except (SystemExit, asyncio.CancelledError) as error:
        if is_cancelling():
            raise
        raise RuntimeError(f"ready raised {describe_error(error)}") from error


def wait_until(condition: Callable[[], bool], stopped: threading.Event) -> None:
    """Poll until a condition is true. Blocks, so call this on a separate thread.

    Args:
        condition: Function that returns True once the condition is true.
        stopped: Event that ends the wait when it is set.
    """
    wait = FIRST_WAIT
    while not condition() and not stopped.wait(wait):
        wait = min(2 * wait, LONGEST_WAIT)


def search_output(path: str, pattern: re.Pattern[str], stopped: threading.Event) -> str | None:
    """Wait for a match in a file that another process writes. Call this on a separate thread.

    Args:
        path: The path of the file, which need not exist yet.
        pattern: The pattern to search for.
        stopped: Event that ends the wait when it is set.

    Returns:
        The first group, or the whole match if the pattern has no group; `None` if the wait was
        stopped.
    """
    seen, position, wait = b"", 0, FIRST_WAIT
    while not stopped.is_set():
        more = b""
        with suppress(OSError), open(path, "rb") as file:  # the file may not exist yet
            file.seek(position)
            more = file.read(WINDOW)
        position += len(more)
        seen = (seen + more)[-2 * WINDOW :]
        text = seen.decode(errors="replace")
        match = pattern.search(text)
        if match is not None:
            if match.end() < len(text) or text.endswith("\n") or not more:
                return str(match[1] if pattern.groups else match[0])
            wait = LINE_TIMEOUT
        elif more:
            wait = FIRST_WAIT
        if len(more) < WINDOW:
            stopped.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
    return None


def accepts(host: str, port: int) -> bool:
    """Return True if a port accepts a connection. Blocks for at most a second."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            # If the port is closed, the system may connect a socket to itself.
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


def require_unused(task: TaskDescription, port: int) -> None:
    """Check that a port of this host is unused before the service starts. Blocks for a moment.

    Args:
        task: The service's description, for the error.
        port: The port in the description's `ready`.

    Raises:
        OSError: Another program is listening on the port and would be mistaken for the service.
    """
    try:
        socket.create_connection((HOST, port), timeout=CONNECT_TIMEOUT).close()
    except TimeoutError:
        pass  # a program listens on the port but is too busy to answer
    except OSError:
        return
    raise OSError(
        errno.EADDRINUSE,
        f"service {task['name']!r} has ready='tcp:{port}', but another program already listens on "
        f"port {port}: stop that program, or use ready='tcp', which replaces {{port}} in the "
        "command with a free port and sets the variable PORT",
    )


def too_early(task: TaskDescription, code: int | None) -> TaskFailedError:
    """Return the error for a service that ended before it was ready.

    Args:
        task: The service's description, with its output.
        code: The service's exit code, or `None` if it is unknown.
    """
    tail = stderr_tail(task)
    stderr = f": {tail.strip()}" if tail.strip() else ""
    hint = "; a service must stay in the foreground until it is stopped" if code == 0 else ""
    return TaskFailedError(
        f"service {task['name']!r} ended with exit code {code} before it was ready{hint}{stderr}",
        exit_code=code,
        stderr=tail,
        command=task["executable"],
        stdout=stdout_tail(task),
        sandbox=task.get("sandbox"),
    )


class Readiness:
    """Readiness of a service. Sets the engine's future once `attach` and `set` have been called.

    When you report RUNNING, pass `attach` as the service callback:
    `backend.task_state_cb(task, running, readiness.attach)`.

    Attributes:
        known: True once the service is ready.
    """

    def __init__(self) -> None:
        self.known: bool = False
        self._value: Any = None
        self._future: Any = None

    def attach(self, future: Any, task: Any, state: Any) -> None:
        """Register the future to set. Called by the engine, on any thread."""
        self._future = future
        if self.known:
            self._resolve()

    def set(self, value: Any) -> None:
        """Report that the service is ready. Called once, on any thread, with its information."""
        self._value = value
        self.known = True
        if self._future is not None:
            self._resolve()

    def _resolve(self) -> None:
        with suppress(InvalidStateError, asyncio.InvalidStateError):  # canceled meanwhile
            self._future.set_result(self._value)


class TaskService(TaskProgram):
    """Program of an executable service, with its readiness signal.

    Use this class like `TaskProgram`. With `ready="tcp"` in its description, the service is
    assigned a free port, which replaces `{port}` in the command and is the value of the environment
    variable `PORT`. Standard output that is searched for a pattern is always written to its file in
    the sandbox, even with `capture=False`.

    Args:
        task: The service's description.
        environment: Variables in addition to those of this process.
        ready: Called on the loop with the readiness information once the service is ready. Not
            called if the description has no `ready`.
        launch: Callable that starts the program; see `TaskProgram`.

    Raises:
        OSError: The program cannot be started, or another program is listening on the service's
            port.
        ValueError: The description has no program, or an invalid `ready`.
    """

    def __init__(
        self,
        task: TaskDescription,
        environment: Mapping[str, str],
        *,
        ready: Callable[[Any], object],
        launch: Launch = Program,
    ) -> None:
        self._report = ready
        self._ready = None if task.get("ready") is None else parse_ready(task["ready"])
        self._port: int | None = None
        self._stop = threading.Event()
        self._known = False
        self._error: Exception | None = None
        if self._ready is not None and self._ready.kind == "tcp":
            if self._ready.value != FREE:
                require_unused(task, self._ready.value)
            else:
                self._port = _ports.take()
                self._ready = Ready("tcp", self._port)
                environment = {**environment, "PORT": str(self._port)}
        with ExitStack() as files:
            stdout = None
            searched = self._ready is not None and self._ready.kind == "stdout"
            if searched and task.get("capture", True) is False:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                stdout = os.open(self._stdout_path(task), flags, 0o600)
                files.callback(os.close, stdout)
            try:
                super().__init__(task, environment, launch=launch, stdout=stdout, port=self._port)
            except BaseException:
                self._release()
                raise

    async def wait(self, grace: float) -> int:
        """Wait until the service has ended, and report when it becomes ready.

        See `TaskProgram.wait` for `grace` and for the effect of a cancellation.

        Returns:
            The exit code.

        Raises:
            TaskFailedError: The service ended before it was ready.
            OSError: The program's output cannot be read.
            Exception: The error that the service's `ready` callable raised. The service has been
                stopped.
        """  # noqa: DOC501 - a TaskFailedError
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
        except Exception as error:  # raised by the user's callable
            if self.running:
                self._error = error
                self.terminate(grace)
        else:
            if self.running:
                self._known = True
                self._report(value)

    async def _readiness(self, ready: Ready) -> Any:
        if ready.kind == "call":
            return await call_ready(ready.value, self._task)
        if ready.kind == "stdout":
            path = self._stdout_path(self._task)
            return await in_thread(search_output, path, ready.value, self._stop)
        if ready.kind == "file":
            path = os.path.join(self._task["sandbox"], ready.value)
            await in_thread(wait_until, partial(os.path.exists, path), self._stop)
            return path
        await in_thread(wait_until, partial(accepts, HOST, ready.value), self._stop)
        return HOST, ready.value

    @staticmethod
    def _stdout_path(task: TaskDescription) -> str:
        return os.path.join(task["sandbox"], OUTPUT_FILES[0])

    def _release(self) -> None:
        if self._port is not None:
            _ports.give_back(self._port)
            self._port = None


class Ports:
    """Allocator of ports for this process's services. Running services never share a port."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()

    def take(self) -> int:
        """Reserve a port that is free on all addresses of this host, and return its number."""
        with self._lock:
            while True:
                with socket.socket() as probe:
                    probe.bind(("", 0))
                    port: int = probe.getsockname()[1]
                if port not in self._taken:
                    self._taken.add(port)
                    return port

    def give_back(self, port: int) -> None:
        """Release the port of a service that has ended."""
        with self._lock:
            self._taken.discard(port)


_ports = Ports()
