"""Programs do not outlive the process that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rhapsody.backends.base import ManagedBackend
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.sdk import processes
from rhapsody.sdk.processes import Reaper
from rhapsody_testing import Driver
from tests._support.machine import alive, gone
from tests._support.programs import Program
from tests.core.backends.test_programs import Short

pytestmark = pytest.mark.timeout(60)

needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")


def reapers() -> list[psutil.Process]:
    """Return the reapers among the children of this process."""
    return [child for child in psutil.Process().children() if "-I" in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    """Return the command line of a process, which is empty for a moment after it starts.

    Also for one that has ended.
    """
    end = time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):  # psutil also raises a subclass of it for a zombie
        while time.monotonic() < end:
            if command := process.cmdline():
                return command
            time.sleep(0.005)
    return []


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    reaper = Reaper()
    yield reaper
    reaper.stop()


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that sleep, each a process group."""
    processes = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(4)]
    yield processes
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


FORKS = """
import os, psutil, subprocess
from rhapsody.sdk.processes import Reaper

reaper = Reaper()
sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
reaper.began(sleeper.pid)
(process,) = [child for child in psutil.Process().children() if child.pid != sleeper.pid]
reader, writer = os.pipe()
if not os.fork():  # it has the reaper's pipe, too, and lives on
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)
other = os.fork()
if not other:
    reaper.stop()  # which is not its own
    os._exit(0)
os.waitpid(other, 0)
try:
    process.wait(0.5)
except psutil.TimeoutExpired:
    print("lives")
reaper.stop()
print("held up" if process.is_running() else "over", -sleeper.wait(20))
"""

WORKFLOW = """
async def main():
    flow = await WorkflowEngine.create()

    def family(name):
        note = os.path.abspath(name)
        return f"sleep 600 & echo $$ $! > {note}.part; mv {note}.part {note}; echo up; wait"

    task = flow.executable_task(family)
    server = flow.executable_task(service=True, ready="stdout:up")(family)

    @flow.executable_task
    def short():
        return "true"

    await short()
    calls = [task("first"), task("second")]
    await server("server")
    while not (os.path.exists("first") and os.path.exists("second")):
        await asyncio.sleep(0.01)
    FORK
    say("started")
    await asyncio.sleep(600)

asyncio.run(main())
"""
FORK = """if os.fork() == 0:
        time.sleep(600)"""


@pytest.mark.parametrize(
    "way", ["killed", "interrupted", pytest.param("forked", marks=needs_pidfd)]
)
def test_programs_and_services_end_with_a_program_that_is_killed(tmp_path: Path, way: str) -> None:
    program = Program(
        tmp_path / "program.py", WORKFLOW.replace("FORK", FORK if way == "forked" else "")
    )
    try:
        program.until("started")
        names = ("first", "second", "server")
        pids = [int(pid) for name in names for pid in (tmp_path / name).read_text().split()]
        assert len(pids) == 6
        assert all(map(alive, pids))
        if way == "interrupted":  # as the terminal does, for all in the foreground
            program.process.send_signal(signal.SIGSTOP)
            os.killpg(program.process.pid, signal.SIGINT)
        program.send(signal.SIGKILL)
        assert gone(pids)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.close()


KILLED_EARLY = """
import asyncio, os, signal, sys
from rhapsody.sdk.processes import Program, Reaper

class Silent(Reaper):
    def began(self, pid, number=0):
        if number != int(sys.argv[1]):
            super().began(pid, number)
        if number == 2:
            print(pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    reaper, programs = Silent(), []
    options = dict(cwd="/", environment={}, stdin=None, stdout=2, stderr=2)
    for _ in range(2):
        programs.append(Program(["/bin/sleep", "600"], reaper=reaper, **options))
        print(programs[-1].pid)

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("number", ["1", "2"])
def test_it_kills_a_program_that_could_not_be_reported_yet(number: str) -> None:
    command = [sys.executable, "-u", "-c", KILLED_EARLY, number]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=50)
    assert done.returncode == -signal.SIGKILL
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    assert gone(pids)


POOL = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from rhapsody.sdk import Reaper

def go_on():
    os.write(1, b"started\\n")
    time.sleep(600)

pool, reaper = ProcessPoolExecutor(1), Reaper()
pool.submit(go_on)
for pid in pool._processes:
    reaper.adopt(pid)
    os.write(1, b"%d\\n" % pid)
input()
"""


def test_the_workers_of_a_library_end_with_a_program_that_is_killed() -> None:
    command = [sys.executable, "-u", "-c", POOL]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        lines = {process.stdout.readline().strip() for _ in range(2)}
        (pid,) = (int(line) for line in lines - {"started"})
        process.kill()
        process.wait(20)
        assert gone([pid])


def test_an_adopted_process_is_killed_without_its_group(reaper: Reaper) -> None:
    first = subprocess.Popen(["sleep", "600"], process_group=0)
    second = subprocess.Popen(["sleep", "600"], process_group=first.pid)
    reused = subprocess.Popen(["sleep", "600"])
    try:
        reaper.adopt(first.pid)
        with pytest.MonkeyPatch.context() as patch:  # the time of another process with the number
            patch.setattr(processes, "_time_of_start", lambda pid: 1)
            reaper.adopt(reused.pid)
        reaper.stop()
        assert first.wait(20) == -signal.SIGKILL
        assert second.poll() is None
        assert reused.poll() is None
    finally:
        for process in (first, second, reused):
            process.kill()
            process.wait()


def test_another_reaper_knows_the_adopted_processes(
    reaper: Reaper, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    reaper.adopt(sleepers[0].pid)
    (process,) = reapers()
    process.kill()
    process.wait(20)
    reaper.adopt(sleepers[1].pid, sleepers[0].pid)
    reaper.stop()
    assert sleepers[0].wait(20) == sleepers[1].wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("killed", [False, True], ids=["the first", "another"])
def test_it_kills_what_has_not_ended(
    reaper: Reaper, sleepers: list[subprocess.Popen[bytes]], killed: bool
) -> None:
    ended, first, second, unknown = sleepers
    reaper.began(ended.pid)
    reaper.began(first.pid)
    if killed:  # another reaper takes its place
        (process,) = reapers()
        process.kill()
        process.wait(20)
    reaper.ended(ended.pid)
    reaper.began(second.pid)
    reaper.stop()
    assert first.wait(20) == second.wait(20) == -signal.SIGKILL
    assert ended.poll() is None
    assert unknown.poll() is None


def test_only_its_own_process_can_end_the_reaper() -> None:
    # In a process of its own, as one with threads is not to be forked.
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.stdout.split() == ["lives", "over", "9"], done.stderr


def test_it_does_not_wake_up_for_each_program(reaper: Reaper) -> None:
    reaper.next_program()
    while not (found := reapers()):  # one that only begins has no arguments yet
        os.sched_yield()
    unused = 2**22 + 1  # above the largest process id that there is
    before = found[0].num_ctx_switches().voluntary
    for _ in range(100):
        reaper.began(unused)
        reaper.ended(unused)
        time.sleep(0.001)  # time enough to wake up
    assert found[0].num_ctx_switches().voluntary - before < 50
    reaper.stop()


def test_what_is_left_of_a_group_does_not_start_it_again(
    reaper: Reaper, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    reaper.began(sleepers[0].pid)
    reaper.stop()
    sleepers[0].wait(20)
    before = set(psutil.Process().children())
    reaper.began(sleepers[1].pid)
    assert set(psutil.Process().children()) <= before
    reaper.next_program()
    assert len(set(psutil.Process().children()) - before) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_it_holds_nothing_of_the_program_open(reaper: Reaper) -> None:
    reaper.next_program()
    while not (found := reapers()):  # one that only begins has no arguments yet
        os.sched_yield()
    (process,) = found
    opened = {}
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # as it starts, it reads its own modules
            opened[entry.name] = os.readlink(entry)
    assert opened["1"] == opened["2"] == "/dev/null"
    assert not set(opened.values()) & {os.readlink("/proc/self/fd/1")} - {"/dev/null"}
    assert os.getsid(process.pid) == process.pid
    assert process.cwd() == "/"


def test_the_reaper_ends_with_an_object_that_was_not_stopped(
    sleepers: list[subprocess.Popen[bytes]],
) -> None:
    reaper = Reaper()
    reaper.began(sleepers[0].pid)
    del reaper
    assert sleepers[0].wait(20) == -signal.SIGKILL


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [LocalExecutionBackend, Short])
async def test_a_backend_has_one_from_its_first_program_to_its_end(
    kind: type[ManagedBackend],
) -> None:
    async with kind() as backend, Driver(backend) as driver:
        await driver.run(driver.call(int))
        assert reapers() == []
        await driver.run(driver.command("true"), driver.command("true"))
        assert len(reapers()) == 1
        await driver.run(driver.command("true"))
        assert len(reapers()) == 1
    assert reapers() == []
