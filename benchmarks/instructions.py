"""Count the engine's instructions per task at two commits, using Valgrind's callgrind.

On a machine with other load, the processor time of a program varies by 20 % between runs. The
number of instructions varies by only 0.1 %, except with threads that look for work before they
sleep. Instructions are those of the interpreter and do not reflect caches, so fewer instructions
are not always faster. Each figure is the difference between a run with many tasks and one with few,
divided by the difference in tasks.

    python benchmarks/instructions.py 8f69be6 HEAD [--only fan chain]

Each task of "tangle" depends on fifty random earlier ones.

A missing commit means the working tree. Requires `valgrind`, and takes two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
FOLDER = ROOT / "benchmarks"
if __name__ == "__main__":  # dask.py in this folder would hide Dask itself
    sys.path[:] = [*(each for each in sys.path if Path(each).absolute() != FOLDER), str(ROOT)]

FEW, MANY = 100, 600
PARENTS = 50
WORK = ("fan", "chain", "tangle", "threads", "processes", "coroutines", "recorded", "reused")


async def recorded(size: int, directory: str, *, resume: bool) -> None:
    """Run a fan of no-ops with two small arguments and a journal."""
    from rhapsody import NoopExecutionBackend, WorkflowEngine

    backend = NoopExecutionBackend()
    backend.dry = False  # placeholders of dry backends are not recorded
    async with WorkflowEngine.create(
        backend,
        handle_signals=False,
        work_dir=f"{directory}/work",
        journal=f"{directory}/journal.sqlite",
        resume=resume,
    ) as flow:

        @flow.function_task
        def nothing(number: int, name: str) -> None: ...

        await asyncio.gather(*(nothing(number, "name") for number in range(size)))


async def work(name: str, size: int) -> None:
    """Run one of the workloads.

    "fan", "chain" and "tangle" run no-ops on the noop backend. "threads", "processes" and
    "coroutines" are chains on the local backend. "recorded" is a fan with a journal, and "reused"
    runs it a second time with the same journal.
    """
    if name in ("recorded", "reused"):
        with tempfile.TemporaryDirectory() as directory:
            await recorded(size, directory, resume=False)
            if name == "reused":
                await recorded(size, directory, resume=True)
        return
    from rhapsody import LocalExecutionBackend, NoopExecutionBackend, WorkflowEngine

    backend: Any = NoopExecutionBackend()
    if name not in ("fan", "chain", "tangle"):
        backend = LocalExecutionBackend("process" if name == "processes" else "thread")
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        async def same_async(x: object) -> object:
            return x

        def same(x: object, *_: object) -> object:
            return x

        plain = name in ("threads", "processes", "tangle")
        task = flow.function_task(same if plain else same_async)
        if name == "fan":
            await asyncio.gather(*(task(number) for number in range(size)))
            return
        if name == "tangle":
            draw, futures = random.Random(0), [task(number) for number in range(PARENTS)]
            for _ in range(size):
                futures.append(task(*draw.sample(futures, PARENTS)))
            await asyncio.gather(*futures)
            return
        last: object = 0
        for _ in range(size):
            last = task(last)
        await last  # type: ignore[misc]


def instructions(place: Path, name: str, size: int) -> int:
    """Count the instructions of a process that runs a workload with the packages of a checkout.

    Raises:
        SystemExit: The process failed; the message ends with its output.
    """
    from benchmarks.checkouts import interpreter, variables

    environment = {**variables(place), "PYTHONHASHSEED": "0"}
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [interpreter(place), __file__, "--work", name, str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(found[1])


def main() -> None:
    """Count the instructions and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("a", nargs="?", help="a revision; default: the working tree")
    parser.add_argument("b", nargs="?", help="another revision; default: the working tree")
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--work", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="run tiny workloads without counting")
    options = parser.parse_args()
    if options.smoke:
        for name in options.only:
            asyncio.run(work(name, 5))
        return
    if options.work:
        gc.disable()  # it would run at different points in each run
        asyncio.run(work(options.work[0], int(options.work[1])))
        return
    from benchmarks.checkouts import checkout

    titles = [options.a or "here", options.b or "here"]
    print(f"{'instructions per task':24} {titles[0]:>12.12} {titles[1]:>12.12}  B / A")
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(checkout(each)) for each in (options.a, options.b)]
        for name in options.only:
            a, b = (
                (instructions(place, name, MANY) - instructions(place, name, FEW)) / (MANY - FEW)
                for place in places
            )
            print(f"{name:24} {a:12,.0f} {b:12,.0f}  {b / a:.3f}", flush=True)


if __name__ == "__main__":
    main()
