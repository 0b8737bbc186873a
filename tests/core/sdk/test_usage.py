"""Resources that programs and calls have used."""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.sdk import runner
from rhapsody.sdk.executables import TaskProgram
from rhapsody.sdk.runner import INTERVAL, MAXRSS_UNIT, Meter, cpu_seconds
from rhapsody.sdk.usage import NO_COUNTERS, Counters, program_usage
from tests._support.burning import burn, touch
from tests._support.described import described
from tests._support.machine import exists
from tests._support.scripted import within

MIB = 1 << 20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

BURN = f"""{sys.executable} -S -c '
import sys, time
data = bytearray(int(sys.argv[1]))
data[:: 4096] = b"1" * len(data[:: 4096])
while time.process_time() < 0.2: pass
' """
"""Command that needs 0.2 s of CPU time, and memory of the size that follows."""

BURN_AND_SLEEP = BURN.replace("pass", 'pass\nopen("burnt", "w")\ntime.sleep(600)')
"""The same; the command then creates the file `burnt` and does not end."""


def above() -> int:
    """A number of bytes that exceeds the memory of this process and of its former children."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    peak = max(resource.getrusage(who).ru_maxrss for who in whose) * MAXRSS_UNIT
    return int(peak) + 50 * MIB


async def used(task: Any) -> dict[str, Any]:
    await within(TaskProgram(task, {}).wait(5))
    usage: dict[str, Any] = task["usage"]
    return usage


async def terminated(directory: Path, command: str, grace: float = 5) -> tuple[int, dict[str, Any]]:
    """Terminate a program once the file `burnt` exists; return its exit code and its usage."""
    task: Any = described(directory, command)
    program = TaskProgram(task, {})
    await within(exists(directory / "sandbox" / "burnt"))
    program.terminate(grace)
    return await within(program.wait(5)), task["usage"]


@pytest.mark.asyncio
async def test_a_program_reports_its_cpu_time_and_peak_memory(tmp_path: Path) -> None:
    size = above()
    usage = await used(described(tmp_path, f"{BURN} {size}"))
    assert 0.2 <= usage["cpu_seconds"] < 5
    assert size <= usage["peak_memory"] < size + 100 * MIB


@pytest.mark.asyncio
async def test_the_children_of_a_program_count(tmp_path: Path) -> None:
    size = above()
    usage = await used(described(tmp_path, f"{BURN} 0 & {BURN} {size}; wait"))
    assert usage["cpu_seconds"] >= 0.4
    assert size <= usage["peak_memory"] < size + 100 * MIB


@pytest.mark.asyncio
async def test_a_peak_below_that_of_this_process_is_unknown(tmp_path: Path) -> None:
    touch(50 * MIB)
    assert "peak_memory" not in await used(described(tmp_path, "true"))


@pytest.mark.asyncio
async def test_a_killed_program_reports_its_usage(tmp_path: Path) -> None:
    code, usage = await terminated(tmp_path, f"{BURN} 0; touch burnt; sleep 600")
    assert code == -signal.SIGTERM
    assert usage["cpu_seconds"] >= 0.2


@on_linux
@pytest.mark.asyncio
async def test_the_running_children_of_a_killed_program_count(tmp_path: Path) -> None:
    size = above()
    code, usage = await terminated(tmp_path, f"{BURN_AND_SLEEP} {size}; true")
    assert code == -signal.SIGTERM
    assert 0.17 <= usage["cpu_seconds"] < 5  # `/proc` counts in ticks of 10 ms
    assert size <= usage["peak_memory"] < size + 100 * MIB


@pytest.mark.asyncio
async def test_children_that_a_terminated_program_waits_for_count_once(tmp_path: Path) -> None:
    command = f"trap 'wait; trap - TERM; kill -TERM $$' TERM; {BURN_AND_SLEEP} 0 & wait"
    code, usage = await terminated(tmp_path, command, grace=60)
    assert code == -signal.SIGTERM
    assert 0.2 <= usage["cpu_seconds"] < 0.4


@on_linux
@pytest.mark.asyncio
async def test_the_children_of_a_program_that_ignores_sigterm_count(tmp_path: Path) -> None:
    code, usage = await terminated(tmp_path, f"trap '' TERM; {BURN_AND_SLEEP} 0; true", grace=0.1)
    assert code == -signal.SIGKILL
    assert 0.17 <= usage["cpu_seconds"] < 0.4


def test_children_that_a_killed_program_has_still_waited_for_count_once() -> None:
    ended = resource.getrusage(resource.RUSAGE_SELF)
    whole = round(cpu_seconds(ended), 6)
    before = Counters(cpu=whole - 0.01, read=ended.ru_inblock, written=ended.ru_oublock)
    assert program_usage(ended, 0, before) == program_usage(ended, 0, NO_COUNTERS)
    assert program_usage(ended, 0, before)["cpu_seconds"] == whole


@pytest.mark.asyncio
async def test_the_usage_of_a_program_that_crashed_before_its_children_is_unknown(
    tmp_path: Path,
) -> None:
    task = described(tmp_path, "sleep 600 & kill -SEGV $$")
    assert await within(TaskProgram(task, {}).wait(5)) == -signal.SIGSEGV
    assert "usage" not in task


@pytest.mark.asyncio
async def test_a_program_is_terminated_where_proc_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.sdk.usage.PROCESSES", "/nonexistent")
    task = described(tmp_path, "touch started; sleep 600")
    program = TaskProgram(task, {})
    await within(exists(tmp_path / "sandbox" / "started"))
    program.terminate(5)
    assert await within(program.wait(5)) == -signal.SIGTERM


@pytest.mark.asyncio
async def test_a_program_whose_wait_is_cancelled_reports_its_usage(tmp_path: Path) -> None:
    task = described(tmp_path, f"{BURN} 0; touch burnt; sleep 600")
    waiting = asyncio.ensure_future(TaskProgram(task, {}).wait(5))
    await within(exists(tmp_path / "sandbox" / "burnt"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert task["usage"]["cpu_seconds"] >= 0.2


@on_linux
@pytest.mark.asyncio
async def test_a_program_reports_what_it_wrote_to_storage(tmp_path: Path) -> None:
    command = "head -c 3000000 /dev/zero > data && sync data"
    usage = await used(described(tmp_path, command))
    written = usage["written_bytes"]
    assert written == 0 or 3_000_000 <= written < 10_000_000  # 0 in a file system in memory


# Calls.


def metered(meter: Meter, function: Any, *args: Any) -> dict[str, Any] | None:
    begin = meter.begin(function.__name__)
    function(*args)
    return meter.end(function.__name__, begin)


def test_a_call_reports_its_cpu_time() -> None:
    usage = metered(Meter(), burn, 0.05)
    assert usage is not None
    assert 0.05 <= usage["cpu_seconds"] < 5


@on_linux
def test_the_peak_of_a_call_is_not_that_of_an_earlier_call() -> None:
    meter = Meter()
    big = metered(meter, touch, 200 * MIB)
    small = metered(meter, touch, 1 * MIB)
    assert big is not None
    assert small is not None
    assert big["peak_memory"] - small["peak_memory"] > 150 * MIB


def test_processes_that_a_call_has_waited_for_count() -> None:
    size = above()

    def run(size: int) -> None:
        subprocess.run(f"{BURN} {size}", shell=True, check=True)

    usage = metered(Meter(), run, size)
    assert usage is not None
    assert usage["cpu_seconds"] >= 0.2
    assert size <= usage["peak_memory"] < size + 100 * MIB
    again = metered(Meter(), run, size - 30 * MIB)
    assert again is not None
    assert "peak_memory" not in again  # it is less than the peak of an earlier process


def test_of_short_calls_only_some_are_measured() -> None:
    meter = Meter()
    usages = []
    begin = time.perf_counter()
    for _ in range(1000):
        usages.append(metered(meter, int))
    duration = time.perf_counter() - begin
    assert usages[0] is not None
    assert sum(usage is not None for usage in usages) <= duration / INTERVAL + 2


def test_a_long_call_is_measured_after_a_short_call_of_another_task() -> None:
    meter = Meter()
    metered(meter, int)
    assert metered(meter, burn, 0.01) is not None


def test_on_other_threads_only_the_time_of_the_thread_counts() -> None:
    found: list[Any] = []
    meter = Meter()
    thread = threading.Thread(target=lambda: found.append(metered(meter, burn, 0.05)))
    busy = threading.Thread(target=burn, args=(0.2,))
    thread.start()
    busy.start()
    thread.join()
    busy.join()
    (usage,) = found
    assert usage.keys() == {"cpu_seconds"}
    assert 0.05 <= usage["cpu_seconds"] < 0.1


def test_calls_are_measured_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STORAGE_COUNTED", False)
    monkeypatch.setattr(runner, "_RESET", "/nonexistent/clear_refs")
    monkeypatch.setattr(runner, "_STATUS", "/nonexistent/status")
    meter = Meter()
    metered(meter, touch, above())
    usage = metered(meter, burn, 0.01)
    assert usage is not None
    assert usage.keys() == {"cpu_seconds"}  # an earlier peak of the process hides that of the call
    higher = metered(meter, touch, above())
    assert higher is not None
    assert higher["peak_memory"] > above() - 100 * MIB


@on_linux
def test_the_peak_that_a_process_inherits_is_not_that_of_its_calls(tmp_path: Path) -> None:
    """A process that executes a program keeps the `ru_maxrss` of its parent."""
    file = tmp_path / "script.py"
    file.write_text(
        "from rhapsody.sdk.runner import Meter\n"
        "meter = Meter()\n"
        "print(meter.end('', meter.begin('')))\n"
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import subprocess, sys\n"
        f"data = bytearray({300 * MIB})\n"
        "data[::4096] = b'1' * len(data[::4096])\n"
        f"subprocess.run([sys.executable, {str(file)!r}], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, parent], check=True, capture_output=True, text=True, timeout=60
    )
    assert "cpu_seconds" in done.stdout
    assert "peak_memory" not in done.stdout


def test_a_meter_can_be_sent_to_another_process() -> None:
    meter = pickle.loads(pickle.dumps(Meter(shared=True)))
    assert metered(meter, burn, 0.01).keys() == {"cpu_seconds"}  # type: ignore[union-attr]


def test_a_forked_child_can_be_measured() -> None:
    meter = Meter()
    metered(meter, touch, MIB)
    child = os.fork()
    if not child:
        usage = metered(meter, burn, 0.01)
        os._exit(usage is None or not usage["cpu_seconds"] >= 0.01)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
