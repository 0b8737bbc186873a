"""Files that tasks read and write, through the engine."""

# ruff: noqa: ASYNC240 - the files are small

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DataError,
    DependencyFailureError,
    InputFile,
    OutputDir,
    OutputFile,
    TaskFailedError,
    WorkflowEngine,
    current_task,
)
from tests._support.engine_fixtures import Machine, engine, on_machines
from tests._support.scripted import outcome, within

pytestmark = pytest.mark.asyncio


def read(path: Any) -> str:
    with open(path) as file:
        return file.read()


def writer(flow: WorkflowEngine, *names: str, text: str = "made") -> Any:
    """An executable that declares files of these names and writes them."""

    @flow.executable_task
    def write(*files: OutputFile) -> str:
        return "; ".join(f"echo {text} > '{file.filename}'" for file in files) or "true"

    return write(*(OutputFile(name) for name in names))


def reader(flow: WorkflowEngine) -> Any:
    """A function that reads one file, whatever else it is given."""

    @flow.function_task(name="reader")
    def read_one(file: InputFile, *_: Any) -> str:
        return read(file)

    return read_one


# What a task gets.


@on_machines
async def test_a_function_gets_its_files_with_absolute_paths_in_its_sandbox(machine: Any) -> None:
    Path("sub").mkdir()
    Path("sub/in.txt").write_text("from disk")

    def work(given: InputFile, wanted: OutputFile) -> tuple[str, str | None]:
        assert given.filepath is not None
        assert given.filepath.is_absolute()
        assert os.path.isabs(os.fspath(wanted))
        Path(wanted).write_text(read(given).upper())
        assert (given.filename, wanted.filename) == ("in.txt", "out.txt")
        assert os.path.dirname(given) == os.path.dirname(wanted)
        return os.path.dirname(os.fspath(given)), current_task().sandbox

    async with engine(machine(), work_dir="work", keep_sandboxes="all") as flow:
        future = flow.function_task(work)(InputFile("sub/in.txt"), OutputFile("out.txt"))
        place, sandbox = await future
        assert place == sandbox == future.sandbox
        assert os.path.dirname(place) == os.path.abspath("work")
        assert Path(place, "out.txt").read_text() == "FROM DISK"
    assert Path("sub/in.txt").read_text() == "from disk"
    assert not Path("out.txt").exists()


@on_machines
async def test_an_async_function_gets_its_files_too(machine: Any) -> None:
    Path("in.txt").write_text("text")

    async def work(given: InputFile) -> str:
        await asyncio.sleep(0)
        return read(given)

    async with engine(machine()) as flow:
        assert await flow.function_task(work)(InputFile("in.txt")) == "text"


@on_machines
async def test_a_command_finds_its_files_by_name_and_by_path(machine: Any) -> None:
    Path("in put.txt").write_text("text")
    async with engine(machine()) as flow:

        @flow.executable_task
        def by_name(given: InputFile) -> list[str]:
            return ["cat", given.filename]

        @flow.executable_task
        async def by_path(given: InputFile) -> list[str]:
            return ["cat", os.fspath(given)]

        assert await by_name(InputFile("in put.txt")) == "text"
        assert await by_path(InputFile(Path("in put.txt"))) == "text"


@on_machines
async def test_a_file_in_a_function_is_its_absolute_path_as_text(machine: Any) -> None:
    Path("in.txt").write_text("text")
    Path("out.txt").write_text("a file of the same name in the current directory")
    async with engine(machine()) as flow:

        @flow.function_task
        def copy(given: InputFile, made: OutputFile) -> list[str]:
            Path(f"{made}").write_text(Path(str(given)).read_text())
            return [str(given), os.fspath(given), str(made), os.fspath(made)]

        copied = copy(InputFile("in.txt"), OutputFile("out.txt"))
        texts = await copied
        assert texts[0] == texts[1]
        assert texts[2] == texts[3]
        assert all(map(os.path.isabs, texts))
        assert Path(texts[2]).read_text() == "text"
        assert "same name" in Path("out.txt").read_text()


@on_machines
async def test_list_commands_take_files_and_paths(machine: Any) -> None:
    Path("in put.txt").write_text("text")
    for name in ("a 1.csv", "b.csv"):
        Path(name).write_text(name)
    async with engine(machine()) as flow:

        @flow.executable_task
        def copy(given: InputFile, made: OutputFile) -> list[str | os.PathLike[str]]:
            return [Path("/bin") / "cp", given, made]

        @flow.executable_task
        def split(*made: Any) -> str:
            return "echo one > 'a 1.csv'; echo two > b.csv"

        @flow.executable_task
        async def join(tables: InputFile, one: InputFile, made_by: Any) -> list[Any]:
            return ["cat", tables, one]

        copied = copy(InputFile("in put.txt"), OutputFile("out put.txt"))
        await copied
        assert copied.sandbox is not None
        assert Path(copied.sandbox, "out put.txt").read_text() == "text"
        made = split(OutputFile("*.csv", many=True))
        joined = join(InputFile("*.csv"), InputFile("in put.txt"), made)
        assert await joined == "one\ntwo\ntext"


@on_machines
async def test_a_name_that_begins_with_a_dash_is_no_option(machine: Any) -> None:
    Path("-n.txt").write_text("10\n9\n")
    async with engine(machine()) as flow:

        @flow.executable_task
        def sort(file: InputFile, out: OutputFile) -> list[Any]:
            return ["sort", file, "-o", out]

        @flow.executable_task
        def show(files: InputFile, *, text: bool) -> Any:
            return f"cat {files}" if text else ["cat", files]

        called = sort(InputFile("-n.txt"), OutputFile("-out.txt"))
        await within(called)
        assert called.files["-out.txt"].filename == "-out.txt"
        many = flow.executable_task(lambda out: "echo a > ./-a.csv; echo b > ./-b.csv")
        written = many(OutputFile("*.csv", many=True)).file("*.csv")
        for text in (True, False):
            assert await within(show(called.file("-out.txt"), text=text)) == "10\n9\n"
            assert await within(show(written, text=text)) == "a\nb\n"


@on_machines
async def test_files_are_found_in_keywords_and_containers(machine: Any) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        Path(name).write_text(name)

    def work(files: dict[str, Any], *, more: tuple[InputFile, ...]) -> list[str]:
        return [read(file) for file in (*files["list"], *more)]

    async with engine(machine()) as flow:
        result = await flow.function_task(work)(
            {"list": [InputFile("a.txt"), InputFile("b.txt")]}, more=(InputFile("c.txt"),)
        )
        assert result == ["a.txt", "b.txt", "c.txt"]


async def test_the_callers_own_file_object_is_left_alone() -> None:
    Path("in.txt").write_text("x")
    given = InputFile("in.txt")
    before = given.filepath
    async with engine(Machine()) as flow:
        await reader(flow)(given)
    assert given.filepath == before


@on_machines
async def test_a_directory_is_an_input_as_a_whole(machine: Any) -> None:
    Path("data/deep").mkdir(parents=True)
    Path("data/deep/x").write_text("inside")
    async with engine(machine()) as flow:

        @flow.executable_task
        def work(given: InputFile) -> str:
            return f"cat {given.filename}/deep/x"

        assert await work(InputFile("data")) == "inside"


# From one task to the next.


@on_machines
async def test_what_an_executable_wrote_is_read_by_a_function_and_the_other_way(
    machine: Any,
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def double(given: InputFile, wanted: OutputFile, *_: Any) -> None:
            Path(wanted).write_text(str(2 * int(read(given))))

        @flow.executable_task
        def show(given: InputFile, *_: Any) -> str:
            return f"cat {given.filename}"

        first = writer(flow, "number.txt", text="21")
        second = double(InputFile("number.txt"), OutputFile("double.txt"), first)
        assert await show(InputFile("double.txt"), second) == "42"
        assert not Path("number.txt").exists()


@on_machines
async def test_after_links_the_file_too(machine: Any) -> None:
    async with engine(machine()) as flow:
        first = writer(flow, "made.txt")
        assert await reader(flow).options(after=[first])(InputFile("made.txt")) == "made\n"


async def test_a_dependencys_output_comes_before_a_file_on_disk() -> None:
    Path("made.txt").write_text("on disk")
    async with engine(Machine()) as flow:
        task = reader(flow)
        assert await task(InputFile("made.txt"), writer(flow, "other.txt")) == "on disk"
        assert await task(InputFile("made.txt"), writer(flow, "made.txt")) == "made\n"


async def test_a_name_that_no_earlier_call_promised_finds_nothing() -> None:
    async with engine(Machine()) as flow:
        error = await outcome(reader(flow)(InputFile("made.txt")))
        assert isinstance(error, DataError)
        assert "made.txt" in str(error)
        await writer(flow, "made.txt")


async def test_two_dependencies_that_make_the_same_file_are_an_error_that_names_it() -> None:
    async with engine(Machine()) as flow:
        left, right = writer(flow, "made.txt"), writer(flow, "made.txt")
        error = await outcome(reader(flow)(InputFile("made.txt"), left, right))
        assert isinstance(error, DataError)
        assert isinstance(error, ValueError)
        assert "made.txt" in str(error)
        assert await reader(flow)(InputFile("made.txt"), left, [left]) == "made\n"


async def test_the_files_are_those_of_the_attempt_that_succeeded() -> None:
    async with engine(Machine(), retries=1) as flow:

        @flow.function_task
        def write(wanted: OutputFile) -> int:
            attempt = current_task().attempt
            assert not os.path.exists(wanted)  # each attempt has a fresh sandbox
            Path(wanted).write_text(f"attempt {attempt}")
            if attempt == 1:
                raise OSError("once more")
            return attempt

        first = write(OutputFile("made.txt"))
        assert await reader(flow)(InputFile("made.txt"), first) == "attempt 2"


@pytest.mark.parametrize("keep", ["failed", "none"])
async def test_a_sandbox_stays_while_a_dependent_needs_it(keep: Any) -> None:
    gate = asyncio.Event()
    async with engine(Machine(), keep_sandboxes=keep) as flow:

        @flow.block
        async def late() -> None:
            await gate.wait()

        first = writer(flow, "made.txt")
        last = reader(flow)(InputFile("made.txt"), first, late())
        await first
        del first
        gate.set()
        assert await last == "made\n"


# Missing files.


@on_machines
@pytest.mark.parametrize("kind", ["function", "executable"])
async def test_a_promised_file_that_was_not_written_fails_the_task(machine: Any, kind: str) -> None:
    async with engine(machine()) as flow:

        def write(*_: OutputFile) -> str:
            return "true"

        decorate: Any = flow.function_task if kind == "function" else flow.executable_task
        future = decorate(name="forgetful")(write)(OutputFile("made.txt"))
        last = reader(flow)(InputFile("made.txt"), future)
        error = await outcome(future)
        assert isinstance(error, DataError)
        assert "made.txt" in str(error)
        assert "forgetful" in str(error)
        assert future.state == "FAILED"
        assert isinstance(await outcome(last), DependencyFailureError)


async def test_of_several_promised_files_those_that_are_missing_are_named() -> None:
    async with engine(Machine()) as flow:

        @flow.executable_task
        def write(*_: OutputFile) -> str:
            return "touch there.txt"

        error = await outcome(write(OutputFile("there.txt"), OutputFile("not.txt")))
        assert "not.txt" in str(error)
        assert not re.search(r"\bthere\.txt", str(error))


async def test_an_input_that_is_not_there_fails_the_task_before_it_runs() -> None:
    async with engine(Machine()) as flow:
        Path("gone.txt").write_text("x")
        given = InputFile("gone.txt")
        Path("gone.txt").unlink()
        for file in (given, InputFile("never.txt")):
            error = await outcome(reader(flow)(file))
            assert isinstance(error, DataError)
            assert file.filename in str(error)
            assert "reader" in str(error)


@on_machines
@pytest.mark.parametrize(
    "command",
    [
        "sort 'data/x.csv'|uniq",
        "sort 'data/x.csv' 'data/my x'",
        ["sort", "--files0-from=data/x.csv"],
        ["./data/x.csv"],
    ],
)
async def test_a_command_that_misses_a_file_of_the_current_directory_gets_a_hint(
    machine: Any, command: Any
) -> None:
    Path("data").mkdir()
    Path("data/x.csv").write_text("text")
    Path("data/my x").write_text("text")
    async with engine(machine()) as flow:

        @flow.executable_task
        def run(*_: Any) -> Any:
            return command if isinstance(command, list) else f"set -o pipefail; {command}; exit 1"

        error = await outcome(run())
        assert isinstance(error, TaskFailedError | FileNotFoundError)
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        assert len(re.findall(r"pass InputFile\('(\./)?data/(x.csv|my x)'\)", said)) == 1
        raised_in = list(map(str, traceback.extract_tb(error.__traceback__)))
        assert not any("executables.py" in frame for frame in raised_in)


@pytest.mark.parametrize("command", ["cat {0}", "cat '{0}'; exit 1", "cat {0} > {1}", "> {1}"])
async def test_a_command_with_a_file_name_that_needs_quotes_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data.csv").write_text("")

    async with engine(Machine()) as flow:

        @flow.executable_task
        def show(data: InputFile, out: OutputFile) -> str:
            return command.format(data, out)

        @flow.executable_task
        def show_text(data: str) -> str:
            return command.format(data, "x")

        error = await outcome(show(InputFile("my data.csv"), OutputFile("my table.csv")))
        hint = "write {shlex.quote(str(file))} in the command, or return a list of arguments"
        assert (hint in str(error)) == ("'" not in command), error
        name = "my table.csv" if command == "> {1}" else "my data.csv"
        assert (f"the shell does not treat {name!r} as one word" in str(error)) == (
            hint in str(error)
        )
        if command == "cat {0}":
            assert hint in str(await outcome(show_text("my data.csv")))


async def test_a_failed_command_gets_no_hint_about_files_that_it_sees() -> None:
    Path("x.csv").write_text("text")
    Path("data").mkdir()
    async with engine(Machine()) as flow:

        @flow.executable_task
        def run(*_: Any) -> str:
            return f"test -s x.csv; cat data {Path.cwd()}/x.csv; exit 3"

        assert "hint" not in str(await outcome(run(InputFile("x.csv"))))
        in_place = run.options(cwd=".")
        assert "hint" not in str(await outcome(in_place()))


# Escapes.


@pytest.mark.parametrize("name", ["/no/such/file", "../no-such-file", "a/../../no-such-file"])
async def test_a_path_that_leads_elsewhere_is_no_file_of_a_dependency(name: str) -> None:
    async with engine(Machine()) as flow:
        error = await outcome(reader(flow)(InputFile(name)))
        assert isinstance(error, DataError)
        assert "missing input file" in str(error)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "dir/", "sub/..", "a\0b"])
async def test_an_output_needs_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="OutputFile"):
        OutputFile(name)


@on_machines
@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret.txt", "/"])
async def test_a_promised_file_that_is_a_link_out_of_the_sandbox_is_refused(
    machine: Any, target: str
) -> None:
    Path("secret.txt").write_text("secret")
    async with engine(machine(), work_dir="work") as flow:

        @flow.executable_task
        def write(wanted: OutputFile) -> list[str]:
            return ["ln", "-s", target, wanted.filename]

        future = write(OutputFile("made.txt"))
        last = reader(flow)(InputFile("made.txt"), future)
        errors = [await outcome(last), await outcome(future)]
        assert isinstance(errors[1], DataError)
        assert isinstance(errors[0], DependencyFailureError)


@on_machines
async def test_an_output_never_lands_outside(machine: Any) -> None:
    async with engine(machine(), work_dir="work") as flow:

        @flow.executable_task
        def write(wanted: OutputFile) -> str:
            return f"echo x > {wanted.filename}"

        wanted = OutputFile("made.txt")
        await write(wanted)
        assert not Path("made.txt").exists()
        assert sorted(os.listdir(".")) in (["work"], [])


# Implicit data.


@on_machines
async def test_what_a_dependency_left_is_in_the_dependents_sandbox(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def leave() -> str:
            return "echo one > 'with space.txt'; mkdir sub; echo two > sub/deep.txt; echo .h > .h"

        @flow.executable_task
        def look(*_: Any) -> str:
            return "cat 'with space.txt' sub/deep.txt"

        assert await look(leave()) == "one\ntwo\n"


@on_machines
async def test_without_implicit_data_it_is_not(machine: Any) -> None:
    async with engine(machine(), implicit_data=False) as flow:

        @flow.executable_task
        def leave() -> str:
            return "echo one > left.txt"

        @flow.executable_task
        def look(*_: Any) -> str:
            return "ls"

        assert await look(leave()) == ""


@on_machines
async def test_a_dependency_that_declares_outputs_leaves_only_what_is_asked_for(
    machine: Any,
) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def leave(wanted: OutputFile) -> str:
            return f"touch {wanted.filename} other.txt"

        @flow.executable_task
        def look(*_: Any) -> str:
            return "ls"

        first = leave(OutputFile("made.txt"))
        assert await look(first) == ""
        assert await look(first, InputFile("made.txt")) == "made.txt\n"


@on_machines
async def test_of_two_dependencies_both_are_there_and_an_empty_one_is_harmless(
    machine: Any,
) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def leave(name: str) -> str:
            return f"echo {name} > {name}" if name else "true"

        @flow.executable_task
        def look(*_: Any) -> str:
            return "ls"

        assert await look(leave("a"), [leave("b")], leave("")) == "a\nb\n"


@on_machines
async def test_a_functions_files_are_implicit_data_too_where_it_declared_none(
    machine: Any,
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task(capture="files")
        def leave() -> None:
            Path(str(current_task().sandbox), "left.txt").write_text("left")

        @flow.executable_task
        def look(*_: Any) -> str:
            return "cat left.txt"

        assert await look(leave()) == "left"


@on_machines
async def test_a_function_with_inputs_only_reads_them_where_they_are(machine: Any) -> None:
    Path("in.txt").write_text("x")
    Path("some").mkdir()
    Path("some/other.txt").write_text("y")
    async with engine(machine()) as flow:

        @flow.executable_task
        def make(*outputs: Any) -> str:
            return "echo made > made.txt; mkdir -p parts; echo 1 > parts/a; echo 2 > part-1.csv"

        @flow.function_task
        def read(*files: Any) -> list[Any]:
            paths = [list(f) if isinstance(f, list) else Path(f) for f in files]
            return [current_task().sandbox, *paths]

        outputs = [OutputFile("made.txt"), OutputDir("parts"), OutputFile("*.csv", many=True)]
        made = make(*outputs)
        inputs = [made.file(name) for name in ("made.txt", "parts", "*.csv")]
        found = await read(InputFile("in.txt"), InputFile("some/other.txt"), *inputs)
        directory = Path(str(made.sandbox))
        assert found == [
            None,
            Path("in.txt").absolute(),
            Path("some/other.txt").absolute(),
            directory / "made.txt",
            [directory / "parts" / "a"],
            [directory / "part-1.csv"],
        ]


@on_machines
async def test_what_a_failed_function_has_read_stays(machine: Any) -> None:
    async with engine(machine(), keep_sandboxes="failed") as flow:

        @flow.executable_task
        def make(output: OutputFile) -> str:
            return f"echo made > {output}"

        @flow.function_task
        def read(file: InputFile, *, well: bool) -> str:
            assert well, os.fspath(file)
            return os.fspath(file)

        kept = make(OutputFile("one.txt"))
        failing = read(kept.file("one.txt"), well=False)
        dropped = await read(make(OutputFile("two.txt")).file("two.txt"), well=True)
        with pytest.raises(AssertionError):
            await failing
        path = Path(str(kept.sandbox), "one.txt")
    assert path.read_text() == "made\n"
    assert not os.path.exists(dropped)


# Backends and what they can.


async def test_a_backend_without_files_refuses_them_before_submission() -> None:
    Path("in.txt").write_text("x")

    class Plain(Machine):
        name = "plain"
        capabilities = dataclasses.replace(Machine.capabilities, files=False, sandboxes=False)

    async with engine(Plain()) as flow:
        for given in (InputFile("in.txt"), OutputFile("out.txt")):
            error = await outcome(reader(flow)(given))
            assert isinstance(error, CapabilityError)
            assert "plain" in str(error)


async def test_between_backends_on_one_file_system_the_path_is_handed_on() -> None:
    class Other(Machine):
        name = "other"

    async with engine([Machine(), Other()]) as flow:  # type: ignore[arg-type]
        first = writer(flow, "made.txt")
        last = reader(flow).options(backend="other")(InputFile("made.txt"), first)
        assert await last == "made\n"
        assert (first.backend, last.backend) == ("machine", "other")


async def test_a_url_is_fetched_when_the_task_runs_and_not_into_the_current_directory() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    given = InputFile("memory://place/data.txt")
    memory.pipe("/place/data.txt", b"remote")
    try:
        async with engine(Machine(), work_dir="work") as flow:
            assert given.filepath is None
            assert await reader(flow)(given) == "remote"
            assert os.listdir(".") in (["work"], [])
            error = await outcome(reader(flow)(InputFile("memory://place/nothing.txt")))
            assert isinstance(error, DataError)
            assert "nothing.txt" in str(error)
    finally:
        memory.rm("/place", recursive=True)


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
