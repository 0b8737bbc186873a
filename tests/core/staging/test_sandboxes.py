"""Sandboxes: where they are, when they are made and how long they stay."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import asyncio
import gc
import stat
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, TaskFailedError, WorkflowEngine
from tests._support.scripted import Inline, until, within

pytestmark = pytest.mark.asyncio


async def gone(path: Path) -> None:
    """Wait until a path is removed, possibly by a thread."""
    async with asyncio.timeout(60):
        while path.exists():
            gc.collect()
            await asyncio.sleep(0.01)


def sandboxes(work_dir: Path) -> set[str]:
    """The names of the directories in a work directory."""
    if not work_dir.exists():
        return set()
    return {path.name for path in work_dir.iterdir() if path.is_dir()}


async def test_a_sandbox_is_named_after_the_attempt_in_the_default_work_directory(
    tmp_path: Path,
) -> None:
    async with WorkflowEngine.create(keep_sandboxes="all") as flow:

        @flow.executable_task
        async def tool() -> str:
            return "pwd"

        future = tool()
        printed = Path((await within(future)).strip())
        run = (tmp_path / ".rhapsody" / "latest").resolve()
        expected = run / flow.uid / f"{flow.uid}.task.000001.1"
        assert printed.resolve() == expected.resolve()
        assert future.sandbox is not None
        assert Path(future.sandbox).resolve() == expected.resolve()
        assert flow.work_dir.resolve() == expected.parent.resolve()
        assert stat.S_IMODE(expected.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", [str, Path])
async def test_the_work_directory_can_be_chosen(tmp_path: Path, kind: Any) -> None:
    chosen = tmp_path / "deep" / "inside"
    async with WorkflowEngine.create(work_dir=kind(chosen), keep_sandboxes="all") as flow:

        @flow.executable_task
        async def tool() -> str:
            return "echo fine > result"

        future = tool()
        await within(future)
    assert (chosen / f"{flow.uid}.task.000001.1" / "result").read_text() == "fine\n"
    assert not (tmp_path / ".rhapsody").exists()


async def test_a_work_directory_is_made_when_it_is_first_needed(tmp_path: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def plus(x: int) -> int:
            return x + 1

        assert await within(plus(plus(1))) == 3
        assert not (tmp_path / ".rhapsody").exists()
    assert list(tmp_path.iterdir()) == []


async def test_a_relative_work_directory_stays_where_it_was_when_the_program_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with WorkflowEngine.create(work_dir="here", keep_sandboxes="all") as flow:

        @flow.executable_task
        async def tool() -> str:
            return "pwd"

        monkeypatch.chdir(elsewhere)
        printed = Path((await within(tool())).strip())
        assert printed.resolve().parent == (tmp_path / "here").resolve()
        assert flow.work_dir.resolve() == (tmp_path / "here").resolve()
    assert list(elsewhere.iterdir()) == []


async def test_by_default_the_sandboxes_of_failures_stay_and_others_go(tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task
        async def tool(code: int) -> str:
            return f"echo trace > trace; exit {code}"

        good, bad = tool(0), tool(3)
        await within(asyncio.wait([good, bad]))
        assert isinstance(bad.exception(), TaskFailedError)
        del good
    left = sandboxes(tmp_path / "work")
    assert left == {f"{flow.uid}.task.000002.1"}
    assert (tmp_path / "work" / left.pop() / "trace").read_text() == "trace\n"


async def test_a_finished_sandbox_goes_before_the_end_of_the_engine(tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task
        async def tool() -> str:
            return "echo out"

        assert await within(tool()) == "out\n"
        await gone(tmp_path / "work" / f"{flow.uid}.task.000001.1")


@pytest.mark.parametrize(("keep", "left"), [("all", {1, 2}), ("none", set()), ("failed", {2})])
async def test_which_sandboxes_stay_is_chosen(tmp_path: Path, keep: Any, left: set[int]) -> None:
    work = tmp_path / "work"
    async with WorkflowEngine.create(work_dir=work, keep_sandboxes=keep) as flow:

        @flow.executable_task
        async def tool(code: int) -> str:
            return f"echo trace > trace; exit {code}"

        futures = [tool(0), tool(1)]
        await within(asyncio.wait(futures))
        assert futures[1].exception() is not None
        del futures
        gc.collect()
    assert sandboxes(work) == {f"{flow.uid}.task.00000{number}.1" for number in left}


async def test_an_unknown_way_of_keeping_is_refused() -> None:
    wrong: Any = "some"
    with pytest.raises(ValueError, match="keep_sandboxes") as caught:
        await WorkflowEngine.create(keep_sandboxes=wrong)
    assert "failed" in str(caught.value)
    assert "some" in str(caught.value)


async def test_each_attempt_has_a_fresh_sandbox(tmp_path: Path) -> None:
    work = tmp_path / "work"
    async with WorkflowEngine.create(work_dir=work, keep_sandboxes="all") as flow:

        @flow.executable_task(retries=1)
        async def tool() -> str:
            flag = tmp_path / "flag"
            return f"ls; echo x > left-over; test -e {flag} || {{ touch {flag}; exit 1; }}"

        future = tool()
        assert await within(future) == ""
        assert future.sandbox is not None
        assert future.sandbox.endswith(".2")
    assert sandboxes(work) == {f"{flow.uid}.task.000001.{attempt}" for attempt in (1, 2)}


async def test_two_engines_in_one_work_directory_do_not_meet(tmp_path: Path) -> None:
    work = tmp_path / "work"
    async with (
        WorkflowEngine.create(work_dir=work, keep_sandboxes="all") as one,
        WorkflowEngine.create(work_dir=work, keep_sandboxes="all") as two,
    ):
        futures = []
        for flow in (one, two):

            @flow.executable_task
            async def tool() -> str:
                return "ls; echo x > file"

            futures.append(tool())
        assert await within(asyncio.gather(*futures)) == ["", ""]
    assert sandboxes(work) == {f"{flow.uid}.task.000001.1" for flow in (one, two)}


@pytest.mark.parametrize("keep", ["failed", "none"])
async def test_the_file_that_a_result_names_stays_although_only_its_path_is_kept(
    tmp_path: Path, keep: Any
) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work", keep_sandboxes=keep) as flow:

        @flow.executable_task(capture="files")
        async def tool() -> str:
            return "echo big"

        path = Path(await within(tool()))
        assert path.is_absolute()
        assert path.parent.name == f"{flow.uid}.task.000001.1"
        gc.collect()
        await within(asyncio.gather(*[tool() for _ in range(3)]))
        assert path.read_text() == "big\n"


async def test_what_a_dependent_needs_stays_until_it_is_no_longer_needed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task
        async def write() -> str:
            return "echo content > file"

        @flow.executable_task
        async def wait_for(_: Any) -> str:
            return f"until test -e {gate}; do sleep 0.02; done"

        @flow.executable_task
        async def read(*_: Any) -> str:
            return "cat file"

        first = write()
        sandbox = tmp_path / "work" / f"{flow.uid}.task.000001.1"
        last = read(first, wait_for(first))
        await within(first)
        del first
        gc.collect()
        assert (sandbox / "file").read_text() == "content\n"
        gate.touch()
        assert await within(last) == "content\n"
        del last
        await gone(sandbox)


async def test_a_declared_output_is_there_for_a_dependent_after_its_future_is_dropped(
    tmp_path: Path,
) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work", keep_sandboxes="none") as flow:

        @flow.executable_task
        async def write(output: OutputFile) -> str:
            return f"echo content > {output.filename}"

        @flow.executable_task
        async def read(_: Any, data: InputFile) -> str:
            return f"cat {data.filename}"

        reading = read(write(OutputFile("data.txt")), InputFile("data.txt"))
        assert await within(reading) == "content\n"
        del reading
    assert sandboxes(tmp_path / "work") == set()


async def test_the_sandboxes_of_cancelled_tasks_go(tmp_path: Path) -> None:
    work = tmp_path / "work"
    async with WorkflowEngine.create(work_dir=work) as flow:

        @flow.executable_task
        async def sleeper() -> str:
            return f"touch {tmp_path}/started; sleep 1000"

        future = sleeper()
        async with asyncio.timeout(20):
            while not (tmp_path / "started").exists():  # noqa: ASYNC110 - written by the task
                await asyncio.sleep(0.01)
        future.cancel()
        await within(future.ended())
        del future
        await gone(work / f"{flow.uid}.task.000001.1")


async def test_what_others_put_into_the_work_directory_stays(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    async with WorkflowEngine.create(work_dir=work, keep_sandboxes="none") as flow:

        @flow.executable_task
        async def tool() -> str:
            return "echo x > file"

        await within(tool())
    assert [path.name for path in work.iterdir()] == ["mine.txt"]


async def test_removing_a_sandbox_does_not_follow_links_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    async with WorkflowEngine.create(work_dir=tmp_path / "work", keep_sandboxes="none") as flow:

        @flow.executable_task
        async def tool() -> str:
            return f"ln -s {outside} link; ln -s {outside}/precious other"

        await within(tool())
    assert sandboxes(tmp_path / "work") == set()
    assert (outside / "precious").read_text() == "precious"


async def test_a_task_of_a_backend_without_sandboxes_has_none() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def plus(x: int) -> int:
            return x + 1

        future = plus(1)
        await within(future)
        assert future.sandbox is None
        await until(lambda: not flow.components)
