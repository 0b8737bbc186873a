"""What is not the backend's own stays as it is: processes, variables, files, sockets, sessions.

The other half is that nothing of the backend's own stays: all of a cancelled task's processes
end, and all of a session's whose client was killed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.errors import TaskLostError, TaskTimeoutError
from rhapsody.testing import Driver
from rhapsody_radical import processes
from tests.machine import alive, gone
from tests.radical.pilots import backend

pytestmark = pytest.mark.timeout(300)
on_the_pilot = pytest.mark.asyncio(loop_scope="module")

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
    """A program of the user's without a terminal, which works in a directory."""
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
    """The process ids of a busy task, once all of them are known."""

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


# The client alone is killed.


@contextmanager
def forked() -> Iterator[int]:
    """A child of this very process, which has all that it had open, until the block's end."""
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
async def test_the_end_of_the_client_ends_its_tasks_although_a_fork_has_its_socket(
    tmp_path: Path,
) -> None:
    made = await backend(work_dir=tmp_path / "work")
    async with Driver(made, work_dir=tmp_path) as driver:
        pids = tmp_path / "pids"
        busy = driver.command(BUSY.format(pids=pids))
        await driver.submit(busy)
        its = await six(pids)
        await made.run_in_client(lambda _: print("these are the last words", flush=True))
        theirs = [each.pid for each in processes.of_session(made.session.uid)]
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
            assert processes.of_session(made.session.uid) == []
            assert [each.name for each in (tmp_path / "work").iterdir()] == [made.session.uid]
            assert alive(fork)
            assert alive(bystander.pid)


# Cancelled tasks: what works in the same directory goes on, what they started ends.


@on_the_pilot
@pytest.mark.parametrize("who", ["the task's settings", "the engine"])
async def test_a_cancelled_task_ends_with_all_that_it_started_and_nothing_else(
    driver: Driver, tmp_path: Path, who: str
) -> None:
    here = tmp_path / "shared"

    def placed(task: Any, **settings: Any) -> Any:
        if who == "the engine":
            task["sandbox"] = str(here)
        else:
            settings["sandbox"] = str(here)
        task["task_backend_specific_kwargs"] = settings
        return task

    names = ("neighbour", "cancelled", "timed")
    pids = {name: tmp_path / f"{name}.pids" for name in names}
    neighbour, cancelled = (
        placed(driver.command(BUSY.format(pids=pids[name]))) for name in names[:2]
    )
    timed = placed(driver.command(BUSY.format(pids=pids["timed"])), timeout=8.0)
    with sleeping(here) as one, sleeping(here, "nohup") as two, sleeping(here / "below") as three:
        await driver.submit(neighbour, cancelled, timed)
        others = [one.pid, two.pid, three.pid, *await six(pids["neighbour"])]
        theirs, its = await six(pids["timed"]), await six(pids["cancelled"])
        await driver.cancel(cancelled)
        assert (await driver.finished(cancelled)).state == "CANCELED"
        assert [pid for pid in its if alive(pid)] == []
        end = await driver.finished(timed)
        assert isinstance(end.error, TaskTimeoutError), str(end)
        assert [pid for pid in theirs if alive(pid)] == []
        assert all(map(alive, others))
        await driver.cancel(neighbour)
        assert (await driver.finished(neighbour)).state == "CANCELED"
        assert [pid for pid in others if alive(pid)] == [one.pid, two.pid, three.pid]


@on_the_pilot
async def test_what_a_task_that_is_done_left_in_the_background_goes_on(driver: Driver) -> None:
    task = driver.command("setsid sleep 600 > /dev/null 2>&1 & echo $!")
    end = await driver.run_one(task)
    assert end.state == "DONE", str(end)
    assert alive(int(str(end.stdout)))
