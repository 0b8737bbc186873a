"""Measure the cost of observers per event and per task.

Runs fans of no-ops in turns, on a backend that completes tasks immediately: without an observer,
with one that does nothing, with the example in examples/rhapsody-timing, and with the engine's own
options for progress lines, a progress table on a terminal, a trace, and the record of the run. The
time of a fan includes the end of the engine. The cost of an observer is the median difference from
the fan without one, divided by the number of events or tasks. The cost of the record is also
measured as a share of the time of functions that take a millisecond, on two threads.
`--against SRC` also compares the cost without an observer with that of another checkout, whose
`src` folder is SRC.

    python benchmarks/observer.py [--size 10000] [--rounds 15] [--against SRC] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import io
import os
import platform
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rhapsody import (
    LocalExecutionBackend,
    NoopExecutionBackend,
    TaskDescription,
    WorkflowEngine,
    hookimpl,
)

EXAMPLE = Path(__file__).parents[1] / "examples/rhapsody-timing/src/rhapsody_timing.py"
BUDGET = 1.5
"""Budget for the example, in microseconds per event."""

SHOWN = 20
"""Budget for progress, in microseconds per task."""

RECORDED = 10
"""Budget for the record of a run, in microseconds per task."""

SHARE = 2
"""Budget for the record of a run, in percent of the time of functions that take a millisecond."""


class Announcing(NoopExecutionBackend):
    """Backend that reports each task as running before it reports it as done."""

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Complete the tasks immediately."""
        running = self.get_task_states_map().RUNNING
        for task in tasks:
            self.task_state_cb(task, running)
        await super().submit_tasks(tasks)


class Nothing:
    """Observer that only counts the events."""

    def __init__(self) -> None:
        self.seen = 0

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[object]) -> None:
        self.seen += len(events)


def example() -> ModuleType:
    """Import the observer example, which need not be installed."""
    spec = importlib.util.spec_from_file_location("rhapsody_timing", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def fan(size: int, settings: dict[str, Any]) -> float:
    """Return the processor time of a fan of no-ops, in seconds."""
    async with WorkflowEngine.create(Announcing(), handle_signals=False, **settings) as flow:

        @flow.function_task
        async def no_op(x: int) -> int:
            return x

        await no_op(0)
        gc.collect()
        start = time.process_time()  # not wall-clock time, which depends on other load
        await asyncio.gather(*[no_op(number) for number in range(size)])
    return time.process_time() - start


async def fan_of_milliseconds(size: int, settings: dict[str, Any]) -> float:
    """Return the seconds for a fan of functions that take a millisecond, on two threads."""
    backend = LocalExecutionBackend(resources={"cores": 2})
    async with WorkflowEngine.create(backend, handle_signals=False, **settings) as flow:
        wait = flow.function_task(name="wait")(lambda _: time.sleep(0.001))
        gc.collect()
        start = time.perf_counter()
        await asyncio.gather(*flow.map(wait, range(size)))
    return time.perf_counter() - start


def measure(size: int, **settings: Any) -> float:
    """Return the microseconds per task."""
    with contextlib.redirect_stderr(io.StringIO()):  # the example's table
        return asyncio.run(fan(size, settings)) / size * 1e6


def measure_on_terminal(size: int) -> float:
    """Return the microseconds per task with a progress table on a terminal."""
    ours, theirs = pty.openpty()
    quiet = subprocess.DEVNULL
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=quiet, stderr=quiet)
    os.close(ours)
    os.environ["TERM"] = "xterm"
    try:
        with open(theirs, "w") as stream, contextlib.redirect_stderr(stream):
            return asyncio.run(fan(size, {"progress": True})) / size * 1e6
    finally:
        reader.kill()
        reader.wait()


def elsewhere(source: str, size: int, rounds: int) -> list[float]:
    """Return the microseconds per task without an observer, with the engine of another checkout."""
    command = [sys.executable, __file__, "--alone", "--size", str(size), "--rounds", str(rounds)]
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Run the measurements and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", metavar="SRC", help="the src folder of another checkout")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    options = parser.parse_args()
    size, rounds = (200, 2) if options.smoke else (options.size, options.rounds)
    if options.alone:
        measure(size)
        print(*(measure(size) for _ in range(rounds)))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, fan of {size}")
    counter, timing = Nothing(), example()
    record = Path(tempfile.mkdtemp()) / "run.jsonl"
    measure(size, observers=[counter])  # also a warm-up
    per_task = counter.seen / (size + 1)
    contests: dict[str, Callable[[], float]] = {
        "a no-op observer": lambda: measure(size, observers=[Nothing()]),
        "the example": lambda: measure(size, observers=[timing]),
        "progress lines": lambda: measure(size, progress="lines"),
        "a progress table": lambda: measure_on_terminal(size),
        "a trace": lambda: measure(size, trace=os.devnull),
        "a record": lambda: measure(size, record=record),
    }
    plain: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in contests}
    for _ in range(rounds):
        plain.append(measure(size))
        for name, contest in contests.items():
            costs[name].append(contest())
    print(f"without an observer: {statistics.median(plain):.2f} µs per task")
    print(f"events per task: {per_task:.2f}")
    for name, each in costs.items():
        more = statistics.median(cost - before for cost, before in zip(each, plain, strict=True))
        print(f"with {name:20} {more / per_task:+6.2f} µs per event {more:+6.2f} per task")
    print(
        f"budgets: {BUDGET} µs per event with the example, {SHOWN} µs per task with progress, "
        f"{RECORDED} µs per task with a record"
    )
    shares = []
    for _ in range(rounds // 3 + 1):
        without = asyncio.run(fan_of_milliseconds(size, {}))
        more = asyncio.run(fan_of_milliseconds(size, {"record": record})) - without
        shares.append(100 * more / without)
    print(
        f"functions of 1 ms on two threads: {without / size * 1e6:.0f} µs per task, "
        f"{statistics.median(shares):+.2f} % with a record (budget {SHARE} %)"
    )
    shutil.rmtree(record.parent)
    if options.against:
        own = str(Path(sys.modules["rhapsody"].__path__[0]).parent)
        ratios, ours, theirs = [], [], []
        for _ in range(rounds):
            ours += elsewhere(own, size, 2)
            theirs += elsewhere(options.against, size, 2)
            ratios.append(sum(ours[-2:]) / sum(theirs[-2:]))
        print(
            f"without an observer: {statistics.median(ours):.2f} µs per task, "
            f"{statistics.median(theirs):.2f} in the other checkout, "
            f"ratio {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
