"""The local backend whichever executor it has: its life, slots, order and refusals."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.local import ConcurrentExecutionBackend, LocalExecutionBackend
from rhapsody.errors import BackendError, BackendUnavailableError, CapabilityError, DataError
from rhapsody_testing import Driver
from tests._support.local import CANCELED, DONE, FAILED, RUNNING, needing
from tests._support.scripted import until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    resources = {"cores": 2, "gpus": 2, "memory": "1 GiB"}
    async with LocalExecutionBackend(resources=resources) as backend, Driver(backend) as driver:
        yield driver


# How it is made.


async def test_it_has_two_names() -> None:
    assert ConcurrentExecutionBackend is LocalExecutionBackend
    assert LocalExecutionBackend.name == "local"


@pytest.mark.parametrize(
    ("executor", "kind", "said"),
    [
        ("threads", ValueError, "did you mean 'thread'"),
        ("proces", ValueError, "did you mean 'process'"),
        ("gpu", ValueError, "'thread', 'process' or an executor of concurrent.futures"),
        (4, TypeError, "got 4"),
    ],
)
async def test_a_bad_executor_is_named(executor: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as error:
        LocalExecutionBackend(executor)
    assert said in str(error.value)


async def test_unknown_resources_are_named() -> None:
    with pytest.raises(TypeError, match="did you mean 'cores'"):
        LocalExecutionBackend(resources={"core": 1})


async def test_resources_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        LocalExecutionBackend("thread", {"cores": 1})  # type: ignore[call-arg]


async def test_it_must_be_awaited_first() -> None:
    backend = LocalExecutionBackend()
    assert backend.state() == "initialized"
    with pytest.raises(BackendUnavailableError, match="await"):
        await backend.submit_tasks([])
    await backend.shutdown()


async def test_three_ways_to_start_it() -> None:
    awaited = await LocalExecutionBackend()
    created = await LocalExecutionBackend.create("thread", resources={"cores": 1})
    async with LocalExecutionBackend() as entered:
        assert awaited.state() == created.state() == entered.state() == "running"
    assert entered.state() == "shutdown"
    for backend in (awaited, created):
        await backend.shutdown()
        await backend.shutdown()
        assert backend.state() == "shutdown"


async def test_starting_twice_is_one_start() -> None:
    backend = LocalExecutionBackend()
    first, second = await asyncio.gather(backend.__aenter__(), backend.__aenter__())
    assert first is second is backend
    assert await backend is backend
    await backend.shutdown()


async def test_a_uid_in_use_is_refused_before_anything_is_accepted(driver: Driver) -> None:
    gate = threading.Event()
    first = driver.call(gate.wait)
    await driver.submit(first)
    other = driver.call(gate.wait)
    with pytest.raises(BackendError, match=first["uid"]):
        await driver.backend.submit_tasks([other, dict(first)])
    assert driver.backend.still_running == [first["uid"]]
    gate.set()
    await driver.finished(first)


# What it can and cannot do.


async def test_what_the_machine_does_not_have_fails_that_task_only(driver: Driver) -> None:
    ends = await driver.run(
        needing(driver.call(int), cores=3),
        needing(driver.command("true"), gpus=3),
        needing(driver.call(int), memory="2 GiB"),
        driver.call(int),
    )
    assert [end.state for end in ends] == [FAILED, FAILED, FAILED, DONE]
    for end, said in zip(
        ends, ("3 cores (available: 2)", "3 gpus (available: 2)", "1073741824"), strict=False
    ):
        assert isinstance(end.error, CapabilityError)
        assert said in str(end.error)


async def test_ranks_are_refused(driver: Driver) -> None:
    end = await driver.run_one(needing(driver.command("true"), ranks=2))
    assert isinstance(end.error, CapabilityError)
    assert "2 ranks" in str(end.error)
    assert "ranks" not in driver.backend.capabilities.resources


async def test_functions_are_refused_as_services(driver: Driver) -> None:
    end = await driver.run_one(driver.describe("serve", function=int, is_service=True))
    assert isinstance(end.error, CapabilityError)
    assert not driver.backend.capabilities.function_services


async def test_it_binds_executables_to_their_cores_and_gpus(driver: Driver) -> None:
    assert driver.backend.capabilities.binds == {"cores", "gpus"}
    assert driver.backend.capabilities.resources == {
        "cores",
        "fractional_cores",
        "gpus",
        "memory",
        "walltime",
    }


async def test_a_walltime_is_a_hint_that_is_accepted(driver: Driver) -> None:
    assert (await driver.run_one(needing(driver.call(int), walltime=0.001))).state is DONE
    assert "walltime" in driver.backend.capabilities.resources


async def test_a_task_with_nothing_to_run_fails(driver: Driver) -> None:
    end = await driver.run_one(driver.describe("empty"))
    assert isinstance(end.error, ValueError)


# Slots and order.


async def test_programs_of_half_a_core_run_two_on_a_core(driver: Driver, tmp_path: Path) -> None:
    meet = "until [ $(ls | wc -l) -ge 4 ]; do sleep 0.01; done; echo $OMP_NUM_THREADS"
    tasks = [
        needing(driver.command(f"cd {tmp_path}; touch {number}; {meet}"), cores=0.5)
        for number in range(4)
    ]
    ends = await driver.run(*tasks)
    assert [(end.state, end.stdout) for end in ends] == [(DONE, "1\n")] * 4, "four met on two cores"


async def test_no_more_run_at_once_than_there_are_cores(driver: Driver) -> None:
    running = most = 0
    lock, two = threading.Lock(), threading.Event()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                two.set()
        two.wait(20)  # the first waits for another
        time.sleep(0.005)
        with lock:
            running -= 1

    await driver.run(*(driver.call(count) for _ in range(20)))
    assert most == 2
    most = 0
    await driver.run(*(needing(driver.call(count), cores=2) for _ in range(5)))
    assert most == 1


async def test_a_service_without_resources_takes_no_slot() -> None:
    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        services = [driver.service("sleep 60") for _ in range(3)]
        await driver.submit(*services)
        for service in services:
            assert await driver.running(service)
        assert (await driver.run_one(driver.call(int))).state is DONE


async def test_tasks_pass_one_that_only_a_service_holds_up(driver: Driver) -> None:
    service = needing(driver.service("sleep 60"), cores=1)
    await driver.submit(service)
    assert await driver.running(service)
    whole, small = needing(driver.call(int), cores=2), driver.call(int)
    await driver.submit(whole, small)
    assert (await driver.finished(small)).state is DONE
    assert driver.history(whole) == []
    await driver.cancel(service)
    assert (await driver.finished(whole)).state is DONE


async def test_a_task_without_cores_runs_on_a_full_machine() -> None:
    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        full = driver.command("sleep 60")
        await driver.submit(full)
        assert await driver.running(full)
        free = needing(driver.command("echo free"), cores=0)
        assert (await driver.run_one(free)).stdout == "free\n"


async def test_running_comes_once_and_before_the_end(driver: Driver) -> None:
    tasks = [driver.call(int), driver.command("true"), driver.command("false")]
    await driver.run(*tasks)
    assert [driver.history(task) for task in tasks] == [
        [RUNNING, DONE],
        [RUNNING, DONE],
        [RUNNING, FAILED],
    ]
    assert all(report.native == report.state for report in driver.reports)


async def test_a_task_that_cannot_start_gives_its_slot_back() -> None:
    async with LocalExecutionBackend(resources={"cores": 1}) as backend, Driver(backend) as driver:
        for _ in range(3):
            end = await driver.run_one(driver.command(["no-such-program"]))
            assert isinstance(end.error, FileNotFoundError)
        bad = driver.call(int)
        bad["sandbox"] = "/dev/null/sandbox"
        assert isinstance((await driver.run_one(bad)).error, OSError)
        assert (await driver.run_one(driver.call(int))).state is DONE


async def test_a_large_batch_does_not_hold_up_the_loop(driver: Driver) -> None:
    tasks = [driver.call(int) for _ in range(5000)]
    await driver.submit(*tasks)
    for task in tasks:
        await driver.finished(task)
    assert driver.faults == []
    assert driver.backend.still_running == []


# Canceling.


async def test_what_waits_is_cancelled_at_once_and_never_runs(driver: Driver) -> None:
    gate = threading.Event()
    ran: list[int] = []
    busy = [driver.call(gate.wait) for _ in range(2)]
    waiting = [driver.call(ran.append, 1), driver.command("touch ran")]
    await driver.submit(*busy, *waiting)
    for task in waiting:
        assert await driver.cancel(task) is True
        assert driver.history(task) == [CANCELED]
        assert await driver.cancel(task) is False
    gate.set()
    for task in busy:
        assert (await driver.finished(task)).state is DONE
    assert (await driver.run_one(driver.call(int))).state is DONE
    assert ran == []
    assert not (Path(driver.work_dir) / waiting[1]["uid"]).exists()


async def test_an_unknown_task_cannot_be_cancelled(driver: Driver) -> None:
    task = driver.call(int)
    await driver.run(task)
    assert await driver.cancel(task) is False
    assert await driver.cancel("unknown") is False


async def test_cancelling_what_holds_up_others_lets_them_run(driver: Driver) -> None:
    one = driver.command("sleep 60")
    whole = needing(driver.command("true"), cores=2)
    behind = driver.command("true")
    await driver.submit(one, whole, behind)
    assert await driver.running(one)
    await driver.cancel(whole)
    assert (await driver.finished(behind)).state is DONE


# Its end.


async def test_shutdown_reports_whatever_it_stopped() -> None:
    backend = await LocalExecutionBackend(resources={"cores": 2})
    async with Driver(backend) as driver:
        wait = asyncio.Event()

        async def forever() -> None:
            await wait.wait()

        tasks = [
            driver.command("sleep 60"),
            driver.call(forever),
            driver.call(int),  # waits
            needing(driver.call(forever), cores=0),
            driver.service("sleep 60"),
        ]
        await driver.submit(*tasks)
        assert await driver.running(tasks[1])
        await backend.shutdown()
        assert [(await driver.finished(task)).state for task in tasks] == [CANCELED] * 5
        assert driver.faults == []
        assert backend.still_running == []


async def test_a_shut_down_backend_takes_no_tasks() -> None:
    backend = await LocalExecutionBackend()
    await backend.shutdown()
    with pytest.raises(BackendUnavailableError, match="shutdown"):
        await backend.submit_tasks([])
    with pytest.raises(BackendUnavailableError):
        await backend


async def test_nothing_is_left_of_a_backend() -> None:
    before = set(threading.enumerate())
    async with LocalExecutionBackend(resources={"cores": 2}) as backend, Driver(backend) as driver:

        async def nothing() -> None:
            pass

        await driver.run(
            *(driver.call(int) for _ in range(10)),
            driver.call(nothing),
            needing(driver.call(nothing), cores=0),
        )
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) - before == set()


async def test_an_idle_backend_does_not_wake_the_loop(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = driver.service("sleep 60", ready="tcp:1")  # watched, but not on the loop
    busy = [driver.command("sleep 60") for _ in range(2)]
    waiting = [driver.call(int) for _ in range(100)]
    await driver.submit(service, *busy, *waiting)
    for task in (service, *busy):
        assert await driver.running(task)
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    wakes = 0
    select = selector.select

    def counted(timeout: float | None) -> Any:
        nonlocal wakes
        wakes += 1
        return select(timeout)

    await asyncio.sleep(0.05)  # reports that are on their way arrive
    monkeypatch.setattr(selector, "select", counted)
    await asyncio.sleep(0.5)
    assert wakes <= 3  # this sleep's own
    monkeypatch.undo()


async def test_a_backend_keeps_nothing_of_finished_tasks(driver: Driver) -> None:
    import gc
    import weakref

    class Thing:
        pass

    def make(thing: Thing) -> Thing:
        return Thing()

    given = Thing()
    references = [weakref.ref(given)]
    task = driver.describe("make", function=make, args=(given,))
    done = asyncio.Event()

    def callback(report: Any, state: Any, service_callback: Any = None) -> None:
        if state == DONE:
            references.append(weakref.ref(report.pop("return_value")))
            done.set()

    driver.backend.unregister_callback(driver._report)
    driver.backend.register_callback(callback)
    await driver.backend.submit_tasks([task])
    await done.wait()
    del task, given

    def left() -> bool:
        gc.collect()
        return any(reference() is not None for reference in references)

    await until(lambda: not left())  # the thread drops its last task in its own time


# Files.


async def test_an_external_file_is_linked_under_its_name(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "a file.txt").write_text("content")
    task = driver.command("cat 'a file.txt' other")
    driver.backend.link_explicit_data_deps(
        dst_task=task, file_path=str(tmp_path / "a file.txt"), file_name=None
    )
    driver.backend.link_explicit_data_deps(
        dst_task=task, file_path=str(tmp_path / "a file.txt"), file_name="other"
    )
    assert (await driver.run_one(task)).stdout == "contentcontent"


async def test_a_tasks_file_is_linked_into_anothers_sandbox(driver: Driver) -> None:
    source, target = driver.command("echo made > out.txt"), driver.command("cat out.txt")
    await driver.run(source)
    driver.backend.link_explicit_data_deps(
        src_task=source, dst_task=target, file_name="out.txt", file_path=None
    )
    assert (await driver.run_one(target)).stdout == "made\n"


async def test_implicit_copies_leave_out_what_was_printed(driver: Driver) -> None:
    source = driver.command("echo noise; echo a > a.txt; mkdir d; echo b > 'd/b c'; touch .hidden")
    target = driver.command("find . -type f | grep -v rhapsody | sort; cat a.txt 'd/b c'")
    await driver.run(source)
    driver.backend.link_implicit_data_deps(source, target)
    end = await driver.run_one(target)
    assert (end.stdout or "").split() == ["./.hidden", "./a.txt", "./d/b", "c", "a", "b"]


async def test_linking_says_what_is_missing(driver: Driver, tmp_path: Path) -> None:
    task = driver.command("true")
    with pytest.raises(ValueError, match="file_path, or src_task and file_name"):
        driver.backend.link_explicit_data_deps(dst_task=task)
    with pytest.raises(DataError, match="missing"):
        driver.backend.link_explicit_data_deps(dst_task=task, file_path=str(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        driver.backend.link_explicit_data_deps(
            dst_task=task, file_path=str(tmp_path / "file"), file_name="../escaped"
        )


@pytest.mark.parametrize("system", ["slurm", "pbs"])
async def test_several_nodes_of_a_job_are_mentioned_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    system: str,
) -> None:
    if system == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    else:
        (tmp_path / "nodes").write_text("node1\nnode1\nnode2\n")
        monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    async with LocalExecutionBackend():
        (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
        assert "one of the 2 nodes" in record.getMessage()
        assert "launcher=srun" in record.getMessage()
