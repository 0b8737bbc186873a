"""Compare the costs of programs on the local backend with `subprocess.run` and `os.posix_spawn`.

Prints the microseconds per program for `/bin/true` as a list, for `/bin/true` as a shell command,
and for a shell command that writes a file, with the ratios to `subprocess.run`. All contestants
take turns in one run, so that other load affects all of them. Costs and ratios are medians of all
rounds. Each contestant runs two programs at a time.

    python benchmarks/programs.py [--size 1000] [--rounds 5] [--only list ...] [--smoke]

Rhapsody creates a directory with a file for each output of a program, which `subprocess.run` does
not. One contestant only creates these directories. They cost almost nothing in memory
(`--directory /dev/shm`). On ext4 without a journal, they can cost more than the program if many
files were removed in the last minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rhapsody import LocalExecutionBackend, OutputFile, WorkflowEngine
from rhapsody.data import OUTPUT_FILES

CORES = 2
LIST = ["/bin/true"]
SHELL = "/bin/true"
WRITES = "echo 1 > out.txt"

Contest = Callable[[int], Coroutine[Any, Any, float] | float]
"""Function that runs a number of programs and returns the seconds it took."""


async def ours(
    size: int, *, command: Any, file: bool = False, shell: Sequence[str] | None = None
) -> float:
    """Run executable tasks on the local backend, strings in bash or another shell."""
    backend = LocalExecutionBackend(resources={"cores": CORES})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        @flow.executable_task(shell=shell)
        async def program(*_: Any) -> Any:
            return command

        arguments = (OutputFile("out.txt"),) if file else ()
        await asyncio.gather(*[program(*arguments) for _ in range(2 * CORES)])
        start = time.perf_counter()
        await asyncio.gather(*[program(*arguments) for _ in range(size)])
        return time.perf_counter() - start


def run_in_threads(size: int, *, command: Any, file: bool = False) -> float:
    """Run `subprocess.run` on two threads, with a directory for each program that writes a file."""
    shell = isinstance(command, str)

    def run(number: int) -> None:
        place = None
        if file:
            place = os.path.join(top, str(number))
            os.mkdir(place)
        subprocess.run(command, shell=shell, capture_output=True, check=True, cwd=place)

    with tempfile.TemporaryDirectory(dir=".") as top, ThreadPoolExecutor(CORES) as pool:
        list(pool.map(run, range(-2 * CORES, 0)))
        start = time.perf_counter()
        list(pool.map(run, range(size)))
        return time.perf_counter() - start


async def on_loop(size: int, *, start: Callable[[int], tuple[int, Callable[[], object]]]) -> float:
    """Start programs with `start`, and watch their pidfds on the event loop."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left, running = size, 0

    def begin() -> None:
        nonlocal left, running
        left, running = left - 1, running + 1
        pid, finish = start(left)
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, ended, finish, descriptor)

    def ended(finish: Callable[[], object], descriptor: int) -> None:
        nonlocal running
        loop.remove_reader(descriptor)
        os.close(descriptor)
        finish()
        running -= 1
        if left:
            begin()
        elif not running:
            over.set_result(None)

    began = time.perf_counter()
    for _ in range(min(CORES, size)):
        begin()
    await over
    return time.perf_counter() - began


def spawned(number: int) -> tuple[int, Callable[[], object]]:
    """Start a program with `os.posix_spawn`, without a directory or files for its output."""
    pid = os.posix_spawn(LIST[0], LIST, os.environ)
    return pid, partial(os.waitpid, pid, 0)


async def popen_on_loop(size: int) -> float:
    """Run `subprocess.Popen` with the session, variables, directory and files of Rhapsody."""
    with tempfile.TemporaryDirectory(dir=".") as top:

        def popen(number: int) -> tuple[int, Callable[[], object]]:
            place = os.path.join(top, str(number))
            os.mkdir(place)
            flags = os.O_RDWR | os.O_CREAT
            out, errors = (os.open(f"{place}/{name}", flags, 0o600) for name in OUTPUT_FILES)
            process = subprocess.Popen(
                LIST,
                cwd=place,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )

            def finish() -> None:
                process.wait()
                for descriptor in (out, errors):
                    os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                    os.close(descriptor)

            return process.pid, finish

        return await on_loop(size, start=popen)


def spawn_and_wait(size: int, *, command: list[str]) -> float:
    """Run `os.posix_spawn` and `os.wait` alone, with two programs at a time."""
    start = time.perf_counter()
    for number in range(size):
        os.posix_spawn(command[0], command, os.environ)
        if number >= CORES - 1:
            os.wait()
    for _ in range(min(CORES - 1, size)):
        os.wait()
    return time.perf_counter() - start


def sandboxes(size: int) -> float:
    """Create and remove the directories and files of Rhapsody's programs, one after the other."""
    with tempfile.TemporaryDirectory(dir=".") as top:
        start = time.perf_counter()
        for number in range(size):
            place = os.path.join(top, str(number))
            os.mkdir(place)
            for name in OUTPUT_FILES:
                os.close(os.open(os.path.join(place, name), os.O_RDWR | os.O_CREAT, 0o600))
            shutil.rmtree(place)
        return time.perf_counter() - start


MEASURES: dict[str, dict[str, Contest]] = {
    "list": {
        "rhapsody": partial(ours, command=LIST),
        "subprocess.run": partial(run_in_threads, command=LIST),
        "posix_spawn, loop": partial(on_loop, start=spawned),
        "Popen as ours, loop": popen_on_loop,
        "posix_spawn, wait": partial(spawn_and_wait, command=LIST),
        "sandboxes alone": sandboxes,
    },
    "shell": {
        "rhapsody": partial(ours, command=SHELL),
        "rhapsody, sh": partial(ours, command=SHELL, shell=["/bin/sh", "-c"]),
        "subprocess.run": partial(run_in_threads, command=SHELL),
    },
    "file": {
        "rhapsody": partial(ours, command=WRITES, file=True),
        "rhapsody, sh": partial(ours, command=WRITES, file=True, shell=["/bin/sh", "-c"]),
        "subprocess.run": partial(run_in_threads, command=WRITES, file=True),
    },
}
"""The contestants of each measure."""

if not hasattr(os, "pidfd_open"):
    del MEASURES["list"]["posix_spawn, loop"], MEASURES["list"]["Popen as ours, loop"]


@contextlib.contextmanager
def own_directory(place: str | None = None) -> Iterator[None]:
    """Change to a temporary directory in the context."""
    former = os.getcwd()
    with tempfile.TemporaryDirectory(dir=place) as directory:
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(former)


def measure(contests: dict[str, Contest], size: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per program of each contestant and round, measured in turns."""
    costs: dict[str, list[float]] = {name: [] for name in contests}
    for _ in range(rounds):
        for name, contest in contests.items():
            seconds = contest(size)
            if not isinstance(seconds, float):
                seconds = asyncio.run(seconds)
            costs[name].append(seconds / size * 1e6)
    return costs


def main() -> None:
    """Run the measurements and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--directory", help="parent of the sandboxes; default: TMPDIR")
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    size = 20 if options.smoke else options.size
    rounds = 1 if options.smoke else options.rounds
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {size} programs, {CORES} at "
        f"once, {rounds} rounds"
    )
    figures = {}
    with own_directory(options.directory):
        for name in options.only:
            figures[name] = costs = measure(MEASURES[name], size, rounds)
            print(f"\n{name}: µs per program, median (lowest to highest), ratio to subprocess.run")
            for who, each in costs.items():
                ratios = [a / b for a, b in zip(each, costs["subprocess.run"], strict=True)]
                spread = f"({min(each):.0f} to {max(each):.0f})"
                print(
                    f"  {who:20} {statistics.median(each):8.0f} {spread:>16} "
                    f"{statistics.median(ratios):6.2f}"
                )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
