"""Files as dependencies: an input that an earlier call has declared waits for that call."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import asyncio
import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DataError,
    DependencyFailureError,
    InputFile,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputDir,
    OutputFile,
    TaskFailedError,
    WorkflowEngine,
)
from tests._support.engine_fixtures import Machine, engine
from tests._support.saving import writer
from tests._support.scripted import outcome, until, within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]


def reader(flow: WorkflowEngine) -> Any:
    @flow.executable_task
    def read(file: InputFile, *others: Any) -> str:
        return f"cat {file}"

    return read


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ("a.txt", "a.txt"),
        ("work/a.txt", "work/a.txt"),
        ("work/a.txt", "./work/../work/a.txt"),
        ("work/a.txt", "{here}/work/a.txt"),
        ("work/a.txt", "link/a.txt"),
    ],
)
async def test_an_input_waits_for_the_call_that_promised_its_place(
    here: Path, flow: WorkflowEngine, declared: str, named: str
) -> None:
    (here / "link").symlink_to(here / "work")
    writer(flow)("word", OutputFile(declared))
    assert await within(reader(flow)(InputFile(named.format(here=here)))) == "word\n"


async def test_a_promise_comes_before_a_file_that_is_there(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "work").mkdir()
    (here / "work/a.txt").write_text("stale")
    (here / "b.txt").write_text("on disk")
    write, read = writer(flow), reader(flow)
    write("word", OutputFile("work/a.txt"))
    for spec in ("work/a.txt", here / "work/a.txt"):
        assert await within(read(InputFile(spec))) == "word\n"
    write("word", OutputFile("work/b.txt"))  # another place
    assert await within(read(InputFile("b.txt"))) == "on disk"


async def test_places_are_relative_to_the_results_directory(here: Path) -> None:
    async with WorkflowEngine.create(results_dir="out") as flow:
        write, read = writer(flow), reader(flow)
        write("word", OutputFile("work/a.txt"))
        for spec in ("work/a.txt", "out/work/a.txt", flow.results_dir / "work/a.txt"):
            assert await within(read(InputFile(spec))) == "word\n"


async def test_a_later_promise_is_a_new_version_for_later_calls(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = writer(flow), reader(flow)
    first = write("one", OutputFile("work/a.txt"))
    early = read(InputFile("work/a.txt"))
    write("two", OutputFile("work/a.txt"), first)
    late = read(InputFile("work/a.txt"))
    assert await within(early) == "one\n"
    assert await within(late) == "two\n"
    assert await within(read(InputFile("work/a.txt"), first)) == "one\n"  # as it is passed
    assert await within(read(first.file("a.txt"))) == "one\n"
    assert (here / "work/a.txt").read_text() == "two\n"


async def test_a_call_may_read_and_write_one_place(here: Path, flow: WorkflowEngine) -> None:
    @flow.executable_task
    def more(model: InputFile, out: OutputFile) -> str:
        return f"(cat {model}; echo more) > new; mv new {out}"

    writer(flow)("first", OutputFile("out/model"))
    for _ in range(2):
        model = more(InputFile("out/model"), OutputFile("out/model"))
    await within(model)
    assert (here / "out/model").read_text() == "first\nmore\nmore\n"


@pytest.mark.parametrize("machine", [Machine, LocalExecutionBackend])
async def test_an_output_with_the_name_of_an_input_leaves_the_input_alone(
    here: Path, machine: Any
) -> None:
    (here / "data").mkdir()
    (here / "data/a.csv").write_text("raw\n")
    async with engine(machine()) as flow:

        @flow.function_task
        def clean(source: InputFile, out: OutputFile) -> None:
            Path(out).write_text(Path(source).read_text().upper())

        @flow.executable_task
        def double(source: InputFile, out: OutputFile) -> str:
            return f"cat {source} {source} > {out}"

        clean(InputFile("data/a.csv"), OutputFile("work/a.csv"))
        await within(double(InputFile("work/a.csv"), OutputFile("results/a.csv")))
    texts = [(here / place / "a.csv").read_text() for place in ("data", "work", "results")]
    assert texts == ["raw\n", "RAW\n", "RAW\nRAW\n"]


async def test_an_input_that_is_bound_to_its_producer_is_that_ones(flow: WorkflowEngine) -> None:
    write, read = writer(flow), reader(flow)
    ones = [write(word, OutputFile("a.txt")) for word in ("one", "two")]
    assert list(ones[0].files) == ["a.txt"]
    assert [await within(read(one.file("a.txt"))) for one in ones] == ["one\n", "two\n"]
    assert await within(read(ones[0].files["a.txt"], *ones)) == "one\n"


async def test_an_input_is_bound_by_name_or_pattern(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def make(*outputs: Any) -> str:
        return "mkdir plots; echo 1 > plots/one.png; echo a > a.csv; echo b > b.csv"

    made = make(OutputDir("results/plots"), OutputFile("*.csv", many=True))
    assert list(made.files) == ["plots", "*.csv"]

    @flow.function_task
    def names(*files: Any) -> list[list[str]]:
        return [[path.name for path in file] for file in files]

    assert await within(names(made.file("plots"), made.file("*.csv"))) == [
        ["one.png"],
        ["a.csv", "b.csv"],
    ]
    assert await within(names(InputFile("results/plots"))) == [["one.png"]]
    assert await within(reader(flow)(made.file("b.csv"))) == "b\n"
    with pytest.raises(DataError, match=r"declares no file 'c.txt'; it declares 'plots', '\*.csv'"):
        made.file("c.txt")


async def test_a_task_without_outputs_has_no_files(flow: WorkflowEngine) -> None:
    future = writer(flow)("word", [])
    assert future.files == {}
    with pytest.raises(DataError, match="pass it an OutputFile"):
        future.file("a.txt")
    await within(future)


async def test_two_producers_that_are_passed_without_an_order_are_an_error(
    flow: WorkflowEngine,
) -> None:
    both = [writer(flow)(word, OutputFile("a.txt")) for word in ("one", "two")]
    with pytest.raises(DataError, match="written by two of its dependencies") as raised:
        await within(reader(flow)(InputFile("a.txt"), *both))
    for each in both:
        assert f"'write' ({each.uid})" in str(raised.value)


async def test_a_reader_fails_with_the_call_that_was_to_make_its_file(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "work").mkdir()
    (here / "work/a.txt").write_text("of an earlier run")

    @flow.executable_task
    def fail(out: OutputFile) -> str:
        return "false"

    failed = fail(OutputFile("work/a.txt"))
    with pytest.raises(TaskFailedError):
        await within(failed)
    with pytest.raises(DependencyFailureError):
        await within(reader(flow)(InputFile("work/a.txt")))


async def test_a_dependency_lends_only_the_file_that_is_named(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "b.txt").write_text("on disk")

    @flow.executable_task
    def make(*outputs: OutputFile) -> str:
        return "echo made | tee a.txt > b.txt"

    @flow.executable_task
    def both(a: InputFile, b: InputFile) -> str:
        return f"cat {a} {b}"

    make(OutputFile("a.txt"), OutputFile("work/b.txt"))
    assert await within(both(InputFile("a.txt"), InputFile("b.txt"))) == "made\non disk"


async def test_the_file_outlives_the_future_and_its_value(flow: WorkflowEngine) -> None:
    class Big:
        pass

    @flow.function_task
    def make(out: OutputFile) -> Big:
        Path(out).write_text("word")
        return Big()

    value = weakref.ref(await within(make(OutputFile("a.txt"))))
    assert await within(reader(flow)(InputFile("a.txt"))) == "word"
    gc.collect()
    assert value() is None


async def test_a_block_hands_files_on_to_what_it_calls(here: Path, flow: WorkflowEngine) -> None:
    read = reader(flow)

    @flow.block
    async def inner(file: InputFile) -> str:
        return str(await read(file))

    made = writer(flow)("word", OutputFile("work/a.txt"))
    assert await within(inner(InputFile("work/a.txt"))) == "word\n"
    assert await within(inner(made.file("a.txt"))) == "word\n"


async def test_a_call_in_a_block_does_not_wait_for_the_block(flow: WorkflowEngine) -> None:
    write, read = writer(flow), reader(flow)

    @flow.block
    async def inner(gate: Any) -> str:
        return str(await read(InputFile("a.txt")))

    gate = write("gate", OutputFile("gate.txt"))
    block = inner(gate)
    write(block, OutputFile("a.txt"))
    with pytest.raises(RuntimeError, match="would wait for itself"):
        await within(block)


async def test_a_dry_run_knows_the_dependencies(flow: WorkflowEngine) -> None:
    async with WorkflowEngine.create(NoopExecutionBackend(), dry_run=True) as dry:
        made = writer(dry)("word", OutputFile("work/a.txt"))
        reader(dry)(InputFile("work/a.txt"))
        await made
        reader(dry)(made.file("a.txt"))
    assert [call[2] for call in dry.graph] == [(), (made.uid,), (made.uid,)]


async def test_results_that_this_run_was_to_make_and_has_not_are_stale(here: Path) -> None:
    (here / "results").mkdir()
    for name in ("failed", "skipped", "made", "cancelled"):
        (here / f"results/{name}").write_text("of an earlier run")
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def run(command: str, *files: Any) -> str:
            return command

        failed = run("false", OutputFile("results/failed"), OutputFile("results/not-there"))
        skipped = run("true", InputFile("results/failed"), OutputFile("results/skipped"))
        made = run("echo > made", OutputFile("results/made"))
        cancelled = run("sleep 60", OutputFile("results/cancelled"))
        cancelled.cancel()
        await within(made)
        for future in (failed, skipped):
            await outcome(future)
    assert flow.summary is not None
    assert [(file.path.name, file.uid) for file in flow.summary.stale] == [
        ("failed", failed.uid),
        ("skipped", skipped.uid),
        ("cancelled", cancelled.uid),
    ]
    assert {file.path for file in flow.summary.stale} == {
        here / f"results/{name}" for name in ("failed", "skipped", "cancelled")
    }


async def test_a_file_that_a_task_of_this_run_reads_is_not_stale(here: Path) -> None:
    (here / "names.txt").write_text("b\na\n")
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def sort(names: Any, place: Any) -> None:
            raise AssertionError("must not run")

        future = sort(InputFile("names.txt"), OutputFile("names.txt", save="./"))
        assert "reads that file" in str(await outcome(future))
    assert flow.summary is not None
    assert flow.summary.stale == ()


async def test_a_temporary_file_goes_after_its_last_reader(
    here: Path, flow: WorkflowEngine
) -> None:
    @flow.executable_task
    def make(*outputs: OutputFile) -> str:
        return "echo word | tee a.txt > b.txt"

    made = make(OutputFile("a.txt", temporary=True), OutputFile("b.txt"))
    await within(made)
    file = Path(made.sandbox or "", "a.txt")
    assert file.exists()
    gate = here / "gate"
    os.mkfifo(gate)
    read = reader(flow)
    assert await within(read(InputFile("b.txt"))) == "word\n"
    waiting = writer(flow)("x", OutputFile("c.txt"))

    @flow.executable_task
    def slow(file: InputFile) -> str:
        return f"cat {gate} {file}"

    slowly, fast = slow(made.file("a.txt")), read(InputFile("a.txt"), waiting)
    assert await within(fast) == "word\n"
    assert file.exists()
    await within(asyncio.to_thread(gate.write_text, "go "))
    assert await within(slowly) == "go word\n"
    await until(lambda: not file.exists())
    assert file.with_name("b.txt").exists()
    with pytest.raises(DataError, match=r"temporary file 'a.txt' of 'make' .* was removed"):
        read(InputFile("a.txt"))


@pytest.mark.parametrize("command", ["cat {file}", "cat {file}; false"])
async def test_a_temporary_file_stays_for_the_next_run_where_a_reader_failed(
    here: Path, command: str
) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def read(file: InputFile) -> str:
            return command.format(file=file)

        for name in ("a.txt", "unread.txt"):
            writer(flow)("word", OutputFile(name, temporary=True))
        failed = await outcome(read(InputFile("a.txt"))) if "false" in command else None
        if failed is None:
            await within(read(InputFile("a.txt")))
    left = {path.name for path in (here / ".rhapsody").rglob("*.txt")} - {"log.txt"}
    assert left == (set() if failed is None else {"a.txt"})


async def test_a_temporary_file_has_no_place() -> None:
    for options in ({"save": "results/"}, {"many": True}):
        with pytest.raises(DataError, match="a single file without a destination"):
            OutputFile("a.txt", temporary=True, **options)
    with pytest.raises(DataError, match="a single file without a destination"):
        OutputFile("results/a.txt", temporary=True)
    with pytest.raises(TypeError, match="temporary must be True or False"):
        OutputFile("a.txt", temporary=1)  # type: ignore[arg-type]
    file = OutputFile("a.txt", temporary=True)
    assert eval(repr(file)) == file != OutputFile("a.txt")


async def test_a_path_is_not_the_output_of_a_dependency_with_the_same_base_name(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "data").mkdir()
    (here / "data/s1.csv").write_text("raw\n")
    clean = writer(flow)("clean", OutputFile("clean/s1.csv"))
    read, look = reader(flow), flow.function_task(lambda file, *others: Path(file).read_text())
    for spec in ("data/s1.csv", "./data/s1.csv", here / "data/s1.csv"):
        for task in (read, look):
            assert await within(task(InputFile(spec), clean)) == "raw\n"
            assert await within(task.options(after=clean)(InputFile(spec))) == "raw\n"
    assert await within(read(InputFile("clean/s1.csv"), clean)) == "clean\n"
    assert await within(read(InputFile("s1.csv"), clean)) == "clean\n"
    with pytest.raises(DataError, match=r"pass future\.file\('s1\.csv'\)"):
        await within(read(InputFile("other/s1.csv"), clean))


async def test_a_file_that_is_saved_under_another_name_is_known_by_that_name(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = writer(flow), reader(flow)
    look = flow.function_task(lambda file, *others: (Path(file).name, Path(file).read_text()))

    @flow.executable_task
    def join(files: Any, out: OutputFile) -> str:
        return f"cat {' '.join(map(str, files))} > {out}"

    made = {name: write(name, OutputFile("out.txt", save=f"results/{name}.txt")) for name in "ab"}
    assert await within(read(InputFile("results/a.txt"))) == "a\n"
    assert await within(look(InputFile(here / "results/b.txt"))) == ("b.txt", "b\n")
    joined = join([InputFile(f"results/{name}.txt") for name in "ab"], OutputFile("all/both"))
    await within(joined)
    assert (here / "all/both").read_text() == "a\nb\n"
    assert await within(read(InputFile("out.txt"), made["a"])) == "a\n"
    assert await within(read(made["b"].file("out.txt"))) == "b\n"
    assert await within(read(InputFile("results/b.txt"), made["b"])) == "b\n"


async def test_a_pattern_with_a_path_is_that_of_the_dependencies_with_this_destination(
    here: Path, flow: WorkflowEngine
) -> None:
    @flow.executable_task
    def make(name: str, out: OutputFile) -> str:
        return f"echo {name} > {name}.csv"

    @flow.function_task
    def names(files: Any, *after: Any) -> list[str]:
        return [path.name for path in files]

    tables = [make(name, OutputFile("tables/*.csv", many=True)) for name in "ab"]
    other = make("c", OutputFile("other/*.csv", many=True))
    futures = (*tables, other)
    assert await within(names(InputFile("tables/*.csv"), *futures)) == ["a.csv", "b.csv"]
    assert await within(names(InputFile("*.csv"), *futures)) == ["a.csv", "b.csv", "c.csv"]


async def test_all_paths_start_where_the_engine_was_created(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other").mkdir()
    (here / "in.txt").write_text("right\n")
    (here / "other/in.txt").write_text("wrong\n")
    early = InputFile("in.txt")
    async with WorkflowEngine.create() as flow:
        look = flow.function_task(lambda file, *others: Path(file).read_text())
        copy = flow.executable_task(lambda file, out: f"cat {file} > {out}")

        @flow.function_task
        def move() -> None:
            monkeypatch.chdir("other")  # on a thread, for the whole process

        await within(move())
        assert Path.cwd() == here / "other"
        for file in (early, InputFile("in.txt"), InputFile("./in.txt")):
            assert await within(look(file)) == "right\n"
        copied = copy(InputFile("in.txt"), OutputFile("results/out.txt"))
        assert await within(reader(flow)(InputFile("results/out.txt"))) == "right\n"
        assert await within(flow.save(copied, "saved/")) == [here / "saved/out.txt"]
        assert flow.results[0].path == here / "results/out.txt"
    assert sorted(path.name for path in (here / "other").iterdir()) == ["in.txt"]
