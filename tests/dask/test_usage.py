"""Resources that tasks on Dask have used, in their descriptions."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import Driver
from tests._support.burning import burn, burn_async

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.mark.parametrize("function", [burn, burn_async])
async def test_a_function_reports_the_cpu_time_of_its_thread(
    backend: DaskExecutionBackend, function: Any
) -> None:
    async with Driver(backend) as driver:
        task = driver.call(function, 0.05)
        await driver.run_one(task)
    assert task["usage"].keys() == {"cpu_seconds"}
    # The first call on a worker also imports the function's module.
    assert 0.05 <= task["usage"]["cpu_seconds"] < 20
    start, end = task["interval"]
    assert 0.05 <= end - start < 100


async def test_an_executable_reports_its_usage(backend: DaskExecutionBackend) -> None:
    async with Driver(backend) as driver:
        task = driver.command(
            f"{sys.executable} -S -c 'import time\nwhile time.process_time() < 0.1: pass'"
        )
        await driver.run_one(task)
    assert 0.1 <= task["usage"]["cpu_seconds"] < 5
