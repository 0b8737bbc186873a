"""Journaled results from another backend, and results that are not journaled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    TasksMainStates,
    WorkflowEngine,
)
from rhapsody.builtin.journal.plugin import Journal
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


@pytest.mark.parametrize("batch_calls", [False, True])
async def test_a_file_that_a_function_opens_on_a_worker_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_calls: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.txt"

    async def read(log: str) -> str:
        backend = DaskExecutionBackend(resources={"n_workers": 1}, batch_calls=batch_calls)
        async with WorkflowEngine.create(backend, journal="run.sqlite", resume=True) as flow:

            @flow.function_task
            def reads(number: int) -> str:
                with open(log, "a") as file:
                    file.write("reads\n")
                return (tmp_path / "data.txt").read_text() * number

            return "".join(await asyncio.gather(reads(1), reads(1)))

    for text, times in (("a", 2), ("a", 2), ("b", 4)):
        data.write_text(text)
        assert await read(str(tmp_path / "ran.txt")) == 2 * text
        assert ran(tmp_path)["reads"] == times


async def test_a_file_that_a_function_opens_counts_if_its_value_stays_on_the_worker(
    backend: DaskExecutionBackend, tmp_path: Path
) -> None:
    data = tmp_path / "data.txt"

    @contextlib.asynccontextmanager
    async def resumed() -> Any:
        journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
        async with WorkflowEngine.create(LocalExecutionBackend(), observers=[journal]) as flow:
            yield flow
        journal.end("failed")

    async def run(flow: WorkflowEngine) -> list[int]:
        @flow.function_task
        def load(number: int) -> int:
            time.sleep(0.05)  # longer than fetching a number
            return int((tmp_path / "data.txt").read_text()) + number

        @flow.function_task
        def add(number: int) -> int:
            return number + 1

        return await asyncio.gather(*(add(load(number)) for number in range(3)))

    data.write_text("0")
    journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend, observers=[journal]) as flow:
            assert await run(flow) == [1, 2, 3]
        journal.end("failed")
        for content, results in (("0", [1, 2, 3]), ("4", [5, 6, 7])):
            data.write_text(content)
            async with resumed() as flow:
                assert await run(flow) == results


async def test_the_journal_of_the_command_line_keeps_push_down_enabled(
    backend: DaskExecutionBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend, observers=[journal]) as flow:

            @flow.function_task
            def add(number: int) -> int:
                return number + 1

            assert await add(add(add(0))) == 3
            alone = [await add(number) for number in range(2)]
    assert alone == [1, 2]
    assert 2 <= journal.kept <= 3  # the chain stayed, except a first call that imported modules
    assert caplog.text.count("not recorded for resume, because its arguments") == 1
    journal.end("done")


async def test_a_sweep_that_feeds_a_reduction_is_recorded(
    backend: DaskExecutionBackend, cluster: Any, tmp_path: Path
) -> None:
    log, release = tmp_path / "ran.txt", tmp_path / "release"

    async def sweep(flow: WorkflowEngine) -> tuple[list[Any], Any]:
        @flow.function_task
        def simulate(number: int) -> int:
            time.sleep(0.05)  # longer than fetching a number
            with log.open("a") as file:
                file.write("simulate\n")
            return 2 * number

        @flow.function_task
        def total(parts: list[int], release: str) -> int:
            while not os.path.exists(release):
                time.sleep(0.01)
            return sum(parts)

        parts = [simulate(number) for number in range(4)]
        return parts, total(parts, str(release))

    journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
    async with asyncio.timeout(60):
        with contextlib.suppress(ZeroDivisionError):
            async with WorkflowEngine.create(backend, observers=[journal]) as flow:
                parts, whole = await sweep(flow)
                while journal.kept < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert not whole.done()
                assert [part.state for part in parts] == [TasksMainStates.DONE] * 4
                release.touch()
                raise ZeroDivisionError
        journal.end("failed")
        again = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
        other = DaskExecutionBackend(cluster=cluster)
        async with WorkflowEngine.create(other, observers=[again]) as flow:
            parts, whole = await sweep(flow)
            assert await whole == 12
            assert flow.stats.recorded == 4
        again.end("done")
    assert ran(tmp_path) == {"simulate": 4}


async def test_relative_paths_are_not_recorded_if_workers_run_in_another_directory(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pyproject.toml", "absolute.txt"):
        (tmp_path / name).write_text("the program's\n")

    async def run(backend: Any, name: str) -> tuple[list[str], int]:
        async with WorkflowEngine.create(backend, journal="run.sqlite", resume=True) as flow:

            @flow.function_task
            def read(path: Any) -> str:
                return Path(path).read_text()

            paths = [name, str(tmp_path / "absolute.txt"), InputFile("absolute.txt")]
            found = await asyncio.gather(*map(read, paths))
            return found, flow.stats.recorded

    async def on_dask() -> tuple[list[str], int]:
        async with DaskExecutionBackend(cluster=cluster) as backend:
            return await run(backend, "pyproject.toml")

    async with asyncio.timeout(60):
        (elsewhere, *others), recorded = await on_dask()
        assert elsewhere != "the program's\n"
        assert others == ["the program's\n"] * 2
        assert not recorded
        assert "'pyproject.toml' is a relative path" in caplog.text
        assert await on_dask() == ([elsewhere, *others], 2)
        assert await run(LocalExecutionBackend(), "pyproject.toml") == (["the program's\n"] * 3, 2)
        assert await run(LocalExecutionBackend(), "pyproject.toml") == (["the program's\n"] * 3, 3)


async def test_values_on_workers_are_not_recorded_either_if_a_path_was_relative(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("the program's\n")
    journal = Journal(tmp_path / "run.sqlite", tmp_path, push_down=True)
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(
            DaskExecutionBackend(cluster=cluster), observers=[journal]
        ) as flow:

            @flow.function_task
            def read(path: str) -> str:
                time.sleep(0.05)  # longer than fetching the text
                return Path(path).read_text()

            @flow.function_task
            def length(text: str) -> int:
                return len(text)

            assert await length(read("pyproject.toml")) > len("the program's\n")
    journal.end("done")
    assert not journal.kept
    assert "'pyproject.toml' is a relative path" in caplog.text


VARIABLES = """
import re

RATE = 2
TABLE = {"a": 1}
PATTERN = re.compile("a+")

class Model:
    factor = 3

    def __init__(self, number):
        self.number = number

    def run(self):
        return self.number * self.factor

MODEL = Model(4)
"""

READING = """
import values

async def main(flow):
    @flow.function_task
    def read(number):
        return values.RATE, values.TABLE["a"], values.PATTERN.sub("b", "aac"), values.MODEL.run()

    print([await read(number) for number in range(3)])
"""


async def test_a_run_on_a_laptop_continues_on_dask(tmp_path: Path) -> None:
    (tmp_path / "values.py").write_text(VARIABLES)
    (tmp_path / "wf.py").write_text(READING)

    def run(*options: str) -> str:
        command = [sys.executable, "-m", "rhapsody", "run", "wf.py", *options]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100
        )
        assert done.stdout.count("(2, 1, 'bc', 12)") == 3
        return done.stderr

    assert "3 done in" in run()
    assert "3 done (3 of them reused)" in run("--resume", "-b", "dask", "-o", "n_workers=1")
