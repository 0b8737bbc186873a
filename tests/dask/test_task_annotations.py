"""Dask's annotations in `task_description`, compared with those of Dask alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import CapabilityError
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.task import demand

pytestmark = pytest.mark.asyncio


def _worker_name() -> object:
    from distributed import get_worker

    return get_worker().name


async def test_a_worker_can_be_selected_by_its_name(flow: WorkflowEngine, raw: Any) -> None:
    task = flow.function_task(_worker_name)
    for given in (0, [1]):
        alone = await raw.submit(_worker_name, workers=given, pure=False)
        assert await task(task_description={"workers": given}) == alone


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workers", 1.5),
        ("priority", "high"),
        ("priority", lambda key: 1),
        ("retries", "2"),
        ("retries", 1.5),
        ("retries", True),
        ("resources", {"cores": "2"}),
        ("resources", {1: 2}),
        ("allow_other_workers", 1),
        ("resources", ["gpus"]),
    ],
)
async def test_an_invalid_annotation_is_reported_with_its_key(
    flow: WorkflowEngine, key: str, value: Any
) -> None:
    task = flow.function_task(_worker_name)
    words = f"{key} must not be a function" if callable(value) else f"'{key}' annotation"
    with pytest.raises(TypeError, match=f"task_description: {words}"):
        await task(task_description={key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("retries", -1), ("resources", {"cores": -1}), ("resources", {"memory": float("nan")})],
)
async def test_a_number_that_dask_would_misread_is_refused(
    flow: WorkflowEngine, key: str, value: Any
) -> None:
    task = flow.function_task(_worker_name)
    with pytest.raises(ValueError, match=f"task_description: {key}.* must be 0 or more"):
        await task(task_description={key: value})


async def test_an_unknown_worker_is_rejected_on_a_local_cluster() -> None:
    given = {"processes": False, "n_workers": 1, "threads": 1}
    backend = DaskExecutionBackend(given, security=False)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
        task = flow.function_task(int)
        address, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
        for known in (0, [address], ["no-one", address]):
            assert await task(1, task_description={"workers": known}) == 1
        with pytest.raises(CapabilityError, match=f"workers: no-one.* 0 at {address}"):
            await task(1, task_description={"workers": "no-one"})
        preferred = {"workers": "no-one", "allow_other_workers": True}
        assert await task(1, task_description=preferred) == 1


async def test_the_priority_of_a_task_is_passed_to_dask() -> None:
    task: Any = {"name": "part", "task_backend_specific_kwargs": {}, "priority": 3}
    assert demand(task).keywords() == {"priority": 3}
    task["task_backend_specific_kwargs"] = {"priority": 5}  # Dask's own annotation
    assert demand(task).keywords() == {"priority": 5}
