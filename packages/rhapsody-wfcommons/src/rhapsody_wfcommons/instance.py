"""Data classes for the content of an instance in any version of the format."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """File that a task read or wrote.

    Attributes:
        id: Name, unique in the instance.
        size: Size in bytes, or `None` if it is not recorded.
    """

    id: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedMachine:
    """Machine on which tasks ran. Unknown attributes are `None`.

    Attributes:
        name: Host name.
        system: Operating system, `"linux"`, `"macos"` or `"windows"`.
        architecture: Processor architecture, such as `"x86_64"`.
        release: Release of the operating system.
        memory: Main memory in bytes.
        cores: Number of processor cores.
        speed: Speed of the processor in MHz.
        vendor: Vendor of the processor.
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
    """Task of a workflow, with its execution.

    Attributes:
        id: Id, unique in the instance.
        name: Name for display.
        parents: Ids of the tasks on which the task depends.
        runtime: Duration in seconds, or `None` if it is not recorded.
        cores: Number of processor cores that the task used; 1 if it is not recorded.
        inputs: Files that the task read.
        outputs: Files that the task wrote.
        started: Start time as written in the file, or `None` if it is not recorded.
        machines: Names of the machines on which the task ran.
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
    """One run of a workflow. Unknown attributes are `None`.

    Attributes:
        name: Name of the workflow.
        tasks: Tasks in the order of the file. All parents are among them, and there is no cycle.
        machines: Machines on which the tasks ran.
        makespan: Seconds from the start of the first task to the end of the last task.
        started: Start time of the run, as written in the file.
        description: Description of the workflow.
        created: Creation time of the instance, as written in the file.
        made_by: Name and version of the system that ran the workflow.
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
        """Return a mapping from each task id to the ids of its dependents."""
        found: dict[str, list[str]] = {task.id: [] for task in self.tasks}
        for task in self.tasks:
            for parent in task.parents:
                found[parent].append(task.id)
        return {task: tuple(children) for task, children in found.items()}


def parents_first(tasks: Sequence[RecordedTask]) -> list[RecordedTask]:
    """Return the tasks in the given order, but with each task after its parents."""
    place = {task.id: index for index, task in enumerate(tasks)}
    waits = [len(task.parents) for task in tasks]
    children: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for parent in task.parents:
            children[place[parent]].append(index)
    ready = [index for index, count in enumerate(waits) if not count]  # sorted, and thus a heap
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(tasks[index])
        for child in children[index]:
            waits[child] -= 1
            if not waits[child]:
                heapq.heappush(ready, child)
    return ordered
