"""Loss of workers, schedulers and connections."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401 - loads the defaults that `dask.config.set` restores
import psutil
import pytest

from rhapsody import WorkflowEngine
from rhapsody.errors import BackendUnavailableError, TaskLostError
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from tests._support.machine import alive
from tests.dask.clusters import foreign

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _until(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _worker_of(pid: int) -> int:
    """The worker process above a program's process."""
    process = psutil.Process(pid)
    # Where setproctitle is installed, Dask gives its workers a name.
    while not re.search("spawn_main|dask worker", " ".join(process.cmdline())):
        parent = process.parent()
        assert parent is not None
        process = parent
    return process.pid


async def test_tasks_wait_for_the_replacement_of_a_lost_worker() -> None:
    backend = DaskExecutionBackend({"n_workers": 1, "threads": 1})
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0s"}):
        async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

            @flow.function_task(lost_retries=0)
            def kill() -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            @flow.function_task
            def fine() -> str:
                return "fine"

            with pytest.raises(TaskLostError):
                await kill()
            assert await fine() == "fine"


async def test_a_program_ends_with_its_killed_worker_and_runs_again(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    starts, gate = tmp_path / "starts", tmp_path / "gate"

    @mortal.executable_task
    async def program() -> str:
        # The worker's reaper does not know a program that has only just started.
        waits = f"while [ ! -e '{gate}' ]; do sleep 0.05; done"
        return f"sleep 0.5; echo $$ $PWD >> '{starts}'; {waits}; echo fine"

    def started() -> list[str]:
        return starts.read_text().splitlines() if starts.exists() else []

    future = program()
    await _until(started)
    first = int(started()[0].split()[0])
    os.kill(_worker_of(first), signal.SIGKILL)
    await _until(lambda: len(started()) == 2)
    await _until(lambda: not alive(first))
    gate.touch()
    assert await future == "fine\n"
    sandboxes = [line.split(" ", 1)[1] for line in started()]
    assert len(set(sandboxes)) == 2


async def test_the_error_of_a_lost_task_names_worker_and_attempt(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    @mortal.function_task(lost_retries=0)
    def ill() -> None:
        while not os.path.exists(gate):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    future = ill()
    await _until(lambda: future.state is TasksMainStates.RUNNING)
    gate.touch()
    with pytest.raises(
        TaskLostError, match=r"worker tls://.* disappeared while the task was running \(attempt 1,"
    ):
        await future

    @mortal.function_task
    def well() -> int:
        return 1

    assert await well() == 1


@pytest.mark.parametrize("budget", [0, 2])
async def test_a_task_that_kills_its_worker_is_retried_lost_retries_times(
    mortal: WorkflowEngine, tmp_path: Path, budget: int
) -> None:
    trace = tmp_path / "trace"

    @mortal.function_task
    def deadly(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TaskLostError, match=f"disappeared .*attempt {budget + 1}"):
        await deadly.options(lost_retries=budget)(str(trace))
    assert trace.read_text() == "x" * (1 + budget)


async def test_tasks_queued_behind_one_that_kills_its_worker_finish(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    """Each of the other tasks is lost at most once."""
    trace = tmp_path / "trace"

    @mortal.function_task
    def deadly(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    @mortal.function_task
    def well(x: int) -> int:
        time.sleep(0.02)
        return x

    bad = deadly.options(lost_retries=3)(str(trace))
    good = mortal.map(well.options(lost_retries=1), range(50))
    with pytest.raises(TaskLostError):
        await bad
    assert await asyncio.gather(*good) == list(range(50))
    assert trace.read_text() == "xxxx"


async def test_tasks_queued_on_a_killed_worker_run_on_another_worker(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    backend: Any = mortal.backend
    first, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
    prefer = {"workers": [first], "allow_other_workers": True}

    @mortal.function_task
    def run_long(path: str) -> None:
        with open(path, "w") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)

    @mortal.function_task
    def wait() -> int:
        return 1

    long = run_long.options(lost_retries=0)(str(trace), task_description=prefer)
    waiting = [wait.options(lost_retries=0)(task_description=prefer) for _ in range(5)]
    await _until(lambda: trace.exists() and trace.read_text().endswith("\n"))
    os.kill(int(trace.read_text()), signal.SIGKILL)
    with pytest.raises(TaskLostError):
        await long
    assert await asyncio.gather(*waiting) == [1] * 5


async def test_tasks_run_again_after_a_restart_of_the_workers(
    mortal: WorkflowEngine, tmp_path: Path
) -> None:
    backend: Any = mortal.backend
    trace, gate = tmp_path / "trace", tmp_path / "gate"

    @mortal.function_task
    def wait(path: str, gate: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        while not os.path.exists(gate):
            time.sleep(0.02)
        return 1

    @mortal.function_task
    def add(x: int, y: int) -> int:
        return x + y

    held = add(1, 1)
    assert await add(held, 1) == 3
    running = [wait(str(trace), str(gate)) for _ in range(2)]
    waiting = add(running[0], 1)
    await _until(lambda: trace.exists() and trace.read_text() == "xx")
    await backend.client.restart()
    gate.touch()
    assert await asyncio.gather(*running, waiting, add(2, 2)) == [1, 1, 2, 4]
    with pytest.raises(TaskLostError):
        await held


async def test_a_worker_over_its_memory_limit_loses_its_task(mortal: WorkflowEngine) -> None:
    @mortal.function_task
    def greedy() -> int:
        held = []
        for _ in range(100):
            held.append(bytearray(os.urandom(1 << 20) * 20))
            time.sleep(0.05)
        return len(held)

    with pytest.raises(TaskLostError, match="disappeared"):
        await greedy.options(lost_retries=1)()


async def test_a_lost_large_argument_is_sent_again(
    mortal: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.values.IDLE_SECONDS", 60.0)
    backend: Any = mortal.backend

    @mortal.function_task
    def size(values: bytes) -> int:
        return len(values)

    big = b"x" * 2_000_000
    assert await size(big) == len(big)
    (entry,) = backend._shared._entries.values()
    holders = list((await backend.client.who_has())[entry.future.key])
    for pid in (await backend.client.run(os.getpid, workers=holders)).values():
        os.kill(pid, signal.SIGKILL)
    await _until(lambda: entry.future.status != "finished")
    assert await asyncio.gather(*(size(big) for _ in range(3))) == [len(big)] * 3


async def test_a_large_argument_that_could_not_be_stored_is_sent_with_its_task() -> None:
    backend = DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        def size(values: bytes) -> int:
            return len(values)

        assert await size(b"x" * 2_000_000) == 2_000_000
        (pid,) = (await backend.client.run(os.getpid)).values()
        os.kill(pid, signal.SIGSTOP)
        future = size(b"y" * 2_000_000)
        rpc = backend._connection.cluster.scheduler.rpc
        await _until(lambda: rpc.active)  # to the worker, which does not answer
        os.kill(pid, signal.SIGKILL)
        assert await future == 2_000_000


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_the_end_of_the_scheduler_fails_all_tasks(tmp_path: Path, how: int) -> None:
    with foreign(tmp_path, tls=False) as there:
        backend = await DaskExecutionBackend(scheduler_file=there["scheduler_file"])
        async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

            @flow.function_task
            async def wait() -> None:
                await asyncio.sleep(60)

            @flow.executable_task
            async def program() -> str:
                return "sleep 600"

            futures: list[Any] = [wait(), program(), *(wait() for _ in range(5))]
            calls = backend.open_tasks
            await _until(lambda: any(call.started for call in calls.values()))
            there["processes"][0].send_signal(how)
            async with asyncio.timeout(25):  # Dask's own limit is 30 s
                results = await asyncio.gather(*futures, return_exceptions=True)
            # Lost, and refused when the engine tries again.
            assert all(isinstance(result, Exception) for result in results), results
            assert backend.state() == "error"
            with pytest.raises(BackendUnavailableError, match="was lost"):
                await backend.submit_tasks([])
            with pytest.raises(Exception, match="was lost"):
                await wait()
        await backend.shutdown()


async def test_a_disconnected_worker_loses_its_task(tmp_path: Path) -> None:
    """A stopped process does not answer, as if the network had failed."""
    with foreign(tmp_path, tls=False, options=("--no-nanny", "--death-timeout", "5")) as there:
        async with asyncio.timeout(80):
            backend = await DaskExecutionBackend(scheduler_file=there["scheduler_file"])
            async with WorkflowEngine.create(backend=backend) as flow:

                @flow.function_task
                def where(path: str) -> int:
                    with open(path, "a") as file:
                        file.write(f"{os.getpid()}\n")
                    while not os.path.exists(f"{path}.cut off"):
                        time.sleep(0.01)
                    return os.getpid()

                trace = tmp_path / "trace"
                future = where(str(trace))
                await _until(lambda: trace.exists() and trace.read_text().endswith("\n"))
                await _until(lambda: future.state is TasksMainStates.RUNNING)
                pid = int(trace.read_text().split()[0])
                os.kill(pid, signal.SIGSTOP)
                try:
                    calls = backend.open_tasks.values()
                    address = next(iter({call.worker for call in calls if call.worker}))
                    await backend.client.retire_workers([address], close_workers=False, remove=True)
                    (tmp_path / "trace.cut off").touch()
                    assert await future != pid
                finally:
                    os.kill(pid, signal.SIGCONT)


async def test_the_start_times_out_if_a_worker_hangs(tmp_path: Path) -> None:
    with foreign(tmp_path, workers=1, tls=False, options=("--no-nanny",)) as there:
        worker = there["processes"][1]
        worker.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(BackendUnavailableError, match="did not answer within 5 s"):
                await DaskExecutionBackend(scheduler_file=there["scheduler_file"], timeout=5)
        finally:
            worker.send_signal(signal.SIGCONT)


async def test_a_hanging_worker_does_not_hide_tasks_running_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one worker does not answer, it stays unknown which worker runs a task."""
    monkeypatch.setattr("rhapsody_dask.backend.ANSWER_TIMEOUT", 2.0)
    with foreign(tmp_path, tls=False, options=("--no-nanny",)) as there:
        async with asyncio.timeout(80):
            backend = await DaskExecutionBackend(scheduler_file=there["scheduler_file"])
            async with WorkflowEngine.create(backend=backend) as flow:

                @flow.function_task
                def hold(gate: str) -> int:
                    while not os.path.exists(gate):
                        time.sleep(0.05)
                    return os.getpid()

                @flow.function_task
                def where() -> int:
                    return os.getpid()

                gate = tmp_path / "gate"
                future = hold(str(gate))
                await _until(lambda: future.state is TasksMainStates.RUNNING)
                other = await where()
                os.kill(other, signal.SIGSTOP)
                try:
                    future.cancel()
                    await _until(lambda: backend._stopping)
                    await _until(lambda: not backend._stopping)
                    assert len(backend.still_running) == 1
                    gate.touch()
                    await future.ended()
                    assert backend.still_running == []
                finally:
                    os.kill(other, signal.SIGCONT)
