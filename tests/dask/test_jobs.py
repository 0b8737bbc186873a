"""Worker jobs of dask-jobqueue that a batch system refuses; `test_slurm.py` tests a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status

from rhapsody import BackendUnavailableError, CapabilityError, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.jobs import WorkerJobs

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dask_jobqueue.*"),
]

SBATCH = """#!/bin/sh
echo 'sbatch: error: {0}' >&2
exit 1
"""


def _cluster_class(tmp_path: Path, message: str) -> Any:
    jobqueue: Any = pytest.importorskip("dask_jobqueue")
    job_class, cluster_class = jobqueue.slurm.SLURMJob, jobqueue.SLURMCluster
    command = tmp_path / "sbatch"
    command.write_text(SBATCH.format(message))
    command.chmod(0o755)

    class RefusedJob(job_class):  # type: ignore[misc, valid-type]
        submit_command = str(command)

    class RefusingCluster(cluster_class):  # type: ignore[misc, valid-type]
        job_cls = RefusedJob

    return RefusingCluster


def _kwargs(tmp_path: Path) -> dict[str, Any]:
    return {
        "cores": 1, "memory": "1GB", "account": "ABC123", "interface": "lo",
        "log_directory": str(tmp_path), "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "n_workers": 2,
    }  # fmt: skip


async def test_a_refused_job_fails_the_start_with_the_sentence_and_the_argument(
    tmp_path: Path,
) -> None:
    kind = _cluster_class(tmp_path, "Invalid account or account/partition combination specified")
    backend = DaskExecutionBackend(cluster_class=kind, cluster_kwargs=_kwargs(tmp_path))
    async with asyncio.timeout(60):
        with pytest.raises(BackendUnavailableError) as caught:
            async with WorkflowEngine.create(backend=backend) as flow:
                await flow.function_task(int)(1)
    assert "Invalid account or account/partition" in str(caught.value)
    assert "'account' in cluster_kwargs (now 'ABC123')" in str(caught.value)


async def test_a_submission_continues_when_the_backend_stops_watching_the_jobs() -> None:
    started, submitted = asyncio.Event(), asyncio.Event()

    async def submit() -> None:
        started.set()
        await submitted.wait()

    submission = asyncio.create_task(submit())  # `SpecCluster.close` waits for it, too
    jobs = WorkerJobs(lambda _: None, lambda: None)
    jobs._cluster = SimpleNamespace(
        loop=SimpleNamespace(asyncio_loop=asyncio.get_running_loop()),
        status=Status.running,
        _correct_state=lambda: submission,
        workers={},
        worker_spec={},
    )
    watching = asyncio.create_task(jobs.check(()))
    await started.wait()
    await asyncio.sleep(0)  # `check` begins to wait
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    submitted.set()
    async with asyncio.timeout(60):
        await submission


SCRIPT = """#!/bin/sh
stat -c %a "$1" "${{1%/*}}" >{0}
grep -c distributed.cli.dask_worker "$1" >>{0}
echo Submitted batch job 1
"""


async def test_other_users_cannot_replace_the_script_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    kind = _cluster_class(tmp_path, "")
    (tmp_path / "sbatch").write_text(SCRIPT.format(tmp_path / "said"))
    watched = WorkerJobs(lambda _: None, lambda: None).watched_class(kind)
    job = watched.job_cls("tcp://127.0.0.1:1", name="0", cores=1, memory="1GB")
    await job.start()
    assert job.job_id == "1"
    script, directory, commands = (tmp_path / "said").read_text().split()
    assert (script, directory, commands) == ("600", "700", "1")
    assert list(temporary.iterdir()) == []


JOB = """#!/bin/sh
cp "$1" {0}.sh  # which is removed when this command has ended
setsid sh {0}.sh </dev/null >{0}.log 2>&1 &
echo "Submitted batch job $!"
"""


async def test_a_task_that_no_job_can_run_fails_even_if_it_is_called_before_the_first_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.backend.FIRST_CHECK", 0.1)
    monkeypatch.setattr("rhapsody_dask.backend.WARNING_INTERVAL", 0.1)
    kind = _cluster_class(tmp_path, "")
    kind.job_cls.cancel_command = "true"
    command = tmp_path / "sbatch"
    command.write_text(JOB.format(command))
    kwargs = {**_kwargs(tmp_path), "n_workers": 1, "worker_extra_args": ["--resources", "cores=1"]}
    async with asyncio.timeout(100):
        backend = DaskExecutionBackend(cluster_class=kind, cluster_kwargs=kwargs)
        async with WorkflowEngine.create(backend=backend) as flow:
            wide = flow.function_task(resources={"cores": 9})(int)(1)
            assert await flow.function_task(int)(2) == 2
            with pytest.raises(CapabilityError, match="worker_extra_args"):
                await wide


async def test_a_refusal_by_a_cluster_of_the_user_fails_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.backend.FIRST_CHECK", 0.1)
    kind = _cluster_class(tmp_path, "Invalid partition name specified")
    cluster = await asyncio.to_thread(lambda: kind(**_kwargs(tmp_path)))
    try:
        async with asyncio.timeout(60):
            backend = DaskExecutionBackend(cluster=cluster)
            # Dask submits the jobs before or after the backend watches them.
            with pytest.raises(BackendUnavailableError, match="'queue' in cluster_kwargs"):
                async with WorkflowEngine.create(backend=backend) as flow:
                    await flow.function_task(int)(1)
    finally:
        await asyncio.to_thread(cluster.close)


async def test_a_refusal_that_can_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rhapsody_dask.backend.FIRST_CHECK", 0.1)
    monkeypatch.setattr("rhapsody_dask.backend.WARNING_INTERVAL", 0.1)
    monkeypatch.setattr("rhapsody_dask.jobs.RETRY", 0.1)
    kind = _cluster_class(tmp_path, "AssocMaxSubmitJobLimit")
    backend = DaskExecutionBackend(cluster_class=kind, cluster_kwargs=_kwargs(tmp_path))
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend=backend) as flow:
            future = flow.function_task(int)(1)
            (tmp_path / "sbatch").write_text(SBATCH.format("Invalid qos specification"))
            with pytest.raises(BackendUnavailableError, match="job_extra_directives"):
                await future
    assert any("AssocMaxSubmitJobLimit" in one.getMessage() for one in caplog.records)
