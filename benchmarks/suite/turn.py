"""One contestant's turn, in a process of its own: `python -m benchmarks.suite.turn MEASURE N`.

Prints a line of JSON for each figure as soon as it is there, so that a turn that is ended for
taking too long has shown what it found before. A case that would take longer than the limit, by
what a twentieth of it takes, is left out.
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
"""Seconds that a case is repeated for, at most `TIMES`."""

TIMES = 9


def say(column: str, values: list[float]) -> None:
    """Prints what was found."""
    print(json.dumps({"column": column, "values": values}), flush=True)


async def take(
    contestant: type[Contestant], cases: Sequence[Case], limit: float, began: float
) -> None:
    """Starts the system, and does all that it can do in time."""
    pace: dict[str, float] = {}
    async with contestant.running() as system:
        await system.run(graphs.fan(1))
        if not cases:
            say("first result", [time.monotonic() - began])
        await system.run(graphs.fan(2 * SLOTS))
        for case in cases:
            if case.linear and case.kind not in pace:  # what is done first also warms up
                gc.collect()  # of what the case before has left
                few, start = max(case.size // 20, min(case.size, 10)), time.perf_counter()
                await case.run(system, few)
                pace[case.kind] = (time.perf_counter() - start) / few
            if case.linear and pace[case.kind] * case.size > limit:
                print(json.dumps({"skipped": f"{case.kind} {case.size:,}"}), flush=True)
                continue
            pace[case.kind] = await repeated(system, case)


async def repeated(system: Contestant, case: Case) -> float:
    """Does a case, again while it is quick; returns the seconds for each of its size."""
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
        "contestant", type=int, help="its number; 0 if the measure has one contestant"
    )
    parser.add_argument("--began", type=float, default=time.monotonic())
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for a case")
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
