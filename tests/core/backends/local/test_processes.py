"""Functions in the local backend's worker processes."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from typing import Any

import psutil
import pytest

from rhapsody.context import current_task
from rhapsody_testing import Driver
from tests._support.local import needing

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest.fixture
def driver(process_driver: Driver) -> Driver:
    return process_driver


# What travels.


async def test_every_kind_of_callable_runs_elsewhere(driver: Driver) -> None:
    offset = 1
    pid = os.getpid()

    class Adder:
        def add(self, second: int) -> tuple[int, bool]:
            return offset + second, os.getpid() != pid

    async def asynchronous(second: int) -> tuple[int, bool]:
        await asyncio.sleep(0)
        return offset + second, os.getpid() != pid

    ends = await driver.run(
        driver.call(lambda second: (offset + second, os.getpid() != pid), 2),
        driver.call(Adder().add, 2),
        driver.call(functools.partial(Adder().add, 2)),
        driver.call(asynchronous, second=2),
        driver.call(lambda: asynchronous(2)),
    )
    assert [end.value for end in ends] == [(3, True)] * 5
    assert all(end.task["worker"].startswith("process ") for end in ends)


async def test_big_values_travel_both_ways(driver: Driver) -> None:
    value = os.urandom(1 << 20) * 20
    end = await driver.run_one(driver.call(lambda given: given * 2, value))
    assert end.value == value * 2


async def test_coroutines_share_a_loop_in_their_worker(driver: Driver) -> None:
    async def where() -> tuple[int, int]:
        return os.getpid(), id(asyncio.get_running_loop())

    ends = await driver.run(*(driver.call(where) for _ in range(20)))
    pairs = {end.value for end in ends}
    assert len(pairs) == len({pid for pid, _ in pairs})


async def test_a_waiting_coroutine_takes_no_worker(driver: Driver) -> None:
    async def here() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    assert (await driver.run_one(needing(driver.call(here), cores=0))).value == os.getpid()


async def test_the_task_knows_itself(driver: Driver) -> None:
    def look() -> tuple[Any, ...]:
        task = current_task()
        there = os.path.isdir(task.sandbox or "")
        return (task.uid, task.name, task.attempt, there, task.deadline, task.cancelled)

    async def look_later() -> tuple[Any, ...]:
        await asyncio.sleep(0)
        return look()

    for function in (look, look_later):
        task = driver.with_sandbox(driver.call(function))
        task["timeout"] = 1000.0
        uid, name, attempt, there, deadline, cancelled = (await driver.run_one(task)).value
        assert (uid, name, attempt, there) == (task["uid"], task["name"], 1, True)
        assert cancelled is False
        assert 900 < deadline - time.time() <= 1000


# Variables.


async def test_cores_and_gpus_set_variables_and_only_for_that_task(driver: Driver) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

    def look() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    plain = await driver.run_one(driver.call(look))
    assert plain.value == ["1", "1", "1", ""]
    two = await driver.run_one(needing(driver.call(look), cores=2, gpus=1))
    assert two.value == ["2", "2", "2", "4"]
    both = await driver.run_one(needing(driver.call(look), gpus=2))
    assert both.value == ["1", "1", "1", "4,5"]
    own = driver.call(look)
    own["environment"] = {"OMP_NUM_THREADS": "7", "MINE": "x"}
    assert (await driver.run_one(own)).value == ["7", "1", "1", ""]
    ends = await driver.run(*(driver.call(os.environ.get, "MINE") for _ in range(6)))
    assert {end.value for end in ends} == {None}


async def test_variables_are_there_before_anything_is_imported(driver: Driver) -> None:
    class Importing:
        def __reduce__(self) -> Any:
            return os.getenv, ("OMP_NUM_THREADS",)

    assert (await driver.run_one(driver.call(lambda seen: seen, Importing()))).value == "1"


async def test_gpu_tasks_get_fresh_workers(driver: Driver) -> None:
    ends = [await driver.run_one(needing(driver.call(os.getpid), gpus=1)) for _ in range(3)]
    assert len({end.value for end in ends}) == 3


# Its life.


async def test_workers_are_not_forked_from_this_process(driver: Driver) -> None:
    pid = (await driver.run_one(driver.call(os.getpid))).value
    parents = psutil.Process(pid).parents()
    assert parents[0].pid != os.getpid()  # the fork server, started before there were tasks
    assert "forkserver" in " ".join(parents[0].cmdline())


async def test_worker_start_methods_import_nothing_of_the_program(driver: Driver) -> None:
    def mains() -> list[str]:
        main = sys.modules["__main__"]
        return [getattr(main, "__file__", ""), str("pytest" in sys.modules)]

    file, has_pytest = (await driver.run_one(driver.call(mains))).value
    assert "pytest" not in (file or "")
    assert has_pytest == "False"
