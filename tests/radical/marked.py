"""Processes that look like those of a session, because its name is in their environment."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

MINE = f"mine.{os.getpid()}"
"""A session's uid that other tests, which run at the same time, do not have."""


@contextmanager
def running(
    *words: str, cwd: Path | None = None, user: int | None = None, **variables: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in its own process session, until the end of the block at the latest."""
    environment = {**os.environ, **variables}
    process = subprocess.Popen(
        words or ["sleep", "600"], env=environment, cwd=cwd, user=user, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    child.kill()
        process.kill()
        process.wait()


def children(pid: int, count: int) -> list[psutil.Process]:
    """Wait until a process has enough descendants with their own programs, and return them."""
    end = time.monotonic() + 30
    while True:
        found = psutil.Process(pid).children(recursive=True)
        if len(found) >= count and all(each.name() == "sleep" for each in found):
            return found
        assert time.monotonic() < end, f"only {found}"
        time.sleep(0.005)
