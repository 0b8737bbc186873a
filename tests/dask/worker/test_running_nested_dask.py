"""Tasks that use Dask themselves, compared with the same functions on Dask alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


def _by_client(x: int) -> int:
    from distributed import get_worker, worker_client

    here = get_worker().address
    with worker_client() as client:
        future = client.submit(lambda y: y + 1, x, workers=[here], pure=False)
        return int(future.result())


def _by_compute(x: int) -> int:
    import dask

    library: Any = dask
    return int(library.compute(library.delayed(lambda y: y + 1, pure=False)(x))[0])


def _by_seceding(x: int) -> int:
    from distributed import get_client, get_worker, rejoin, secede

    future = get_client().submit(abs, x + 1, workers=[get_worker().address], pure=False)
    secede()
    value = int(future.result())
    rejoin()
    return value


@pytest.mark.parametrize("function", [_by_client, _by_compute, _by_seceding])
async def test_several_tasks_on_one_thread_can_use_dask(
    function: Callable[[int], int], backend: DaskExecutionBackend, flow: WorkflowEngine, raw: Any
) -> None:
    worker, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
    task = flow.function_task(function)
    async with asyncio.timeout(40):
        alone = [raw.submit(function, x, workers=[worker], pure=False) for x in range(3)]
        assert await asyncio.gather(*alone) == [1, 2, 3]
        calls = [task(x, task_description={"workers": [worker]}) for x in range(3)]
        assert await asyncio.gather(*calls) == [1, 2, 3]
        assert await task(5, task_description={"workers": [worker]}) == 6
