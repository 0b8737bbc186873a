"""Values that stayed on workers, and the workers that make them again, are lost."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dask.config
import pytest
import pytest_asyncio
from distributed import LocalCluster
from distributed import wait as wait_for_all

from rhapsody import WorkflowEngine
from rhapsody.errors import DependencyFailureError, TaskLostError
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.client import TellingClient
from tests.dask.clusters import ONE_EACH

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def own() -> AsyncIterator[WorkflowEngine]:
    """An engine on a cluster whose workers may be killed."""
    async with asyncio.timeout(110):
        async with WorkflowEngine.create(backend=DaskExecutionBackend(ONE_EACH)) as engine:
            yield engine


def _make(trace: str, well_again: int) -> int:
    """Returns at first; kills its worker from then on up to a start."""
    with open(trace, "a") as file:
        file.write("x")
    starts = os.path.getsize(trace)
    if 1 < starts < well_again:
        os.kill(os.getpid(), signal.SIGKILL)
    return starts


def _use(value: int, more: int) -> int:
    return value + more


async def _lose(flow: WorkflowEngine, made: Any) -> None:
    """Kills the worker that has a value, and the next one that makes it again."""
    backend: Any = flow.backend
    (key,) = [key for key in await backend.client.who_has() if made.uid in key]
    (holder,) = (await backend.client.who_has())[key]
    (pid,) = (await backend.client.run(os.getpid, workers=[holder])).values()
    os.kill(pid, signal.SIGKILL)
    while backend.client.futures[key].status != "error":  # noqa: ASYNC110 - Dask gave it up
        await asyncio.sleep(0.01)


async def test_a_value_whose_makers_die_is_made_again_within_the_budget(
    own: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    use = own.function_task(_use)
    made = own.function_task(_make)(str(trace), 5)
    middle = use(made, 10)
    assert await use(middle, 100) == 111
    await _lose(own, made)
    assert await asyncio.gather(*(use(made, more) for more in range(3))) == [5, 6, 7]
    assert await made == 5
    assert trace.read_text() == "x" * 5

    other = own.function_task(_make)(str(tmp_path / "other"), 5)
    assert await use(other, 1) == 2
    await _lose(own, other)
    assert await other == 5  # asked for, not referred to


async def test_a_value_whose_makers_die_too_often_is_lost(
    own: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    use = own.function_task(lost_retries=1)(_use)
    made = own.function_task(lost_retries=1)(_make)(str(trace), 100)
    assert await use(made, 1) == 2
    await _lose(own, made)
    with pytest.raises(DependencyFailureError) as caught:
        await use(made, 2)
    assert isinstance(caught.value.root_cause, TaskLostError)
    assert 2 < len(trace.read_text()) < 8


async def test_what_needs_two_values_of_one_killed_worker_is_made_again(tmp_path: Path) -> None:
    well = tmp_path / "well"

    def wait(value: int) -> int:
        while not well.exists():
            time.sleep(0.01)
        return value

    def same(value: int) -> int:
        return value

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        async with (
            asyncio.timeout(60),
            LocalCluster(
                n_workers=1,
                threads_per_worker=12,
                dashboard_address="127.0.0.1:0",
                asynchronous=True,
            ) as cluster,
            TellingClient(cluster, asynchronous=True) as client,  # type: ignore[no-untyped-call]
        ):
            ends = []  # for about half of them Dask releases what lies between, and waits for it
            for number in range(6):
                first, second = (client.submit(wait, n, key=f"{n} of {number}") for n in (1, 2))
                between = client.submit(same, first, key=f"between {number}")
                ends.append(client.submit(operator.add, between, second, key=f"end {number}"))
            del first, second, between
            while sum(map(len, (await client.processing()).values())) < 12:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            (pid,) = (await client.run(os.getpid)).values()
            os.kill(pid, signal.SIGKILL)
            await wait_for_all(ends)
            assert [end.status for end in ends] == ["error"] * 6
            well.touch()
            await client.retry(ends)
            assert await client.gather(ends) == [3] * 6
