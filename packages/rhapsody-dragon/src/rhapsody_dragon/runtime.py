"""Dragon runtime of a backend: its start, the connection to its agents, and its end.

The backend starts Dragon's launcher as a child process, which runs an agent (`agent`) as its head
process. In a program that was itself started with `dragon program.py`, the agent is a process of
that runtime.

If the launcher is killed, the agent ends everything and removes Dragon's shared memory. If the
agent is killed, the launcher does. If both are, `close` does. Their processes are recognized by an
environment variable, which all of them inherit.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rhapsody import BackendUnavailableError
from rhapsody.sdk import in_thread, nodes_of_job, start_thread
from rhapsody_dragon.agent import remove_shared_memory, shared_memory, start_managed
from rhapsody_dragon.wire import Link

MARK = "RHAPSODY_DRAGON"
"""Environment variable of all processes of a runtime, with a unique value."""

INSIDE = "DRAGON_MY_PUID"
"""Environment variable of processes that run in a Dragon runtime."""

AGENT = "rhapsody_dragon.agent"
"""Module of the agents' program."""

CLOSE_LIMIT = 20.0
"""Number of seconds that the agents and the launcher have to end."""

MAX_LOG = 1000
"""Maximum number of characters of Dragon's output in messages."""


class NodeDescription(NamedTuple):
    """Node of a runtime, as its agent describes it.

    Attributes:
        host: The host name.
        cores: The number of cores.
        gpus: The GPUs, as in `CUDA_VISIBLE_DEVICES`.
        memory: Bytes of main memory.
    """

    host: str
    cores: int
    gpus: list[str]
    memory: int


class DragonRuntime:
    """Runtime with its agents. All methods are called on the loop.

    Args:
        receive: Called with the name, the node and the parts of each message from an agent.
        lost: Called with the reason if the runtime ends before `close`.
    """

    def __init__(
        self, receive: Callable[..., object], lost: Callable[[DragonRuntime, str], object]
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._mark = uuid.uuid4().hex
        self._directory = Path(tempfile.mkdtemp(prefix="rhapsody-dragon-"))
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._files: set[str] = set()
        self._link: Link | None = None
        self._nodes: dict[int, NodeDescription] = {}
        self._loop = asyncio.get_running_loop()
        self._count: int | None = None
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._down: asyncio.Event = asyncio.Event()  # the connection has ended
        self._exited: asyncio.Event = asyncio.Event()  # the launcher has ended
        self._closing = False

    async def open(self, limit: float) -> list[NodeDescription]:
        """Start the runtime, and wait until the agents of all nodes are ready.

        Args:
            limit: The maximum number of seconds.

        Returns:
            The nodes.

        Raises:
            BackendUnavailableError: Dragon could not be started.
        """
        path = str(self._directory / "program")
        self._server = await asyncio.start_unix_server(self._connected, path)
        try:
            if INSIDE in os.environ:
                await in_thread(self._start_inside, path)
            else:
                await in_thread(self._launch, path)
            async with asyncio.timeout(limit):
                await self._up
        except TimeoutError:
            await self.close()
            raise BackendUnavailableError(
                f"Dragon was not running after {limit:g} s{self._output()}; set start_timeout to "
                "more seconds, or try `dragon` with a small program"
            ) from None
        except BaseException:
            await self.close()
            raise
        return [self._nodes[index] for index in sorted(self._nodes)]

    def put(self, node: int, name: str, *parts: Any) -> None:
        """Send a message to the agent of a node. Does nothing if the runtime has ended."""
        if self._link is not None:
            self._link.put(node, name, *parts)

    async def close(self) -> None:
        """End the agents and the runtime, and remove what they have left."""
        self._closing = True
        self.put(0, "close")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                if self._link is not None:
                    await self._down.wait()
                    await self._exited.wait()
        if self._link is not None:
            self._link.close()
        await in_thread(self._clean, or_here=True)
        self._server.close()

    # The start.

    def _start_inside(self, path: str) -> None:
        from dragon.native.machine import current

        self._exited.set()  # there is no launcher of this object
        os.environ[MARK] = self._mark
        try:
            start_managed(current().hostname, AGENT, path)
        finally:
            del os.environ[MARK]

    def _launch(self, path: str) -> None:
        scripts, search = os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)
        launcher = shutil.which("dragon", path=scripts) or shutil.which("dragon")
        if launcher is None:
            raise BackendUnavailableError(
                "the command `dragon` was not found: pip install rhapsody-dragon"
            )
        # Where Slurm is installed, Dragon needs this option to start on one node.
        single = ["--single-node-override"] if nodes_of_job() == 1 else []
        command = [launcher, *single, sys.executable, "-P", "-m", AGENT, path]
        with open(self._log, "wb", opener=partial(os.open, mode=0o600)) as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Dragon looks for its other commands in `PATH`.
                env={**os.environ, "PATH": f"{search}{os.pathsep}{scripts}", MARK: self._mark},
                process_group=0,  # not a new session: Dragon could not create a group
            )
        start_thread(self._wait, "rhapsody-dragon-wait")

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._launcher_ended)

    def _launcher_ended(self) -> None:
        self._exited.set()
        self._not_started()

    def _not_started(self) -> None:
        if not self._up.done():
            self._up.set_exception(
                BackendUnavailableError(f"Dragon could not be started{self._output()}")
            )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receive the messages of the agents."""
        self._link = Link(reader, writer)
        async for batch in self._link.batches():
            for name, *parts in batch:
                if name == "nodes":
                    self._count = parts[0]
                elif name == "ready":
                    self._nodes[parts[0]] = NodeDescription(*parts[1:])
                else:
                    self._receive(name, *parts)
                    continue
                if len(self._nodes) == self._count and not self._up.done():
                    self._note_files()
                    self._up.set_result(None)
        self._down.set()
        if not self._up.done():
            await self._exited.wait()
            self._not_started()
        elif not self._closing:
            self._lost(self, f"Dragon ended{self._output()}")

    # The end.

    def _note_files(self) -> None:
        if self._process is not None:
            for pid in (self._process.pid, *marked(self._mark)):
                self._files |= shared_memory(pid)

    def _output(self) -> str:
        """Return the end of Dragon's output, for messages."""
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            text = " / ".join(line.strip() for line in lines if line.strip())
            return f": {text[-MAX_LOG:]}" if text else ""
        return ""

    def _clean(self) -> None:
        """Kill the processes that are left, and remove the files. Blocks."""
        for _ in range(3):  # each round also finds processes that started during the last one
            left = marked(self._mark)
            for pid in left:
                self._files |= shared_memory(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
        if self._process is not None:
            self._process.wait()
            remove_shared_memory(self._files)
        shutil.rmtree(self._directory, ignore_errors=True)


def marked(mark: str) -> list[int]:
    """Return the ids of the processes of a runtime, except this one."""
    line, found = os.fsencode(f"{MARK}={mark}"), []
    for entry in os.scandir("/proc"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                variables = Path(entry.path, "environ").read_bytes()
                if line in variables.split(b"\0"):
                    found.append(int(entry.name))
    return found
