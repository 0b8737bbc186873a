"""Dragon backend: assigns tasks to the nodes of a Dragon runtime, which its agents run.

The backend runs in the program's process, which imports nothing of Dragon unless it was itself
started by Dragon. It counts the cores, GPUs and memory of each node, and sends a task to the agent
of a node when they are free. Calls are pickled, and results unpickled, on a separate thread, the
packer, because this runs code of the objects' classes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from rhapsody import CapabilityError, Resources, TaskDescription, TaskLostError, TasksMainStates
from rhapsody.backends import Capabilities, ManagedBackend, SharedSandboxes
from rhapsody.plugins import NodeSample
from rhapsody.sdk import (
    REFERENCE,
    Mailbox,
    Readiness,
    call_ready,
    call_spec,
    describe_error,
    finish,
    make_sandbox,
    own_modules,
    pack,
    parse_ready,
    seconds,
    start_thread,
    task_environment,
    too_early,
    unpack,
)
from rhapsody_dragon.plugin import CAPABILITIES
from rhapsody_dragon.runtime import DragonRuntime, NodeDescription
from rhapsody_dragon.templates import (
    ONE_PROCESS,
    ProcessesOfTask,
    processes_of,
    several_processes,
)

log: logging.Logger = logging.getLogger("rhapsody.dragon")

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

STOP_TIMEOUT = 2.0
"""Number of seconds, in addition to the grace period, that canceled tasks have to end."""

IN_PROGRAM = frozenset(
    ("function", "args", "kwargs", "worker_values", "keep_arguments", "context", "metadata")
)
"""Keys of a description that the agent does not receive."""


@dataclass(slots=True)
class DragonRequest:
    """Resources that a task occupies on one node.

    Attributes:
        cores: Number of cores.
        gpus: Number of GPUs.
        memory: Bytes of main memory.
        workers: 1 for a function, otherwise 0.
        endless: True for a service.
    """

    cores: float
    gpus: int
    memory: int
    workers: int
    endless: bool


class DragonNode:
    """Free resources of one node.

    Args:
        description: The node.

    Attributes:
        host: The host name.
        modules: The reference of the program's modules that its agent received last.
    """

    def __init__(self, description: NodeDescription) -> None:
        self.host: str = description.host
        self.modules: bytes = b""
        self._all = description
        self._cores: float = description.cores
        self._gpus = list(description.gpus)
        self._memory = description.memory
        self._workers = description.cores
        self._services: list[DragonRequest] = []

    @property
    def cores_in_use(self) -> float:
        """The number of cores that tasks occupy."""
        return round(self._all.cores - self._cores, 3)

    @property
    def cores(self) -> int:
        """The number of cores."""
        return self._all.cores

    @property
    def free_cores(self) -> float:
        """The number of free cores."""
        return self._cores

    def missing(self, request: DragonRequest) -> str | None:
        """Return why the node can never run a task, or `None` if it can."""
        for name, needs, has in (
            ("cores", request.cores, self._all.cores),
            ("gpus", request.gpus, len(self._all.gpus)),
            ("bytes of memory", request.memory, self._all.memory),
        ):
            if needs > has:
                return f"it requests {needs} {name} (available: {has})"
        return None

    def fits(self, request: DragonRequest) -> bool:
        """Return True if the free resources suffice."""
        return (
            request.workers <= self._workers
            and request.cores <= self._cores
            and request.gpus <= len(self._gpus)
            and request.memory <= self._memory
        )

    def can_fit(self, request: DragonRequest) -> bool:
        """Return True if the resources suffice once all tasks except services have ended."""
        held = self._services
        return (
            request.cores <= round(self._all.cores - sum(each.cores for each in held), 3)
            and request.gpus <= len(self._all.gpus) - sum(each.gpus for each in held)
            and request.memory <= self._all.memory - sum(each.memory for each in held)
        )

    def take(self, request: DragonRequest) -> list[str]:
        """Occupy resources, and return the assigned GPUs."""
        self._change(request, -1)
        if request.endless:
            self._services.append(request)
        gpus, self._gpus = self._gpus[: request.gpus], self._gpus[request.gpus :]
        return gpus

    def release(self, request: DragonRequest, gpus: Sequence[str]) -> None:
        """Release resources."""
        self._change(request, 1)
        if request.endless:
            self._services.remove(request)
        self._gpus = sorted([*self._gpus, *gpus], key=self._all.gpus.index)

    def _change(self, request: DragonRequest, sign: int) -> None:
        self._cores = round(self._cores + sign * request.cores, 3)
        self._memory += sign * request.memory
        self._workers += sign * request.workers


@dataclass(slots=True, eq=False)
class DragonAttempt:
    """Attempt that waits or runs.

    Attributes:
        task: The description.
        request: The resources that it needs.
        node: The index of the node on which it runs; `None` while it waits.
        gpus: The assigned GPUs.
        message: The message that starts it, once packed.
        modules: The program's modules for its call.
        sent: True if the message was sent.
        canceled: True if it has been canceled.
        over: True if its end has been reported.
        readiness: The readiness of a service.
        watch: The asyncio task that waits for a service's `ready` callable.
        error: The error of that callable.
        processes: The processes of the task.
    """

    task: TaskDescription
    request: DragonRequest
    node: int | None = None
    gpus: list[str] = field(default_factory=list)
    message: tuple[Any, ...] | None = None
    modules: bytes | None = None
    sent: bool = False
    canceled: bool = False
    over: bool = False
    readiness: Readiness | None = None
    watch: asyncio.Task[None] | None = None
    error: Exception | None = None
    processes: ProcessesOfTask = ONE_PROCESS


class DragonExecutionBackend(SharedSandboxes, ManagedBackend):
    """Backend that runs tasks on the nodes of an allocation through Dragon.

    Dragon runs on the nodes of the batch job in which the program runs, or on this machine. The
    program needs no special launcher: the backend starts Dragon. In a program that was started with
    `dragon program.py`, the backend uses that runtime.

    Functions run in processes of Dragon, so they can use its queues and dictionaries. Executables
    are child processes of an agent on the node. Tasks start in the order of their priorities and
    submission: a task that does not fit yet delays those behind it, unless it waits for a
    service to end.

    If Dragon ends unexpectedly, its tasks are lost, and the next tasks start another runtime.

    Args:
        cores: Number of cores of each node for tasks. Default: the cores that Dragon may use.
        gpus: Number of GPUs of each node, or a list of devices as in `CUDA_VISIBLE_DEVICES`.
            Default: the GPUs that Dragon finds.
        grace: Number of seconds between SIGTERM and SIGKILL when a task is stopped.
        start_timeout: Number of seconds within which Dragon must be running on all nodes.
        batch_kwargs: Options of Dragon's `Batch`, which this backend does not use. Accepted for
            programs of rhapsody-py; they have no effect.
        name: The backend's name in an engine. Default: `"dragon"`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is too small or malformed.
    """

    name = "dragon"
    capabilities: Capabilities = CAPABILITIES

    def __init__(
        self,
        *,
        cores: int | None = None,
        gpus: int | Sequence[Any] | None = None,
        grace: float | str = 5.0,
        start_timeout: float | str = 120.0,
        batch_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if cores is not None and type(cores) is not int:
            raise TypeError(f"cores must be a whole number, got {cores!r}")
        if cores is not None and cores < 1:
            raise ValueError(f"cores must be at least 1, got {cores}")
        self._cores = cores
        self._gpus = _devices(gpus)
        self._grace = seconds("grace", grace, zero=True)
        self._start_timeout = seconds("start_timeout", start_timeout)
        if batch_kwargs:
            log.warning("%s: batch_kwargs have no effect: %r", self.name, dict(batch_kwargs))
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, DragonAttempt]] = []
        self._passed: list[tuple[float, int, DragonAttempt]] = []  # they wait for a service to end
        self._attempts: dict[str, DragonAttempt] = {}
        self._runtime: DragonRuntime | None = None
        self._report_load: Callable[[NodeSample], object] | None = None
        self._nodes: list[DragonNode] = []
        self._restart: asyncio.Task[None] | None = None
        self._opening = False
        self._stopping = False
        self._to_packer: SimpleQueue[Callable[[], Callable[[], object]] | None] = SimpleQueue()

    async def start(self) -> None:
        """Start Dragon, unless the program runs in it, and an agent on each node.

        Raises:
            BackendUnavailableError: Dragon could not be started.
        """
        self._directory = os.getcwd()
        self._all_ended = asyncio.Event()
        self._mailbox: Mailbox[Callable[[], object]] = Mailbox(
            asyncio.get_running_loop(), lambda call: call()
        )
        start_thread(self._pack_all, "rhapsody-dragon-packer")
        await self._open()

    async def stop(self) -> None:
        """Cancel all tasks, wait until they have ended, and end Dragon."""
        self._stopping = True
        if self._restart is not None:
            if self._opening:  # otherwise it removes what a lost runtime has left
                self._restart.cancel()
            await asyncio.wait([self._restart])
        for uid in list(self._attempts):
            await self.cancel_task(uid)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace + STOP_TIMEOUT):
                while self._attempts:
                    self._all_ended.clear()
                    await self._all_ended.wait()
        if self._runtime is not None:
            await self._runtime.close()
        for attempt in list(self._attempts.values()):
            self._end(attempt, CANCELED)
        self._to_packer.put(None)

    def cores_in_use(self) -> tuple[float, int]:
        """Return the number of cores in use and the total number of cores."""
        used = sum(node.cores_in_use for node in self._nodes)
        return used, round(used + sum(node.free_cores for node in self._nodes))

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Start the tasks that fit, and queue the others."""
        for task in self.admit(tasks):
            self.accept(task)
            attempt = self._attempts[task["uid"]] = DragonAttempt(task, _request(task))
            try:
                self._check(attempt)
                self._set_processes(attempt)
            except Exception as error:  # fails only this task
                self._fail(attempt, error)
                continue
            place = -task.get("priority", 0), next(self._numbers), attempt
            heapq.heappush(self._waiting, place)
        if self._runtime is None and self._restart is None:
            self._restart = asyncio.create_task(self._open_again())
        self._pump()

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a task; return False if it is unknown or has ended."""
        attempt = self._attempts.get(uid)
        if attempt is None:
            return False
        attempt.canceled = True
        if attempt.node is None:
            self._end(attempt, CANCELED)
        elif attempt.sent and self._runtime is not None:
            self._runtime.put(attempt.node, "cancel", uid, self._grace)
        return True

    async def close_worker_value(self, key: bytes) -> None:
        """Close a worker value in the workers that have built it."""
        for index in range(len(self._nodes)):
            if self._runtime is not None:
                self._runtime.put(index, "value", key)

    def watch_nodes(self, report: Callable[[NodeSample], object] | None) -> None:
        """Report the load of the nodes of the runtime; see the base class."""
        self._report_load = report
        if report is not None and self._runtime is not None:
            for index in range(len(self._nodes)):
                self._runtime.put(index, "watch")

    # The runtime.

    async def _open(self) -> None:
        runtime = DragonRuntime(self._receive, self._lost)
        nodes = await runtime.open(self._start_timeout)
        if self._cores is not None:
            nodes = [node._replace(cores=self._cores) for node in nodes]
        if self._gpus is not None:
            nodes = [node._replace(gpus=self._gpus) for node in nodes]
        self._nodes = list(map(DragonNode, nodes))
        self._runtime = runtime
        for index in range(len(nodes)):
            runtime.put(index, "path", [os.getcwd() if each == "" else each for each in sys.path])
        self.watch_nodes(self._report_load)

    async def _open_again(self) -> None:
        """Start another runtime after the first one has ended unexpectedly."""
        self._opening = True
        try:
            await self._open()
        except Exception as error:
            for attempt in list(self._attempts.values()):
                self._fail(attempt, _lost_error(attempt, describe_error(error)))
        finally:
            self._restart, self._opening = None, False
        self._pump()

    def _lost(self, runtime: DragonRuntime, reason: str) -> None:
        """Handle the unexpected end of the runtime."""
        if runtime is not self._runtime or self._stopping:
            return
        log.warning("%s", reason)
        self._runtime, self._nodes = None, []
        for attempt in list(self._attempts.values()):
            if attempt.node is not None:
                attempt.node = None
                if attempt.canceled:
                    self._end(attempt, CANCELED)
                else:
                    self._fail(attempt, _lost_error(attempt, reason))
        self._restart = asyncio.create_task(self._close_lost(runtime))

    async def _close_lost(self, runtime: DragonRuntime) -> None:
        await runtime.close()
        self._restart = None
        if not self._stopping and (self._waiting or self._passed):
            self._restart = asyncio.create_task(self._open_again())

    # Tasks to the agents.

    def _set_processes(self, attempt: DragonAttempt) -> None:
        """Set the processes of a task. Several processes share the cores of a node if necessary."""
        attempt.processes = processes_of(attempt.task)
        request, most = attempt.request, max((node.cores for node in self._nodes), default=1)
        if attempt.processes.number is not None:
            request.cores = min(request.cores * attempt.processes.number, most)

    def _check(self, attempt: DragonAttempt) -> None:
        """Check that a task can run.

        Raises:
            CapabilityError: It does not fit on any node, or is a function as a service.
            ValueError: Its `ready` is malformed.
        """
        task = attempt.task
        if task["is_service"] and task["function"] is not None:
            raise CapabilityError(f"task {task['name']!r}: functions cannot be services on Dragon")
        if task["is_service"] and "ready" in task:
            parse_ready(task["ready"])
            attempt.readiness = Readiness()
        if (error := self._misfit(attempt)) is not None:
            raise error

    def _misfit(self, attempt: DragonAttempt) -> CapabilityError | None:
        """Return an error if a task does not fit on any node; `None` while no nodes are known."""
        problems = [node.missing(attempt.request) for node in self._nodes]
        if not problems or None in problems:
            return None
        return CapabilityError(
            f"task {attempt.task['name']!r} does not fit on a node: {problems[0]}; request less, "
            f"or declare the resources with {type(self).__name__}(cores=..., gpus=...)"
        )

    def _pump(self) -> None:
        """Start the waiting tasks that fit."""
        while self._waiting and self._runtime is not None and not self._stopping:
            attempt = self._waiting[0][2]
            if attempt.over:
                heapq.heappop(self._waiting)
                continue
            fitting = [each for each in self._nodes if each.fits(attempt.request)]
            if fitting:
                heapq.heappop(self._waiting)
                node = max(fitting, key=lambda each: each.free_cores)
                attempt.node = self._nodes.index(node)
                attempt.gpus = node.take(attempt.request)
                self._to_packer.put(partial(self._pack, attempt))
            elif not any(node.can_fit(attempt.request) for node in self._nodes):
                place = heapq.heappop(self._waiting)
                if (error := self._misfit(attempt)) is None:
                    self._passed.append(place)
                else:  # it was submitted while no runtime was there
                    self._fail(attempt, error)
            else:
                return

    def _pack_all(self) -> None:
        """Pack calls and unpack results: the packer's thread."""
        while (work := self._to_packer.get()) is not None:
            self._mailbox.put(work())
            del work  # release the values before waiting

    def _pack(self, attempt: DragonAttempt) -> Callable[[], object]:
        """Pack an attempt, and return what remains to be done on the loop."""
        task = attempt.task
        try:
            capture, function = task.get("capture", True), task["function"]
            if function is None or task.get("sandbox") or capture == "files":
                task["sandbox"] = make_sandbox(self.sandbox_of(task))
            cores = attempt.request.cores
            gpus = attempt.gpus if self._gpus is not None or attempt.gpus else None
            environment = task_environment(task, cores=cores, gpus=gpus)
            count, more, cwd = attempt.processes
            environment = {**more, **environment}
            if count is not None or cwd is not None:
                task = task.copy()
                if cwd is not None:
                    task["cwd"] = cwd
                if count is not None:
                    several_processes(task, count)
                function = task["function"]
            if function is None:
                plain: Any = {key: task[key] for key in task if key not in IN_PROGRAM}  # type: ignore[literal-required]
                if callable(plain.get("ready")):
                    del plain["ready"]
                plain["function"] = None
                attempt.message = "run", plain, environment
            else:
                attempt.modules = own_modules()
                reference = None if attempt.modules is None else attempt.modules[:REFERENCE]
                order = call_spec(
                    task, cores=cores, environment=environment, modules=reference,
                    directory=task.get("sandbox") or self.own_sandbox(task["uid"]),
                )  # fmt: skip
                values = task.get("worker_values")
                packed = pack(task, order, worker="a worker of Dragon")
                keys = frozenset[bytes]() if values is None else values.keys
                once = bool(attempt.gpus)
                attempt.message = "call", task["uid"], packed, reference or b"", keys, once
        except BaseException as error:  # pickling runs the objects' own code
            return partial(self._fail, attempt, error)
        return partial(self._send, attempt)

    def _send(self, attempt: DragonAttempt) -> None:
        """Send a packed attempt to the agent of its node."""
        if attempt.over:
            return
        if attempt.canceled:
            self._end(attempt, CANCELED)
            return
        runtime, index, message = self._runtime, attempt.node, attempt.message
        if runtime is None or index is None or message is None:
            return
        node, modules = self._nodes[index], attempt.modules
        if modules is not None and node.modules != modules[:REFERENCE]:
            node.modules = modules[:REFERENCE]
            runtime.put(index, "modules", modules, REFERENCE)
        attempt.sent, attempt.message, attempt.modules = True, None, None
        runtime.put(index, *message)

    # Messages from the agents.

    def _receive(self, name: str, node: int, uid: Any, *parts: Any) -> None:
        if name == "load":
            if self._report_load is not None:
                self._report_load(NodeSample(*uid))
            return
        attempt = self._attempts.get(uid)
        if attempt is not None and attempt.node == node:
            getattr(self, f"_on_{name}")(attempt, *parts)

    def _on_running(self, attempt: DragonAttempt, worker: str) -> None:
        task, readiness = attempt.task, attempt.readiness
        task["worker"] = f"{worker} on {self._nodes[attempt.node or 0].host}"
        self.task_state_cb(task, RUNNING, None if readiness is None else readiness.attach)
        if readiness is not None and callable(task["ready"]):
            attempt.watch = asyncio.create_task(self._call_ready(attempt, readiness))

    async def _call_ready(self, attempt: DragonAttempt, readiness: Readiness) -> None:
        try:
            readiness.set(await call_ready(attempt.task["ready"], attempt.task))  # type: ignore[arg-type]
        except Exception as error:  # raised by the user's callable
            attempt.error = error
            if self._runtime is not None and attempt.node is not None:
                uid = attempt.task["uid"]
                self._runtime.put(attempt.node, "cancel", uid, self._grace)

    def _on_building(self, attempt: DragonAttempt, begins: bool) -> None:
        if (values := attempt.task.get("worker_values")) is not None:
            values.building(begins)

    def _on_serving(self, attempt: DragonAttempt, value: Any) -> None:
        if isinstance(value, tuple) and len(self._nodes) > 1:  # the address of a port
            value = self._nodes[attempt.node or 0].host, value[1]
        if attempt.readiness is not None:
            attempt.readiness.set(value)

    def _on_result(self, attempt: DragonAttempt, packed: bytes) -> None:
        self._to_packer.put(partial(self._unpack, attempt, packed))

    def _unpack(self, attempt: DragonAttempt, packed: bytes) -> Callable[[], object]:
        task = attempt.task
        worker = task.get("worker")
        try:
            error = finish(task, unpack(packed))
        except BaseException as raised:  # unpickling runs the objects' own code
            return partial(self._fail, attempt, raised)
        if worker is not None:
            task["worker"] = worker
        if self._directory != _current_directory():
            task["directory"] = self._directory
        return partial(self._end, attempt, DONE if error is None else FAILED)

    def _on_ended(self, attempt: DragonAttempt, outcome: dict[str, Any]) -> None:
        task, readiness = attempt.task, attempt.readiness
        error: Any = attempt.error
        if "error" in outcome and error is None:
            error = pickle.loads(outcome.pop("error"))  # noqa: S301 - from our own agent
        outcome.pop("error", None)
        task.update(outcome)  # type: ignore[typeddict-item]
        if attempt.canceled:
            self._end(attempt, CANCELED)
        elif error is not None:
            self._fail(attempt, error)
        elif readiness is not None and not readiness.known:
            self._fail(attempt, too_early(task, task.get("exit_code")))
        else:
            self._end(attempt, FAILED if task.get("exit_code") else DONE)

    def _on_canceled(self, attempt: DragonAttempt) -> None:
        self._end(attempt, CANCELED)

    def _on_lost(self, attempt: DragonAttempt, reason: str) -> None:
        self._fail(attempt, _lost_error(attempt, reason))

    def _fail(self, attempt: DragonAttempt, error: BaseException) -> None:
        attempt.task["exception"] = error
        self._end(attempt, FAILED)

    def _end(self, attempt: DragonAttempt, state: Any) -> None:
        """Report the end of an attempt, and release what it occupied."""
        if attempt.over:
            return
        attempt.over = True
        del self._attempts[attempt.task["uid"]]
        if attempt.watch is not None:
            attempt.watch.cancel()
        if attempt.node is not None and self._nodes:
            self._nodes[attempt.node].release(attempt.request, attempt.gpus)
        self.task_state_cb(attempt.task, state)
        self._all_ended.set()
        if attempt.request.endless and self._passed:
            for place in self._passed:
                heapq.heappush(self._waiting, place)
            self._passed = []
        self._pump()


def _request(task: TaskDescription) -> DragonRequest:
    """Return the resources that a task occupies. A service that requests none waits mostly."""
    service, resources = task["is_service"], task.get("resources")
    given = Resources(cores=0 if service else 1) if resources is None else resources
    memory = given.memory if isinstance(given.memory, int) else 0
    return DragonRequest(
        given.cores, given.gpus, memory, int(task["function"] is not None), service
    )


def _lost_error(attempt: DragonAttempt, reason: str) -> TaskLostError:
    return TaskLostError(f"task {attempt.task['name']!r} was lost: {reason}")


def _devices(gpus: Any) -> list[str] | None:
    """Return the GPUs of each node, given their number or a list of devices."""
    if gpus is None:
        return None
    if isinstance(gpus, list | tuple):
        return [str(each) for each in gpus]
    if type(gpus) is not int:
        raise TypeError(f"gpus must be a whole number or a list of devices, got {gpus!r}")
    if gpus < 0:
        raise ValueError(f"gpus must be at least 0, got {gpus}")
    return [str(number) for number in range(gpus)]


def _current_directory() -> str:
    with suppress(FileNotFoundError):
        return os.getcwd()
    return ""
