"""Counts the calls of our functions for one task: `python -m benchmarks.counting.routes ROUTE`.

Tasks run one after the other, after some that warm up, so that nothing is shared by a batch.
What is called in as much time without a task is taken off: clocks and watches. Prints JSON:
for each process of the route calls and files per task. The environment says which packages
are counted, see `benchmarks.structure`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.counting import profiler

LATE = 0.3
"""Seconds after the last task in which what belongs to it is still called."""

Take = Callable[[], Awaitable[dict[str, profiler.Calls]]]
"""Returns each process's calls since the last time."""


def same(x: int) -> int:
    """The task."""
    return x


async def count(flow: Any, tasks: int, take: Take) -> dict[str, profiler.Calls]:
    """Returns each process's calls for some tasks, without those that come by themselves."""
    function = flow.function_task(same)
    for number in range(10):
        await function(number)
    await asyncio.sleep(LATE)
    await take()
    began = time.monotonic()
    for number in range(tasks):
        await function(number)
    await asyncio.sleep(LATE)
    busy, spent = await take(), time.monotonic() - began
    await asyncio.sleep(spent)
    idle = await take()
    return {process: calls - idle[process] for process, calls in busy.items()}


async def threads(tasks: int) -> dict[str, profiler.Calls]:
    """On this machine's threads."""
    from rhapsody import LocalExecutionBackend, WorkflowEngine

    async def take() -> dict[str, profiler.Calls]:
        return {"user": profiler.take()}

    async with WorkflowEngine.create(LocalExecutionBackend(), handle_signals=False) as flow:
        return await count(flow, tasks, take)


async def dask(tasks: int) -> dict[str, profiler.Calls]:
    """On a worker process of Dask, whose scheduler is in the user's process."""
    from distributed import Client, LocalCluster

    from rhapsody import WorkflowEngine
    from rhapsody_dask import DaskExecutionBackend

    async with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, asynchronous=True
    ) as cluster:
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            await client.run(profiler.start)  # before its threads for tasks begin
        backend: Any = DaskExecutionBackend(cluster=cluster)

        async def take() -> dict[str, profiler.Calls]:
            (worker,) = (await backend.client.run(profiler.take)).values()
            return {"user": profiler.take(), "worker": worker}

        async with WorkflowEngine.create(backend, handle_signals=False) as flow:
            return await count(flow, tasks, take)


def take_in_client(objects: Any) -> profiler.Calls:
    """Returns the calls of RADICAL-Pilot's client since the last time."""
    calls: profiler.Calls = sys.modules["sitecustomize"].take()
    return calls


async def raptor(tasks: int) -> dict[str, profiler.Calls]:
    """A call on RAPTOR, on a pilot on this machine."""
    from rhapsody import WorkflowEngine
    from rhapsody_radical import RadicalExecutionBackend

    with tempfile.TemporaryDirectory() as directory:
        backend: Any = RadicalExecutionBackend(
            {"resource": "local.localhost", "cores": 4, "runtime": 20},
            work_dir=directory,
            function_cores=1,
        )

        async def take() -> dict[str, profiler.Calls]:
            if not hasattr(backend, "run_in_client"):  # of before there was a client
                return {"user": profiler.take()}
            client = await backend.run_in_client(take_in_client)
            return {"user": profiler.take(), "client": client}

        async with WorkflowEngine.create(backend, work_dir=directory, handle_signals=False) as flow:
            return await count(flow, tasks, take)


ROUTES = {"threads": threads, "dask": dask, "raptor": raptor}


def summary(found: dict[str, profiler.Calls], tasks: int) -> dict[str, Any]:
    """Returns calls and files per task of each process, and how often which function is called.

    A file counts that has a function which at least every second task calls.
    """
    report: dict[str, Any] = {}
    for process, calls in found.items():
        often = Counter({key: number for key, number in calls.items() if 2 * number >= tasks})
        report[process] = {
            "calls": calls.total() / tasks,
            "files": sorted({file for file, _ in often}),
            "functions": {f"{file}:{name}": n / tasks for (file, name), n in often.most_common()},
        }
    return report


def main() -> None:
    """Prints what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("route", choices=list(ROUTES))
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    profiler.start()
    found = asyncio.run(ROUTES[options.route](options.tasks))
    sys.setprofile(None)
    json.dump(summary(found, options.tasks), sys.stdout)


if __name__ == "__main__":
    main()
