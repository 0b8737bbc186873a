"""Clusters for the tests of the Dask backend."""

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
    """Backend that fails in the last step of its start."""

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
    """Run a scheduler and workers as `dask scheduler` and `dask worker`.

    Yields the arguments for a backend that uses them. `python` is the interpreter that runs them.
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
    """Write self-signed credentials to files; return the paths of the key and the certificate."""
    from distributed import Security

    security = Security.temporary()
    key, cert = directory / "key.pem", directory / "cert.pem"
    key.write_text(security.tls_client_key)
    cert.write_text(security.tls_client_cert)
    os.chmod(key, 0o600)
    return str(key), str(cert)


def uses_dask() -> Callable[[], int]:
    """Return a task that computes a sum on the cluster that runs it.

    It is defined in this function so that it is pickled by value: workers may lack this module.
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
