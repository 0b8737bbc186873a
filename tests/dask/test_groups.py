"""Calls that share a Dask task but succeed, fail, start and are canceled separately."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine, current_task
from rhapsody.errors import TaskLostError, TaskTimeoutError
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio

LIMIT = 60.0


@pytest_asyncio.fixture
async def grouping(cluster: Any) -> AsyncIterator[WorkflowEngine]:
    """An engine that groups short calls, on the shared cluster."""
    async with asyncio.timeout(LIMIT):
        backend = await DaskExecutionBackend(cluster=cluster, batch_calls=True)
        async with WorkflowEngine.create(backend=backend) as flow:
            yield flow


@pytest.fixture
def mortal_cluster() -> Iterator[Any]:
    """A cluster whose workers the test may kill, as a user would create it."""
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "365 days"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"allowed_failures": 0},
        ) as made,
    ):
        yield made


@pytest_asyncio.fixture
async def own() -> AsyncIterator[WorkflowEngine]:
    """An engine that groups short calls, on its own cluster."""
    async with asyncio.timeout(LIMIT):
        backend = DaskExecutionBackend({"n_workers": 2, "threads": 1}, batch_calls=True)
        async with WorkflowEngine.create(backend=backend) as flow:
            yield flow


def _open_tasks(flow: WorkflowEngine) -> Any:
    backend: Any = flow.backend
    return backend.open_tasks


async def _until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - the fixtures limit the time
        await asyncio.sleep(0.02)


def _key() -> str:
    """In a worker: return the key of the Dask task that runs this call."""
    from distributed import get_worker

    return str(get_worker().get_current_task())


def _hold(path: str) -> None:
    """In a worker: wait for a file."""
    until = time.monotonic() + LIMIT
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.005)


def _open_gate(path: str) -> None:
    Path(path).touch()


def _probe(number: int, gate: str = "") -> tuple[str, int]:
    """In a worker: wait for a file if one is named, and return the key and the attempt."""
    if gate:
        _hold(gate)
    task = current_task()
    assert task is not None
    return _key(), task.attempt


async def _learnt(flow: WorkflowEngine) -> Any:
    """Return a task of `_probe` that the backend knows to be short."""
    task = flow.function_task(_probe)
    while not any("+" in key and "+0" not in key for key, _ in await _fan(task)):
        pass
    return task


async def _fan(task: Any) -> list[Any]:
    return await asyncio.gather(*_calls(task, range(20)))


def _calls(task: Any, numbers: Any) -> list[Any]:
    return [task(number) for number in numbers]


async def test_short_calls_share_tasks_but_have_separate_outcomes(
    grouping: WorkflowEngine,
) -> None:
    @grouping.function_task
    def odd(number: int) -> tuple[int, str]:
        print(f"number {number}")
        if number % 7 == 0:
            raise KeyError(number)
        return number, _key()

    await asyncio.gather(*grouping.map(odd, range(1, 7)))
    futures = grouping.map(odd, range(200))
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(result, KeyError) for result in results] == [
        number % 7 == 0 for number in range(200)
    ]
    values = [result for result in results if not isinstance(result, BaseException)]
    assert [number for number, _ in values] == [n for n in range(200) if n % 7]
    assert len({key for _, key in values}) < 100
    assert [future.stdout for future in futures] == [f"number {n}\n" for n in range(200)]


async def test_long_calls_are_sent_separately(grouping: WorkflowEngine, tmp_path: Path) -> None:
    """Other calls are held back only until the first calls are known to be long."""
    gate = str(tmp_path / "gate")

    @grouping.function_task
    def slow() -> str:
        _hold(gate)
        return _key()

    futures = [slow() for _ in range(12)]
    await _until(lambda: sum(not call.grouped for call in _open_tasks(grouping).values()) >= 7)
    _open_gate(gate)
    assert len(set(await asyncio.gather(*futures))) == 12


async def test_no_call_waits_for_a_long_one_in_its_group(
    grouping: WorkflowEngine, tmp_path: Path
) -> None:
    task, gate = await _learnt(grouping), str(tmp_path / "gate")
    before = [task(number) for number in range(10)]
    long = task(10, gate)
    after = [task(number) for number in range(10)]
    await asyncio.gather(*before, *after)
    await _until(lambda: long.state is TasksMainStates.RUNNING)
    _open_gate(gate)
    key, attempt = await long
    assert "+0" not in key
    assert attempt == 1


async def test_a_call_in_a_group_is_canceled_before_it_starts(
    grouping: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.groups.SCHEDULING_COST", 1.0)  # groups 20 calls at any speed
    gate, trace = str(tmp_path / "gate"), tmp_path / "trace"

    @grouping.function_task
    def write(number: int) -> int:
        with open(trace, "a") as file:
            file.write(f"{number}\n")
        return number

    @grouping.function_task
    def block() -> None:
        _hold(gate)

    await asyncio.gather(*grouping.map(write, range(100, 120)))
    blocks = [block(), block()]
    await _until(lambda: all(one.state is TasksMainStates.RUNNING for one in blocks))
    futures = grouping.map(write, range(20))
    await _until(lambda: sum(call.grouped for call in _open_tasks(grouping).values()) == 22)
    for future in futures[::2]:
        future.cancel()
    await _until(lambda: len(_open_tasks(grouping)) == 12)
    _open_gate(gate)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [number for number in results if isinstance(number, int)] == [*range(1, 20, 2)]
    ran = {int(line) for line in trace.read_text().split()}
    assert ran.isdisjoint(range(0, 20, 2))


async def test_a_call_in_a_group_times_out_alone(grouping: WorkflowEngine, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    task = grouping.function_task(timeout=LIMIT)(_probe)
    await _fan(task)
    await _fan(task)
    short = task.options(timeout=0.5)
    futures = [short(n, gate) if n == 5 else task(n) for n in range(20)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    _open_gate(gate)
    assert isinstance(results.pop(5), TaskTimeoutError)
    assert [result[1] for result in results if isinstance(result, tuple)] == [1] * 19


async def test_a_killed_worker_loses_only_the_call_that_ran(
    own: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"

    @own.function_task(lost_retries=0)
    def work(number: int, deadly: bool = False) -> tuple[int, int]:
        task = current_task()
        assert task is not None
        if deadly:
            with open(trace, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return number, task.attempt

    await asyncio.gather(*own.map(work, range(20)))
    futures = [work(number, number == 15) for number in range(30)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[15], TaskLostError)
    assert results[:15] + results[16:] == [(n, 1) for n in range(30) if n != 15]
    assert trace.read_text() == "x"


async def test_a_call_that_had_ended_before_its_worker_was_killed_runs_again(
    own: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it had been reported as running: its reply is lost with those of its group."""
    for name in ("SCHEDULING_COST", "TARGET_SECONDS", "RECALL_AFTER"):  # groups at any speed
        monkeypatch.setattr(f"rhapsody_dask.groups.{name}", LIMIT)
    gate = str(tmp_path / "gate")

    @own.function_task(lost_retries=0)
    def work(number: int, held: bool = False) -> int:
        if held:
            _hold(gate)
        elif number == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    await asyncio.gather(*own.map(work, range(10)))
    futures = [work(number, number == 14) for number in range(13, 17)]
    await _until(lambda: futures[1].state is TasksMainStates.RUNNING)
    _open_gate(gate)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results.pop(2), TaskLostError)
    assert results == [13, 14, 16]


async def test_other_calls_of_a_lost_group_finish_on_an_existing_cluster(
    mortal_cluster: Any,
) -> None:
    backend = DaskExecutionBackend(cluster=mortal_cluster, batch_calls=True)
    async with asyncio.timeout(LIMIT), WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task(lost_retries=5)
        def work(number: int, deadly: bool = False) -> int:
            if deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        await asyncio.gather(*flow.map(work, range(20)))
        fatal = work.options(lost_retries=0)
        futures = [fatal(n, True) if n == 15 else work(n) for n in range(30)]
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[15], TaskLostError)
    assert results[:15] + results[16:] == [n for n in range(30) if n != 15]


async def test_a_task_can_use_the_value_of_a_call_in_a_group(
    grouping: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Groups the calls at any speed.
    monkeypatch.setattr("rhapsody_dask.groups.SCHEDULING_COST", 1.0)
    gate = str(tmp_path / "gate")

    @grouping.function_task
    def double(number: int) -> int:
        return 2 * number

    @grouping.function_task
    def block() -> None:
        _hold(gate)

    @grouping.function_task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    await asyncio.gather(*grouping.map(double, range(20)))
    blocks = [block(), block()]
    await _until(lambda: all(one.state is TasksMainStates.RUNNING for one in blocks))
    futures = grouping.map(double, range(50))
    await _until(lambda: sum(call.grouped for call in _open_tasks(grouping).values()) > len(blocks))
    result = total([*futures])
    _open_gate(gate)
    assert await result == 50 * 49


async def test_large_values_of_a_group_are_returned_before_all_calls_have_run(
    grouping: WorkflowEngine,
) -> None:
    @grouping.function_task
    def made(size: int) -> tuple[bytes, str]:
        return bytes(size), _key()

    await asyncio.gather(*grouping.map(made, range(20)))
    results = await asyncio.gather(*grouping.map(made, [3 << 20] * 12))
    assert {len(value) for value, _ in results} == {3 << 20}
    keys = [key for _, key in results]
    assert max(map(keys.count, keys)) <= 4


async def test_a_call_that_uses_dask_itself_ends_its_group(grouping: WorkflowEngine) -> None:
    @grouping.function_task
    def use(number: int, nested: bool = False) -> tuple[int, str]:
        from distributed import worker_client

        if nested:
            with worker_client() as client:
                assert client.submit(abs, -number, pure=False).result() == number
        return number, _key()

    await asyncio.gather(*grouping.map(use, range(20)))
    results = await asyncio.gather(*(use(number, number == 3) for number in range(20)))
    assert [number for number, _ in results] == [*range(20)]
