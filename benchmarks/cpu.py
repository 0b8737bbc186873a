"""Measure the processor time that Rhapsody uses in a benchmark: `python -m benchmarks.cpu PART`.

Runs workloads of `benchmarks/suite`, `dask.py`, `instructions.py` and `radical_pilot.py` without
other contestants, and some of its own. Prints, as JSON, the median of several rounds for each
measurement, in microseconds per task.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.suite.contestant import Contestant

Measures = dict[str, float]


def engine(smoke: bool, rounds: int) -> Measures:
    """Measure the engine on the noop backend and chains on threads, in this process."""
    from benchmarks.suite import cases, graphs, ours

    cases.clock = time.process_time
    fan, large, chain = (100, 200, 20) if smoke else (10_000, 100_000, 1_000)
    contests: dict[str, tuple[type[Contestant], graphs.Graph]] = {
        f"fan of {fan} no-ops": (ours.Noop, graphs.fan(fan)),
        f"fan of {large} no-ops": (ours.Noop, graphs.fan(large)),
        f"chain of {chain}, no-ops": (ours.Noop, graphs.chain(chain)),
        f"chain of {chain}, threads": (ours.Threads, graphs.chain(chain)),
        f"chain of {chain}, coroutines": (ours.Async, graphs.chain(chain)),
    }

    async def seconds(contestant: type[Contestant], graph: graphs.Graph) -> float:
        async with contestant.running() as system:
            await system.run(graphs.fan(1))
            return await cases.seconds(system, graph)

    spent: dict[str, list[float]] = {name: [] for name in contests}
    for _ in range(rounds + 1):
        for name, (contestant, graph) in contests.items():
            spent[name].append(1e6 / len(graph) * asyncio.run(seconds(contestant, graph)))
    return {name: statistics.median(each[1:]) for name, each in spent.items()}


def processor(pids: Iterable[int]) -> float:
    """Return the exact processor time of processes on this machine, in seconds."""
    threads = (thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def used() -> float:
    """Return the processor time of this process and its ended children, in seconds."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in times)


def workers(smoke: bool, rounds: int) -> Measures:
    """Measure worker processes and this process, which sends them calls."""
    import psutil

    from benchmarks.suite import graphs, ours

    works = {
        f"fan of {(fan := 20 if smoke else 4_000)}": graphs.fan(fan),
        f"chain of {(chain := 5 if smoke else 500)}": graphs.chain(chain),
    }
    spent: dict[str, list[float]] = {}

    async def measure() -> None:
        async with ours.Processes.running() as system:
            await system.run(graphs.fan(fan))  # both workers run
            pids = [child.pid for child in psutil.Process().children(recursive=True)]
            for _ in range(rounds):
                for name, graph in works.items():
                    before = time.process_time(), processor(pids)
                    await system.run(graph)
                    after = time.process_time(), processor(pids)
                    for who, begin, end in zip(("engine", "workers"), before, after, strict=True):
                        took = 1e6 / len(graph) * (end - begin)
                        spent.setdefault(f"{name}, {who}", []).append(took)

    asyncio.run(measure())
    return {name: statistics.median(each) for name, each in spent.items()}


def programs(smoke: bool, rounds: int) -> Measures:
    """Measure programs with and without files, in memory and on the disk of `/var/tmp`.

    Includes the start of an engine and the programs, which are small.
    """
    from rhapsody import InputFile, OutputFile, WorkflowEngine

    count = 5 if smoke else 200

    async def alone(flow: WorkflowEngine) -> None:
        @flow.executable_task
        def nothing() -> list[str]:
            return ["/bin/true"]

        await asyncio.gather(*(nothing() for _ in range(2 * count)))

    async def pairs(flow: WorkflowEngine) -> None:
        @flow.executable_task
        def write(output: OutputFile) -> list[str]:
            return ["/bin/cp", "/dev/null", str(output)]

        @flow.executable_task
        def read(file: InputFile) -> list[str]:
            return ["/bin/cat", str(file)]

        made = [write(OutputFile(f"{number}.txt")) for number in range(count)]
        await asyncio.gather(
            *(read(future.file(f"{number}.txt")) for number, future in enumerate(made))
        )

    async def run(work: Callable[[WorkflowEngine], Awaitable[None]], place: str) -> float:
        before = used()
        async with WorkflowEngine.create(handle_signals=False, work_dir=place) as flow:
            await work(flow)
        return 1e6 / (2 * count) * (used() - before)

    spent: dict[str, list[float]] = {}
    for where, parent in (("in memory", "/dev/shm"), ("on a disk", "/var/tmp")):
        for name, work in (("without files", alone), ("in pairs with a file", pairs)):
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(dir=parent) as place:
                    took = asyncio.run(run(work, f"{place}/work"))
                spent.setdefault(f"programs {name}, {where}", []).append(took)
    return {name: statistics.median(each) for name, each in spent.items()}


def journal(smoke: bool, rounds: int) -> Measures:
    """Measure a fan with a journal, whose results are recorded and then reused."""
    from benchmarks.instructions import recorded

    size = 20 if smoke else 3_000
    spent: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            for name, resume in (("recorded", False), ("reused", True)):
                before = used()
                asyncio.run(recorded(size, directory, resume=resume))
                spent.setdefault(f"fan of {size}, {name}", []).append(used() - before)
    return {name: 1e6 / size * statistics.median(each[1:]) for name, each in spent.items()}


EMPTY = """
import asyncio
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create():
        pass

asyncio.run(main())
"""


def start(smoke: bool, rounds: int) -> Measures:
    """Measure scripts and commands that do next to nothing, in microseconds for each."""
    count = 1 if smoke else 2 * rounds
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "empty.py")
        script.write_text("")
        starts = {
            "import of WorkflowEngine": ["-c", "from rhapsody import WorkflowEngine"],
            "an engine without tasks": ["-c", EMPTY],
            "rhapsody --version": ["-m", "rhapsody", "--version"],
            "rhapsody run of an empty script": ["-m", "rhapsody", "run", "empty.py"],
        }
        spent: dict[str, list[float]] = {}
        for _ in range(count + 1):
            for name, words in starts.items():
                before = used()
                subprocess.run(
                    [sys.executable, *words],
                    cwd=directory,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=True,
                )
                spent.setdefault(name, []).append(1e6 * (used() - before))
    return {name: statistics.median(each[1:]) for name, each in spent.items()}


def dask(smoke: bool, rounds: int) -> Measures:
    """Measure two Dask workers: their processes and this one, which runs the scheduler."""
    import psutil
    from distributed import LocalCluster

    from benchmarks import dask as work
    from rhapsody import WorkflowEngine
    from rhapsody_dask import DaskExecutionBackend

    sizes = work.Sizes(smoke, 4, rounds)
    counts: Measures = {}

    async def measure(cluster: Any) -> dict[str, work.Spent]:
        workers = [psutil.Process(nanny.pid) for nanny in cluster.workers.values()]
        values = bytes(sizes.bytes)
        runs: dict[str, work.Run] = {}
        create = partial(WorkflowEngine.create, handle_signals=False)
        async with (
            create(DaskExecutionBackend(cluster=cluster)) as one,
            create(DaskExecutionBackend(cluster=cluster), push_down=False) as two,
        ):
            for flow, more in ((one, ""), (two, ", push_down=False")):
                ours = work.Ours(flow)
                runs[f"fan of {sizes.fan}{more}"] = partial(ours.fan, sizes.fan)
                runs[f"chain of {sizes.chain}{more}"] = partial(ours.chain, sizes.chain)
                runs[f"tree of {sizes.leaves}{more}"] = partial(ours.tree, sizes.leaves)
                name = f"{sizes.maps} over {sizes.bytes // 1_000_000} MB{more}"
                runs[name] = partial(ours.shared, sizes.maps, values)
                tasks = (sizes.fan, sizes.chain, 2 * sizes.leaves - 1, sizes.maps)
                counts.update(zip(list(runs)[-4:], tasks, strict=True))
            return work.medians(await work.timed(runs, max(rounds, 2), workers))

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        found = asyncio.run(measure(cluster))
    return {name: 1e6 * spent.processor / counts[name] for name, spent in found.items()}


def raptor(smoke: bool, rounds: int) -> Measures:
    """Measure calls on RAPTOR, with a pilot on this machine.

    Includes the processes of RADICAL-Pilot's client. Earlier revisions have no client and keep
    RADICAL-Pilot's objects in this process, so that the sums are comparable.
    """
    import psutil

    from benchmarks import radical_pilot as work
    from rhapsody import WorkflowEngine
    from rhapsody_radical import RadicalExecutionBackend

    size = 10 if smoke else 500

    def spent(client: Iterable[psutil.Process]) -> float:
        times = [process.cpu_times() for process in client]
        return time.process_time() + sum(each.user + each.system for each in times)

    async def measure(directory: str) -> Measures:
        backend: Any = RadicalExecutionBackend(
            {"resource": "local.localhost", "cores": os.cpu_count() or 1, "runtime": 60},
            work_dir=directory,
            function_cores=work.FUNCTION_CORES,
        )
        async with WorkflowEngine.create(backend, handle_signals=False) as flow:
            no_op: Callable[[], Awaitable[None]] = flow.function_task(work.no_op)
            await no_op()
            client = [
                child
                for child in psutil.Process().children(recursive=True)
                if "rhapsody_radical.client" in child.cmdline()
            ]
            found = []
            for _ in range(rounds + 1):
                before = spent(client)
                await asyncio.gather(*(no_op() for _ in range(size)))
                found.append(1e6 / size * (spent(client) - before))
        return {f"{size} calls on RAPTOR": statistics.median(found[1:])}

    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(measure(directory))


PARTS = {
    "engine": engine, "workers": workers, "programs": programs, "journal": journal, "start": start,
    "dask": dask, "raptor": raptor,
}  # fmt: skip


def main() -> None:
    """Measure one part and print the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    found = PARTS[options.part](options.smoke, 1 if options.smoke else options.rounds)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
