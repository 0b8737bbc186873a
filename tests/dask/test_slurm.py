"""Workers started by a batch system: dask-jobqueue on a real Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rhapsody import BackendUnavailableError, InputFile, OutputFile, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from tests._support.recipes import PROGRAM, recipe
from tests._support.slurm import slurm, until_no_jobs, why_not

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dask_jobqueue.*"),
]

ONE_NODE = """
interface = "lo"
job_extra_directives = ["--mem=500"]
local_directory = "{0}"
"""

LOOK = """
    import json, os, sys
    from pathlib import Path

    import psutil

    sys.path.append({root!r})
    from tests._support.sockets import answers_http, listening

    @flow.function_task
    def processes():
        return [os.getpid(), os.getppid()]

    family = [psutil.Process(), *map(psutil.Process, await processes())]
    found = listening(family)
    (jobs,) = Path(flow.backend.session.path).glob("dask-jobs.*")
    print(json.dumps(dict(
        hosts=sorted({{host for host, _ in found}}),
        count=len(found),
        http=sum(map(answers_http, found)),
        files=dict(
            jobs=jobs.stat().st_mode & 0o777,
            **{{path.name: path.stat().st_mode & 0o777 for path in jobs.iterdir()}},
        ),
    )))
"""
"""A part of a program that prints what listens, and the files of the jobs."""


async def test_workers_in_slurm_jobs_run_functions_and_programs(tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    place = tmp_path / "slurm"
    place.mkdir()

    def make() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = jobqueue.SLURMCluster(
                cores=1, processes=1, memory="1GB", queue="debug", walltime="00:05:00",
                interface="lo", job_extra_directives=["--mem=500"], local_directory=str(place),
                log_directory=str(place), scheduler_options={"dashboard_address": "127.0.0.1:0"},
                worker_extra_args=["--resources", "cores=1"],
            )  # fmt: skip
            cluster.scale(jobs=1)
        return cluster

    with slurm(place):
        cluster = await asyncio.to_thread(make)
        try:
            async with asyncio.timeout(100):
                backend = await DaskExecutionBackend(cluster=cluster)
                async with WorkflowEngine.create(backend=backend) as flow:
                    await _work(flow)
        finally:
            await asyncio.to_thread(cluster.close)  # type: ignore[attr-defined]
        await asyncio.to_thread(until_no_jobs)


async def _work(flow: WorkflowEngine) -> None:
    @flow.function_task
    def job() -> str | None:
        import os

        return os.environ.get("SLURM_JOB_ID")

    @flow.executable_task
    async def write(target: OutputFile) -> str:
        return f"echo $SLURM_JOB_ID > {target.filename}"

    @flow.executable_task
    async def read(source: InputFile, after: object) -> str:
        return f"cat {source.filename}"

    number = await job()
    assert number
    assert await read(InputFile("job.txt"), write(OutputFile("job.txt"))) == f"{number}\n"


async def test_the_documented_profile_starts_and_closes_a_cluster(tmp_path: Path) -> None:
    """It opens ports on the named interface only, without HTTP; its files are private."""
    pytest.importorskip("dask_jobqueue")
    place = tmp_path / "slurm"
    place.mkdir()
    # The node has two cores and little memory, and no network but loopback.
    text = recipe("dask-slurm").replace("= 4\n", "= 1\n").replace("cores=4", "cores=1")
    text = text.replace('memory = "16GB"', f"memory = '1GB'\n{ONE_NODE.format(place)}")
    text = text.replace('interface = "ib0"\n', "").replace('account = "ABC123"\n', "")
    (tmp_path / "rhapsody.toml").write_text(text)
    look = LOOK.format(root=str(Path(__file__).parents[2]))
    (tmp_path / "analysis.py").write_text(PROGRAM + look)
    with slurm(place):
        command = [sys.executable, "-W", "ignore", "-m", "rhapsody", "run", "analysis.py"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--profile", "dask-slurm"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        value, seen, *_ = [*done.stdout.splitlines(), "{}", "{}"]
        assert (done.returncode, value) == (0, "285"), done.stderr
        await asyncio.to_thread(until_no_jobs)
    sockets = json.loads(seen)
    assert sockets["hosts"] == ["127.0.0.1"]
    assert (sockets["count"], sockets["http"]) == (3, 0)  # the scheduler, a nanny and a worker
    files = sockets["files"]
    assert files["jobs"] == 0o700
    assert [mode for name, mode in files.items() if name.endswith(".pem")] == [0o600] * 2
    assert sorted(await asyncio.to_thread(os.listdir, tmp_path)) == [
        ".rhapsody", "analysis.py", "rhapsody.toml", "slurm",
    ]  # fmt: skip


async def test_jobs_that_are_refused_held_back_or_ended_do_not_wait_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr("rhapsody_dask.backend.FIRST_CHECK", 1.0)
    monkeypatch.setattr("rhapsody_dask.backend.WARNING_INTERVAL", 1.0)
    caplog.set_level("INFO", "rhapsody.dask")
    place = tmp_path / "slurm"
    place.mkdir()
    common = {
        "cores": 1, "processes": 1, "memory": "1GB", "queue": "debug", "walltime": "00:05:00",
        "interface": "lo", "job_extra_directives": ["--mem=500"], "local_directory": str(place),
        "log_directory": str(place), "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "n_workers": 1,
    }  # fmt: skip

    @asynccontextmanager
    async def engine(**kwargs: object) -> AsyncIterator[WorkflowEngine]:
        backend = DaskExecutionBackend(
            cluster_class="dask_jobqueue.SLURMCluster", cluster_kwargs={**common, **kwargs}
        )
        async with WorkflowEngine.create(backend=backend) as flow:
            yield flow

    with slurm(place):
        async with asyncio.timeout(200):
            with pytest.raises(BackendUnavailableError, match=r"Invalid partition.*'queue'"):
                async with engine(queue="missing"):
                    pass
            async with engine(job_script_prologue=["exit 3"]) as flow:
                with pytest.raises(BackendUnavailableError, match=r"3 worker jobs .*FAILED"):
                    await flow.function_task(int)(1)
            await _run("scontrol", "update", "partitionname=debug", "state=down")
            async with engine() as flow:
                with pytest.raises(BackendUnavailableError, match=r"PartitionDown.*'queue'"):
                    await flow.function_task(int)(1)
            await _run("scontrol", "update", "partitionname=debug", "state=up")
            async with engine() as flow:
                assert await flow.function_task(int)(1) == 1
                await _run("scancel", "--me")
                await asyncio.to_thread(until_no_jobs)
                assert await flow.function_task(int)(2) == 2
        await asyncio.to_thread(until_no_jobs)


async def _run(*words: str) -> None:
    await asyncio.to_thread(subprocess.run, words, check=True)
