"""Files that tasks make are where the program said, before anybody sees their results."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DataError,
    DependencyFailureError,
    InputFile,
    LocalExecutionBackend,
    OutputDir,
    OutputFile,
    WorkflowEngine,
    hookimpl,
)
from tests._support.saving import files, held_open, writer
from tests._support.scripted import within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_a_name_may_be_as_long_as_a_file_system_takes(
    here: Path, flow: WorkflowEngine
) -> None:
    name = "ä" * 127
    for word in ("first", "second"):
        await within(writer(flow)(word, OutputFile(f"results/{name}")))
    assert files(here / "results") == {name}
    assert (here / "results" / name).read_text() == "second\n"


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (OutputFile("results/a.txt"), "results/a.txt"),
        (OutputFile("./a.txt"), "a.txt"),
        (OutputFile("a.txt", save="deep/er/"), "deep/er/a.txt"),
        (OutputFile("a.txt", save="other name.txt"), "other name.txt"),
        (OutputFile("a.txt", save="there"), "there/a.txt"),
        (OutputFile("a.txt", save=True), "a.txt"),
        (OutputFile("results/a.txt", save="b.txt"), "b.txt"),
        (OutputFile("a.txt", save="down/../b.txt"), "b.txt"),
    ],
)
async def test_a_file_is_put_where_the_program_says(
    here: Path, flow: WorkflowEngine, output: OutputFile, place: str
) -> None:
    (here / "there").mkdir()
    future = writer(flow)("word", output)
    await within(future)
    assert (here / place).read_text() == "word\n"
    assert [(file.path, file.task, file.uid) for file in flow.results] == [
        (here / place, "write", future.uid)
    ]
    assert not [name for name in files(here) if name.endswith(".part")]


async def test_a_place_may_be_absolute_where_that_is_asked_for(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere" / "a.txt"
    await within(writer(flow)("word", OutputFile("a.txt", save=place)))
    assert place.read_text() == "word\n"


async def test_places_are_relative_to_the_results_directory_wherever_the_program_goes(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        WorkflowEngine.create(results_dir="made") as one,
        WorkflowEngine.create() as two,
    ):
        monkeypatch.chdir(tmp_path)
        await within(writer(one)("one", OutputFile("out/a.txt")))
        await within(writer(two)("two", OutputFile("out/a.txt")))
        assert one.results_dir == here / "made"
    assert (here / "made/out/a.txt").read_text() == "one\n"
    assert (here / "out/a.txt").read_text() == "two\n"


@pytest.mark.parametrize("save", ["../a.txt", "down/../../a.txt", ".."])
async def test_a_place_outside_is_refused(save: str) -> None:
    with pytest.raises(DataError, match=r"is outside the engine's results_dir; use an absolute"):
        OutputFile("a.txt", save=save)


async def test_a_place_is_a_path() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="save takes a string or a path, got 3"):
        OutputFile("a.txt", save=wrong)


async def test_what_is_there_is_replaced_in_one_step_by_a_copy(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "a.txt").write_text("of an earlier run")
    with (here / "a.txt").open() as reader:
        future = writer(flow)("word", OutputFile("a.txt", save=True))
        await within(future)
        assert reader.read() == "of an earlier run"
    assert future.sandbox is not None
    (Path(future.sandbox) / "a.txt").write_text("changed")
    assert (here / "a.txt").read_text() == "word\n"


async def test_it_is_there_before_the_result_is_recorded_or_seen(here: Path) -> None:
    seen: list[str] = []

    class Recorder:
        @hookimpl
        def rhapsody_record_results(self, records: Any) -> None:
            seen.append((here / "out/a.txt").read_text())

    async with WorkflowEngine.create(observers=[Recorder()]) as flow:
        await within(writer(flow)("word", OutputFile("out/a.txt")))
        assert seen == ["word\n"]


async def test_the_loop_goes_on_while_a_file_is_copied(
    here: Path, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, go_on, copy = asyncio.Event(), threading.Event(), shutil.copyfileobj
    loop, waited = asyncio.get_running_loop(), []

    def slowly(source: Any, target: Any, *more: Any) -> Any:
        loop.call_soon_threadsafe(copying.set)
        waited.append(go_on.wait(60))
        return copy(source, target, *more)

    monkeypatch.setattr(shutil, "copyfileobj", slowly)
    future = writer(flow)("slow", OutputFile("out/a.txt"))
    await within(copying.wait())
    await within(writer(flow)("quick", OutputFile("b.txt")))  # a whole task meanwhile
    assert not future.done()
    assert not (here / "out/a.txt").exists()
    go_on.set()
    await within(future)
    assert waited == [True]
    assert (here / "out/a.txt").read_text() == "slow\n"


async def test_a_file_that_is_made_again_is_that_of_the_last(
    here: Path, flow: WorkflowEngine
) -> None:
    @flow.executable_task
    def train(model: InputFile | None, out: OutputFile, after: Any = None) -> str:
        return f"(cat {model or '/dev/null'}; echo more) > new; mv new {out}"

    model = train(None, OutputFile("out/model"))
    for _ in range(2):  # one after the other, by dependency
        model = train(InputFile("model"), OutputFile("out/model"), model)
    await within(model)
    assert (here / "out/model").read_text() == "more\n" * 3
    await within(train(InputFile("out/model"), OutputFile("out/model"), model))
    await within(train(None, OutputFile("out/model")))  # or by time
    assert (here / "out/model").read_text() == "more\n"
    assert len(flow.results) == 1


async def test_two_tasks_cannot_write_one_file_at_once(here: Path, flow: WorkflowEngine) -> None:
    first, gate = await held_open(here, flow, OutputFile("out/a.txt"), "printf slowly > a.txt")
    with pytest.raises(DataError) as raised:
        await within(writer(flow)("word", OutputFile("b", save="out/a.txt")))
    assert "task 'write' cannot save 'b' as " in str(raised.value)
    assert "task 'slow' (task.000001) is also about to write there" in str(raised.value)
    assert "write.options(after=[future])" in str(raised.value)
    gate.write_text("go")
    await within(first)
    assert (here / "out/a.txt").read_text() == "slowly"


async def test_a_file_that_the_run_reads_is_not_written_over(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "data.csv").write_text("precious")
    write = writer(flow)
    await within(write("word", OutputFile("a.txt"), InputFile("data.csv")))
    with pytest.raises(DataError, match="reads that file"):
        await within(write("word", OutputFile("./data.csv"), InputFile("data.csv")))
    with pytest.raises(DataError, match=r"cannot save 'x' as .*data.csv': task 'write' reads"):
        await within(write("word", OutputFile("x", save="data.csv")))
    assert (here / "data.csv").read_text() == "precious"


async def test_a_second_run_works_with_what_the_first_one_left(here: Path) -> None:
    for word in ("one", "two"):
        async with WorkflowEngine.create() as flow:
            write = writer(flow)
            first = write(word, OutputFile("out/a.txt"))
            await within(write(word, OutputFile("out/b.txt"), first, InputFile("out/a.txt")))
        assert (here / "out/a.txt").read_text() == f"{word}\n"


async def test_two_files_of_one_call_cannot_be_one(flow: WorkflowEngine) -> None:
    write = writer(flow)
    with pytest.raises(DataError, match=r"two output files named 'a'; rename one"):
        write("word", OutputFile("one/a"), OutputFile("two/a"))  # refused at the call
    write("word", OutputFile("one/a"))
    read = flow.function_task(lambda file: Path(file).read_text())
    assert await within(read(InputFile("one/a"))) == "word\n"
    with pytest.raises(DataError, match="saves two files to the same destination"):
        await within(write("word", OutputFile("a", save="c"), OutputFile("b", save="c")))


async def test_a_file_that_cannot_be_saved_fails_its_task_and_stays_in_the_sandbox(
    here: Path, flow: WorkflowEngine
) -> None:
    write = writer(flow)
    future = write(f"$(mkdir -p '{here}/taken/a.txt')word", OutputFile("taken/a.txt"))
    dependent = write("word", OutputFile("b.txt"), future)
    with pytest.raises(DataError, match=r"succeeded, but its file 'a.txt' could not be saved as"):
        await within(future)
    with pytest.raises(DependencyFailureError):
        await within(dependent)
    sandbox = future.sandbox
    assert sandbox is not None
    del future, dependent
    gc.collect()
    await flow.shutdown()
    assert (Path(sandbox) / "a.txt").read_text() == "word\n"
    assert flow.stats.failed == 2


async def test_a_task_whose_file_cannot_be_saved_can_be_run_again(
    here: Path, flow: WorkflowEngine
) -> None:
    word = f"$(mkdir -p '{here}/taken/a.txt')$(echo ran >> '{here}/ran')word"
    future = writer(flow)(word, OutputFile("taken/a.txt"))
    with pytest.raises(DataError, match="could not be saved") as raised:
        await within(future)
    script = f"{future.sandbox}/.rhapsody.again"
    assert f"to run it again: sh {script}" in raised.value.__notes__[0]
    await within(asyncio.to_thread(subprocess.run, ["sh", script], check=True))
    assert (here / "ran").read_text() == "ran\n" * 2


async def test_a_place_that_is_a_directory_is_refused_before_the_task_runs(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "out/a.txt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"which is a directory"):
        await within(writer(flow)(f"ran > {here}/ran", OutputFile("out/a.txt")))
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    "output",
    [
        OutputFile("file/a.txt"),
        OutputFile("a.txt", save="file/deep/er/"),
        OutputFile("file/deep/*.txt", many=True),
        OutputDir("file/a.txt"),
    ],
)
async def test_a_place_in_a_file_is_refused_before_the_task_runs(
    here: Path, flow: WorkflowEngine, output: Any
) -> None:
    (here / "file").write_text("precious")
    told = r"'.*txt' cannot be saved .*: '.*/file' is a file, not a directory"
    with pytest.raises(DataError, match=told):
        await within(writer(flow)(f"ran > {here}/ran", output))
    (here / "file").unlink()
    (here / "file").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"'.*/file' is a broken link"):
        await within(writer(flow)(f"ran > {here}/ran", output))
    assert not (here / "ran").exists()


async def test_a_place_that_cannot_be_written_to_is_refused_before_the_task_runs(
    here: Path, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = here / "closed"
    closed.mkdir(mode=0o500)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and path != str(closed))
    with pytest.raises(DataError, match=r"'.*/closed' is not writable"):
        await within(writer(flow)(f"ran > {here}/ran", OutputFile("closed/deep/a.txt")))
    assert not (here / "ran").exists()


async def test_a_pipe_or_device_is_not_replaced(here: Path, flow: WorkflowEngine) -> None:
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to("pipe")
    for place in ("pipe", "link"):
        with pytest.raises(DataError, match=r"is a named pipe.*save=False"):
            await within(writer(flow)(f"ran > {here}/ran", OutputFile("a.txt", save=place)))
    with pytest.raises(DataError, match=r"'/dev/null'.* is a device"):
        await within(writer(flow)(f"ran > {here}/ran", OutputFile("a.txt", save="/dev/null")))
    assert not (here / "ran").exists()
    assert stat.S_ISFIFO(os.stat(here / "pipe").st_mode)


# Files that are not saved.


async def test_declared_outputs_stay_without_other_files(here: Path) -> None:
    async with WorkflowEngine.create() as flow:
        write = writer(flow)
        first = write("first", OutputFile("a.txt"))
        held = write("held", OutputFile("b.txt"), InputFile("a.txt"))
        write("alone", OutputFile("c.txt"))
        write("left", OutputFile("d.txt", save=False))
        write("saved", OutputFile("out/e.txt"))
        del first
        await within(held)
    assert flow.summary is not None
    assert flow.summary.results == flow.results
    names = sorted(Path(name).name for name in files(here))
    assert names == ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"]
    assert {file.path.name for file in flow.results} == {"b.txt", "c.txt", "e.txt"}
    assert all(file.path.is_file() for file in flow.results)
    assert {file.path.parent.parent for file in flow.results if file.path.name != "e.txt"} == {
        flow.work_dir
    }


async def test_an_output_whose_reader_was_cancelled_stays(here: Path) -> None:
    started = here / "started"
    os.mkfifo(started)
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def read(_: Any, file: InputFile) -> str:
            return f"cat {file} > {started}; sleep 60"

        reading = read(writer(flow)("word", OutputFile("a.txt")), InputFile("a.txt"))
        assert await within(asyncio.to_thread(started.read_text)) == "word\n"
        reading.cancel()
        await within(reading.ended())
        del reading
        gc.collect()
    assert [file.path.read_text() for file in flow.results] == ["word\n"]


@pytest.mark.parametrize(
    ("keep", "left"), [("failed", set()), ("none", set()), ("all", {"a.txt", "scratch"})]
)
async def test_other_ways_of_keeping_are_as_they_say(here: Path, keep: Any, left: set[str]) -> None:
    async with WorkflowEngine.create(keep_sandboxes=keep) as flow:
        writer(flow)("word", OutputFile("a.txt"))
        await flow.join()
        gc.collect()
    assert {Path(name).name for name in files(here)} - {".rhapsody.stdout", ".rhapsody.stderr"} == (
        left
    )
    assert [file.path.name for file in flow.results] == [name for name in left if name == "a.txt"]


async def test_a_file_that_was_not_planned_is_saved_later(here: Path, flow: WorkflowEngine) -> None:
    future = writer(flow)("word", OutputFile("a.txt"))
    assert await within(flow.save(future, "out/")) == [here / "out/a.txt"]
    assert await within(flow.save(future, "b.txt", name="scratch")) == [here / "b.txt"]
    assert (here / "out/a.txt").read_text() == "word\n"
    assert (here / "b.txt").read_text() == "scratch\n"
    assert [file.path for file in flow.results] == [here / "out/a.txt", here / "b.txt"]
    with pytest.raises(DataError, match="did not write 'nothing'"):
        await within(flow.save(future, "out/", name="nothing"))


async def test_there_must_be_a_file_to_save(flow: WorkflowEngine) -> None:
    @flow.function_task
    def plain() -> int:
        return 1

    with pytest.raises(DataError, match=r"'plain' \(task.000001\) declares no output files; pass"):
        await within(flow.save(plain(), "out/"))


# Backends whose sandboxes are not to be seen from here.


class Far(LocalExecutionBackend):
    """One whose sandboxes only it can read."""

    name = "far"

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.capabilities = dataclasses.replace(
            self.capabilities, shared_file_system=False, copies_files_out=copies
        )

    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        path.write_text(f"copied {(Path(task['sandbox']) / name).read_text()}")


async def test_a_file_comes_from_a_backend_that_copies_it_out(here: Path) -> None:
    async with WorkflowEngine.create(Far(copies=True)) as flow:
        await within(writer(flow)("word", OutputFile("out/a.txt")))
    assert (here / "out/a.txt").read_text() == "copied word\n"


async def test_a_backend_that_cannot_give_the_file_is_refused_before_the_task_runs(
    here: Path,
) -> None:
    async with WorkflowEngine.create(Far(copies=False)) as flow:
        with pytest.raises(
            CapabilityError, match=r"saves 'a.txt', but this process cannot read the sandboxes of"
        ):
            await within(writer(flow)(f"x > {here}/ran", OutputFile("out/a.txt")))
    assert not (here / "ran").exists()


async def test_files_of_cancelled_tasks_are_no_results(here: Path) -> None:
    async with WorkflowEngine.create(fail_fast=True) as flow:

        @flow.executable_task
        def write(out: OutputFile, then: str) -> str:
            return f"echo started > {out}; {then}"

        done = write(OutputFile("done.txt"), "true")
        await done
        endless = write(OutputFile("endless.txt"), "sleep 1000")
        bad = write(OutputFile("bad.txt"), "exit 1")
        await asyncio.wait([endless, bad])
        del done, endless
    assert [file.path.name for file in flow.results] == ["done.txt"]


async def test_a_result_that_something_else_took_the_place_of_is_none(here: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def write(out: OutputFile) -> str:
            return f"echo 1 > {out}"

        @flow.executable_task
        def draw(out: OutputDir) -> str:
            return f"mkdir {out}; echo 2 > {out}/b.txt"

        await write(OutputFile("plots/a.txt"))
        await draw(OutputDir("plots"))
        assert files(here / "plots") == {"a.txt"}
        await draw(OutputDir("plots", save="."))
        assert files(here / "plots") == {"b.txt"}
    assert here / "plots" in [file.path for file in flow.results]
    assert here / "plots/a.txt" not in [file.path for file in flow.results]


@pytest.mark.parametrize("output", [OutputFile("results/f"), OutputDir("results/d")])
async def test_saved_files_keep_their_holes(
    here: Path, flow: WorkflowEngine, output: OutputFile | OutputDir
) -> None:
    @flow.executable_task
    def write(out: Any) -> str:
        name = out if isinstance(output, OutputFile) else f"{out}/f"
        return (
            f"mkdir d; truncate -s 30M {name}; echo middle | dd of={name} conv=notrunc bs=1M "
            f"seek=9; truncate -s 100M {name}"
        )

    await within(write(output))
    saved = here / ("results/f" if isinstance(output, OutputFile) else "results/d/f")
    status = saved.stat()
    assert (status.st_size, status.st_blocks * 512 < 1 << 20) == (100 << 20, True)
    assert await asyncio.to_thread(saved.read_bytes) == (b"\0" * (9 << 20) + b"middle\n").ljust(
        100 << 20, b"\0"
    )
