"""Tasks and programs with several processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY = """
echo $$ >> {pids}
nohup sleep 600 > nohup.log 2>&1 &
echo $! >> {pids}
setsid sleep 600 &
echo $! >> {pids}
sh -c 'echo $$ >> {pids}; exec setsid nohup sleep 600 > /dev/null 2>&1' &
(cd / && exec sleep 600) &
echo $! >> {pids}
env -i sleep 600 &
echo $! >> {pids}
touch {pids}.all
wait
"""
"""A task of six processes, in and out of its group, session, directory and environment."""


@contextmanager
def sleeping(directory: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the user without a terminal in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    program = subprocess.Popen(
        [*words, "sleep", "600"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


async def six(pids: Path) -> list[int]:
    """Wait for all processes of a busy task, and return their ids."""

    def look() -> list[int]:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if os.path.exists(f"{pids}.all"):
                found = [int(pid) for pid in pids.read_text().split()]
                if len(found) == 6:
                    return found
            time.sleep(0.02)
        raise TimeoutError("the task's processes were not started")

    return await asyncio.to_thread(look)
