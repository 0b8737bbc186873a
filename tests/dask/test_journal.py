"""Journaled results from another backend, and results that are not journaled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine
from rhapsody.journal.plugin import Journal
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


def ran(place: Path) -> Counter[str]:
    log = place / "ran.txt"
    return Counter(log.read_text().split() if log.exists() else ())


async def program(flow: WorkflowEngine, place: Path, last: str) -> str:
    log = place / "ran.txt"

    @flow.function_task
    def double(number: int) -> int:
        with log.open("a") as file:
            file.write("double\n")
        return 2 * number

    @flow.executable_task
    def make(_: OutputFile, number: int) -> str:
        return f"echo make >> {log}; echo {number} > made.txt"

    @flow.executable_task
    def show(word: str, _: Any, file: InputFile) -> str:
        return f"echo {word} >> {log}; cat {file}"

    made = make(OutputFile("made.txt"), await double(await double(1)))
    found: str = await show(last, made, InputFile("made.txt"))
    return found


async def test_results_of_a_local_run_are_reused_on_dask(
    backend: DaskExecutionBackend, tmp_path: Path
) -> None:
    options: Any = {"journal": tmp_path / "run.sqlite", "work_dir": tmp_path / "work"}
    with contextlib.suppress(ZeroDivisionError):
        async with WorkflowEngine.create(LocalExecutionBackend(), **options) as flow:
            assert await program(flow, tmp_path, "here") == "4\n"
            raise ZeroDivisionError
    async with WorkflowEngine.create(backend, **options) as flow:
        assert await program(flow, tmp_path, "there") == "4\n"
        assert flow.stats.recorded == 3
    assert ran(tmp_path) == {"double": 2, "make": 1, "here": 1, "there": 1}


async def test_the_journal_of_the_command_line_keeps_push_down_enabled(
    backend: DaskExecutionBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend, journal=journal) as flow:

            @flow.function_task
            def add(number: int) -> int:
                return number + 1

            assert await add(add(add(0))) == 3
            alone = [await add(number) for number in range(2)]
    assert alone == [1, 2]
    assert journal.kept == 2  # the chain stayed with the workers
    assert caplog.text.count("not recorded for resume, because its arguments") == 1
    journal.end("done")
