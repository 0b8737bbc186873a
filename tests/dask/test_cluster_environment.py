"""Environment variables of workers, which are not set in the program that starts them."""

from __future__ import annotations

import asyncio
import os

import pytest

from rhapsody.testing import Driver
from rhapsody_dask import DaskExecutionBackend

VARIABLES = ("OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED")

pytestmark = pytest.mark.asyncio


def settings() -> list[str | None]:
    return [os.environ.get(name) for name in VARIABLES]


async def test_variables_are_set_only_for_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    before = dict(os.environ)
    resources = {"n_workers": 1, "threads": 1, "memory_limit": "1 GiB"}
    async with (
        asyncio.timeout(100),
        DaskExecutionBackend(resources) as backend,
        Driver(backend) as driver,
    ):
        assert dict(os.environ) == before
        seen = (await driver.run_one(driver.call(settings))).value
        assert seen == ["1", "65536", "6640"]
