"""Clusters whose environment is not that of the client: without Rhapsody, or with another one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine, current_task
from rhapsody.errors import BackendUnavailableError
from rhapsody_dask import DaskExecutionBackend
from tests.dask.bare import bare_python
from tests.dask.clusters import foreign

pytestmark = pytest.mark.asyncio


async def test_workers_with_nothing_but_dask_run_everything(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare")
    missing = await asyncio.to_thread(subprocess.run, [python, "-c", "import rhapsody"])
    assert missing.returncode == 1
    with foreign(tmp_path, workers=1, tls=False, python=python) as there:
        backend = DaskExecutionBackend(scheduler_file=there["scheduler_file"])
        async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:

            @flow.function_task
            async def tell(x: int) -> tuple[int, str]:
                return x, current_task().name

            @flow.function_task
            def bad() -> None:
                raise KeyError("mine")

            @flow.executable_task
            async def program(x: object) -> str:
                return "echo $((6 * 7))"

            @flow.executable_task(service=True, ready="stdout:port (.*)")
            async def service() -> str:
                return "echo port 8; sleep 600"

            first = tell(1)
            assert await first == (1, "tell")
            assert await program(first) == "42\n"
            assert await service(task_description={}) == "8"
            with pytest.raises(KeyError, match="mine"):
                await bad()


async def test_workers_with_another_version_are_named_with_the_cure(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare", rhapsody_core="0.0.1", rhapsody_dask="0.0.2")
    with (
        foreign(tmp_path, workers=1, tls=False, python=python) as there,
        pytest.raises(
            BackendUnavailableError,
            match=r"rhapsody-dask .* here and 0\.0\.2 at worker tcp://127\.0\.0\.1:\d+.*"
            r"`pip install rhapsody-core==.* rhapsody-dask==.*` on the workers",
        ),
    ):
        await DaskExecutionBackend(scheduler_file=there["scheduler_file"])
