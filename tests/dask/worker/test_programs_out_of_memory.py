"""The error of a program that the kernel killed on a worker for its memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rhapsody import OutOfMemoryError, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from tests._support.memory_group import killed, pretend

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


async def test_a_program_that_the_kernel_killed_on_a_worker_says_so(
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
