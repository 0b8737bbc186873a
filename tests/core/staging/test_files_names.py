"""Names of inputs in sandboxes: several inputs with one name, and `InputFile(..., name=...)`."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DataError,
    InputFile,
    LocalExecutionBackend,
    OutputDir,
    OutputFile,
    WorkflowEngine,
)
from rhapsody.data import link_into
from tests._support.engine_fixtures import Machine, engine, local_processes
from tests._support.scripted import outcome, within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]

NAMES = ("a/quant.sf", "b/quant.sf", "c/quant.sf")


@pytest.fixture
def samples(here: Path) -> list[InputFile]:
    """Three files with one base name."""
    for name in NAMES:
        (here / name).parent.mkdir()
        (here / name).write_text(f"{name[0]}\n")
    return [InputFile(name) for name in NAMES]


def cat(flow: WorkflowEngine) -> Any:
    @flow.executable_task
    def cat(*files: Any) -> str:
        return f"cat {' '.join(map(str, files))}"

    return cat


def listing(flow: WorkflowEngine) -> Any:
    @flow.executable_task
    def listing(*files: Any) -> list[str]:
        return ["echo", *map(str, files)]

    return listing


@pytest.mark.parametrize("machine", [Machine, LocalExecutionBackend])
async def test_a_command_reads_several_inputs_with_one_name(
    samples: list[InputFile], machine: Callable[[], Any]
) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def words(files: list[InputFile], out: OutputFile) -> list[Any]:
            return ["sh", "-c", 'cat "$@" > out.txt', "sh", *files]

        assert await within(cat(flow)(*samples)) == "a\nb\nc\n"
        assert await within(listing(flow)(*samples)) == "quant.sf 2/quant.sf 3/quant.sf\n"
        await within(words(samples, OutputFile("out.txt", save="./")))
        assert Path("out.txt").read_text() == "a\nb\nc\n"


@pytest.mark.parametrize("machine", [LocalExecutionBackend, local_processes])
async def test_a_function_reads_several_inputs_with_one_name(
    samples: list[InputFile], machine: Callable[[], Any]
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def read(*files: InputFile) -> list[str]:
            return [Path(file).read_text() for file in files]

        @flow.function_task
        def join(out: OutputFile, *files: InputFile) -> None:
            Path(out).write_text("".join(Path(file).read_text() for file in files))

        assert await within(read(*samples)) == ["a\n", "b\n", "c\n"]
        await within(join(OutputFile("results/quant.sf"), *samples))
        assert Path("results/quant.sf").read_text() == "a\nb\nc\n"


async def test_one_file_that_is_passed_twice_has_one_name(
    here: Path, samples: list[InputFile], flow: WorkflowEngine
) -> None:
    again = [InputFile("b/../a/quant.sf"), InputFile(here / "a/quant.sf")]
    assert await within(listing(flow)(samples[0], *again)) == "quant.sf quant.sf quant.sf\n"


async def test_pairs_of_files_share_a_directory(
    here: Path, samples: list[InputFile], flow: WorkflowEngine
) -> None:
    pairs = []
    for file in samples:
        Path(str(file.filepath)).with_name("log").touch()
        pairs += [file, InputFile(Path(str(file.filepath)).with_name("log"))]
    (here / "2").mkdir()
    command = listing(flow)
    expected = "quant.sf log 2/quant.sf 2/log 3/quant.sf 3/log\n"
    assert await within(command(*pairs)) == expected
    assert await within(command(*pairs[:4], InputFile("2"))) == "quant.sf log 3/quant.sf 3/log 2\n"
    assert os.listdir(here / "2") == []


async def test_files_of_other_tasks_may_have_one_name(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def write(text: str, out: OutputFile, tables: OutputFile, plots: OutputDir) -> str:
        return f"echo {text} > {out}; echo {text} > t.csv; mkdir {plots}; echo {text} > {plots}/p"

    @flow.function_task
    def read(*files: Any) -> list[list[str]]:
        return [[Path(path).read_text() for path in file] for file in files]

    @flow.executable_task
    def show(*files: Any) -> str:
        return f"cat {' '.join(map(str, files[:4]))} {files[4]}/p {files[5]}/p"

    made = [
        write(text, OutputFile("out.txt"), OutputFile("*.csv", many=True), OutputDir("plots"))
        for text in "ab"
    ]
    files = [future.file(name) for name in ("out.txt", "*.csv", "plots") for future in made]
    assert await within(show(*files)) == "a\nb\na\nb\na\nb\n"
    expected = [["a\n"], ["b\n"], ["a\n"], ["b\n"]]
    assert await within(read(*files[2:])) == expected


async def test_an_input_is_staged_under_the_name_that_is_given(
    samples: list[InputFile], flow: WorkflowEngine
) -> None:
    (made,) = [flow.executable_task(lambda out: f"echo made > {out}")(OutputFile("quant.sf"))]
    names = ("a.sf", "b.sf", "reference")
    files = [InputFile(file, name=name) for file, name in zip(samples, names, strict=True)]
    url = InputFile("data:,fetched", name="fetched.txt")
    files += [url, InputFile(made.file("quant.sf"), name="quant.sf")]
    other = InputFile("b/quant.sf")
    assert await within(cat(flow)(*files, other)) == "a\nb\nc\nfetchedmade\nb\n"
    expected = "2/quant.sf a.sf b.sf reference fetched.txt quant.sf\n"
    assert await within(listing(flow)(other, *files)) == expected
    Path("d").mkdir()
    assert await within(listing(flow)(InputFile("d", name="all"))) == "all\n"


@pytest.mark.parametrize("machine", [LocalExecutionBackend, local_processes])
async def test_a_function_sees_the_name_that_is_given(
    samples: list[InputFile], machine: Callable[[], Any]
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def read(file: InputFile) -> tuple[str, str]:
            return Path(file).name, Path(file).read_text()

        assert await within(read(InputFile("b/quant.sf", name="b.txt"))) == ("b.txt", "b\n")


async def test_a_name_that_is_given_twice_is_refused(
    samples: list[InputFile], flow: WorkflowEngine
) -> None:
    one, two = (InputFile(file, name="same.sf") for file in samples[:2])
    assert "same.sf" in str(await outcome(cat(flow)(one, two)))
    assert isinstance(await outcome(cat(flow)(one, two)), DataError)
    assert isinstance(await outcome(cat(flow)(one, OutputFile("same.sf"))), DataError)
    run = flow.executable_task(lambda out: "touch 1.csv")
    made = run(OutputFile("*.csv", many=True))
    error = await outcome(cat(flow)(InputFile(made.file("*.csv"), name="one.csv")))
    assert isinstance(error, DataError)
    assert "pattern" in str(error)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0", ".rhapsody.out"])
async def test_a_name_is_a_plain_name(name: str) -> None:
    with pytest.raises(DataError, match="name"):
        InputFile("a.txt", name=name)
    with pytest.raises(TypeError, match="name must be a string"):
        InputFile("a.txt", name=Path("b.txt"))  # type: ignore[arg-type]


async def test_an_input_with_the_name_of_an_output_directory_is_left_alone(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "plots").mkdir()
    (here / "plots/old").touch()

    @flow.executable_task
    def more(old: InputFile, new: OutputDir) -> str:
        return f"cp -r {old}/ {new} && touch {new}/new"

    await within(more(InputFile("plots"), OutputDir("results/plots")))
    assert sorted(os.listdir("results/plots")) == ["new", "old"]
    assert os.listdir("plots") == ["old"]


async def test_a_list_of_files_in_an_f_string_is_refused(
    samples: list[InputFile], flow: WorkflowEngine
) -> None:
    @flow.executable_task
    def text(files: list[InputFile]) -> str:
        return f"cat {files}"

    @flow.executable_task
    def words(files: list[InputFile]) -> list[Any]:
        return ["sh", "-c", f"cat {files}"]

    @flow.executable_task
    def nested(files: list[InputFile]) -> list[Any]:
        return ["cat", files]

    @flow.executable_task
    def one(file: InputFile) -> str:
        return f"cat {file!r}"

    made = flow.executable_task(lambda out: "touch 1.csv")(OutputFile("*.csv", many=True))
    for future in (text(samples), words(samples), one(samples[0]), text([made.file("*.csv")])):
        error = await outcome(future)
        assert isinstance(error, ValueError)
        assert "' '.join(map(str, files))" in str(error)
    assert "*files" in str(await outcome(nested(samples)))


async def test_a_backend_that_takes_plain_names_fails_with_the_fix(
    samples: list[InputFile],
) -> None:
    class Plain(Machine):
        def link_explicit_data_deps(
            self, src_task: Any = None, dst_task: Any = None, file_name: Any = None,
            file_path: Any = None,
        ) -> None:  # fmt: skip
            os.makedirs(dst_task["sandbox"], exist_ok=True)
            os.symlink(file_path, os.path.join(dst_task["sandbox"], file_name))

    async with engine(Plain()) as flow:
        error = await outcome(cat(flow)(*samples))
        assert isinstance(error, DataError)
        assert "name=" in str(error)
        files = [InputFile(file, name=f"{n}.sf") for n, file in enumerate(samples)]
        assert await within(cat(flow)(*files)) == "a\nb\nc\n"


async def test_a_link_in_the_sandbox_does_not_lead_a_name_out_of_it(here: Path) -> None:
    (here / "in.txt").touch()
    (here / "outside").mkdir()
    (here / "sandbox").mkdir()
    (here / "sandbox/2").symlink_to(here / "outside")
    with pytest.raises(DataError):
        link_into(here / "sandbox", "2/in.txt", here / "in.txt")
    for name in ("2/../../in.txt", "2//in.txt", "/in.txt", "2/"):
        with pytest.raises(DataError):
            link_into(here / "sandbox", name, here / "in.txt")
    assert os.listdir(here / "outside") == []
