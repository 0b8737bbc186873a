"""Inputs that tasks change: refused for shared files, allowed for copies."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DataError,
    InputChangedError,
    InputFile,
    LocalExecutionBackend,
    OutputDir,
    OutputFile,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody.data import copy_into
from tests._support.engine_fixtures import Machine, engine, local_processes
from tests._support.scripted import outcome, until, within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]

RAW = "c\na\nb\n"


@pytest.fixture
def raw(here: Path) -> Path:
    """A file of the user."""
    path = here / "raw.txt"
    path.write_text(RAW)
    return path


def shell(flow: WorkflowEngine, **settings: Any) -> Any:
    @flow.executable_task(**settings)
    def shell(command: str, *files: Any) -> str:
        return command.format(*files)

    return shell


SORT = "sort -o {0} {0}"
WRITERS = (SORT, "echo more >> {0}", "truncate -s 0 {0}")
REPLACERS = (
    "sort {0} > new; mv new {0}",
    "sed -i s/a/x/ {0}",
    "rm {0}",
    "cat {0}",
    "chmod u+w {0}",
)


@pytest.mark.parametrize("command", WRITERS)
async def test_a_command_that_changes_its_input_fails(
    raw: Path, flow: WorkflowEngine, command: str
) -> None:
    error = await outcome(shell(flow)(command, InputFile("raw.txt")))
    assert isinstance(error, InputChangedError)
    assert error.paths == [str(raw)]
    assert type(pickle.loads(pickle.dumps(error))) is InputChangedError
    for part in (str(raw), command.format("raw.txt"), "copy=True"):
        assert part in str(error)


@pytest.mark.parametrize("command", REPLACERS)
async def test_a_command_may_replace_the_link_to_its_input(
    raw: Path, flow: WorkflowEngine, command: str
) -> None:
    await within(shell(flow)(command, InputFile("raw.txt")))
    assert raw.read_text() == RAW


async def test_a_command_that_changes_the_output_of_another_task_fails(
    flow: WorkflowEngine,
) -> None:
    made = shell(flow)("printf 'b\na\n' > {0}", OutputFile("made.txt"))
    error = await outcome(shell(flow)(SORT, InputFile("made.txt"), made))
    assert isinstance(error, DataError)
    assert "made.txt" in str(error)
    tables = shell(flow)("echo b > 1.csv; echo c > 2.csv", OutputFile("*.csv", many=True))
    error = await outcome(shell(flow)("echo a >> 2.csv", tables.file("*.csv")))
    assert isinstance(error, DataError)
    assert "2.csv" in str(error)


async def test_a_failed_command_that_changed_its_input_says_so(
    raw: Path, flow: WorkflowEngine
) -> None:
    failed = shell(flow, retries=2, fallback="nothing")("echo more >> {0}; exit 3", InputFile(raw))
    error = await outcome(failed)
    assert isinstance(error, DataError)
    assert "exit code 3" in str(error.__cause__)
    assert raw.read_text() == f"{RAW}more\n"  # a retry would have appended once more


async def test_a_command_that_changed_its_input_and_timed_out_says_so(
    raw: Path, flow: WorkflowEngine
) -> None:
    slow = shell(flow, timeout=1)("echo more >> {0}; sleep 60", InputFile(raw))
    error = await outcome(slow)
    assert isinstance(error, DataError)
    assert isinstance(error.__cause__, TaskTimeoutError)


async def test_a_task_whose_input_another_task_changes_fails(
    raw: Path, flow: WorkflowEngine
) -> None:
    reader = shell(flow)("touch {1}/began; while test ! -e {1}/go; do sleep 0.01; done; cat {0}",
                         InputFile(raw), raw.parent)  # fmt: skip
    await until((raw.parent / "began").exists)
    writer = await outcome(shell(flow)(SORT, InputFile(raw)))
    (raw.parent / "go").touch()
    assert isinstance(writer, DataError)
    error = await outcome(reader)
    assert isinstance(error, DataError)
    assert "another task" in str(error)


def rewritten(flow: WorkflowEngine, kind: str, *, coarse: bool = False) -> list[Any]:
    """Futures of calls that read one file, which is rewritten for each call."""

    @flow.executable_task
    def cat(file: InputFile) -> str:
        return f"cat {file}"

    @flow.function_task
    def read(file: InputFile) -> str:
        return Path(file).read_text()

    task, path, futures = cat if kind == "command" else read, Path("params.txt"), []
    stamp: tuple[int, int] | None = None
    for k in range(3):
        path.write_text(f"k={k}\n")
        if coarse:  # as on file systems whose time stamps change every few milliseconds
            stamp = stamp or (path.stat().st_atime_ns, path.stat().st_mtime_ns)
            os.utime(path, ns=stamp)
        futures.append(task(InputFile(path, copy=kind == "copy")))
    return futures


@pytest.mark.parametrize("kind", ["command", "function", "copy"])
@pytest.mark.parametrize("coarse", [False, True])
async def test_a_file_that_is_rewritten_for_each_call_fails_the_earlier_calls(
    flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch, kind: str, coarse: bool
) -> None:
    monkeypatch.setattr("rhapsody.staging.inputs._JUST_NOW_NS", 10**12)  # however slow the test is
    *early, last = rewritten(flow, kind, coarse=coarse)
    for future in early:
        error = await outcome(future)
        assert isinstance(error, DataError)
        assert "after the call" in str(error)
    assert await within(last) == "k=2\n"


async def test_a_recorded_result_is_not_used_for_a_file_that_was_rewritten() -> None:
    path, reused = Path("params.txt"), []
    for resume in (False, True):
        async with WorkflowEngine.create(journal="run.sqlite", resume=resume) as flow:
            cat = flow.executable_task(name="cat")(lambda file: f"cat {file}")
            if resume:
                path.write_text("k=1\n")
                reused.append(cat(InputFile(path)))
            path.write_text("k=2\n")  # its result is recorded in the first run
            if not resume:
                assert await within(cat(InputFile(path))) == "k=2\n"
    (early,) = reused
    assert type(await outcome(early)).__name__ == "InputChangedError"


async def test_a_dependency_may_write_an_input_that_it_does_not_declare(
    raw: Path, flow: WorkflowEngine
) -> None:
    run = shell(flow)
    first = run("echo new > {0}", raw)
    assert await within(run.options(after=[first])("cat {0}", InputFile(raw))) == "new\n"
    raw.unlink()
    second = run("echo newer > {0}", raw)
    assert await within(run("cat {0}", InputFile(raw), second)) == "newer\n"


@pytest.mark.parametrize("machine", [LocalExecutionBackend, local_processes])
async def test_a_function_that_changes_its_input_fails(
    raw: Path, machine: Callable[[], Any]
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def append(file: InputFile, *outputs: OutputFile) -> str:
            for output in outputs:
                Path(output).touch()
            with open(file, "a") as opened:
                opened.write("more\n")
            return Path(file).read_text()

        @flow.function_task
        def remove(file: InputFile) -> None:
            os.remove(file)

        for call in (append(InputFile(raw)), append(InputFile(raw), OutputFile("out.txt"))):
            error = await outcome(call)
            assert isinstance(error, DataError)
            assert str(raw) in str(error)
        assert raw.read_text() == f"{RAW}more\nmore\n"
        for outputs in ((), (OutputFile("out.txt"),)):
            copied = append(InputFile(raw, copy=True), *outputs)
            assert await within(copied) == f"{RAW}more\nmore\nmore\n"
        assert raw.read_text() == f"{RAW}more\nmore\n"
        assert isinstance(await outcome(remove(InputFile(raw))), DataError)


@pytest.mark.parametrize("command", WRITERS)
async def test_a_command_may_change_a_copy(raw: Path, flow: WorkflowEngine, command: str) -> None:
    raw.chmod(0o444)
    change = shell(flow)(f"{command} && mv {{0}} {{1}}", InputFile(raw, copy=True),
                         OutputFile("results/changed.txt"))  # fmt: skip
    await within(change)
    changed = Path("results/changed.txt")
    assert changed.read_text() != RAW
    assert not changed.is_symlink()
    assert raw.read_text() == RAW


async def test_each_attempt_changes_a_copy_of_its_own(raw: Path, flow: WorkflowEngine) -> None:
    command = "echo more >> {0}; cat {0}; test -e {1}/again || {{ touch {1}/again; exit 1; }}"
    run = shell(flow, retries=1)
    assert await within(run(command, InputFile(raw, copy=True), raw.parent)) == f"{RAW}more\n"


async def test_files_of_all_kinds_are_copied(here: Path, flow: WorkflowEngine) -> None:
    run = shell(flow)
    (here / "dir/sub").mkdir(parents=True)
    (here / "dir/sub/a").write_text("a\n")
    (here / "dir/link").symlink_to(here / "dir/sub/a")
    append = "for f in {0}; do echo more >> $f; done; cat {0}"
    command = "echo more >> {0}/sub/a; echo more >> {0}/link; cat {0}/sub/a {0}/link"
    assert await within(run(command, InputFile("dir", copy=True))) == "a\nmore\na\nmore\n"
    assert (here / "dir/sub/a").read_text() == "a\n"
    url = "data:text/plain,fetched%0A"
    for _ in range(2):
        assert await within(run(append, InputFile(url, copy=True))) == "fetched\nmore\n"
    made = run(
        "echo made > {0}; echo 1 > 1.csv; echo 2 > 2.csv; mkdir {2}; echo p > {2}/p",
        OutputFile("made.txt"), OutputFile("*.csv", many=True), OutputDir("plots"),
    )  # fmt: skip
    for _ in range(2):
        for name, expected in (("made.txt", "made\nmore\n"), ("*.csv", "1\nmore\n2\nmore\n")):
            copied = InputFile(made.file(name), copy=True)
            assert await within(run(append, copied)) == expected
        plots = InputFile(made.file("plots"), copy=True)
        assert await within(run("echo more >> {0}/p; cat {0}/p", plots)) == "p\nmore\n"
    both = run("echo more >> {1}; cat {0} {1}", made.file("made.txt"),
               InputFile(made.file("made.txt"), copy=True))  # fmt: skip
    assert await within(both) == "made\nmade\nmore\n"
    assert await within(run("cat {0}", made.file("made.txt"))) == "made\n"


async def test_a_changed_fetch_is_fetched_again(flow: WorkflowEngine) -> None:
    url = "data:text/plain,fetched"
    error = await outcome(shell(flow)("chmod u+w {0}; echo more >> {0}", InputFile(url)))
    assert isinstance(error, DataError)
    assert await within(shell(flow)("cat {0}", InputFile(url))) == "fetched"


async def test_a_backend_that_makes_no_copies_refuses_the_task(raw: Path) -> None:
    async with engine(Machine()) as flow:
        error = await outcome(shell(flow)("cat {0}", InputFile(raw, copy=True)))
        assert isinstance(error, CapabilityError)
        assert "copy=True" in str(error)


async def test_a_task_that_is_canceled_while_its_input_is_copied_leaves_nothing(
    raw: Path,
) -> None:
    began, go = threading.Event(), threading.Event()

    class Slow(LocalExecutionBackend):
        def link_explicit_data_deps(self, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("copy"):
                began.set()
                go.wait(30)
            super().link_explicit_data_deps(*args, **kwargs)

    async with engine(Slow()) as flow:
        future = shell(flow)("cat {0}", InputFile(raw, copy=True))
        await until(began.is_set)
        sandbox = future.sandbox
        future.cancel()
        go.set()
        assert isinstance(await outcome(future), asyncio.CancelledError)
        assert sandbox is not None
        await until(lambda: not os.path.exists(sandbox))


async def test_a_copy_does_not_replace_a_file(here: Path, raw: Path) -> None:
    copy_into(here / "sandbox", "2/raw.txt", raw)
    assert (here / "sandbox/2/raw.txt").read_text() == RAW
    for name in ("2/raw.txt", "../raw.txt"):
        with pytest.raises(DataError):
            copy_into(here / "sandbox", name, raw)
    with pytest.raises(DataError):
        copy_into(here / "sandbox", "missing", here / "missing")
    with pytest.raises(TypeError, match="copy must be True or False"):
        InputFile("raw.txt", copy=1)  # type: ignore[arg-type]
