"""Files that match a pattern: declared, passed on and saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DataError,
    InputFile,
    InputFiles,
    OutputFile,
    WorkflowEngine,
)
from tests._support.saving import files, held_open, listing, shell
from tests._support.scripted import within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_all_files_that_match_are_saved_and_handed_on(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "in.csv").write_text("an input")
    command = "echo b > b.csv; echo a > a.csv; touch c.txt .hidden.csv; mkdir d.csv"
    made = shell(flow)(command, OutputFile("results/*.csv", many=True), InputFile("in.csv"))
    value, texts, _ = await within(listing(flow)(InputFile("*.csv"), made))
    assert isinstance(value, InputFiles)
    assert [path.name for path in value] == ["a.csv", "b.csv"]
    assert texts == ["a\n", "b\n"]
    assert files(here / "results") == {"a.csv", "b.csv"}
    assert [file.path for file in flow.results] == [
        here / "results/a.csv", here / "results/b.csv"
    ]  # fmt: skip
    with pytest.raises(TypeError, match=r"'\*.csv' is a pattern that matched 2 files"):
        os.fspath(value)


async def test_a_command_gets_the_names_of_files_that_match_or_one_by_its_name(
    flow: WorkflowEngine,
) -> None:
    command = "echo a > 'a b.csv'; echo c > c.csv"
    made = shell(flow)(command, OutputFile("*.csv", many=True))

    @flow.executable_task
    def join(tables: InputFile, after: Any) -> str:
        return f"cat {tables}"

    assert await within(join(InputFile("*.csv"), made)) == "a\nc\n"
    assert await within(join(InputFile("c.csv"), made)) == "c\n"
    made = shell(flow)("ls", OutputFile("[ab]", many=False))
    with pytest.raises(DataError, match=r"did not write '\[ab\]'"):  # an ordinary name
        await within(made)


async def test_what_matches_in_several_tasks_is_gathered(flow: WorkflowEngine) -> None:
    run = shell(flow)
    parts = [run(f"echo {n} > {n}.csv", OutputFile("*.csv", many=True)) for n in range(3)]
    _, texts, _ = await within(listing(flow)(InputFile("*.csv"), *parts))
    assert texts == ["0\n", "1\n", "2\n"]
    again = run("echo again > 1.csv", OutputFile("*.csv", many=True))
    _, texts, _ = await within(listing(flow)(InputFile("*.csv"), *parts, again))
    assert sorted(texts) == ["0\n", "1\n", "2\n", "again\n"]

    @flow.executable_task
    def names(tables: InputFile, *others: Any) -> list[Any]:
        return ["echo", tables]

    expected = "0.csv 1.csv 2/1.csv 2.csv\n"
    assert await within(names(InputFile("*.csv"), *parts, again)) == expected


async def test_a_task_that_wrote_nothing_that_matches_fails_and_says_what_it_wrote(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "in.csv").touch()
    run, out = shell(flow), OutputFile("*.csv", many=True)
    with pytest.raises(
        DataError, match=r"match '\*.csv', but wrote none .*; it wrote nothing else"
    ):
        await within(run("true", out, InputFile("in.csv")))
    told = r"it wrote '1', '2', '3', 'a.tsv', 'sub/' and 1 more"
    with pytest.raises(DataError, match=told):
        await within(run("touch a.tsv 1 2 3 z; mkdir sub", out))


async def test_a_place_for_several_files_is_a_directory(here: Path, flow: WorkflowEngine) -> None:
    (here / "taken").touch()
    (here / "there").mkdir()
    run = shell(flow)
    for save, complaint in [
        ("all.csv", r"save must be a directory for several files; write save='all.csv/'"),
        ("taken/", "is not a directory"),
        ("taken", "is not a directory"),
    ]:
        with pytest.raises(DataError, match=complaint):
            await within(run(f"touch {here}/ran", OutputFile("*", many=True, save=save)))
    assert not (here / "ran").exists()
    await within(run("touch a", OutputFile("*", many=True, save="there")))
    assert files(here / "there") == {"a"}


async def test_tasks_that_run_at_once_may_save_different_files_in_one_directory(
    here: Path, flow: WorkflowEngine
) -> None:
    out = OutputFile("out/*.csv", many=True)
    first, gate = await held_open(here, flow, out, "echo slow > 1.csv")
    run = shell(flow)
    await within(run("touch 2.csv", out))
    await within(run("touch 3.csv", OutputFile("out/3.csv")))
    gate.write_text("go")
    await within(first)
    assert files(here / "out") == {"1.csv", "2.csv", "3.csv"}


@pytest.mark.parametrize("other", [OutputFile("out/*.csv", many=True), OutputFile("out/1.csv")])
async def test_tasks_that_run_at_once_cannot_save_the_same_file(
    here: Path, flow: WorkflowEngine, other: OutputFile
) -> None:
    out = OutputFile("out/*.csv", many=True)
    first, gate = await held_open(here, flow, out, "echo slow > 1.csv")
    await within(shell(flow)("echo quick > 1.csv", other))
    gate.write_text("go")
    with pytest.raises(DataError, match=r"'slow' cannot save '1.csv' .*'run' saved a file there"):
        await within(first)
    assert (here / "out/1.csv").read_text() == "quick\n"
    await within(shell(flow)("echo later > 1.csv", out))
    assert (here / "out/1.csv").read_text() == "later\n"


async def test_what_matches_is_not_written_over_what_the_run_reads_or_another_writes(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "1.csv").write_text("precious")
    run, out = shell(flow), OutputFile("./*.csv", many=True)
    await within(run("true", InputFile("1.csv")))
    with pytest.raises(DataError, match=r"cannot save '1.csv' .*task 'run' reads that file"):
        await within(run("echo 1 > 1.csv", out))
    assert (here / "1.csv").read_text() == "precious"
    first, gate = await held_open(here, flow, OutputFile("./2.csv"), "echo slow > 2.csv")
    with pytest.raises(
        DataError, match=r"cannot save '2.csv' .*'slow' .* is also about to write there"
    ):
        await within(run("echo 2 > 2.csv", out))
    gate.write_text("go")
    await within(first)
