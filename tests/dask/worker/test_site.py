"""Counting of a worker's cores, and tasks that use none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from rhapsody import TaskFailedError, WorkflowEngine
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.worker.site import Gate


def test_a_task_with_too_many_cores_releases_those_that_it_took() -> None:
    gate = Gate(4)
    assert gate.enter(8).granted
    gate.leave(8)
    assert gate.enter(4).granted
    assert not gate.enter(1).granted, "more cores were given out than there are"


@pytest.mark.asyncio
async def test_a_task_is_reported_as_running_when_it_starts(flow: WorkflowEngine) -> None:
    @flow.function_task
    async def wait() -> None:
        await asyncio.sleep(60)

    futures = [wait() for _ in range(4)]
    async with asyncio.timeout(20):
        while sum(f.state is TasksMainStates.RUNNING for f in futures) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # time enough for a wrong report about the others
    states = [future.state for future in futures]
    assert states.count(TasksMainStates.RUNNING) == 2  # of four, on two threads
    for future in futures:
        future.cancel()
    for future in futures:
        await future.ended()


@pytest.mark.asyncio
async def test_coroutines_without_cores_share_a_worker(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.function_task(resources={"cores": 0})
    async def wait_for_the_others(number: int) -> int:
        (tmp_path / str(number)).touch()
        while len(os.listdir(tmp_path)) < 20:  # noqa: ASYNC110 - they may run in other processes
            await asyncio.sleep(0.01)
        return 1

    async with asyncio.timeout(30):
        assert sum(await asyncio.gather(*map(wait_for_the_others, range(20)))) == 20


def _descriptors() -> int:
    return psutil.Process().num_fds()


@pytest.mark.asyncio
async def test_many_coroutines_without_cores_share_an_event_loop(
    backend: DaskExecutionBackend, flow: WorkflowEngine, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
    here = {"workers": [worker]}

    @flow.function_task(resources={"cores": 0}, task_description=here)
    async def wait(path: str, number: int) -> int:
        print(number)
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - files have no event
            await asyncio.sleep(0.05)
        return number

    before = await flow.function_task(_descriptors)(task_description=here)
    futures = [wait(str(gate), number) for number in range(100)]
    async with asyncio.timeout(30):
        while any(f.state is not TasksMainStates.RUNNING for f in futures):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    after = await flow.function_task(_descriptors)(task_description=here)
    assert after - before < 50
    assert futures[7].cancel()
    await futures[7].ended()
    gate.touch()
    del futures[7]
    assert sum(await asyncio.gather(*futures)) == sum(range(100)) - 7
    assert futures[0].stdout == "0\n"


@pytest.mark.asyncio
async def test_only_large_replies_are_fetched(
    flow: WorkflowEngine, backend: DaskExecutionBackend
) -> None:
    @flow.executable_task
    def write(size: int) -> str:
        return f"head -c {size} /dev/zero | tr '\\0' a; test {size} -ne 7"

    async def fetched() -> int:
        counts = await backend.client.run(
            lambda dask_worker: dask_worker.transfer_outgoing_count_total
        )
        return sum(counts.values())

    before = await fetched()
    assert await write(3) == "aaa"
    assert await flow.function_task(len)("abcd") == 4
    with pytest.raises(TaskFailedError) as raised:
        await write(7)
    assert raised.value.exit_code == 1
    assert await fetched() == before
    assert len(await write(5000)) == 5000
    assert await fetched() == before + 1
