"""Runs tens of thousands of tasks of every kind, with faults, and checks each outcome.

`python -m tests.soak [--tasks N] [--rounds N] [--seed S] [threads|processes|dask ...]` makes a
random graph on each backend: functions, coroutines, programs and blocks, of which some fail, are
cancelled, take too long or kill their worker; now and then all workers are killed at once. What
becomes of each task is known beforehand.
It prints a line for each round, and exits with 1 where an outcome was wrong, something hung, or a
process, descriptor, thread or file was left.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody.errors import DependencyFailureError, TaskTimeoutError

WINDOW = 500
"""Tasks that are open at once, about."""

HANG = 300.0
"""Seconds within which an open task must end."""

KILL_ALL = 2000
"""Tasks after which all workers are killed at once."""

MODULUS = 1_000_003

KINDS = {
    "function": 700,
    "coroutine": 130,
    "fails": 40,
    "flaky": 40,
    "program": 30,
    "failing program": 10,
    "block": 20,
    "too long": 5,
    "kills": 5,
}
"""How many of a thousand tasks there are of each kind, about."""


@dataclass
class Made:
    """One call, and what is known of it."""

    kind: str
    number: int
    dependencies: list[Made]
    future: Any = None
    cancelled: bool = False
    outcome: Any = field(default=None)

    def expected(self) -> Any:
        """Return its value, or the type of its exception."""
        ends = [each.outcome for each in self.dependencies]
        if self.cancelled or asyncio.CancelledError in ends:
            return asyncio.CancelledError
        if any(isinstance(each, type) for each in ends):
            return DependencyFailureError
        wrong = {"fails": ValueError, "failing program": RuntimeError, "too long": TaskTimeoutError}
        return wrong.get(self.kind, (sum(ends) + self.number) % MODULUS)


def tasks(flow: WorkflowEngine, marks: str, *, kill: bool) -> dict[str, Any]:
    """Define a task of each kind."""

    @flow.function_task
    def function(number: int, *values: int) -> int:
        return (sum(values) + number) % MODULUS

    @flow.function_task
    async def coroutine(number: int, *values: int) -> int:
        await asyncio.sleep(0)
        return (sum(values) + number) % MODULUS

    @flow.function_task
    def fails(number: int, *values: int) -> int:
        raise ValueError(f"bad {number}")

    @flow.function_task(retries=1)
    def flaky(number: int, *values: int) -> int:
        try:
            open(f"{marks}/flaky.{number}", "x").close()
        except FileExistsError:
            return (sum(values) + number) % MODULUS
        raise OSError("try again")

    @flow.executable_task
    def program(number: int, *values: int) -> list[str]:
        return ["printf", "%d", str((sum(values) + number) % MODULUS)]

    @flow.executable_task
    def failing_program(number: int, *values: int) -> str:
        return f"echo {number}; exit 3"

    @flow.block
    async def block(number: int, *values: int) -> int:
        first: Any = function(number, *values)
        return int(await function(0, first))

    @flow.function_task(timeout=0.2)
    async def too_long(number: int, *values: int) -> int:
        await asyncio.sleep(3600)
        return number

    @flow.function_task(lost_retries=20)
    def kills(number: int, *values: int) -> int:
        try:
            open(f"{marks}/kills.{number}", "x").close()
        except FileExistsError:
            return (sum(values) + number) % MODULUS
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    return {
        "function": function,
        "coroutine": coroutine,
        "fails": fails,
        "flaky": flaky,
        "program": program,
        "failing program": failing_program,
        "block": block,
        "too long": too_long,
        "kills": kills if kill else function,
    }


def backend_of(name: str) -> Any:
    if name == "threads":
        return LocalExecutionBackend(resources={"cores": 4})
    if name == "processes":
        return LocalExecutionBackend("process", resources={"cores": 2})
    from rhapsody_dask import DaskExecutionBackend

    return DaskExecutionBackend({"n_workers": 2, "threads": 2, "memory_limit": "1 GiB"})


async def end_of(made: Made) -> str | None:
    """Wait for a task's end, and return what is wrong about it."""
    _, late = await asyncio.wait([made.future], timeout=HANG)
    expected = made.outcome = made.expected()
    if late:
        return f"hangs: {made.future!r}"
    if made.future.cancelled():
        found: Any = asyncio.CancelledError
    elif (error := made.future.exception()) is not None:
        found = type(error)
        if isinstance(expected, type) and isinstance(error, expected):
            found = expected
    else:
        found = int(made.future.result())
    made.dependencies.clear()
    return None if found == expected else f"{made.future!r} is {found!r}, not {expected!r}"


async def kill_workers(pid: Any) -> None:
    """Kill all workers at once, or those that a few calls happened to run on."""
    for worker in set(await asyncio.gather(*(pid() for _ in range(20)))):
        with suppress(ProcessLookupError):  # another task was quicker
            os.kill(worker, signal.SIGKILL)


async def one_round(name: str, count: int, chance: random.Random, place: Path) -> Counter[str]:
    """Run one graph.

    Raises:
        AssertionError: Something ended as it should not, or did not end.
    """
    marks, wrong = place / "marks", []
    marks.mkdir(parents=True)
    kinds = chance.choices([*KINDS], [*KINDS.values()], k=count)
    ends: Counter[str] = Counter()
    async with WorkflowEngine.create(
        backend_of(name),
        work_dir=place / "work",
        keep_sandboxes="none",
        lost_retries=20,
        handle_signals=False,
    ) as flow:
        calls = tasks(flow, str(marks), kill=name != "threads")
        as_number: Any = flow.function_task(int)  # of what a program has printed
        pid: Any = flow.function_task(os.getpid)
        recent: list[Made] = []
        waiting = 0
        for number, kind in enumerate(kinds):
            # Not on those that end late: too long a wait for the others.
            able = [each for each in recent[-200:] if each.kind != "too long"]
            needed = min(len(able), chance.choice((0, 0, 0, 0, 1, 1, 1, 2, 2, 3)))
            made = Made(kind, number, chance.sample(able, needed))
            arguments = [
                as_number(each.future) if each.kind == "program" else each.future
                for each in made.dependencies
            ]
            made.future = calls[kind](number, *arguments)
            recent.append(made)
            if chance.random() < 0.01:
                other = chance.choice(recent[-50:])
                other.cancelled = other.future.cancel() or other.cancelled
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number % KILL_ALL == KILL_ALL - 1 and name != "threads":
                await kill_workers(pid)
            while len(recent) - waiting > WINDOW:
                wrong += [problem] if (problem := await end_of(recent[waiting])) else []
                ends[_named(recent[waiting].outcome)] += 1
                waiting += 1
            if waiting > 2000:
                del recent[:1000]
                waiting -= 1000
        for made in recent[waiting:]:
            wrong += [problem] if (problem := await end_of(made)) else []
            ends[_named(made.outcome)] += 1
        recent.clear()
    assert not wrong, f"{len(wrong)} wrong; first: {wrong[:3]}"
    return ends


def _named(outcome: Any) -> str:
    return outcome.__name__ if isinstance(outcome, type) else "done"


def left(place: Path) -> dict[str, int]:
    """Count what a round could leave behind."""
    gc.collect()
    me = psutil.Process()
    return {
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
        "threads": me.num_threads(),
        "files": sum(len(files) for _, _, files in os.walk(place))
        + len(list(Path(tempfile.gettempdir()).glob("rhapsody*"))),
    }


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("backends", nargs="*", default=["threads", "processes", "dask"])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    given = parser.parse_args()
    logging.getLogger("rhapsody").setLevel(logging.CRITICAL)  # of the failures that are meant
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    chance = random.Random(given.seed)
    print(f"seed {given.seed}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="rhapsody-soak-") as directory:
        for name in given.backends:
            # What is there once only, such as the server that forks worker processes.
            asyncio.run(one_round(name, 200, chance, Path(directory, name, "first")))
            before = left(Path(directory, name, "work"))
            for number in range(1, given.rounds + 1):
                began, place = time.monotonic(), Path(directory, name, str(number))
                try:
                    ends = asyncio.run(one_round(name, given.tasks, chance, place))
                    print(f"{name} {number}: {time.monotonic() - began:.0f} s, {dict(ends)}")
                except AssertionError as error:
                    failed = True
                    print(f"{name} {number}: {error}")
                more = {key: value - before[key] for key, value in left(place / "work").items()}
                print(f"{name} {number}: more than before: {more}", flush=True)
                failed = failed or more["processes"] > 0 or more["files"] > 0
                failed = failed or more["descriptors"] > 2 or more["threads"] > 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
