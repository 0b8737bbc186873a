"""Jobs on PSI/J's local executor."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import (
    BackendUnavailableError,
    CapabilityError,
    TaskFailedError,
    TaskLostError,
    TasksMainStates,
    WorkflowEngine,
)
from rhapsody_psij import PsijExecutionBackend
from rhapsody_testing import EventRecorder
from tests._support.machine import until_gone

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def flow() -> AsyncIterator[WorkflowEngine]:
    """An engine whose tasks share jobs, one job at a time."""
    backend = PsijExecutionBackend(max_jobs=1, tasks_per_job=10, launcher="multiple")
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(backend) as engine:
            yield engine


async def test_tasks_that_are_ready_together_share_a_job(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def job() -> str:
        return "echo $PPID"

    first = await asyncio.gather(*(job() for _ in range(4)))
    assert len(set(first)) == 1
    assert await job() not in first


async def test_a_lost_or_canceled_task_does_not_affect_others_of_its_job(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task(lost_retries=0)
    def die() -> None:
        import os

        os._exit(3)

    @flow.executable_task
    def wait() -> str:
        return "sleep 300"

    @flow.function_task
    def last() -> int:
        return 1

    @flow.executable_task
    def never(marker: Path) -> str:
        return f"touch {marker}"

    marker = Path("marker").absolute()  # noqa: ASYNC240
    lost, running, waiting, done = die(), wait(), never(marker), last()
    with pytest.raises(TaskLostError, match="exit code 3"):
        await lost
    while running.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    waiting.cancel()
    await waiting.ended()
    running.cancel()
    assert await done == 1
    assert not marker.exists()


async def test_tasks_fail_if_the_reports_of_jobs_cannot_be_read(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.executable_task(lost_retries=0)
    def wait() -> str:
        return f"echo $$ >{tmp_path}/pid; exec sleep 300"

    running = [wait(), wait()]
    while running[0].state is not TasksMainStates.RUNNING or not (tmp_path / "pid").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    (reports,) = Path().glob("**/reports")  # noqa: ASYNC240
    await asyncio.to_thread(shutil.rmtree, reports)
    for task in [*running, wait()]:
        with pytest.raises(BackendUnavailableError, match=r"FileNotFoundError: .*reports"):
            await task
    await until_gone(int((tmp_path / "pid").read_text()))


async def test_a_job_that_is_ended_after_its_program_is_lost(flow: WorkflowEngine) -> None:
    """Batch systems send SIGTERM to all processes of a job that they end, in any order."""

    @flow.executable_task(lost_retries=0)
    def end() -> str:
        ends = "kill $$; while kill -0 $$ 2>/dev/null; do :; done; kill $PPID"
        return f'setsid sh -c "{ends}" & sleep 60'

    flow.backend.patience = 0.5  # type: ignore[attr-defined]
    with pytest.raises(TaskLostError, match="its job has ended without a result"):
        await end()


async def test_a_call_ends_with_its_job(flow: WorkflowEngine, tmp_path: Path) -> None:
    @flow.function_task(lost_retries=0)
    def kill_job() -> None:
        import os
        import signal
        import time

        (tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(300)

    flow.backend.patience = 0.5  # type: ignore[attr-defined]
    with pytest.raises(TaskLostError, match="its job has ended without a result"):
        await kill_job()
    await until_gone(int((tmp_path / "pid").read_text()))


async def test_a_program_that_ends_itself_fails(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def end() -> str:
        return "kill $$; sleep 60"

    with pytest.raises(TaskFailedError, match="SIGTERM"):
        await end()


async def test_ranks_are_started_by_the_launcher(flow: WorkflowEngine) -> None:
    @flow.executable_task(resources={"ranks": 2}, environment={"GREETING": "a  b"}, stdin="text")
    def rank() -> str:
        return 'echo "$GREETING $(cat)"'

    assert await rank() == "a  b text\n" * 2


async def test_local_jobs_see_the_gpus_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    async with WorkflowEngine.create(PsijExecutionBackend()) as flow:

        @flow.executable_task
        def program() -> str:
            return "echo $CUDA_VISIBLE_DEVICES"

        @flow.function_task
        def function() -> str | None:
            import os

            return os.environ.get("CUDA_VISIBLE_DEVICES")

        assert [await program(), await function()] == ["3\n", "3"]
        with pytest.raises(CapabilityError, match="gpus"):
            await program.options(resources={"gpus": 1})()


async def test_a_failing_rank_fails_the_task(flow: WorkflowEngine) -> None:
    @flow.executable_task(resources={"ranks": 2})
    def rank() -> str:
        return "exit 4"

    with pytest.raises(Exception, match="exit code 4"):
        await rank()


@pytest.mark.parametrize(
    ("executor", "work_dir", "reason"),
    [
        ("nonexistent", "work", 'No such executor "nonexistent"'),
        ("slurm", "work", "'sbatch' of executor 'slurm' is not in PATH"),
        ("local", "my work", "spaces or other special characters"),
    ],
    ids=["executor", "command", "directory"],
)
async def test_a_start_that_cannot_succeed_fails(
    executor: str, work_dir: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailableError, match=reason):
        await WorkflowEngine.create(PsijExecutionBackend(executor), work_dir=tmp_path / work_dir)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"executor": 1}, TypeError),
        ({"max_jobs": 0}, ValueError),
        ({"tasks_per_job": 2.5}, TypeError),
        ({"attributes": {"qos": "a"}}, ValueError),
        ({"queue": "debug"}, ValueError),
        ({"detach": 1}, TypeError),
        ({"detach": True}, ValueError),
    ],
    ids=["executor", "jobs", "tasks", "attributes", "queue", "detach", "local"],
)
async def test_invalid_options_are_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        PsijExecutionBackend(**given)


async def test_the_times_of_a_program_are_measured_in_its_job() -> None:
    recorder = EventRecorder()
    backend = PsijExecutionBackend()
    async with asyncio.timeout(100), WorkflowEngine.create(backend, observers=[recorder]) as engine:
        await engine.executable_task(lambda: "sleep 0.5")()
    (interval,) = [event.interval for event in recorder.events if event.interval]
    assert 0.5 <= interval[1] - interval[0] < 100
