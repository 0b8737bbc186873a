"""Runs services: programs that serve until they are stopped, and say when they are ready.

How a service says so is in its description's `ready`: see `parse_ready`. What is
waited for by looking again and again (a file, a port) is looked for on a thread
of its own; output is read as it comes.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from rhapsody.backends.local.executables import Executables, Program
from rhapsody.backends.local.guardian import Guardian
from rhapsody.backends.local.jobs import Job
from rhapsody.data import OUTPUT_FILES, plain_name, stderr_tail
from rhapsody.errors import TaskFailedError
from rhapsody.sdk.threads import call_ready, in_thread
from rhapsody.task import TaskDescription

FORMS = "'stdout:REGEX', 'file:NAME', 'tcp', 'tcp:PORT' or a callable"

FIRST_LOOK = 0.01
LONGEST_WAIT = 0.25
"""Seconds between two looks for a file or a port: they double from the first to this."""

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
    """How a service says that it is ready.

    Attributes:
        kind: `"stdout"`, `"file"`, `"tcp"` or `"call"`.
        value: The compiled pattern, the file's name, the port (`FREE` for one that is
            picked when the service starts) or the callable.
    """

    kind: str
    value: Any


def parse_ready(ready: Any) -> Ready:
    """Understands a description's `ready`.

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


def require_unused(task: TaskDescription, port: int) -> None:
    """Raises where something listens on a port of this host before the service has begun.

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


class Services(Executables):
    """Runs executable services.

    Args:
        deliver: Takes each job that has ended; called on the loop.
        serving: Called on the loop with each job whose program was started.
        sandbox: Gives a task's sandbox where the description names none.
        gpus: All the GPUs there are to give.
        grace: Seconds between asking a program to end and ending it by force.
        guardian: What ends the programs where this process is killed.
    """

    announces = True

    def __init__(
        self,
        deliver: Callable[[Job], object],
        serving: Callable[[Job, Callable[..., None] | None], object],
        sandbox: Callable[[str], str],
        gpus: tuple[str, ...],
        grace: float,
        guardian: Guardian | None = None,
    ) -> None:
        super().__init__(deliver, sandbox, gpus, grace, guardian)
        self._serving = serving

    def run(self, job: Job) -> None:
        """Starts the service's program and begins to watch for its readiness."""
        ready = job.task.get("ready")
        probe = None if ready is None else parse_ready(ready)
        output = None
        if probe is not None and probe.kind == "tcp":
            probe, program = self._start_on_port(job, probe.value)
        elif probe is None or probe.kind != "stdout":
            program = self.start(job)
        else:
            output = Output(probe.value, self.directory(job), job.task.get("capture", True))
            try:
                program = self.start(job, output.writer)
            except BaseException:
                output.close()
                raise
            finally:
                output.close_writer()
        job.handle = program
        job.pid = program.pid
        job.worker = f"process {program.pid}"
        readiness = Readiness()
        self._serving(job, None if probe is None else readiness.attach)
        self._spawn(self._serve(job, program, probe, output, readiness))

    def _start_on_port(self, job: Job, port: int) -> tuple[Ready, Program]:
        """Starts a service that is to listen on a port, or on a free one that it is given."""
        if port != FREE:
            require_unused(job.task, port)
            return Ready("tcp", port), self.start(job)
        job.port = _ports.pick()
        try:
            return Ready("tcp", job.port), self.start(job)
        except BaseException:
            _ports.give_back(job.port)
            raise

    async def _serve(
        self,
        job: Job,
        program: Program,
        probe: Ready | None,
        output: Output | None,
        readiness: Readiness,
    ) -> None:
        stop = threading.Event()
        watch = None
        try:
            if probe is not None:
                watch = asyncio.ensure_future(_watch(probe, job, output, stop))
                await asyncio.wait([watch, program.exited], return_when=asyncio.FIRST_COMPLETED)
                if watch.done() and not program.exited.done():
                    if watch.exception() is None:
                        readiness.set(watch.result())
                    else:  # the user's callable
                        job.error = watch.exception()
                        program.terminate(self._grace)
            code = await program.exited
            if output is not None:
                output.read_rest()
            await self.collect(job, code)
            if probe is not None and not readiness.known and job.error is None:
                job.error = too_early(job.task, code)
        except Exception as error:  # its output cannot be read
            job.error = error
        finally:
            stop.set()
            if watch is not None:
                await _end(watch)
            if output is not None:
                output.close()
            if job.port is not None:
                _ports.give_back(job.port)
        self._deliver(job)


def too_early(task: TaskDescription, code: int | None) -> TaskFailedError:
    """The error of a service that ended before it was ready.

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
    )


class Readiness:
    """Brings a service's readiness and the engine's future together, whichever comes first."""

    def __init__(self) -> None:
        self.known: bool = False
        self._value: Any = None
        self._future: Any = None

    def attach(self, future: Any, task: Any, state: Any) -> None:
        """The engine's call, from any thread."""
        self._future = future
        if self.known:
            self._resolve()

    def set(self, value: Any) -> None:
        """The service is ready."""
        self._value = value
        self.known = True
        if self._future is not None:
            self._resolve()

    def _resolve(self) -> None:
        with suppress(InvalidStateError, asyncio.InvalidStateError):  # cancelled meanwhile
            self._future.set_result(self._value)


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
        self._pattern = pattern
        self._text = ""
        self._quiet: asyncio.TimerHandle | None = None  # until a match at the very end counts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._file: int | None = None
        if capture is not False:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND
            self._file = os.open(os.path.join(directory, OUTPUT_FILES[0]), flags, 0o600)
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
            data = os.read(self._reader, SEEN)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None
            self._search("", whole=True)
            return False
        if self._file is not None:
            os.write(self._file, data)
        self._search(self._decoder.decode(data))
        return True

    def _search(self, text: str, whole: bool = False) -> None:
        """Looks at what there is with more `text`, and whether that is the whole of it."""
        if self.found.done():
            return
        self._wait_no_more()
        self._text = (self._text + text)[-2 * SEEN :]
        match = self._pattern.search(self._text)
        if match is None:
            return
        value = match[1] if self._pattern.groups else match[0]
        if whole or settled(match):
            self._take(value)
        else:
            self._quiet = self._loop.call_later(QUIET, self._take, value)

    def _take(self, value: str) -> None:
        if not self.found.done():  # the service may be ending
            self.found.set_result(value)
        self._text = ""

    def _wait_no_more(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None


def settled(match: re.Match[str]) -> bool:
    """Whether a match in output that grows stays as it is: its line goes on, or is over."""
    return match.end() < len(match.string) or match.string.endswith("\n")


async def _watch(probe: Ready, job: Job, output: Output | None, stop: threading.Event) -> Any:
    """Waits until a service is ready; its readiness information."""
    task = job.task
    if output is not None:
        return await output.found
    if probe.kind == "call":
        return await call_ready(probe.value, task)
    if probe.kind == "file":
        path = os.path.join(task.get("sandbox", ""), probe.value)
        await in_thread(partial(_look, partial(os.path.exists, path), stop))
        return path
    await in_thread(partial(_look, partial(_accepts, probe.value), stop))
    return HOST, probe.value


def _look(ready: Callable[[], bool], stop: threading.Event) -> None:
    """Looks until something is there, or nobody wants to know any more. On a thread."""
    wait = FIRST_LOOK
    while not ready() and not stop.wait(wait):
        wait = min(2 * wait, LONGEST_WAIT)


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            # Where nobody listens, the system may connect a socket to itself.
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


async def _end(watch: asyncio.Future[Any]) -> None:
    """Ends a watch that is no longer needed."""
    if not watch.done():
        watch.cancel()
    await asyncio.wait([watch])
    if not watch.cancelled():
        watch.exception()  # looked at
