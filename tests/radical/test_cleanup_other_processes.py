"""End of a session whose client was killed, next to processes of others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rhapsody.errors import TaskLostError
from rhapsody_radical import cleanup
from rhapsody_testing import Driver
from tests._support.machine import alive, gone
from tests.radical.busy import BUSY, six, sleeping
from tests.radical.pilots import backend

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]


@contextmanager
def forked() -> Iterator[int]:
    """A forked child with all open descriptors of this process, until the end of the block."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(there)
        os.read(here, 1)
        os._exit(0)
    os.close(here)
    try:
        yield pid
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.close(there)
        os.waitpid(pid, 0)


@pytest.mark.asyncio
async def test_tasks_end_with_the_client_although_a_fork_holds_its_socket(
    tmp_path: Path,
) -> None:
    made = await backend(work_dir=tmp_path / "work")
    async with Driver(made, work_dir=tmp_path) as driver:
        pids = tmp_path / "pids"
        busy = driver.command(BUSY.format(pids=pids))
        await driver.submit(busy)
        its = await six(pids)
        await made.run_in_client(lambda _: print("these are the last words", flush=True))
        theirs = [each.pid for each in cleanup.find(made.session.uid)]
        assert made._connection is not None
        client = made._connection._process
        assert client is not None
        with forked() as fork, sleeping(tmp_path / "work") as bystander:
            psutil.Process(client.pid).kill()
            async with asyncio.timeout(30):
                end = await driver.finished(busy)
            assert isinstance(end.error, TaskLostError), str(end)
            assert "these are the last words" in str(end.error)
            assert await asyncio.to_thread(gone, [*theirs, *its])
            async with asyncio.timeout(5):
                late = await driver.run_one(driver.command("true"))
            assert isinstance(late.error, TaskLostError), str(late)
            assert "these are the last words" in str(late.error)
            async with asyncio.timeout(60):
                await made.shutdown()
            assert cleanup.find(made.session.uid) == []
            assert [each.name for each in (tmp_path / "work").iterdir()] == [made.session.uid]
            assert alive(fork)
            assert alive(bystander.pid)
