"""Values of tasks that stay on the workers until they are needed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import LocalExecutionBackend, TasksMainStates, WorkflowEngine, hookimpl, wait
from rhapsody.errors import BackendUnavailableError, DependencyFailureError, TaskLostError
from rhapsody_dask import DaskExecutionBackend
from tests.dask.clusters import foreign

pytestmark = pytest.mark.asyncio

HERE = os.getpid()
BIG = 50_000_000
arrivals: list[int] = []


def _arrive(size: int, content: bytes) -> Traveller:
    if os.getpid() == HERE:
        arrivals.append(size)
    return Traveller(size, content)


class Traveller:
    """Value that records when it is unpacked in this process."""

    def __init__(self, size: int, content: bytes | None = None) -> None:
        self.size = size
        self.content = bytes(size) if content is None else content

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.size, self.content)


class Tasks:
    """The functions of these tests, on one engine."""

    def __init__(self, flow: WorkflowEngine) -> None:
        @flow.function_task
        def make(size: int) -> Traveller:
            return Traveller(size)

        @flow.function_task
        def again(traveller: Traveller) -> Traveller:
            return Traveller(traveller.size)

        @flow.function_task
        def size(*travellers: Traveller) -> int:
            return sum(traveller.size for traveller in travellers)

        self.make, self.again, self.size = make, again, size


@pytest_asyncio.fixture
async def held(flow: WorkflowEngine) -> AsyncIterator[Tasks]:
    arrivals.clear()
    yield Tasks(flow)


async def on_workers(flow: WorkflowEngine) -> int:
    """Return the number of values of the engine's tasks that the workers hold."""
    backend: Any = flow.backend
    where = await backend.client.scheduler.who_has()
    return sum(flow.uid in key and bool(workers) for key, workers in where.items())


async def until_on_workers(flow: WorkflowEngine, number: int) -> None:
    gc.collect()
    while await on_workers(flow) != number:  # noqa: ASYNC110 - Dask has no event for it
        await asyncio.sleep(0.01)


async def test_a_large_intermediate_value_is_not_fetched(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(BIG)
    second = held.again(first)
    tracemalloc.start()
    assert await held.size(first, second) == 2 * BIG
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrivals == []
    assert peak < BIG / 5
    assert first.state is second.state is TasksMainStates.DONE
    await first.ended()


async def test_awaiting_fetches_the_value(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(10)
    second = held.size(first)
    assert await second == 10
    assert arrivals == []
    assert (await first).size == 10
    assert arrivals == [10]
    assert first.done()
    assert first.result().size == 10
    assert (await first).size == 10
    assert arrivals == [10]


async def test_all_wait_functions_of_asyncio_fetch_the_value(
    flow: WorkflowEngine, held: Tasks
) -> None:
    futures = [held.make(number) for number in range(8)]
    assert await held.size(*futures) == 28
    assert arrivals == []
    assert (await asyncio.gather(futures[0]))[0].size == 0
    done, _ = await asyncio.wait([futures[1]])
    assert done.pop().result().size == 1
    for one in asyncio.as_completed([futures[2]]):
        assert (await one).size == 2
    assert (await asyncio.wait_for(futures[3], 30)).size == 3
    assert (await asyncio.shield(futures[4])).size == 4
    called = asyncio.Event()
    futures[5].add_done_callback(lambda _: called.set())
    await called.wait()
    assert futures[5].result().size == 5
    while not futures[6].done():  # noqa: ASYNC110 - looking is what is tested
        await asyncio.sleep(0)
    assert futures[6].result().size == 6
    assert sorted(arrivals) == [0, 1, 2, 3, 4, 5, 6]


async def test_result_raises_before_the_value_is_fetched(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(3)
    await held.size(first)
    with pytest.raises(asyncio.InvalidStateError, match="await"):
        first.result()
    with pytest.raises(asyncio.InvalidStateError):
        first.exception()
    assert (await first).size == 3
    assert first.exception() is None


async def test_a_synchronous_block_can_wait_for_a_remote_value(
    flow: WorkflowEngine, held: Tasks
) -> None:
    first = held.make(4)
    await held.size(first)

    @flow.block
    def block() -> int:
        return wait(first, 30).size

    assert await block() == 4


async def test_a_later_task_uses_the_value_on_the_worker(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(7)
    assert await held.size(first) == 7
    second = held.again(first)
    assert await held.size(second, first) == 14
    assert arrivals == []


async def test_a_task_called_before_its_dependency_ends_uses_the_value_on_the_worker(
    flow: WorkflowEngine, held: Tasks, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    @flow.function_task
    async def slow() -> Traveller:
        while not os.path.exists(gate):  # noqa: ASYNC110, ASYNC240 - in another process
            await asyncio.sleep(0.01)
        return Traveller(5)

    first = slow()
    while first.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    size = held.size(first)
    gate.touch()
    assert await size == 5
    assert arrivals == []


async def test_tasks_with_retries_and_blocks_fetch_the_value(
    flow: WorkflowEngine, held: Tasks
) -> None:
    first, second = held.make(7), held.make(8)
    assert await held.size(first, second) == 15
    retried = held.size.options(retries=1)

    @flow.block
    async def block(traveller: Traveller) -> int:
        return traveller.size

    results = await asyncio.gather(retried(first), block(first), retried(first, second))
    assert [*results] == [7, 7, 15]
    assert set(arrivals) == {7, 8}


async def test_a_task_can_depend_on_remote_and_other_values(
    flow: WorkflowEngine, held: Tasks
) -> None:
    @flow.function_task(retries=1)
    def plain(number: int) -> Traveller:
        return Traveller(number)

    first = held.make(1)
    assert await held.size(first) == 1
    late: asyncio.Future[Traveller] = asyncio.get_running_loop().create_future()
    futures = [held.size(first, plain(2)), held.size(first, late), held.size(first, plain(3), late)]
    await futures[0]
    late.set_result(Traveller(4))
    assert await asyncio.gather(*futures) == [3, 5, 8]
    assert 1 not in arrivals


async def test_a_failed_dependency_next_to_a_remote_value_is_reported(
    flow: WorkflowEngine, held: Tasks
) -> None:
    @flow.function_task
    def bad(traveller: Traveller) -> Traveller:
        raise KeyError(traveller.size)

    first = held.make(1)
    assert await held.size(first) == 1
    failed = bad(first)
    last = held.size(first, failed, held.make(2))
    with pytest.raises(DependencyFailureError) as caught:
        await last
    assert caught.value.failed_dependencies == ["bad"]
    with pytest.raises(KeyError):
        await failed


async def test_output_is_fetched_with_the_value(flow: WorkflowEngine, held: Tasks) -> None:
    @flow.function_task
    def loud() -> Traveller:
        print("hello")
        return Traveller(6)

    first = loud()
    assert await held.size(first) == 6
    assert arrivals == []
    assert (await first).size == 6
    assert first.stdout == "hello\n"


async def test_the_value_is_fetched_for_another_backend(cluster: Any) -> None:
    arrivals.clear()
    backends = [DaskExecutionBackend(cluster=cluster), LocalExecutionBackend()]
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backends) as flow:
        tasks = Tasks(flow)
        first = tasks.make(9)
        assert await tasks.size(first) == 9
        assert arrivals == []
        assert await tasks.size.options(backend="local")(first) == 9
        assert arrivals == [9]


async def test_the_value_is_fetched_for_another_engine(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(9)
    assert await held.size(first) == 9
    async with WorkflowEngine.create() as other:
        assert await Tasks(other).size(first) == 9


async def test_a_recording_plugin_receives_every_value(cluster: Any) -> None:
    recorded: list[Any] = []

    class Recorder:
        @hookimpl
        def rhapsody_record_results(self, engine: Any, records: Any) -> None:
            recorded.extend(record.value for record in records)

    backend = DaskExecutionBackend(cluster=cluster)
    async with (
        asyncio.timeout(60),
        WorkflowEngine.create(backend=backend, observers=[Recorder()]) as flow,
    ):
        tasks = Tasks(flow)
        assert await tasks.size(tasks.make(9)) == 9
    assert [getattr(value, "size", value) for value in recorded] == [9, 9]


async def test_workers_release_a_value_with_its_last_reference(
    flow: WorkflowEngine, held: Tasks
) -> None:
    first = held.make(BIG)
    second = held.again(first)
    assert await held.size(second) == BIG
    await until_on_workers(flow, 2)
    del first
    await until_on_workers(flow, 1)
    later = held.size(second)
    del second
    assert await later == BIG
    await until_on_workers(flow, 0)
    assert arrivals == []


async def test_workers_release_a_value_that_was_fetched(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(10)
    await held.size(first)
    await until_on_workers(flow, 1)
    await first
    await until_on_workers(flow, 0)


async def test_many_intermediate_values_use_no_local_memory(
    flow: WorkflowEngine, held: Tasks
) -> None:
    async def run(number: int) -> None:
        future = held.make(1_000_000)
        for _ in range(number):
            future = held.again(future)
        assert await held.size(future) == 1_000_000

    await run(5)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await run(100)
    gc.collect()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrivals == []
    assert peak - before < 20_000_000
    assert after - before < 5_000_000
    await until_on_workers(flow, 0)


async def test_canceling_a_finished_task_has_no_effect(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(3)
    assert await held.size(first) == 3
    assert not first.cancel()
    assert (await first).size == 3
    assert not first.cancel()


async def test_waiting_for_a_value_can_be_canceled(flow: WorkflowEngine, held: Tasks) -> None:
    first = held.make(3)
    assert await held.size(first) == 3

    async def reader() -> Traveller:
        return await first

    reading = asyncio.ensure_future(reader())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert first.cancelled()
    assert first.state is TasksMainStates.CANCELED
    await until_on_workers(flow, 0)


async def test_a_value_not_fetched_before_shutdown_raises(cluster: Any) -> None:
    backend = DaskExecutionBackend(cluster=cluster)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
        tasks = Tasks(flow)
        first = tasks.make(3)
        assert await tasks.size(first) == 3
    assert first.done()
    with pytest.raises(BackendUnavailableError, match="push_down=False"):
        await first


def behind(future: Any) -> Any:
    """Return the backend's call of a task with a remote value."""
    return future._link._value.call


async def make_from_large(flow: WorkflowEngine) -> tuple[Any, int]:
    """Return a future whose value stays on a worker, and that worker's process id."""

    @flow.function_task
    def make(argument: bytes) -> tuple[int, int]:
        return len(argument), os.getpid()

    @flow.function_task
    def pid(made: tuple[int, int]) -> int:
        return made[1]

    made = make(bytes(2_000_000))
    return made, await pid(made)


async def test_a_value_lost_with_its_worker_is_recomputed() -> None:
    backend = await DaskExecutionBackend({"n_workers": 2, "threads": 1})
    async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:
        made, victim = await make_from_large(flow)
        # Dask needs the argument, which is shared: it is kept as long as the value.
        await backend.client.amm.stop()  # it would remove one of the two copies
        await backend.client.replicate([entry.future for entry in behind(made).entries])
        os.kill(victim, signal.SIGKILL)
        assert (await made)[0] == 2_000_000


async def test_a_value_is_lost_together_with_a_large_argument_of_its_task() -> None:
    backend = await DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:
        made, victim = await make_from_large(flow)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(TaskLostError, match="large argument"):
            await made


async def test_a_value_that_cannot_be_recomputed_is_a_lost_task() -> None:
    backend = await DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:
        tasks = Tasks(flow)
        made = tasks.make(3)
        assert await tasks.size(made) == 3
        other = tasks.again(made)
        assert await tasks.size(other) == 3
        await backend.client.cancel([behind(made).future], force=True)
        await backend.client.submit(int)  # the scheduler takes requests in their order
        later = tasks.size(made)
        with pytest.raises(TaskLostError, match=r"'make'.*push_down=False"):
            await made
        assert made.state is TasksMainStates.FAILED
        with pytest.raises(DependencyFailureError):
            await later


async def test_the_end_of_the_scheduler_fails_waits_for_values(tmp_path: Path) -> None:
    with foreign(tmp_path) as given:
        processes = given.pop("processes")
        given.pop("log")
        backend = DaskExecutionBackend(**given)
        async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
            add = flow.function_task(_add)
            first, second = add(3), add(4)
            assert await add(first, second) == 7
            processes[0].kill()
            # Which of the connections breaks first is chance.
            with pytest.raises((BackendUnavailableError, TaskLostError), match="stayed with"):
                await first
            with pytest.raises(BackendUnavailableError, match="stayed with") as caught:
                await second
            assert "failed" not in str(caught.value)  # the task did not


def _add(*numbers: int) -> int:
    return sum(numbers)


_add.__module__ = "__main__"  # the workers do not see this module
