"""Compare the costs of the RADICAL-Pilot backend with those of RADICAL-Pilot alone ("by hand").

Runs 500 `/bin/true` executables in bulk, 500 no-op functions on RAPTOR, and 500 functions that
sleep for 1 ms, on `local.localhost`. Both contestants take turns on the same pilot, so that other
load affects both. "By hand" uses RADICAL-Pilot's own objects in the client process
(`run_in_client`), and for functions one of RAPTOR's own masters and workers, with the same number
of cores. It creates no private sandboxes, and removes nothing.

Prints seconds, tasks per second, the median ratio of the pairs, and the CPU time per task of this
process and of the client. Also prints the part of this process's CPU time that remains without
sandboxes and, for calls, without cloudpickle. These are measured separately during a turn by hand,
so that the machine is equally busy.

    python benchmarks/radical_pilot.py [--size 500] [--rounds 7] [--only short_calls] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend

BUDGETS = {"executables": 1.05, "functions": 0.5, "short_calls": 0.5}
"""Budgets for our time, as multiples of the time by hand."""

SHORT = 0.001
"""Seconds that a short call sleeps."""

CPU_BUDGET = 100.0
"""Budget for this process's CPU time per task, in microseconds, without sandboxes and pickling."""

CLIENT_BUDGET = 1.1
"""Budget for the CPU time of the client, as a multiple of that by hand."""

FILES = 7
"""Files that RADICAL-Pilot leaves in a sandbox: output, scripts and a profile."""

FUNCTION_CORES = 2
"""Cores of each RAPTOR worker; the pilot pretends to have 8."""

Contest = Callable[[int], Awaitable[None]]
Call = tuple[Callable[..., Any], tuple[Any, ...]]

NO_OP: Call = (int, ())
SLEEP: Call = (time.sleep, (SHORT,))


def no_op() -> None:
    """Do nothing."""


def sleep() -> None:
    """Sleep for a millisecond."""
    time.sleep(SHORT)


def start_raptor(objects: Any) -> str:
    """Start one of RAPTOR's own masters and workers, in the client."""
    import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

    (master,) = objects.task_manager.submit_raptors(rp.TaskDescription({"mode": rp.RAPTOR_MASTER}))
    words = {"mode": rp.RAPTOR_WORKER, "raptor_class": "DefaultWorker", "ranks": 1}
    master.submit_workers(rp.TaskDescription({**words, "cores_per_rank": FUNCTION_CORES}))
    return str(master.uid)


def by_hand(objects: Any, size: int, name: str, master: str | None, call: Call | None) -> None:
    """Run tasks in the client, as shown in RADICAL-Pilot's tutorials."""
    import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

    words: dict[str, Any] = {"executable": "/bin/true"}
    if call is not None:
        function = rp.PythonTask(*call, {})
        words = {"mode": rp.TASK_FUNCTION, "raptor_id": master, "function": function}
    descriptions = [rp.TaskDescription({**words, "uid": f"{name}.{n:06d}"}) for n in range(size)]
    tasks = objects.task_manager.submit_tasks(descriptions)
    states = objects.task_manager.wait_tasks([task.uid for task in tasks])
    assert set(states) == {"DONE"}, set(states)


def client_cpu(objects: Any) -> float:
    """Return the CPU time of the client so far, in seconds."""
    return time.process_time()


class Contests:
    """Both ways to run both kinds of task, on one pilot."""

    def __init__(self, backend: RadicalExecutionBackend, flow: WorkflowEngine) -> None:
        self._backend = backend
        self._sandboxes = flow.work_dir
        self._round = 0
        self._master: str | None = None

        @flow.executable_task
        async def true() -> list[str]:
            return ["/bin/true"]

        self._true, self._flow = true, flow

    async def our_executables(self, size: int) -> None:
        """Run executables through the engine, and wait until it has removed their sandboxes."""
        await asyncio.gather(*(self._true() for _ in range(size)))
        while any(os.scandir(self._sandboxes)):  # noqa: ASYNC110 - a thread does it silently
            await asyncio.sleep(0.01)

    async def our_calls(self, function: Callable[[], None], size: int) -> None:
        """Run calls through the engine."""
        call = self._flow.function_task(function)
        await asyncio.gather(*(call() for _ in range(size)))

    async def by_hand(self, call: Call | None, size: int) -> None:
        """Run executables or calls in the client."""
        if call is not None and self._master is None:
            self._master = await self._backend.run_in_client(start_raptor)
        master, self._round = None if call is None else self._master, self._round + 1
        await self._backend.run_in_client(by_hand, size, f"hand.{self._round}", master, call)


class Spent(NamedTuple):
    """Seconds of one turn.

    Attributes:
        wall: Wall-clock time.
        own: CPU time of this process.
        client: CPU time of the client.
        alone: CPU time of this process for the parts that are measured separately.
    """

    wall: float
    own: float
    client: float
    alone: float


async def measure(
    backend: RadicalExecutionBackend, contest: Contest, size: int, peer: Callable[[int], float]
) -> Spent:
    """Run a turn and, on a thread, the parts that are measured separately."""

    def timed() -> tuple[float, float]:
        began = time.thread_time()
        return peer(size), time.thread_time() - began

    before = await backend.run_in_client(client_cpu)
    wall, own = time.perf_counter(), time.process_time()
    _, (alone, thread) = await asyncio.gather(contest(size), asyncio.to_thread(timed))
    wall, own = time.perf_counter() - wall, time.process_time() - own
    client = await backend.run_in_client(client_cpu) - before
    return Spent(wall, own - thread, client, alone)


def nothing_alone(size: int) -> float:
    """Do nothing."""
    return 0.0


def sandboxes_alone(size: int) -> float:
    """Return the CPU time for creating, linking and removing sandboxes with files, in seconds."""
    spent = 0.0
    with tempfile.TemporaryDirectory() as directory:
        root, links = os.path.join(directory, "alone"), os.path.join(directory, "links")
        os.mkdir(root)
        os.mkdir(links)
        for number in range(size):
            sandbox = os.path.join(root, str(number))
            began = time.thread_time()
            os.mkdir(sandbox)
            os.symlink(sandbox, os.path.join(links, str(number)))
            spent += time.thread_time() - began
            for name in range(FILES):
                Path(sandbox, f"{name}").touch()
        began = time.thread_time()
        for number in range(size):
            shutil.rmtree(os.path.join(root, str(number)))
        return spent + time.thread_time() - began


def pickling_alone(size: int) -> float:
    """Return the CPU time for pickling as many calls and unpickling as many replies, in seconds."""
    call: Any = (no_op, (), {})
    reply = cloudpickle.dumps(None)
    began = time.thread_time()
    for _ in range(size):
        cloudpickle.dumps(call)
        cloudpickle.loads(reply)
    return time.thread_time() - began


async def run(size: int, rounds: int, directory: str, only: str | None = None) -> dict[str, Any]:
    """Run all contests, or only one, in turns."""
    backend = RadicalExecutionBackend(
        {"resource": "local.localhost", "cores": os.cpu_count() or 1, "runtime": 60},
        work_dir=directory,
        function_cores=FUNCTION_CORES,
    )
    report: dict[str, Any] = {"size": size, "rounds": rounds}
    async with WorkflowEngine.create(
        backend, work_dir=os.path.join(directory, "flow"), handle_signals=False
    ) as flow:
        contests = Contests(backend, flow)
        pairs: dict[str, tuple[Contest, Contest, Callable[[int], float]]] = {
            "executables": (
                contests.our_executables, partial(contests.by_hand, None), sandboxes_alone,
            ),
        }  # fmt: skip
        for name, function, call in (("functions", no_op, NO_OP), ("short_calls", sleep, SLEEP)):
            made = partial(contests.our_calls, function), partial(contests.by_hand, call)
            pairs[name] = *made, pickling_alone
        for name, (ours, hand, alone) in pairs.items():
            if only not in (None, name):
                continue
            for contest in (ours, hand):  # start everything before measuring
                await contest(2)
            found: dict[str, list[Spent]] = {"ours": [], "hand": []}
            for number in range(rounds):
                turns = [("ours", ours, nothing_alone), ("hand", hand, alone)]
                for label, contest, peer in turns if number % 2 == 0 else reversed(turns):
                    found[label].append(await measure(backend, contest, size, peer))
                    print(f"{name} {label}: {found[label][-1].wall:.2f} s", file=sys.stderr)
            report[name] = summary(found["ours"], found["hand"], size)
    return report


def summary(ours: list[Spent], hand: list[Spent], size: int) -> dict[str, Any]:
    """Return the medians of all rounds."""
    both, rounds = {"ours": ours, "hand": hand}, list(zip(ours, hand, strict=True))
    median = statistics.median
    cost = median(one.own - other.own for one, other in rounds)
    alone = median(each.alone for each in hand)
    return {
        "seconds": {label: median(each.wall for each in spent) for label, spent in both.items()},
        "per_second": {
            label: size / median(each.wall for each in spent) for label, spent in both.items()
        },
        "rounds": {label: [each.wall for each in spent] for label, spent in both.items()},
        "ratio": median(one.wall / other.wall for one, other in rounds),
        "cpu_us_per_task": 1e6 / size * cost,
        "alone_us_per_task": 1e6 / size * alone,
        "beyond_us_per_task": 1e6 / size * (cost - alone),
        "client_cpu_us_per_task": {
            label: 1e6 / size * median(each.client for each in spent)
            for label, spent in both.items()
        },
        "client_ratio": median(one.client / other.client for one, other in rounds),
    }


def main() -> int:
    """Run the comparison; return 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=BUDGETS)
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, ignore budgets")
    options = parser.parse_args()
    size, rounds = (10, 1) if options.smoke else (options.size, options.rounds)
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(run(size, rounds, directory, options.only))
    report["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    kept = True
    for name in BUDGETS.keys() & report.keys():
        kept &= report[name]["ratio"] <= BUDGETS[name]
        kept &= report[name]["beyond_us_per_task"] <= CPU_BUDGET
        kept &= report[name]["client_ratio"] <= CLIENT_BUDGET
    print(json.dumps(report, indent=2))
    return int(not options.smoke and not kept)


if __name__ == "__main__":
    sys.exit(main())
