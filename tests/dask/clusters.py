"""Clusters that the tests of the Dask backend share, each made once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rhapsody_dask import DaskExecutionBackend

ONE_EACH: dict[str, Any] = {"n_workers": 2, "threads": 1}
"""Two worker processes of one thread each."""


START_TIMEOUT = 100.0
"""Seconds within which a scheduler and its workers must start, even on a busy machine."""


class CannotStart(DaskExecutionBackend):
    """Fails in the last step of its start."""

    async def start(self) -> None:
        await super().start()
        raise ConnectionError("the last step of its start failed")


@contextmanager
def foreign(
    directory: Path,
    *,
    workers: int = 2,
    options: tuple[str, ...] = (),
    tls: bool = True,
    python: str = sys.executable,
) -> Iterator[dict[str, Any]]:
    """A scheduler and workers started by hand, as `dask scheduler` and `dask worker`.

    Gives the arguments for a backend that uses them. `python` is what they run with.
    """
    file = directory / "scheduler.json"
    credentials: list[str] = []
    given: dict[str, Any] = {"scheduler_file": str(file)}
    if tls:
        key, cert = make_credentials(directory)
        credentials = ["--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key]
        given["security"] = {
            "tls_ca_file": cert,
            "tls_client_cert": cert,
            "tls_client_key": key,
            "require_encryption": True,
        }
    protocol = "tls" if tls else "tcp"
    common = [*credentials, "--protocol", protocol, "--scheduler-file", str(file)]
    commands = [
        ["scheduler", *common, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        *(
            ["worker", *common, "--host", "127.0.0.1", "--no-dashboard", "--nthreads", "1",
             "--local-directory", str(directory / f"worker{number}"), *options]
            for number in range(workers)
        ),
    ]  # fmt: skip
    log_file = directory / "log.txt"
    log = open(log_file, "ab")  # noqa: SIM115 - closed below
    until = time.monotonic() + START_TIMEOUT
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            words = [python, "-m", "dask", *command]
            processes.append(subprocess.Popen(words, stdout=log, stderr=log, cwd=directory))
            while not file.exists():
                assert time.monotonic() < until, log_file.read_text()
                time.sleep(0.05)
        while log_file.read_text().count("Registered to") < workers:
            assert time.monotonic() < until, log_file.read_text()
            time.sleep(0.05)
        yield {**given, "processes": processes, "log": log_file}
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:  # as a nanny that lost its scheduler may be
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()
        log.close()


def make_credentials(directory: Path) -> tuple[str, str]:
    """Self-signed credentials as files: the key and the certificate."""
    from distributed import Security

    security = Security.temporary()
    key, cert = directory / "key.pem", directory / "cert.pem"
    key.write_text(security.tls_client_key)
    cert.write_text(security.tls_client_cert)
    os.chmod(key, 0o600)
    return str(key), str(cert)


def uses_dask() -> Callable[[], int]:
    """A task that uses Dask itself: it has the cluster that runs it make a sum.

    Made here so that it travels by value: not all clusters have this module.
    """

    def computes_on_dask() -> int:
        from distributed import worker_client

        with worker_client() as client:
            total: int = client.submit(sum, [1, 2]).result()
        return total

    return computes_on_dask


async def scale(cluster: Any, count: int) -> None:
    """Start or stop workers of a LocalCluster until it has that many."""
    await asyncio.to_thread(cluster.scale, count)
