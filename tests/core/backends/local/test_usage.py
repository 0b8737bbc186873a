"""Resources that tasks of the local backend have used, in their descriptions."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import TaskTimeoutError, WorkflowEngine
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import Driver
from tests._support.burning import burn, burn_async, touch
from tests._support.local import CANCELED, DONE, FAILED, needing
from tests._support.machine import exists

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

MIB = 1 << 20


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[Driver]:
    """A driver of a backend with one worker process."""
    async with (
        LocalExecutionBackend("process", resources={"cores": 1}) as backend,
        Driver(backend) as driver,
    ):
        yield driver


def burn_and_fail() -> None:
    burn(0.05)
    raise ValueError("on purpose")


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(bytes(3_000_000))
        os.fsync(file.fileno())


@pytest.mark.parametrize("function", [burn, burn_async])
async def test_a_function_in_a_worker_process_reports_its_cpu_time(
    worker: Driver, function: Any
) -> None:
    task = worker.call(function, 0.05)
    await worker.run(task)
    assert 0.05 <= task["usage"]["cpu_seconds"] < 5
    start, end = task["interval"]
    assert 0.05 <= end - start < 60


async def test_a_failed_function_reports_its_usage(worker: Driver, driver: Driver) -> None:
    for each in (worker, driver):
        task = each.call(burn_and_fail)
        assert (await each.run_one(task)).state is FAILED
        assert task["usage"]["cpu_seconds"] >= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset")
async def test_a_function_does_not_inherit_the_peak_memory_of_an_earlier_one(
    worker: Driver,
) -> None:
    big, small = worker.call(touch, 200 * MIB), worker.call(touch, MIB)
    await worker.run_one(big)
    await worker.run_one(small)
    assert 200 * MIB <= big["usage"]["peak_memory"] < 400 * MIB
    assert big["usage"]["peak_memory"] - small["usage"]["peak_memory"] > 150 * MIB


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="storage is not counted")
async def test_a_function_in_a_worker_process_reports_what_it_wrote(
    worker: Driver, tmp_path: Path
) -> None:
    task = worker.call(write, str(tmp_path / "data"))
    await worker.run_one(task)
    assert task["usage"]["read_bytes"] >= 0
    assert task["usage"]["written_bytes"] == 0 or task["usage"]["written_bytes"] >= 3_000_000


@pytest.mark.parametrize("function", [burn, burn_async])
async def test_a_function_on_a_thread_reports_the_cpu_time_of_the_thread(
    driver: Driver, function: Any
) -> None:
    tasks = [driver.call(function, 0.05), driver.call(function, 0.1)]
    await driver.run(*tasks)
    assert [task["usage"].keys() for task in tasks] == [{"cpu_seconds"}] * 2
    first, second = (task["usage"]["cpu_seconds"] for task in tasks)
    assert 0.05 <= first < 0.1 <= second < 0.15


async def test_a_coroutine_that_shares_its_thread_reports_nothing(driver: Driver) -> None:
    task = needing(driver.call(burn_async, 0.01), cores=0)
    assert (await driver.run_one(task)).state is DONE
    assert "usage" not in task


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
async def test_a_function_on_a_user_s_executor_reports_its_cpu_time(kind: type[Executor]) -> None:
    with kind() as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            task = driver.call(burn, 0.05)
            assert (await driver.run_one(task)).state is DONE
    assert task["usage"]["cpu_seconds"] >= 0.05
    start, end = task["interval"]
    assert 0.05 <= end - start < 60


async def test_the_future_of_a_program_that_timed_out_has_its_usage() -> None:
    async with WorkflowEngine.create(backend=LocalExecutionBackend()) as flow:

        @flow.executable_task(timeout=1)
        async def burn() -> str:
            return f"{sys.executable} -S -c 'while True: pass'; true"

        future = burn()
        with pytest.raises(TaskTimeoutError):
            await future
        await future.ended()
        assert future.usage is not None
        assert 0 < future.usage["cpu_seconds"] < 30


async def test_a_program_that_was_cancelled_reports_its_usage(driver: Driver) -> None:
    burn = f"{sys.executable} -S -c 'import time\nwhile time.process_time() < 0.1: pass'"
    task = driver.command(f"{burn}; touch burnt; sleep 600")
    await driver.submit(task)
    await exists(os.path.join(task["sandbox"], "burnt"))
    await driver.cancel(task)
    assert (await driver.finished(task)).state is CANCELED
    assert task["usage"]["cpu_seconds"] >= 0.1
