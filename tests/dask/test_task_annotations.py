"""Dask's annotations in `task_description`: what they take, as with Dask alone."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody import WorkflowEngine

pytestmark = pytest.mark.asyncio


def _worker_name() -> object:
    from distributed import get_worker

    return get_worker().name


async def test_a_worker_may_be_said_by_its_name_as_with_dask(
    flow: WorkflowEngine, raw: Any
) -> None:
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
        ("allow_other_workers", 1),
        ("resources", ["gpus"]),
    ],
)
async def test_a_wrong_annotation_is_reported_with_its_key(
    flow: WorkflowEngine, key: str, value: Any
) -> None:
    task = flow.function_task(_worker_name)
    words = f"{key} must not be a function" if callable(value) else f"'{key}' annotation"
    with pytest.raises(TypeError, match=f"task_description: {words}"):
        await task(task_description={key: value})
