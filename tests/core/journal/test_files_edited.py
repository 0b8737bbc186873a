"""Saved files that were edited by hand: a copy is kept before their task replaces them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import OutputDir, OutputFile, WorkflowEngine
from rhapsody.fsutil import remove
from tests._support.recorded import broken_off, engine

pytestmark = pytest.mark.asyncio


def file_output() -> tuple[Any, str]:
    return OutputFile("table.txt", save="results/"), "results/table.txt"


def directory_output() -> tuple[Any, str]:
    return OutputDir("tables", save="results/"), "results/tables"


def pattern_output() -> tuple[Any, str]:
    return OutputFile("*.txt", save="results/", many=True), "results/table.txt"


async def write(flow: WorkflowEngine, output: Any, *, text: str = "made") -> None:
    @flow.executable_task
    def command(output: Any) -> str:
        if isinstance(output, OutputDir):
            return f"mkdir tables; echo {text} > tables/table.txt"
        return f"echo {text} > table.txt"

    await command(output)


def content(path: str) -> str:
    found = Path(path)
    return (found / "table.txt" if found.is_dir() else found).read_text()


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def edit(path: str, text: str) -> None:
    found = Path(path)
    (found / "table.txt" if found.is_dir() else found).write_text(text)


@pytest.mark.parametrize("text", ["made", "changed"])
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("output", [file_output, directory_output, pattern_output])
async def test_a_copy_is_kept_and_named(
    caplog: pytest.LogCaptureFixture,
    output: Callable[[], tuple[Any, str]],
    resume: bool,
    text: str,
) -> None:
    declared, path = output()
    async with engine() as flow:
        await write(flow, declared)
    edit(path, "by hand\n")
    async with engine(resume=resume) as flow:
        await write(flow, declared, text=text)
    assert content(path) == f"{text}\n"
    edited = f"{path}.edited"
    assert content(edited) == "by hand\n"
    assert edited in caplog.text


@pytest.mark.parametrize("output", [file_output, directory_output, pattern_output])
async def test_a_saved_file_that_is_missing_is_written_again(
    here: Path, output: Callable[[], tuple[Any, str]]
) -> None:
    declared, path = output()
    async with engine() as flow:
        await write(flow, declared)
    remove(here / path)
    async with engine(resume=True) as flow:
        await write(flow, declared)
    assert content(path) == "made\n"


async def test_a_copy_is_kept_if_the_file_in_the_sandbox_replaces_it() -> None:
    async def program(flow: WorkflowEngine) -> None:
        await write(flow, file_output()[0])

    await broken_off(program)
    edit("results/table.txt", "by hand\n")
    async with engine() as flow:
        await program(flow)
        assert flow.stats.recorded == 1
    assert content("results/table.txt") == "made\n"
    assert content("results/table.txt.edited") == "by hand\n"


async def test_each_edit_is_kept_once(here: Path) -> None:
    async with engine() as flow:
        await write(flow, file_output()[0])
    for text in ("first", "first", "second"):
        edit("results/table.txt", text)
        async with engine(resume=True) as flow:
            await write(flow, file_output()[0])
    assert texts(here / "results") == {
        "table.txt": "made\n",
        "table.txt.edited": "first",
        "table.txt.edited.2": "second",
    }


async def test_nothing_is_kept_of_files_that_the_program_wrote(here: Path) -> None:
    for text in ("one", "two", "one"):
        async with engine(resume=False) as flow:
            await write(flow, file_output()[0], text=text)
            await write(flow, file_output()[0], text=f"again {text}")
    assert texts(here / "results") == {"table.txt": "again one\n"}
