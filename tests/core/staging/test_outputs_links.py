"""Outputs that are links: their data stays when the rest of the sandbox is removed."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DataError, InputFile, OutputDir, OutputFile, WorkflowEngine
from rhapsody.fsutil import replace_links
from tests._support.saving import files, shell
from tests._support.scripted import until, within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]

DIRECTORY = "mkdir -p d w/s/t; echo 1 > w/s/f; ln -s ../../s/f w/s/t/f; "

COMMANDS: list[tuple[str, Any, set[str]]] = [
    ("echo 1 > .data; ln -s .data out.txt", OutputFile("out.txt"), {"out.txt"}),
    ("echo 1 > data; ln -s $PWD/data out.txt", OutputFile("out.txt"), {"out.txt"}),
    (
        "mkdir -p w/x; echo 1 > w/x/f; ln -s f w/x/g; ln -s w/x/g h; ln -s $PWD/h out.txt",
        OutputFile("out.txt"),
        {"out.txt"},
    ),
    (
        "echo 1 > run1.dat; ln -s run1.dat a.csv; ln -s run1.dat b.csv; ln -s a.csv c.csv",
        OutputFile("*.csv", many=True),
        {"a.csv", "b.csv", "c.csv"},
    ),
    (f"{DIRECTORY} rmdir d; ln -s w/s d", OutputDir("d"), {"d/f", "d/t/f"}),
    (f"{DIRECTORY} ln -s ../w/s/f d/f; ln -s $PWD/w/s/f d/g", OutputDir("d"), {"d/f", "d/g"}),
    (
        f"{DIRECTORY} ln -s ../w/s d/s; ln -s ../w/s/f d/f; cd w/s; ln -s ../../d b; ln -s . c",
        OutputDir("d"),
        {"d/f", "d/s/f", "d/s/t/f"},
    ),
]


@pytest.mark.parametrize(("command", "output", "names"), COMMANDS)
async def test_a_kept_output_that_is_a_link_is_replaced_with_its_target(
    flow: WorkflowEngine, command: str, output: Any, names: set[str]
) -> None:
    async with WorkflowEngine.create() as flow:
        future = shell(flow)(command, output)
        await within(future)
        sandbox = Path(future.sandbox or "")
    assert {file.path.name for file in flow.results} == {name.split("/")[0] for name in names}
    assert {name.split("/")[0] for name in names} == set(os.listdir(sandbox))
    for name in names:
        assert (sandbox / name).read_text() == "1\n"
        assert (sandbox / name).resolve().is_relative_to(sandbox)
    assert not [path for path in sandbox.rglob("*") if not path.exists()]


@pytest.mark.parametrize(("command", "output", "names"), COMMANDS[:-1])
async def test_a_saved_output_that_is_a_link_is_saved_with_its_data(
    here: Path, flow: WorkflowEngine, command: str, output: Any, names: set[str]
) -> None:
    output = type(output)(
        output.filename, save="results/", **({"many": True} if output.many else {})
    )
    await within(shell(flow)(command, output))
    assert files(here / "results") == names
    for name in names:
        assert (here / "results" / name).read_text() == "1\n"
        assert (here / "results" / name).resolve().is_relative_to(here / "results")


async def test_a_later_task_reads_an_output_that_is_a_link(flow: WorkflowEngine) -> None:
    run = shell(flow)
    made = run("echo 1 > .data; ln -s .data out.txt", OutputFile("out.txt"))
    await within(made)
    sandbox = made.sandbox
    del made
    gc.collect()
    await until(lambda: not os.path.lexists(f"{sandbox}/.data"))
    assert await within(run("cat out.txt", InputFile("out.txt"))) == "1\n"


async def test_a_link_to_an_input_in_a_kept_directory_is_replaced_with_a_copy(here: Path) -> None:
    (here / "data.txt").write_text("user's")
    async with WorkflowEngine.create() as flow:
        run = shell(flow)
        run("echo 1 > in.txt", OutputFile("in.txt"))
        fetched = InputFile("data:text/plain,2")
        command = f"mkdir d; ln -s ../in.txt d/a; ln -s {here}/data.txt d/user; "
        command += f"ln -s ../{fetched.filename} d/b"
        future = run(command, OutputDir("d"), InputFile("in.txt"), fetched)
        await within(future)
    directory = Path(future.sandbox or "", "d")
    assert (directory / "a").read_text() == "1\n"
    assert (directory / "b").read_text() == "2"
    assert os.readlink(directory / "user") == str(here / "data.txt")


@pytest.mark.parametrize(
    "output",
    [
        OutputFile("out.csv"),
        OutputFile("out.csv", save="results/"),
        OutputFile("o*.csv", many=True),
        OutputFile("results/o*.csv", many=True),
    ],
)
async def test_an_output_that_is_a_link_to_an_input_is_refused(
    here: Path, flow: WorkflowEngine, output: OutputFile
) -> None:
    (here / "in.csv").write_text("1")
    command = "touch other.csv; ln -s in.csv out.csv"
    with pytest.raises(DataError, match=r"is a link to .*, outside the sandbox"):
        await within(shell(flow)(command, output, InputFile("in.csv")))


async def test_the_target_of_a_link_is_found_by_the_next_run(here: Path) -> None:
    for _ in range(2):
        async with WorkflowEngine.create(journal="j.sqlite", resume=True) as flow:

            @flow.executable_task
            def write(out: OutputFile) -> str:
                return f"echo x >> {here}/ran; echo 1 > .data; ln -s .data {out}"

            @flow.function_task(cache=False)
            def read(file: InputFile) -> str:
                return Path(file).read_text()

            write(OutputFile("out.txt"))
            assert await within(read(InputFile("out.txt"))) == "1\n"
    assert (here / "ran").read_text() == "x\n"


async def test_links_to_whole_sandboxes_and_missing_files_are_left_alone(here: Path) -> None:
    sandbox = here / "work" / "sandbox"
    (sandbox / "d").mkdir(parents=True)
    links = {"sandbox": "..", "work": "../..", "missing": "nothing", "loop": "loop"}
    for name, target in links.items():
        (sandbox / "d" / name).symlink_to(target)
    replace_links(str(sandbox), ["d", "nothing"])
    assert {name: os.readlink(sandbox / "d" / name) for name in links} == links
