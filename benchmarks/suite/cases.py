"""Measurements of one contestant at a time: cost of a graph, memory, latency of one more task."""

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
"""Figures of a measure, by the column of its table."""


class Case(NamedTuple):
    """Something to do with a contestant.

    Attributes:
        kind: Of which the cost grows with the size.
        size: How much of it.
        run: Does it with a size; the size may be less, to find out what it costs.
        linear: Whether a part of it says what all of it takes; if so, it is done again while
            it is quick.
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
    """The time for each task of a graph, in some unit."""

    async def run(contestant: Contestant, size: int) -> Figures:
        tasks = make(size)
        return {f"{kind} {size:,}": await seconds(contestant, tasks) / len(tasks) / unit}

    return Case(kind, size, run)


def schedule(title: str, tasks: Graph, *, even: bool = True) -> Case:
    """The time for a graph of tasks that take their time, as a multiple of a list schedule's.

    Args:
        title: What it is called.
        tasks: The graph.
        even: Whether the first part of it is like the rest.
    """

    async def run(contestant: Contestant, size: int) -> Figures:
        part = tasks[:size]
        return {title: await seconds(contestant, part) / graphs.makespan(part, SLOTS)}

    return Case(title.split()[0], len(tasks), run, linear=even)


def resident() -> int:
    """Bytes of this process in memory; where only their peak is known, that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def memory(contestant: Contestant, size: int) -> Figures:
    """Bytes of this process for each task that waits for another, and that is done and held."""
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
    """Wait, counting meanwhile."""
    paused[0] += 1
    await asyncio.sleep(seconds)


async def nothing() -> None:
    """Does nothing."""


paused = [0]


async def one_more(contestant: Contestant, size: int) -> Figures:
    """Microseconds from the call of one more task to its result, while others run."""
    paused[0] = 0
    draw = random.Random(graphs.SEED)
    long = max(size / 2_500, 1)  # seconds, so that none ends before all are measured
    others = [contestant.submit(pause, long + draw.random()) for _ in range(size)]
    while paused[0] < size:  # noqa: ASYNC110 - they may be counted in another thread
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
    """Milliseconds that the loop is held at most, while a program calls tasks 100 at a time."""
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
    return {"loop held, ms": 1e3 * longest}


def fans(*sizes: int) -> list[Case]:
    """Fans of no-ops."""
    return [graph("fan", size, graphs.fan) for size in sizes]


def programs(kind: str, size: int, command: list[str] | str) -> Case:
    """Many runs of a program."""
    return graph(kind, size, partial(graphs.fan, task=Task(graphs.program, (command,))))
