"""Jobs end when the program or the client is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import BackendUnavailableError, TaskDescription, TasksMainStates, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend
from tests._support.machine import gone
from tests._support.slurm import until_no_jobs
from tests.psij.victim import MOMENTS

ROOT = Path(__file__).parents[2]


def killed(executor: str, moment: str, directory: Path) -> None:
    """Run the victim, and kill it at a moment."""
    words = [sys.executable, "-m", "tests.psij.victim", executor, str(directory), moment]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as victim:
        assert victim.stdout is not None
        try:
            said = victim.stdout.readline()
        finally:  # also if the test exceeds its timeout
            victim.kill()
    assert said == "now\n", "the victim ended before the moment"


def until_all_ended(directory: Path) -> None:
    """Wait until no process names a directory in its command line, and no task is running."""
    until = time.monotonic() + 60
    while left := [
        line
        for process in psutil.process_iter(["cmdline"])
        if str(directory) in (line := " ".join(process.info["cmdline"] or ()))
    ]:
        assert time.monotonic() < until, left
        time.sleep(0.1)
    written = [file.read_text() for file in directory.glob("*.pid")]
    assert gone([int(pid) for pid in written if pid])


@pytest.mark.parametrize("moment", MOMENTS)
def test_local_jobs_end_when_the_program_is_killed(moment: str, tmp_path: Path) -> None:
    killed("local", moment, tmp_path)
    until_all_ended(tmp_path)


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("moment", MOMENTS)
def test_slurm_jobs_end_when_the_program_is_killed(moment: str, tmp_path: Path) -> None:
    killed("slurm", moment, tmp_path)
    until_all_ended(tmp_path)
    until_no_jobs()


@pytest.mark.asyncio
async def test_jobs_that_the_client_did_not_cancel_are_not_reported_as_canceled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[TaskDescription] = []
    async with asyncio.timeout(100):
        async with PsijExecutionBackend() as backend:
            backend.register_callback(lambda task, _: ends.append(task))
            script = f"echo $$ >{tmp_path}/pid; exec sleep 300"
            task: Any = {"uid": "1", "name": "a", "executable": script, "arguments": None}
            await backend.submit_tasks([task])
            while not (tmp_path / "pid").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert backend._client is not None
            backend._client.send_signal(signal.SIGSTOP)
            await backend.cancel_task("1")
            backend._client.kill()
            while backend.open_tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert "not canceled" in str(ends[-1]["exception"])
    assert "1 jobs may continue" in caplog.text
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.asyncio
async def test_tasks_are_lost_when_the_client_is_killed(tmp_path: Path) -> None:
    backend = PsijExecutionBackend()
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(backend, lost_retries=1) as flow:

            @flow.executable_task
            def wait() -> str:
                return f"echo $$ >{tmp_path}/pid; exec sleep 300"

            task = wait()
            while task.state is not TasksMainStates.RUNNING or not (tmp_path / "pid").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            client = backend._client
            assert client is not None
            client.kill()
            with pytest.raises(BackendUnavailableError, match="PSI/J has ended with exit code -9"):
                await task
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
