"""One contestant's turn, run as a process: `python -m benchmarks.suite.turn MEASURE N`.

Prints each figure as a line of JSON as soon as it is known, so that figures remain if the turn is
killed after its deadline. Skips each case that would exceed the time limit, judged by a run with a
twentieth of its size.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.suite import graphs
from benchmarks.suite.cases import Case
from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.measures import MEASURES

QUICK = 0.3
"""Cases are repeated until they have taken this many seconds."""

TIMES = 9
"""Maximum number of repetitions."""


def say(column: str, values: list[float]) -> None:
    """Print a figure."""
    print(json.dumps({"column": column, "values": values}), flush=True)


async def take(
    contestant: type[Contestant], cases: Sequence[Case], limit: float, began: float
) -> None:
    """Start the system, and run the cases within the time limit."""
    pace: dict[str, float] = {}
    async with contestant.running() as system:
        await system.run(graphs.fan(1))
        if not cases:
            say("first result", [time.monotonic() - began])
        await system.run(graphs.fan(2 * SLOTS))
        for case in cases:
            if case.linear and case.kind not in pace:  # also a warm-up
                gc.collect()  # objects of the previous case
                few, start = max(case.size // 20, min(case.size, 10)), time.perf_counter()
                await case.run(system, few)
                pace[case.kind] = (time.perf_counter() - start) / few
            if case.linear and pace[case.kind] * case.size > limit:
                print(json.dumps({"skipped": f"{case.kind} {case.size:,}"}), flush=True)
                continue
            pace[case.kind] = await repeated(system, case)


async def repeated(system: Contestant, case: Case) -> float:
    """Run a case, repeatedly if it is short; return the seconds per unit of its size."""
    found: dict[str, list[float]] = {}
    times, took, begin = 0, 0.0, time.perf_counter()
    while not times or (case.linear and took < QUICK and times < TIMES):
        for column, value in (await case.run(system, case.size)).items():
            found.setdefault(column, []).append(value)
        times, took = times + 1, time.perf_counter() - begin
    for column, values in found.items():
        say(column, [statistics.median(values)])
    return took / times / case.size


def main() -> None:
    """Take the turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("measure", choices=list(MEASURES))
    parser.add_argument(
        "contestant", type=int, help="index in the measure; 0 if `whole` measures all"
    )
    parser.add_argument("--began", type=float, default=time.monotonic())
    parser.add_argument("--limit", type=float, default=20.0, help="time limit of a case in seconds")
    parser.add_argument("--graphs", type=Path, default=Path())
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    measure = MEASURES[options.measure]
    if measure.whole is not None:
        for name, column, values in measure.whole(options.smoke):
            print(json.dumps({"contestant": name, "column": column, "values": values}), flush=True)
        return
    contestant = measure.contestants[options.contestant]
    cases = measure.cases(options.smoke, options.graphs)
    asyncio.run(take(contestant, cases, options.limit, options.began))


if __name__ == "__main__":
    main()
