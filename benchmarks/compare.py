"""Compare the processor time of two commits.

Runs the workloads of `benchmarks/cpu.py`, as they are in this checkout, with the packages of each
commit, which are installed with their dependencies in a new environment. Every run is a new
process, and the runs form pairs: A B, B A, A B, ... The runs of a pair follow each other directly,
so that changes in the load of the machine affect both. Measures the processor time of all our
processes, not wall-clock time. For each measurement, prints the medians in microseconds per task,
the median of the ratios B / A, and an interval that contains the true median with a probability of
at least 90 %, computed from the order of the ratios.

    python benchmarks/compare.py 8f69be6 HEAD [--pairs 15] [--only engine workers programs]

A missing commit means the working tree and this environment. The RAPTOR part starts a pilot on this
machine for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
FOLDER = ROOT / "benchmarks"
if __name__ == "__main__":  # dask.py in this folder would hide Dask itself
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each).absolute() != FOLDER)]

from benchmarks.checkouts import checkout, measured  # noqa: E402

PARTS = {
    "engine": "core", "workers": "core", "programs": "core", "journal": "core", "start": "core",
    "dask": "dask", "raptor": "radical",
}  # fmt: skip
"""Parts of the comparison, and the packages that they need."""

LIMIT = 1.05
"""The highest acceptable ratio B / A."""

LEVEL = 0.9

Pair = tuple[dict[str, float], dict[str, float]]
"""Costs of both commits, by measurement."""


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Return the narrowest interval between two of the values with a given confidence.

    It contains the median of the distribution of the values, whatever that distribution is.

    Args:
        values: The sample.
        level: The required confidence.

    Returns:
        The ends and the actual confidence, which is lower than `level` for a small sample.
    """
    ordered, outside, rank = sorted(values), 2 * 0.5 ** len(values), 0
    while rank + 1 < len(ordered) / 2:
        more = outside + 2 * math.comb(len(ordered), rank + 1) * 0.5 ** len(ordered)
        if more > 1 - level:
            break
        outside, rank = more, rank + 1
    return ordered[rank], ordered[-1 - rank], max(0.0, 1 - outside)


def verdict(low: float, high: float, sure: float) -> str:
    """Compare an interval of ratios with the limit, and describe the result."""
    if sure < LEVEL:
        return "too few pairs"
    if high <= LIMIT:
        return "better" if high < 1 else "within the limit"
    return f"OVER {LIMIT}" if low > LIMIT else "unclear: more pairs"


def report(part: str, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Print and return the results of one part."""
    found = {}
    for name in pairs[0][0]:
        first, second = ([side[name] for side in sides] for sides in zip(*pairs, strict=True))
        ratios = [b / a for a, b in zip(first, second, strict=True)]
        low, high, sure = interval(ratios)
        figures = {
            "a": statistics.median(first),
            "b": statistics.median(second),
            "ratio": statistics.median(ratios),
            "low": low,
            "high": high,
            "sure": sure,
        }
        print(
            f"{part:8} {name:34} {figures['a']:9.1f} {figures['b']:9.1f} us"
            f"  {figures['ratio']:.3f} [{low:.3f}, {high:.3f}]  {verdict(low, high, sure)}",
            flush=True,
        )
        found[name] = figures
    return found


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("a", nargs="?", help="a revision; default: the working tree")
    parser.add_argument("b", nargs="?", help="another revision; default: the working tree")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3, help="rounds per run (median)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--smoke", action="store_true", help="run one tiny pair of the engine part")
    options = parser.parse_args()
    more = ["--rounds", str(options.rounds)]
    if options.smoke:
        options.pairs, options.only, more = 1, ["engine"], ["--smoke"]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.pairs} pairs")
    print(f"A: {options.a or 'here'}, B: {options.b or 'here'}; at least 90 % intervals")
    reports, figures = {}, {}
    with contextlib.ExitStack() as stack:
        needed = sorted({"core", *(PARTS[part] for part in options.only)})
        places = [stack.enter_context(checkout(each, needed)) for each in (options.a, options.b)]
        for part in options.only:
            pairs: list[Pair] = []
            for number in range(options.pairs):
                turn = [0, 1] if number % 2 == 0 else [1, 0]
                took = {
                    side: measured(places[side], "benchmarks.cpu", part, *more) for side in turn
                }
                pairs.append((took[0], took[1]))
                print(f"{part}: pair {number + 1} of {options.pairs}", file=sys.stderr)
            reports[part], figures[part] = report(part, pairs), pairs
    _, _, sure = interval([0.0] * options.pairs)
    print(f"the intervals are {100 * sure:.0f} % sure")
    if options.json:
        Path(options.json).write_text(json.dumps({"report": reports, "pairs": figures}, indent=1))


if __name__ == "__main__":
    main()
