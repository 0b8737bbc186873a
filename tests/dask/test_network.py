"""Network connections that break or stop answering, between real processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from distributed import Client

from rhapsody import LocalExecutionBackend, WorkflowEngine, current_task
from rhapsody.errors import BackendUnavailableError, DependencyFailureError, TaskLostError
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.cluster import ClusterConnection
from tests.dask.clusters import foreign
from tests.dask.links import Link, link

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.long,
]

PATIENCE = 100.0
LOST = r"connection to the Dask scheduler at tcp://127\.0\.0\.1:\d+ was lost"


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers."""
    directory = tmp_path_factory.mktemp("cluster")
    with foreign(directory, tls=False, options=("--no-nanny",)) as there:
        yield json.loads(Path(there["scheduler_file"]).read_text())["address"]


@pytest.fixture
def network(scheduler: str) -> Iterator[Link]:
    """A link to that scheduler."""
    with link(scheduler) as made:
        yield made


@pytest.fixture(autouse=True)
def opened(tmp_path: Path) -> Iterator[None]:
    """Open the gate after the test, so that a failed test leaves no tasks on the workers."""
    yield
    (tmp_path / "gate").touch()


@asynccontextmanager
async def engine(address: str, **options: Any) -> AsyncIterator[WorkflowEngine]:
    """Run an engine on the scheduler at an address; it must end in time, too."""
    backend = DaskExecutionBackend(address=address, grace=1, **options)
    async with asyncio.timeout(PATIENCE), WorkflowEngine.create(backend=backend) as flow:
        yield flow


@asynccontextmanager
async def worker_behind(network: Link, flow: WorkflowEngine, path: Path) -> AsyncIterator[str]:
    """Run one more worker, which connects to the scheduler through a link; yield its address."""
    backend: Any = flow.backend
    client = backend.client
    words = [
        "-m", "dask", "worker", network.address, "--no-nanny", "--nthreads=1", "--host=127.0.0.1",
        "--no-dashboard", f"--local-directory={path / 'worker'}",
    ]  # fmt: skip
    others = set((await client.scheduler.identity(n_workers=-1))["workers"])
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=path)
    try:
        await client.wait_for_workers(len(others) + 1)
        (mine,) = set((await client.scheduler.identity(n_workers=-1))["workers"]) - others
        yield mine
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _remove_silent(client: Client, worker: str) -> None:
    """Let the scheduler remove a worker once it has heard all others 8 s after that one.

    A fixed `worker-ttl` would remove the others, too, if the whole machine stalled for that long.
    """

    async def remove(dask_scheduler: Any) -> None:
        from distributed.metrics import time

        silent = dask_scheduler.workers[worker]
        others = [other for other in dask_scheduler.workers.values() if other is not silent]
        while any(other.last_seen < silent.last_seen + 8 for other in others):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        dask_scheduler.worker_ttl = time() - silent.last_seen - 3
        await dask_scheduler.check_worker_ttl()

    await client.run_on_scheduler(remove)


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Tasks:
    """The tasks of these tests, on one engine.

    `hold` writes its attempt and its process id to a file, and returns the process id once there is
    a gate.
    """

    def __init__(self, flow: WorkflowEngine, directory: Path) -> None:
        self.trace = directory / "trace"
        self.gate = directory / "gate"
        trace, gate = str(self.trace), str(self.gate)

        @flow.function_task
        def square(x: int) -> int:
            return x * x

        @flow.function_task
        def add(*numbers: int) -> int:
            return sum(numbers)

        @flow.function_task
        def hold() -> int:
            with open(trace, "a") as file:
                file.write(f"{current_task().attempt} {os.getpid()}\n")
            while not os.path.exists(gate):
                time.sleep(0.02)
            return os.getpid()

        @flow.executable_task
        async def program() -> str:
            return f"while [ ! -e '{gate}' ]; do sleep 0.05; done; echo fine"

        self.square, self.add, self.hold, self.program = square, add, hold, program

    def starts(self, attempt: int | None = None) -> list[int]:
        """Return the process ids that `hold` has written, in all attempts or in one of them."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        found = [(int(number), int(pid)) for number, pid in map(str.split, lines)]
        return [pid for number, pid in found if attempt in (None, number)]

    async def start_two(self) -> list[Any]:
        """Start `hold` and `program`, and return their futures once both tasks run."""
        running: list[Any] = [self.hold(), self.program()]
        await _until(lambda: all(one.state is TasksMainStates.RUNNING for one in running))
        return running

    def submit_more(self, held: Any) -> list[Any]:
        """Submit 20 tasks, and one that uses the value of `held`; return their futures."""
        return [*(self.square(number) for number in range(20)), self.add(held, 1)]


@pytest.mark.parametrize("healed", [True, False])
async def test_tasks_fail_if_the_connection_to_the_scheduler_is_cut(
    network: Link, scheduler: str, tmp_path: Path, healed: bool
) -> None:
    async with engine(network.address) as flow:
        tasks = Tasks(flow, tmp_path)
        backend: Any = flow.backend
        client = backend.client
        done, kept = tasks.square(3), tasks.square(4)
        assert (await tasks.add(kept, 1), await done) == (17, 9)
        running = await tasks.start_two()
        waiting = tasks.submit_more(running[0])
        network.cut()
        for future in (*running, *waiting):
            with pytest.raises(Exception, match=LOST):
                await future
        if healed:  # while Dask's client connects again although it is being closed
            await _until(lambda: client.rpc.status.name == "closed")
            network.heal()
        with pytest.raises(BackendUnavailableError, match=LOST):
            await kept
        assert await done == 9
        with pytest.raises(BackendUnavailableError, match=f"{LOST}: .* Create a new"):
            await tasks.square(5)
        tasks.gate.touch()
    network.heal()
    async with engine(network.address) as flow:
        assert await Tasks(flow, tmp_path).square(6) == 36


@pytest.mark.parametrize("healed", [True, False])
async def test_a_cut_during_the_start_is_reported(
    network: Link, scheduler: str, monkeypatch: pytest.MonkeyPatch, healed: bool
) -> None:
    """If Dask's client connects again, the scheduler has removed the plugins nevertheless."""

    def plugins(dask_scheduler: Any) -> list[str]:
        names = [*dask_scheduler.plugins, *dask_scheduler.worker_plugins]
        return [name for name in names if name.startswith("rhapsody-")]

    original = ClusterConnection.send_modules

    async def send_modules(self: ClusterConnection, *arguments: Any) -> None:
        network.cut()
        if healed:
            network.heal()
            await _until(lambda: self.client.status == "connecting")
            await _until(lambda: self.client.status == "running")
        await original(self, *arguments)

    monkeypatch.setattr(ClusterConnection, "send_modules", send_modules)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(BackendUnavailableError, match=LOST):
            await DaskExecutionBackend(address=network.address)
    async with (
        asyncio.timeout(PATIENCE),
        Client(scheduler, asynchronous=True, set_as_default=False) as client,
    ):
        while await client.run_on_scheduler(plugins):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_tasks_run_on_another_backend_if_the_connection_is_cut(
    network: Link, tmp_path: Path
) -> None:
    backends = [DaskExecutionBackend(address=network.address), LocalExecutionBackend()]
    async with asyncio.timeout(PATIENCE), WorkflowEngine.create(backend=backends) as flow:
        tasks = Tasks(flow, tmp_path)
        running = tasks.hold.options(other_backends=("local",))()
        await _until(tasks.starts)
        network.cut()
        await _until(lambda: len(tasks.starts()) == 2)
        tasks.gate.touch()
        assert await running == tasks.starts()[1]
        assert running.backend == "local"


async def test_tasks_survive_a_connection_that_is_frozen_for_a_while(
    network: Link, tmp_path: Path
) -> None:
    async with engine(network.address) as flow:
        tasks = Tasks(flow, tmp_path)
        running = await tasks.start_two()
        network.freeze()
        waiting = tasks.submit_more(running[0])
        tasks.gate.touch()
        _, late = await asyncio.wait(waiting, timeout=0.5)
        assert len(late) == len(waiting)
        network.heal()
        (pid,) = tasks.starts()
        assert await asyncio.gather(*running) == [pid, "fine\n"]
        assert await asyncio.gather(*waiting) == [*(n * n for n in range(20)), pid + 1]


async def test_tasks_fail_if_a_frozen_connection_is_cut(network: Link, tmp_path: Path) -> None:
    async with engine(network.address) as flow:
        tasks = Tasks(flow, tmp_path)
        running = tasks.hold()
        await _until(tasks.starts)
        network.freeze()
        waiting = tasks.submit_more(running)
        large = tasks.square(bytes(2_000_000))
        await asyncio.wait([large], timeout=0.5)
        network.cut()
        for future in (running, large, *waiting):
            with pytest.raises(Exception, match=LOST):
                await future
        tasks.gate.touch()


# Dask cannot close a frozen connection, so its transport may be left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_shutdown_ends_while_the_connection_is_frozen(
    network: Link, tmp_path: Path
) -> None:
    async with engine(network.address) as flow:
        tasks = Tasks(flow, tmp_path)
        running = await tasks.start_two()
        network.freeze()
        waiting = tasks.submit_more(running[0])
        await asyncio.wait(waiting, timeout=0.5)
        await flow.shutdown()
    assert all(future.cancelled() for future in (*running, *waiting))
    tasks.gate.touch()


@pytest.mark.parametrize("fault", ["cut", "freeze"])
@pytest.mark.parametrize("budget", [0, 1])
async def test_tasks_of_a_disconnected_worker_are_lost(
    scheduler: str, network: Link, tmp_path: Path, fault: str, budget: int
) -> None:
    """The first attempt ends after the second has started; its result is dropped.

    Dask may start the first attempt again on another worker before the backend stops it.
    """
    async with engine(scheduler) as flow, worker_behind(network, flow, tmp_path) as worker:
        tasks = Tasks(flow, tmp_path)
        prefer = {"workers": [worker], "allow_other_workers": True}
        hold = tasks.hold.options(lost_retries=budget, task_description=prefer)
        future = hold()
        after = tasks.add(future, 1)
        await _until(lambda: future.state is TasksMainStates.RUNNING and tasks.starts())
        first = tasks.starts()[0]
        getattr(network, fault)()
        if fault == "freeze":
            backend: Any = flow.backend
            await _remove_silent(backend.client, worker)
        if budget == 0:
            with pytest.raises(TaskLostError, match=f"worker {worker} disappeared while"):
                await future
            network.heal()
            tasks.gate.touch()
        else:
            await _until(lambda: tasks.starts(attempt=2))
            network.heal()
            (second,) = tasks.starts(attempt=2)
            assert second != first
            tasks.gate.touch()
            assert await future == second
            assert await after == second + 1
            assert tasks.starts(attempt=2) == [second]
            assert future.attempt == 2
        assert await asyncio.gather(*(tasks.square(n) for n in range(20))) == [
            n * n for n in range(20)
        ]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_tasks_end_whenever_the_network_fails(
    scheduler: str, tmp_path: Path, seed: int
) -> None:
    """Every task has its value, or fails because the client has lost the scheduler."""
    random = Random(seed)
    faults: list[tuple[Link, str]] = []

    async def disturb(*links: Link) -> None:
        for _ in range(3):
            await asyncio.sleep(random.uniform(0, 0.5))
            faults.append((random.choice(links), random.choice(["cut", "freeze"])))
            network, fault = faults[-1]
            getattr(network, fault)()
            await asyncio.sleep(random.uniform(0, 1))
            network.heal()

    with link(scheduler) as near, link(scheduler) as far:
        batch_calls = random.random() < 0.5
        async with (
            engine(near.address, batch_calls=batch_calls) as flow,
            worker_behind(far, flow, tmp_path),
        ):
            tasks = Tasks(flow, tmp_path)
            tasks.gate.touch()
            disturbance = asyncio.ensure_future(disturb(near, far, far))
            expected: list[tuple[Any, Any]] = []
            for _ in range(10):
                for number in range(10):
                    square = tasks.square(number)
                    total = tasks.add(square, tasks.square(square))
                    expected += [(square, number**2), (total, number**2 + number**4)]
                expected.append((tasks.program(), "fine\n"))
                await asyncio.sleep(random.uniform(0, 0.3))
            for future, value in expected:
                try:
                    assert await future == value
                except (BackendUnavailableError, DependencyFailureError) as error:
                    cause = getattr(error, "root_cause", None) or error
                    assert isinstance(cause, BackendUnavailableError)
                    assert (near, "cut") in faults
            await disturbance
    async with engine(scheduler) as flow:
        assert await Tasks(flow, tmp_path).square(6) == 36
