"""Functions on several ranks, on a real pilot with a real MPI."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rhapsody import TaskLostError, TasksMainStates, WorkflowEngine
from tests._support.machine import alive

pytest.importorskip("mpi4py")
pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun"),
]

RANKS = {"ranks": 4}


def add_ranks(number: int) -> Any:
    """Return the rank, and a sum over all ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(number)


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
    @flow.function_task(resources=RANKS)
    def rank() -> None:
        if add_ranks(1)[0] == 2:
            raise KeyError("absent")
        add_ranks(2)  # waits for rank 2

    with pytest.raises(KeyError, match="absent") as caught:
        await rank()
    assert "raised on rank 2 of 4" in caught.value.__notes__


async def test_a_cancellation_ends_all_ranks(flow: WorkflowEngine, tmp_path: Path) -> None:
    @flow.function_task(resources=RANKS)
    def rank() -> None:
        import time

        (marks / str(os.getpid())).touch()
        time.sleep(300)

    marks = tmp_path / "marks"
    marks.mkdir()
    call = rank()
    async with asyncio.timeout(100):
        while len(pids := os.listdir(marks)) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        call.cancel()
        await call.ended()
        assert call.state is TasksMainStates.CANCELED
        while any(alive(int(pid)) for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_rank_that_is_killed_loses_the_task(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, lost_retries=0)
    def rank() -> None:
        if add_ranks(1)[0] == 1:
            os.kill(os.getpid(), 9)
        add_ranks(2)

    with pytest.raises(TaskLostError, match="ended without a result"):
        await rank()
