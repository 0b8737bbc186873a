"""The noop backend completes each task at once, with a dummy output."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.errors import BackendUnavailableError
from rhapsody.states import TasksMainStates
from rhapsody_testing import Driver

pytestmark = pytest.mark.asyncio

DONE = TasksMainStates.DONE


def never() -> None:
    raise AssertionError("a dry run called the function")


async def test_every_task_is_done_before_submit_tasks_returns() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        task = driver.call(never)
        await driver.submit(task)
        assert [report.during_submit for report in driver.of(task)] == [True]
        assert driver.history(task) == [DONE]


async def test_functions_and_executables_give_the_dummy_output() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        function, command, program = await driver.run(
            driver.call(never), driver.command("exit 3"), driver.command(["no-such-program"])
        )
        for end in (function, command, program):
            assert end.state is DONE
            assert end.value == end.stdout == "Dummy Output"
        assert function.exit_code is None
        assert (command.exit_code, command.stderr) == (0, "")


async def test_no_file_is_made() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        await driver.run(driver.command("touch made"))
        assert list(driver.work_dir.iterdir()) == []


async def test_a_service_runs_until_it_is_cancelled() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        service = driver.service("serve")
        await driver.submit(service)
        assert driver.history(service) == [TasksMainStates.RUNNING]
        assert await driver.cancel(service) is True
        assert (await driver.finished(service)).state is TasksMainStates.CANCELED
        assert await driver.cancel(service) is False


async def test_shutdown_ends_its_services() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        service = driver.service("serve")
        await driver.submit(service)
        await backend.shutdown()
        assert (await driver.finished(service)).state is TasksMainStates.CANCELED


async def test_a_finished_or_unknown_task_cannot_be_cancelled() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        task = driver.call(never)
        await driver.run(task)
        assert await driver.cancel(task) is False
        assert await driver.cancel("unknown") is False


async def test_use_before_start_says_to_await_it() -> None:
    with pytest.raises(BackendUnavailableError, match="await"):
        await NoopExecutionBackend().submit_tasks([])


async def test_several_callbacks_are_all_called() -> None:
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        heard: list[str] = []

        def callback(task: Any, state: Any, service_callback: Any = None) -> None:
            heard.append(state)

        backend.register_callback(callback)
        await driver.run(driver.call(never), driver.call(never))
        assert heard == ["DONE", "DONE"]


async def test_a_task_costs_less_than_creating_an_asyncio_task() -> None:
    async def nothing() -> None:
        pass

    count = 20_000
    async with NoopExecutionBackend() as backend, Driver(backend) as driver:
        backend.unregister_callback(driver._report)
        backend.register_callback(lambda task, state: None)
        ratios = []
        for _ in range(3):
            tasks = [driver.call(never) for _ in range(count)]
            began = time.perf_counter()
            await backend.submit_tasks(tasks)
            noop = time.perf_counter() - began
            began = time.perf_counter()
            await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(count)))
            ratios.append(noop / (time.perf_counter() - began))
        assert min(ratios) < 0.5
