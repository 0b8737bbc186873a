"""Errors after the loss of an agent, a pilot, a RAPTOR worker or the client."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import Resources, WorkflowEngine
from rhapsody.errors import TaskLostError
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_testing import Driver
from tests._support.machine import working_in
from tests.radical.pilots import backend, customise, resources

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300), pytest.mark.long]

LIMIT = 30.0
"""Seconds within which every future ends after something died."""


@asynccontextmanager
async def started(
    tmp_path: Path, pilots: Any = None, **settings: Any
) -> AsyncIterator[tuple[RadicalExecutionBackend, Driver]]:
    """A started backend and a driver on it."""
    made = backend(pilots, work_dir=tmp_path / "work", **settings)
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            yield made, driver
    finally:
        await made.shutdown()
    assert working_in(tmp_path) == []


async def lost(driver: Driver, *tasks: Any, within: float = LIMIT) -> list[TaskLostError]:
    """Return the errors of lost tasks, which must end within the limit."""
    errors = []
    async with asyncio.timeout(within):
        for task in tasks:
            end = await driver.finished(task)
            assert str(end.state) == "FAILED", str(end)
            assert isinstance(end.error, TaskLostError), str(end)
            errors.append(end.error)
    return errors


def of_pilot(made: RadicalExecutionBackend, number: int = 0) -> list[psutil.Process]:
    """Return the processes that work in a pilot's directory."""
    return working_in(made.pilots[number].sandbox)


async def test_a_killed_agent_fails_its_tasks(tmp_path: Path) -> None:
    async with started(tmp_path) as (made, driver):
        running, waiting = driver.command("sleep 600"), driver.command("sleep 600")
        function = driver.call(time.sleep, 600)
        await driver.submit(running, waiting, function)
        assert await driver.running(running)
        assert await driver.running(function)
        for process in of_pilot(made):
            with suppress(psutil.NoSuchProcess):  # it ended with another one
                process.kill()
        for error in await lost(driver, running, waiting, function):
            assert "pilot.0000" in str(error)
        later = driver.command("true")
        await driver.submit(later)
        (error,) = await lost(driver, later)
        assert "local.localhost" in str(error)


async def test_a_lost_raptor_worker_is_replaced(tmp_path: Path) -> None:
    async with started(tmp_path) as (made, driver):
        flow = await WorkflowEngine.create(made, work_dir=tmp_path / "flow", handle_signals=False)

        @flow.function_task
        def where(seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

        assert await where(0)
        (first,) = made.workers
        victim = driver.call(time.sleep, 600)
        await driver.submit(victim)
        assert await driver.running(victim)
        survivor = where(5)
        for process in of_pilot(made):
            with suppress(psutil.Error):  # gone meanwhile
                if "raptor-worker" in " ".join(process.cmdline()):
                    process.kill()
        (error,) = await lost(driver, victim)
        assert "RAPTOR worker" in str(error)
        async with asyncio.timeout(2 * LIMIT):
            assert await survivor  # the engine tries again, with a new pair
        assert survivor.attempt == 2
        (second,) = made.workers
        assert second is not first
        await flow.shutdown(skip_execution_backend=True)

        task = driver.command("sleep 600")
        await driver.submit(task)
        assert await driver.running(task)
        await asyncio.to_thread(made.resource_pilot.cancel)
        (error,) = await lost(driver, task)
        assert "pilot.0000" in str(error)
        assert made.pilot_state in ("DONE", "CANCELED")


def stall_soon(_: Any) -> None:
    """Shorten the time for which a task that fits may wait; called in the client."""
    from rhapsody_radical.client import health

    health.STALL_TIMEOUT = 10.0


async def test_a_pilot_with_a_killed_component_is_lost(tmp_path: Path) -> None:
    async with started(tmp_path) as (made, driver):
        await made.run_in_client(stall_soon)
        running, waiting = driver.command("sleep 600"), driver.command("true")
        await driver.submit(running)
        assert await driver.running(running)
        for process in of_pilot(made):
            if "rp.agent_executing.0000" in " ".join(process.cmdline()):
                process.kill()
        await driver.submit(waiting)
        for error in await lost(driver, running, waiting, within=2 * LIMIT):
            assert "starts no tasks: a task for which it has free cores" in str(error)
        async with asyncio.timeout(LIMIT):
            while of_pilot(made):  # noqa: ASYNC110 - what it ran is ended, too
                await asyncio.sleep(0.1)


HELD = """
import sys
if any("radical-pilot-component" in word for word in sys.orig_argv):
    import pathlib, time
    from radical.pilot.agent.executing.popen import Popen
    work, marker = Popen.work, pathlib.Path({marker!r})

    def held(self, tasks):
        first = not marker.exists()
        marker.touch()
        while first and not self._cancel_list:
            time.sleep(0.01)
        work(self, tasks)

    Popen.work = held
"""
"""Code that makes an agent's executor hold its first task until another one is canceled."""


def state_of(objects: Any, uid: str) -> str:
    """RADICAL-Pilot's state of a task; called in the client."""
    return str(objects.task_manager.get_tasks(uid).state)


async def test_the_cores_of_a_task_that_is_canceled_just_before_its_start_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "held"
    customise(tmp_path, monkeypatch, HELD.format(marker=str(marker)))
    async with started(tmp_path) as (made, driver):
        first, second = driver.command("true"), driver.command("true")
        async with asyncio.timeout(2 * LIMIT):
            await driver.submit(first)
            while not marker.exists():  # noqa: ASYNC110 - a file of another process
                await asyncio.sleep(0.1)
            await driver.submit(second)
            placed = "AGENT_EXECUTING_PENDING"
            while await made.run_in_client(state_of, second["uid"]) != placed:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await driver.cancel(second)
            assert str((await driver.finished(second)).state) == "CANCELED"
            assert str((await driver.finished(first)).state) == "DONE"
            whole = driver.command("true", resources=Resources(cores=8))
            assert str((await driver.run_one(whole)).state) == "DONE"


DEAF = """
import sys
if any("radical-pilot-component" in word for word in sys.orig_argv):
    from radical.pilot.agent.scheduler.base import AgentSchedulingComponent
    AgentSchedulingComponent.control_cb = lambda *_: None
"""
"""Code that makes an agent's scheduler deaf, as a fork at the wrong moment does."""


async def test_a_pilot_with_a_hanging_scheduler_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    customise(tmp_path, monkeypatch, DEAF)
    async with started(tmp_path) as (made, driver):
        await made.run_in_client(stall_soon)
        program = driver.command("sleep 8")
        await driver.submit(program)
        assert await driver.running(program)
        function = driver.call(os.getpid)
        await driver.submit(function)
        assert str((await driver.finished(program)).state) == "DONE"  # cores were in use
        (error,) = await lost(driver, function)
        assert "pilot.0000 on local.localhost starts no tasks" in str(error)


async def test_tasks_of_a_pilot_that_timed_out_run_on_another_pilot(tmp_path: Path) -> None:
    async with started(tmp_path, [resources(runtime=1), resources()]) as (made, driver):
        flow = await WorkflowEngine.create(made, work_dir=tmp_path / "flow", handle_signals=False)

        @flow.executable_task
        async def wait(until: Path) -> str:
            return f"echo $RP_PILOT_ID; while [ ! -e {until} ]; do sleep 0.1; done"

        async with asyncio.timeout(LIMIT):
            while not all(pilot.active for pilot in made.pilots):  # noqa: ASYNC110 - a library's
                await asyncio.sleep(0.1)
        there, late = tmp_path, tmp_path / "late"
        quick = await asyncio.gather(*(wait(there) for _ in range(4)))
        assert {text.strip() for text in quick} == {"pilot.0000", "pilot.0001"}
        tasks = [wait(late) for _ in range(4)]
        named = driver.command("sleep 600")
        named["task_backend_specific_kwargs"] = {"pilot": "pilot.0000"}
        await driver.submit(named)
        assert await driver.running(named)
        async with asyncio.timeout(60 + LIMIT):
            end = await driver.finished(named)
        assert isinstance(end.error, TaskLostError), str(end)
        assert "walltime" in str(end.error)
        late.touch()
        async with asyncio.timeout(2 * LIMIT):
            after = await asyncio.gather(*tasks)
        assert {text.strip() for text in after} == {"pilot.0001"}
        assert sorted(task.attempt for task in tasks) == [1, 1, 2, 2]
        await flow.shutdown(skip_execution_backend=True)
