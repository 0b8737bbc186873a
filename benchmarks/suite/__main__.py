"""Compare Rhapsody with other systems: one table for each measure, in `benchmarks/results/`.

    nox -s benchmarks                             all measures except RADICAL-Pilot's
    nox -s benchmarks -- --only processes mixed   only these measures
    nox -s benchmarks -- --only radical           RADICAL-Pilot's measure
    nox -s benchmarks -- --plot                   no measures: write earlier results again

The other measures keep their tables if they come from the same kind of machine. `--smoke` checks
with tiny sizes that everything runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.suite import rounds, tables
from benchmarks.suite.measures import MEASURES

RESULTS = rounds.ROOT / "benchmarks/results"
PLOT = rounds.ROOT / "docs/explanation/performance.svg"


def machine() -> dict[str, Any]:
    """Return the properties that identify this kind of machine."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the measures, print their tables and store them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(MEASURES),
        metavar="MEASURE",
        help=f"run only these of {', '.join(MEASURES)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=40.0, help="time limit of a case in seconds")
    parser.add_argument("--plot", action="store_true", help="only write and plot earlier results")
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # with children
    path = RESULTS / "suite.json"
    report = json.loads(path.read_text()) if path.exists() else {"measures": {}}
    names = options.only or [name for name, measure in MEASURES.items() if not measure.slow]
    if options.smoke:
        smoke(names)
        return
    if not options.plot:
        if report.get("machine") != machine():  # results cannot be compared
            report = {"machine": machine(), "measures": {}}
        for name in names:
            found = asdict(rounds.run(name, options.rounds, options.limit, smoke=False))
            report["measures"][name] = found
            print("\n".join(["", *tables.section(name, MEASURES[name], found)]), flush=True)
            path.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(tables.summary(report)))
    (RESULTS / "suite.md").write_text(tables.document(report))
    from benchmarks.suite import plot

    plot.draw(report, PLOT)


def smoke(names: list[str]) -> None:
    """Run measures once with tiny sizes.

    Raises:
        SystemExit: An installed contestant failed.
    """
    report: dict[str, Any] = {"machine": machine(), "measures": {}}
    report["measures"] = {name: asdict(rounds.run(name, 1, 10, smoke=True)) for name in names}
    print(tables.document(report))
    failed = [
        f"{name}: {who}: {text}"
        for name, found in report["measures"].items()
        for who, texts in found["notes"].items()
        for text in texts
        if not text.endswith("is not installed")
    ]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
