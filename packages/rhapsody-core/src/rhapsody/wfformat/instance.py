"""What an instance holds: values only, the same for every version of the format."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file that a task read or wrote.

    Attributes:
        id: Its name, unique in the instance.
        size: Bytes, `None` where the instance does not say.
    """

    id: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedMachine:
    """A machine that tasks ran on; `None` is what is not known of it.

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
        runtime: Seconds that it took, `None` where it was not recorded.
        cores: Processor cores that it had; 1 where the instance does not say.
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
        tasks: Its tasks, in the order of the file; the parents of each are among them, and none
            waits for itself.
        machines: The machines it ran on.
        makespan: Seconds from the begin of its first task to the end of its last.
        started: When it began, as text.
        description: What it is, for people.
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
        """The ids of the tasks that wait for each task, by its id."""
        found: dict[str, list[str]] = {task.id: [] for task in self.tasks}
        for task in self.tasks:
            for parent in task.parents:
                found[parent].append(task.id)
        return {task: tuple(children) for task, children in found.items()}


def parents_first(tasks: Sequence[RecordedTask]) -> list[RecordedTask]:
    """The tasks in their order, but for those that come after a parent that stands behind them."""
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
