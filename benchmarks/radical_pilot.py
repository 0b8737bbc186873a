"""What the RADICAL-Pilot backend costs beside RADICAL-Pilot driven by hand.

500 `/bin/true` executables in bulk, and 500 no-op functions through RAPTOR, on
`local.localhost`: by hand and through our engine in turns on the same pilot, so that a
noisy machine hurts both. Prints seconds, the median of the pairs' ratios, and the CPU time
that this process spent per task.

    python benchmarks/radical_pilot.py [--size 500] [--rounds 7] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_radical.library import rp

BUDGET = 1.05
"""The most that our executables may take, as a multiple of the time by hand."""

CPU_BUDGET = 150.0
"""Microseconds of this process's CPU that one of our executables may take beyond that."""

Contest = Callable[[int], Awaitable[None]]


def no_op() -> None:
    """Does nothing."""


class Contests:
    """Both ways to run both kinds of task, on one pilot."""

    def __init__(self, backend: RadicalExecutionBackend, flow: WorkflowEngine) -> None:
        self._backend = backend
        self._round = 0

        @flow.executable_task
        async def true() -> list[str]:
            return ["/bin/true"]

        @flow.function_task
        def nothing() -> None:
            return None

        self._true, self._nothing = true, nothing

    async def our_executables(self, size: int) -> None:
        """Through the engine."""
        await asyncio.gather(*(self._true() for _ in range(size)))

    async def our_functions(self, size: int) -> None:
        """Through the engine."""
        await asyncio.gather(*(self._nothing() for _ in range(size)))

    async def executables_by_hand(self, size: int) -> None:
        """As RADICAL-Pilot's tutorials do it."""
        await self._by_hand(size, {"executable": "/bin/true"})

    async def functions_by_hand(self, size: int) -> None:
        """As RADICAL-Pilot's tutorials do it, on the same master and worker."""
        master = next(self._backend.master_selector)
        function = rp.PythonTask(no_op)
        await self._by_hand(
            size, {"mode": rp.TASK_FUNCTION, "function": function, "raptor_id": master}
        )

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


async def measure(contest: Contest, size: int) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    await contest(size)
    return time.perf_counter() - wall, time.process_time() - cpu


async def run(size: int, rounds: int, directory: str) -> dict[str, Any]:
    """All contests, in turns."""
    backend = RadicalExecutionBackend(
        {"resource": "local.localhost", "cores": os.cpu_count() or 1, "runtime": 60},
        work_dir=directory,
    )
    report: dict[str, Any] = {"size": size, "rounds": rounds}
    async with WorkflowEngine.create(
        backend, work_dir=os.path.join(directory, "flow"), handle_signals=False
    ) as flow:
        contests = Contests(backend, flow)
        await contests.our_executables(2)
        await contests.our_functions(2)
        pairs: dict[str, tuple[Contest, Contest]] = {
            "executables": (contests.our_executables, contests.executables_by_hand),
            "functions": (contests.our_functions, contests.functions_by_hand),
        }
        for name, (ours, hand) in pairs.items():
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "hand": []}
            for number in range(rounds):
                turns = [("ours", ours), ("hand", hand)]
                for label, contest in turns if number % 2 == 0 else reversed(turns):
                    times[label].append(await measure(contest, size))
                    print(f"{name} {label}: {times[label][-1][0]:.2f} s", file=sys.stderr)
            wall = {label: statistics.median(w for w, _ in found) for label, found in times.items()}
            cpu = {label: statistics.median(c for _, c in found) for label, found in times.items()}
            pairs_of = zip(times["ours"], times["hand"], strict=True)
            report[name] = {
                "seconds": wall,
                "ratio": statistics.median(one[0] / other[0] for one, other in pairs_of),
                "cpu_us_per_task": {label: 1e6 * value / size for label, value in cpu.items()},
                "own_cpu_us_per_task": 1e6 * (cpu["ours"] - cpu["hand"]) / size,
            }
    return report


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
    report["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps(report, indent=2))
    found = report["executables"]
    kept = found["ratio"] <= BUDGET and found["own_cpu_us_per_task"] <= CPU_BUDGET
    return int(not options.smoke and not kept)


if __name__ == "__main__":
    sys.exit(main())
