"""Functions on an executor of concurrent.futures that the user passes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.backends.local.jobs import available_cores
from rhapsody.context import current_task
from rhapsody.errors import CapabilityError, TaskLostError
from rhapsody_testing import Driver
from tests._support.local import CANCELED, DONE, RUNNING, exit_at_once

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


class AtOnce(Executor):
    """Runs everything inside `submit`, as simple executors for tests do."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(params=["threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "threads":
        with ThreadPoolExecutor(2) as threads:
            yield threads
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as processes:
            yield processes


async def test_functions_run_there(executor: Executor) -> None:
    elsewhere = isinstance(executor, ProcessPoolExecutor)
    pid, offset = os.getpid(), 1

    def add(second: int) -> tuple[int, bool, str]:
        print("adding")
        return offset + second, os.getpid() != pid, current_task().name

    async def add_later(second: int) -> tuple[int, bool, str]:
        await asyncio.sleep(0)
        return add(second)

    async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
        for function in (add, add_later):
            task = driver.call(function, 2)
            end = await driver.run_one(task)
            assert end.value == (3, elsewhere, task["name"])
            assert (end.stdout, end.stderr) == ("adding\n", "")
            assert driver.history(task) == [RUNNING, DONE]
            assert end.task["worker"]


async def test_errors_come_back_with_their_type(executor: Executor) -> None:
    class OwnError(Exception):
        pass

    def fails() -> None:
        raise OwnError("text")

    async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
        end = await driver.run_one(driver.call(fails))
        assert isinstance(end.error, OwnError)


async def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            end = await driver.run_one(driver.call(id, threading.Lock()))
            assert isinstance(end.error, TypeError)
            assert "positional argument 0 (lock)" in str(end.error)


async def test_what_stays_in_the_process_is_not_pickled() -> None:
    lock = threading.Lock()
    with ThreadPoolExecutor(1) as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            assert (await driver.run_one(driver.call(lambda: lock))).value is lock
            task = driver.call(int)
            task["environment"] = {"A": "b"}
            assert isinstance((await driver.run_one(task)).error, CapabilityError)


async def test_processes_get_their_variables() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            task = driver.call(os.getenv, "A")
            task["environment"] = {"A": "b"}
            assert (await driver.run_one(task)).value == "b"
            assert executor.submit(os.getenv, "A").result() is None


async def test_the_executors_size_is_taken_over() -> None:
    with ThreadPoolExecutor(3) as executor:
        assert LocalExecutionBackend(executor).machine.workers == 3
        assert LocalExecutionBackend(executor, resources={"workers": 1}).machine.workers == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_all_its_threads_are_used_at_once(asynchronous: bool) -> None:
    size = 8 * available_cores()
    together = threading.Barrier(size)

    async def meet() -> None:
        together.wait(20)

    call = meet if asynchronous else partial(together.wait, 20)
    with ThreadPoolExecutor(size) as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            ends = await driver.run(*(driver.call(call) for _ in range(size)))
            assert {end.state for end in ends} == {DONE}


async def test_a_size_that_is_no_number_is_not_taken_over() -> None:
    with ThreadPoolExecutor(3) as executor:
        executor._max_workers = "many"  # type: ignore[assignment]
        assert LocalExecutionBackend(executor).machine.workers == available_cores()


async def test_it_is_not_shut_down() -> None:
    with ThreadPoolExecutor(1) as executor:
        for _ in range(2):
            async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
                assert (await driver.run_one(driver.call(int))).state is DONE
        assert executor.submit(int).result() == 0


async def test_calls_that_the_executor_has_not_started_are_cancelled() -> None:
    gate, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait()

    with ThreadPoolExecutor(1) as executor:
        backend = LocalExecutionBackend(executor, resources={"cores": 2, "workers": 2})
        async with backend, Driver(backend) as driver:
            first, second = driver.call(wait), driver.call(int)
            await driver.submit(first, second)
            await asyncio.to_thread(begun.wait, 10)
            assert await driver.cancel(second) is True
            assert (await driver.finished(second)).state is CANCELED
            assert await driver.cancel(first) is True
            assert driver.history(first) == [RUNNING]
            gate.set()
            assert (await driver.finished(first)).state is CANCELED
            assert backend.capabilities.cancel_async_functions == "queued"


async def test_an_executor_that_breaks_loses_the_task() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
            end = await driver.run_one(driver.call(exit_at_once, 1))
            assert isinstance(end.error, TaskLostError)
            end = await driver.run_one(driver.call(int))  # it stays broken
            assert isinstance(end.error, TaskLostError)
            assert "'process'" in str(end.error)


async def test_an_executor_that_is_shut_down_fails_the_task() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    async with LocalExecutionBackend(executor) as backend, Driver(backend) as driver:
        for _ in range(3):
            assert isinstance((await driver.run_one(driver.call(int))).error, RuntimeError)


async def test_an_executor_may_run_it_at_once() -> None:
    async def later() -> None:
        pass

    async with LocalExecutionBackend(AtOnce()) as backend, Driver(backend) as driver:
        assert (await driver.run_one(driver.call(lambda: 3))).value == 3
        end = await driver.run_one(driver.call(later))
        assert isinstance(end.error, RuntimeError)
        assert "on a thread with a running event loop" in str(end.error)
        assert driver.faults == []
