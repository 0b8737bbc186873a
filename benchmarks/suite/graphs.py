"""The graphs that every contestant runs, as plain lists of tasks that say what they depend on.

A graph knows nothing of any system. Those of recorded kinds of workflows are made by the recipes
of the `wfcommons` package, once for all contestants of a run.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SEED = 16


class Task(NamedTuple):
    """One call.

    Attributes:
        function: What is called, with the arguments and then the parents' results.
        arguments: Values.
        parents: The places in the graph of earlier tasks.
        seconds: How long it takes, as far as that is given.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    parents: tuple[int, ...] = ()
    seconds: float = 0.0


Graph = list[Task]


def noop(*values: Any) -> None:
    """Does nothing."""


def sleep(seconds: float, *values: Any) -> None:
    """Sleep, as a stand-in for work, so that the system under test can use the processor."""
    time.sleep(seconds)


def program(command: list[str] | str) -> int:
    """Run a program, for systems without tasks that are programs."""
    shell = isinstance(command, str)
    return subprocess.run(command, shell=shell, capture_output=True, check=True).returncode


def length(data: bytes) -> int:
    """Return the size of a large argument."""
    return len(data)


def zeros(size: int) -> bytes:
    """Return a large value."""
    return bytes(size)


def wait_for_file(path: str) -> None:
    """Ends when a file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)


NOTHING = Task(noop, (0,))


def fan(size: int, task: Task = NOTHING) -> Graph:
    """Tasks that do not depend on each other."""
    return [task] * size


def numbers(size: int) -> Graph:
    """The same with arguments that differ, as a journal knows calls by them."""
    return [Task(noop, (number,)) for number in range(size)]


def chain(size: int) -> Graph:
    """Tasks that each depend on the one before."""
    return [NOTHING, *(Task(noop, (), (n,)) for n in range(size - 1))]


def mesh(size: int) -> Graph:
    """Return a square of tasks that each depend on their left and upper neighbors."""
    side = math.isqrt(size)

    def parents(row: int, column: int) -> Iterable[int]:
        if row:
            yield (row - 1) * side + column
        if column:
            yield row * side + column - 1

    places = itertools.product(range(side), repeat=2)
    return [Task(noop, (), tuple(parents(*place))) for place in places]


def tree(leaves: int) -> Graph:
    """Leaves that are joined two by two until one task is left."""
    graph, level = fan(leaves), list(range(leaves))
    while len(level) > 1:
        first = len(graph)
        graph += [Task(noop, (), pair) for pair in zip(level[::2], level[1::2], strict=False)]
        level = [*range(first, len(graph)), *level[len(level) // 2 * 2 :]]
    return graph


def tangle(size: int, parents: int) -> Graph:
    """Tasks that each depend on some earlier ones, drawn by chance."""
    draw = random.Random(SEED)
    roots = fan(parents)
    return roots + [
        Task(noop, (), tuple(draw.sample(range(n), parents)))
        for n in range(parents, parents + size)
    ]


def mixed(long: int, seconds: float, short: int) -> Graph:
    """Some long calls, spread evenly among short ones of a millisecond."""
    graph = fan(short, Task(sleep, (0.001,), (), 0.001))
    for n in range(long):
        graph.insert(n * (short + long) // long, Task(sleep, (seconds,), (), seconds))
    return graph


def makespan(graph: Graph, slots: int) -> float:
    """Seconds of a list schedule: whenever a slot is free, the first task that is ready gets it."""
    from rhapsody_wfcommons import RecordedTask, list_schedule

    tasks = [
        RecordedTask(str(n), "", parents=tuple(map(str, task.parents)), runtime=task.seconds)
        for n, task in enumerate(graph)
    ]
    return list_schedule(tasks, slots, {str(n): -n for n in range(len(graph))})


def recipe(name: str, size: int, slots: int, seconds: float) -> Graph:
    """Return a workflow from a wfcommons recipe, scaled so that a list schedule takes `seconds`."""
    import networkx
    import numpy as np
    from wfcommons import WorkflowGenerator
    from wfcommons.wfchef import recipes

    random.seed(SEED)
    np.random.seed(SEED)
    kind = getattr(recipes, f"{name.capitalize()}Recipe")
    workflow = WorkflowGenerator(kind.from_num_tasks(size)).build_workflow()
    order = list(networkx.lexicographical_topological_sort(workflow))
    places = {uid: n for n, uid in enumerate(order)}
    graph = [
        Task(
            sleep,
            (),
            tuple(sorted(places[parent] for parent in workflow.predecessors(uid))),
            workflow.tasks[uid].runtime,
        )
        for uid in order
    ]
    scale = seconds / makespan(graph, slots)
    return [timed(task.seconds * scale, task.parents) for task in graph]


def timed(seconds: float, parents: Iterable[int]) -> Task:
    """Return a task with a duration."""
    return Task(sleep, (seconds,), tuple(parents), seconds)


def save(graph: Graph, path: Path) -> None:
    """Writes a graph of timed tasks."""
    path.write_text(json.dumps([(task.seconds, task.parents) for task in graph]))


def load(path: Path) -> Graph:
    """Reads what `save` wrote."""
    return [timed(seconds, parents) for seconds, parents in json.loads(path.read_text())]
