"""Tests of the recorder: what a run's record contains, while it runs and afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    InputFile,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputFile,
    WorkflowEngine,
)
from rhapsody.builtin.record.recorder import RecordFile, RunRecorder
from rhapsody.history.reader import RecordReader, RunHistory, TaskRun, read_run
from rhapsody.sdk.runs import runs_in
from rhapsody.states import TasksMainStates
from tests._support.scripted import Inline, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio

PENDING, SUBMITTED, RUNNING = (
    TasksMainStates.PENDING,
    TasksMainStates.SUBMITTED,
    TasksMainStates.RUNNING,
)
DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED


def latest(directory: Path) -> RunHistory:
    """The record of the newest run in a directory."""
    return read_run(directory / ".rhapsody" / "latest")


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def one(history: RunHistory, name: str) -> TaskRun:
    """The only task with a name."""
    (found,) = (task for task in history.tasks.values() if task.name == name)
    return found


def use_full_disk(file: RecordFile) -> None:
    """Let all further writes to a record fail."""
    assert file._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._file)
    os.close(full)


def close_in_child(recorder: RunRecorder) -> None:
    """End the recording of an engine in a forked child."""
    child = os.fork()
    if child == 0:
        recorder.rhapsody_workflow_not_started()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


async def until_read(reader: RecordReader, condition: Any) -> RunHistory:
    """Follow a record until a condition holds."""
    async with asyncio.timeout(60):
        while True:
            reader.update()
            if condition(history := reader.history()):
                return history
            await asyncio.sleep(0.01)


async def test_a_successful_run_is_recorded(here: Path) -> None:
    async with WorkflowEngine.create(Inline(), record=True, retries=2) as flow:

        @flow.function_task(name="label", priority=2)
        def add(x: int, y: str = "") -> int:
            return x

        @flow.block
        async def around(x: int) -> int:
            async with flow.scope("inside"):
                return await add(x)

        await add(add(1, y="text"))
        await around(7)
        uid = flow.uid
    history = latest(here)
    assert history.problems == ()
    assert history.run.outcome == "done"
    assert history.run.pid == os.getpid()
    assert history.run.cwd == str(here)
    assert history.run.packages["rhapsody-core"]
    assert history.run.stats == {"tasks": 4, "done": 4}
    assert history.run.seconds is not None
    engine = history.engines[uid]
    assert [backend.name for backend in engine.backends] == ["inline"]
    assert engine.options["record"] is True
    assert engine.outcome == "done"
    first, second, block, inner = history.tasks.values()
    assert first.call == "label(1, y='text')"
    assert first.settings == {"priority": 2}
    assert second.call == "label(<task.000001>)"
    assert second.dependencies == ("task.000001",)
    assert (block.kind, block.state) == ("block", DONE)
    assert (inner.block, inner.scope) == ("block.000001", "inside")
    (attempt,) = first.attempts
    assert (attempt.number, attempt.state, attempt.backend) == (1, DONE, "inline")
    assert attempt.submitted is not None
    assert attempt.waited is not None
    assert attempt.seconds is not None
    path = here / ".rhapsody" / "latest" / "run.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_durations_are_right_if_the_clock_is_set_during_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    now = time.time
    async with WorkflowEngine.create(LocalExecutionBackend(), record=True) as flow:

        @flow.function_task
        def part() -> None:
            monkeypatch.setattr("time.time", lambda: now() + step)

        @flow.executable_task
        def other() -> str:
            return "true"

        await part()
        await other()
    history = latest(here)
    assert history.run.seconds is not None
    assert 0 < history.run.seconds < 60
    (engine,) = history.engines.values()
    assert engine.started is not None
    assert engine.ended is not None
    assert 0 < engine.ended - engine.started < 60
    for task in history.tasks.values():
        (attempt,) = task.attempts
        assert attempt.started is not None
        assert attempt.ended is not None
        assert history.run.started is not None
        assert history.run.started <= attempt.started <= attempt.ended
        assert attempt.ended - history.run.started < 60


def block_loop(gate: Path, until: Path) -> float:
    """Create a file, wait for another one without giving the loop a turn; return the time."""
    gate.touch()
    start = time.monotonic()
    while not until.exists():
        assert time.monotonic() < start + 60
    return time.time()


@pytest.mark.parametrize("threads", ["worker", "shared"])
async def test_the_times_of_functions_are_those_of_their_calls(here: Path, threads: str) -> None:
    """Even if the loop is busy when a function ends."""

    def work(file: str, gate: str) -> None:
        Path(file).touch()
        while not os.path.exists(gate):
            time.sleep(0.001)

    async def coroutine(file: str, gate: str) -> None:
        work(file, gate)

    first, second, gate = (str(here / name) for name in ("first", "second", "gate"))
    backend = LocalExecutionBackend(resources={"cores": 1})
    async with WorkflowEngine.create(backend, record=True) as flow:
        task: Any
        if threads == "shared":
            task = flow.function_task(resources={"cores": 0})(coroutine)
        else:
            task = flow.function_task(work)
        futures = [task(first, gate), task(second, second)]
        await until(lambda: os.path.exists(first))
        busy = block_loop(Path(gate), Path(second))
        await asyncio.gather(*futures)
    (attempt,) = latest(here).tasks["task.000001"].attempts
    times: list[Any] = [attempt.submitted, attempt.started, attempt.ended, busy]
    assert times == sorted(times)


async def test_what_runs_and_what_waits_is_visible_during_the_run(here: Path) -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend, record="record.jsonl") as flow:
        task = flow.function_task(name="part")(lambda *_: None)
        first, second = task(1), task(2)
        third = task(first)
        running = await backend.next()
        running["worker"] = "node17"
        backend.runs(running)
        reader = RecordReader(here / "record.jsonl")
        history = await until_read(
            reader, lambda found: first.uid in found.tasks and found.tasks[first.uid].last
        )
        assert history.run.outcome == "running"
        assert history.tasks[first.uid].state is RUNNING
        last = history.tasks[first.uid].last
        assert last is not None
        assert last.worker == "node17"
        assert history.tasks[second.uid].state is SUBMITTED
        assert history.tasks[third.uid].state is PENDING
        backend.done(running)
        await within(first)
        history = await until_read(reader, lambda found: found.tasks[first.uid].ended)
        await until(lambda: len(backend.tasks) == 3)
        for each in backend.tasks[1:]:
            backend.done(each)
    reader.update()
    assert reader.history() == read_run(here / "record.jsonl")
    assert reader.history().run.outcome == "done"


async def test_each_attempt_has_its_error_and_its_worker(here: Path) -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend, record=True, retries=1) as flow:
        task = flow.function_task(name="part")(lambda: None)
        future = task()
        dependent = flow.function_task(name="after")(lambda _: None)(future)
        for node in ("one", "two"):
            description = await backend.next()
            description["worker"] = node
            backend.runs(description)
            backend.failed(description, ValueError(f"on {node}"))
        with pytest.raises(DependencyFailureError):
            await within(dependent)
    history = latest(here)
    part, after = one(history, "part"), one(history, "after")
    assert [(each.number, each.worker, each.retried) for each in part.attempts] == [
        (1, "one", True),
        (2, "two", False),
    ]
    assert [str(each.error) for each in part.attempts] == [
        "ValueError: on one",
        "ValueError: on two",
    ]
    assert part.state is FAILED
    assert after.skipped
    assert after.attempts[0].error is not None
    assert after.attempts[0].error.caused_by == (part.uid,)
    assert history.run.stats["skipped"] == 1


async def test_an_error_has_the_last_frames_of_its_traceback(here: Path) -> None:
    async with WorkflowEngine.create(Inline(), record=True) as flow:

        @flow.function_task
        def fails() -> None:
            raise KeyError("temp")

        with pytest.raises(KeyError):
            await fails()
    (attempt,) = one(latest(here), "fails").attempts
    assert attempt.error is not None
    assert attempt.error.kind == "KeyError"
    assert any("in fails" in line for line in attempt.error.traceback)
    assert attempt.error.traceback[-1].strip() == 'raise KeyError("temp")'


async def test_programs_and_their_files_are_recorded(here: Path) -> None:
    async with WorkflowEngine.create(record=True) as flow:

        @flow.executable_task
        async def generate(out: OutputFile) -> str:
            return f"echo printed; printf 12345 > {out}"

        @flow.executable_task
        async def copy(given: InputFile, out: OutputFile) -> str:
            return f"cat {given} > {out}; exit 3"

        made = generate(OutputFile("numbers.txt"))
        with pytest.raises(Exception, match="exit code 3"):
            await copy(made.file("numbers.txt"), OutputFile("copy.txt"))
    history = latest(here)
    (good,), (bad,) = one(history, "generate").attempts, one(history, "copy").attempts
    assert (good.exit_code, good.stdout) == (0, "printed\n")
    ((name, path, size),) = [(each.name, each.path, each.size) for each in good.outputs]
    assert (name, size) == ("numbers.txt", 5)
    assert path is not None
    assert Path(path).name == "numbers.txt"
    assert bad.exit_code == 3
    assert [each.name for each in bad.inputs] == ["numbers.txt"]
    assert bad.sandbox is not None
    assert bad.output_path("stdout") == str(Path(bad.sandbox) / ".rhapsody.stdout")


async def test_a_backend_may_report_the_resources_that_were_used(here: Path) -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend, record=True) as flow:
        future = flow.function_task(name="part")(lambda: None)()
        task = await backend.next()
        backend.runs(task)
        task["usage"] = {"cpu_seconds": 1.5, "peak_memory": 4096}
        backend.done(task)
        await within(future)
        assert future.usage == {"cpu_seconds": 1.5, "peak_memory": 4096}
    (attempt,) = one(latest(here), "part").attempts
    assert attempt.usage == {"cpu_seconds": 1.5, "peak_memory": 4096}


async def test_resources_chosen_for_an_attempt_are_recorded_with_it(here: Path) -> None:
    async with WorkflowEngine.create(Scripted(), record=True) as flow:
        backend: Any = flow.backend

        def grow(attempt: int) -> dict[str, Any]:
            return {"memory": attempt << 30}

        task = flow.function_task(name="part", resources=grow, retries=1)(lambda: None)
        future = task()
        backend.failed(await backend.next(), MemoryError())
        backend.done(await backend.next())
        await within(future)
    part = one(latest(here), "part")
    assert part.resources == {}
    assert "grow" in part.settings["resources"]
    assert [each.resources for each in part.attempts] == [{"memory": 1 << 30}, {"memory": 2 << 30}]


async def test_canceled_tasks_and_services_are_recorded(here: Path) -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend, record=True) as flow:
        waiting = flow.function_task(name="waits")(lambda: None)()
        await backend.next()
        waiting.cancel()
        service = flow.executable_task(name="serves", service=True)(lambda: "serve")()
        backend.ready(await backend.next())
        await within(service)
        service.cancel()
        await within(service.ended())
        await turns()
    history = latest(here)
    assert one(history, "waits").state is CANCELED
    assert one(history, "serves").state is DONE
    assert one(history, "serves").settings == {"service": True}


async def test_engines_of_one_process_share_a_record(here: Path) -> None:
    async with (
        WorkflowEngine.create(Inline("first"), record=True) as one_,
        WorkflowEngine.create(Inline("second"), record=True) as two,
    ):
        for flow in (one_, two):
            await flow.function_task(name="part")(lambda x: x)(1)
    async with WorkflowEngine.create(Inline("third"), record=True) as three:
        await three.function_task(name="part")(lambda x: x)(1)
    (name,) = runs_in(here / ".rhapsody")
    history = read_run(here / ".rhapsody" / name)
    assert [*history.engines] == [one_.uid, two.uid, three.uid]
    assert {*history.tasks} == {
        "task.000001",
        f"{two.uid}.task.000001",
        f"{three.uid}.task.000001",
    }
    assert {task.uid for task in history.tasks.values()} == {"task.000001"}
    assert history.run.stats == {"tasks": 3, "done": 3}
    assert history.run.backends == ("first", "second", "third")
    assert history.run.outcome == "done"


async def test_a_path_is_replaced_by_the_next_process_only(here: Path) -> None:
    path = here / "record.jsonl"
    path.write_text("an earlier record\n")
    for _ in range(2):
        async with WorkflowEngine.create(NoopExecutionBackend(), record=path) as flow:
            await flow.function_task(lambda: None)()
    assert len(read_run(path).engines) == 2
    assert not (here / ".rhapsody").exists()


async def test_a_dry_run_is_not_recorded(here: Path) -> None:
    async with WorkflowEngine.create(record=True, dry_run=True) as flow:
        await flow.function_task(lambda: None)()
    assert not (here / ".rhapsody").exists()


async def test_a_failed_run_is_recorded_as_failed(here: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with WorkflowEngine.create(Inline(), record=True) as flow:
            await flow.function_task(lambda: 1 / 0)()
    history = latest(here)
    assert history.run.outcome == "failed"
    assert [engine.outcome for engine in history.engines.values()] == ["failed"]


async def test_secrets_are_masked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_API_TOKEN", "value-of-process")
    monkeypatch.setattr(sys, "argv", ["p.py", "--token", "argument", "--key=other", "--safe", "x"])
    async with WorkflowEngine.create(record=True, keep_sandboxes="none") as flow:

        @flow.executable_task(environment={"PLAIN": "value-of-task"}, stdin="value-of-input")
        async def shows(text: str) -> str:
            return "echo $PLAIN $OUR_API_TOKEN; echo $PLAIN >&2; exit 1"

        with pytest.raises(Exception, match="exit code 1"):
            await shows("value-of-process and value-of-task")
    text = (here / ".rhapsody" / "latest" / "run.jsonl").read_text()
    for secret in ("value-of-process", "value-of-task", "value-of-input", "argument", "other"):
        assert secret not in text.replace('"arguments"', "")
    history = latest(here)
    task = one(history, "shows")
    assert task.call == "shows('<OUR_API_TOKEN> and <PLAIN>')"
    assert task.attempts[0].stdout == "<PLAIN> <OUR_API_TOKEN>\n"
    assert task.settings["environment"] == ["PLAIN"]
    assert history.run.arguments == ("--token", "<token>", "--key=<key>", "--safe", "x")


async def test_no_part_of_a_secret_is_left_where_long_texts_are_cut(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "0123456789abcdef"
    monkeypatch.setenv("OUR_API_TOKEN", secret)
    backend = Scripted()
    async with WorkflowEngine.create(backend, record=True) as flow:
        futures = [flow.function_task(name="part")(lambda: None)() for _ in range(40)]
        for number, future in enumerate(futures):
            task = await backend.next()
            task["stdout"] = secret + "." * (1980 + number)
            backend.failed(task, ValueError("." * (1980 + number) + secret))
            await asyncio.wait([future])
    for each in latest(here).tasks.values():
        (attempt,) = each.attempts
        assert attempt.stdout is not None
        assert attempt.error is not None
        for text in (attempt.stdout, attempt.error.message):
            assert set(text) <= set("<OUR_API_TOKEN>.")
            assert 1900 < len(text) <= 2000


async def test_only_the_end_of_long_output_is_recorded(here: Path) -> None:
    async with WorkflowEngine.create(record=True) as flow:

        @flow.function_task
        def prints() -> None:
            print("x" * 100_000 + "end")

        await prints()
    (attempt,) = one(latest(here), "prints").attempts
    assert attempt.stdout is not None
    assert len(attempt.stdout) == 2000
    assert attempt.stdout.endswith("end\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
async def test_a_full_disk_ends_the_record_and_not_the_run(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = here / "record.jsonl"
    recorder: Any = RunRecorder(path)
    async with WorkflowEngine.create(Inline(), observers=[recorder]) as flow:
        task = flow.function_task(lambda x: x)
        file = recorder._file
        await until(lambda: path.stat().st_size)
        use_full_disk(file)
        assert await asyncio.gather(*[task(number) for number in range(5000)]) == [*range(5000)]
        await until(lambda: not file.active)
        assert await task(1) == 1
    (message,) = caplog.messages
    assert "disabled" in message
    assert "[Errno 28]" in message


async def test_a_directory_that_is_not_writable_does_not_stop_the_run(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / ".rhapsody").write_text("")
    async with WorkflowEngine.create(Inline(), record=True, work_dir=here / "work") as flow:
        assert await flow.function_task(lambda: 1)() == 1
    assert [message for message in caplog.messages if "not recorded" in message]


async def test_an_idle_engine_has_no_timer_and_threads_that_end_with_it(here: Path) -> None:
    before = set(threading.enumerate())
    recorder: Any = RunRecorder()
    async with WorkflowEngine.create(Inline(), observers=[recorder]) as flow:
        await flow.function_task(lambda: 1)()
        assert recorder._timer is not None
        await until(lambda: recorder._timer is None)
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert names == {"rhapsody record", "rhapsody node samples"}
    assert set(threading.enumerate()) <= before


async def test_a_forked_child_does_not_write(here: Path) -> None:
    path = here / "record.jsonl"
    recorder = RunRecorder(path)
    async with WorkflowEngine.create(Inline(), observers=[recorder]) as flow:
        task = flow.function_task(name="part")(lambda: 1)
        await task()
        close_in_child(recorder)
        await task()
    assert [line["event"] for line in lines(path)].count("run_end") == 1
    assert len(read_run(path).tasks) == 2


async def test_on_a_network_file_system_every_write_reaches_the_server(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synchronized.append)
    for network in (False, True):
        monkeypatch.setattr("rhapsody.builtin.record.recorder.on_network", lambda _, on=network: on)
        file = RecordFile(str(here / "record.jsonl"), fresh=True)
        file.put(["{}\n"])
        file.close()
        assert len(synchronized) == network


async def test_a_second_process_cannot_write_the_same_record(here: Path) -> None:
    path = here / "record.jsonl"
    file = RecordFile(str(path), fresh=True)
    with pytest.raises(BlockingIOError):
        RecordFile(str(path), fresh=True)
    file.close()
    RecordFile(str(path), fresh=False).close()


async def test_a_record_continues_after_an_incomplete_line(here: Path) -> None:
    path = here / "record.jsonl"
    file = RecordFile(str(path), fresh=True)
    file.put(['{"event":"cal'])
    file.close()
    file = RecordFile(str(path), fresh=False)
    file.put(['{"event":"call","uid":"task.000001","name":"x"}\n'])
    file.close()
    history = read_run(path)
    assert [*history.tasks] == ["task.000001"]
    (problem,) = history.problems
    assert "line 2" in problem


KILLED = """\
import asyncio, sys
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create(record=True) as flow:
        @flow.function_task
        def part(number):
            return number

        @flow.function_task
        async def endless():
            await asyncio.Event().wait()

        await asyncio.gather(*flow.map(part, range(20)))
        last = endless()
        while '"event":"start"' not in (flow.work_dir.parent / "run.jsonl").read_text():
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await last

asyncio.run(main())
"""


async def test_a_killed_run_keeps_what_it_has_recorded(here: Path) -> None:
    program = here / "program.py"
    program.write_text(KILLED)
    process = await asyncio.create_subprocess_exec(sys.executable, program, stdout=PIPE)
    try:
        assert process.stdout is not None
        assert await within(process.stdout.readline(), 60) == b"ready\n"
        assert latest(here).run.outcome == "running"
    finally:
        process.kill()
        await process.wait()
    history = latest(here)
    assert history.run.outcome == "killed"
    assert [task.state for task in history.tasks.values()] == [DONE] * 20 + [RUNNING]
    path = here / ".rhapsody" / "latest" / "run.jsonl"
    path.write_bytes(path.read_bytes()[:-10])  # as if the last write was cut short
    assert len(read_run(path).tasks) == 21


@pytest.mark.parametrize("kind", ["function", "executable"])
async def test_a_used_fallback_is_counted_and_its_error_is_reported(
    tmp_path: Path, kind: str
) -> None:
    record = tmp_path / "run.jsonl"
    async with WorkflowEngine.create(LocalExecutionBackend(), retries=1, record=record) as flow:

        @flow.function_task(fallback=0)
        def broken() -> int:
            raise LookupError("own")

        @flow.executable_task(fallback=0)
        def exits() -> str:
            return "exit 3"

        assert await (broken() if kind == "function" else exits()) == 0
        assert (flow.stats.done, flow.stats.failed, flow.stats.fallbacks) == (1, 0, 1)
    (task,) = read_run(record).tasks.values()
    assert (task.outcome, task.fallback, len(task.attempts)) == ("done", True, 2)
    error = task.attempts[-1].error
    assert error is not None
    assert error.kind == ("LookupError" if kind == "function" else "TaskFailedError")


async def test_a_fallback_while_the_work_continues_is_counted(tmp_path: Path) -> None:
    record, released = tmp_path / "run.jsonl", threading.Event()
    async with WorkflowEngine.create(LocalExecutionBackend(), record=record) as flow:

        @flow.function_task(timeout=0.01, fallback=0)
        def endless() -> int:
            return int(released.wait(60))

        assert await endless() == 0
        released.set()
    (task,) = read_run(record).tasks.values()
    assert (task.outcome, task.fallback) == ("done", True)
    assert task.attempts[-1].error is not None
    assert task.attempts[-1].error.kind == "TaskTimeoutError"
