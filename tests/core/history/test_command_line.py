"""Tests of the record that `rhapsody run` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody.history.reader import RunHistory, list_runs, read_run
from tests._support.command_line import SIMPLE, Run

OWN_ENGINES = """
import asyncio
from rhapsody import WorkflowEngine

async def run():
    for number in range(2):
        async with WorkflowEngine.create({options}) as flow:
            print(await flow.function_task(lambda x: x, name="part")(number))

asyncio.run(run())
{more}
"""


def latest(directory: Path) -> RunHistory:
    """The record of the newest run in a directory."""
    return read_run(directory / ".rhapsody" / "latest")


def test_every_run_is_recorded(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        done = run(SIMPLE, "-q", "--fresh", "--", "argument")
        assert done.returncode == 0, done.stderr
    runs = list_runs(tmp_path / ".rhapsody")
    assert [(each.outcome, each.stats["done"]) for each in runs] == [("done", 2)] * 2
    assert runs[0].arguments == ("argument",)
    assert runs[0].program == str(tmp_path / "script.py")
    history = latest(tmp_path)
    assert [task.call for task in history.tasks.values()] == ["double(1)", "double(2)"]
    (engine,) = history.engines.values()
    assert str(engine.options["journal"]).startswith(str(tmp_path / ".rhapsody/journals/script-"))
    assert "observers" not in engine.options


@pytest.mark.parametrize("options", [("-e", "record=false"), ("--dry-run",)])
def test_a_run_need_not_be_recorded(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert run(SIMPLE, "-q", *options).returncode == 0
    assert list_runs(tmp_path / ".rhapsody") == []


def test_engines_of_the_program_are_recorded_in_one_file(run: Run, tmp_path: Path) -> None:
    done = run(OWN_ENGINES.format(options="work_dir='work'", more=""), "-q")
    assert (done.returncode, done.stdout) == (0, "0\n1\n"), done.stderr
    history = latest(tmp_path)
    assert len(history.engines) == 2
    assert history.run.outcome == "done"
    assert history.run.stats["tasks"] == 2
    text = history.run.path.read_text()
    assert text.count('"event":"run_end"') == 1


def test_a_run_starts_before_its_program(run: Run, tmp_path: Path) -> None:
    program = OWN_ENGINES.format(options="", more="")
    done = run(f"import time\nprint(time.time())\n{program}", "-q")
    assert done.returncode == 0, done.stderr
    history = latest(tmp_path)
    assert history.run.started is not None
    assert history.run.started <= float(done.stdout.splitlines()[0])


def test_options_of_the_program_take_precedence(run: Run, tmp_path: Path) -> None:
    done = run(OWN_ENGINES.format(options="record='mine.jsonl'", more=""), "-q")
    assert done.returncode == 0, done.stderr
    assert list_runs(tmp_path / ".rhapsody") == []
    assert len(read_run(tmp_path / "mine.jsonl").engines) == 2
    assert run(OWN_ENGINES.format(options="record=False", more=""), "-q").returncode == 0
    assert list_runs(tmp_path / ".rhapsody") == []


@pytest.mark.parametrize(
    ("more", "outcome"),
    [("raise ValueError('after')", "failed"), ("raise SystemExit(3)", "failed"), ("", "done")],
)
def test_the_outcome_is_that_of_the_program(
    run: Run, tmp_path: Path, more: str, outcome: str
) -> None:
    run(OWN_ENGINES.format(options="", more=more), "-q")
    history = latest(tmp_path)
    assert history.run.outcome == outcome
    assert {engine.outcome for engine in history.engines.values()} == {"done"}


INTERRUPTED = """
import asyncio, os, signal

async def main(flow):
    @flow.function_task
    async def endless():
        await asyncio.Event().wait()

    future = endless()
    while flow.running == ():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    await future
"""


def test_an_interrupted_run_is_recorded_as_that(run: Run, tmp_path: Path) -> None:
    assert run(INTERRUPTED, "-q").returncode == 130
    history = latest(tmp_path)
    assert history.run.outcome == "interrupted"
    (task,) = history.tasks.values()
    assert str(task.state) == "CANCELED"


def test_a_program_without_the_command_records_with_an_option(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(OWN_ENGINES.format(options="record=True", more=""))
    done = subprocess.run(
        [sys.executable, "p.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(latest(tmp_path).engines) == 2
    assert latest(tmp_path).run.outcome == "done"
