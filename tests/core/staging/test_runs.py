"""The directory of a run: what it is called, who has it, and what is left of it."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rhapsody
from rhapsody import DataError, OutputFile, WorkflowEngine
from rhapsody.fsutil import FileLock
from rhapsody.sdk import runs
from rhapsody.sdk.runs import (
    NAME,
    enter_run,
    leave_run,
    new_name,
    point_latest,
    program,
    runs_in,
)
from tests._support.scripted import within

FAILS = """
import asyncio, os, sys
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create(handle_signals=False) as flow:
        future = flow.executable_task(lambda: "exit 1")()
        await asyncio.wait([future])
        future.exception()

if {}:
    asyncio.run(main())
"""
"""A program that leaves a sandbox, where what is filled in holds."""


def names(base: Path) -> list[str]:
    """The runs in a directory, without a look at whose they are."""
    return sorted(path.name for path in base.iterdir() if not path.is_symlink())


def python(here: Path, *arguments: str, text: str | None = None) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=here, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What it is called.


def test_the_name_is_the_time_in_utc_the_program_and_four_digits() -> None:
    before = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    name = runs.new_name(Path("missing"))
    after = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    assert NAME.fullmatch(name)
    assert before <= name[:15] <= after
    assert name[15:-5] == f"-{program()}"


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("digits.py", "digits"),
        ("/somewhere/else/my script (2).v3.py", "my_script_2_.v3"),
        ("/lib/package/module.py", "module"),
        ("/lib/package/__main__.py", "package"),
        ("/usr/bin/tool", "tool"),
        ("/lib/ipykernel_launcher.py", "notebook"),
        ("/lib/ipykernel/__main__.py", "notebook"),
        ("", "python"),
        ("-", "python"),
        ("-c", "python"),
        ("数据.py", "python"),
        ("../..", "python"),
        (f"{'long' * 20}.py", "long" * 8),
    ],
)
def test_a_program_is_called_by_its_script(
    monkeypatch: pytest.MonkeyPatch, started: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert program() == name
    assert NAME.fullmatch(runs.new_name(Path("missing")))


def test_programs_are_called_the_same_however_they_are_started(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for path in (tmp_path / "script.py", package / "module.py", package / "__main__.py"):
        path.write_text(FAILS.format('__name__ == "__main__"'))
    main = "async def main(flow): await flow.executable_task(lambda: 'exit 1')()"
    (tmp_path / "given.py").write_text(main)
    python(tmp_path, "script.py")
    python(tmp_path, "-m", "package.module")
    python(tmp_path, "-m", "package")
    python(tmp_path, "-", text=FAILS.format("True"))
    command = [sys.executable, "-m", "rhapsody", "run", "given.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    made = [name[16:-5] for name in runs_in(tmp_path / ".rhapsody")]
    assert sorted(made) == ["given", "module", "package", "python", "script"]


# Who has it.


@pytest.mark.asyncio
async def test_the_engines_of_a_process_share_one_and_keep_short_uids(tmp_path: Path) -> None:
    async with (
        WorkflowEngine.create(keep_sandboxes="all") as one,
        WorkflowEngine.create(keep_sandboxes="all") as two,
    ):
        for flow in (one, two):
            assert re.fullmatch(r"engine\.[0-9a-f]{8}", flow.uid)
            await within(flow.executable_task(lambda: "true")())
    async with WorkflowEngine.create(keep_sandboxes="all") as three:
        await within(three.executable_task(lambda: "true")())
    (run,) = names(tmp_path / ".rhapsody")
    assert {flow.work_dir.parent.name for flow in (one, two, three)} == {run}
    assert set(os.listdir(tmp_path / ".rhapsody" / run)) == {one.uid, two.uid, three.uid}


@pytest.mark.asyncio
async def test_each_directory_that_a_process_works_in_has_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        async with WorkflowEngine.create(keep_sandboxes="all") as flow:
            await within(flow.executable_task(lambda: "true")())
        assert runs_in(tmp_path / place / ".rhapsody") == [flow.work_dir.parent.name]


@pytest.mark.asyncio
async def test_one_that_was_reserved_is_used_once_by_the_process_that_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reserved = rhapsody.reserve_run("pkg/work.py")
    assert NAME.fullmatch(reserved.name)
    assert "-work-" in reserved.name
    assert reserved != rhapsody.reserve_run("pkg/work.py", tmp_path)
    monkeypatch.setenv("RHAPSODY_RUN", str(reserved))
    other = tmp_path / "other"
    other.mkdir()
    for place, expected in ((other, False), (tmp_path, True)):
        monkeypatch.chdir(place)
        async with WorkflowEngine.create(record=True) as flow:
            assert (flow.work_dir.parent == reserved) is expected
            await flow.executable_task(lambda: "true")()
    assert (reserved / "run.jsonl").is_file()
    assert "RHAPSODY_RUN" not in os.environ


def test_processes_that_start_at_once_never_share_one(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rhapsody.sdk import runs
parts = iter(range(0x10000))
runs.program = lambda script: "same"
runs.time.time = lambda: 1_800_000_000 + next(parts) / 0x10000
run = runs.enter_run(Path(".rhapsody"), "engine")
sys.stdin.readline()
print(run.make().name, flush=True)
sys.stdin.readline()
runs.leave_run(run, "engine")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    made = []
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            made.append(process.stdout.readline().strip())
    finally:
        for process in processes:
            process.communicate("end\n", timeout=30)
    assert len(set(made)) == 6
    assert all(name.startswith("20270115T080000-same-") for name in made)
    assert not (tmp_path / ".rhapsody").exists()


def test_a_forked_child_has_a_run_of_its_own_and_leaves_the_parents(tmp_path: Path) -> None:
    run = enter_run(tmp_path, "engine")
    path = run.make()
    child = os.fork()
    if child == 0:
        try:
            own = enter_run(tmp_path, "engine")
            other = own.make()
            (other / "made").touch()
            leave_run(own, "engine")
            os._exit(0 if other != path else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(BlockingIOError):
        FileLock(path / ".lock")
    leave_run(run, "engine")
    assert not path.exists()
    assert len(runs_in(tmp_path)) == 1


def test_threads_that_need_it_at_once_make_one(tmp_path: Path) -> None:
    run = enter_run(tmp_path, "engine")
    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(lambda _: run.make(), range(50))}) == 1
    leave_run(run, "engine")
    assert runs_in(tmp_path) == []


def test_one_that_is_removed_while_it_is_not_used_is_made_again(tmp_path: Path) -> None:
    run = enter_run(tmp_path, "one")
    path = run.make()
    (path / "left").touch()
    leave_run(run, "one")
    (path / "left").unlink()
    path.rmdir()
    again = enter_run(tmp_path, "two")
    assert again.make().is_dir()
    leave_run(again, "two")


# When it is there.


def test_importing_makes_nothing(tmp_path: Path) -> None:
    python(tmp_path, "-c", "import rhapsody; rhapsody.WorkflowEngine, rhapsody.OutputFile")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.asyncio
async def test_a_run_that_leaves_nothing_leaves_no_directory(tmp_path: Path) -> None:
    async with WorkflowEngine.create() as flow:
        await within(flow.executable_task(lambda: "true")())
        assert (tmp_path / ".rhapsody" / "latest" / flow.uid).is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.asyncio
async def test_engines_that_cannot_start_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(logging.getLogger("rhapsody").handlers)
    with monkeypatch.context() as patch:
        patch.setenv("RHAPSODY_FETCH_LIMIT", "much")
        with pytest.raises(ValueError, match="much"):
            await WorkflowEngine.create()
    with pytest.raises(ValueError, match="nonsense"):
        await WorkflowEngine.create("nonsense")
    async with WorkflowEngine.create(uid="mine") as flow:
        with pytest.raises(ValueError, match="'mine' is in use by another engine"):
            await WorkflowEngine.create(uid="mine")
        await within(flow.executable_task(lambda: "true")())
        assert os.listdir(flow.work_dir.parent) != []
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("rhapsody").handlers == before


@pytest.mark.asyncio
async def test_a_directory_of_the_programs_own_has_no_run_in_it(tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir="work", keep_sandboxes="all") as flow:
        await within(flow.executable_task(lambda: "true")())
        flow.log.warning("careful")
    assert os.listdir(tmp_path) == ["work"]
    assert os.listdir(tmp_path / "work") == [f"{flow.uid}.task.000001.1"]


@pytest.mark.asyncio
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_functions_need_no_directory_that_can_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    async with WorkflowEngine.create() as flow:
        assert await within(flow.function_task(lambda: 1)()) == 1
        flow.log.warning("careful")


@pytest.mark.asyncio
async def test_a_file_in_the_way_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / ".rhapsody").touch()
    message = rf"'{tmp_path}/\.rhapsody': it is a file, not a directory; .* pass work_dir="
    with pytest.raises(DataError, match=message):
        await WorkflowEngine.create()
    with pytest.raises(ValueError, match="work_dir must be a directory"):
        await WorkflowEngine.create(work_dir=".rhapsody")


@pytest.mark.asyncio
async def test_results_that_stay_are_listed(tmp_path: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def write(out: OutputFile) -> str:
            return f"echo x > {out}"

        await within(write(OutputFile("kept.txt")))
        await within(write(OutputFile("out/saved.txt")))
    listed = (flow.work_dir / "results.json").read_text()
    assert f"{flow.uid}.task.000001.1/kept.txt" in listed
    assert "saved.txt" not in listed


# The link to the newest.


def test_latest_leads_to_the_newest_that_there_is(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    older, newer = (f"2026112{n}T041233-digits-7f3a" for n in (1, 2))
    for name in (newer, older):
        (tmp_path / name).mkdir()
        point_latest(tmp_path)
        assert os.readlink(link) == newer
    for name, left in ((newer, older), (older, None)):
        (tmp_path / name).rmdir()
        point_latest(tmp_path)
        assert (os.readlink(link) if link.is_symlink() else None) == left
    assert list(tmp_path.iterdir()) == []


def test_runs_are_sorted_by_their_start_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for now in (1_800_000_000.5, 1_800_000_000.2, 1_799_990_000.9, 1_800_000_010.0):
        monkeypatch.setattr("time.time", lambda now=now: now)
        names.append(new_name(tmp_path))
        (tmp_path / names[-1]).mkdir()
    assert runs_in(tmp_path) == names
    ends = [(name[9:15], name[-4:]) for name in names]
    assert ends == [
        ("080000", "8000"),
        ("080000", "8001"),
        ("080000", "8002"),
        ("080010", "0000"),
    ]


def test_runs_of_the_same_second_are_sorted_by_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for script, now in (("z.py", 1_800_000_000.1), ("m.py", 1_800_000_000.9)):
        monkeypatch.setattr("sys.argv", [script])
        monkeypatch.setattr("time.time", lambda now=now: now)
        names.append(new_name(tmp_path))
        (tmp_path / names[-1]).mkdir()
        point_latest(tmp_path)
    assert runs_in(tmp_path) == names
    assert os.readlink(tmp_path / "latest") == names[-1]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_foreign_file_named_latest_stays(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "latest"
    mine.mkdir() if kind == "directory" else mine.write_text("mine")
    run = enter_run(tmp_path, "engine")
    run.make()
    assert not mine.is_symlink()
    leave_run(run, "engine")
    assert os.listdir(tmp_path) == ["latest"]


def test_a_run_goes_on_where_links_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr("os.symlink", refused)
    run = enter_run(tmp_path, "engine")
    assert run.make().is_dir()
    assert os.listdir(tmp_path) == [run.path.name]
    leave_run(run, "engine")


def test_latest_is_right_after_many_runs_at_once(tmp_path: Path) -> None:
    made = [tmp_path / f"20261121T0412{n:02}-digits-7f3a" for n in range(40)]

    def make(path: Path) -> None:
        path.mkdir()
        point_latest(tmp_path)

    def remove(path: Path) -> None:
        path.rmdir()
        point_latest(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, made))
        assert os.readlink(tmp_path / "latest") == made[-1].name
        list(pool.map(remove, reversed(made)))
    assert list(tmp_path.iterdir()) == []
