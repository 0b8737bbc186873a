"""Contestants that run other systems, each in the fastest way that its documentation shows.

A system is imported when it starts, because each process runs only one of them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.floors import Pool
from benchmarks.suite.graphs import Graph, program


class Asyncflow(Contestant):
    """radical.asyncflow."""

    needs = "radical.asyncflow"

    async def start(self) -> None:
        """Start an engine."""
        peer: Any = importlib.import_module("radical.asyncflow")
        self.flow = await peer.WorkflowEngine.create(backend=await self.backend(peer))
        self.stack.push_async_callback(self.flow.shutdown)
        self.tasks: dict[Callable[..., Any], Callable[..., Any]] = {}

    async def backend(self, peer: Any) -> Any:
        """Return the backend."""
        return await peer.LocalExecutionBackend(self.executor())

    def executor(self) -> Executor:
        """Return the executor for radical.asyncflow's local backend."""
        raise NotImplementedError

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task for a function; only coroutine functions are accepted."""

        async def call(*arguments: Any) -> Any:
            return function(*arguments)

        async def command(words: list[str] | str) -> str:
            return words if isinstance(words, str) else " ".join(words)

        made = self.flow.executable_task(command) if function is program else None
        self.tasks[function] = made or self.flow.function_task(call)
        return self.tasks[function]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a task."""
        return (self.tasks.get(function) or self.task(function))(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Await all futures."""
        await asyncio.gather(*futures)


class AsyncflowNoop(Asyncflow):
    """The engine alone."""

    title = "radical.asyncflow, noop"

    async def backend(self, peer: Any) -> Any:
        """Return radical.asyncflow's noop backend."""
        return peer.NoopExecutionBackend()


class AsyncflowThreads(Asyncflow):
    """Threads."""

    title = "radical.asyncflow, threads"

    def executor(self) -> Executor:
        """Return an executor with as many threads as cores."""
        return self.stack.enter_context(ThreadPoolExecutor(SLOTS))


class AsyncflowProcesses(Asyncflow):
    """Processes."""

    title = "radical.asyncflow, processes"

    def executor(self) -> Executor:
        """Return an executor with as many processes as cores."""
        return self.stack.enter_context(ProcessPoolExecutor(SLOTS))


class Parsl(Contestant):
    """Parsl."""

    needs = "parsl"

    async def start(self) -> None:
        """Load a configuration."""
        self.parsl: Any = importlib.import_module("parsl")
        directory = self.stack.enter_context(tempfile.TemporaryDirectory())
        config = importlib.import_module("parsl.config").Config(
            executors=[self.executor()],
            run_dir=directory,
            initialize_logging=False,
            strategy="none",
        )
        self.stack.enter_context(self.parsl.load(config))
        self.apps: dict[Callable[..., Any], Callable[..., Any]] = {}

    def executor(self) -> Any:
        """Return the executor."""
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call an app."""
        app = self.apps.get(function)
        if app is None:
            app = self.apps[function] = (
                self.parsl.bash_app(command)
                if function is program
                else self.parsl.python_app(function)
            )
        return app(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Wait for the futures one after the other."""
        for future in futures:
            future.result()


def command(words: list[str] | str) -> str:
    """Return the command of a bash app of Parsl."""
    return words if isinstance(words, str) else " ".join(words)


class ParslThreads(Parsl):
    """Parsl's ThreadPoolExecutor."""

    title = "Parsl, threads"

    def executor(self) -> Any:
        """Return an executor with as many threads as cores."""
        executors: Any = importlib.import_module("parsl.executors")
        return executors.ThreadPoolExecutor(max_threads=SLOTS)


class ParslProcesses(Parsl):
    """Parsl's HighThroughputExecutor, with its workers on this machine."""

    title = "Parsl, HighThroughput"

    def executor(self) -> Any:
        """Return an executor with as many workers as cores."""
        executors: Any = importlib.import_module("parsl.executors")
        providers: Any = importlib.import_module("parsl.providers")
        return executors.HighThroughputExecutor(
            address="127.0.0.1",
            max_workers_per_node=SLOTS,
            cores_per_worker=1,
            provider=providers.LocalProvider(init_blocks=1, max_blocks=1),
        )


class Executorlib(Pool):
    """executorlib with persistent workers. It waits for futures in arguments itself."""

    title = "executorlib"
    needs = "executorlib"

    def executor(self) -> Executor:
        """Return an executor with as many workers as cores."""
        peer: Any = importlib.import_module("executorlib")
        made: Executor = peer.SingleNodeExecutor(max_workers=SLOTS, block_allocation=True)
        return made

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a call."""
        return self.pool.submit(function, *arguments)


class Ray(Contestant):
    """Ray, with a head node on this machine."""

    title = "Ray"
    needs = "ray"

    async def start(self) -> None:
        """Start Ray's services."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.ray: Any = importlib.import_module("ray")
        self.ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
        self.stack.callback(self.ray.shutdown)
        self.remotes: dict[Callable[..., Any], Any] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a remote function."""
        remote = self.remotes.get(function)
        if remote is None:
            remote = self.remotes[function] = self.ray.remote(function)
        return remote.remote(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Wait for all futures."""
        self.ray.get(list(futures))


class Dask(Contestant):
    """Dask's distributed, with worker processes on this machine."""

    title = "Dask"
    needs = "distributed"

    async def start(self) -> None:
        """Start a cluster."""
        distributed: Any = importlib.import_module("distributed")
        cluster = self.stack.enter_context(
            distributed.LocalCluster(
                n_workers=SLOTS, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
        )
        self.client = self.stack.enter_context(distributed.Client(cluster))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a call."""
        return self.client.submit(function, *arguments, pure=False)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Gather all results."""
        self.client.gather(list(futures))


class Prefect(Contestant):
    """Prefect, with a temporary server and with tasks on threads."""

    title = "Prefect, threads"
    needs = "prefect"

    async def start(self) -> None:
        """Start a server."""
        home = self.stack.enter_context(tempfile.TemporaryDirectory())
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        os.environ.update(quiet, PREFECT_HOME=home, DO_NOT_TRACK="1")
        self.prefect: Any = importlib.import_module("prefect")
        testing: Any = importlib.import_module("prefect.testing.utilities")
        self.runners: Any = importlib.import_module("prefect.task_runners")
        harness = testing.prefect_test_harness(server_startup_timeout=120)
        self.stack.enter_context(harness)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a task inside a flow."""
        return self.prefect.task(function).submit(*arguments)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Not used: the flow in `run` waits for its tasks."""
        raise NotImplementedError

    async def run(self, graph: Graph) -> None:
        """Run a graph as a flow, on a thread because its calls block."""

        @self.prefect.flow(task_runner=self.runners.ThreadPoolTaskRunner(max_workers=SLOTS))  # type: ignore[untyped-decorator]
        def flow() -> None:
            for future in self.submit_all(graph):
                future.result()

        await asyncio.to_thread(flow)
