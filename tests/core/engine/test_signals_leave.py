"""Tests of sandboxes and of messages about blocks after a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rhapsody.data import OUTPUT_FILES
from tests._support.programs import Program

TEXT = """
from rhapsody import OutputFile, current_task

async def main():
    async with WorkflowEngine.create(keep_sandboxes={keep!r}, work_dir="work", uid="e") as flow:
        @flow.executable_task
        async def quick(*files):
            return "touch made out"

        @flow.executable_task
        async def sleeper(*earlier):
            return "touch started; exec sleep 1000"

        @flow.function_task(capture="files")
        def function():
            open(os.path.join(current_task().sandbox, "started"), "w").close()
            while not current_task().cancelled:
                time.sleep(0.01)

        done = quick(OutputFile("out"))
        await done
        running = [sleeper(done), function()]
        while not all(os.path.exists(f"work/e.task.00000{{n}}.1/started") for n in (2, 3)):
            await asyncio.sleep(0.01)
        say("ready")
        await asyncio.gather(*running)

asyncio.run(main())
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    programs: list[Program] = []

    def start_one(keep: str) -> Program:
        programs.append(Program(tmp_path / "program.py", TEXT.format(keep=keep)))
        return programs[-1]

    yield start_one
    for program in programs:
        program.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_none_are_kept_a_signal_leaves_none(
    start: Callable[[str], Program], tmp_path: Path, number: signal.Signals
) -> None:
    program = start("none")
    program.until("ready")
    program.send(number)
    _, _, errors = program.end()
    assert not (tmp_path / "work").exists(), (os.listdir(tmp_path / "work"), errors)


def test_else_those_of_interrupted_tasks_stay_with_what_they_read(
    start: Callable[[str], Program], tmp_path: Path
) -> None:
    program = start("failed")
    program.until("ready")
    program.send(signal.SIGINT)
    _, _, errors = program.end()
    left = {path.name: set(os.listdir(path)) for path in (tmp_path / "work").iterdir()}
    assert left["e.task.000002.1"] == {"started", *OUTPUT_FILES}, errors
    assert left["e.task.000003.1"] >= {"started"}
    assert left["e.task.000001.1"] >= {"out", "made"}


def test_a_sync_block_in_wait_is_not_said_to_go_on_after_a_signal(tmp_path: Path) -> None:
    program = Program(
        tmp_path / "program.py",
        """
        async def main():
            async with WorkflowEngine.create(work_dir="work") as flow:
                @flow.executable_task
                def sleeper():
                    return "touch ../../started; exec sleep 1000"

                @flow.block
                def part():
                    rhapsody.wait(sleeper())

                whole = part()
                while not os.path.exists("started"):
                    await asyncio.sleep(0.01)
                say("ready")
                await whole

        asyncio.run(main())
        """,
    )
    try:
        program.until("ready")
        program.send(signal.SIGTERM)
        code, _, errors = program.end()
        assert code == 143
        assert "could not be stopped" not in errors
    finally:
        program.close()
