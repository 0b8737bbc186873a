"""Content of an instance: values only, the same for every version of the format."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file that a task read or wrote.

    Attributes:
        id: Its name, unique in the instance.
        size: Bytes, `None` if it is not recorded.
    """

    id: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedMachine:
    """A machine that tasks ran on; what is not known is `None`.

    Attributes:
        name: Its host name.
        system: `"linux"`, `"macos"` or `"windows"`.
        architecture: Of its processor, such as `"x86_64"`.
        release: Of its system.
        memory: Bytes of main memory.
        cores: Processor cores.
        speed: Of its processor, in MHz.
        vendor: Of its processor.
    """

    name: str
    system: str | None = None
    architecture: str | None = None
    release: str | None = None
    memory: int | None = None
    cores: int | None = None
    speed: int | None = None
    vendor: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """One task and how it went.

    Attributes:
        id: Unique in the instance.
        name: For people.
        parents: The ids of the tasks that it waited for.
        runtime: Seconds that it took, `None` if it is not recorded.
        cores: Processor cores that it had; 1 if it is not recorded.
        inputs: The files that it read.
        outputs: The files that it wrote.
        started: When it began, as text.
        machines: The names of the machines that it ran on.
    """

    id: str
    name: str
    parents: tuple[str, ...] = ()
    runtime: float | None = None
    cores: float = 1
    inputs: tuple[RecordedFile, ...] = ()
    outputs: tuple[RecordedFile, ...] = ()
    started: str | None = None
    machines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """A workflow that was run once.

    Attributes:
        name: Its name.
        tasks: Its tasks, in the order of the file. All parents are among them, and there is no
            cycle.
        machines: The machines it ran on.
        makespan: Seconds from the begin of its first task to the end of its last.
        started: When it began, as text.
        description: Free text.
        created: When the instance was made, as text.
        made_by: The name and version of the system that ran it.
    """

    name: str
    tasks: tuple[RecordedTask, ...]
    machines: tuple[RecordedMachine, ...] = ()
    makespan: float | None = None
    started: str | None = None
    description: str | None = None
    created: str | None = None
    made_by: tuple[str, str] | None = None

    def children(self) -> dict[str, tuple[str, ...]]:
        """Return by task id the ids of the tasks that wait for it."""
        found: dict[str, list[str]] = {task.id: [] for task in self.tasks}
        for task in self.tasks:
            for parent in task.parents:
                found[parent].append(task.id)
        return {task: tuple(children) for task, children in found.items()}


def parents_first(tasks: Sequence[RecordedTask]) -> list[RecordedTask]:
    """Return the tasks in their order, except that each comes after its parents."""
    place = {task.id: index for index, task in enumerate(tasks)}
    waits = [len(task.parents) for task in tasks]
    children: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for parent in task.parents:
            children[place[parent]].append(index)
    ready = [index for index, count in enumerate(waits) if not count]  # a heap, being sorted
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(tasks[index])
        for child in children[index]:
            waits[child] -= 1
            if not waits[child]:
                heapq.heappush(ready, child)
    return ordered
