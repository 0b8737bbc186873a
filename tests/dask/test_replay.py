"""Runs on Dask recorded as WfCommons instances, and instances replayed on Dask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.cli import main
from rhapsody_dask import DaskExecutionBackend
from rhapsody_wfcommons import WfCommonsRecorder, read
from tests.wfcommons.instances import recent, save


@pytest.mark.parametrize("more", [(), ("--files", "1"), ("--order", "critical-path")])
def test_an_instance_is_replayed(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    path = save(tmp_path / "diamond.json", recent())
    dask = ("-b", "dask", "-o", f"address={cluster.scheduler_address}")
    assert (
        main(["replay", str(path), "--json", "--scale", "0.01", "--slots", "2", *dask, *more]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["backend"], report["slots"], report["tasks"]) == ("dask", 2, 4)
    assert report["makespan"] >= report["list_schedule"] == pytest.approx(0.03)


@pytest.mark.asyncio
@pytest.mark.parametrize("push_down", [True, False])
async def test_a_recorded_run_contains_the_dependencies(
    backend: DaskExecutionBackend, tmp_path: Path, push_down: bool
) -> None:
    file = tmp_path / "run.json"
    recorder = WfCommonsRecorder(file)
    async with WorkflowEngine.create(backend, observers=[recorder], push_down=push_down) as flow:

        @flow.function_task
        def step(*_: object) -> None:
            import time

            time.sleep(0.05)

        first = step()
        await step([step(first), step(first)])
    tasks = read(file).tasks
    assert [task.id.rpartition(".")[2].lstrip("0") for task in tasks] == ["1", "2", "3", "4"]
    ids = [task.id for task in tasks]
    assert [task.parents for task in tasks] == [(), (ids[0],), (ids[0],), (ids[1], ids[2])]
    begins = [task.started or "" for task in tasks]  # where it ran, not where it went to Dask
    assert begins[0] < min(begins[1:3]) < begins[3]
    assert all(task.runtime for task in tasks)
    assert all(task.machines == () for task in tasks)  # Dask's workers may be anywhere
