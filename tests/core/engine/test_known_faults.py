"""Faults seen in systems of this family; none of them may come here. One test for each."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody import BackendError, InputFile, RhapsodyError, WorkflowEngine, hookimpl
from rhapsody.plugins.specs import Recorded
from rhapsody.task import TaskDescription
from rhapsody.testing import EventRecorder
from tests._support.scripted import Inline, Scripted, until, within

pytestmark = pytest.mark.asyncio


async def test_completions_before_submit_tasks_returned_are_not_dropped() -> None:
    class Eager(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            for position, task in enumerate(tasks):
                if position % 2:
                    self.done(task, task["args"][0])
                else:
                    thread = threading.Thread(target=self.done, args=(task, task["args"][0]))
                    thread.start()
                    thread.join()
            await super().submit_tasks(tasks)
            await asyncio.sleep(0.05)

    async with WorkflowEngine.create(Eager()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        assert await within(asyncio.gather(*flow.map(part, range(100)))) == list(range(100))


async def test_a_completion_from_a_backends_thread_is_noticed_at_once() -> None:
    class Threaded(Scripted):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            await super().submit_tasks(tasks)
            for task in tasks:
                threading.Thread(target=self.done, args=(task, task["args"][0] + 1)).start()

    async with WorkflowEngine.create(Threaded()) as flow:

        @flow.function_task
        def part(x: int) -> Any: ...

        began = time.monotonic()
        value = 0
        for _ in range(50):  # each with an idle loop in between
            value = await within(part(value))
        assert value == 50
        assert time.monotonic() - began < 5  # a second each would be 50


async def test_the_same_future_passed_twice_does_not_hang() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def part(*args: Any, **kwargs: Any) -> Any:
            return len(args) + len(kwargs)

        first = part(0)
        assert await within(part(first, first, [first, {"x": first}], last=first)) == 4


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_builder_that_raises_does_not_leave_its_future_pending(asynchronous: bool) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task
        async def asynchronous_builder() -> str:
            await asyncio.sleep(0)
            raise LookupError("no command")

        @flow.executable_task
        def synchronous_builder() -> str:
            raise LookupError("no command")

        future = asynchronous_builder() if asynchronous else synchronous_builder()
        with pytest.raises(LookupError, match="no command"):
            await within(future)
        assert backend.tasks == []
        await until(lambda: not flow.components)


async def test_a_chain_of_30_ms_tasks_takes_30_ms_a_link() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def link(x: int) -> int:
            time.sleep(0.03)
            return x + 1

        await within(link(0))
        began = time.monotonic()
        for _ in range(20):
            await asyncio.to_thread(time.sleep, 0.03)
        bare = time.monotonic() - began
        began = time.monotonic()
        future: Any = 0
        for _ in range(20):
            future = link(future)
        assert await within(future) == 20
        assert time.monotonic() - began < 3 * bare


async def test_a_dependent_of_a_cancelled_task_is_cancelled_at_once() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        backend.stopping = None

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        dependents = [part(first) for _ in range(3)]
        backend.runs(task := await backend.next())
        first.cancel()
        await asyncio.sleep(0)
        assert all(future.cancelled() for future in dependents)
        backend.stopped(task)


async def test_two_engines_on_one_backend_do_not_mix_their_uids() -> None:
    async with (
        Scripted() as backend,
        WorkflowEngine.create(backend) as one,
        WorkflowEngine.create(backend) as two,
    ):
        futures = []
        for flow, label in ((one, "one"), (two, "two")):

            @flow.function_task
            def part(label: str, number: int) -> Any: ...

            futures += [part(label, number) for number in range(20)]
        tasks = [await backend.next() for _ in futures]
        assert len({task["uid"] for task in tasks}) == 40
        for task in reversed(tasks):
            backend.done(task, "{} {}".format(*task["args"]))
        expected = [f"{label} {number}" for label in ("one", "two") for number in range(20)]
        assert await within(asyncio.gather(*futures)) == expected
        assert (one.stats.unknown, two.stats.unknown) == (0, 0)
        await one.shutdown(skip_execution_backend=True)


async def test_an_error_in_the_engine_is_not_a_bare_cancelled_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        running = part()
        waiting = part(running)
        await backend.next()

        def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("a fault of ours")

        from rhapsody.engine.dispatch import Dispatcher

        monkeypatch.setattr(Dispatcher, "_take", broken)
        last = part()
        await within(asyncio.wait([running, waiting, last]))
        for future in (running, last):
            error = future.exception()
            assert isinstance(error, BackendError)
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert "a fault of ours" in str(error)
        assert isinstance(waiting.exception(), RhapsodyError)
        assert "a fault of ours" in str(waiting.exception())
        with pytest.raises(RuntimeError):
            part()
        monkeypatch.undo()


async def test_no_quoting_is_lost_between_a_command_and_the_shell() -> None:
    words = [
        "two words",
        'a "quoted" one',
        "it's",
        "$HOME",
        "*",
        "back\\slash",
        "",
        "new\nline",
        "ü",
    ]
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        async def shell() -> str:
            return 'printf \'<%s>\' "two  words" \'a "b"\' "it\'s" \'$HOME\' a\\ b; echo "$((1+1))"'

        @flow.executable_task
        async def listed() -> list[str]:
            return [sys.executable, "-c", "import sys; print(repr(sys.argv[1:]))", *words]

        assert await within(shell()) == '<two  words><a "b"><it\'s><$HOME><a b>2\n'
        assert await within(listed()) == f"{words!r}\n"


async def test_an_input_files_directory_is_not_lost(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "data.txt").write_text(name)
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def read(file: InputFile) -> str:
            return Path(os.fspath(file)).read_text()

        @flow.executable_task
        async def show(file: InputFile) -> str:
            return f"cat {file.filename}"

        files = [InputFile(str(tmp_path / "deep" / name / "data.txt")) for name in ("one", "two")]
        results = await within(asyncio.gather(*flow.map(read, files), *flow.map(show, files)))
        assert results == ["one", "two", "one", "two"]


async def test_a_task_called_after_shutdown_does_not_hang() -> None:
    flow = await WorkflowEngine.create(Inline())

    @flow.function_task
    def part() -> Any: ...

    await within(flow.shutdown())
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="shut down"):
        part()
    assert time.monotonic() - began < 1


async def test_ctrl_c_is_not_swallowed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio
            from rhapsody import WorkflowEngine
            async def main():
                async with WorkflowEngine.create() as flow:
                    @flow.function_task
                    async def forever():
                        print("ready", flush=True)
                        while True:
                            try:
                                await asyncio.sleep(1000)
                            except asyncio.CancelledError:
                                pass
                    while True:
                        try:
                            await forever()
                        except Exception:
                            pass
            asyncio.run(main())
        """)
    )

    def run() -> int:
        with subprocess.Popen(
            [sys.executable, str(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            try:
                return process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise

    assert await within(asyncio.to_thread(run), 60) == -signal.SIGINT


@pytest.mark.parametrize("way", ["wait_for", "timeout"])
async def test_a_time_limit_around_a_running_thread_task_is_kept(way: str) -> None:
    started, leave = threading.Event(), threading.Event()
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def long() -> str:
            started.set()
            leave.wait(20)
            return "the result"

        future = long()
        await within(asyncio.to_thread(started.wait, 20))
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                await (asyncio.wait_for(future, 0.1) if way == "wait_for" else within(future, 0.1))
            assert time.monotonic() - began < 5
            assert future.cancelled()
            assert not leave.is_set()
        finally:
            leave.set()
        await within(future.ended())
        assert future.cancelled()


async def test_a_service_made_ready_by_a_daemon_thread_wakes_an_idle_loop() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        future = server()
        task = await backend.next()
        go = threading.Event()

        def ready(service: Any, *_: Any) -> None:
            def later() -> None:
                go.wait(20)
                time.sleep(0.2)  # the loop has fallen asleep by now
                service.set_result("address")

            threading.Thread(target=later, daemon=True).start()

        backend.report(task, "RUNNING", ready)
        began = time.monotonic()
        go.set()
        assert await within(future) == "address"  # nothing else wakes the loop before 20 s
        assert time.monotonic() - began < 10


async def test_sync_blocks_nested_deeper_than_any_pool_do_not_deadlock() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def leaf() -> int:
            return 1

        @flow.block
        def nested(depth: int) -> int:
            if depth == 0:
                return rhapsody.wait(leaf())
            return sum(rhapsody.wait(part) for part in [nested(depth - 1), nested(depth - 1)])

        assert await within(nested(5)) == 32


async def test_max_pending_of_one_on_a_diamond_with_a_service_does_not_deadlock() -> None:
    async with WorkflowEngine.create(max_pending=1) as flow:

        @flow.executable_task(service=True, ready="stdout:at (.*)")
        async def server() -> str:
            return "echo at port; exec sleep 1000"

        @flow.function_task
        def part(address: str, *more: Any) -> str:
            return address + "".join(more)

        @flow.block
        async def block(address: str, *more: Any) -> str:
            return await part(address, *more)

        service = server()
        left, right = part(service, "left"), block(service, "right")
        assert await within(part(service, left, right)) == "portportleftportright"
        assert service.cancel() is True
        await within(service.ended())


async def test_a_thousand_failures_do_not_print_a_thousand_records(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def broken(x: int) -> None:
            raise LookupError(x)

        await within(asyncio.wait(flow.map(broken, range(1000))))
        gc.collect()
        await asyncio.sleep(0)
    gc.collect()
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(records) == 1
    assert "1000" in records[0].getMessage()
    assert "never retrieved" not in caplog.text + capfd.readouterr().err


async def test_one_raising_observer_does_not_silence_the_next() -> None:
    class Raising:
        @hookimpl
        def rhapsody_task_events(self, events: Any) -> None:
            raise OSError("broken plugin")

    before, after = EventRecorder(), EventRecorder()
    async with WorkflowEngine.create(Inline(), observers=[before, Raising(), after]) as flow:

        @flow.function_task
        def part() -> int:
            return 1

        for _ in range(3):
            await within(part())
    assert before.events
    assert before.events == after.events


async def test_a_recorded_none_is_not_taken_for_no_result() -> None:
    class Memory:
        @hookimpl
        def rhapsody_lookup_results(self, tasks: Sequence[Any]) -> list[Recorded]:
            return [Recorded(None) for _ in tasks]

    async with WorkflowEngine.create(backend := Inline(), observers=[Memory()]) as flow:

        @flow.function_task
        def part() -> str:
            return "ran again"

        assert await within(part()) is None
        assert backend.ran == []
