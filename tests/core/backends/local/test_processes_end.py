"""Tests of the end of worker processes: lost, stopped, shut down."""

from __future__ import annotations

import asyncio
import ctypes
import operator
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import BackendUnavailableError, TaskLostError
from rhapsody_testing import Driver
from tests._support.engine_fixtures import engine
from tests._support.local import CANCELED, DONE, FAILED, RUNNING, exit_at_once, needing
from tests._support.machine import exists, until_gone
from tests._support.scripted import until, within

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest.fixture
def driver(process_driver: Driver) -> Driver:
    return process_driver


# Losing and stopping workers.


async def test_a_killed_worker_fails_only_its_own_task(driver: Driver) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    neighbours = [driver.call(time.sleep, 0.05) for _ in range(6)]
    killed = driver.call(die)
    ends = await driver.run(*neighbours[:3], killed, *neighbours[3:])
    assert [end.state for end in ends] == [DONE] * 3 + [FAILED] + [DONE] * 3
    assert isinstance(ends[3].error, TaskLostError)
    assert "was killed by SIGKILL (possibly out of memory, or " in str(ends[3].error)


def _c_exit(code: int) -> None:
    ctypes.CDLL(None).exit(code)


@pytest.mark.parametrize("gpus", [0, 1], ids=["workers", "gpu-workers"])
@pytest.mark.parametrize("leave", [exit_at_once, _c_exit])
@pytest.mark.parametrize("code", [0, 5])
async def test_a_worker_that_exits_tells_its_code(
    driver: Driver, leave: Callable[[int], None], code: int, gpus: int
) -> None:
    end = await driver.run_one(needing(driver.call(leave, code), gpus=gpus))
    assert isinstance(end.error, TaskLostError)
    assert f"exited with code {code}" in str(end.error)
    assert (await driver.run_one(needing(driver.call(int), gpus=gpus))).state is DONE


async def test_a_killed_idle_worker_loses_no_task(driver: Driver) -> None:
    for _ in range(3):
        ends = await driver.run(*(driver.call(os.getpid) for _ in range(4)))
        os.kill(ends[0].value, signal.SIGKILL)
        ends = await driver.run(*(driver.call(int) for _ in range(10)))
        assert [end.state for end in ends] == [DONE] * 10


async def test_a_killed_worker_does_not_lose_a_call_it_has_not_started(
    driver: Driver,
) -> None:
    ends = await driver.run(*(driver.call(_slow_pid) for _ in range(4)))
    workers = [psutil.Process(pid) for pid in {end.value for end in ends}]
    for worker in workers:
        worker.suspend()
    tasks = [driver.call(os.getpid) for _ in range(4)]
    await driver.submit(*tasks)
    for task in tasks[: len(workers)]:
        assert await driver.running(task)
    for worker in workers:
        worker.kill()
    for task in tasks:
        end = await driver.finished(task)
        assert end.state is DONE
        assert end.value not in [worker.pid for worker in workers]


def _begin_and_sleep(begun: Path) -> None:
    begun.touch()
    time.sleep(60)


async def test_a_killed_fork_server_is_replaced(driver: Driver, tmp_path: Path) -> None:
    pid = (await driver.run_one(driver.call(os.getpid))).value
    server = psutil.Process(pid).parent()
    assert server is not None
    running = driver.call(_begin_and_sleep, begun := tmp_path / "begun")
    await driver.submit(running)
    await until(
        begun.exists
    )  # a task that has not started is submitted again, and sleeps once more
    workers = [worker.pid for worker in server.children()]
    server.kill()
    assert isinstance((await driver.finished(running)).error, TaskLostError)
    ends = await driver.run(*(driver.call(int) for _ in range(10)))
    # Another worker of that server goes with it; a call that it was given before is lost, too.
    lost = [end for end in ends if isinstance(end.error, TaskLostError)]
    again = await driver.run(*(driver.call(int) for _ in lost))
    assert len(lost) < 10
    assert [end.state for end in (*ends, *again)].count(DONE) == 10
    await until_gone(*workers)  # also the one that may be lost later, before another test uses it


def _close_everything_and_stay() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    os.closerange(3, 1024)


async def test_a_worker_that_closed_its_descriptors_is_replaced(driver: Driver) -> None:
    end = await driver.run_one(driver.call(_close_everything_and_stay))
    assert isinstance(end.error, TaskLostError)
    assert "closed the worker's descriptors" in str(end.error)
    ends = await driver.run(*(driver.call(int) for _ in range(4)))
    assert [end.state for end in ends] == [DONE] * 4


def _fork() -> str:
    child = os.fork()
    if child == 0:
        return "child"
    os.waitpid(child, 0)
    return "parent"


async def test_a_forked_child_that_returns_from_a_call_sends_nothing(driver: Driver) -> None:
    ends = await driver.run(*(driver.call(_fork) for _ in range(4)))
    assert [end.value for end in ends] == ["parent"] * 4


async def test_all_workers_killed_at_once_are_replaced(driver: Driver) -> None:
    ends = await driver.run(*(driver.call(_slow_pid) for _ in range(4)))
    for pid in {end.value for end in ends}:
        os.kill(pid, signal.SIGKILL)
    ends = await driver.run(*(driver.call(int) for _ in range(10)))
    assert {end.state for end in ends} <= {DONE}


def _slow_pid() -> int:
    time.sleep(0.05)  # so that each worker makes one of the calls
    return os.getpid()


def _busy(begun: str) -> None:
    Path(begun).touch()
    while True:
        pass


async def _busy_async(begun: str) -> None:
    await asyncio.to_thread(Path(begun).touch)
    await asyncio.sleep(3600)


def _deaf(begun: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _busy(begun)


@pytest.mark.parametrize("function", [_busy, _busy_async, _deaf])
async def test_a_running_call_is_stopped_and_its_neighbours_go_on(
    driver: Driver, function: Callable[..., Any], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    task, neighbour = driver.call(function, str(begun)), driver.call(time.sleep, 0.5)
    await driver.submit(task, neighbour)
    assert await driver.running(task)
    await exists(begun)
    pid = driver.backend.open_tasks[task["uid"]].handle.pid
    assert await driver.cancel(task) is True
    assert await driver.cancel(task) is True  # asked already
    end = await driver.finished(task)
    assert end.state is CANCELED
    assert not psutil.pid_exists(pid)
    assert (await driver.finished(neighbour)).state is DONE
    assert (await driver.run_one(driver.call(int))).state is DONE


async def test_what_a_stopped_call_had_started_is_stopped_with_it(
    driver: Driver, tmp_path: Path
) -> None:
    path = tmp_path / "pid"

    def starts() -> None:
        child = subprocess.Popen(["sleep", "60"])
        path.with_suffix(".part").write_text(str(child.pid))
        path.with_suffix(".part").rename(path)
        child.wait()

    for how in ("cancel", "kill"):
        task = driver.call(starts)
        await driver.submit(task)
        await exists(path)
        child = int(path.read_text())
        path.unlink()
        if how == "cancel":
            await driver.cancel(task)
        else:
            os.kill(driver.backend.open_tasks[task["uid"]].handle.pid, signal.SIGKILL)
        assert (await driver.finished(task)).state is (CANCELED if how == "cancel" else FAILED)
        await until_gone(child)


async def test_cancelling_at_any_moment_ends_it_once(driver: Driver) -> None:
    tasks = []
    for number in range(24):
        task = driver.call(time.sleep, 0.02)
        tasks.append(task)
        await driver.submit(task)
        await asyncio.sleep(0.004 * (number % 6))
        await driver.cancel(task)
    for task in tasks:
        await driver.finished(task)
    assert (await driver.run_one(driver.call(int))).state is DONE


async def test_everything_can_be_cancelled(driver: Driver) -> None:
    capabilities = driver.backend.capabilities
    assert capabilities.cancel_functions == capabilities.cancel_async_functions == "running"


async def test_running_means_that_a_worker_has_started(driver: Driver) -> None:
    task = driver.call(time.sleep, 0.01)
    await driver.run(task)
    assert driver.history(task) == [RUNNING, DONE]
    bad = driver.call(threading.Lock().acquire)
    await driver.run(bad)
    assert driver.history(bad) == [FAILED]


# Its life.


def _workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def before(process_backend: LocalExecutionBackend) -> set[psutil.Process]:
    """The processes of other backends, none of which starts a worker."""
    await until(lambda: not process_backend._processes._starting)
    return set(_workers())


async def test_shutdown_leaves_no_process_whatever_runs(
    tmp_path: Path, before: set[psutil.Process]
) -> None:
    await exists(tmp_path)  # on a thread of the loop's own, which stays
    threads = set(threading.enumerate())
    backend = await LocalExecutionBackend("process", resources={"cores": 2}, grace=600)
    async with Driver(backend) as driver:
        tasks = [
            driver.call(_deaf, str(tmp_path / "begun")),
            driver.call(_busy_async, str(tmp_path / "begun too")),
            driver.call(int),
        ]
        await driver.submit(*tasks)
        await exists(tmp_path / "begun")
        await within(asyncio.gather(backend.shutdown(), backend.shutdown()))
        assert [(await driver.finished(task)).state for task in tasks] == [CANCELED] * 3
        assert driver.faults == []
    assert set(_workers()) <= before
    assert set(threading.enumerate()) <= threads


WORK = "rhapsody.backends.local.workers.work"
"""The main loop of a worker; `operator.is_`, which replaces it, returns at once."""


async def test_a_worker_that_had_a_gpu_ends_whatever_threads_it_has() -> None:
    def leave_a_thread() -> int:
        threading.Thread(target=time.sleep, args=(60,)).start()
        return os.getpid()

    backend = LocalExecutionBackend("process", resources={"gpus": 1}, grace=0.1)
    async with backend, Driver(backend) as driver:
        end = await driver.run_one(needing(driver.call(leave_a_thread), gpus=1))
        await until_gone(end.value)


def _daemon() -> int:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(told)
        time.sleep(60)
        os._exit(0)
    os.close(told)
    os.read(ready, 1)  # until it has left the group, which ends with the worker
    os.close(ready)
    return child


async def test_shutdown_does_not_wait_for_what_a_call_has_sent_into_the_background() -> None:
    async with engine(LocalExecutionBackend("process", resources={"cores": 1})) as flow:
        daemon = await flow.function_task(_daemon)()
    os.kill(daemon, signal.SIGKILL)


async def test_a_failed_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, before: set[psutil.Process]
) -> None:
    monkeypatch.setattr(WORK, operator.is_)
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    with pytest.raises(BackendUnavailableError, match="cannot start a worker process: EOFError"):
        await backend
    assert backend.state() == "error"
    await backend.shutdown()
    assert set(_workers()) <= before


async def test_workers_without_a_replacement_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = await LocalExecutionBackend("process", resources={"cores": 1})
    async with backend, Driver(backend) as driver:
        with monkeypatch.context() as patch:
            patch.setattr(WORK, operator.is_)
            ends = await driver.run(driver.call(exit_at_once, 3), driver.call(int))
            assert "exited with code 3" in str(ends[0].error)
            assert isinstance(ends[1].error, TaskLostError)
            assert "cannot start a worker process for task" in str(ends[1].error)
        assert (await driver.run_one(driver.call(int))).state is DONE


async def test_cancelling_every_asyncio_task_while_workers_start_loses_nothing() -> None:
    async with engine(LocalExecutionBackend("process", resources={"cores": 4})) as flow:
        calls = [flow.function_task(operator.neg)(i) for i in range(8)]
        for _ in range(20):
            await asyncio.sleep(0)
            for each in asyncio.all_tasks() - {asyncio.current_task()}:
                each.cancel()
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*calls) == [-i for i in range(8)]


async def test_a_cancelled_start_leaves_nothing(before: set[psutil.Process]) -> None:
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    starting = asyncio.ensure_future(backend.__aenter__())
    await asyncio.sleep(0.05)  # somewhere in the start
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await backend.shutdown()
    assert set(_workers()) <= before
