"""Helpers for processes, files and ports of this machine that tests examine or wait for."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

not_under_coverage = pytest.mark.skipif(
    "COVERAGE_PROCESS_CONFIG" in os.environ,
    reason="coverage.py imports modules, and slows down the code that it measures",
)


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def connect(host: str, port: int) -> None:
    """Open a connection and close it; raise `OSError` if the port is not in use."""
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()


def alive(pid: int) -> bool:
    """Return whether a process is still running; an unreaped zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: Iterable[int]) -> bool:
    """Return whether processes end within seconds; one that was killed takes a moment."""
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def working_in(directory: str | Path) -> list[psutil.Process]:
    """The processes that work in or below a directory, but this one and zombies."""
    root, found = os.path.join(os.path.realpath(directory), ""), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.path.join(process.cwd(), "").startswith(root) and process.pid != os.getpid():
                found.append(process)
    return found


async def until_gone(*pids: int) -> None:
    """Waits until processes have ended."""
    assert await asyncio.to_thread(gone, pids)


async def exists(path: str | Path) -> None:
    """Waits for a file that another process makes."""

    def look() -> None:
        while not os.path.exists(path):
            time.sleep(0.005)

    await asyncio.to_thread(look)
