"""Measure what `rhapsody stats` of a large record costs.

Records a run in which each of many tasks depends on another one, and runs `rhapsody stats` on the
record. Prints the processor time of the command, which includes the start of Python.
`--against SRC` runs the command of another checkout in turns, whose `src` folder is SRC.

    python benchmarks/history.py [--size 100000] [--rounds 7] [--against SRC] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rhapsody import NoopExecutionBackend, WorkflowEngine

BUDGET = 2.0
"""Budget for 100,000 tasks, in seconds."""


async def record(size: int, path: Path) -> None:
    """Record pairs of no-ops, in which the second one depends on the first one."""
    async with WorkflowEngine.create(NoopExecutionBackend(), record=path) as flow:
        first = flow.function_task(name="first")(lambda x: x)
        second = flow.function_task(name="second", resources={"cores": 1})(lambda x: x)
        await asyncio.gather(*[second(first(number)) for number in range(size // 2)])


def measure(path: Path, source: str) -> float:
    """Return the processor time of `rhapsody stats` in seconds, with the code in a `src` folder."""
    command = [sys.executable, "-m", "rhapsody", "stats", str(path)]
    environment = {**os.environ, "PYTHONPATH": source}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run the measurements and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", metavar="SRC", help="the src folder of another checkout")
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    options = parser.parse_args()
    size, rounds = (200, 1) if options.smoke else (options.size, options.rounds)
    sources = [str(Path(sys.modules["rhapsody"].__path__[0]).parent)]
    sources += [options.against] if options.against else []
    taken: dict[str, list[float]] = {source: [] for source in sources}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.jsonl"
        asyncio.run(record(size, path))
        for number in range(rounds):
            for source in sources if number % 2 else reversed(sources):
                taken[source].append(measure(path, source))
    print(f"rhapsody stats of {size} tasks (budget for 100,000: {BUDGET:.0f} s):")
    for source, each in taken.items():
        print(f"{statistics.median(each):.2f} s, at least {min(each):.2f} s: {source}")


if __name__ == "__main__":
    main()
