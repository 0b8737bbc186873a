"""C10, C7.4, C7.11: functions on the local backend's threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import statistics
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend, coroutines
from rhapsody.context import current_task
from rhapsody.errors import CapabilityError
from rhapsody.states import TasksMainStates
from rhapsody.task import Resources, TaskDescription
from rhapsody.testing import Driver

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    async with LocalExecutionBackend(resources={"cores": 2}) as backend, Driver(backend) as driver:
        yield driver


def needing(task: TaskDescription, **resources: Any) -> TaskDescription:
    task["resources"] = Resources(**resources)
    return task


def in_each_way(driver: Driver, function: Callable[..., Any], *args: Any) -> list[TaskDescription]:
    """A call on a worker thread, and one on the shared loop."""
    return [driver.call(function, *args), needing(driver.call(function, *args), cores=0)]


async def test_every_kind_of_callable_runs(driver: Driver) -> None:
    class Adder:
        def __init__(self, first: int) -> None:
            self.first = first

        def method(self, second: int) -> int:
            return self.first + second

        def __call__(self, second: int) -> int:
            return self.first + second

    class AsyncAdder(Adder):
        async def __call__(self, second: int) -> int:  # type: ignore[override]
            await asyncio.sleep(0)
            return self.first + second

    def plus(first: int, *, second: int) -> int:
        return first + second

    async def asynchronous(first: int, second: int) -> int:
        await asyncio.sleep(0)
        return first + second

    ends = await driver.run(
        driver.call(Adder(1).method, 2),
        driver.call(Adder(1), 2),
        driver.call(AsyncAdder(1), 2),
        driver.call(lambda second: 1 + second, 2),
        driver.call(plus, 1, second=2),
        driver.call(functools.partial(plus, 1), second=2),
        driver.call(asynchronous, 1, second=2),
        driver.call(functools.partial(asynchronous, 1), 2),
        driver.call(lambda: asynchronous(1, 2)),
        needing(driver.call(AsyncAdder(1), 2), cores=0),
        needing(driver.call(functools.partial(asynchronous, 1), 2), cores=0),
    )
    assert [end.value for end in ends] == [3] * len(ends)


async def test_a_task_keeps_its_own_exception_and_traceback(driver: Driver) -> None:
    class OddError(Exception):
        def __init__(self, *, code: int) -> None:
            super().__init__(f"code {code}")
            self.code = code

    raised = OddError(code=7)

    def fails() -> None:
        raise raised

    async def fails_later() -> None:
        await asyncio.sleep(0)
        raise raised

    for task in (driver.call(fails), *in_each_way(driver, fails_later)):
        end = await driver.run_one(task)
        assert end.state is FAILED
        assert end.error is raised
        frames = [frame.name for frame in traceback.extract_tb(raised.__traceback__)]
        assert frames[0] in ("fails", "fails_later")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
async def test_exceptions_that_end_programs_only_fail_their_task(
    driver: Driver, kind: type[BaseException]
) -> None:
    async def child() -> None:
        raise kind

    async def fails() -> None:
        raise kind

    async def with_child() -> None:
        await asyncio.gather(child(), asyncio.sleep(0))

    def sync() -> None:
        raise kind

    calls = [sync] if kind is StopIteration else [sync, fails]
    for function in calls:
        end = await driver.run_one(driver.call(function))
        assert end.state is FAILED
        assert isinstance(end.error, kind)
    if kind is SystemExit:
        for task in in_each_way(driver, with_child):
            assert (await driver.run_one(task)).state in (FAILED, CANCELED)
    assert [end.value for end in await driver.run(*in_each_way(driver, asyncio.sleep, 0, 1))] == [
        1,
        1,
    ]


async def test_wrong_arguments_are_a_type_error(driver: Driver) -> None:
    end = await driver.run_one(driver.call(lambda x: x))
    assert isinstance(end.error, TypeError)
    assert "x" in str(end.error)


async def test_a_result_that_is_none_is_a_result(driver: Driver) -> None:
    end = await driver.run_one(driver.call(lambda: None))
    assert "return_value" in end.task
    assert end.value is None


async def test_the_task_knows_itself(driver: Driver) -> None:
    def look() -> tuple[Any, ...]:
        task = current_task()
        return (task.uid, task.name, task.attempt, task.sandbox, task.deadline, task.cancelled)

    async def look_later() -> tuple[Any, ...]:
        await asyncio.sleep(0)
        return await asyncio.create_task(look_deeper())

    async def look_deeper() -> tuple[Any, ...]:
        return look()

    for task in (driver.call(look), *in_each_way(driver, look_later)):
        task["name"], task["attempt"], task["timeout"] = "named", 3, 1000.0
        driver.with_sandbox(task)
        end = await driver.run_one(task)
        uid, name, attempt, sandbox, deadline, cancelled = end.value
        assert (uid, name, attempt, cancelled) == (task["uid"], "named", 3, False)
        assert sandbox == task["sandbox"]
        assert 900 < deadline - time.time() <= 1000
    with pytest.raises(RuntimeError, match="no task is running"):
        current_task()
    task = driver.call(lambda: current_task().deadline)
    assert (await driver.run_one(task)).value is None


async def test_a_function_with_a_sandbox_finds_it_there_and_private(driver: Driver) -> None:
    import os
    import stat

    def mode() -> int:
        sandbox = current_task().sandbox
        assert sandbox is not None
        return stat.S_IMODE(os.stat(sandbox).st_mode)

    assert (await driver.run_one(driver.with_sandbox(driver.call(mode)))).value == 0o700


async def test_context_variables_do_not_leak_between_tasks(driver: Driver) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def change() -> int:
        before = variable.get()
        variable.set(before + 1)
        return before

    async def change_async() -> int:
        return change()

    tasks = [driver.call(function) for function in (change, change_async) for _ in range(6)]
    tasks += [needing(driver.call(change_async), cores=0) for _ in range(4)]
    assert {end.value for end in await driver.run(*tasks)} == {0}


async def test_environment_variables_are_refused(driver: Driver) -> None:
    async def nothing() -> None:
        pass

    for task in in_each_way(driver, nothing):
        task["environment"] = {"A": "b"}
        end = await driver.run_one(task)
        assert isinstance(end.error, CapabilityError)
        assert "LocalExecutionBackend('process')" in str(end.error)


async def test_the_worker_is_named(driver: Driver) -> None:
    end = await driver.run_one(driver.call(lambda: threading.current_thread().name))
    assert end.task["worker"] == end.value
    assert end.value.startswith("rhapsody-worker-")


# Coroutines.


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
    monkeypatch.setattr(coroutines, "CLEANUP", 0.05)
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


# Cancelling.


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


async def test_a_running_function_is_told_and_keeps_its_slot_until_it_ends() -> None:
    begun, told = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        while not current_task().cancelled:
            time.sleep(0.001)
        told.wait()
        return "a late result"

    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        task, behind = driver.call(work), driver.call(int)
        await driver.submit(task, behind)
        assert await asyncio.to_thread(begun.wait, 10)
        assert await driver.cancel(task) is True
        assert driver.history(task) == [RUNNING]
        assert driver.history(behind) == []
        assert backend.still_running == [task["uid"], behind["uid"]]
        told.set()
        end = await driver.finished(task)
        assert (end.state, end.value) == (CANCELED, None)
        assert (await driver.finished(behind)).state is DONE
        assert driver.history(task) == [RUNNING, CANCELED]


async def test_functions_say_they_cannot_be_cancelled_once_they_run(driver: Driver) -> None:
    capabilities = driver.backend.capabilities
    assert capabilities.cancel_functions == "queued"
    assert capabilities.cancel_async_functions == "running"


async def test_shutdown_leaves_a_function_that_cannot_be_stopped_and_says_so() -> None:
    gate, begun = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()

    backend = await LocalExecutionBackend(resources={"cores": 1})
    backend.thread_grace = 0.05
    async with Driver(backend) as driver:
        task = driver.call(work)
        await driver.submit(task)
        await asyncio.to_thread(begun.wait, 10)
        began = time.monotonic()
        await backend.shutdown()
        assert time.monotonic() - began < 3
        assert backend.still_running == [task["uid"]]
        assert driver.history(task) == [RUNNING]
        gate.set()
        assert (await driver.finished(task)).state is CANCELED
        assert backend.still_running == []


async def test_shutdown_waits_a_moment_for_functions_that_end_by_themselves() -> None:
    begun = threading.Event()

    def work() -> None:
        begun.set()
        while not current_task().cancelled:
            time.sleep(0.001)

    backend = await LocalExecutionBackend()
    async with Driver(backend) as driver:
        task = driver.call(work)
        await driver.submit(task)
        await asyncio.to_thread(begun.wait, 10)
        await backend.shutdown()
        assert backend.still_running == []
        assert (await driver.finished(task)).state is CANCELED


# Speed, as ratios in one run.


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


class Chain:
    """Runs one task after the other, as directly as can be."""

    def __init__(self, backend: LocalExecutionBackend) -> None:
        self.backend = backend
        self.future: asyncio.Future[None]
        backend._callbacks[:] = [self.callback]

    def callback(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state == DONE:
            self.future.set_result(None)

    async def run(self, driver: Driver, function: Callable[[], Any], count: int) -> float:
        tasks = [driver.call(function) for _ in range(count)]
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        for task in tasks:
            self.future = loop.create_future()
            await self.backend.submit_tasks([task])
            await self.future
        return time.perf_counter() - began


async def test_a_chain_costs_no_more_than_bare_threads_and_coroutines_little_more(
    driver: Driver,
) -> None:
    chain, count = Chain(driver.backend), 300
    loop = asyncio.get_running_loop()
    bare, sync, asynchronous = [], [], []
    for _ in range(7):  # side by side, so that a busy machine slows all of them
        began = time.perf_counter()
        for _ in range(count):
            await loop.run_in_executor(None, nothing)
        bare.append(time.perf_counter() - began)
        sync.append(await chain.run(driver, nothing, count))
        asynchronous.append(await chain.run(driver, nothing_async, count))
    assert min(sync) < 1.5 * statistics.median(bare)
    assert min(asynchronous) < 1.5 * statistics.median(sync)
