"""C10, C7.4, C7.11: functions in the local backend's worker processes."""

from __future__ import annotations

import asyncio
import functools
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.backends.local.worker import RemoteTraceback
from rhapsody.context import current_task
from rhapsody.errors import BackendUnavailableError, TaskFailedError, TaskLostError
from rhapsody.states import TasksMainStates
from rhapsody.task import Resources, TaskDescription
from rhapsody.testing import Driver

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[LocalExecutionBackend]:
    resources = {"cores": 2, "gpus": ["4", "5"]}
    async with LocalExecutionBackend("process", resources=resources) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def driver(backend: LocalExecutionBackend) -> AsyncIterator[Driver]:
    async with Driver(backend) as driver:
        yield driver
        assert driver.faults == []
        assert backend.still_running == []


def needing(task: TaskDescription, **resources: Any) -> TaskDescription:
    task["resources"] = Resources(**resources)
    return task


class CustomError(Exception):
    """Cannot be unpickled the usual way: its `__init__` wants more."""

    def __init__(self, code: int, *, more: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.more = more


class StubbornError(Exception):
    """Cannot be pickled at all."""

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class HostileError(Exception):
    """Refuses every way."""

    def __new__(cls, *args: Any) -> HostileError:
        if args != ("one", "two"):
            raise ValueError("not like this")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__(threading.Lock())

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


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


# What does not travel (issue 2's bad input).


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, threading.Lock()), {}, "positional argument 1 (lock)"),
        ((1,), {"handle": socket.socket}, None),
        ((1,), {"handle": io.StringIO, "lock": threading.Lock()}, "argument 'lock' (lock)"),
    ],
)
async def test_an_argument_that_cannot_be_pickled_is_named(
    driver: Driver, args: tuple[Any, ...], kwargs: dict[str, Any], said: str | None
) -> None:
    bad = driver.call(lambda *args, **kwargs: None, *args, **kwargs)
    bad["name"] = "bad one"
    end, other = await driver.run(bad, driver.call(int))
    assert other.state is DONE
    if said is None:
        assert end.state is DONE
        return
    assert end.state is FAILED
    assert isinstance(end.error, TypeError)
    assert said in str(end.error)
    assert "'bad one'" in str(end.error)
    assert "LocalExecutionBackend('thread')" in str(end.error)
    assert end.error.__cause__ is not None


async def test_a_function_that_cannot_be_pickled_is_named(driver: Driver) -> None:
    lock = threading.Lock()
    end = await driver.run_one(driver.call(lambda: lock))
    assert isinstance(end.error, TypeError)
    assert "the function (function)" in str(end.error)


async def test_an_argument_that_cannot_be_unpickled_fails_its_task(driver: Driver) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    end = await driver.run_one(driver.call(lambda bad: None, Bad()))
    assert isinstance(end.error, ValueError)
    assert "unpacked in a worker process" in end.error.__notes__[0]


async def test_a_result_that_cannot_be_pickled_says_so(driver: Driver) -> None:
    end, other = await driver.run(driver.call(lambda: threading.Lock()), driver.call(int))
    assert other.state is DONE
    assert isinstance(end.error, TypeError)
    assert "its result (lock) cannot be pickled back" in str(end.error)


async def test_a_result_that_cannot_be_unpickled_says_so(driver: Driver) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    end = await driver.run_one(driver.call(lambda: Bad()))
    assert isinstance(end.error, ValueError)
    assert "came back from worker process" in end.error.__notes__[0]


async def test_an_exception_keeps_type_attributes_and_traceback(driver: Driver) -> None:
    class LocalError(Exception):
        pass

    def inner() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            local = LocalError("second")
            local.add_note("a note")
            raise local from error

    async def later() -> None:
        await asyncio.sleep(0)
        inner()

    for function in (inner, later):
        error = (await driver.run_one(driver.call(function))).error
        assert isinstance(error, LocalError)
        assert error.args == ("second",)
        assert error.__notes__ == ["a note"]
        assert isinstance(error.__cause__, RemoteTraceback)
        text = str(error.__cause__)
        assert "in inner" in text
        assert "KeyError: 'first'" in text
        assert "backends/local" not in text


async def test_an_exception_with_an_odd_init_keeps_its_type(driver: Driver) -> None:
    def fails() -> None:
        raise CustomError(7, more="more")

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, CustomError)
    assert (error.args, error.code, error.more) == (("code 7",), 7, "more")


async def test_an_exception_that_cannot_be_pickled_keeps_its_type(driver: Driver) -> None:
    def fails() -> None:
        error = StubbornError("text")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        error.kept = 1  # type: ignore[attr-defined]
        raise error

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, StubbornError)
    assert (error.args, error.kept) == (("text",), 1)  # type: ignore[attr-defined]
    assert isinstance(error.__cause__, RemoteTraceback)


async def test_an_exception_that_refuses_everything_is_told_in_words(driver: Driver) -> None:
    def fails() -> None:
        raise HostileError("one", "two")

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, TaskFailedError)
    assert "HostileError" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_exceptions_that_end_programs_only_fail_their_task(
    driver: Driver, kind: type[BaseException]
) -> None:
    def fails() -> None:
        raise kind(3)

    end = await driver.run_one(driver.call(fails))
    assert end.state is FAILED
    assert isinstance(end.error, kind)


async def test_a_broken_pool_of_the_function_is_its_own_failure(driver: Driver) -> None:
    from concurrent.futures.process import BrokenProcessPool

    calls = 0

    def fails() -> None:
        nonlocal calls
        calls += 1
        raise BrokenProcessPool(f"mine {calls}")

    end = await driver.run_one(driver.call(fails))
    assert isinstance(end.error, BrokenProcessPool)
    assert str(end.error) == "mine 1"


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


# Losing and stopping workers.


async def test_a_killed_worker_fails_only_its_own_task(driver: Driver) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    neighbours = [driver.call(time.sleep, 0.05) for _ in range(6)]
    killed = driver.call(die)
    ends = await driver.run(*neighbours[:3], killed, *neighbours[3:])
    assert [end.state for end in ends] == [DONE] * 3 + [FAILED] + [DONE] * 3
    assert isinstance(ends[3].error, TaskLostError)
    assert "was killed by SIGKILL (out of memory?)" in str(ends[3].error)


async def test_a_worker_that_exits_tells_its_code(driver: Driver) -> None:
    end = await driver.run_one(driver.call(os._exit, 5))
    assert isinstance(end.error, TaskLostError)
    assert "exited with code 5" in str(end.error)


async def test_an_idle_worker_that_is_killed_costs_nobody_a_task(driver: Driver) -> None:
    for _ in range(3):
        ends = await driver.run(*(driver.call(os.getpid) for _ in range(4)))
        os.kill(ends[0].value, signal.SIGKILL)
        ends = await driver.run(*(driver.call(int) for _ in range(10)))
        assert [end.state for end in ends] == [DONE] * 10


async def test_all_workers_killed_at_once_are_replaced(driver: Driver) -> None:
    ends = await driver.run(*(driver.call(_slow_pid) for _ in range(4)))
    for pid in {end.value for end in ends}:
        os.kill(pid, signal.SIGKILL)
    ends = await driver.run(*(driver.call(int) for _ in range(10)))
    assert {end.state for end in ends} <= {DONE}


def _slow_pid() -> int:
    time.sleep(0.05)
    return os.getpid()


def _busy() -> None:
    while True:
        pass


async def _busy_async() -> None:
    await asyncio.sleep(3600)


def _deaf(begun: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(begun).touch()
    _busy()


async def exists(path: Path) -> None:
    """Waits for a file that another process makes."""

    def look() -> None:
        while not path.exists():
            time.sleep(0.005)

    await asyncio.to_thread(look)


@pytest.mark.parametrize("function", [_busy, _busy_async, _deaf])
async def test_a_running_call_is_stopped_and_its_neighbours_go_on(
    driver: Driver, function: Callable[..., Any], tmp_path: Path
) -> None:
    task, neighbour = driver.call(function), driver.call(time.sleep, 0.5)
    if function is _deaf:
        task["args"] = (str(tmp_path / "begun"),)
    await driver.submit(task, neighbour)
    assert await driver.running(task)
    if function is _deaf:
        await exists(tmp_path / "begun")
    pid = driver.backend._open[task["uid"]].pid
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
        child = psutil.Process(int(path.read_text()))
        path.unlink()
        if how == "cancel":
            await driver.cancel(task)
        else:
            os.kill(driver.backend._open[task["uid"]].pid, signal.SIGKILL)
        assert (await driver.finished(task)).state is (CANCELED if how == "cancel" else FAILED)
        _, alive = await asyncio.to_thread(psutil.wait_procs, [child], 5)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


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


async def test_everything_can_be_cancelled(backend: LocalExecutionBackend) -> None:
    capabilities = backend.capabilities
    assert capabilities.cancel_functions == capabilities.cancel_async_functions == "running"


async def test_running_means_that_a_worker_has_begun(driver: Driver) -> None:
    task = driver.call(time.sleep, 0.01)
    await driver.run(task)
    assert driver.history(task) == [RUNNING, DONE]
    bad = driver.call(threading.Lock().acquire)
    await driver.run(bad)
    assert driver.history(bad) == [FAILED]


# Its life.


def _workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    ]


async def test_shutdown_leaves_no_process_whatever_runs(tmp_path: Path) -> None:
    before = set(_workers())
    threads = set(threading.enumerate())
    backend = await LocalExecutionBackend("process", resources={"cores": 2})
    async with Driver(backend) as driver:
        tasks = [
            driver.call(_deaf, str(tmp_path / "begun")),
            driver.call(_busy_async),
            driver.call(int),
        ]
        await driver.submit(*tasks)
        await exists(tmp_path / "begun")
        began = time.monotonic()
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        assert time.monotonic() - began < 5
        assert [(await driver.finished(task)).state for task in tasks] == [CANCELED] * 3
        assert driver.faults == []
    assert set(_workers()) <= before
    assert set(threading.enumerate()) <= threads


async def test_a_failed_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no worker today")

    before = set(_workers())
    monkeypatch.setattr("rhapsody.backends.local.worker.begin", broken)
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    with pytest.raises(BackendUnavailableError, match="no worker process could be started"):
        await backend
    assert backend.state() == "error"
    await backend.shutdown()
    assert set(_workers()) <= before


async def test_a_cancelled_start_leaves_nothing() -> None:
    before = set(_workers())
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    starting = asyncio.ensure_future(backend._started())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await backend.shutdown()
    assert set(_workers()) <= before


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
