"""Programs that the kernel kills on a worker because memory is exhausted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rhapsody import OutOfMemoryError, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from tests._support.memory_group import killed, pretend

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


async def test_a_program_killed_for_its_memory_raises_out_of_memory_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = pretend(tmp_path, monkeypatch)  # seen by workers that are threads of this process
    backend = DaskExecutionBackend({"processes": False, "n_workers": 1, "threads_per_worker": 1})
    async with asyncio.timeout(100), WorkflowEngine.create(backend) as flow:
        hog = flow.executable_task(name="hog")(lambda: killed(counts))
        with pytest.raises(MemoryError, match="'hog' was killed by the kernel") as caught:
            await hog()
        assert type(caught.value) is OutOfMemoryError
        assert caught.value.exit_code == -9
        assert "500 MiB" in str(caught.value)
