"""Workers on all nodes of the batch job in which the program runs: the option `launcher`.

The scheduler runs in the process of the program. A launcher (`srun`, `mpirun` or `ssh`) starts one
worker on each node, which is this module as a main program: it calls Dask's own command line with
the cores, memory and GPUs that the job has on the node. The workers end when the scheduler closes,
or when the connection to it breaks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody import BackendUnavailableError
from rhapsody.sdk import hosts_of_job, in_thread, nodes_of_job

log: logging.Logger = logging.getLogger("rhapsody.dask")

LAUNCHERS = ("srun", "mpirun", "ssh")
"""The values of the option `launcher`."""

ARGUMENTS = {
    "threads_per_worker": "--nthreads",
    "memory_limit": "--memory-limit",
    "local_directory": "--local-directory",
    "interface": "--interface",
    "worker_dashboard_address": "--dashboard-address",
}
"""Options that are passed to the workers, with their names on Dask's command line."""

ACCEPTED = frozenset({*ARGUMENTS, "dashboard_address", "gpus", "host", "scheduler_port"})
"""Options that can be combined with `launcher`."""

END = 20.0
"""Seconds after the end of the scheduler within which the workers have to end."""

LOG = "workers.log"
"""Name of the file with the output of the launcher and of the workers."""


class Workers:
    """The launchers of a cluster, and thus its workers.

    Args:
        launcher: One of `LAUNCHERS`.
        given: The options of the cluster.
        give_up: Called with a sentence if all launchers have ended before `close`.
    """

    def __init__(
        self, launcher: str, given: Mapping[str, Any], give_up: Callable[[str], None]
    ) -> None:
        self._launcher, self._given, self._give_up = launcher, given, give_up
        self._processes: list[Process] = []
        self._watching: asyncio.Task[None] | None = None

    def cluster(self, directory: str) -> Any:
        """Start the scheduler; called in a separate thread."""
        from distributed import LocalCluster

        from rhapsody_dask.classes import LOOPBACK, credentials

        keys = ("dashboard_address", "host", "interface", "scheduler_port")
        local = {key: self._given[key] for key in keys if key in self._given}
        if "host" not in local and "interface" not in local:
            local["host"] = _address()
        quiet = {"dashboard": False, "dashboard_address": LOOPBACK}
        make: Any = LocalCluster  # untyped in Dask
        return make(
            **{"dashboard_address": None, **local},
            n_workers=0,
            threads_per_worker=1,
            protocol="tls://",
            security=credentials(directory),
            scheduler_kwargs={} if local.get("dashboard_address") else quiet,
        )

    async def start(self, address: str, security: Any, directory: str) -> None:
        """Start the workers.

        Args:
            address: The scheduler's address.
            security: The credentials.
            directory: A directory that all nodes share, for the file with the output.

        Raises:
            BackendUnavailableError: The launcher is not installed, or the job has no node file.
        """
        worker = [sys.executable, "-m", __name__, str(self._given.get("gpus", "")), address]
        worker += ["--tls-ca-file", security.tls_ca_file, "--tls-cert", security.tls_worker_cert]
        worker += ["--tls-key", security.tls_worker_key]
        for key, option in ARGUMENTS.items():
            if self._given.get(key) is not None:
                worker += [option, str(self._given[key])]
        commands = await in_thread(_commands, self._launcher, worker)
        self._log = Path(directory, LOG)
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for command in commands:
                # In a new session, Ctrl-C does not end the workers before their tasks.
                start = asyncio.create_subprocess_exec(
                    *command, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
                self._processes.append(await start)
        except FileNotFoundError as error:
            raise BackendUnavailableError(
                f"launcher={self._launcher!r}: the command {self._launcher} is not installed here; "
                f"use one of {', '.join(LAUNCHERS)}"
            ) from error
        finally:
            os.close(output)

    def watch(self) -> None:
        """Fail the tasks when all launchers end; called when the client is connected."""
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        codes = await asyncio.gather(*(process.wait() for process in self._processes))
        text = await in_thread(partial(self._log.read_text, errors="replace"))
        last = (text.strip().splitlines() or ["no output"])[-1]
        self._give_up(
            f"{self._launcher} has ended with exit code {codes[0]}: {last} (see {self._log})"
        )

    async def close(self) -> None:
        """Wait until the workers have ended, and end those that do not; after the scheduler."""
        if self._watching is not None:
            self._watching.cancel()
        for stop in (None, Process.terminate, Process.kill):
            for process in self._processes:
                if stop is not None and process.returncode is None:
                    with suppress(ProcessLookupError):
                        stop(process)
            with suppress(TimeoutError):
                async with asyncio.timeout(END):
                    await asyncio.gather(*(process.wait() for process in self._processes))
                return


def _commands(launcher: str, worker: list[str]) -> list[list[str]]:
    """Return the commands that start a worker on each node of the job.

    Raises:
        BackendUnavailableError: The job has no node file for `ssh`.
    """
    nodes = str(nodes_of_job())
    if launcher == "srun":
        # `--overlap` leaves the cores to steps that tasks start; Dask's threads use all cores.
        options = ["--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node=1", "--overlap"]
        return [
            ["srun", *options, "--cpu-bind=none", "--export=ALL", "--kill-on-bad-exit=0", *worker]
        ]
    if launcher == "mpirun":
        version = subprocess.run(
            ["mpirun", "--version"],  # noqa: S607 - the one that will be used
            capture_output=True,
            text=True,
            check=False,
        )
        open_mpi = "Open MPI" in version.stdout
        place = ["--map-by", "ppr:1:node", "--bind-to", "none"] if open_mpi else ["-ppn", "1"]
        return [["mpirun", "-n", nodes, *place, *worker]]
    hosts = hosts_of_job()
    if not hosts:
        raise BackendUnavailableError(
            "launcher='ssh' needs the node file of a job of PBS, Torque or LSF (PBS_NODEFILE or "
            "LSB_DJOB_HOSTFILE); use launcher='srun' on Slurm"
        )
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(worker)}"
    return [["ssh", "-o", "BatchMode=yes", host, there] for host in hosts]


def _address() -> str:
    """Return an address of this host that other nodes can reach."""
    from distributed.utils import get_ip

    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:  # the name is not known
        address = "127.0.0.1"
    return str(get_ip()) if address.startswith("127.") else address


def main(gpus: str, *arguments: str) -> None:
    """Run a worker with the cores, memory and GPUs that the job has on this node.

    Args:
        gpus: The number of GPUs; an empty text for those that the job makes visible.
        *arguments: Arguments of Dask's command line.
    """
    from dask.system import CPU_COUNT
    from distributed.cli.dask_worker import main as worker
    from distributed.system import MEMORY_LIMIT

    from rhapsody_dask.classes import scratch_directory

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() else 0

    words = [*arguments]
    cores = number("SLURM_CPUS_ON_NODE") or CPU_COUNT
    if "--nthreads" in words:
        cores = int(words[words.index("--nthreads") + 1])
    else:
        words += ["--nthreads", str(cores)]
    memory = number("SLURM_MEM_PER_NODE") or number("SLURM_MEM_PER_CPU") * cores
    memory = memory * 2**20 or MEMORY_LIMIT
    if "--memory-limit" not in words:
        words += ["--memory-limit", str(memory)]
    if "--local-directory" not in words:
        words += ["--local-directory", scratch_directory()]
    else:
        given = words.index("--local-directory") + 1
        words[given] = scratch_directory(words[given])
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = int(gpus or len(visible))
    declared = f"cores={cores} memory={memory}" + (f" gpus={devices}" if devices else "")
    if "--dashboard-address" not in words:
        words += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    worker(["--resources", declared, *words])


if __name__ == "__main__":
    main(*sys.argv[1:])
