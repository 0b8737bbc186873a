"""Short calls that wait in a worker process: in their order, and never for a long one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import TaskLostError
from rhapsody_testing import Driver
from tests._support.engine_fixtures import engine
from tests._support.local import CANCELED, DONE, FAILED, RUNNING
from tests._support.machine import exists
from tests._support.scripted import ManualClock, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest_asyncio.fixture(loop_scope="module")
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    """So many workers, which have made short calls."""
    size = {"workers": request.param}
    async with (
        LocalExecutionBackend("process", resources=size) as backend,
        Driver(backend) as driver,
    ):
        for _ in range(5):
            await driver.run(*(driver.call(int) for _ in range(20)))
        yield driver
        assert driver.faults == []
        assert backend.still_running == []


one_worker = pytest.mark.parametrize("workers", [1], indirect=True)
two_workers = pytest.mark.parametrize("workers", [2], indirect=True)


def wait_for(path: str) -> None:
    Path(f"{path}.started").touch()
    while not os.path.exists(path):
        time.sleep(0.01)


def mark(path: str) -> None:
    with open(path, "a") as file:
        file.write(".")


def marks(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def pid_after(path: str) -> int:
    mark(path)
    return os.getpid()


@two_workers
async def test_short_calls_do_not_wait_for_a_long_one(workers: Driver, tmp_path: Path) -> None:
    path = tmp_path / "go on"
    long = workers.call(wait_for, str(path))
    short = [workers.call(int) for _ in range(200)]
    await workers.submit(*short[:50], long, *short[50:])
    for task in short:
        assert (await workers.finished(task)).state is DONE
    assert workers.of(long)[-1].state is not DONE
    path.touch()
    assert (await workers.finished(long)).state is DONE


@one_worker
async def test_one_call_runs_at_a_time_and_in_their_order(workers: Driver) -> None:
    tasks = [workers.call(time.sleep, 0.0001) for _ in range(300)]
    await workers.run(*tasks)
    uids = {task["uid"] for task in tasks}
    states = [(report.uid, report.state) for report in workers.reports if report.uid in uids]
    assert states == [(task["uid"], state) for task in tasks for state in (RUNNING, DONE)]


@one_worker
async def test_a_killed_worker_costs_only_the_call_it_ran(workers: Driver, tmp_path: Path) -> None:
    async def die(number: int) -> None:
        mark(str(tmp_path / str(number)))
        os.kill(os.getpid(), signal.SIGKILL)

    before = [workers.call(mark, str(tmp_path / f"before {n}")) for n in range(100)]
    fatal = [workers.call(die, number) for number in range(3)]
    after = [workers.call(mark, str(tmp_path / f"after {n}")) for n in range(100)]
    ends = await workers.run(*before, *fatal, *after)
    assert [end.state for end in ends] == [DONE] * 100 + [FAILED] * 3 + [DONE] * 100
    assert all(isinstance(end.error, TaskLostError) for end in ends[100:103])
    assert marks(tmp_path) == {"."}  # each ran once


@one_worker
async def test_a_call_that_waits_is_cancelled_and_the_worker_goes_on(
    workers: Driver, tmp_path: Path
) -> None:
    pid = (await workers.run_one(workers.call(os.getpid))).value
    path = tmp_path / "go on"
    long = workers.call(wait_for, str(path))
    others = [workers.call(pid_after, str(tmp_path / str(n))) for n in range(20)]
    await workers.submit(*(workers.call(int) for _ in range(20)), long, *others)
    assert await workers.running(long)
    assert await workers.cancel(others[3]) is True
    assert (await workers.finished(others[3])).state is CANCELED
    path.touch()
    for number, task in enumerate(others):
        end = await workers.finished(task)
        if number != 3:
            assert (end.state, end.value) == (DONE, pid)
    assert not (tmp_path / "3").exists()


@two_workers
async def test_calls_can_be_cancelled_at_any_moment(workers: Driver) -> None:
    chance = random.Random(7)
    for _ in range(30):
        tasks = [workers.call(time.sleep, chance.choice((0, 0, 0.001))) for _ in range(60)]
        await workers.submit(*tasks)
        cancelled = chance.sample(tasks, 6)
        for task in cancelled:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            await workers.cancel(task)
        for task in tasks:
            end = await workers.finished(task)
            assert end.state is DONE or (end.state is CANCELED and task in cancelled)


@two_workers
async def test_a_call_is_cancelled_that_waits_behind_one_that_has_started(
    workers: Driver, tmp_path: Path
) -> None:
    path = tmp_path / "go on"
    long = [workers.call(wait_for, f"{path}") for _ in range(2)]
    behind = [workers.call(mark, str(tmp_path / str(n))) for n in range(10)]
    await workers.submit(*(workers.call(time.sleep, 0) for _ in range(40)), *long, *behind)
    time.sleep(0.05)  # noqa: ASYNC251 - the workers continue, and the loop receives nothing
    for task in behind[:5]:
        assert await workers.cancel(task) is True
        assert (await workers.finished(task)).state is CANCELED
    path.touch()
    ends = [await workers.finished(task) for task in (*long, *behind[5:])]
    assert [end.state for end in ends] == [DONE] * 7
    assert not any((tmp_path / str(n)).exists() for n in range(5))


@one_worker
async def test_those_behind_a_call_that_is_stopped_run_elsewhere(
    workers: Driver, tmp_path: Path
) -> None:
    long = workers.call(wait_for, str(tmp_path / "never"))
    others = [workers.call(mark, str(tmp_path / str(n))) for n in range(20)]
    await workers.submit(*(workers.call(int) for _ in range(20)), long, *others)
    await exists(tmp_path / "never.started")
    assert await workers.cancel(long) is True
    assert (await workers.finished(long)).state is CANCELED
    for number, task in enumerate(others):
        assert (await workers.finished(task)).state is DONE
        assert (tmp_path / str(number)).read_text() == "."


@one_worker
async def test_a_worker_that_is_held_up_before_it_begins_loses_nothing(workers: Driver) -> None:
    pid = (await workers.run_one(workers.call(os.getpid))).value
    worker = psutil.Process(pid)
    worker.suspend()
    tasks = [workers.call(int) for _ in range(50)]
    await workers.submit(*tasks)
    assert await workers.running(tasks[0])
    assert await workers.cancel(tasks[0]) is True
    assert (await workers.finished(tasks[0])).state is CANCELED  # it was not started
    worker.resume()
    for task in tasks[1:]:
        assert (await workers.finished(task)).state is DONE
    assert (await workers.run_one(workers.call(os.getpid))).value == pid


async def test_time_outs_begin_with_the_call(tmp_path: Path) -> None:
    backend = LocalExecutionBackend("process", resources={"workers": 1})
    async with engine(backend, clock=(clock := ManualClock())) as flow:
        nap = flow.function_task(timeout=10)(time.sleep)
        await asyncio.gather(*(nap(0) for _ in range(50)))
        path = tmp_path / "go on"
        tasks = [flow.function_task(wait_for)(str(path)), *(nap(0) for _ in range(10))]
        await exists(f"{path}.started")
        await until(lambda: tasks[0].state == "RUNNING")
        await clock.advance(20)
        path.touch()
        await asyncio.gather(*tasks)


# What functions refer to is as it was at the call, although packed functions are kept.

counter = 0
factor = 2


async def test_globals_closures_and_defaults_are_those_of_the_call() -> None:
    global factor
    added = 1

    def compute(x: int, more: int = 5) -> int:
        return factor * x + added + more

    backend = LocalExecutionBackend("process", resources={"workers": 1})
    async with engine(backend) as flow:
        task = flow.function_task(compute)
        assert await task(10) == 26
        assert await task(10) == 26
        factor = 3
        assert await task(10) == 36
        added = 2
        assert await task(10) == 37
        compute.__defaults__ = (0,)
        assert await task(10) == 32
        factor = 2


async def test_what_a_call_changes_of_its_function_is_not_there_for_the_next() -> None:
    def count() -> int:
        global counter
        counter += 1
        return counter

    number = 0

    def count_inside() -> int:
        nonlocal number
        number += 1
        return number

    def remember(x: int, seen: list[int] = []) -> int:  # noqa: B006
        seen.append(x)
        return len(seen)

    async with engine(LocalExecutionBackend("process", resources={"workers": 1})) as flow:
        for function, args in ((count, ()), (count_inside, ()), (remember, (1,))):
            task = flow.function_task(function)
            assert [await task(*args) for _ in range(3)] == [1, 1, 1]


async def test_short_calls_behind_one_that_needs_more_get_what_they_need_alone() -> None:
    backend = LocalExecutionBackend("process", resources={"cores": 2})
    async with engine(backend) as flow:
        short, both = flow.function_task(int), flow.function_task(resources={"cores": 2})(int)
        for _ in range(4):
            await asyncio.gather(
                *(short() for _ in range(50)), both(), *(short() for _ in range(50))
            )
        assert backend.cores_in_use() == (0, 2)
        await asyncio.gather(*(both() for _ in range(5)))


async def test_a_shutdown_leaves_no_call_that_waits(tmp_path: Path) -> None:
    backend = await LocalExecutionBackend("process", resources={"workers": 2})
    async with Driver(backend) as driver:
        for _ in range(5):
            await driver.run(*(driver.call(int) for _ in range(20)))
        tasks = [driver.call(time.sleep, 0.001) for _ in range(300)]
        tasks[100:102] = [driver.call(wait_for, str(tmp_path / "never")) for _ in range(2)]
        await driver.submit(*tasks)
        assert (await driver.finished(tasks[30])).state is DONE
        await backend.shutdown()
        states = {(await driver.finished(task)).state for task in tasks}
        assert states == {DONE, CANCELED}
        assert backend.still_running == []
        assert backend.cores_in_use() == (0, 2)
        assert driver.faults == []


class Unpicklable(str):
    def __reduce__(self) -> Any:
        raise TypeError("on purpose")


@one_worker
async def test_a_call_that_cannot_be_sent_fails_alone(workers: Driver) -> None:
    tasks = [workers.call(int) for _ in range(100)]
    tasks[50]["name"] = Unpicklable("odd")
    ends = await workers.run(*tasks)
    states = [DONE] * 100
    states[50] = FAILED
    assert [end.state for end in ends] == states
