"""Runs services: programs that serve until they are stopped, and say when they are ready.

How a service says so is in its description's `ready`: see `rhapsody.sdk.readiness`. What is
waited for by looking again and again (a file, a port) is looked for on a thread
of its own; output is read as it comes.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk.executables import Launch, TaskProgram
from rhapsody.sdk.processes import Program
from rhapsody.sdk.readiness import (
    FREE,
    QUIET,
    Ready,
    Search,
    accepts,
    call_ready,
    parse_ready,
    require_unused,
    too_early,
    wait_until,
)
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["TaskService"]

log: logging.Logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

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
