"""Classes of the script, of which each call has its own copy, and values that stay on workers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


async def test_threads_of_a_worker_do_not_share_the_cache_of_a_class(tmp_path: Path) -> None:
    class Model:
        cache: dict[int, int] = {}  # noqa: RUF012 - what is tested

        def value(self, key: int) -> int:
            self.cache[key] = key
            (tmp_path / str(key)).touch()
            while len(os.listdir(tmp_path)) < 4:  # all threads have such a cache
                time.sleep(0.01)
            return self.cache[key]

    def value(model: Model, key: int) -> int:
        return model.value(key) + Model().value(key)

    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend({"n_workers": 1, "threads": 4})
        async with WorkflowEngine.create(backend=backend) as flow:
            futures = flow.map(flow.function_task(value), [Model()] * 4, range(4))
            assert await asyncio.gather(*futures) == [2 * key for key in range(4)]
    assert Model.cache == {}


class _Seen(DaskExecutionBackend):
    references = 0

    async def submit_tasks(self, tasks: Any) -> None:
        self.references += sum(len(task.get("references", ())) for task in tasks)
        await super().submit_tasks(tasks)


async def test_values_that_stay_on_workers_keep_their_classes(cluster: Any) -> None:
    class Cell:
        __slots__ = ("x",)
        scale = 1

        def __init__(self, x: int) -> None:
            self.x = x

        def size(self) -> int:
            return self.x * self.scale

    def grow(x: int) -> Cell:
        Cell.scale = 99  # seen by this call alone
        return Cell(x)

    def use(*cells: Any) -> Any:  # does not refer to the class
        return len({type(cell) for cell in cells}), [cell.size() for cell in cells], cells[0]

    def is_cell(used: Any) -> bool:
        return type(used[2]) is Cell

    async with asyncio.timeout(60):
        backend = await _Seen(cluster=cluster)
        async with WorkflowEngine.create(backend=backend) as flow:
            make = flow.function_task(grow)
            used = flow.function_task(use)(*[make(x) for x in range(8)])
            known = flow.function_task(is_cell)(used)
            assert await known
            kinds, sizes, cell = await used
    assert backend.references
    assert (kinds, sizes, type(cell), Cell.scale) == (1, [*range(8)], Cell, 1)
