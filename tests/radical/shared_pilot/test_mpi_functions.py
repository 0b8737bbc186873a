"""Functions on several ranks, on a real pilot with a real MPI."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rhapsody import TaskLostError, WorkflowEngine
from tests._support.machine import until_gone
from tests._support.ranks import add_ranks, cancel_ranks, require_named_exception

pytest.importorskip("mpi4py")
pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun"),
]

RANKS = {"ranks": 4}


async def test_the_value_is_the_list_of_the_results(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, environment={"GREETING": "hello $HOME"})
    async def rank(number: int, data: bytes) -> Any:
        print(os.environ["GREETING"])
        return (*add_ranks(number), data)

    data = bytes(200_000)  # RAPTOR's calls pass such values in files
    call = rank(10, data)
    assert await call == [(rank, 40, data) for rank in range(4)]
    assert call.stdout == "hello $HOME\n" * 4


async def test_an_exception_names_its_rank_and_ends_the_others(flow: WorkflowEngine) -> None:
    await require_named_exception(flow, 4)


async def test_a_cancellation_ends_all_ranks(flow: WorkflowEngine, tmp_path: Path) -> None:
    async with asyncio.timeout(100):
        await until_gone(*await cancel_ranks(flow, 4, tmp_path))


async def test_a_rank_that_is_killed_loses_the_task(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, lost_retries=0)
    def rank() -> None:
        if add_ranks(1)[0] == 1:
            os.kill(os.getpid(), 9)
        add_ranks(2)

    with pytest.raises(TaskLostError, match="ended without a result"):
        await rank()
