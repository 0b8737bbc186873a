"""Measure the costs per task of recording results in a journal, and of reusing them.

Runs fans of no-ops in turns: without a journal, with one, and with one from which all results are
reused. Prints the medians, the additional cost of the journal, and the ratio of a reused fan to a
plain one. Finally, measures for how long hashing a large array argument blocks the event loop.

    python benchmarks/journal.py [--sizes 1000 10000 100000] [--rounds 5] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

from rhapsody import NoopExecutionBackend, WorkflowEngine

Kind = Literal["without", "recording", "reusing"]


class Instant(NoopExecutionBackend):
    """Backend whose placeholders are recorded as results."""

    dry = False


async def fan(size: int, kind: Kind, directory: Path) -> float:
    """Return the microseconds per task of a fan of no-ops with two small arguments."""
    async with WorkflowEngine.create(
        backend=Instant(),
        work_dir=directory / "work",
        journal=False if kind == "without" else directory / "journal.sqlite",
        resume="auto" if kind == "without" else kind == "reusing",
    ) as flow:

        @flow.function_task
        def nothing(number: int, name: str) -> None: ...

        start = time.perf_counter()
        futures = [nothing(number, "name") for number in range(size)]
        await flow.join()
        took = time.perf_counter() - start
        assert flow.stats.recorded == (size if kind == "reusing" else 0)
        del futures
    return took / size * 1e6


async def held(megabytes: int, directory: Path) -> tuple[float, float]:
    """Return the seconds that a task with an array takes, and that it blocks the loop at most."""
    array = np.ones(megabytes * 125_000)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    async with WorkflowEngine.create(
        backend=Instant(),
        work_dir=directory / "work",
        journal=directory / "journal.sqlite",
    ) as flow:

        @flow.function_task
        def nothing(array: object) -> None: ...

        await nothing(array[:1])
        ticking = asyncio.create_task(tick())
        start = time.perf_counter()
        await nothing(array)
        took = time.perf_counter() - start
        ticking.cancel()
    return took, longest


def main() -> None:
    """Run the measurements and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the array")
    parser.add_argument("--smoke", action="store_true", help="run one small round, for the tests")
    arguments = parser.parse_args()
    sizes, rounds = ([100], 1) if arguments.smoke else (arguments.sizes, arguments.rounds)
    kinds: tuple[Kind, ...] = ("without", "recording", "reusing")
    print(
        f"{'us per task':>12}  {'without':>8} {'recording':>10} {'reusing':>8}  added  reused/plain"
    )
    for size in sizes:
        taken: dict[Kind, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as directory:
                for kind in kinds:
                    taken[kind].append(asyncio.run(fan(size, kind, Path(directory))))
        plain, recording, reusing = (statistics.median(taken[kind]) for kind in kinds)
        added = statistics.median(
            more - less for more, less in zip(taken["recording"], taken["without"], strict=True)
        )
        print(
            f"{size:>12}  {plain:>8.1f} {recording:>10.1f} {reusing:>8.1f}  {added:>5.1f}  "
            f"{reusing / plain:>6.2f}"
        )
    megabytes = 1 if arguments.smoke else arguments.megabytes
    with tempfile.TemporaryDirectory() as directory:
        took, longest = asyncio.run(held(megabytes, Path(directory)))
    print(f"an array of {megabytes} MB: {took:.2f} s, loop blocked for {longest * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
