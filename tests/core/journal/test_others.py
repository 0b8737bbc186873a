"""Results that a run takes from the journals of other runs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.builtin.journal.others import other_journals
from rhapsody.builtin.journal.plugin import Journal
from tests._support.journal_keys import key_of, keys_in, loaded, write

NAMES = "one", "two"


async def run(
    path: Path, others: list[Path], *, calls: int = 3, resume: bool = True
) -> tuple[list[Any], Mapping[Path, int], int]:
    """Run a program with a journal, and return its values and the numbers of reused results."""
    journal = Journal(path, Path.cwd(), resume=resume, others=others)
    async with WorkflowEngine.create(observers=[journal]) as flow:

        @flow.function_task
        def sample(number: int) -> str:
            return os.urandom(8).hex()

        @flow.executable_task
        def copy(source: InputFile, table: OutputFile) -> str:
            return f"cat {source} > {table}"

        @flow.function_task
        def length(table: InputFile) -> int:
            return len(Path(table).read_text())

        copied = copy(InputFile("in.txt"), OutputFile("results/out.txt"))
        values = [sample(1) for _ in range(calls)]
        found = [*await asyncio.gather(*values), await length(copied.file("out.txt"))]
        recorded = flow.stats.recorded
    journal.end("done")
    return found, dict(journal.copied), recorded


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths of two journals in a private directory, newest last."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text")
    return [tmp_path / f"{name}.sqlite" for name in NAMES]


@pytest.mark.asyncio
async def test_the_nth_result_is_taken_for_the_nth_call(journals: list[Path]) -> None:
    one, two = journals
    first, copied, _ = await run(one, [])
    assert copied == {}
    second, copied, recorded = await run(two, [one], calls=4)
    assert second[:3] == first[:3]
    assert copied == {one: 5}
    assert recorded == 5
    assert second[3] not in first
    third, copied, recorded = await run(one, [two], calls=4)  # its own results take precedence
    assert third == second
    assert copied == {two: 1}
    assert recorded == 6


@pytest.mark.asyncio
async def test_tasks_that_come_after_others_are_taken_as_well(journals: list[Path]) -> None:

    async def ordered(path: Path, others: list[Path]) -> int:
        journal = Journal(path, Path.cwd(), resume=True, others=others)
        async with WorkflowEngine.create(observers=[journal]) as flow:

            @flow.function_task
            def first() -> None: ...

            @flow.function_task
            def second() -> None: ...

            await second.options(after=[first()])()
            recorded = flow.stats.recorded
        journal.end("done")
        return recorded

    one, two = journals
    assert [await ordered(one, []), await ordered(two, [one]), await ordered(two, [])] == [0, 2, 2]


@pytest.mark.asyncio
async def test_results_from_before_a_fresh_run_are_not_taken(journals: list[Path]) -> None:
    one, two = journals
    first, *_ = await run(one, [])
    await run(two, [], calls=0, resume=False)
    _, copied, _ = await run(two, [one])
    assert copied == {}
    third, copied, _ = await run(one, [two], calls=4)
    assert third[:3] == first[:3]
    await run(one, [], calls=0, resume=False)
    fourth, copied, _ = await run(two.with_name("three.sqlite"), [one])
    assert copied == {one: 2}  # those of the fresh run
    assert not {*fourth[:3]} & {*first[:3]}


@pytest.mark.asyncio
async def test_files_are_found_from_a_journal_in_another_directory(
    journals: list[Path], tmp_path: Path
) -> None:
    one = journals[0]
    first, *_ = await run(one, [])
    away = tmp_path / "away" / "deep"
    away.mkdir(parents=True)
    second, copied, _ = await run(away / "two.sqlite", [one])
    assert (second, copied) == (first, {one: 5})
    (tmp_path / "results/out.txt").unlink()
    third, copied, _ = await run(away / "three.sqlite", [one])
    assert (third, copied) == (first, {one: 5})
    assert (tmp_path / "results/out.txt").read_text() == "text"  # saved again from the sandbox


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["damaged", "another database", "writable", "another user"])
async def test_a_journal_that_cannot_be_trusted_is_not_used(
    fault: str, journals: list[Path]
) -> None:
    one, two = journals
    first, *_ = await run(one, [])
    if fault == "damaged":
        with one.open("r+b") as file:
            file.seek(100)
            file.write(os.urandom(5000))
    elif fault == "another database":
        one.unlink()
        sqlite3.connect(one).execute("CREATE TABLE recordings (key)").connection.close()
    elif fault == "writable":
        one.chmod(0o620)
    elif os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    else:
        os.chown(one, 12345, 12345)
    second, copied, _ = await run(two, [one])
    assert copied == {}
    assert first[:3] != second[:3]


@pytest.mark.parametrize(
    ("program", "portable"),
    [
        ("import sys\ndef f(x): return x\n", True),
        ("import argparse\ndef f(x): return argparse.ArgumentParser().parse_args(), x\n", False),
        (
            "import argparse\np = argparse.ArgumentParser()\ndef f(x): return p.parse_args()\n",
            False,
        ),
        ("import getopt\ndef g(): return getopt.getopt\ndef f(x): return g()\n", False),
    ],
)
def test_a_function_that_reads_arguments_through_a_library_shares_no_results(
    program: str, portable: bool, tmp_path: Path
) -> None:
    write(tmp_path, {"main.py": program})
    with loaded(tmp_path) as main:
        assert key_of(keys_in(tmp_path), main.f, 1).portable is portable


def test_the_journals_that_were_used_last_come_first(tmp_path: Path) -> None:
    directory = tmp_path / ".rhapsody" / "journals"
    directory.mkdir(parents=True)
    for age, name in enumerate(("own", "new", "old")):
        (directory / f"{name}.sqlite").touch()
        os.utime(directory / f"{name}.sqlite", (1000 - age, 1000 - age))
    own = directory / "own.sqlite"
    names = [path.name for path in other_journals(own, tmp_path)]
    assert names == ["new.sqlite", "old.sqlite"]
    elsewhere = tmp_path / "elsewhere" / "own.sqlite"
    assert len(other_journals(elsewhere, tmp_path)) == 3
