"""Directories: declared, passed on and saved, and what stays of several files."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DataError,
    InputFile,
    InputFiles,
    LocalExecutionBackend,
    OutputDir,
    OutputFile,
    WorkflowEngine,
)
from rhapsody.fsutil import copy_directory
from tests._support.saving import PLOTS, files, held_open, listing, shell
from tests._support.scripted import within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]


# Directories.


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (OutputDir("results/plots/"), "results/plots"),
        (OutputDir("results/plots"), "results/plots"),
        (OutputDir("./plots"), "plots"),
        (OutputDir("plots/", save="out/"), "out/plots"),
        (OutputDir("plots", save=Path("out")), "out/plots"),
        (OutputDir("plots", save="there"), "there/plots"),
        (OutputDir("results/plots/", save=True), "plots"),
    ],
)
async def test_a_directory_is_put_where_the_program_says(
    here: Path, flow: WorkflowEngine, output: OutputDir, place: str
) -> None:
    (here / "there").mkdir()
    for _ in range(2):  # the second replaces the first
        future = shell(flow)(PLOTS, output)
        await within(future)
        assert files(here / place) == {"a.png", "b.png", "deep/c.png"}
    assert (here / place / "a.png").read_text() == "1\n"
    assert [(file.path, file.task) for file in flow.results] == [(here / place, "run")]
    assert not [name for name in os.listdir((here / place).parent) if name.startswith(".plots")]


async def test_a_dependent_gets_the_directory_and_a_sorted_list_of_what_is_in_it(
    flow: WorkflowEngine,
) -> None:
    made = shell(flow)(PLOTS, OutputDir("plots/"))
    for name in ("plots", "plots/"):
        value, texts, where = await within(listing(flow)(InputFile(name), made))
        assert isinstance(value, InputFiles)
        assert isinstance(value, list)
        assert [path.name for path in value] == ["a.png", "b.png", "c.png"]
        assert value == sorted(value)
        assert texts == ["1\n", "2\n", "3\n"]
        assert where == str(value[0].parent)

    @flow.executable_task
    def count(plots: InputFile, after: Any) -> str:
        return f"ls {plots} | wc -l"

    assert (await within(count(InputFile("plots"), made))).strip() == "3"


async def test_a_value_of_several_files_goes_to_worker_processes() -> None:
    backend = LocalExecutionBackend("process", resources={"workers": 1})
    async with WorkflowEngine.create(backend) as flow:
        made = shell(flow)(PLOTS, OutputDir("plots/"))
        value, texts, where = await within(listing(flow)(InputFile("plots"), made))
        assert (type(value), len(value), texts[0]) == (InputFiles, 3, "1\n")
        assert where == str(value[0].parent)


async def test_a_directory_that_holds_nothing_is_an_empty_list(flow: WorkflowEngine) -> None:
    made = shell(flow)("mkdir plots", OutputDir("results/plots"))
    assert (await within(listing(flow)(InputFile("plots"), made)))[:2] == ([], [])
    assert files(Path("results/plots")) == set()
    assert Path("results/plots").is_dir()


@pytest.mark.parametrize(
    ("command", "output", "complaint"),
    [
        ("true", OutputDir("plots/"), r"did not write the directory 'plots' \("),
        (
            "touch plots",
            OutputDir("plots"),
            r"declared a directory 'plots', but wrote a file .*declare OutputFile\('plots'\)",
        ),
        (
            "mkdir a",
            OutputFile("a"),
            r"declared a file 'a', but wrote a directory .*declare OutputDir\('a'\)",
        ),
        ("ln -s / plots", OutputDir("plots"), "is a link to '/', outside the sandbox"),
    ],
)
async def test_what_was_promised_and_not_written_fails_its_task(
    flow: WorkflowEngine, command: str, output: Any, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        await within(shell(flow)(command, output))


async def test_a_reader_sees_one_directory_or_the_other(here: Path, flow: WorkflowEngine) -> None:
    run = shell(flow)
    await within(run("mkdir d; for i in 1 2 3; do echo old > d/$i; done", OutputDir("./d")))
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            try:
                held = os.open(here / "d", os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # between the two
            try:
                texts = []
                for name in os.listdir(held):
                    with open(os.open(name, os.O_RDONLY, dir_fd=held)) as file:
                        texts.append(file.read().strip())
                seen.add(tuple(sorted(texts)))
            except FileNotFoundError:
                pass  # it is being removed, after it was moved aside
            finally:
                os.close(held)

    reader = asyncio.create_task(asyncio.to_thread(read))
    try:
        for _ in range(5):
            await within(run("mkdir d; for i in 4 5; do echo new > d/$i; done", OutputDir("./d")))
    finally:
        stop.set()
        await reader
    assert sorted(os.listdir(here / "d")) == ["4", "5"]
    assert not any("old" in texts and "new" in texts for texts in seen)


async def test_an_old_read_only_directory_is_replaced(here: Path, flow: WorkflowEngine) -> None:
    run = shell(flow)
    closed = "mkdir -p d/e && echo 1 > d/e/f && chmod 500 d/e d"
    for _ in range(2):
        await within(run(closed, OutputDir("./d")))
    assert os.listdir(here).count("d") == 1
    assert not [name for name in os.listdir(here) if name.startswith(".d")]
    assert stat.S_IMODE((here / "d").stat().st_mode) == 0o500
    await within(run("mkdir d", OutputDir("./d")))
    assert os.listdir(here / "d") == []


async def test_links_within_a_saved_directory_stay_links(here: Path, flow: WorkflowEngine) -> None:
    command = (
        "mkdir -p d/e; echo 1 > d/f; ln -s f d/latest; ln -s $PWD/d/f d/e/absolute; ln -s e d/x"
    )
    await within(shell(flow)(command, OutputDir("./d")))
    links = {name: os.readlink(here / "d" / name) for name in ("latest", "e/absolute", "x")}
    assert links == {"latest": "f", "e/absolute": "../f", "x": "e"}
    assert (here / "d/x/absolute").read_text() == "1\n"


async def test_links_out_of_a_saved_directory_are_replaced_with_their_targets(
    here: Path, flow: WorkflowEngine
) -> None:
    command = (
        "mkdir -p d .hidden/s; echo 1 > .hidden/s/f; ln -s ../.hidden/s/f d/relative; "
        "ln -s $PWD/.hidden/s/f d/absolute; ln -s relative d/chain; ln -s ../.hidden/s d/sub; "
        "ln -s f .hidden/s/own; ln -s ../../d/relative .hidden/s/back"
    )
    await within(shell(flow)(command, OutputDir("./d")))
    for name in ("relative", "absolute", "chain", "sub/f", "sub/own", "sub/back"):
        assert (here / "d" / name).read_text() == "1\n"
        assert (here / "d" / name).resolve().is_relative_to(here / "d")


@pytest.mark.parametrize("link", ["/etc/passwd", "../../other", "..", "$PWD", "../.."])
async def test_links_that_cannot_be_resolved_in_a_saved_directory_are_refused(
    here: Path, flow: WorkflowEngine, link: str
) -> None:
    run = shell(flow)
    future = run(f"mkdir d; touch ../other; ln -s {link} d/latest", OutputDir("./d"))
    with pytest.raises(DataError, match="'latest' in it: it is a link to"):
        await within(future)
    assert future.sandbox is not None
    assert os.path.isdir(Path(future.sandbox) / "d")
    assert not (here / "d").exists()


async def test_entries_without_content_are_skipped_in_a_saved_directory(
    here: Path, flow: WorkflowEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @flow.function_task
    def write(out: OutputDir) -> None:
        (Path(out) / "sub").mkdir(parents=True)
        (Path(out) / "f").write_text("1")
        os.mkfifo(Path(out, "sub/pipe"))
        os.symlink("nowhere", Path(out, "dangling"))
        os.symlink("loop", Path(out, "loop"))
        place = os.open(out, os.O_RDONLY)  # the names of sockets must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)

    done = write(OutputDir("./d"))
    assert [path.name for path in (await within(listing(flow)(InputFile("d"), done)))[0]] == ["f"]
    assert files(here / "d") == {"f"}
    assert sorted(os.listdir(here / "d")) == ["f", "sub"]
    [record] = caplog.records
    for text in ("'write' (task.000001)", "'sub/pipe' (a named pipe)", "'socket' (a socket)"):
        assert text in record.getMessage()
    assert "'dangling' (a dangling link to 'nowhere')" in record.getMessage()


async def test_nothing_is_left_of_a_copy_that_is_no_longer_wanted(here: Path) -> None:
    (here / "d").mkdir()
    (here / "d/f").touch()
    stop = threading.Event()
    stop.set()
    copy_directory(here / "d", here / "copy", stop)
    assert os.listdir(here) == ["d"]


@pytest.mark.parametrize("name", ["here", "home"])
async def test_a_directory_that_holds_more_than_results_is_not_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    place = {"here": here, "home": home}[name]
    async with WorkflowEngine.create() as flow:
        with pytest.raises(DataError, match="it would replace"):
            await within(shell(flow)(f"touch {here}/ran", OutputDir(place.name, save=place.parent)))
    assert not (here / "ran").exists()


async def test_a_link_to_a_directory_is_replaced_and_not_what_it_leads_to(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "old").mkdir()
    (here / "old/f").touch()
    (here / "plots").symlink_to("old")
    await within(shell(flow)("mkdir plots; touch plots/g", OutputDir("./plots")))
    assert not (here / "plots").is_symlink()
    assert (files(here / "plots"), files(here / "old")) == ({"g"}, {"f"})
    assert not [name for name in os.listdir(here) if name.startswith(".plots")]


async def test_a_directory_does_not_replace_a_file(here: Path, flow: WorkflowEngine) -> None:
    (here / "plots").write_text("precious")
    with pytest.raises(DataError, match=r"'plots' cannot be saved as .*which is a file"):
        await within(shell(flow)("mkdir plots", OutputDir("./plots")))
    assert (here / "plots").read_text() == "precious"


async def test_a_directory_with_a_file_that_the_run_reads_is_not_replaced(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "data/deep").mkdir(parents=True)
    (here / "data/deep/in.csv").write_text("precious")
    run = shell(flow)
    await within(run("true", InputFile("data/deep/in.csv")))
    with pytest.raises(DataError, match=r"cannot save 'data' .*'run' reads a file in that dir"):
        await within(run("mkdir data", OutputDir("./data")))
    await within(run("true", InputFile("data/deep")))
    with pytest.raises(DataError, match=r"cannot save 'deep' .*'run' reads that directory"):
        await within(run("mkdir deep", OutputDir("data/deep")))
    assert (here / "data/deep/in.csv").read_text() == "precious"


@pytest.mark.parametrize(
    ("output", "command"),
    [
        (OutputFile("data/a.csv"), "echo new > a.csv"),
        (OutputFile("data/new.csv"), "echo new > new.csv"),
        (OutputFile("data/deep/*.csv", many=True), "echo new > in.csv"),
        (OutputDir("data/deep"), "mkdir deep"),
    ],
)
async def test_what_is_in_a_directory_that_the_run_reads_is_not_written_over(
    here: Path, flow: WorkflowEngine, output: Any, command: str
) -> None:
    (here / "data/deep").mkdir(parents=True)
    for name in ("a.csv", "deep/in.csv"):
        (here / "data" / name).write_text("precious")
    run = shell(flow)
    await within(run("true", InputFile("data")))
    with pytest.raises(
        DataError, match=r"'run' cannot save .*task 'run' reads the directory '.*/data'"
    ):
        await within(run(f"touch {here}/ran; {command}", output))
    assert not (here / "ran").exists()
    assert files(here / "data") == {"a.csv", "deep/in.csv"}
    assert {path.read_text() for path in (here / "data").rglob("*.csv")} == {"precious"}


@pytest.mark.parametrize("output", [OutputFile("data/b.csv"), OutputFile("data/*.csv", many=True)])
async def test_a_directory_is_not_read_while_something_is_about_to_be_put_into_it(
    here: Path, flow: WorkflowEngine, output: Any
) -> None:
    (here / "data").mkdir()
    run = shell(flow)
    first, gate = await held_open(here, flow, output, "echo 1 > b.csv")
    with pytest.raises(DataError, match=r"reads '.*data' while task 'slow' .* is about to write"):
        await within(run("ls data", InputFile("data")))
    gate.write_text("go")
    assert await within(run("ls data", InputFile("data"), first)) == "b.csv\n"


@pytest.mark.parametrize("name", ["*.csv", "b.csv"])
async def test_a_directory_that_the_run_puts_files_into_may_be_read_meanwhile_in_every_run(
    here: Path, name: str
) -> None:
    many = name == "*.csv"
    for _ in range(2):  # the second run finds the files of the first
        async with WorkflowEngine.create() as flow:
            run = shell(flow)
            for number in range(2):
                await within(run(f"echo {number} > b.csv", OutputFile(f"data/{name}", many=many)))
                assert await within(run("cat data/b.csv", InputFile("data"))) == f"{number}\n"
            await within(run("echo all > c.csv", InputFile("data"), OutputFile("data/c.csv")))
        assert files(here / "data") == {"b.csv", "c.csv"}


async def test_what_the_run_has_saved_itself_is_read_and_replaced(
    here: Path, flow: WorkflowEngine
) -> None:
    run = shell(flow)
    for number in range(2):
        await within(run(f"mkdir d; echo {number} > d/f", OutputDir("./d")))
        assert await within(run("cat f", InputFile(here / "d/f"))) == f"{number}\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OutputDir("out/d"), OutputDir("d", save="out/")),
        (OutputDir("out/d"), OutputFile("a.txt", save="out/d/deep/")),
        (OutputFile("a.txt", save="out/d/deep/"), OutputDir("out/d")),
        (OutputFile("*.txt", many=True, save="out/d/"), OutputDir("out/d")),
        (OutputDir("out/d"), OutputFile("*.txt", many=True, save="out/d/")),
    ],
)
async def test_two_tasks_cannot_write_one_in_the_other_at_once(
    here: Path, flow: WorkflowEngine, one: Any, other: Any
) -> None:
    write = "mkdir d && touch d/f a.txt"
    first, gate = await held_open(here, flow, one, write)
    with pytest.raises(
        DataError, match=r"'run' cannot save .*task 'slow' .* is also about to write there"
    ):
        await within(shell(flow)(write, other))
    with pytest.raises(DataError, match="two files to the same destination"):
        await within(shell(flow)(write, OutputDir("in/d"), OutputFile("a", save="in/d/")))
    gate.write_text("go")
    await within(first)
    await within(shell(flow)(write, other))  # one after the other may


async def test_a_file_of_a_directory_is_not_read_while_that_is_about_to_be_replaced(
    here: Path, flow: WorkflowEngine
) -> None:
    (here / "d").mkdir()
    (here / "d/f").touch()
    first, gate = await held_open(here, flow, OutputDir("./d"), "mkdir d")
    with pytest.raises(
        DataError, match=r"reads .*d/f' while task 'slow' .* is about to write it; .*after=\[future"
    ):
        await within(shell(flow)("cat f", InputFile("d/f")))
    gate.write_text("go")
    await within(first)


# What stays, and what is saved later.


async def test_declared_directories_and_files_stay_without_the_rest(here: Path) -> None:
    async with WorkflowEngine.create() as flow:
        command = f"{PLOTS}; touch 1.csv 2.csv scratch; mkdir more; touch more/scratch"
        shell(flow)(command, OutputDir("plots"), OutputFile("*.csv", many=True))
        read = shell(flow)(command, OutputDir("plots"), OutputFile("*.csv", many=True))
        await within(
            shell(flow)("cat plots/a.png 1.csv", read, InputFile("plots"), InputFile("1.csv"))
        )
        del read
        await flow.join()
        gc.collect()
    assert flow.summary is not None
    assert flow.summary.results == flow.results
    names = sorted(file.path.name for file in flow.results)
    assert names == ["1.csv", "2.csv", "2.csv", "plots"]
    left = {name.partition(".task.")[2].partition("/")[2] for name in files(here)}
    left.discard("")  # the list of the results
    assert left == {"plots/a.png", "plots/b.png", "plots/deep/c.png", "1.csv", "2.csv"}


async def test_directories_that_were_not_planned_are_saved_later(
    here: Path, flow: WorkflowEngine
) -> None:
    command = f"{PLOTS}; touch 1.csv 2.csv; mkdir more; touch more/f"
    future = shell(flow)(command, OutputDir("plots"), OutputFile("*.csv", many=True))
    saved = await within(flow.save(future, "out/"))
    assert saved == [here / "out/plots", here / "out/1.csv", here / "out/2.csv"]
    assert files(here / "out/plots") == {"a.png", "b.png", "deep/c.png"}
    assert await within(flow.save(future, "out", name="more")) == [here / "out/more"]
    assert files(here / "out/more") == {"f"}


async def test_what_was_replaced_and_cannot_be_removed_is_named(
    here: Path,
    flow: WorkflowEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = shell(flow)
    await within(run("mkdir d; touch d/old", OutputDir("./d")))

    def refuse(*entry: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("rhapsody.fsutil.remove_below", refuse)
    await within(run("mkdir d; touch d/new", OutputDir("./d")))
    assert files(here / "d") == {"new"}
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "cannot be removed: not yours" in told.getMessage()


# Backends whose sandboxes are not to be seen from here.


@pytest.mark.parametrize("output", [OutputDir("out/plots"), OutputFile("*.csv", many=True)])
async def test_a_backend_that_copies_out_single_files_is_refused_before_the_task_runs(
    here: Path, output: Any
) -> None:
    backend = LocalExecutionBackend()
    backend.capabilities = dataclasses.replace(
        backend.capabilities, shared_file_system=False, copies_files_out=True
    )
    async with WorkflowEngine.create(backend) as flow:
        with pytest.raises(CapabilityError, match=r"declares '.*only single files can be copied"):
            await within(shell(flow)(f"touch {here}/ran", output))
    assert not (here / "ran").exists()
