"""Environment variables of workers, which are not set in the program that starts them."""

from __future__ import annotations

import asyncio
import os

import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import Driver

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


def visible_gpus() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
async def test_the_workers_of_a_machine_have_different_gpus(
    monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    resources = {"n_workers": 2, "threads": 1, "gpus": 2, "processes": processes}
    async with (
        asyncio.timeout(100),
        await DaskExecutionBackend(resources) as backend,
        WorkflowEngine.create(backend) as flow,
    ):
        program = flow.executable_task(lambda: "echo $CUDA_VISIBLE_DEVICES")
        function = flow.function_task(visible_gpus)
        workers = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
        seen: dict[str, list[str]] = {"one": [], "both": [], "none": [], "function": []}
        for address in workers:
            there = {"workers": [address]}
            for count, name in enumerate(("none", "one", "both")):
                needing = program.options(resources={"gpus": count}, task_description=there)
                seen[name].append((await needing()).strip())
            called = function.options(resources={"gpus": 2}, task_description=there)
            seen["function"].append(await called())
        # Workers in this process share its variables.
        functions = ["4,5", "6,7"] if processes else ["4,5,6,7"] * 2
        assert {name: sorted(values) for name, values in seen.items()} == {
            "none": ["", ""],
            "one": ["4", "6"],
            "both": ["4,5", "6,7"],
            "function": functions,
        }
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
