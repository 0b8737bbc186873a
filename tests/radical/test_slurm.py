"""Pilots in batch jobs of a real Slurm, with the documented resource configuration."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody.errors import TaskLostError
from rhapsody.resources import Resources
from rhapsody_testing import Driver
from tests._support.slurm import why_not
from tests.radical import cluster, kills
from tests.radical.pilots import backend

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.usefixtures("batch_system"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


INSIDE = """
import asyncio, json, os, sys
from pathlib import Path
from rhapsody.sdk import OUTPUT_FILES
from rhapsody_testing import Driver
from tests.radical import cluster
from tests.radical.pilots import backend

async def main(place):
    pilot = cluster.settings(access_schema="interactive", resource="tests.srun")
    made = backend(pilot, work_dir=place / "work", functions="executable")
    async with Driver(made, work_dir=place) as driver:
        try:
            end, failed, killed = await driver.run(
                driver.command("echo $SLURM_JOB_ID"),
                driver.command("echo said >&2; exit 3"),
                driver.command("echo more >&2; kill -9 $$"),
            )
            jobs = [os.environ["SLURM_JOB_ID"], (end.stdout or str(end)).strip()]
            errors = Path(failed.task["sandbox"], OUTPUT_FILES[1]).read_text()
            ends = [[each.stderr, each.task["exit_code"]] for each in (failed, killed)]
            print(json.dumps([jobs, len(cluster.jobs(place)), ends, errors]))
        finally:
            await made.shutdown()

asyncio.run(main(Path(sys.argv[1])))
"""
"""A program that starts a pilot in its own allocation."""


@pytest.mark.asyncio
async def test_tasks_run_in_batch_jobs_and_are_lost_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pilots take their turns on one node: the first is canceled, the second one times out."""
    monkeypatch.setenv("OF_THE_PROGRAM", "known")
    pilots = {**cluster.settings(), "pilots": [{}, {}]}
    made = backend(pilots, work_dir=tmp_path / "work", functions="executable")
    async with Driver(made, work_dir=tmp_path) as driver:
        try:
            async with asyncio.timeout(120):
                shell, call, much, *others = await driver.run(
                    driver.command("echo $SLURM_JOB_ID $SLURM_JOB_PARTITION $OF_THE_PROGRAM"),
                    driver.call(sum, [1, 2]),
                    driver.command("true", task_backend_specific_kwargs={"cores_per_rank": 3}),
                    driver.command("echo fits", resources=Resources(memory="500 MB")),
                    *(driver.command("echo $RP_PILOT_ID") for _ in range(8)),
                )
            job, partition, known = (shell.stdout or str(shell)).split()
            assert (partition, known) == ("debug", "known")
            assert call.value == 3, str(call)
            assert "a node of pilot" in str(much.error)
            memory = others.pop(0)
            assert memory.stdout == "fits\n", str(memory)
            (active,) = {str(end.stdout).strip() for end in others}
            (queued,) = (each for each in made.pilots if each.uid != active)
            assert queued.state == "PMGR_ACTIVE_PENDING"
            assert cluster.jobs(tmp_path, "RUNNING") == [job]

            waiting = driver.command("echo $RP_PILOT_ID")
            waiting["task_backend_specific_kwargs"] = {"pilot": queued.uid}
            running = driver.command("sleep 600")
            await driver.submit(waiting, running)
            assert await driver.running(running)
            await asyncio.to_thread(subprocess.run, ["scancel", job], check=True)
            async with asyncio.timeout(120):
                end = await driver.finished(running)
                assert isinstance(end.error, TaskLostError), str(end)
                assert f"{active} on tests.cluster was canceled" in str(end.error)
                end = await driver.finished(waiting)
            assert end.stdout == f"{queued.uid}\n", str(end)

            tasks = [driver.command("sleep 600"), driver.command("sleep 600")]
            await driver.submit(*tasks)
            for task in tasks:
                assert await driver.running(task)
            (job,) = cluster.jobs(tmp_path, "RUNNING")
            words = ["scontrol", "update", f"jobid={job}", "endtime=now+1"]
            await asyncio.to_thread(subprocess.run, words, check=True)
            async with asyncio.timeout(120):
                ends = [await driver.finished(task) for task in tasks]
            for end in ends:
                assert isinstance(end.error, TaskLostError), str(end)
                # Either the end of the command or that of the pilot is reported first.
                assert re.search(f"ended (with )?its (batch )?job {job}", str(end.error)), str(end)
        finally:
            await made.shutdown()
    cluster.until_no_jobs_of(tmp_path)


def test_a_pilot_uses_the_allocation_of_the_program_and_srun(tmp_path: Path) -> None:
    words = ["salloc", "--quiet", "--ntasks=2", sys.executable, "-W", "ignore", "-c", INSIDE]
    done = subprocess.run(
        [*words, str(tmp_path)], cwd=kills.ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (own, of_the_task), submitted, (failed, killed), errors = json.loads(done.stdout)
    assert (of_the_task, submitted) == (own, 0), done.stderr
    # Messages of srun are removed from the standard error, and are in its file.
    assert failed == ["said\n", 3]
    assert killed == ["more\n", 137]
    assert errors.startswith("said\nsrun: error: ")
