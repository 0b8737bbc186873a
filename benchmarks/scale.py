"""Find the length of tasks at which the engine limits the use of a cluster.

Simulates clusters of several sizes, whose cores are kept busy by tasks of equal length, and adds
the processor time of the engine to the virtual time. Prints tables in Markdown with the share of
the cores' time in which tasks run. In a fan, all tasks are independent, and are called at the same
time. In chains, each task depends on another one, so that the engine has to handle its end before
the next one can start.

    python benchmarks/scale.py [--cores 1000 10000 100000] [--seconds 0.1 1 10 100] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Sequence

from rhapsody import WorkflowEngine
from rhapsody_simulated import SimulatedExecutionBackend

PER_CORE = 4
"""Number of tasks for each core."""

PER_NODE = 100
"""Number of cores of each node."""


async def simulate(cores: int, seconds: float, *, chains: bool) -> float:
    """Run `PER_CORE` tasks for each core, and return the virtual time of the run in seconds."""
    backend = SimulatedExecutionBackend(
        nodes=cores // PER_NODE, cores=PER_NODE, duration=seconds, engine_time=True
    )
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task(cache=False)
        def step(*_: object) -> None:
            """Do nothing: no task runs."""

        begin = flow.clock.monotonic()
        tasks = [step() for _ in range(cores if chains else PER_CORE * cores)]
        for _ in range(PER_CORE - 1 if chains else 0):
            tasks = [step(before) for before in tasks]
        await asyncio.gather(*tasks)
        return flow.clock.monotonic() - begin


def study(sizes: Sequence[int], lengths: Sequence[float], *, chains: bool) -> list[str]:
    """Return the lines of a table, with the share of the cores' time in which tasks run."""
    lines = [
        f"| cores | engine, µs per task | {' | '.join(f'{each:g} s' for each in lengths)} |",
        f"|---:|---:|{'---:|' * len(lengths)}",
    ]
    for cores in sizes:
        shares, began = [], time.thread_time()
        for seconds in lengths:
            gc.collect()
            taken = asyncio.run(simulate(cores, seconds, chains=chains))
            shares.append(f"{PER_CORE * seconds / taken:.0%}")
        each = (time.thread_time() - began) / (PER_CORE * cores * len(lengths))
        lines.append(f"| {cores:,} | {1e6 * each:.0f} | {' | '.join(shares)} |")
    return lines


def main() -> None:
    """Run the simulations and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.1, 1.0, 10.0, 100.0])
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    options = parser.parse_args()
    sizes = [PER_NODE] if options.smoke else options.cores
    for name, chains in (("Fan", False), ("Chains", True)):
        print(f"{name}:\n\n" + "\n".join(study(sizes, options.seconds, chains=chains)) + "\n")


if __name__ == "__main__":
    main()
