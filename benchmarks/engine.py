"""What the engine costs per task, beside asyncio itself and beside other workflow systems.

Prints microseconds per task for fans and chains of no-ops, then the ratios that
the budgets in docs/architecture.md name. All contestants take turns in one run,
so that a noisy machine hurts each of them; the median of the rounds counts.
radical.asyncflow and Parsl take part where they are installed:

    pip install radical.asyncflow parsl
    python benchmarks/engine.py [--sizes 1000 10000 ...] [--rounds 3] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rhapsody import LocalExecutionBackend, NoopExecutionBackend, WorkflowEngine

CHAIN = 1000
Contest = Callable[[int], Awaitable[float]]
"""Runs a number of no-ops and returns the seconds it took."""

clock: Callable[[], float] = time.perf_counter
"""What our own contests are timed by; `benchmarks/compare.py` counts the processor's time."""


async def engine_fan(size: int) -> float:
    """Our engine on the noop backend; every future is held, as users hold them."""
    async with WorkflowEngine.create(NoopExecutionBackend(), handle_signals=False) as flow:

        @flow.function_task
        async def no_op(x: int) -> int:
            return x

        await no_op(0)
        start = clock()
        futures = [no_op(i) for i in range(size)]
        await asyncio.gather(*futures)
        return clock() - start


async def chain_of(
    function: Callable[[Any], Any], make_backend: Callable[[], Any], size: int
) -> float:
    """Our engine with tasks that each wait for the one before."""
    async with WorkflowEngine.create(make_backend(), handle_signals=False) as flow:
        no_op = flow.function_task(function)
        future: Any = no_op(0)
        await future
        start = clock()
        for _ in range(size):
            future = no_op(future)
        await future
        return clock() - start


def same(x: Any) -> Any:
    """A function's no-op."""
    return x


async def same_async(x: Any) -> Any:
    """A coroutine function's."""
    return x


async def bare_futures(size: int) -> float:
    """Futures of asyncio, held the same way and set from the loop."""
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    futures = [loop.create_future() for _ in range(size)]
    for future in futures:
        loop.call_soon(future.set_result, None)
    await asyncio.gather(*futures)
    return time.perf_counter() - start


async def create_task(size: int) -> float:
    """`asyncio.create_task` of a coroutine that returns at once."""

    async def no_op(x: int) -> int:
        return x

    start = time.perf_counter()
    await asyncio.gather(*[asyncio.create_task(no_op(i)) for i in range(size)])
    return time.perf_counter() - start


async def executor_fan(size: int) -> float:
    """`loop.run_in_executor` on as many threads as there are cores."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        start = time.perf_counter()
        await asyncio.gather(*[loop.run_in_executor(pool, abs, i) for i in range(size)])
        return time.perf_counter() - start


async def executor_chain(size: int) -> float:
    """`loop.run_in_executor`, awaited one after the other."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        value = await loop.run_in_executor(pool, abs, 0)
        start = time.perf_counter()
        for _ in range(size):
            value = await loop.run_in_executor(pool, abs, value)
        return time.perf_counter() - start


async def asyncflow(size: int, *, chain: bool) -> float:
    """radical.asyncflow on its thread backend (fan, chain) as its documentation shows."""
    from radical.asyncflow import (
        LocalExecutionBackend as Threads,
    )
    from radical.asyncflow import WorkflowEngine as Peer

    backend = await Threads(ThreadPoolExecutor(os.cpu_count()))
    flow: Any = await Peer.create(backend=backend)

    @flow.function_task  # type: ignore[untyped-decorator]
    async def no_op(x: Any) -> Any:
        return x

    try:
        await no_op(0)
        start = time.perf_counter()
        if chain:
            future = no_op(0)
            for _ in range(size - 1):
                future = no_op(future)
            await future
        else:
            await asyncio.gather(*[no_op(i) for i in range(size)])
        return time.perf_counter() - start
    finally:
        await flow.shutdown()


async def parsl_fan(size: int) -> float:
    """Parsl's thread executor."""
    import parsl  # type: ignore[import-not-found]
    from parsl.config import Config  # type: ignore[import-not-found]
    from parsl.executors import ThreadPoolExecutor as Threads  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as directory:
        config = Config(
            executors=[Threads(max_threads=os.cpu_count() or 1)],
            run_dir=directory,
            initialize_logging=False,
        )
        with parsl.load(config):
            no_op = parsl.python_app(lambda x: x)
            no_op(0).result()
            start = time.perf_counter()
            for future in [no_op(i) for i in range(size)]:
                future.result()
            return time.perf_counter() - start


def measure(contests: dict[str, Contest], size: int, rounds: int) -> dict[str, float]:
    """The median microseconds per task of each contestant, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contests}
    for _ in range(rounds):
        for name, contest in contests.items():
            gc.collect()
            seconds[name].append(asyncio.run(contest(size)))  # type: ignore[arg-type]
    return {name: statistics.median(times) / size * 1e6 for name, times in seconds.items()}


def peers(fan: bool) -> dict[str, Contest]:
    """Other workflow systems, as far as they are installed."""
    found: dict[str, Contest] = {}
    if importlib.util.find_spec("radical") and importlib.util.find_spec("radical.asyncflow"):
        found["radical.asyncflow"] = lambda size: asyncflow(size, chain=not fan)
    if fan and importlib.util.find_spec("parsl"):
        found["parsl threads"] = parsl_fan
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-limit", type=int, default=10_000, help="largest fan for peers")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    sizes = [100, 1000] if options.smoke else options.sizes
    chain = 50 if options.smoke else CHAIN
    rounds = 1 if options.smoke else options.rounds
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {rounds} rounds, medians")

    fans: dict[int, dict[str, float]] = {}
    ours: dict[str, Contest] = {
        "rhapsody noop": engine_fan,
        "bare futures held": bare_futures,
        "asyncio.create_task": create_task,
        "run_in_executor": executor_fan,
    }
    for size in sizes:
        contests = ours | (peers(fan=True) if size <= options.peer_limit else {})
        fans[size] = measure(contests, size, rounds)
        print(f"\nfan of {size}: µs per task")
        for name, cost in fans[size].items():
            print(f"  {name:22} {cost:10.2f}")

    links: dict[str, Contest] = {
        "rhapsody noop": partial(chain_of, same_async, NoopExecutionBackend),
        "rhapsody threads": partial(chain_of, same, LocalExecutionBackend),
        "rhapsody coroutines": partial(chain_of, same_async, LocalExecutionBackend),
        "run_in_executor": executor_chain,
    }
    chains = measure(links | peers(fan=False), chain, rounds)
    print(f"\nchain of {chain}: µs per link")
    for name, cost in chains.items():
        print(f"  {name:22} {cost:10.2f}")

    print("\nratios")
    ratio = chains["rhapsody threads"] / chains["run_in_executor"]
    print(f"  chain, threads / run_in_executor        {ratio:.2f}")
    ratio = chains["rhapsody coroutines"] / chains["rhapsody threads"]
    print(f"  chain, coroutines / functions           {ratio:.2f}")
    if "radical.asyncflow" in chains:
        ratio = chains["radical.asyncflow"] / chains["rhapsody threads"]
        print(f"  chain, radical.asyncflow / ours         {ratio:.1f}")
    base = 10_000 if 10_000 in fans else sizes[0]
    for name in ("radical.asyncflow", "parsl threads"):
        if name in fans[base]:
            ratio = fans[base][name] / fans[base]["rhapsody noop"]
            print(f"  fan of {base}, {name} / ours   {ratio:.1f}")
    for size in (size for size in sizes if size > base):
        own = fans[size]["rhapsody noop"] / fans[base]["rhapsody noop"]
        bare = fans[size]["bare futures held"] / fans[base]["bare futures held"]
        print(
            f"  growth {base} to {size}: ours {own:.2f}, bare futures {bare:.2f}, "
            f"ours / bare {own / bare:.2f}"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"fans": fans, "chains": chains}, file, indent=1)


if __name__ == "__main__":
    main()
