"""Runs random histories of the scheduler, and prints the seed of each that breaks an invariant.

    python -m tests._support.world.histories [--count 10000000] [--first 0]

A seed is run again by `tests._support.world.world.history(SEED)`.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from tests._support.world.world import history

CHUNK = 10_000


def broken(first: int, count: int) -> list[str]:
    """Return the violations in the histories of some seeds, each with its seed."""
    found = []
    for seed in range(first, first + count):
        try:
            history(seed)
        except Exception as error:  # of the scheduler: report any with its seed
            found.append(f"seed {seed}: {error!r}")
    return found


def main() -> int:
    """Runs the requested number of histories, on all processors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    firsts = range(given.first, given.first + given.count, CHUNK)
    total = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(broken, firsts, [CHUNK] * len(firsts)), 1):
            total += len(found)
            for line in found:
                print(line, flush=True)
            if done % 100 == 0:
                print(f"{done * CHUNK} histories", file=sys.stderr, flush=True)
    print(f"{total} of {len(firsts) * CHUNK} histories broke an invariant")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
