"""What Rhapsody costs on Dask, beside driving Dask by hand, on one LocalCluster in one run.

A fan of no-ops, a chain, a tree reduction, and a map over a big shared argument. Raw
Dask is driven in its two usual ways: `submit` with `as_completed`, which delivers each
result as it comes, and `map` with one `gather`. Contestants take turns, and the median
of each counts. `--smoke` only shows that it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# This file would stand for Dask itself, whose name it has.
sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != Path(__file__).parent]

from distributed import Client, LocalCluster, as_completed  # noqa: E402

from rhapsody import WorkflowEngine  # noqa: E402
from rhapsody_dask import DaskExecutionBackend  # noqa: E402


def noop(value: Any = None) -> Any:
    return value


def add(first: int, second: int) -> int:
    return first + second


def scale(values: Any, factor: int) -> float:
    return float(values[factor]) * factor


class Sizes:
    """How much of each there is."""

    def __init__(self, smoke: bool, divide: int, rounds: int) -> None:
        self.fan = 50 if smoke else 5_000 // divide
        self.chain = 5 if smoke else 200
        self.leaves = 8 if smoke else 1_024 // divide
        self.maps = 5 if smoke else 200 // divide
        self.bytes = 2_000_000 if smoke else 50_000_000
        self.rounds = 1 if smoke else rounds


# By hand.


async def raw_submit_fan(client: Any, n: int) -> None:
    futures = [client.submit(noop, i, pure=False) for i in range(n)]
    async for _ in as_completed(futures, loop=client.loop, with_results=True):
        pass


async def raw_map_fan(client: Any, n: int) -> None:
    await client.gather(client.map(noop, range(n), pure=False))


async def raw_chain(client: Any, n: int) -> None:
    future = client.submit(noop, 0, pure=False)
    for _ in range(n - 1):
        future = client.submit(noop, future, pure=False)
    assert await future == 0


async def raw_tree(client: Any, leaves: int) -> None:
    level = [client.submit(noop, i, pure=False) for i in range(leaves)]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [client.submit(add, a, b, pure=False) for a, b in pairs]
    assert await level[0] == leaves * (leaves - 1) // 2


async def raw_shared(client: Any, n: int, values: Any) -> None:
    shared = await client.scatter(values)
    futures = client.map(scale, [shared] * n, range(n), pure=False)
    assert len(await client.gather(futures)) == n


# Through Rhapsody.


class Ours:
    """One engine."""

    def __init__(self, flow: WorkflowEngine) -> None:
        self.noop: Any = flow.function_task(noop)
        self.add: Any = flow.function_task(add)
        self.scale: Any = flow.function_task(scale)

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


async def timed(runs: dict[str, Callable[[], Awaitable[None]]], rounds: int) -> dict[str, float]:
    """The median seconds of each contestant, who take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            begin = time.perf_counter()
            await run()
            if turn or rounds == 1:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def report(title: str, found: dict[str, float], count: int, budgets: dict[str, float]) -> None:
    """Prints one comparison."""
    print(f"\n{title}")
    for name, seconds in found.items():
        print(f"  {name:34} {seconds:8.3f} s {1e6 * seconds / count:9.0f} us each")
    for name, limit in budgets.items():
        ratio = found["rhapsody"] / found[name]
        verdict = "within" if ratio <= limit else "OVER"
        print(f"  rhapsody / {name}: {ratio:.2f}, {verdict} the budget of {limit}")


async def compare(cluster: Any, sizes: Sizes) -> None:
    """All comparisons."""
    values = bytes(sizes.bytes)
    client = await Client(cluster.scheduler_address, asynchronous=True, set_as_default=False)
    pushing = await DaskExecutionBackend(cluster=cluster)
    waiting = await DaskExecutionBackend(cluster=cluster)
    async with (
        WorkflowEngine.create(backend=pushing) as one,
        WorkflowEngine.create(backend=waiting, push_down=False) as two,
    ):
        ours, plain = Ours(one), Ours(two)
        n, rounds = sizes.fan, sizes.rounds
        found = await timed(
            {
                "submit, as_completed": lambda: raw_submit_fan(client, n),
                "map, one gather": lambda: raw_map_fan(client, n),
                "rhapsody": lambda: ours.fan(n),
            },
            rounds,
        )
        report(
            f"fan of {n} no-ops", found, n, {"submit, as_completed": 1.1, "map, one gather": 1.5}
        )
        n = sizes.chain
        found = await timed(
            {
                "futures chained": lambda: raw_chain(client, n),
                "rhapsody": lambda: ours.chain(n),
                "rhapsody, push_down=False": lambda: plain.chain(n),
            },
            rounds,
        )
        report(f"chain of {n}", found, n, {"futures chained": 1.1})
        n = sizes.leaves
        found = await timed(
            {
                "futures": lambda: raw_tree(client, n),
                "rhapsody": lambda: ours.tree(n),
                "rhapsody, push_down=False": lambda: plain.tree(n),
            },
            rounds,
        )
        report(f"tree reduction of {n} leaves", found, 2 * n, {"futures": 1.2})
        n = sizes.maps
        found = await timed(
            {
                "scatter, map": lambda: raw_shared(client, n, values),
                "rhapsody": lambda: ours.shared(n, values),
            },
            rounds,
        )
        report(f"{n} tasks over {sizes.bytes // 1_000_000} MB", found, n, {"scatter, map": 1.2})
        await memory(ours, sizes.fan)
    await client.close()


async def memory(ours: Ours, n: int) -> None:
    """Prints what is kept here for each finished task."""
    await ours.fan(n)
    gc.collect()
    tracemalloc.start()
    await ours.fan(n)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    await ours.fan(n)
    await asyncio.sleep(1)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    print(f"\nkept on the client: {kept / n:.0f} bytes per finished task")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round")
    parser.add_argument("--divide", type=int, default=1, help="a power of 2 to divide the fans by")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    given = parser.parse_args()
    sizes = Sizes(given.smoke, given.divide, given.rounds)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        asyncio.run(compare(cluster, sizes))


if __name__ == "__main__":
    main()
