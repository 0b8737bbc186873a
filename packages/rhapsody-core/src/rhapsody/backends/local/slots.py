"""Who gets the machine's cores, GPUs, memory and workers, and in which order.

First come, first served: a task that does not fit yet holds back those behind
it, so that a big task is never starved by small ones. Two exceptions: what waits
only for services to end lets others pass, since services may never end; and
function tasks that wait for a worker let executables pass, which need none.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rhapsody.backends.local.machine import Machine


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

    cores: int = 1
    gpus: int = 0
    memory: int = 0
    workers: int = 0
    endless: bool = False


ONE_FUNCTION = Request(cores=1, workers=1)

LATER = Request(cores=1, workers=1)
"""The same, of a function that gets its slots from the one that is before it in its worker."""


class Waiting(Protocol):
    """What can wait in a `Queue`."""

    request: Request
    number: int
    gpus: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether it was cancelled while it waited."""
        ...


W = TypeVar("W", bound=Waiting)


class Slots:
    """What is free.

    Args:
        machine: All there is.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._cores = machine.cores
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
        if not self.fits(request):
            return None
        self._cores -= request.cores
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
        self._cores += request.cores
        self._workers += request.workers
        if self._memory is not None:
            self._memory += request.memory
        if request.endless:
            self._endless.remove(request)
        if gpus:
            order = self.machine.gpus
            self._gpus = sorted([*self._gpus, *gpus], key=order.index)

    @property
    def cores_in_use(self) -> int:
        """How many cores are taken."""
        return self.machine.cores - self._cores

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
            request.cores > machine.cores - sum(service.cores for service in held)
            or request.gpus > len(machine.gpus) - sum(service.gpus for service in held)
            or (
                machine.memory is not None
                and request.memory > machine.memory - sum(service.memory for service in held)
            )
        )


class Queue(Generic[W]):
    """Tasks that wait for slots.

    Args:
        slots: Where they come from.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._numbers = itertools.count()
        self._functions: deque[W] = deque()
        self._programs: deque[W] = deque()
        self._passed: list[W] = []  # wait for services, and let others pass meanwhile

    def __bool__(self) -> bool:
        return bool(self._functions or self._programs or self._passed)

    def push(self, item: W) -> None:
        """Adds a task behind all others."""
        item.number = next(self._numbers)
        (self._functions if item.request.workers else self._programs).append(item)

    def pop(self) -> W | None:
        """The next task, with what it needs taken; `None` where it is nobody's turn."""
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
            if item.over:
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
        """The function task whose turn is next, were there slots; `None` where it is not one's."""
        functions, programs = self._functions, self._programs
        while functions and functions[0].over:
            functions.popleft()
        if self._passed or not functions:
            return None
        if programs and programs[0].number < functions[0].number:
            return None
        return functions[0]

    def remove_first(self) -> None:
        """Takes out what `first` has given."""
        self._functions.popleft()

    def put_back(self, item: W) -> None:
        """Puts a function task before all others."""
        self._functions.appendleft(item)

    def clear(self) -> list[W]:
        """Takes out all that waits, in the order it came."""
        items = [*self._passed, *self._functions, *self._programs]
        for line in (self._passed, self._functions, self._programs):
            line.clear()
        return sorted((item for item in items if not item.over), key=lambda item: item.number)

    def _take(self, item: W) -> bool:
        gpus = self._slots.take(item.request)
        if gpus is None:
            return False
        item.gpus = gpus
        return True

    def _pop_passed(self) -> tuple[W | None, bool]:
        """A task that others passed, and whether one of them is now to be waited for."""
        self._passed = [item for item in self._passed if not item.over]
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
