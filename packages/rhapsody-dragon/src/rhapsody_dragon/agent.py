"""Agent: runs tasks on one node of a Dragon runtime for the program's backend.

The first agent runs on the head node, and connects to the program through a socket. It starts an
agent on each other node; these exchange messages with it through Dragon's queues. Each agent starts
workers for functions as processes of Dragon. Executables are its own child processes, because
Dragon takes about ten times as long to start one.

Messages to an agent: `path` contains `sys.path` of the program, `modules` its own modules, `call`
and `run` start a function or an executable, `cancel` stops a task, `value` closes a worker value,
`watch` begins to sample the load of the node, and `close` ends the agent. Messages to the program:
`nodes` contains the number of agents, `ready` describes a node, `load` is a sample of its load,
`running`, `building` and `serving` report on a task, and `result`, `ended`, `canceled` and `lost`
report its end.

An agent ends with the program or with Dragon's launcher, whatever ends first, and its workers and
executables end with it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from rhapsody import TaskDescription
from rhapsody.sdk import (
    NodeSampler,
    Program,
    Reaper,
    TaskProgram,
    TaskService,
    describe_error,
    in_thread,
    start_thread,
)
from rhapsody_dragon.wire import LIFE, Link, Message

OUTCOME_KEYS = ("exit_code", "stdout", "stderr", "usage")
"""Keys of a description that `TaskProgram.wait` sets."""

START_TIMEOUT = 60.0
"""Number of seconds within which a worker that Dragon has started must connect."""

MAX_MODULES = 16
"""Number of versions of the program's modules that an agent keeps for waiting calls."""

CLOSE_GRACE = 10.0
"""Number of seconds that idle workers have to close their worker values."""

KILL_TIMEOUT = 2.0
"""Number of seconds that killed processes have to end."""

WORKER = "rhapsody_dragon.worker"
"""Module of the workers' program."""

SHARED_MEMORY = "/dev/shm/DD"  # noqa: S108 - Dragon puts it there
"""Beginning of the paths of Dragon's shared memory."""


class MessageReceiver(Protocol):
    """Receiver of an agent's messages."""

    def put(self, *message: Any) -> None:
        """Send a message."""


class DragonWorker:
    """Worker process of an agent.

    Attributes:
        pid: The id of the process and of its group.
        link: The connection.
        descriptor: A descriptor that becomes readable when the process ends.
        uid: The uid of the task that the worker runs; empty if it is idle.
        once: True if the worker ends after its call.
        canceled: True if its call has been canceled.
        killing: The timer that kills the worker; `None` unless its call has been canceled.
        values: The keys of the worker values that its calls have used.
        modules: The reference of the modules that were sent last.
    """

    def __init__(self, pid: int, link: Link) -> None:
        self.pid: int = pid
        self.link: Link = link
        self.descriptor: int = os.pidfd_open(pid)
        self.uid: str = ""
        self.once: bool = False
        self.canceled: bool = False
        self.killing: asyncio.TimerHandle | None = None
        self.values: frozenset[bytes] = frozenset()
        self.modules: bytes = b""


class DragonCall:
    """Call of a function that waits for a worker.

    Args:
        uid: The uid of the task.
        packed: The call for `Runner.run`.
        modules: The reference of the program's modules; empty if the program has none.
        keys: The keys of the worker values that the call uses.
        once: True if the call needs a new process, which ends with it.
    """

    __slots__ = ("keys", "modules", "once", "packed", "uid")

    def __init__(
        self, uid: str, packed: bytes, modules: bytes, keys: frozenset[bytes], once: bool
    ) -> None:
        self.uid: str = uid
        self.packed: bytes = packed
        self.modules: bytes = modules
        self.keys: frozenset[bytes] = keys
        self.once: bool = once


class DragonAgent:
    """Agent of one node. All methods are called on its loop.

    Args:
        outbox: The receiver of its messages.
        directory: The private directory for the sockets to which workers connect.
        start_worker: Function that starts a worker process, given the path of the agent's socket
            and the worker's number. It blocks, and is called by one thread at a time.

    Attributes:
        ending: Event that is set when the agent must end.
    """

    def __init__(
        self,
        outbox: MessageReceiver,
        directory: str,
        start_worker: Callable[[str, int], object],
    ) -> None:
        self.ending: asyncio.Event = asyncio.Event()
        self._outbox = outbox
        self._start_worker = start_worker
        self._path = os.path.join(directory, "agent")
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()  # held while Dragon starts a process
        self._numbers = itertools.count()
        self._expected: dict[int, asyncio.Future[None]] = {}  # workers that are being started
        self._sys_path: list[str] = []
        self._modules: dict[bytes, bytes] = {}  # by reference, the latest last
        self._calls: deque[DragonCall] = deque()
        self._workers: dict[int, DragonWorker] = {}
        self._programs: dict[str, TaskProgram] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._reaper = Reaper()
        self._sampler: NodeSampler | None = None
        self._ended = asyncio.Event()  # a worker or an executable has ended

    async def open(self) -> None:
        """Listen for workers."""
        serve = asyncio.start_unix_server
        self._servers = [
            await serve(self._connected, self._path),
            await serve(self._living, f"{self._path}{LIFE}"),
        ]

    def receive(self, name: str, *parts: Any) -> None:
        """Handle a message from the program."""
        getattr(self, f"_on_{name}")(*parts)

    async def close(self) -> None:
        """End all workers and executables. Idle workers close their worker values."""
        self.ending.set()
        for worker in self._workers.values():
            if worker.uid:
                kill_group(worker.pid)
            else:
                worker.link.close()
        for program in self._programs.values():
            program.terminate(0.0)
        values = any(worker.values for worker in self._workers.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE if values else KILL_TIMEOUT):
                while self._workers or self._programs:
                    self._ended.clear()
                    await self._ended.wait()
        for worker in self._workers.values():
            kill_group(worker.pid)
        for server in self._servers:
            server.close()
        await in_thread(self._reaper.stop, or_here=True)

    # Messages from the program.

    def _on_path(self, path: list[str]) -> None:
        self._sys_path = path

    def _on_modules(self, packed: bytes, size: int) -> None:
        self._modules[packed[:size]] = packed
        if len(self._modules) > MAX_MODULES:
            del self._modules[next(iter(self._modules))]

    def _on_call(self, *call: Any) -> None:
        self._calls.append(DragonCall(*call))
        self._hand_out()

    def _on_cancel(self, uid: str, grace: float) -> None:
        program = self._programs.get(uid)
        if program is not None:
            program.terminate(grace)
        for call in self._calls:
            if call.uid == uid:
                self._calls.remove(call)
                self._report("canceled", uid)
                return
        for worker in self._workers.values():
            if worker.uid == uid and not worker.canceled:
                worker.canceled = True
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGTERM)
                worker.killing = self._loop.call_later(grace, kill_group, worker.pid)

    def _on_value(self, key: bytes) -> None:
        for worker in self._workers.values():
            if key in worker.values:
                worker.values -= {key}
                worker.link.put("close", key)

    def _on_watch(self) -> None:
        if self._sampler is None:
            self._sampler = NodeSampler(
                lambda sample: self._loop.call_soon_threadsafe(self._report, "load", tuple(sample))
            )
            self._sampler.start()

    def _on_close(self) -> None:
        self.ending.set()

    # Functions.

    def _hand_out(self) -> None:
        """Send calls to idle workers, and start workers for the others."""
        if self.ending.is_set():
            return
        waiting: deque[DragonCall] = deque()
        for call in self._calls:
            worker = None if call.once else self._idle_worker(call.keys)
            if worker is None:
                waiting.append(call)
            else:
                self._send(call, worker)
        self._calls = waiting
        for _ in range(len(self._calls) - len(self._expected)):
            number = next(self._numbers)
            self._expected[number] = self._loop.create_future()
            self._follow(self._start(number))

    def _idle_worker(self, keys: frozenset[bytes]) -> DragonWorker | None:
        """Return an idle worker, if possible one that has built some worker values."""
        idle = [worker for worker in self._workers.values() if not (worker.uid or worker.once)]
        return next((each for each in idle if keys <= each.values), idle[-1] if idle else None)

    def _send(self, call: DragonCall, worker: DragonWorker) -> None:
        worker.uid, worker.once = call.uid, call.once
        worker.values |= call.keys
        if call.modules and worker.modules != call.modules:
            worker.modules = call.modules
            worker.link.put("modules", self._modules[call.modules], len(call.modules))
        worker.link.put("call", call.uid, call.packed)
        self._report("running", call.uid, f"process {worker.pid}")

    async def _start(self, number: int) -> None:
        """Start a worker, and wait until it has connected."""
        try:
            async with self._lock:
                await in_thread(self._start_worker, self._path, number)
            async with asyncio.timeout(START_TIMEOUT):
                await self._expected[number]
        except Exception as error:  # of any part of Dragon
            if self._calls:
                reason = f"Dragon could not start a worker: {describe_error(error)}"
                self._report("lost", self._calls.popleft().uid, reason)
        del self._expected[number]
        self._hand_out()

    async def _living(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold a connection that ends with this process."""
        await reader.read()
        writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a worker."""
        link, worker = Link(reader, writer), None
        async for batch in link.batches():
            for name, *parts in batch:
                if name == "worker":
                    worker = DragonWorker(parts[0], link)
                    self._take_in(worker, parts[1])
                elif name == "building":
                    self._report("building", *parts)
                elif worker is not None and worker.uid == parts[0]:  # "result"
                    worker.uid = ""
                    self._report("result", *parts)
                    if worker.once:
                        link.close()
                    self._hand_out()

    def _take_in(self, worker: DragonWorker, number: int) -> None:
        if (expected := self._expected.get(number)) is not None and not expected.done():
            expected.set_result(None)
        self._workers[worker.pid] = worker
        self._loop.add_reader(worker.descriptor, self._worker_ended, worker)
        worker.link.put("path", self._sys_path)
        if self.ending.is_set():
            kill_group(worker.pid)
        elif self._calls:
            self._send(self._calls.popleft(), worker)

    def _worker_ended(self, worker: DragonWorker) -> None:
        """Report the end of a worker, and kill what it has left running."""
        self._loop.remove_reader(worker.descriptor)
        os.close(worker.descriptor)
        kill_group(worker.pid)
        if worker.killing is not None:
            worker.killing.cancel()
        del self._workers[worker.pid]
        uid, worker.uid = worker.uid, ""
        if uid and worker.canceled:
            self._report("canceled", uid)
        elif uid:
            self._report("lost", uid, f"its worker (process {worker.pid}) ended")
        self._ended.set()
        self._hand_out()

    # Executables.

    def _on_run(self, task: TaskDescription, environment: dict[str, str]) -> None:
        """Start an executable or a service, at once so that it can be canceled."""
        uid, begin = task["uid"], time.time()
        launch = partial(Program, reaper=self._reaper)
        try:
            if task["is_service"]:
                serving = partial(self._report, "serving", uid)
                program: TaskProgram = TaskService(task, environment, launch=launch, ready=serving)
            else:
                program = TaskProgram(task, environment, launch=launch)
        except Exception as error:  # such as a missing program
            self._report("ended", uid, {"error": _pickled(error)})
            return
        self._programs[uid] = program
        self._report("running", uid, f"process {program.pid}")
        self._follow(self._finish(task, program, begin))

    async def _finish(self, task: TaskDescription, program: TaskProgram, begin: float) -> None:
        outcome: dict[str, Any] = {}
        try:
            await program.wait(0.0)
        except Exception as error:  # such as a service that ended before it was ready
            outcome["error"] = _pickled(error)
        del self._programs[task["uid"]]
        self._ended.set()
        outcome["interval"] = begin, time.time()
        outcome |= {key: task[key] for key in OUTCOME_KEYS if key in task}  # type: ignore[literal-required]
        self._report("ended", task["uid"], outcome)

    def _report(self, *message: Any) -> None:
        """Send a message, unless the agent ends: tasks that it kills then are lost."""
        if not self.ending.is_set():
            self._outbox.put(*message)

    def _follow(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _pickled(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # raised by the class of the error
        return pickle.dumps(RuntimeError(describe_error(error)))


def kill_group(pid: int) -> None:
    """Kill a process group, if it still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class NodeOutbox:
    """Sends the messages of an agent, with the index of its node, to the program.

    Args:
        link: The connection to the program.
        index: The index of the node.
    """

    def __init__(self, link: Link, index: int) -> None:
        self._link = link
        self._index = index

    def put(self, *message: Any) -> None:
        """Send a message."""
        self._link.put(message[0], self._index, *message[1:])


class QueueOutbox:
    """Sends messages in batches through a queue of Dragon, on a thread.

    Args:
        target: The queue.
        index: The index of the node that sends; `None` for the head.
    """

    def __init__(self, target: Any, index: int | None = None) -> None:
        self._target = target
        self._index = () if index is None else (index,)
        self._waiting: SimpleQueue[Message] = SimpleQueue()
        start_thread(self._run, "rhapsody-dragon-send")

    def put(self, *message: Any) -> None:
        """Send a message."""
        self._waiting.put((message[0], *self._index, *message[1:]))

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            self._target.put(batch)


def receive_batches(source: Any, receive: Callable[..., object]) -> None:
    """Pass the messages from a queue of Dragon to a function on the running loop."""
    loop = asyncio.get_running_loop()

    def take(batch: list[Message]) -> None:
        for message in batch:
            receive(*message)

    def run() -> None:
        while True:
            batch = source.get()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take, batch)

    start_thread(run, "rhapsody-dragon-receive")


def start_managed(host: str, target: Any, *arguments: Any) -> None:
    """Start a process of Dragon on a node.

    Args:
        host: The name of the node.
        target: A function, or the name of a module that is run as a program.
        *arguments: The arguments.
    """
    from dragon.infrastructure.policy import Policy
    from dragon.infrastructure.process_desc import ProcessOptions
    from dragon.native.process import Process

    if isinstance(target, str):
        arguments = "-P", "-m", target, *map(str, arguments)
        target = sys.executable
    policy = Policy(placement=Policy.Placement.HOST_NAME, host_name=host)
    Process(
        target=target,
        args=arguments,
        cwd=os.getcwd(),
        env=dict(os.environ),
        policy=policy,
        options=ProcessOptions(make_inf_channels=True),  # so that it can use Dragon's interface
    ).start()


def hosts() -> list[str]:
    """Return the names of the nodes, this one first."""
    from dragon.native.machine import Node, System, current

    here = current().hostname
    names = [Node(each).hostname for each in System().nodes]
    return [here, *(name for name in names if name != here)]


def describe_node() -> tuple[str, int, list[str], int]:
    """Return this node's host name, its number of cores, its GPUs and its memory in bytes."""
    from dragon.native.machine import current

    node = current()
    gpus = [str(each) for each in node.gpus or ()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return node.hostname, len(os.sched_getaffinity(0)), gpus, memory


def shared_memory(pid: int) -> set[str]:
    """Return the files of Dragon's shared memory that a process uses."""
    with suppress(OSError):  # it has ended
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {path for line in lines if (path := line.split()[-1]).startswith(SHARED_MEMORY)}
    return set()


def remove_shared_memory(paths: Iterable[str]) -> None:
    """Remove files of Dragon's shared memory, after all its processes have ended."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


CLEANER = """
import os, select, sys
launcher, *files = sys.argv[1:]
select.select([int(launcher)], [], [])
for file in files:
    try:
        os.unlink(file)
    except FileNotFoundError:
        pass
"""
"""Program that removes files when a process, given by its descriptor, has ended."""


class DragonLauncher:
    """Observer of the process of Dragon that has started this one.

    Args:
        ended: Called on the loop when that process has ended.
    """

    def __init__(self, ended: Callable[[], object]) -> None:
        self._over = False
        self._ended = ended
        self._files = shared_memory(os.getpid()) | shared_memory(os.getppid())
        self._descriptor = os.pidfd_open(os.getppid())
        asyncio.get_running_loop().add_reader(self._descriptor, self._notice)

    def _notice(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._over = True
        self._ended()

    def clean(self) -> None:
        """Remove the shared memory if the launcher was killed, which removes it otherwise.

        The launcher ends after this process, and may be killed in between. Therefore a process that
        outlives both removes what is left then.
        """
        if self._over:
            remove_shared_memory(self._files)
        else:
            subprocess.Popen(
                [sys.executable, "-ISc", CLEANER, str(self._descriptor), *self._files],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._descriptor,),
                start_new_session=True,
            )


async def serve_head(path: str) -> None:
    """Run the agent of the head node, and start those of the other nodes.

    Args:
        path: The path of the program's socket.
    """
    link = Link(*await asyncio.open_unix_connection(path))
    names = hosts()
    directory = os.path.dirname(path)
    start_worker = partial(start_managed, names[0], WORKER)
    agent = DragonAgent(NodeOutbox(link, 0), directory, start_worker)
    launcher = DragonLauncher(agent.ending.set)
    await agent.open()
    link.put("nodes", len(names))
    link.put("ready", 0, *describe_node())
    receivers: list[Callable[..., object]] = [agent.receive]
    if len(names) > 1:
        from dragon.native.queue import Queue

        outbox = Queue()
        receive_batches(outbox, link.put)
        for index, name in enumerate(names[1:], 1):
            inbox = Queue()
            await in_thread(start_managed, name, run_remote, index, inbox, outbox)
            receivers.append(QueueOutbox(inbox).put)

    async def read() -> None:
        async for batch in link.batches():
            for index, *message in batch:
                receivers[index](*message)
        agent.ending.set()  # the program has ended, perhaps because it was killed

    reading = asyncio.create_task(read())
    await agent.ending.wait()
    for receive in receivers[1:]:
        receive("close")
    await agent.close()
    if reading.done():  # otherwise, the program removes it
        await in_thread(partial(shutil.rmtree, directory, ignore_errors=True), or_here=True)
    reading.cancel()
    link.close()
    launcher.clean()


async def serve_remote(index: int, inbox: Any, outbox: Any) -> None:
    """Run the agent of a node other than the head.

    Args:
        index: The index of the node.
        inbox: The queue of messages to this agent.
        outbox: The queue of messages to the program.
    """
    sender = QueueOutbox(outbox, index)
    description = describe_node()
    directory = tempfile.mkdtemp(prefix="rhapsody-dragon-")
    agent = DragonAgent(sender, directory, partial(start_managed, description[0], WORKER))
    launcher = DragonLauncher(agent.ending.set)
    await agent.open()
    receive_batches(inbox, agent.receive)
    sender.put("ready", *description)
    await agent.ending.wait()
    await agent.close()
    await in_thread(partial(shutil.rmtree, directory, ignore_errors=True), or_here=True)
    launcher.clean()


def run_remote(index: int, inbox: Any, outbox: Any) -> None:
    """Run `serve_remote`: the main function of a process of Dragon."""
    asyncio.run(serve_remote(index, inbox, outbox))


if __name__ == "__main__":
    asyncio.run(serve_head(sys.argv[1]))
