"""Runs recorded as WfCommons instances."""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputDir, OutputFile, WorkflowEngine
from rhapsody.cli import main
from rhapsody_wfcommons import Instance, RecordedFile, RecordedTask, WfCommonsRecorder, read
from tests._support.command_line import Run
from tests._support.scripted import Inline, ManualClock
from tests.wfcommons.instances import check


@pytest.fixture
def written(tmp_path: Path) -> Callable[[], Instance]:
    """Reads the instance `run.json`, and holds that it is one."""

    def look() -> Instance:
        check(json.loads((tmp_path / "run.json").read_text()))
        return read(tmp_path / "run.json")

    return look


def by_name(instance: Instance) -> dict[str, RecordedTask]:
    assert len({task.name for task in instance.tasks}) == len(instance.tasks)
    return {task.name: task for task in instance.tasks}


@pytest.mark.asyncio
async def test_tasks_have_their_times_cores_and_parents(
    tmp_path: Path, written: Callable[[], Instance], capsys: pytest.CaptureFixture[str]
) -> None:
    backend = LocalExecutionBackend(resources={"cores": 3, "workers": 2})
    async with WorkflowEngine.create(
        backend,
        observers=[WfCommonsRecorder(tmp_path / "run.json")],
        clock=(clock := ManualClock()),
    ) as flow:
        calls: dict[str, Any] = {}

        @flow.function_task
        def take(name: str, *_: object) -> None:
            while calls[name].state != "RUNNING":
                time.sleep(0.001)
            clock.now += 5

        first = calls["first"] = take.options(name="first")("first")
        second = take.options(name="second", resources={"cores": 2})("second", [first])
        calls["second"] = second
        calls["third"] = take.options(name="third", after=[second])("third", first)
    instance = written()
    tasks = by_name(instance)
    ids = {name: task.id for name, task in tasks.items()}
    assert ids == {"first": "task.000001", "second": "task.000002", "third": "task.000003"}
    assert tasks["second"].parents == (ids["first"],)
    assert tasks["third"].parents == (ids["first"], ids["second"])
    assert [tasks[name].cores for name in tasks] == [1, 2, 1]
    assert [task.runtime for task in instance.tasks] == [pytest.approx(5)] * 3
    assert instance.makespan == pytest.approx(15)
    begins = [task.started or "" for task in instance.tasks]
    assert begins == sorted(begins)
    assert instance.started == begins[0]
    (machine,) = instance.machines
    assert (machine.name, machine.cores) == (platform.node(), 3)  # those of the backend
    assert {task.machines for task in instance.tasks} == {(machine.name,)}
    assert instance.made_by is not None
    assert instance.made_by[0] == "Rhapsody"


@pytest.mark.asyncio
async def test_files_have_their_sizes_and_are_those_that_others_read(
    tmp_path: Path, written: Callable[[], Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw data.txt").write_text("12345")
    backend = LocalExecutionBackend()
    async with WorkflowEngine.create(
        backend, observers=[WfCommonsRecorder("run.json")], work_dir="work"
    ) as flow:

        @flow.executable_task
        def cut(out: OutputFile, text: InputFile) -> str:
            return f"head -c 3 '{text}' > {out}"

        @flow.function_task
        def join(out: OutputFile, more: OutputDir, part: InputFile, *_: Any) -> None:
            Path(out).write_text(Path(part).read_text() * 2)
            Path(more).mkdir()

        one = cut(OutputFile("part"), InputFile("raw data.txt"))
        two = cut.options(name="again")(OutputFile("part"), InputFile("raw data.txt"))
        join(OutputFile("results/all"), OutputDir("more"), InputFile("part"), one)
        join.options(name="rest")(OutputFile("b"), OutputDir("d"), InputFile("part"), two)
    tasks = by_name(written())
    raw = RecordedFile("raw_data.txt", 5)
    assert tasks["cut"].inputs == tasks["again"].inputs == (raw,)
    parts = {*tasks["cut"].outputs, *tasks["again"].outputs}  # either may have ended first
    assert parts == {RecordedFile("part", 3), RecordedFile("part#2", 3)}
    assert tasks["join"].inputs == tasks["cut"].outputs
    assert tasks["rest"].inputs == tasks["again"].outputs
    assert tasks["join"].outputs == (RecordedFile("all", 6), RecordedFile("more"))


@pytest.mark.asyncio
async def test_an_input_is_not_the_output_of_a_parent_with_the_same_base_name(
    tmp_path: Path, written: Callable[[], Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/s1.csv").write_text("raw data")
    async with WorkflowEngine.create(observers=[WfCommonsRecorder("run.json")]) as flow:

        @flow.executable_task
        def clean(out: OutputFile) -> str:
            return f"echo > {out}"

        @flow.executable_task
        def show(file: InputFile, *_: Any) -> str:
            return f"cat {file}"

        await show(InputFile("data/s1.csv"), clean(OutputFile("clean/s1.csv")))
    tasks = by_name(written())
    assert [file.size for file in tasks["clean"].outputs] == [1]
    assert [file.size for file in tasks["show"].inputs] == [8]
    assert tasks["show"].inputs != tasks["clean"].outputs


@pytest.mark.asyncio
async def test_what_did_not_run_is_left_out_and_what_failed_is_not(
    tmp_path: Path, written: Callable[[], Instance]
) -> None:
    async with WorkflowEngine.create(
        Inline(), observers=[WfCommonsRecorder(tmp_path / "run.json")]
    ) as flow:

        @flow.function_task
        def step(*_: object) -> None: ...

        @flow.function_task
        def broken() -> None:
            raise LookupError("own")

        failed = broken()
        step.options(name="skipped")(failed)
        with pytest.raises(LookupError):
            await failed
        await step()
    assert sorted(by_name(written())) == ["broken", "step"]


@pytest.mark.asyncio
async def test_what_waited_for_a_reused_result_has_its_parents(
    tmp_path: Path, written: Callable[[], Instance]
) -> None:
    journal = tmp_path / "journal.sqlite"

    async def once(**more: Any) -> None:
        async with WorkflowEngine.create(
            LocalExecutionBackend(), journal=journal, resume=True, **more
        ) as flow:

            @flow.function_task(cache=False)
            def first() -> int:
                return 1

            @flow.function_task
            def reused(x: int) -> int:
                return x

            @flow.function_task(cache=False)
            def last(x: int) -> int:
                return x

            assert await last(reused(first())) == 1

    await once()
    await once(observers=[WfCommonsRecorder(tmp_path / "run.json")])
    tasks = by_name(written())
    assert sorted(tasks) == ["first", "last"]
    assert tasks["last"].parents == (tasks["first"].id,)


@pytest.mark.asyncio
async def test_the_time_is_that_of_the_last_attempt_and_services_are_left_out(
    tmp_path: Path, written: Callable[[], Instance]
) -> None:
    recorder = WfCommonsRecorder(tmp_path / "run.json")
    async with WorkflowEngine.create(
        LocalExecutionBackend(), observers=[recorder], clock=(clock := ManualClock())
    ) as flow:
        tries: list[int] = []

        @flow.executable_task(service=True, ready="stdout:up")
        def server() -> str:
            return "echo up; sleep 1000"

        @flow.function_task(retries=1)
        def second_time(_: object) -> None:
            if not tries:
                clock.now += 50
            tries.append(1)
            if len(tries) < 2:
                raise ConnectionError

        service = server()
        await second_time(service)
        service.cancel()
    (task,) = written().tasks
    assert task.runtime is not None
    assert task.runtime < 50
    assert task.parents == ()


@pytest.mark.asyncio
@pytest.mark.parametrize("tasks", [0, 1])
async def test_a_run_that_cannot_be_recorded_leaves_an_earlier_one_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.json"
    path.write_text("earlier")
    monkeypatch.setattr(os, "replace", full)
    async with WorkflowEngine.create(
        Inline(), observers=[WfCommonsRecorder(path)], work_dir=tmp_path / "w"
    ) as flow:
        for _ in range(tasks):
            assert await flow.function_task(lambda: 1)() == 1
    problem = [
        "not written, because no task has run",
        "cannot be written; the run is not recorded: ",
    ]
    assert f"{path}: {problem[tasks]}" in caplog.text
    assert path.read_text() == "earlier"
    assert {*os.listdir(tmp_path)} - {"w"} == {"run.json"}


@pytest.mark.asyncio
async def test_a_recording_is_private_and_stands_where_the_program_began(
    tmp_path: Path, written: Callable[[], Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.json").touch()
    (tmp_path / "run.json").symlink_to("there.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with WorkflowEngine.create(Inline(), observers=[WfCommonsRecorder("run.json")]) as flow:
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert await flow.function_task(lambda: 1)() == 1
    assert len(written().tasks) == 1
    assert (tmp_path / "run.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "there.json").stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_of_two_engines_with_one_file_it_has_the_run_that_ended_last(
    tmp_path: Path, written: Callable[[], Instance]
) -> None:
    flows = [
        await WorkflowEngine.create(Inline(), observers=[WfCommonsRecorder(tmp_path / "run.json")])
        for _ in "ab"
    ]
    for flow, size in zip(flows, (20, 1), strict=True):
        task = flow.function_task(lambda x: x)
        for number in range(size):
            assert await task(number) == number
    for flow in flows:
        await flow.shutdown()
    assert len(written().tasks) == 1


@pytest.mark.asyncio
async def test_an_instance_on_a_full_disk_harms_no_run(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkflowEngine.create(Inline(), observers=[WfCommonsRecorder("/dev/full")]) as flow:
        assert await flow.function_task(lambda: 1)() == 1
    assert caplog.text.count("/dev/full: cannot be written; the run is not recorded: ") == 1


@pytest.mark.parametrize("name", ["none/run.json", "."])
def test_a_path_without_a_directory_or_of_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must name a file in an existing directory"):
        WfCommonsRecorder(tmp_path / name)


def test_a_run_of_the_command_line_is_recorded_and_replayed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(
        """
        import asyncio
        import time

        from rhapsody import WorkflowEngine
        from rhapsody_wfcommons import WfCommonsRecorder

        async def main():
            async with WorkflowEngine.create(observers=[WfCommonsRecorder("run.json")]) as flow:

                @flow.function_task
                def step(*_):
                    time.sleep(0.01)

                first = step()
                await step([step(first), step(first)])

        asyncio.run(main())
        """
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run.json"
    check(json.loads(path.read_text()))
    capsys.readouterr()
    assert main(["replay", str(path), "--json", "--slots", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tasks"], report["slots"]) == (4, 2)
    assert report["makespan"] >= report["critical_path"] > 0
