"""Functions on several ranks, on PSI/J's local executor with a real MPI."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import CapabilityError, TaskLostError, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend
from tests._support.machine import alive
from tests._support.ranks import add_ranks, cancel_ranks, require_named_exception

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.asyncio

RANKS = {"ranks": 2}


@pytest_asyncio.fixture
async def flow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkflowEngine]:
    """An engine on the local executor, for the `mpirun` of this environment."""
    programs = os.path.dirname(sys.executable)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(PsijExecutionBackend(tasks_per_job=10)) as engine:
            yield engine


async def test_the_value_is_the_list_of_the_results(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, environment={"GREETING": "hello"})
    async def rank(number: int) -> Any:
        print(os.environ["GREETING"])
        return (*add_ranks(number), os.getcwd())

    call = rank(10)
    assert await call == [(0, 20, os.getcwd()), (1, 20, os.getcwd())]
    assert call.stdout == "hello\n" * 2
    assert (call.usage or {})["cpu_seconds"] > 0


async def test_output_in_files_is_that_of_all_ranks(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, capture="files")
    def rank() -> Any:
        print("hello")

    call = rank()
    assert await call == [None, None]
    assert Path(call.stdout or "").read_text() == "hello\n" * 2  # noqa: ASYNC240


async def test_an_exception_names_its_rank_and_ends_the_others(flow: WorkflowEngine) -> None:
    await require_named_exception(flow, 2)


async def test_a_rank_that_is_killed_loses_the_task(flow: WorkflowEngine) -> None:
    @flow.function_task(resources=RANKS, lost_retries=0)
    def rank() -> None:
        if add_ranks(1)[0] == 1:
            os._exit(3)
        add_ranks(2)

    with pytest.raises(TaskLostError, match="its ranks ended with exit code"):
        await rank()


async def test_a_cancellation_ends_all_ranks(flow: WorkflowEngine, tmp_path: Path) -> None:
    assert not any(map(alive, await cancel_ranks(flow, 2, tmp_path)))


async def test_ranks_without_a_common_mpi_are_refused(flow: WorkflowEngine) -> None:
    task = flow.function_task(resources=RANKS, task_description={"launcher": "multiple"})(add_ranks)
    with pytest.raises(CapabilityError, match="COMM_WORLD has 1 ranks instead of 2: the launcher"):
        await task(1)


async def test_mpi4py_is_needed(flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match="pip install mpi4py"):
        await flow.function_task(resources=RANKS)(add_ranks)(1)


async def test_ranks_run_in_the_programs_environment(flow: WorkflowEngine) -> None:
    with pytest.raises(CapabilityError, match="the program's own Python environment"):
        await flow.function_task(resources=RANKS, venv=sys.prefix)(add_ranks)(1)
