"""The end of an engine: everything is settled, and no work that can be stopped goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody import (
    LocalExecutionBackend,
    NoopExecutionBackend,
    TasksMainStates,
    WorkflowEngine,
)
from rhapsody_testing import EventRecorder
from tests._support.engine_fixtures import engine
from tests._support.machine import alive
from tests._support.scripted import (
    RUNS_ALL,
    Inline,
    ManualClock,
    Scripted,
    Stubborn,
    turns,
    until,
    within,
)

pytestmark = pytest.mark.asyncio

UNSTOPPABLE = dataclasses.replace(RUNS_ALL, cancel_functions="none", cancel_async_functions="none")


async def test_shutdown_cancels_what_is_unfinished_and_shuts_the_backend_down() -> None:
    flow = await WorkflowEngine.create(backend := Scripted())

    @flow.function_task
    def part(x: Any = None) -> Any: ...

    @flow.block
    async def block() -> None:
        await asyncio.Event().wait()

    @flow.executable_task(service=True)
    async def server() -> str:
        return "serve"

    finished, running, submitted = part(), part(), part()
    waiting, whole, served = part(submitted), block(), server()
    tasks = [await backend.next() for _ in range(4)]
    backend.done(tasks[0], 1)
    backend.runs(tasks[1])
    backend.ready(next(task for task in tasks if task["is_service"]), "address")
    assert await within(served) == "address"
    await within(flow.shutdown())
    assert await finished == 1
    assert await served == "address"
    for future in (running, submitted, waiting, whole):
        assert future.cancelled()
        assert future.state is TasksMainStates.CANCELED
        await within(future.ended())
    await within(served.ended())
    assert str(backend.state()) == "shutdown"
    assert sorted(backend.stops) == sorted(task["uid"] for task in tasks[1:])
    assert flow.summary is not None
    assert flow.summary.still_running == ()
    assert not flow.components


async def test_the_summary_has_what_backends_tell_of_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Tells(Scripted):
        def account(self) -> dict[str, Any]:
            return {"state": str(self.state())}

    class Fails(Scripted):
        def account(self) -> dict[str, Any]:
            raise RuntimeError("no account")

    flow = await WorkflowEngine.create(
        backends={"one": Tells(), "two": Scripted(), "three": Fails()}
    )
    await within(flow.shutdown())
    assert flow.summary is not None
    assert flow.summary.backends == {"one": {"state": "shutdown"}}
    assert "backend 'three'" in caplog.text


async def test_shutdown_twice_and_at_once_is_harmless() -> None:
    events = EventRecorder()
    flow = await WorkflowEngine.create(Scripted(), observers=[events])

    @flow.function_task
    def part() -> Any: ...

    part()
    await within(asyncio.gather(*[flow.shutdown() for _ in range(3)]))
    summary = flow.summary
    await within(flow.shutdown())
    assert flow.summary is summary
    assert len(events.finished) == 1


async def test_a_backend_that_is_skipped_serves_another_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Scripted() as backend:
        first = await WorkflowEngine.create(backend)

        @first.function_task
        def part() -> Any: ...

        stopped = part()
        task = await backend.next()
        await within(first.shutdown(skip_execution_backend=True))
        assert "running (skip_execution_backend=True): 'scripted'" in caplog.text
        assert stopped.cancelled()
        assert backend.stops == [task["uid"]]
        assert str(backend.state()) == "running"

        second = await WorkflowEngine.create(backend)

        @second.function_task
        def again() -> Any: ...

        future = again()
        backend.done(await backend.next(), 2)
        assert await within(future) == 2
        await within(second.shutdown(skip_execution_backend=True))


async def test_a_task_called_after_shutdown_is_an_error_at_once() -> None:
    flow = await WorkflowEngine.create(Inline())

    @flow.function_task
    def part() -> Any: ...

    @flow.executable_task
    async def tool() -> Any: ...

    @flow.block
    async def block() -> None: ...

    await within(flow.shutdown())
    for task in (part, tool, block):
        with pytest.raises(RuntimeError, match="shut down"):
            task()


async def test_a_task_called_while_it_shuts_down_is_an_error_at_once() -> None:
    flow = await WorkflowEngine.create(Inline())
    raised: list[BaseException] = []

    @flow.function_task
    async def part() -> Any: ...

    @flow.block
    async def block() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                part()
            except RuntimeError as error:
                raised.append(error)

    block()
    await turns()
    await within(flow.shutdown())
    assert len(raised) == 1
    assert "shut down" in str(raised[0])


async def test_leaving_the_context_shuts_down_and_the_error_goes_on() -> None:
    async def main(backend: Scripted) -> None:
        async with WorkflowEngine.create(backend) as flow:

            @flow.function_task
            def part() -> Any: ...

            futures.append(part())
            raise LookupError("own")

    futures: list[asyncio.Future[Any]] = []
    with pytest.raises(LookupError, match="own"):
        await main(backend := Scripted())
    (future,) = futures
    assert future.cancelled()
    assert str(backend.state()) == "shutdown"


async def test_what_could_not_be_stopped_is_in_the_summary(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Scripted(capabilities=UNSTOPPABLE)
    backend.stopping = None
    events = EventRecorder()
    flow = await WorkflowEngine.create(backend, observers=[events])

    @flow.function_task
    def part() -> Any: ...

    future = part()
    backend.runs(task := await backend.next())
    await until(lambda: future.state is TasksMainStates.RUNNING)
    await within(flow.shutdown())
    assert future.cancelled()
    await within(future.ended())
    assert flow.summary is not None
    assert flow.summary.still_running == (task["uid"],)
    assert [summary for _, summary in events.finished] == [flow.summary]
    assert any(task["uid"] in record.getMessage() for record in caplog.records)
    backend.done(task, "much too late")
    await turns()
    assert future.cancelled()


async def test_a_backend_that_fails_to_shut_down_keeps_nothing_else_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Scripted):
        async def shutdown(self) -> None:
            raise OSError("no connection")

    broken, good = Broken(name="broken"), Scripted(name="good")
    flow = await WorkflowEngine.create([broken, good])
    await within(flow.shutdown())
    assert str(good.state()) == "shutdown"
    assert flow.summary is not None
    assert "no connection" in " ".join(flow.summary.problems)
    assert "broken" in " ".join(flow.summary.problems)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_cancelling_the_call_does_not_cancel_the_shutdown() -> None:
    class Slow(Scripted):
        gate_of_the_end: asyncio.Event

        async def stop(self) -> None:
            await self.gate_of_the_end.wait()

    backend = Slow()
    backend.gate_of_the_end = asyncio.Event()
    flow = await WorkflowEngine.create(backend)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flow.shutdown(), 0.05)
    backend.gate_of_the_end.set()
    await within(flow.shutdown())
    assert str(backend.state()) == "shutdown"


async def test_a_submission_that_hangs_does_not_hang_the_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rhapsody.engine.runtime.GRACE", 0.2)
    flow = await WorkflowEngine.create(backend := Scripted())
    backend.gate.clear()

    @flow.function_task
    def part() -> Any: ...

    future = part()
    await backend.next()
    waiting = part()
    await within(flow.shutdown(), 60)
    assert future.cancelled()
    assert waiting.cancelled()
    assert len(backend.tasks) == 1


async def test_a_task_that_waits_for_its_retry_is_cancelled() -> None:
    clock = ManualClock()
    flow = await WorkflowEngine.create(backend := Scripted(), clock=clock)

    @flow.function_task(retries=rhapsody.RetryPolicy(attempts=1, wait=10))
    def part() -> Any: ...

    future = part()
    backend.failed(await backend.next(), OSError())
    await turns()
    await within(flow.shutdown())
    assert future.cancelled()
    assert clock.waiting == 0


async def test_sync_blocks_that_wait_are_woken_and_their_threads_end() -> None:
    before = set(threading.enumerate())
    flow = await WorkflowEngine.create(Scripted())
    seen: list[str] = []

    @flow.function_task
    def part() -> Any: ...

    @flow.block
    def block() -> None:
        try:
            rhapsody.wait(part())
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    futures = [block() for _ in range(3)]
    await until(lambda: len(flow.components) == 6)
    await within(flow.shutdown())
    assert all(future.cancelled() for future in futures)
    await within(asyncio.to_thread(_join, before))
    assert seen == ["cancelled"] * 3


def _join(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("asyncio_"):  # asyncio's own, which stay with the loop
            thread.join(10)
            assert not thread.is_alive()


async def test_shutdown_inside_a_block_ends_the_engine() -> None:
    flow = await WorkflowEngine.create(backend := Scripted())

    @flow.block
    async def block() -> None:
        await flow.shutdown()

    future = block()
    await within(asyncio.wait([future]), 60)
    await within(flow.shutdown(), 60)
    assert future.done()
    assert str(backend.state()) == "shutdown"


async def test_the_processes_of_executables_have_ended_after_shutdown(tmp_path: Path) -> None:
    flow = await WorkflowEngine.create()

    @flow.executable_task
    async def sleeper(n: int) -> str:
        pids = tmp_path / f"pids{n}"
        return f"sleep 1000 & echo $$ $! > {pids}.tmp; mv {pids}.tmp {pids}; wait"

    futures = [sleeper(n) for n in range(2)]
    files = [tmp_path / f"pids{n}" for n in range(2)]
    async with asyncio.timeout(20):
        while not all(file.exists() for file in files):  # noqa: ASYNC110 - written by the tasks
            await asyncio.sleep(0.01)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(alive(pid) for pid in pids)
    await within(flow.shutdown())
    assert all(future.cancelled() for future in futures)
    assert not any(alive(pid) for pid in pids)


async def test_an_engine_without_shutdown_does_not_delay_the_program(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, time
            from rhapsody import WorkflowEngine
            async def main():
                flow = await WorkflowEngine.create()
                @flow.function_task
                def long():
                    time.sleep(1000)
                @flow.function_task(timeout=0.2)
                def over_time():
                    time.sleep(1000)
                first = long()
                try:
                    await over_time()
                except TimeoutError:
                    print("timed out", flush=True)
            asyncio.run(main())
            print("end", flush=True)
        """)
    )
    done = await within(
        asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            timeout=50,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        ),
        60,
    )
    assert done.stdout.splitlines() == ["timed out", "end"], done.stderr
    assert done.returncode == 0, done.stderr


async def test_the_stats_and_the_summary_add_up() -> None:
    flow = await WorkflowEngine.create(Inline())

    @flow.function_task
    def good(x: Any = None) -> int:
        return 1

    @flow.function_task
    def bad() -> int:
        raise LookupError

    @flow.function_task
    async def forever() -> None:
        await asyncio.Event().wait()

    failed = bad()
    futures: list[asyncio.Future[Any]] = [
        good(),
        good(good()),
        failed,
        good(failed),
        forever(),
        forever(),
    ]
    await until(lambda: sum(future.done() for future in futures) == 4)
    await within(flow.shutdown())
    assert flow.summary is not None
    stats = flow.summary.stats
    assert (stats.tasks, stats.done, stats.failed, stats.cancelled) == (7, 3, 2, 2)
    assert flow.summary.uid == flow.uid
    assert flow.summary.seconds >= 0
    assert isinstance(failed.exception(), LookupError)
    assert futures[3].exception() is not None


async def test_the_duration_includes_the_start_of_the_backend() -> None:
    clock = ManualClock()

    class Slow(Scripted):
        def __await__(self) -> Any:
            clock.now += 30.0
            return super().__await__()

    flow = await WorkflowEngine.create(Slow(), clock=clock)
    clock.now += 10.0
    await flow.shutdown()
    assert flow.summary is not None
    assert flow.summary.seconds == 40.0


async def test_a_finished_future_keeps_its_result_after_the_end() -> None:
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        await within(future)
    assert await future == "Dummy Output"
    assert future.state is TasksMainStates.DONE
    assert future.cancel() is False


async def test_tasks_of_an_engine_whose_backend_another_one_shut_down_say_so() -> None:
    backend = await LocalExecutionBackend()
    async with engine(backend) as flow:
        other = await WorkflowEngine.create(backend, handle_signals=False)
        begun = asyncio.Event()

        @flow.function_task(resources={"cores": 0})
        async def long(begun: Callable[[], object]) -> None:
            begun()
            await asyncio.Event().wait()

        running = long(partial(flow.loop.call_soon_threadsafe, begun.set))
        after = long(running)
        await begun.wait()
        await other.shutdown()
        with pytest.raises(asyncio.CancelledError, match="another engine"):
            await running
        with pytest.raises(asyncio.CancelledError, match="'long' was canceled"):
            await after


@pytest.mark.parametrize("stops", [True, False])
async def test_a_shutdown_that_keeps_the_backend_waits_a_while_for_work_to_stop(
    stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.engine.runtime.GRACE", 20 if stops else 0.1)
    async with Stubborn() as backend:
        flow = await WorkflowEngine.create(backend)
        future = flow.function_task(int)()
        backend.runs(task := await backend.next())
        ending = asyncio.create_task(flow.shutdown(skip_execution_backend=True))
        await until(lambda: backend.stops)
        assert future.cancelled()
        if stops:
            await turns()
            assert not ending.done()
            backend.stopped(task)
        await within(ending)
        assert flow.summary is not None
        assert len(flow.summary.still_running) == (not stops)
