"""RAPTOR configured by the user, on a real pilot, with Rhapsody's and other workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.errors import CapabilityError, TaskLostError
from rhapsody.resources import Resources
from rhapsody_radical.pilot import rp
from rhapsody_testing import Driver
from tests._support.machine import working_in
from tests.radical.pilots import backend, customise, resources

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(400), pytest.mark.long]

OURS = {"masters": [{"workers": [{"worker_type": "DefaultWorker", "cores_per_rank": 2}]}]}
MIXED = {
    "masters": [
        {"workers": [{"raptor_class": "DefaultWorker", "ranks": 1, "cores_per_rank": 1}]},
        {"workers": [{"ranks": 1, "cores_per_rank": 1}]},
        {"workers": [{"cores_per_rank": 1}, {"raptor_class": "DefaultWorker", "ranks": 1}]},
    ]
}


UNHEARD = """
import sys
if any("raptor-master" in word for word in sys.orig_argv):
    import radical.pilot as rp
    publish, dropped = rp.raptor.Master.publish, []

    def unheard(master, pubsub, msg, *more):
        if msg["cmd"] == "register_raptor_queue" and not dropped:
            dropped.append(msg)
        else:
            publish(master, pubsub, msg, *more)

    rp.raptor.Master.publish = unheard
"""
"""Code that loses a master's first message about its queue, as before it is connected."""


class OddError(Exception):
    """An error of a type that only this module has."""


def fail(value: Any) -> None:
    raise OddError(value)


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def test_configured_masters_and_workers_run_functions(tmp_path: Path) -> None:
    made = backend(work_dir=tmp_path / "work", raptor_config=MIXED)
    assert made.raptor_mode
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            assert (len(made.masters), len(made.workers)) == (3, 4)
            with pytest.raises(RuntimeError, match="with another configuration"):
                made.setup_raptor_mode(OURS)
            names = [next(made.master_selector) for _ in range(6)]
            assert names[:3] == names[3:]
            assert set(names) == {str(master.uid) for master in made.masters}
            assert made.capabilities.cancel_functions == "none"
            pids = [driver.call(os.getppid) for _ in range(4)]
            values = [(1, 2), b"\xff", {3}, None]
            calls = [driver.call(later, value) for value in values]
            bad, printing = driver.call(fail, b"\xfe"), driver.call(print, "said")
            command = driver.command("echo command")
            ends = await driver.run(*pids, *calls, bad, printing, command)
            aimed = [driver.call(sum, [1, 2]) for _ in names]
            for call, master in zip(aimed, names, strict=True):
                call["task_backend_specific_kwargs"] = {"raptor_id": master}
            assert [end.value for end in await driver.run(*aimed)] == [3] * 6
    finally:
        await made.shutdown()
    assert len({end.value for end in ends[:4]}) > 1, "one master had all calls"
    assert [end.value for end in ends[4:8]] == values, str(ends[4])
    assert type(ends[8].error) is OddError, str(ends[8])
    assert ends[8].error.args == (b"\xfe",)
    assert ends[9].stdout == "said\n"
    assert ends[10].stdout == "command\n"


async def test_a_configured_default_worker_supports_cancellation(
    tmp_path: Path,
) -> None:
    made = backend(resources(cores=8), work_dir=tmp_path / "work", raptor_config=OURS)
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            assert made.capabilities.cancel_functions == "running"
            await _kills_and_cancels_reach_one_call(driver)
            await asyncio.to_thread(_calls_of_others_are_made, made)
            await made.run_in_client(_stall_soon)
            await _a_worker_that_hangs_is_replaced(made, driver)
    finally:
        await made.shutdown()
    assert working_in(tmp_path) == []


async def test_calls_reach_a_master_whose_first_message_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    customise(tmp_path, monkeypatch, UNHEARD)
    there = tmp_path / "there"
    made = backend(resources(sandbox=str(there)), work_dir=tmp_path / "work")
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            await driver.run_one(driver.command("true"))
            async with asyncio.timeout(90):
                end = await driver.run_one(driver.call(sum, [1, 2]))
            assert list(there.rglob(made.session.uid))
    finally:
        await made.shutdown()
    assert end.value == 3, str(end)
    assert not list(there.rglob(made.session.uid))


async def test_both_kinds_of_task_run_on_a_pilot_of_two_cores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pilot = resources(resource="local.localhost_test", cores=2)
    made = backend(pilot, work_dir=tmp_path / "work", function_cores=None)
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            first = await driver.run_one(driver.call(sum, [1, 2]))
            slow = driver.call(time.sleep, 5)
            await driver.submit(slow)
            program, call = await driver.run(driver.command("echo 4"), driver.call(sum, [5, 6]))
            await driver.finished(slow)
            two = driver.command("echo 8", resources=Resources(cores=2))
            last = await driver.run_one(two)
    finally:
        await made.shutdown()
    assert (first.value, call.value) == (3, 11), f"{first} {call}"
    assert (program.stdout, last.stdout) == ("4\n", "8\n"), f"{program} {last}"
    assert caplog.text.count("too few cores for RAPTOR") == 1
    assert "RAPTOR master" not in caplog.text  # it was not lost
    assert "waiting for its pilots and their processes to end" in caplog.text


async def test_tasks_that_do_not_fit_next_to_raptor_are_rejected(tmp_path: Path) -> None:
    made = backend(work_dir=tmp_path / "work")
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            small, *large = (driver.command("sleep 600"), *(driver.command("true") for _ in "ab"))
            for task in large:  # RADICAL-Pilot says that this machine has 8
                task["task_backend_specific_kwargs"] = {"cores_per_rank": 8}
            await driver.submit(small)
            assert await driver.running(small)
            await driver.submit(large[0])
            call, beside = await driver.run(driver.call(sum, [1, 2]), large[1])
            async with asyncio.timeout(60):
                waiting = await driver.finished(large[0])
    finally:
        await made.shutdown()
    assert call.value == 3, str(call)
    for end in (waiting, beside):
        assert isinstance(end.error, CapabilityError), str(end)
        assert "RAPTOR uses another 3" in str(end.error)


async def _kills_and_cancels_reach_one_call(driver: Driver) -> None:
    killed = [driver.call(os._exit, 1), driver.call(os.kill, 0, signal.SIGKILL)]
    slow, after = driver.call(time.sleep, 600), driver.call(sum, [1, 2])
    *ends, end = await driver.run(*killed, after)
    assert [type(each.error) for each in ends] == [TaskLostError, TaskLostError]
    assert end.value == 3, str(end)
    await driver.submit(slow)
    assert await driver.running(slow)
    await driver.cancel(slow)
    assert str((await driver.finished(slow)).state) == "CANCELED"


def _stall_soon(_: Any) -> None:
    """Shorten the time for which a call that fits may wait; called in the client."""
    from rhapsody_radical.client import health

    health.STALL_TIMEOUT = 10.0


def _calls_of_others_are_made(made: Any) -> None:
    """Send RADICAL-Pilot's own kinds of calls directly to the master."""
    words = [
        {"mode": rp.TASK_FUNCTION, "function": rp.PythonTask(max, (1, 2), {})},
        {"mode": rp.TASK_EVAL, "code": "3 + 4"},
        {"mode": rp.TASK_SHELL, "command": "echo shell"},
    ]
    master = next(made.master_selector)
    tasks = made.task_manager.submit_tasks(
        [rp.TaskDescription({**each, "raptor_id": master}) for each in words]
    )
    states = made.task_manager.wait_tasks([task.uid for task in tasks], timeout=60)
    assert states == ["DONE"] * 3, [(task.state, task.exception) for task in tasks]
    assert [task.return_value for task in tasks[:2]] == [2, 7]
    assert tasks[2].stdout == "shell\n"


async def _a_worker_that_hangs_is_replaced(made: Any, driver: Driver) -> None:
    victim = driver.call(int)
    (master,), (first,) = made.masters, made.workers
    for process in working_in(made.pilots[0].sandbox):
        with suppress(psutil.Error):  # gone meanwhile
            if "raptor-worker" in " ".join(process.cmdline()):
                process.suspend()
    await driver.submit(victim)
    async with asyncio.timeout(60):
        end = await driver.finished(victim)
    assert isinstance(end.error, TaskLostError), str(end)
    assert "its worker start no calls" in str(end.error)
    assert (await driver.run_one(driver.call(int))).value == 0
    (second,) = made.workers
    assert second is not first
    aimed = driver.call(int)
    aimed["task_backend_specific_kwargs"] = {"raptor_id": str(master.uid)}
    end = await driver.run_one(aimed)
    assert isinstance(end.error, ValueError), str(end)
    assert f"{str(master.uid)!r} was lost" in str(end.error)
