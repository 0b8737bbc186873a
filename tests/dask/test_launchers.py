"""Workers on all nodes of the batch job in which the program runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import BackendUnavailableError
from rhapsody_dask import DaskExecutionBackend
from tests._support.slurm import slurm, why_not

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]

PROGRAM = f"""
import asyncio, json, os, psutil, sys

sys.path.append({str(ROOT)!r})
from tests._support.sockets import answers_http, listening

async def main(flow):
    @flow.function_task
    def where(_):
        import os, time
        time.sleep(0.2)
        return os.environ["SLURMD_NODENAME"], os.getpid(), os.getppid()

    @flow.executable_task(resources={{"cores": 2}})
    async def both_cores():
        return "echo $SLURMD_NODENAME"

    found = set()
    while len(nodes := {{node for node, *_ in found}}) < 2:
        found |= {{*await asyncio.gather(*flow.map(where, range(8)))}}
    pids = {{os.getpid(), *(pid for _, *pair in found for pid in pair)}}
    sockets = listening(map(psutil.Process, pids))
    print(json.dumps([
        sorted(nodes),
        (await both_cores()).strip() in nodes,
        sorted({{host for host, _ in sockets}}),
        len(sockets),
        sum(map(answers_http, sockets)),
    ]))
    if sys.argv[1:]:
        os.kill(os.getpid(), 9)
"""


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_srun_starts_a_worker_on_each_node_that_ends_with_the_program(
    tmp_path: Path,
) -> None:
    """The job ends when its steps have ended, also after SIGKILL."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "nodes.py").write_text(PROGRAM)
    options = "-b dask -o launcher=srun -o interface=lo"
    command = f"timeout 60 {sys.executable} -W ignore -m rhapsody run --fresh nodes.py {options}"
    until_steps_end = "while squeue -hs -j $SLURM_JOB_ID | grep -qv batch; do sleep 0.1; done"
    with slurm(tmp_path / "slurm", nodes=2):
        for arguments in ("", "-- kill"):
            script = f"--wrap={command} {arguments}; {until_steps_end}"
            words = ["sbatch", "--wait", "-N2", "-c2", "--mem=1000", "-oout", "-eerrors", script]
            subprocess.run(words, cwd=tmp_path, timeout=150, check=True)
            seen = [["node1", "node2"], True, ["127.0.0.1"], 5, 0]  # two pairs and the scheduler
            output, errors = [(tmp_path / name).read_text() for name in ("out", "errors")]
            assert json.loads(output or "[]") == seen, errors
    (jobs, killed) = sorted(tmp_path.glob(".rhapsody/2*/engine.*/dask-jobs.*"))
    assert [path.name for path in jobs.iterdir()] == ["workers.log"]
    assert len([*killed.glob("*.pem")]) == 2


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command `ssh` that runs its last argument here, and a node file with two hosts."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(
        '#!/bin/sh\nexport HOST_OF_TEST="$3"\n'
        '[ -z "$UNREACHABLE" ] || { echo "$3: no route"; exit 255; }\nexec sh -c "$4"\n'
    )
    ssh.chmod(0o755)
    (tmp_path / "hosts").write_text("one\none\ntwo\n")
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "hosts"))
    return ssh


@pytest.mark.asyncio
async def test_ssh_starts_a_worker_on_each_host_of_the_node_file(
    fake_ssh: Path,
) -> None:
    backend = DaskExecutionBackend({"launcher": "ssh", "interface": "lo", "threads": 1})
    async with asyncio.timeout(120), WorkflowEngine.create(backend=backend) as flow:
        await backend.client.wait_for_workers(2)

        @flow.function_task
        def host() -> str:
            return os.environ["HOST_OF_TEST"]

        seen: set[str] = set()
        while len(seen) < 2:
            seen |= {*await asyncio.gather(*(host() for _ in range(8)))}
        assert seen == {"one", "two"}


@pytest.mark.asyncio
async def test_a_launcher_that_fails_is_reported(
    fake_ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNREACHABLE", "1")
    backend = DaskExecutionBackend(launcher="ssh")
    with pytest.raises(BackendUnavailableError, match=r"ssh has ended .*255.* no route"):
        async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
            await flow.function_task(int)(1)


def test_conflicting_options_are_named() -> None:
    with pytest.raises(ValueError, match="launcher must be one of srun, mpirun, ssh"):
        DaskExecutionBackend(launcher="slurm")
    with pytest.raises(ValueError, match="n_workers cannot be combined with launcher"):
        DaskExecutionBackend({"n_workers": 2}, launcher="srun")
    with pytest.raises(ValueError, match="address cannot be combined with launcher"):
        DaskExecutionBackend(address="tcp://host:1", launcher="srun")
