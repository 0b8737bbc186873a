"""Random graphs with misfortunes, seed after seed.

    python -m tests.system.chaos --backend processes --tasks 2000 --seeds 500

Prints a line for each seed. The first seed that fails ends it with exit code 1, what went wrong
and the command that runs that seed alone. With `--done FILE` it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.system.chaos.seeds import MODES, Seed, WrongError, run_seed


def main() -> int:
    """Runs the seeds."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__)
    parser.add_argument("--backend", choices=[*MODES], default="threads")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument(
        "--mode",
        default="",
        help="faults, instead of those that each seed selects: plain, killed, scheduler, or some "
        "of 'workers reports disk shutdown' at once",
    )
    parser.add_argument("--done", type=Path, help="where finished seeds are noted, and left out")
    given = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)  # programs here are to have it
    done = set(given.done.read_text().splitlines()) if given.done and given.done.exists() else set()
    for number in range(given.first, given.first + given.seeds):
        seed = Seed(given.backend, number, given.tasks, given.mode)
        name = f"{seed.backend} {seed.number} {seed.tasks} {seed.mode}"
        if name in done:
            continue
        try:
            print(f"{seed.backend} seed {number}: {run_seed(seed)}", flush=True)
        except WrongError as error:
            print(f"{seed.backend} seed {number}: {seed.mode}, WRONG: {error}", flush=True)
            return 1
        if given.done:
            with open(given.done, "a") as file:
                file.write(f"{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
