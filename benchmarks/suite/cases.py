"""Measurements of one contestant: the cost of a graph, memory, and the latency of one more task."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.suite import graphs
from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.graphs import Graph, Task

clock: Callable[[], float] = time.perf_counter
"""Clock of the measures; `benchmarks/compare.py` uses CPU time."""

Figures = dict[str, float]
"""Figures by the column of a table."""


class Case(NamedTuple):
    """A measurement of a contestant.

    Attributes:
        kind: Its kind; cases of one kind differ only in size.
        size: Its size, such as the number of tasks.
        run: Runs it with a contestant and a size. A smaller size estimates the cost.
        linear: True if the cost is proportional to the size and can thus be estimated. A linear
            case is repeated if it is short.
    """

    kind: str
    size: int
    run: Callable[[Contestant, int], Awaitable[Figures]]
    linear: bool = True


async def seconds(contestant: Contestant, graph: Graph) -> float:
    """Return the duration of a graph."""
    gc.collect()
    start = clock()
    await contestant.run(graph)
    return clock() - start


def graph(kind: str, size: int, make: Callable[[int], Graph], unit: float = 1e-6) -> Case:
    """Make a case that measures the time per task of a graph, in multiples of `unit` seconds."""

    async def run(contestant: Contestant, size: int) -> Figures:
        tasks = make(size)
        return {f"{kind} {size:,}": await seconds(contestant, tasks) / len(tasks) / unit}

    return Case(kind, size, run)


def schedule(title: str, tasks: Graph, *, even: bool = True) -> Case:
    """Make a case that compares the time for a graph of sleeping tasks with a list schedule.

    Args:
        title: The column of its figure.
        tasks: The graph.
        even: True if the first part of the graph is similar to the rest.
    """

    async def run(contestant: Contestant, size: int) -> Figures:
        part = tasks[:size]
        return {title: await seconds(contestant, part) / graphs.makespan(part, SLOTS)}

    return Case(title.split()[0], len(tasks), run, linear=even)


def resident() -> int:
    """Return the resident memory of this process in bytes; without `/proc`, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def memory(contestant: Contestant, size: int) -> Figures:
    """Measure the bytes of this process per waiting task, and per finished task with its future."""
    with tempfile.TemporaryDirectory() as directory:
        gate = os.path.join(directory, "gate")
        tasks = [Task(graphs.wait_for_file, (gate,)), *[Task(graphs.noop, (), (0,))] * size]
        gc.collect()
        before = resident()
        futures = contestant.submit_all(tasks)
        await asyncio.sleep(1)
        gc.collect()
        pending = resident() - before
        os.mknod(gate)
        await contestant.wait(futures)
        gc.collect()
        return {"pending": pending / size, "done": (resident() - before) / size}


async def pause(seconds: float) -> None:
    """Count this call, and sleep."""
    paused[0] += 1
    await asyncio.sleep(seconds)


async def nothing() -> None:
    """Do nothing."""


paused = [0]


async def one_more(contestant: Contestant, size: int) -> Figures:
    """Measure the microseconds from a call to its result while many other tasks run."""
    paused[0] = 0
    draw = random.Random(graphs.SEED)
    long = max(size / 2_500, 1)  # seconds; longer than the measurement
    others = [contestant.submit(pause, long + draw.random()) for _ in range(size)]
    while paused[0] < size:  # noqa: ASYNC110 - another thread may count them
        await asyncio.sleep(0.01)
    taken = []
    for _ in range(max(size // 20, 20)):
        start = time.perf_counter()
        await contestant.wait([contestant.submit(nothing)])
        taken.append(1e6 * (time.perf_counter() - start))
    await contestant.wait(others)
    parts = statistics.quantiles(taken, n=100)
    return {"p50, µs": parts[49], "p99, µs": parts[98]}


async def held(contestant: Contestant, size: int) -> Figures:
    """Measure the longest blocking of the event loop while a program calls tasks 100 at a time."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    futures = []
    for _ in range(0, size, 100):
        await asyncio.sleep(0)
        futures += [contestant.submit(nothing) for _ in range(100)]
    await contestant.wait(futures)
    ticking.cancel()
    return {"loop blocked, ms": 1e3 * longest}


def fans(*sizes: int) -> list[Case]:
    """Return the cases of fans of no-ops."""
    return [graph("fan", size, graphs.fan) for size in sizes]


def programs(kind: str, size: int, command: list[str] | str) -> Case:
    """Make a case of a fan that runs a program."""
    return graph(kind, size, partial(graphs.fan, task=Task(graphs.program, (command,))))
