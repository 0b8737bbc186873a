"""Compare the costs of Rhapsody on Dask with those of Dask itself, on one LocalCluster in one run.

The cases are a fan of no-ops, a chain, a tree reduction, a map over a large shared argument, and
two cases for the option `batch_calls`: fans of many short calls, and fans of short calls mixed with
long ones. Dask is used in its two usual ways: `submit` with `as_completed`, which delivers each
result as soon as it is ready, and `map` with one `gather`. Contestants take turns, and the median
of each is used; the budgets are ratios of medians. Finally, the memory kept for each finished task
is measured, with the scheduler in another process. `--smoke` only checks that everything runs.

radical.asyncflow takes part if a version with a Dask backend is installed:

    pip install "radical.asyncflow==0.2.0"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import multiprocessing
import statistics
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# This file, dask.py, must not hide Dask itself.
sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != Path(__file__).parent]

import dask.config  # noqa: E402
import psutil  # noqa: E402
from distributed import Client, LocalCluster, as_completed  # noqa: E402

from rhapsody import WorkflowEngine  # noqa: E402
from rhapsody_dask import DaskExecutionBackend  # noqa: E402

Run = Callable[[], Awaitable[None]]

OURS, PLAIN = "rhapsody", "rhapsody, push_down=False"
GROUPED = "rhapsody, batch_calls=True"
COMPLETED, GATHER, FLOW = "submit, as_completed", "map, one gather", "radical.asyncflow"
CHAINED, FUTURES = "futures chained", "futures"
SCATTER, SCATTER_MAP = "scatter, as_completed", "scatter, map"


def noop(value: Any = None) -> Any:
    return value


def add(first: int, second: int) -> int:
    return first + second


def scale(values: Any, factor: int) -> float:
    return float(values[factor]) * factor


def wait(seconds: float) -> float:
    if seconds:
        time.sleep(seconds)
    return seconds


class Sizes:
    """Sizes of the cases."""

    def __init__(self, smoke: bool, divide: int, rounds: int) -> None:
        self.fan = 50 if smoke else 5_000 // divide
        self.chain = 5 if smoke else 200
        self.leaves = 8 if smoke else 1_024 // divide
        self.maps = 5 if smoke else 200 // divide
        self.short = 50 if smoke else 10_000 // divide
        self.mixed = 20 if smoke else 1_000 // divide
        self.bytes = 2_000_000 if smoke else 50_000_000
        self.rounds = 1 if smoke else rounds
        # radical.asyncflow sends all dependencies of a task along with it. Its cost per task grows
        # with the number of tasks, and it fails on long chains.
        self.peer_fan = self.fan // 10
        self.peer_chain = min(self.chain, 5)


# Dask without Rhapsody.


class Raw:
    """Dask itself."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def fan(self, n: int) -> None:
        client = self.client
        futures = [client.submit(noop, i, pure=False) for i in range(n)]
        async for _ in as_completed(futures, loop=client.loop, with_results=True):
            pass

    async def map_fan(self, n: int) -> None:
        await self.client.gather(self.client.map(noop, range(n), pure=False))

    async def wait(self, times: list[float]) -> None:
        await self.client.gather(self.client.map(wait, times, pure=False))

    async def chain(self, n: int) -> None:
        future = self.client.submit(noop, 0, pure=False)
        for _ in range(n - 1):
            future = self.client.submit(noop, future, pure=False)
        assert await future == 0

    async def tree(self, leaves: int) -> None:
        submit = self.client.submit
        level = [submit(noop, i, pure=False) for i in range(leaves)]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [submit(add, a, b, pure=False) for a, b in pairs]
        assert await level[0] == leaves * (leaves - 1) // 2

    async def shared(self, n: int, values: Any) -> None:
        shared = await self.client.scatter(values, hash=False)
        futures = [self.client.submit(scale, shared, i, pure=False) for i in range(n)]
        async for _ in as_completed(futures, loop=self.client.loop, with_results=True):
            pass

    async def map_shared(self, n: int, values: Any) -> None:
        shared = await self.client.scatter(values, hash=False)
        futures = self.client.map(scale, [shared] * n, range(n), pure=False)
        assert len(await self.client.gather(futures)) == n


# Workflow engines.


class Ours:
    """One engine of Rhapsody."""

    def __init__(self, flow: WorkflowEngine) -> None:
        self.noop: Any = flow.function_task(noop)
        self.add: Any = flow.function_task(add)
        self.scale: Any = flow.function_task(scale)
        self.waiting: Any = flow.function_task(wait)

    async def wait(self, times: list[float]) -> None:
        await asyncio.gather(*map(self.waiting, times))

    async def fan(self, n: int) -> None:
        for future in asyncio.as_completed([self.noop(i) for i in range(n)]):
            await future

    async def chain(self, n: int) -> None:
        future = self.noop(0)
        for _ in range(n - 1):
            future = self.noop(future)
        assert await future == 0

    async def tree(self, leaves: int) -> None:
        level = [self.noop(i) for i in range(leaves)]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self.add(a, b) for a, b in pairs]
        assert await level[0] == leaves * (leaves - 1) // 2

    async def shared(self, n: int, values: Any) -> None:
        results = await asyncio.gather(*(self.scale(values, i) for i in range(n)))
        assert len(results) == n


class Flow:
    """radical.asyncflow. It accepts only coroutine functions, and sends each argument anew."""

    def __init__(self, flow: Any) -> None:
        async def nothing(value: Any = None) -> None:
            return None

        self.nothing: Any = flow.function_task(nothing)

    async def fan(self, n: int) -> None:
        for future in asyncio.as_completed([self.nothing(i) for i in range(n)]):
            await future

    async def chain(self, n: int) -> None:
        future = self.nothing(0)
        for _ in range(n - 1):
            future = self.nothing(future)
        await future


@contextlib.asynccontextmanager
async def asyncflow(address: str) -> AsyncIterator[Flow | None]:
    """Yield a contestant if a version with a Dask backend is installed, otherwise `None`."""
    try:
        peer: Any = importlib.import_module("radical.asyncflow")
        backend_class = peer.DaskExecutionBackend
    except (ImportError, AttributeError):
        print("radical.asyncflow with a Dask backend is not installed: it does not take part")
        yield None
        return
    flow = await peer.WorkflowEngine.create(backend=await backend_class({"address": address}))
    try:
        yield Flow(flow)
    finally:
        await flow.shutdown()


# Measurements.


class Spent(NamedTuple):
    """Wall-clock time and processor time of a contestant, in all its processes."""

    seconds: float
    processor: float

    def of(self, part: float) -> Spent:
        """Return the extrapolated cost of a larger run of which this was a part."""
        return Spent(self.seconds / part, self.processor / part)


def processor_seconds(workers: list[psutil.Process]) -> float:
    """Return the processor time of this process and the workers."""
    times = [process.cpu_times() for process in (psutil.Process(), *workers)]
    return sum(one.user + one.system for one in times)


Rounds = dict[str, list[Spent]]
"""Costs of each contestant, round by round."""


async def timed(runs: dict[str, Run], rounds: int, workers: list[psutil.Process]) -> Rounds:
    """Measure the contestants in turns."""
    spent: Rounds = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            processor, begin = processor_seconds(workers), time.perf_counter()
            await run()
            seconds = time.perf_counter() - begin
            if turn or rounds == 1:  # the first turn warms up
                spent[name].append(Spent(seconds, processor_seconds(workers) - processor))
    return spent


def medians(spent: Rounds) -> dict[str, Spent]:
    """Return the medians of all rounds."""
    return {
        name: Spent(*(statistics.median(column) for column in zip(*each, strict=True)))
        for name, each in spent.items()
    }


class Comparison(NamedTuple):
    """One comparison: the costs of all contestants, the number of tasks, and our budgets."""

    title: str
    spent: Rounds
    tasks: int
    budgets: dict[str, float]
    ours: str = OURS


def report(comparison: Comparison) -> None:
    """Print one comparison."""
    title, spent_in_rounds, count, budgets, ours = comparison
    found = medians(spent_in_rounds)
    print(f"\n{title}")
    for name, spent in found.items():
        each, processor = 1e6 * spent.seconds / count, 1e6 * spent.processor / count
        print(f"  {name:26} {spent.seconds:8.3f} s {each:7.0f} us each, {processor:7.0f} us of CPU")
    for name, limit in budgets.items():
        ratio = found[ours].seconds / found[name].seconds
        processor = found[ours].processor / found[name].processor
        verdict = "within" if ratio <= limit else "OVER"
        print(
            f"  {ours} / {name}: {ratio:.2f}, {verdict} the budget of {limit} "
            f"(CPU {processor:.2f})",
            flush=True,
        )


async def compare(cluster: Any, sizes: Sizes, only: str = "") -> AsyncGenerator[Comparison]:
    """Yield all comparisons, or those of one case."""
    values = bytes(sizes.bytes)
    address = cluster.scheduler_address
    workers = [psutil.Process(nanny.pid) for nanny in cluster.workers.values()]
    async with (
        Client(address, asynchronous=True, set_as_default=False) as client,
        WorkflowEngine.create(backend=DaskExecutionBackend(cluster=cluster)) as one,
        WorkflowEngine.create(
            backend=DaskExecutionBackend(cluster=cluster), push_down=False
        ) as two,
        WorkflowEngine.create(
            backend=DaskExecutionBackend(cluster=cluster, batch_calls=True)
        ) as three,
        asyncflow(address) as flow,
    ):
        raw, ours, plain, grouped = Raw(client), Ours(one), Ours(two), Ours(three)
        n = sizes.fan
        if only in ("", "fan"):
            runs: dict[str, Run] = {
                COMPLETED: lambda: raw.fan(sizes.fan),
                GATHER: lambda: raw.map_fan(sizes.fan),
                OURS: lambda: ours.fan(sizes.fan),
                PLAIN: lambda: plain.fan(sizes.fan),
            }
            if flow is not None:
                runs[FLOW] = lambda: flow.fan(sizes.peer_fan)
            found = await timed(runs, sizes.rounds, workers)
            if flow is not None:
                print(f"\n{FLOW} runs a fan of {sizes.peer_fan}; its time is extrapolated")
                part = sizes.peer_fan / sizes.fan
                found[FLOW] = [each.of(part) for each in found[FLOW]]
            budgets = {COMPLETED: 1.1, GATHER: 1.5}
            yield Comparison(f"fan of {n} no-ops", found, n, budgets)
        n = sizes.chain
        if only in ("", "chain"):
            runs = {
                CHAINED: lambda: raw.chain(sizes.chain),
                OURS: lambda: ours.chain(sizes.chain),
                PLAIN: lambda: plain.chain(sizes.chain),
            }
            if flow is not None:
                runs[FLOW] = lambda: flow.chain(sizes.peer_chain)
            found = await timed(runs, sizes.rounds, workers)
            if flow is not None:
                print(f"\n{FLOW} runs a chain of {sizes.peer_chain}; its time is extrapolated")
                part = sizes.peer_chain / sizes.chain
                found[FLOW] = [each.of(part) for each in found[FLOW]]
            yield Comparison(f"chain of {n}", found, n, {CHAINED: 1.1})
        n = sizes.leaves
        if only in ("", "tree"):
            runs = {
                FUTURES: lambda: raw.tree(sizes.leaves),
                OURS: lambda: ours.tree(sizes.leaves),
                PLAIN: lambda: plain.tree(sizes.leaves),
            }
            found = await timed(runs, sizes.rounds, workers)
            title = f"tree reduction of {n} leaves"
            yield Comparison(title, found, 2 * n - 1, {FUTURES: 1.2})
        n = sizes.maps
        if only in ("", "shared"):
            runs = {
                SCATTER: lambda: raw.shared(sizes.maps, values),
                SCATTER_MAP: lambda: raw.map_shared(sizes.maps, values),
                OURS: lambda: ours.shared(sizes.maps, values),
                PLAIN: lambda: plain.shared(sizes.maps, values),
            }
            found = await timed(runs, sizes.rounds, workers)
            title = f"{n} tasks over {sizes.bytes // 1_000_000} MB"
            yield Comparison(title, found, n, {SCATTER: 1.2, SCATTER_MAP: 1.2})

        n = sizes.short
        for title, times in {
            f"fan of {n} calls of 0 ms": [0.0] * n,
            f"fan of {n} calls of 0 to 1 ms": [i % 5 / 4_000 for i in range(n)],
        }.items():
            if only in ("", "short"):
                found = await timed(waits(times, raw, grouped), sizes.rounds, workers)
                yield Comparison(title, found, n, {GATHER: 0.25}, GROUPED)
        n = sizes.mixed
        for title, times in {
            f"fan of {n} calls of 0 ms, each tenth of 30 ms": [
                i % 10 // 9 * 0.03 for i in range(n)
            ],
            f"fan of {n // 5} calls of 5 ms": [0.005] * (n // 5),
            f"fan of {n // 20} calls of 50 ms": [0.05] * (n // 20),
        }.items():
            if only in ("", "mixed"):
                runs = {OURS: lambda: ours.wait(times), **waits(times, raw, grouped)}  # noqa: B023
                found = await timed(runs, sizes.rounds, workers)
                yield Comparison(title, found, len(times), {OURS: 1.0}, GROUPED)


def waits(times: list[float], raw: Raw, grouped: Ours) -> dict[str, Run]:
    """Return the contestants of a fan of calls that sleep for these times."""
    return {
        GATHER: lambda: raw.wait(times),
        GROUPED: lambda: grouped.wait(times),
    }


async def reported(cluster: Any, sizes: Sizes, only: str) -> None:
    """Print all comparisons, or those of one case."""
    async with contextlib.aclosing(compare(cluster, sizes, only)) as comparisons:
        async for comparison in comparisons:
            report(comparison)


# Memory.


async def kept(run: Callable[[int], Awaitable[None]], n: int) -> float:
    """Return the growth of this process per finished task in bytes, after a warm-up."""
    await run(n)
    tracemalloc.start()
    await run(n)
    await asyncio.sleep(1)  # Dask releases finished tasks with a delay
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    await run(n)
    await asyncio.sleep(1)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / n


async def memory(address: str, n: int) -> None:
    """Print the memory that each contestant keeps."""
    print(f"\nmemory kept per task after {n} finished tasks, without Dask's log of recent messages")
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        print(f"  {COMPLETED:34} {await kept(Raw(client).fan, n):8.0f} bytes")
    for name, push_down in ((OURS, True), (PLAIN, False)):
        async with WorkflowEngine.create(
            backend=DaskExecutionBackend(address=address), push_down=push_down
        ) as flow:
            ours = Ours(flow)
            print(f"  {name + ', fan':34} {await kept(ours.fan, n):8.0f} bytes")
            print(f"  {name + ', chain':34} {await kept(ours.chain, n // 5):8.0f} bytes")


def _serve(pipe: Any) -> None:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        pipe.send(cluster.scheduler_address)
        pipe.recv()


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """Yield the address of a cluster whose scheduler runs in another process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round")
    parser.add_argument("--divide", type=int, default=1, help="divide the sizes by this power of 2")
    parser.add_argument("--rounds", type=int, default=5, help="turns after the warm-up")
    parser.add_argument(
        "--only",
        default="",
        choices=["fan", "chain", "tree", "shared", "short", "mixed", "memory"],
        help="run only one case",
    )
    given = parser.parse_args()
    sizes = Sizes(given.smoke, given.divide, given.rounds)
    n = max(sizes.fan // 5, 10)
    if given.only != "memory":
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster:
            asyncio.run(reported(cluster, sizes, given.only))
    if given.only in ("", "memory"):
        # Each client keeps its last thousand messages for debugging.
        dask.config.set({"distributed.admin.low-level-log-length": 1})
        with elsewhere() as address:
            asyncio.run(memory(address, n))


if __name__ == "__main__":
    main()
