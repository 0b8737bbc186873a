"""A real Slurm of one node, on loopback, in one directory, for as long as a test takes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests._support.machine import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "squeue")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={d}/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return the reason why Slurm cannot be started here, `None` if it can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "this Slurm is started as root"
    return None


@contextmanager
def slurm(directory: Path) -> Iterator[None]:
    """Starts Slurm, with the variables that its commands need, and stops it.

    Args:
        directory: An empty one, for all that it keeps.
    """
    host = socket.gethostname().partition(".")[0]
    (directory / "state").mkdir()
    (directory / "spool").mkdir()
    directory.chmod(0o755)
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    text = CONFIGURATION.format(d=directory, host=host, controller=free_port(), node=free_port())
    (directory / "slurm.conf").write_text(text)
    former = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    try:
        subprocess.run(
            ["munged", "--force", f"--key-file={key}", f"--socket={directory}/munge.sock"]
            + [f"--{name}-file={directory}/munged.{name}" for name in ("pid", "log", "seed")],
            check=True,
        )
        subprocess.run(["slurmctld"], check=True)
        subprocess.run(["slurmd"], check=True)
        _until_idle(directory)
        yield
    finally:
        for daemon in ("slurmd", "slurmctld", "munged"):
            _stop(directory / f"{daemon}.pid")
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def until_no_jobs() -> None:
    """Waits until no job is in the queue."""
    until = time.monotonic() + 30
    while True:
        queue = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
        if not queue.stdout.strip():
            return
        assert time.monotonic() < until, f"the job goes on: {queue.stdout}"
        time.sleep(0.2)


def _until_idle(directory: Path) -> None:
    until = time.monotonic() + 60
    while True:
        said = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True)
        if said.stdout.strip() == "idle":
            return
        if time.monotonic() > until:
            logs = [path.read_text()[-2000:] for path in directory.glob("*.log")]
            raise AssertionError(f"the node is {said.stdout!r}: {logs}")
        time.sleep(0.2)


def _stop(file: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int(file.read_text())
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
