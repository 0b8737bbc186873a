"""Submission of tasks to Dask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import CapabilityError, SubmissionError
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import Driver

pytestmark = pytest.mark.asyncio


async def test_a_function_runs_on_the_named_worker(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    def where() -> str:
        from distributed import get_worker

        return str(get_worker().address)

    addresses = list((await backend.client.scheduler.identity(n_workers=-1))["workers"])
    assert len(addresses) == 2
    for address in addresses:
        assert await where(task_description={"workers": [address]}) == address
    said = r"'dask' does not support the key 'wrokers' .* did you mean 'workers'\?"
    with pytest.raises(CapabilityError, match=said):
        await where(task_description={"wrokers": addresses})


async def test_retries_of_dask_run_the_function_again(flow: WorkflowEngine, tmp_path: Any) -> None:
    trace = str(tmp_path / "trace")

    @flow.function_task
    def third_time() -> int:
        with open(trace, "a") as file:
            file.write("x")
        with open(trace) as file:
            count = len(file.read())
        if count < 3:
            raise KeyError("not yet")
        return count

    assert await third_time(task_description={"retries": 2}) == 3


async def test_keys_in_dask_contain_the_names_of_tasks(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    def key() -> str:
        from distributed import get_worker

        return str(next(iter(get_worker().active_keys)))

    from dask.utils import key_split

    found = await key.options(name="my_own-name")()
    assert key_split(found) == "my_own-name"


async def test_resources_that_no_worker_has_are_rejected(flow: WorkflowEngine) -> None:
    @flow.function_task
    def noop() -> None: ...

    with pytest.raises(CapabilityError, match="largest amounts on any worker are cores=1"):
        await noop.options(resources={"cores": 2})()
    with pytest.raises(CapabilityError, match=r'--resources "gpus=1"'):
        await noop.options(resources={"gpus": 1})()
    with pytest.raises(CapabilityError, match="memory"):
        await noop.options(resources={"memory": "1 TB"})()
    with pytest.raises(CapabilityError, match="ranks"):
        await noop.options(resources={"ranks": 2})()
    await noop.options(resources={"memory": "10 MB"})()


async def test_a_batch_with_resources_asks_the_scheduler_once(
    cluster: Any, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = cluster.scheduler.handlers
    asked = []

    def identity(n_workers: int = -1, **options: Any) -> Any:
        if n_workers == -1:
            asked.append(options)
        return cluster.scheduler.identity(n_workers=n_workers)

    monkeypatch.setitem(handlers, "identity", identity)

    @flow.function_task(resources={"memory": "1 MB"})
    def double(x: int) -> int:
        return 2 * x

    assert sum(await asyncio.gather(*flow.map(double, range(50)))) == 2450
    assert 1 <= len(asked) <= 10


async def test_a_task_can_be_canceled_while_it_is_packed(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = backend._submission.pack

    async def packed(call: Any, packer: Any) -> Any:
        if call.task["function"] is not int:
            return await pack(call, packer)
        await backend.cancel_task(call.uid)
        async with asyncio.timeout(30):
            while call.uid in backend.still_running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        raise CapabilityError("it does not fit")

    monkeypatch.setattr(backend._submission, "pack", packed)
    async with Driver(backend) as driver:
        ends = await driver.run(driver.call(int), driver.call(float))
        assert [end.state for end in ends] == [TasksMainStates.CANCELED, TasksMainStates.DONE]
        assert driver.faults == []


BIG = 2_000_000


async def test_tasks_whose_arguments_cannot_be_sent_fail(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scatter(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no room")

    monkeypatch.setattr(backend.client, "scatter", scatter)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        def size(values: bytes) -> int:
            return len(values)

        futures = [size.options(retries=0)(b"x" * BIG), size(b"y" * BIG)]
        for result in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(result, SubmissionError)
        assert backend.still_running == []


async def test_tasks_of_a_submission_that_times_out_are_canceled(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scatter(*args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(backend.client, "scatter", scatter)
    async with (
        asyncio.timeout(60),
        WorkflowEngine.create(backend=backend, submit_timeout=0.5) as flow,
    ):

        @flow.function_task
        def size(values: bytes) -> int:
            return len(values)

        with pytest.raises(SubmissionError, match=r"within 0\.5 s"):
            await size(b"x" * BIG)
        while backend.still_running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
