"""What a program costs on the local backend, beside `subprocess.run` and `os.posix_spawn`.

Prints microseconds per program for `/bin/true` given as a list and as a string for the shell,
and for one that writes a file, then the ratios that the budgets name. All contestants
take turns in one run, so that a noisy machine hurts each of them; the median of the rounds
counts. Everybody has two programs running at once.

    python benchmarks/programs.py [--size 1000] [--rounds 5] [--only list ...] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rhapsody import LocalExecutionBackend, OutputFile, WorkflowEngine

CORES = 2
LIST = ["/bin/true"]
SHELL = "/bin/true"
WRITES = "echo 1 > out.txt"

Contest = Callable[[int], Awaitable[float]]
"""Runs a number of programs and returns the seconds it took."""


async def ours(size: int, *, command: Any, file: bool = False) -> float:
    """Our engine on the local backend, every future held."""
    backend = LocalExecutionBackend(resources={"cores": CORES})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        @flow.executable_task
        async def program(*_: Any) -> Any:
            return command

        arguments = (OutputFile("out.txt"),) if file else ()
        await asyncio.gather(*[program(*arguments) for _ in range(2 * CORES)])
        start = time.perf_counter()
        await asyncio.gather(*[program(*arguments) for _ in range(size)])
        return time.perf_counter() - start


async def run_in_threads(size: int, *, command: Any, file: bool = False) -> float:
    """`subprocess.run` on two threads; with a directory for each where it writes a file."""
    shell = isinstance(command, str)

    def run(number: int) -> None:
        place = None
        if file:
            place = os.path.join(top, str(number))
            os.mkdir(place)
        subprocess.run(command, shell=shell, capture_output=True, check=True, cwd=place)

    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(CORES) as pool:
        list(pool.map(run, range(-2 * CORES, 0)))
        start = time.perf_counter()
        list(pool.map(run, range(size)))
        return time.perf_counter() - start


async def spawn_on_loop(size: int, *, command: list[str]) -> float:
    """`os.posix_spawn`, and a pidfd for each that the loop watches: no output, no directory."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left, running = size, 0

    def begin() -> None:
        nonlocal left, running
        left, running = left - 1, running + 1
        pid = os.posix_spawn(command[0], command, os.environ)
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, ended, pid, descriptor)

    def ended(pid: int, descriptor: int) -> None:
        nonlocal running
        loop.remove_reader(descriptor)
        os.close(descriptor)
        os.waitpid(pid, 0)
        running -= 1
        if left:
            begin()
        elif not running:
            over.set_result(None)

    start = time.perf_counter()
    for _ in range(min(CORES, size)):
        begin()
    await over
    return time.perf_counter() - start


def vfork_and_wait(size: int, *, command: list[str]) -> float:
    """`os.posix_spawn` and `os.waitpid` with two at once and nothing else: the system's limit."""
    start = time.perf_counter()
    for number in range(size):
        os.posix_spawn(command[0], command, os.environ)
        if number >= CORES - 1:
            os.wait()
    for _ in range(min(CORES - 1, size)):
        os.wait()
    return time.perf_counter() - start


async def bare(size: int, *, command: list[str]) -> float:
    """`vfork_and_wait`, as a contest."""
    return vfork_and_wait(size, command=command)


MEASURES: dict[str, dict[str, Contest]] = {
    "list": {
        "rhapsody": partial(ours, command=LIST),
        "subprocess.run": partial(run_in_threads, command=LIST),
        "posix_spawn, loop": partial(spawn_on_loop, command=LIST),
        "posix_spawn, wait": partial(bare, command=LIST),
    },
    "shell": {
        "rhapsody": partial(ours, command=SHELL),
        "subprocess.run": partial(run_in_threads, command=SHELL),
    },
    "file": {
        "rhapsody": partial(ours, command=WRITES, file=True),
        "subprocess.run": partial(run_in_threads, command=WRITES, file=True),
    },
}
"""The contestants of each measure."""


@contextlib.contextmanager
def own_directory() -> Iterator[None]:
    """Lets the run's files be made in a directory that goes afterwards."""
    former = os.getcwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(former)


def measure(contests: dict[str, Contest], size: int, rounds: int) -> dict[str, list[float]]:
    """The microseconds per program of each contestant in each round; they take turns."""
    costs: dict[str, list[float]] = {name: [] for name in contests}
    for _ in range(rounds):
        for name, contest in contests.items():
            seconds: float = asyncio.run(contest(size))  # type: ignore[arg-type]
            costs[name].append(seconds / size * 1e6)
    return costs


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    size = 20 if options.smoke else options.size
    rounds = 1 if options.smoke else options.rounds
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {size} programs, {CORES} at "
        f"once, {rounds} rounds"
    )
    figures = {}
    with own_directory():
        for name in options.only:
            figures[name] = costs = measure(MEASURES[name], size, rounds)
            floor = statistics.median(costs["subprocess.run"])
            print(f"\n{name}: µs per program, median (least to most), ratio to subprocess.run")
            for who, each in costs.items():
                middle = statistics.median(each)
                spread = f"({min(each):.0f} to {max(each):.0f})"
                print(f"  {who:20} {middle:8.0f} {spread:>16} {middle / floor:6.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
