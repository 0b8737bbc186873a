"""Functions on several ranks, for tests of the backends that start MPI jobs."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import TasksMainStates, WorkflowEngine


def add_ranks(number: int) -> Any:
    """Return the rank, and a sum over all ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(number)


async def require_named_exception(flow: WorkflowEngine, ranks: int) -> None:
    """Require that an exception on the last rank fails the task, and ends the other ranks."""

    @flow.function_task(resources={"ranks": ranks})
    def rank() -> None:
        if add_ranks(1)[0] == ranks - 1:
            raise KeyError("absent")
        add_ranks(2)  # waits for the last rank

    with pytest.raises(KeyError, match="absent") as caught:
        await rank()
    assert f"raised on rank {ranks - 1} of {ranks}" in caught.value.__notes__


async def cancel_ranks(flow: WorkflowEngine, ranks: int, marks: Path) -> list[int]:
    """Cancel a task when all its ranks run; return their process ids when it has ended.

    Each rank creates a file in the directory `marks`.
    """

    @flow.function_task(resources={"ranks": ranks})
    def rank() -> None:
        (marks / str(os.getpid())).touch()
        time.sleep(300)

    call = rank()
    while len(pids := list(filter(str.isdigit, os.listdir(marks)))) < ranks:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    call.cancel()
    await call.ended()
    assert call.state is TasksMainStates.CANCELED
    return [int(pid) for pid in pids]
