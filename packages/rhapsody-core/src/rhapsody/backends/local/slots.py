"""Who gets the machine's cores, GPUs, memory and workers, and in which order.

First come, first served: a task that does not fit yet holds back those behind
it, so that a big task is never starved by small ones. Two exceptions: what waits
only for services to end lets others pass, since services may never end; and
function tasks that wait for a worker let executables pass, which need none.

A worker's thread need not wait until the loop gives back what its task had: it takes over
the next one with it, where it is that one's turn and it needs just the same.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rhapsody.backends.local.host import HostResources


@dataclass(frozen=True, slots=True)
class Request:
    """What one task takes while it runs.

    Attributes:
        cores: Processor cores.
        gpus: Number of GPUs.
        memory: Bytes of main memory.
        workers: 1 for a function task that occupies a worker, else 0.
        endless: The task is a service: nobody knows when it gives back what it took.
    """

    cores: float = 1
    gpus: int = 0
    memory: int = 0
    workers: int = 0
    endless: bool = False


ONE_FUNCTION = Request(cores=1, workers=1)


class Waiting(Protocol):
    """What can wait in a `Queue`."""

    request: Request
    number: int
    gpus: tuple[str, ...]
    waits: bool


W = TypeVar("W", bound=Waiting)


class Slots:
    """What is free.

    Args:
        machine: All there is.
    """

    def __init__(self, machine: HostResources) -> None:
        self.machine = machine
        self._cores: float = machine.cores
        self._gpus = list(machine.gpus)
        self._memory = machine.memory
        self._workers = machine.workers
        self._endless: list[Request] = []

    def missing(self, request: Request) -> str | None:
        """Why the request can never be met here, `None` where it can."""
        machine = self.machine
        if request.cores > machine.cores:
            return f"it asks for {request.cores} cores, there are {machine.cores}"
        if request.gpus > len(machine.gpus):
            return f"it asks for {request.gpus} gpus, there are {len(machine.gpus)}"
        if machine.memory is not None and request.memory > machine.memory:
            return f"it asks for {request.memory} bytes of memory, there are {machine.memory}"
        return None

    def take(self, request: Request) -> tuple[str, ...] | None:
        """Takes what is requested; the GPUs given, or `None` where it is not free."""
        if request.workers > self._workers or not self.fits(request):  # mostly of workers
            return None
        self._cores = _exact(self._cores - request.cores)
        self._workers -= request.workers
        if self._memory is not None:
            self._memory -= request.memory
        if request.endless:
            self._endless.append(request)
        if not request.gpus:
            return ()
        gpus, self._gpus = self._gpus[: request.gpus], self._gpus[request.gpus :]
        return tuple(gpus)

    def release(self, request: Request, gpus: tuple[str, ...]) -> None:
        """Gives back what `take` took."""
        self._cores = _exact(self._cores + request.cores)
        self._workers += request.workers
        if self._memory is not None:
            self._memory += request.memory
        if request.endless:
            self._endless.remove(request)
        if gpus:
            order = self.machine.gpus
            self._gpus = sorted([*self._gpus, *gpus], key=order.index)

    @property
    def cores_in_use(self) -> float:
        """How many cores are taken."""
        return _exact(self.machine.cores - self._cores)

    def fits(self, request: Request, *, but_for_worker: bool = False) -> bool:
        """Whether the request can be met now, or could if a worker were free."""
        return (
            (but_for_worker or request.workers <= self._workers)
            and request.cores <= self._cores
            and request.gpus <= len(self._gpus)
            and (self._memory is None or request.memory <= self._memory)
        )

    def waits_for_service(self, request: Request) -> bool:
        """Whether the request could not be met although all but services had ended."""
        if not self._endless:
            return False
        machine, held = self.machine, self._endless
        return (
            request.cores > _exact(machine.cores - sum(service.cores for service in held))
            or request.gpus > len(machine.gpus) - sum(service.gpus for service in held)
            or (
                machine.memory is not None
                and request.memory > machine.memory - sum(service.memory for service in held)
            )
        )


def _exact(cores: float) -> float:
    """Remove the rounding error of a sum of cores, which are multiples of 0.001."""
    return cores if type(cores) is int else round(cores, 3)


class Queue(Generic[W]):
    """Tasks that wait for slots; all of it but `take_over` is for the loop.

    Args:
        slots: Where they come from.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._functions: deque[W] = deque()
        self._programs: deque[W] = deque()
        self._passed: list[W] = []  # wait for services, and let others pass meanwhile

    def __bool__(self) -> bool:
        return bool(self._functions or self._programs or self._passed)

    def push(self, item: W) -> None:
        """Adds a task behind all others."""
        item.number = next(self._numbers)
        item.waits = True
        (self._functions if item.request.workers else self._programs).append(item)

    def withdraw(self, item: W) -> bool:
        """Takes out a task; `False` for one that does not wait any more."""
        with self._lock:
            waits, item.waits = item.waits, False
            return waits

    def take_over(self, request: Request) -> W | None:
        """The next task, where it has the same request and gets what another has had; any thread.

        Not while programs wait, or a task that others pass: whose turn it is, is seen by `pop`.
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

    def pop(self) -> W | None:
        """The next task, with what it needs taken; `None` where it is nobody's turn."""
        with self._lock:
            item = self._pop()
            if item is not None:
                item.waits = False
            return item

    def _pop(self) -> W | None:
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
            elif self._take(item):
                return line.popleft()
            elif self._slots.waits_for_service(item.request):
                self._passed.append(line.popleft())
            elif item.request.workers and self._slots.fits(item.request, but_for_worker=True):
                lines = [self._programs]
            else:
                return None

    def first(self) -> W | None:
        """The next function task, where no others wait."""
        functions = self._functions
        while functions and not functions[0].waits:
            functions.popleft()
        return functions[0] if functions and not self._programs and not self._passed else None

    def put_back(self, items: Iterable[W]) -> None:
        """Puts function tasks that were taken over where they were."""
        place = 0
        with self._lock:
            for item in items:
                while place < len(self._functions) and self._functions[place].number < item.number:
                    place += 1
                item.waits = True
                self._functions.insert(place, item)

    def clear(self) -> list[W]:
        """Takes out all that waits, in the order it came."""
        with self._lock:
            items = [*self._passed, *self._functions, *self._programs]
            for line in (self._passed, self._functions, self._programs):
                line.clear()
        waiting = [item for item in items if self.withdraw(item)]
        return sorted(waiting, key=lambda item: item.number)

    def _take(self, item: W) -> bool:
        gpus = self._slots.take(item.request)
        if gpus is None:
            return False
        item.gpus = gpus
        return True

    def _pop_passed(self) -> tuple[W | None, bool]:
        """A task that others passed, and whether one of them is now to be waited for."""
        self._passed = [item for item in self._passed if item.waits]
        for index, item in enumerate(self._passed):
            if self._take(item):
                return self._passed.pop(index), False
            if not self._slots.waits_for_service(item.request):
                return None, True
        return None, False

    @staticmethod
    def _first(lines: list[deque[W]]) -> deque[W] | None:
        filled = [line for line in lines if line]
        if len(filled) == 2:
            return min(filled, key=lambda line: line[0].number)
        return filled[0] if filled else None
