"""What an observer costs: per-task cost with nobody looking, and what each event adds.

Fans of no-ops on the noop backend, in turns: without an observer, with one that does
nothing, and with the example in examples/rhapsody-timing. The median of the rounds'
differences counts, divided by the number of events. With `--against SRC`, the `src` folder
of another checkout, the cost without an observer is compared with that of its engine.

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
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rhapsody import NoopExecutionBackend, WorkflowEngine, hookimpl

EXAMPLE = Path(__file__).parents[1] / "examples/rhapsody-timing/src/rhapsody_timing.py"
BUDGET = 1.5
"""Microseconds that an event may cost with the example."""


class Nothing:
    """Takes the events and counts them."""

    def __init__(self) -> None:
        self.seen = 0

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[object]) -> None:
        self.seen += len(events)


def example() -> ModuleType:
    """The module of the observer example, which need not be installed."""
    spec = importlib.util.spec_from_file_location("rhapsody_timing", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def fan(size: int, observers: Sequence[object] = ()) -> float:
    """Processor seconds for a fan of no-ops whose futures are all held."""
    backend = NoopExecutionBackend()
    settings: dict[str, Any] = {"observers": list(observers), "handle_signals": False}
    async with WorkflowEngine.create(backend, **settings) as flow:

        @flow.function_task
        async def no_op(x: int) -> int:
            return x

        await no_op(0)
        gc.collect()
        start = time.process_time()  # processor time: others may be using the machine
        await asyncio.gather(*[no_op(number) for number in range(size)])
        return time.process_time() - start


def measure(size: int, observers: Sequence[object] = ()) -> float:
    """Microseconds per task."""
    with contextlib.redirect_stderr(io.StringIO()):  # the example's table
        return asyncio.run(fan(size, observers)) / size * 1e6


def elsewhere(source: str, size: int, rounds: int) -> list[float]:
    """The same without an observer, with the engine of another checkout."""
    command = [sys.executable, __file__, "--alone", "--size", str(size), "--rounds", str(rounds)]
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", metavar="SRC", help="the src folder of another checkout")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args()
    size, rounds = (200, 2) if options.smoke else (options.size, options.rounds)
    if options.alone:
        measure(size)
        print(*(measure(size) for _ in range(rounds)))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, fan of {size}")
    counter, timing = Nothing(), example()
    measure(size, [counter])  # the first one is slower
    per_task = counter.seen / (size + 1)
    plain, idle, busy = [], [], []
    for _ in range(rounds):
        plain.append(measure(size))
        idle.append(measure(size, [Nothing()]))
        busy.append(measure(size, [timing]))
    print(f"without an observer: {statistics.median(plain):.2f} µs per task")
    print(f"events per task: {per_task:.2f}")
    for name, costs in (("that does nothing", idle), ("of the example", busy)):
        more = [cost - before for cost, before in zip(costs, plain, strict=True)]
        each = statistics.median(more) / per_task
        print(f"with the observer {name}: {each:+.2f} µs per event")
    print(f"budget with the example: {BUDGET} µs per event")
    if options.against:
        own = str(Path(sys.modules["rhapsody"].__path__[0]).parent)
        ratios, ours, theirs = [], [], []
        for _ in range(rounds):
            ours += elsewhere(own, size, 2)
            theirs += elsewhere(options.against, size, 2)
            ratios.append(sum(ours[-2:]) / sum(theirs[-2:]))
        print(
            f"without an observer, here {statistics.median(ours):.2f}, there "
            f"{statistics.median(theirs):.2f} µs per task: "
            f"{statistics.median(ratios):.3f} times as much"
        )


if __name__ == "__main__":
    main()
