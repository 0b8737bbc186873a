"""Dask's own features: dashboard, performance reports and priorities."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio
pytest.importorskip("bokeh")


async def test_the_log_contains_the_link_to_the_dashboard(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rhapsody.dask")
    async with asyncio.timeout(60), DaskExecutionBackend(cluster=cluster) as backend:
        link = str(backend.dashboard_link)
        assert link in caplog.text

        def get() -> str:
            with urllib.request.urlopen(link, timeout=30) as page:
                return str(page.read().decode())

        assert "Dask" in await asyncio.to_thread(get)


async def test_no_link_is_logged_without_a_dashboard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rhapsody.dask")
    given = {"processes": False, "n_workers": 1, "threads": 1}
    async with asyncio.timeout(60), DaskExecutionBackend(given, security=False) as backend:
        assert backend.dashboard_link is None
        assert not [one for one in caplog.records if one.name.startswith("rhapsody.dask")]


async def test_a_performance_report_lists_tasks_by_name(
    backend: DaskExecutionBackend, flow: WorkflowEngine, tmp_path: Path
) -> None:
    from distributed import performance_report

    @flow.function_task
    def well_named(x: int) -> int:
        return x

    file = tmp_path / "report.html"
    with backend.client.as_current():
        async with performance_report(filename=str(file)):
            assert sum(await asyncio.gather(*flow.map(well_named, range(10)))) == 45
    assert "well_named" in file.read_text()


def _waiting(dask_worker: Any) -> int:
    return len(dask_worker.state.ready)


async def test_priorities_of_tasks_reach_dask(
    backend: DaskExecutionBackend, flow: WorkflowEngine, tmp_path: Path
) -> None:
    trace, gate = tmp_path / "trace", tmp_path / "gate"
    worker, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]

    @flow.executable_task
    async def hold() -> str:
        return f"until [ -e '{gate}' ]; do sleep 0.02; done"

    @flow.function_task
    def note(name: str) -> None:
        with open(trace, "a") as file:
            file.write(name)

    holding = hold(task_description={"workers": [worker]})
    async with asyncio.timeout(30):
        while holding.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    futures = [
        note(name, task_description={"workers": [worker], "priority": priority})
        for name, priority in [("c", -1), ("b", 0), ("a", 10)]
    ]
    async with asyncio.timeout(30):
        while (await backend.client.run(_waiting, workers=[worker]))[worker] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    gate.touch()
    await asyncio.gather(holding, *futures)
    assert trace.read_text() == "abc"
