"""How services say that they are ready, and how that is found out and handed on.

The forms that a description's `ready` has are the same on every backend. Where a service
is looked at is the backend's business: `rhapsody.sdk.services` does it beside its program.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from rhapsody.aio import is_cancelling
from rhapsody.data import plain_name, stderr_tail, stdout_tail
from rhapsody.errors import TaskFailedError, describe_error
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription, is_async

__all__ = [
    "FREE",
    "QUIET",
    "Readiness",
    "Ready",
    "Search",
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
