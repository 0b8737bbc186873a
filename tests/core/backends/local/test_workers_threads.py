"""Thread counts of numeric libraries in worker processes that run several tasks."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


def threads() -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


async def calls_with(
    cores: list[int], *, workers: int, environment: dict[str, str] | None = None
) -> Any:
    backend = LocalExecutionBackend("process", resources={"cores": 4, "workers": workers})
    async with WorkflowEngine.create(backend) as flow:
        task = flow.function_task(environment=environment or {})(threads)
        calls = [await within(task.options(resources={"cores": n})()) for n in cores]
    counts, pids = zip(*calls, strict=True)
    # Numbers in the order of their first use are easier to compare.
    return counts, [list(dict.fromkeys(pids)).index(pid) for pid in pids]


@pytest.fixture
def without_threadpoolctl(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "rhapsody.backends.local.processes.find_spec",
        lambda name: None if name == "threadpoolctl" else find(name),
    )


@pytest.mark.usefixtures("without_threadpoolctl")
async def test_a_worker_runs_only_calls_with_its_number_of_threads() -> None:
    counts, workers = await calls_with([1, 1, 2, 1, 2], workers=2)
    assert counts == ("1", "1", "2", "1", "2")
    assert workers == [0, 0, 1, 0, 1]


@pytest.mark.usefixtures("without_threadpoolctl")
async def test_a_new_worker_replaces_an_idle_one_if_there_are_enough() -> None:
    counts, workers = await calls_with([1, 2, 2, 1], workers=1)
    assert counts == ("1", "2", "2", "1")
    assert workers == [0, 1, 1, 2]


@pytest.mark.usefixtures("without_threadpoolctl")
async def test_calls_with_their_own_variable_run_together() -> None:
    counts, workers = await calls_with([1, 2], workers=2, environment={"OMP_NUM_THREADS": "3"})
    assert (counts, workers) == (("3", "3"), [0, 0])


async def test_workers_with_threadpoolctl_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody.backends.local.processes.find_spec", lambda name: object())
    counts, workers = await calls_with([1, 2, 1], workers=2)
    assert (counts, workers) == (("1", "2", "1"), [0, 0, 0])
