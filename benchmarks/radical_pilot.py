"""What the RADICAL-Pilot backend costs beside RADICAL-Pilot driven by hand.

500 `/bin/true` executables in bulk, and 500 no-op functions through RAPTOR, on
`local.localhost`: by hand and through our engine in turns on the same pilot, so that a
noisy machine hurts both. By hand, functions go to a master and a worker of RAPTOR's own with
as many cores. Prints seconds, the median of the pairs' ratios, the CPU time that this
process spent per task, and what of it is not RADICAL-Pilot's: that of our threads and our
callbacks, less that of the thread that submits and waits by hand. A sandbox that is made and
removed is measured alone, too: by hand nobody removes anything.

    python benchmarks/radical_pilot.py [--size 500] [--rounds 7] [--smoke]
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
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_radical.library import rp

BUDGET = 1.05
"""The most that our executables may take, as a multiple of the time by hand."""

CPU_BUDGET = 150.0
"""Microseconds of CPU that one of our executables may take beyond that and its sandbox."""

FILES = 7
"""Files that RADICAL-Pilot leaves in a sandbox: output, scripts and a profile."""

FUNCTION_CORES = 2
"""Cores of each RAPTOR worker; the pilot pretends to have 8."""

OWN_THREADS = ("MainThread", "rhapsody", "asyncio")
"""How the names of threads begin that are not RADICAL-Pilot's; by hand it is asyncio's."""

Contest = Callable[[int], Awaitable[None]]


def no_op() -> None:
    """Does nothing."""


class Timed(RadicalExecutionBackend):
    """Measures its callbacks, which run on RADICAL-Pilot's threads."""

    spent = 0.0

    def _on_task(self, handle: Any, state: str) -> None:
        began = time.thread_time()
        super()._on_task(handle, state)
        self.spent += time.thread_time() - began

    def own_cpu(self) -> float:
        """Seconds of CPU so far that are not RADICAL-Pilot's (Linux)."""
        mine = [each for each in threading.enumerate() if each.name.startswith(OWN_THREADS)]
        files = [Path(f"/proc/self/task/{each.native_id}/schedstat") for each in mine]
        return self.spent + sum(int(file.read_text().split()[0]) for file in files) / 1e9


class Contests:
    """Both ways to run both kinds of task, on one pilot."""

    def __init__(self, backend: Timed, flow: WorkflowEngine) -> None:
        self._backend = backend
        self._sandboxes = flow.work_dir
        self._round = 0
        self._master: Any = None

        @flow.executable_task
        async def true() -> list[str]:
            return ["/bin/true"]

        @flow.function_task
        def nothing() -> None:
            return None

        self._true, self._nothing = true, nothing

    async def our_executables(self, size: int) -> None:
        """Through the engine, which also removes the sandboxes."""
        await asyncio.gather(*(self._true() for _ in range(size)))
        while any(os.scandir(self._sandboxes)):  # noqa: ASYNC110 - a thread does it silently
            await asyncio.sleep(0.01)

    async def our_functions(self, size: int) -> None:
        """Through the engine."""
        await asyncio.gather(*(self._nothing() for _ in range(size)))

    async def executables_by_hand(self, size: int) -> None:
        """As RADICAL-Pilot's tutorials do it."""
        await self._by_hand(size, {"executable": "/bin/true"})

    async def functions_by_hand(self, size: int) -> None:
        """As RADICAL-Pilot's tutorials do it."""
        if self._master is None:
            self._master = await asyncio.to_thread(self._start_raptor)
        words = {"mode": rp.TASK_FUNCTION, "raptor_id": self._master.uid}
        await self._by_hand(size, {**words, "function": rp.PythonTask(no_op, (), {})})

    def _start_raptor(self) -> Any:
        (master,) = self._backend.task_manager.submit_raptors(
            rp.TaskDescription({"mode": rp.RAPTOR_MASTER})
        )
        words = {"mode": rp.RAPTOR_WORKER, "raptor_class": "DefaultWorker", "ranks": 1}
        master.submit_workers(rp.TaskDescription({**words, "cores_per_rank": FUNCTION_CORES}))
        return master

    async def _by_hand(self, size: int, words: dict[str, Any]) -> None:
        self._round += 1
        descriptions = [
            rp.TaskDescription({**words, "uid": f"hand.{self._round}.{number:06d}"})
            for number in range(size)
        ]

        def run() -> None:
            manager = self._backend.task_manager
            tasks = manager.submit_tasks(descriptions)
            states = manager.wait_tasks([task.uid for task in tasks])
            assert set(states) == {"DONE"}, set(states)

        await asyncio.to_thread(run)


class Spent(NamedTuple):
    """Seconds of one contest: by the clock, of this process's CPU, and of that our own."""

    wall: float
    cpu: float
    own: float


async def measure(backend: Timed, contest: Contest, size: int) -> Spent:
    """Runs a contest."""
    wall, cpu, own = time.perf_counter(), time.process_time(), backend.own_cpu()
    await contest(size)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu, backend.own_cpu() - own)


def sandboxes_alone(size: int, directory: str) -> float:
    """Seconds of CPU to make, link and remove sandboxes with what RADICAL-Pilot leaves there."""
    root, links = os.path.join(directory, "alone"), os.path.join(directory, "links")
    spent = 0.0
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


async def run(size: int, rounds: int, directory: str) -> dict[str, Any]:
    """All contests, in turns."""
    backend = Timed(
        {"resource": "local.localhost", "cores": os.cpu_count() or 1, "runtime": 60},
        work_dir=directory,
        function_cores=FUNCTION_CORES,
    )
    report: dict[str, Any] = {"size": size, "rounds": rounds}
    async with WorkflowEngine.create(
        backend, work_dir=os.path.join(directory, "flow"), handle_signals=False
    ) as flow:
        contests = Contests(backend, flow)
        pairs: dict[str, tuple[Contest, Contest]] = {
            "executables": (contests.our_executables, contests.executables_by_hand),
            "functions": (contests.our_functions, contests.functions_by_hand),
        }
        for name, (ours, hand) in pairs.items():
            for contest in (ours, hand):  # each pays for its start before it is measured
                await contest(2)
            found: dict[str, list[Spent]] = {"ours": [], "hand": []}
            for number in range(rounds):
                turns = [("ours", ours), ("hand", hand)]
                for label, contest in turns if number % 2 == 0 else reversed(turns):
                    found[label].append(await measure(backend, contest, size))
                    print(f"{name} {label}: {found[label][-1].wall:.2f} s", file=sys.stderr)
            report[name] = summary(found["ours"], found["hand"], size)
    return report


def summary(ours: list[Spent], hand: list[Spent], size: int) -> dict[str, Any]:
    """The medians of all rounds."""
    both, rounds = {"ours": ours, "hand": hand}, list(zip(ours, hand, strict=True))
    median = statistics.median
    return {
        "seconds": {label: median(each.wall for each in spent) for label, spent in both.items()},
        "ratio": median(one.wall / other.wall for one, other in rounds),
        "cpu_us_per_task": {
            label: 1e6 / size * median(each.cpu for each in spent) for label, spent in both.items()
        },
        "own_cpu_us_per_task": 1e6 / size * median(one.own - other.own for one, other in rounds),
    }


def main() -> int:
    """Runs the comparison; 1 where the budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small, and no verdict")
    options = parser.parse_args()
    size, rounds = (10, 1) if options.smoke else (options.size, options.rounds)
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(run(size, rounds, directory))
        report["sandbox_us"] = 1e6 * sandboxes_alone(size, directory) / size
    report["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps(report, indent=2))
    found = report["executables"]
    kept = found["ratio"] <= BUDGET
    kept &= found["own_cpu_us_per_task"] - report["sandbox_us"] <= CPU_BUDGET
    return int(not options.smoke and not kept)


if __name__ == "__main__":
    sys.exit(main())
