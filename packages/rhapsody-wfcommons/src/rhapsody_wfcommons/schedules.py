"""Bounds for the makespan of a workflow on a number of slots.

A list schedule starts ready tasks in a given order, each as soon as enough slots are free. The
simulation has no overhead: the additional time of a real run is the overhead of the engine and the
backend.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from rhapsody_wfcommons.instance import RecordedTask, parents_first


def slots_of(task: RecordedTask) -> int:
    """Return the number of slots that a task occupies: its cores, rounded up."""
    return math.ceil(task.cores)


def bottom_levels(tasks: Sequence[RecordedTask]) -> dict[str, float]:
    """Return the duration in seconds of the longest path that starts with each task, by task id."""
    runtime = {task.id: task.runtime or 0.0 for task in tasks}
    levels = dict(runtime)
    for task in reversed(parents_first(tasks)):
        for parent in task.parents:
            levels[parent] = max(levels[parent], runtime[parent] + levels[task.id])
    return levels


def critical_path(tasks: Sequence[RecordedTask]) -> float:
    """Return the duration in seconds of the longest path: the makespan with unlimited slots."""
    return max(bottom_levels(tasks).values(), default=0.0)


def work(tasks: Sequence[RecordedTask]) -> float:
    """Return the sum of all durations in seconds, each multiplied by the task's number of slots."""
    return sum(slots_of(task) * (task.runtime or 0.0) for task in tasks)


def list_schedule(
    tasks: Sequence[RecordedTask], slots: int, urgency: Mapping[str, float] | None = None
) -> float:
    """Return the makespan in seconds of a list schedule.

    Args:
        tasks: Tasks of the workflow.
        slots: Number of slots. No task may need more.
        urgency: Priority by task id. The ready task with the highest priority starts first. Among
            equal priorities, and without priorities, the task that became ready first starts first.
    """
    children: dict[str, list[RecordedTask]] = {task.id: [] for task in tasks}
    waits = {task.id: len(task.parents) for task in tasks}
    ready: list[tuple[float, int, RecordedTask]] = []
    running: list[tuple[float, int, RecordedTask]] = []
    number, now, free = 0, 0.0, slots

    def add(task: RecordedTask) -> None:
        nonlocal number
        number += 1
        heapq.heappush(ready, (-urgency[task.id] if urgency else 0.0, number, task))

    for task in parents_first(tasks):
        for parent in task.parents:
            children[parent].append(task)
        if not task.parents:
            add(task)
    while ready or running:
        while ready and slots_of(ready[0][2]) <= free:
            _, place, task = heapq.heappop(ready)
            free -= slots_of(task)
            heapq.heappush(running, (now + (task.runtime or 0.0), place, task))
        now, _, ended = heapq.heappop(running)
        free += slots_of(ended)
        for child in children[ended.id]:
            waits[child.id] -= 1
            if not waits[child.id]:
                add(child)
    return now
