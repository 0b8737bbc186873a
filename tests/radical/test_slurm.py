"""A pilot through a real Slurm of one node, with the documented resource configuration."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rhapsody.testing import Driver
from tests.radical.pilots import backend

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
PAGE = Path(__file__).parents[2] / "docs/backends/radical_pilot.md"

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(400)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(directory: Path) -> str:
    """slurm.conf for one node on loopback, with everything below a directory."""
    host = socket.gethostname().partition(".")[0]
    return f"""
ClusterName=rhapsody
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm that runs as long as the module's tests."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons of these tests need root")
    directory = tmp_path_factory.mktemp("slurm")
    directory.chmod(0o755)
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (directory / "slurm.conf").write_text(configuration(directory))
    former = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    try:
        words = ["munged", "--force", f"--key-file={key}", f"--socket={directory}/munge.sock"]
        words += [f"--{name}-file={directory}/munged.{name}" for name in ("pid", "log", "seed")]
        subprocess.run(words, check=True)
        subprocess.run(["slurmctld"], check=True)
        subprocess.run(["slurmd"], check=True)
        _wait_idle()
        yield directory
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munged.pid"):
            with suppress(OSError, ValueError):
                os.kill(int((directory / name).read_text()), 15)
        if former is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = former


def _wait_idle() -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        run = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        if run.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    pytest.skip(f"Slurm's node did not become idle: {run.stdout}{run.stderr}")


def _wait_empty() -> None:
    """Waits until no job is in the queue."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        queue = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
        if not queue.stdout.strip():
            return
        time.sleep(0.5)
    raise AssertionError(f"the job goes on: {queue.stdout}")


async def test_tasks_run_in_a_batch_job(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = re.search(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert documented is not None
    config = tmp_path / "config/.radical/pilot/configs/resource_tests.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(json.loads(documented[1])))
    monkeypatch.setenv("RADICAL_CONFIG_USER_DIR", str(tmp_path / "config"))
    made = backend(
        {"resource": "tests.cluster", "cores": 2, "runtime": 10, "queue": "debug"},
        work_dir=tmp_path / "work",
        functions="executable",
    )
    async with Driver(made, work_dir=tmp_path) as driver:
        try:
            shell, call, much = await driver.run(
                driver.command("echo job $SLURM_JOB_ID on $SLURM_JOB_PARTITION"),
                driver.call(sum, [1, 2]),
                driver.command("true", task_backend_specific_kwargs={"cores_per_rank": 3}),
            )
            assert re.fullmatch(r"job \d+ on debug\n", shell.stdout or ""), str(shell)
            assert call.value == 3, str(call)
            assert "a node of pilot" in str(much.error)
        finally:
            await made.shutdown()
    await asyncio.to_thread(_wait_empty)
