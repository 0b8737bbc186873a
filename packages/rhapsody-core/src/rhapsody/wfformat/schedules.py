"""How long a workflow must take, and how long it takes on so many slots.

A list schedule starts tasks on slots that are free, in an order, and never leaves a slot free that
the first task in that order fits on. It knows nothing of the engine, and costs no time itself: what
a real run takes beyond it is the price of running.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from rhapsody.wfformat.instance import RecordedTask, parents_first


def slots_of(task: RecordedTask) -> int:
    """How many slots a task takes: its cores."""
    return math.ceil(task.cores)


def bottom_levels(tasks: Sequence[RecordedTask]) -> dict[str, float]:
    """The seconds from the begin of each task to the end of all that waits for it, by its id."""
    runtime = {task.id: task.runtime or 0.0 for task in tasks}
    levels = dict(runtime)
    for task in reversed(parents_first(tasks)):
        for parent in task.parents:
            levels[parent] = max(levels[parent], runtime[parent] + levels[task.id])
    return levels


def critical_path(tasks: Sequence[RecordedTask]) -> float:
    """The seconds that a workflow takes on any number of slots."""
    return max(bottom_levels(tasks).values(), default=0.0)


def work(tasks: Sequence[RecordedTask]) -> float:
    """The seconds that all tasks take together, each as often as it takes slots."""
    return sum(slots_of(task) * (task.runtime or 0.0) for task in tasks)


def list_schedule(
    tasks: Sequence[RecordedTask], slots: int, urgency: Mapping[str, float] | None = None
) -> float:
    """The seconds that a workflow takes by a list schedule.

    Args:
        tasks: Its tasks.
        slots: How many there are; no task takes more.
        urgency: Which of the tasks that are ready goes first, by their ids: the highest. Without
            it, and between equals, the one that was ready first does.
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
