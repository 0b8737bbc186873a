"""A program that runs each kind of task on a real pilot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rhapsody_radical import RadicalExecutionBackend
from rhapsody_radical.pilot import PilotException
from tests._support.machine import working_in

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import asyncio
from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend

async def main():
    backend = RadicalExecutionBackend({"resource": "local.localhost", "cores": 4, "runtime": 10})
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def square(x):
            return x * x

        @flow.executable_task
        async def say(number):
            return f"echo {number} '$HOME' $TMPDIR"

        @flow.executable_task(service=True, ready=r"stdout:port (\\d+)")
        async def serve():
            return "echo port 4711; sleep 600"

        service = serve()
        print(await say(square(7)), await service, backend.session.path, sep="|")
    (pilot,) = flow.summary.backends["radical_pilot"]["pilots"]
    print(sorted(pilot["states"]), 0 < pilot["utilization"] < 1)

asyncio.run(main())
"""


def test_a_program_runs_each_kind_of_task_and_leaves_nothing(tmp_path: Path) -> None:
    home, here, temporary = places = [tmp_path / name for name in ("home", "here", "tmp")]
    for place in places:
        place.mkdir()
    before = {process.pid for process in psutil.process_iter()}
    environment = {k: v for k, v in os.environ.items() if k != "RADICAL_BASE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=here,
        env={**environment, "HOME": str(home), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, third = done.stdout.splitlines()
    assert first == f"49 $HOME {temporary}"
    assert second.startswith(f"|4711|{here}/.rhapsody/")
    assert third.endswith(" True"), third
    assert "PMGR_ACTIVE" in third
    # Waiting is reported; the pilot may be late on a busy machine.
    waits = (": not active after", ": closing, waiting for")
    lines = done.stderr.splitlines()
    assert [line for line in lines if not any(each in line for each in waits)] == []
    if lines:  # the log of the run contains them as well
        (run,) = (here / ".rhapsody").glob("2*")
        assert [each.name for each in run.rglob("*")] == ["log.txt"]
        shutil.rmtree(here / ".rhapsody")
    assert sorted(tmp_path.rglob("*")) == sorted(places)
    left = working_in(tmp_path)
    assert [process for process in left if process.pid not in before] == []


@pytest.mark.asyncio
async def test_a_pilot_with_inaccessible_files_is_rejected(tmp_path: Path) -> None:
    far = {"resource": "local.localhost", "access_schema": "ssh"}
    with pytest.raises(
        PilotException, match=r"its files at sftp://.*cannot access\. Run the program"
    ):
        await RadicalExecutionBackend(far, work_dir=tmp_path / "work")
    assert os.listdir(tmp_path) == []
    assert working_in(tmp_path) == []


@pytest.mark.asyncio
async def test_an_unknown_parameter_of_a_pilot_is_rejected_by_the_start(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no 'verbos'; did you mean 'verbose'"):
        await RadicalExecutionBackend({"verbos": True}, work_dir=tmp_path / "work")
    assert os.listdir(tmp_path) == []
    assert working_in(tmp_path) == []
