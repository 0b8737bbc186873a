"""A machine that pauses while the kit runs is no backend's fault, and hides none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PAUSE = 2.0  # longer than the time limit of the kit that runs

CASES: tuple[tuple[str, str, str, str, str], ...] = (
    # A backend, a check, the method after whose calls the machine pauses, how many seconds
    # after which calls, and what the outcome says.
    ("SmallBackend", "test_values_come_through_equal[function]", "submit_tasks", "0 1", "passed"),
    ("SmallBackend", "test_submitting_does_not_wait_for_the_end", "submit_tasks", "0 1", "passed"),
    (
        "SmallBackend",
        "test_a_submission_does_not_block_the_loop[a batch]",
        "submit_tasks",
        "0 2 3 4",
        "passed",
    ),
    (
        "SmallBackend",
        "test_start_and_shutdown_do_not_block_the_loop",
        "stop",
        "0 1 2 3",
        "passed",
    ),
    ("SmallBackend", "test_a_running_task_is_canceled[function]", "submit_tasks", "0 1", "passed"),
    (
        "SmallBackend",
        "test_a_timeout_ends_an_attempt[function]",
        "submit_tasks",
        "0.1 1",
        "passed",
    ),
    (
        "WaitsForTheEnd",
        "test_submitting_does_not_wait_for_the_end",
        "submit_tasks",
        "0.2 1",
        "did not end within",
    ),
    (
        "BlocksTheLoopForGood",
        "test_values_come_through_equal[function]",
        "submit_tasks",
        "0.2 1",
        "Timeout",
    ),
    (
        "BlocksTheLoopAWhile",
        "test_a_submission_does_not_block_the_loop[a batch]",
        "submit_tasks",
        "0.2 2",
        "the loop was blocked for ",
    ),
    (
        "BlocksTheLoopAtShutdown",
        "test_start_and_shutdown_do_not_block_the_loop",
        "stop",
        "0.2 1",
        "the loop was blocked for ",
    ),
)


@pytest.mark.parametrize(
    ("backend", "check", "method", "when", "verdict"),
    CASES,
    ids=[f"{case[0]}-{case[1].removeprefix('test_')}" for case in CASES],
)
def test_a_machine_that_pauses_changes_no_verdict(
    backend: str, check: str, method: str, when: str, verdict: str, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests._support.pausing",
        backend,
        check,
        method,
        *when.split(),
    ]
    paths = [os.fspath(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    place = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": os.fspath(tmp_path)}
    environment = {**os.environ, **place}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as kit:
        pauses = 0
        while _stops(kit.pid):
            time.sleep(PAUSE)  # what is tested, and no synchronisation
            kit.send_signal(signal.SIGCONT)
            pauses += 1
        shown, _ = kit.communicate(timeout=60)
    _, _, outcome = shown.partition("VERDICT ")
    assert verdict in outcome, shown
    assert pauses == len(when.split()) - 1


def _stops(pid: int) -> bool:
    """Waits until the process stops, or ends and is left for `subprocess` to reap."""
    change = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return change is not None and change.si_code == os.CLD_STOPPED


STARVED = """
import asyncio, os, sys, time
from rhapsody_testing._system import RunningClock, Heartbeat

async def main():
    os.sched_setaffinity(0, {int(sys.argv[1])})
    with RunningClock() as clock, Heartbeat(clock) as held:
        for _ in range(3):
            await asyncio.sleep(0.01)
            began = time.thread_time()
            while time.thread_time() - began < 0.06:
                pass
        await asyncio.sleep(0.01)
    print(*held.worst, flush=True)
    os._exit(0)  # everything else takes ten times as long, too

os.nice(10)
asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not tell")
def test_a_loop_that_gets_no_processor_is_not_held_up() -> None:
    one = min(os.sched_getaffinity(0))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    starved = [sys.executable, "-c", STARVED, str(one)]
    try:
        os.sched_setaffinity(busy.pid, {one})
        with subprocess.Popen(starved, stdout=subprocess.PIPE, text=True) as process:
            shown, _ = process.communicate(timeout=60)
    finally:
        busy.kill()
        busy.wait()
    counted, seen = map(float, shown.split())
    assert seen > 0.2
    assert counted < seen / 2
