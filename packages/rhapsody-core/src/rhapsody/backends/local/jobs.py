"""Jobs of the local backend, the queue in which they wait, and the resources that they use.

A job is one task in the local backend, from its submission to its end. The module `backend` decides
when a job starts, runs executables and reports states; `threads` and `processes` run functions.

`HostResources` contains the resources that the user declares or, by default, those that this
process may use according to processor affinity, control groups and visible GPUs. `Slots` assigns
them to jobs, first come, first served: a task that does not fit yet delays those behind it, so
that small tasks do not starve a big one. There are two exceptions. Tasks that cannot start until a
service ends let others pass, because the service may never end. Function tasks that wait for a
worker let executables pass, because executables need no worker.

A worker thread that has finished a task does not wait until the loop has released the task's slots:
if the next task in the queue needs exactly the same slots, the thread starts it immediately.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.context import TaskContext
from rhapsody.errors import CapabilityError
from rhapsody.plugins.options import BackendOption
from rhapsody.resources import builtin_number, memory_in_bytes, seconds
from rhapsody.sdk import calls
from rhapsody.sdk.capture import Recorder
from rhapsody.sdk.executables import memory_group, task_environment
from rhapsody.sdk.runner import loads
from rhapsody.spelling import suggestion
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.local.shared_memory import Block
    from rhapsody.backends.local.worker import PickledCall
    from rhapsody.sdk.runner import CallResult

DEVICES = Path("/dev")

RESOURCES = (
    BackendOption(
        "cores",
        int,
        help="Number of cores for tasks. Default: the cores that this process may use.",
    ),
    BackendOption(
        "gpus",
        int | list,
        help="Number of GPUs, or a list of devices as in CUDA_VISIBLE_DEVICES. Default: the "
        "visible GPUs.",
    ),
    BackendOption(
        "memory",
        int | str,
        help='Main memory for tasks, in bytes or as text such as "8 GiB"; it is only counted. '
        "Default: the memory of the host or of the control group.",
    ),
    BackendOption(
        "workers",
        int,
        help="Maximum number of function tasks at the same time. Default: the number of cores.",
    ),
    BackendOption(
        "walltime",
        float | str,
        help="Time for which the backend runs tasks, in seconds or as text. Default: the time "
        "left in the batch job of this process, if any.",
    ),
)
"""The keys of the argument `resources`."""

KEYS = tuple(option.name for option in RESOURCES)


@dataclass(frozen=True, slots=True)
class HostResources:
    """Resources of this host that tasks can use at the same time.

    Attributes:
        cores: Number of processor cores.
        gpus: The GPUs, as in `CUDA_VISIBLE_DEVICES`.
        memory: Bytes of main memory; `None` if the size is unknown, so that memory is not counted.
        workers: Maximum number of function tasks that run at the same time.
        walltime: Number of seconds for which the backend runs tasks; `None` if not declared.
    """

    cores: int
    gpus: tuple[str, ...]
    memory: int | None
    workers: int
    walltime: float | None = None


def host_resources(
    resources: Mapping[str, Any] | None, *, workers: int | None = None
) -> HostResources:
    """Return the host's resources: the declared values, and detected values for the others.

    Args:
        resources: The values that the user declares for `cores`, `gpus` (a number, or a list of
            devices), `memory`, `workers` and `walltime` (seconds).
        workers: The default for the key `workers`; `None` for the number of cores.

    Raises:
        TypeError: `resources` is not a mapping, or contains an unknown key or a value of the wrong
            type.
        ValueError: A value is too small or malformed.
    """
    if resources is None:
        resources = {}
    if not isinstance(resources, Mapping):
        raise TypeError(
            f"resources must be a dict such as {{'cores': 4}}, got {resources!r}; "
            f"accepted keys: {', '.join(KEYS)}"
        )
    for key in resources:
        if key not in KEYS:
            raise TypeError(
                f"resources: unknown key {key!r} for the local backend; accepted keys: "
                f"{', '.join(KEYS)}{suggestion(key, KEYS)}"
            )
    given = {key: value for key, value in resources.items() if value is not None}
    if "workers" in given:
        workers = _number("workers", given["workers"], least=1)
    # If only `workers` is declared, there are at least that many cores.
    cores = given.get("cores", max(available_cores(), workers or 1))
    cores = _number("cores", cores, least=1)
    memory = given.get("memory")
    return HostResources(
        cores=cores,
        gpus=_gpus(given.get("gpus")),
        memory=available_memory() if memory is None else memory_in_bytes(memory),
        workers=workers or cores,
        walltime=seconds("walltime", given["walltime"]) if "walltime" in given else None,
    )


def available_cores() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Return the host's main memory or the control group's limit, whichever is smaller, in bytes.

    Returns:
        The number of bytes, or `None` if neither is known.
    """
    limits = list(memory_group().limits().values())
    with suppress(ValueError, OSError):  # not available on this system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit > 0), default=None)


_DEVICE = re.compile(r"\d+$|GPU-|MIG-")
"""Pattern of the valid entries of `CUDA_VISIBLE_DEVICES`: numbers and UUIDs."""


def available_gpus() -> tuple[str, ...]:
    """Return the GPUs in `CUDA_VISIBLE_DEVICES`; if that is not set, all NVIDIA devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        # Like CUDA, ignore all entries from the first invalid one on, such as -1 or NoDevFiles.
        return tuple(itertools.takewhile(_DEVICE.match, devices))
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in DEVICES.glob("nvidia*"))
    return tuple(str(number) for number in sorted(int(match[1]) for match in numbers if match))


def _gpus(value: Any) -> tuple[str, ...]:
    if value is None:
        return available_gpus()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(str(device) for device in value)
    number = _number("gpus", value, least=0)
    visible = available_gpus()
    return visible[:number] if number <= len(visible) else tuple(map(str, range(number)))


def _number(key: str, value: Any, *, least: int) -> int:
    value = builtin_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"resources: {key} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"resources: {key} must be at least {least}, got {value}")
    return value


@dataclass(frozen=True, slots=True)
class Request:
    """Resources that one task requests.

    Attributes:
        cores: Number of processor cores.
        gpus: Number of GPUs.
        memory: Bytes of main memory.
        workers: 1 for a function task that occupies a worker, otherwise 0.
        endless: True for a service, which may never release its resources.
    """

    cores: float = 1
    gpus: int = 0
    memory: int = 0
    workers: int = 0
    endless: bool = False


ONE_FUNCTION = Request(cores=1, workers=1)


class Slots:
    """Allocator of the host's resources: assigns free resources to jobs, and releases them.

    Args:
        machine: All resources of the host.
    """

    def __init__(self, machine: HostResources) -> None:
        self.machine = machine
        self._cores: float = machine.cores  # a multiple of 0.001
        self._gpus = list(machine.gpus)
        self._memory = machine.memory
        self._workers = machine.workers
        self._endless: list[Request] = []

    def missing(self, request: Request) -> str | None:
        """Return the reason why the host can never meet a request, or `None` if it can."""
        machine = self.machine
        if request.cores > machine.cores:
            return f"it requests {request.cores} cores (available: {machine.cores})"
        if request.gpus > len(machine.gpus):
            return f"it requests {request.gpus} gpus (available: {len(machine.gpus)})"
        if machine.memory is not None and request.memory > machine.memory:
            return f"it requests {request.memory} bytes of memory (available: {machine.memory})"
        return None

    def take(self, job: LocalJob) -> bool:
        """Assign the requested resources to a job.

        Returns:
            `True` if the resources were assigned, `False` if they are not free.
        """
        request = job.request
        if request.workers > self._workers or not self.fits(
            request
        ):  # the first condition is faster, and usually decides
            return False
        self._cores = round(self._cores - request.cores, 3)
        self._workers -= request.workers
        if self._memory is not None:
            self._memory -= request.memory
        if request.endless:
            self._endless.append(request)
        if request.gpus:
            job.gpus = tuple(self._gpus[: request.gpus])
            self._gpus = self._gpus[request.gpus :]
        return True

    def release(self, job: LocalJob) -> None:
        """Release the resources that `take` has assigned to a job."""
        request = job.request
        self._cores = round(self._cores + request.cores, 3)
        self._workers += request.workers
        if self._memory is not None:
            self._memory += request.memory
        if request.endless:
            self._endless.remove(request)
        if job.gpus:
            order = self.machine.gpus
            self._gpus = sorted([*self._gpus, *job.gpus], key=order.index)

    @property
    def cores_in_use(self) -> float:
        """The number of cores that are assigned to jobs."""
        return round(self.machine.cores - self._cores, 3)

    def fits(self, request: Request, *, ignore_workers: bool = False) -> bool:
        """Return True if the free resources meet a request.

        With `ignore_workers`, the number of free workers is not considered.
        """
        return (
            (ignore_workers or request.workers <= self._workers)
            and request.cores <= self._cores
            and request.gpus <= len(self._gpus)
            and (self._memory is None or request.memory <= self._memory)
        )

    def waits_for_service(self, request: Request) -> bool:
        """Return True if the request cannot be met before a service ends."""
        if not self._endless:
            return False
        machine, held = self.machine, self._endless
        return (
            request.cores > round(machine.cores - sum(service.cores for service in held), 3)
            or request.gpus > len(machine.gpus) - sum(service.gpus for service in held)
            or (
                machine.memory is not None
                and request.memory > machine.memory - sum(service.memory for service in held)
            )
        )


class Queue:
    """Queue of jobs that wait for resources. Only `take_over` may be called from other threads.

    A job that cannot start before a service ends is passed: other jobs may start before it.

    Args:
        slots: The allocator of the resources.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._has_priorities = False
        self._functions: deque[LocalJob] = deque()
        self._programs: deque[LocalJob] = deque()
        self._passed: list[LocalJob] = []  # jobs that wait for a service to end; others pass them

    def __bool__(self) -> bool:
        return bool(self._functions or self._programs or self._passed)

    @property
    def functions(self) -> int:
        """The number of functions in the queue, apart from those that wait for a service."""
        return len(self._functions)

    def push(self, item: LocalJob) -> None:
        """Add a job at the end, or before the jobs with a lower priority."""
        item.place = 0, next(self._numbers)
        item.waits = True
        line = self._functions if item.request.workers else self._programs
        if "priority" in item.task:
            item.place = -item.task["priority"], item.place[1]
            self._has_priorities = True
        if not self._has_priorities:  # the usual case
            line.append(item)
            return
        with self._lock:
            bisect.insort(line, item, key=_place)

    def withdraw(self, item: LocalJob) -> bool:
        """Remove a job. Return True if the job was in the queue, otherwise False."""
        with self._lock:
            waits, item.waits = item.waits, False
            return waits

    def take_over(self, request: Request) -> LocalJob | None:
        """Remove and return the next job if it can use the slots of an ended job. Thread-safe.

        A thread that has finished a function calls this method to start the next function without
        waiting for the loop.

        Args:
            request: The request of the job that has ended.

        Returns:
            The job, or `None` if the request of the next job is not the same object, or if no
            function is waiting. Also `None` if executables or passed jobs are waiting, because
            then only `pop` may select the next job.
        """
        functions = self._functions
        with self._lock:
            while functions and not self._programs and not self._passed:
                item = functions[0]
                if item.waits and item.request is not request:
                    return None
                functions.popleft()
                if item.waits:
                    item.waits = False
                    return item
        return None

    def pop(self) -> LocalJob | None:
        """Assign resources to the next job and return the job, or `None` if no job can start."""
        with self._lock:
            item = self._pop()
            if item is not None:
                item.waits = False
            return item

    def _pop(self) -> LocalJob | None:
        if self._passed:
            item, reserved = self._pop_passed()
            if item is not None or reserved:
                return item
        lines = [self._functions, self._programs]
        while True:
            line = self._first(lines)
            if line is None:
                return None
            item = line[0]
            if not item.waits:
                line.popleft()
            elif self._slots.take(item):
                return line.popleft()
            elif self._slots.waits_for_service(item.request):
                self._passed.append(line.popleft())
            elif item.request.workers and self._slots.fits(item.request, ignore_workers=True):
                lines = [self._programs]
            else:
                return None

    def first(self) -> LocalJob | None:
        """Return the next function task without removing it.

        Returns:
            The job, or `None` if no function is waiting. Also `None` if executables or passed jobs
            are waiting, because then only `pop` may select the next job.
        """
        functions = self._functions
        while functions and not functions[0].waits:
            functions.popleft()
        return functions[0] if functions and not self._programs and not self._passed else None

    def put_back(self, items: Iterable[LocalJob]) -> None:
        """Return jobs that `take_over` has removed to their places in the queue."""
        place = 0
        with self._lock:
            for item in items:
                while place < len(self._functions) and self._functions[place].place < item.place:
                    place += 1
                item.waits = True
                self._functions.insert(place, item)

    def clear(self) -> list[LocalJob]:
        """Remove and return all jobs, in their order."""
        with self._lock:
            items = [*self._passed, *self._functions, *self._programs]
            for line in (self._passed, self._functions, self._programs):
                line.clear()
        waiting = [item for item in items if self.withdraw(item)]
        return sorted(waiting, key=_place)

    def _pop_passed(self) -> tuple[LocalJob | None, bool]:
        """Assign resources to the first passed job that can start, and remove the job.

        Returns:
            The job (or `None` if no passed job can start), and a flag. If the flag is True, no
            other job may start, because a passed job no longer waits for a service and comes next.
        """
        self._passed = [item for item in self._passed if item.waits]
        for index, item in enumerate(self._passed):
            if self._slots.take(item):
                return self._passed.pop(index), False
            if not self._slots.waits_for_service(item.request):
                return None, True
        return None, False

    @staticmethod
    def _first(lines: list[deque[LocalJob]]) -> deque[LocalJob] | None:
        filled = [line for line in lines if line]
        if len(filled) == 2:
            return min(filled, key=lambda line: line[0].place)
        return filled[0] if filled else None


def _place(item: LocalJob) -> tuple[float, int]:
    return item.place


@dataclass(slots=True, eq=False, repr=False)
class LocalJob:
    """Task in the local backend.

    Attributes:
        task: The task's description, to which the results are added.
        uid: The uid of the task.
        request: The resources that the job requests.
        runner: The part of the backend that runs jobs of this kind.
        place: The job's place in the queue: its negative priority, and its number in the order of
            submission.
        gpus: The GPUs that are assigned to the job; `None` if the backend has no GPUs.
        context: The task's `TaskContext`, set before the job starts; not used for worker processes.
        spill: The directory for large output of a function, created when needed.
        recorder: The recorder of the output of a function in this process; otherwise `None`.
        cancelled: True if the job has been canceled.
        waits: True while the job is in the queue.
        successor: The next job on the same thread or worker process, which takes over the slots.
        dispatched: True if the job has been passed to its runner.
        announced: True if RUNNING has been reported, or must not be reported.
        over: True if the job's terminal state has been reported.
        value: The function's return value.
        error: The exception that the function raised, or that prevented the job from running.
        failed: True if an executable ended with an exit code other than 0.
        handle: The runner's own object for the running job, such as a program or asyncio task.
        worker: The name of the thread or process that runs the job, for messages.
        attempts: Number of worker processes that could not be started for the job, or that ended
            before they started its call.
        call: The job's pickled call, for a worker process.
        modules: The program's own modules for the call; see `CallSpec.modules`.
        filters: The program's warning filters, pickled, for a worker process.
        block: The block of shared memory that contains the call, if the call is large.
    """

    task: TaskDescription
    uid: str
    request: Request
    runner: JobRunner
    place: tuple[float, int] = (0, 0)
    gpus: tuple[str, ...] | None = None
    context: TaskContext | None = None
    recorder: Recorder | None = None
    spill: str = ""
    cancelled: bool = False
    waits: bool = False
    successor: LocalJob | None = None
    dispatched: bool = False
    announced: bool = False
    over: bool = False
    value: Any = None
    error: BaseException | None = None
    failed: bool = False
    handle: Any = None
    worker: str | None = None
    attempts: int = 0
    call: PickledCall | None = None
    modules: bytes | None = None
    filters: bytes | None = None
    block: Block | None = None

    def __repr__(self) -> str:
        return f"<Job {self.uid}>"

    def take(self, outcome: CallResult, unpack: Callable[[Any], Any] = loads) -> None:
        """Store the output and the value or error of a call that another process has made.

        Args:
            outcome: The outcome of the call.
            unpack: The function that unpickles the outcome's payload.
        """
        self.recorder = None  # the other process has recorded the output
        calls.report(self.task, outcome)
        self.value, self.error = calls.result(self.task, outcome, unpack)

    def environment(self) -> dict[str, str]:
        """Return the environment variables to set in the process that runs the job.

        If the backend has GPUs, a task that requests no GPU sees none of them.
        """
        return task_environment(self.task, cores=self.request.cores, gpus=self.gpus)


class JobRunner(ABC):
    """Part of the backend that runs one kind of job.

    All methods are called on the engine's loop. A runner passes each job that has ended to a
    callback of the backend.

    Attributes:
        announces: True if the runner reports when a job starts. Otherwise the backend reports a job
            as running when `run` has returned.
        stoppable: True if the runner can stop running jobs.
    """

    announces = False
    stoppable = False

    @abstractmethod
    def run(self, job: LocalJob) -> None:
        """Start a job. If this raises an exception, the job fails."""

    @abstractmethod
    def cancel(self, job: LocalJob) -> None:
        """Stop a job, or request that it stop. Called at most once for each job."""

    def ended(self, job: LocalJob) -> None:  # noqa: B027 - most have nothing to do
        """Update the runner after the end of a job. Called by the backend."""


def no_environment(job: LocalJob) -> CapabilityError:
    """Return the error for a task that sets environment variables and would run on a thread."""
    return CapabilityError(
        f"task {job.task['name']!r} sets environment variables, which threads share with the "
        "whole program; run it in processes: LocalExecutionBackend('process')"
    )
