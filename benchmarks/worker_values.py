"""Compare worker values with what other systems offer for a value that calls share on workers.

A value takes `--build` seconds to build on each of two workers. Many calls use it, and each takes
`--call` seconds. The figures are the whole time as a multiple of the ideal time, and the time per
call of a function that does nothing, once the value has been built. In the latter case, the same
calls with an integer instead of the value show what the value costs.

Contestants take turns, each in a separate process, and the best of all rounds is shown. Install the
systems to compare with: `pip install executorlib ray rhapsody-dask`. Those that are missing are
left out. `--smoke` only checks that everything runs.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# The neighbor dask.py must not hide Dask itself.
sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != Path(__file__).parent]

WORKERS = 2
FACTOR = 3

Figures = dict[str, float]


def build(seconds: float) -> int:
    time.sleep(seconds)
    return FACTOR


def predict(number: int, seconds: float, model: int) -> int:
    if seconds:
        time.sleep(seconds)
    return number * model


def measure(run: Callable[[float, int], Sequence[int]], call: float, calls: int) -> Figures:
    """Measure calls of `call` seconds with a value that is not built yet, then calls of no work."""
    start = time.perf_counter()
    results = run(call, calls)
    whole = time.perf_counter() - start
    assert list(results) == [number * FACTOR for number in range(calls)]
    run(0.0, calls // 10)
    start = time.perf_counter()
    run(0.0, calls)
    return {"whole": whole, "empty": (time.perf_counter() - start) / calls}


# The contestants.


async def with_engine(flow: Any, seconds: float, call: float, calls: int) -> Figures:
    task = flow.function_task(predict)
    model = flow.worker_value(build)(seconds)

    async def run(pause: float, number: int, value: Any) -> list[int]:
        return list(await asyncio.gather(*(task(each, pause, value) for each in range(number))))

    start = time.perf_counter()
    results = await run(call, calls, model)
    whole = time.perf_counter() - start
    assert results == [number * FACTOR for number in range(calls)]
    found = {"whole": whole}
    for name, value in (("empty", model), ("integer", FACTOR)):
        await run(0.0, calls // 10, value)
        start = time.perf_counter()
        await run(0.0, calls, value)
        found[name] = (time.perf_counter() - start) / calls
    return found


def rhapsody_local(kind: str) -> Callable[[float, float, int], Figures]:
    def run(seconds: float, call: float, calls: int) -> Figures:
        from rhapsody import LocalExecutionBackend, WorkflowEngine

        async def main() -> Figures:
            backend = LocalExecutionBackend(kind, resources={"cores": WORKERS, "workers": WORKERS})
            async with WorkflowEngine.create(backend) as flow:
                return await with_engine(flow, seconds, call, calls)

        return asyncio.run(main())

    return run


def rhapsody_dask(seconds: float, call: float, calls: int) -> Figures:
    from rhapsody import WorkflowEngine
    from rhapsody_dask import DaskExecutionBackend

    async def main() -> Figures:
        backend = DaskExecutionBackend({"n_workers": WORKERS, "threads": 1})
        async with WorkflowEngine.create(backend) as flow:
            return await with_engine(flow, seconds, call, calls)

    return asyncio.run(main())


def initializer(seconds: float, call: float, calls: int) -> Figures:
    """Run a pool of the standard library, the floor: it builds the value when it starts."""
    with ProcessPoolExecutor(WORKERS, initializer=set_model, initargs=(seconds,)) as pool:

        def run(pause: float, number: int) -> list[int]:
            return list(pool.map(with_global, range(number), [pause] * number))

        return measure(run, call, calls)


def set_model(seconds: float) -> None:
    globals()["MODEL"] = build(seconds)


def with_global(number: int, seconds: float) -> int:
    return predict(number, seconds, globals()["MODEL"])


def dask_worker(seconds: float, call: float, calls: int) -> Figures:
    """Run Dask with an attribute of `get_worker()`."""
    from distributed import Client, LocalCluster, get_worker

    def call_it(number: int, pause: float) -> int:
        worker: Any = get_worker()
        if not hasattr(worker, "model"):
            worker.model = build(seconds)
        return predict(number, pause, worker.model)

    with ExitStack() as stack:
        cluster: Any = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
        client = stack.enter_context(Client(stack.enter_context(cluster)))

        def run(pause: float, number: int) -> list[int]:
            found: list[int] = client.gather(
                client.map(call_it, range(number), [pause] * number, pure=False)
            )
            return found

        return measure(run, call, calls)


def dask_actor(seconds: float, call: float, calls: int) -> Figures:
    """Run Dask with an actor on each worker."""
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        cluster: Any = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
        client = stack.enter_context(Client(stack.enter_context(cluster)))
        actors: list[Any] = []

        def run(pause: float, number: int) -> list[int]:
            if not actors:
                actors.extend(
                    client.submit(Model, seconds, actor=True, workers=[address])
                    for address in client.scheduler_info()["workers"]
                )
                actors[:] = [each.result() for each in actors]
            futures = [actors[n % WORKERS].predict(n, pause) for n in range(number)]
            return [future.result() for future in futures]

        return measure(run, call, calls)


class Model:
    def __init__(self, seconds: float) -> None:
        self.model = build(seconds)

    def predict(self, number: int, seconds: float) -> int:
        return predict(number, seconds, self.model)


def ray_actors(seconds: float, call: float, calls: int) -> Figures:
    """Run an actor pool of Ray."""
    ray: Any = importlib.import_module("ray")
    actor_pool: Any = importlib.import_module("ray.util").ActorPool

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="error")
    pools: list[Any] = []

    def run(pause: float, number: int) -> list[int]:
        if not pools:
            remote: Any = ray.remote(Model)
            pools.append(actor_pool([remote.remote(seconds) for _ in range(WORKERS)]))
        return list(
            pools[0].map(lambda actor, each: actor.predict.remote(each, pause), range(number))
        )

    try:
        return measure(run, call, calls)
    finally:
        ray.shutdown()


def executorlib(seconds: float, call: float, calls: int) -> Figures:
    """Run executorlib with `init_function` and `block_allocation`."""
    executor_type: Any = importlib.import_module("executorlib").SingleNodeExecutor

    def init() -> dict[str, Any]:
        return {"model": build(seconds)}

    def call_it(number: int, pause: float, model: int) -> int:
        return predict(number, pause, model)

    with executor_type(max_workers=WORKERS, block_allocation=True, init_function=init) as executor:

        def run(pause: float, number: int) -> list[int]:
            futures = [executor.submit(call_it, each, pause) for each in range(number)]
            return [future.result() for future in futures]

        return measure(run, call, calls)


CONTESTANTS: dict[str, tuple[str, Callable[[float, float, int], Figures]]] = {
    "rhapsody, threads": ("rhapsody", rhapsody_local("thread")),
    "rhapsody, processes": ("rhapsody", rhapsody_local("process")),
    "rhapsody, dask": ("rhapsody_dask", rhapsody_dask),
    "initializer": ("", initializer),
    "dask, get_worker": ("distributed", dask_worker),
    "dask, actors": ("distributed", dask_actor),
    "ray, actor pool": ("ray", ray_actors),
    "executorlib, init_function": ("executorlib", executorlib),
}
"""The module that each contestant needs, and the function that measures it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--build", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--call", type=float, default=0.001, metavar="SECONDS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--run", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.calls, options.build, options.rounds = 100, 0.1, 1
    if options.run:
        found = CONTESTANTS[options.run][1](options.build, options.call, options.calls)
        print(json.dumps(found))
        return
    ideal = options.build + options.calls * options.call / WORKERS
    best: dict[str, Figures] = {}
    for _ in range(options.rounds):
        for name in options.only:
            module = CONTESTANTS[name][0]
            if module and importlib.util.find_spec(module) is None:
                continue
            words = [sys.executable, __file__, "--run", name, "--calls", str(options.calls)]
            words += ["--build", str(options.build), "--call", str(options.call)]
            ended = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
            found = json.loads(ended.stdout.splitlines()[-1])
            former = best.get(name, found)
            best[name] = {key: min(value, former[key]) for key, value in found.items()}
    print(f"{options.calls} calls of {options.call * 1e3:g} ms, value built in {options.build:g} s")
    print(f"{'':28}{'time / ideal':>14}{'us per empty call':>20}{'with an integer':>18}")
    for name, found in best.items():
        integer = f"{found['integer'] * 1e6:18.1f}" if "integer" in found else ""
        print(f"{name:28}{found['whole'] / ideal:14.2f}{found['empty'] * 1e6:20.1f}{integer}")


if __name__ == "__main__":
    main()
