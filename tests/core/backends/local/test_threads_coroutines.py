"""Coroutine functions on the local backend's threads and shared loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from typing import Any

import pytest

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.context import current_task
from rhapsody.sdk import loops
from rhapsody_testing import Driver
from tests._support.local import CANCELED, DONE, RUNNING, in_each_way, needing

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_coroutines_of_one_worker_share_a_loop() -> None:
    async def loop() -> int:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop())

    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        ends = await driver.run(*(driver.call(loop) for _ in range(10)))
        assert len({end.value for end in ends}) == 1


async def test_a_function_may_run_a_loop_of_its_own(driver: Driver) -> None:
    async def value() -> int:
        return 5

    def own_loop() -> int:
        return asyncio.run(value())

    ends = await driver.run(
        *(driver.call(function) for function in (own_loop, value, own_loop) for _ in range(4))
    )
    assert {end.value for end in ends} == {5}


async def test_a_coroutine_that_stops_its_loop_goes_on(driver: Driver) -> None:
    async def stops() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)
        return "done"

    for task in in_each_way(driver, stops):
        assert (await driver.run_one(task)).value == "done"


async def test_what_a_coroutine_leaves_behind_is_cancelled(driver: Driver) -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("lingerer")
            raise

    kept: list[Any] = []

    async def careless() -> str:
        kept.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)
        return "done"

    for task in in_each_way(driver, careless):
        assert (await driver.run_one(task)).value == "done"
        assert ended.pop() == "lingerer"
        assert kept.pop().cancelled()


async def test_coroutines_side_by_side_do_not_end_each_others_tasks(driver: Driver) -> None:
    async def careless() -> None:
        asyncio.ensure_future(asyncio.sleep(3600))  # noqa: RUF006 - that is the point

    async def careful(seconds: float) -> str:
        return await asyncio.create_task(asyncio.sleep(seconds, "done"))

    slow = needing(driver.call(careful, 0.1), cores=0)
    await driver.submit(slow)
    await driver.run(*(needing(driver.call(careless), cores=0) for _ in range(5)))
    assert (await driver.finished(slow)).value == "done"


async def test_a_loop_that_cannot_be_cleaned_is_replaced(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "CLEANUP_TIMEOUT", 0.05)
    release = asyncio.Event()

    async def stubborn() -> None:
        while True:
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def careless() -> None:
        task = asyncio.create_task(stubborn())
        kept.append(task)
        await asyncio.sleep(0)

    kept: list[Any] = []
    assert (await driver.run_one(driver.call(careless))).state is DONE
    assert (await driver.run_one(driver.call(asyncio.sleep, 0, "next"))).value == "next"
    assert "left behind" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept[0]._log_destroy_pending = False
        kept.clear()
        gc.collect()


async def test_many_waiting_coroutines_hold_no_slot() -> None:
    gates: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def wait() -> str:
        gate = asyncio.Event()
        gates.append((asyncio.get_running_loop(), gate))
        await gate.wait()
        return threading.current_thread().name

    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        waiting = [needing(driver.call(wait), cores=0) for _ in range(50)]
        await driver.submit(*waiting)
        assert (await driver.run_one(driver.call(int))).state is DONE
        while len(gates) < 50:
            await driver.run(driver.call(int))
        for loop, gate in gates:
            loop.call_soon_threadsafe(gate.set)
        threads = {(await driver.finished(task)).value for task in waiting}
        assert len(threads) == 1


# Canceling.


async def test_a_running_coroutine_is_cancelled_and_may_clean_up(driver: Driver) -> None:
    cleaned: list[bool] = []
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(current_task().cancelled)

    for task in in_each_way(driver, forever):
        await driver.submit(task)
        assert await asyncio.to_thread(begun.wait, 10)
        begun.clear()
        assert await driver.cancel(task) is True
        assert await driver.cancel(task) is True  # asked already
        end = await driver.finished(task)
        assert end.state is CANCELED
        assert "exception" not in end.task
        assert cleaned.pop() is True
        assert driver.history(task) == [RUNNING, CANCELED]


async def test_cancelling_at_any_moment_ends_it_once(driver: Driver) -> None:
    async def short() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    tasks = []
    for number in range(300):
        task = driver.call(short)
        if number % 2:
            needing(task, cores=0)
        tasks.append(task)
        await driver.submit(task)
        for _ in range(number % 5):
            await asyncio.sleep(0)
        await driver.cancel(task)
    for task in tasks:
        await driver.finished(task)
    assert driver.faults == []
    assert driver.backend.still_running == []


async def test_a_coroutine_that_refuses_its_cancellation_is_still_cancelled(driver: Driver) -> None:
    begun = threading.Event()

    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "a value"
        return "never"

    for task in in_each_way(driver, stubborn):
        await driver.submit(task)
        assert await asyncio.to_thread(begun.wait, 10)
        begun.clear()
        await driver.cancel(task)
        end = await driver.finished(task)
        assert end.state is CANCELED
        assert "return_value" not in end.task


async def test_a_coroutine_that_cancels_itself_is_cancelled(driver: Driver) -> None:
    async def cancels() -> None:
        raise asyncio.CancelledError

    for task in in_each_way(driver, cancels):
        assert (await driver.run_one(task)).state is CANCELED
