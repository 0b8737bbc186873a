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
    ("key", "value", "error", "words"),
    [
        ("workers", 1.5, TypeError, "a worker's address or name, or a list of them, got 1.5"),
        ("workers", [None], TypeError, "a worker's address or name"),
        ("workers", True, TypeError, "a worker's address or name"),
        ("priority", "high", TypeError, "a number, got 'high'"),
        ("retries", "2", TypeError, "a whole number of at least 0, got '2'"),
        ("retries", -1, ValueError, "a whole number of at least 0, got -1"),
        ("allow_other_workers", 1, TypeError, "True or False, got 1"),
        ("resources", ["gpus"], TypeError, "a dict from names to numbers"),
        ("resources", {"gpus": "1"}, TypeError, "got 'gpus': '1'"),
        ("resources", {"gpus": -1}, ValueError, "got 'gpus': -1"),
    ],
)
async def test_a_wrong_annotation_is_told_with_its_key(
    flow: WorkflowEngine, key: str, value: Any, error: type[Exception], words: str
) -> None:
    task = flow.function_task(_worker_name)
    with pytest.raises(error, match=f"{key} in task_description must be .*{words}"):
        await task(task_description={key: value})
