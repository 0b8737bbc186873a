"""A real Slurm of one or more nodes, on loopback, in one directory, for as long as a test takes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
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
AuthType=auth/munge
AuthInfo=socket={sockets}/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={d}/state
SlurmdSpoolDir={sockets}/%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=5
GresTypes=gpu
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

NODE = """
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} \
RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
"""

DEVICES = ("/dev/null", "/dev/zero")
"""Devices that take the place of GPUs."""


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
def slurm(
    directory: Path, nodes: int = 1, gpus: int = 0, cores: int = 2, memory: int = 2000
) -> Iterator[None]:
    """Start Slurm, with the variables that its commands need, and stop it.

    Args:
        directory: An empty directory for the files of Slurm.
        nodes: Number of nodes. All are on this machine. A single node has the name of the machine;
            several are called `node1`, `node2` and so on.
        gpus: Number of GPUs of each node, up to 2. Slurm counts them and assigns other devices.
        cores: Declared number of cores of each node; it may be more than this machine has.
        memory: Declared memory of each node in MB.
    """
    host = socket.gethostname().partition(".")[0]
    (directory / "state").mkdir()
    directory.chmod(0o755)
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    names = [host] if nodes == 1 else [f"node{number}" for number in range(1, nodes + 1)]
    sockets = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # socket paths are limited
    text = CONFIGURATION.format(d=directory, sockets=sockets, host=host, controller=free_port())
    for name in names:
        text += NODE.format(
            name=name, host=host, port=free_port(), gpus=gpus, cores=cores, memory=memory
        )
    (directory / "slurm.conf").write_text(text)
    lines = [f"NodeName={each} Name=gpu File={d}\n" for each in names for d in DEVICES[:gpus]]
    (directory / "gres.conf").write_text("".join(lines))
    former = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    try:
        subprocess.run(
            ["munged", "--force", f"--key-file={key}", f"--socket={sockets}/munge.sock"]
            + [f"--{name}-file={directory}/munged.{name}" for name in ("pid", "log", "seed")],
            check=True,
        )
        subprocess.run(["slurmctld"], check=True)
        for name in names:
            subprocess.run(["slurmd", "-N", name], check=True)
        _until_idle(directory)
        yield
    finally:
        for daemon in (*(f"slurmd.{name}" for name in names), "slurmctld", "munged"):
            _stop(directory / f"{daemon}.pid")
        shutil.rmtree(sockets, ignore_errors=True)
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def until_no_jobs(seconds: float = 30) -> None:
    """Wait until no job is in the queue."""
    until = time.monotonic() + seconds
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
        if set(said.stdout.split()) == {"idle"}:
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
