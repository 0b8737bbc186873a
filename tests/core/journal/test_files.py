"""Files as part of results that are kept from one run to the next."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DataError,
    InputFile,
    OutputDir,
    OutputFile,
    TaskFailedError,
    WorkflowEngine,
)
from rhapsody.builtin.journal.plugin import Journal
from rhapsody.fsutil import remove
from rhapsody.plugins.specs import Record
from tests._support.journal_keys import described
from tests._support.recorded import Program, broken_off
from tests._support.saving import files

pytestmark = pytest.mark.asyncio


def ran(here: Path) -> list[str]:
    """The commands that have run so far, by the words that they log."""
    log = here / "log"
    return sorted(log.read_text().split()) if log.exists() else []


def command(flow: WorkflowEngine, here: Path) -> Any:
    """A task that notes that it runs, and runs a command with the files it names."""

    @flow.executable_task
    def run(word: str, what: str, *_: Any) -> str:
        return f"echo {word} >> {here / 'log'}; {what}"

    return run


def pipeline(here: Path, *, save: str | None = None) -> Program:
    async def program(flow: WorkflowEngine) -> str:
        run = command(flow, here)
        made = run("make", "echo content > made.txt", OutputFile("made.txt"))
        both = run(
            "double", "cat made.txt made.txt > both.txt", made, InputFile("made.txt"),
            OutputFile("both.txt", save=save),
        )  # fmt: skip
        found: str = await run("show", "cat both.txt", both, InputFile("both.txt"))
        return found

    return program


async def test_declared_outputs_stay_and_are_read_by_the_next_run(here: Path) -> None:
    await broken_off(pipeline(here))

    async def longer(flow: WorkflowEngine) -> str:
        run = command(flow, here)
        found: str = await pipeline(here)(flow)
        made = run("make", "echo content > made.txt", OutputFile("made.txt"))
        more: str = await run("more", "cat made.txt", made, InputFile("made.txt"))
        return found + more

    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        assert await longer(flow) == "content\n" * 3
        assert flow.stats.recorded == 3
    assert flow.summary is not None
    assert ran(here) == ["double", "make", "make", "more", "show"]
    assert {file.path.name for file in flow.summary.results} == set()
    names = sorted(Path(name).name for name in files(here / ".rhapsody"))
    assert names == ["both.txt", "made.txt", "made.txt"]


async def test_several_inputs_with_one_name_are_part_of_the_key(here: Path) -> None:
    for name in "ab":
        (here / name).mkdir()
        (here / name / "in.txt").write_text(f"{name}\n")

    async def read(order: str, name: str | None = None) -> object:
        async def program(flow: WorkflowEngine) -> object:
            run = command(flow, here)

            @flow.function_task
            def join(*inputs: InputFile) -> str:
                with (here / "log").open("a") as log:
                    log.write("function\n")
                return "".join(Path(file).read_text() for file in inputs)

            inputs = [InputFile(f"{each}/in.txt", name=name if each == "b" else None)
                      for each in order]  # fmt: skip
            what = f"cat {'in.txt ' * ('a' in order or not name)}{name or '2/in.txt'}"
            return await run("command", what, *inputs), await join(*inputs)

        return await broken_off(program)

    assert [await read("ab") for _ in range(2)] == [("a\nb\n", "a\nb\n")] * 2
    assert ran(here) == ["command", "function"]
    assert await read("ba") == ("b\na\n", "b\na\n")
    assert ran(here) == ["command"] * 2 + ["function"] * 2
    assert await read("ab", "b.txt") == ("a\nb\n", "a\nb\n")
    assert ran(here) == ["command"] * 3 + ["function"] * 3


async def test_a_function_may_use_the_path_of_its_input(here: Path) -> None:
    samples = ["S1", "S2"]
    for sample in samples:
        (here / sample).mkdir()
        (here / sample / "config.txt").write_text("equal\n")

    async def program(flow: WorkflowEngine) -> Any:
        run = command(flow, here)

        @flow.function_task
        def name(config: InputFile) -> str:
            return Path(config).parent.name

        @flow.function_task
        def names(config: InputFile, table: OutputFile) -> str:
            Path(table).write_text("")
            return Path(config).resolve().parent.name

        @flow.function_task
        def length(made: InputFile) -> int:
            return len(Path(made).read_text())

        calls: list[Any] = []
        for sample in samples:
            config = InputFile(f"{sample}/config.txt")
            made = run("copy", "cat config.txt > made.txt", config, OutputFile("made.txt"))
            table = OutputFile(f"{sample}/table.txt")
            calls += [name(config), names(config, table), length(made.file("made.txt"))]
        return await asyncio.gather(*calls), flow.stats.recorded

    assert await broken_off(program) == (["S1", "S1", 6, "S2", "S2", 6], 0)
    assert await broken_off(program) == (["S1", "S1", 6, "S2", "S2", 6], 8)
    samples.remove("S1")
    assert await broken_off(program) == (["S2", "S2", 6], 4)
    (here / "S2").rename(here / "S3")
    samples[:] = ["S3"]
    assert await broken_off(program) == (["S3", "S3", 6], 2)
    assert ran(here) == ["copy"] * 2


async def test_a_task_that_changes_a_copy_of_its_input_is_recorded(here: Path) -> None:
    (here / "raw.txt").write_text("raw\n")

    async def program(flow: WorkflowEngine) -> None:
        run = command(flow, here)
        what, raw = "echo more >> raw.txt; mv raw.txt out.txt", InputFile("raw.txt", copy=True)
        await run("change", what, raw, OutputFile("results/out.txt"))

    for text in ("raw\n", "raw\n", "new\n"):
        (here / "raw.txt").write_text(text)
        await broken_off(program)
        assert (here / "results/out.txt").read_text() == f"{text}more\n"
    assert ran(here) == ["change"] * 2


async def test_coroutines_with_the_same_names_read_their_own_files_in_every_run(
    here: Path,
) -> None:
    async def program(flow: WorkflowEngine, word: str) -> Any:
        run = command(flow, here)

        async def sample(name: str) -> str:
            run(name, f"echo {name} > made.txt", OutputFile("made.txt"))
            await asyncio.sleep(0)  # so that the calls of the coroutines alternate
            found: str = await run(f"{name}{word}", "cat made.txt", InputFile("made.txt"))
            return found

        return await asyncio.gather(sample("a"), sample("b"))

    assert await broken_off(partial(program, word="1")) == ["a\n", "b\n"]
    assert await broken_off(partial(program, word="2")) == ["a\n", "b\n"]
    assert ran(here) == ["a", "a1", "a2", "b", "b1", "b2"]
    for path in (here / ".rhapsody").rglob("made.txt"):
        path.unlink()
    assert await broken_off(partial(program, word="3")) == ["a\n", "b\n"]
    assert ran(here) == ["a", "a", "a1", "a2", "a3", "b", "b", "b1", "b2", "b3"]


@pytest.mark.parametrize("left", ["everything", "results", "nothing"])
async def test_a_file_that_was_saved_under_another_name_is_read_by_the_next_run(
    here: Path, left: str
) -> None:
    async def program(flow: WorkflowEngine, word: str) -> str:
        run = command(flow, here)
        run("make", "echo content > out.txt", OutputFile("out.txt", save="results/s1.txt"))
        found: str = await run(word, "cat s1.txt", InputFile("results/s1.txt"))
        return found

    await broken_off(partial(program, word="one"))
    if left != "everything":
        for path in (here / ".rhapsody").rglob("out.txt"):
            path.unlink()
    if left == "nothing":
        (here / "results/s1.txt").unlink()
    assert await broken_off(partial(program, word="two")) == "content\n"
    assert (here / "results/s1.txt").read_text() == "content\n"
    assert ran(here) == ["make"] * (2 if left == "nothing" else 1) + ["one", "two"]


async def test_a_function_sees_the_name_that_was_asked_for_in_every_run(here: Path) -> None:
    async def program(flow: WorkflowEngine, word: str) -> object:
        run = command(flow, here)
        made = run("make", "echo > out.txt", OutputFile("out.txt", save="results/s1.txt"))

        @flow.function_task
        def names(word: str, *inputs: InputFile) -> list[str]:
            return [Path(file).name for file in inputs]

        return await names(word, made.file("out.txt"), InputFile("results/s1.txt"))

    for word in ("one", "two"):  # the second one reads what the first, which ended well, has saved
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            assert await program(flow, word) == ["out.txt", "s1.txt"]
    assert ran(here) == ["make"]


@pytest.mark.parametrize("moves", [(False, True), (True, False)])
async def test_a_change_of_directory_changes_no_key_and_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, moves: tuple[bool, bool]
) -> None:
    (here / "other/data").mkdir(parents=True)
    for name in ("in.txt", "data/in.txt"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("right\n")
        (here / "other" / name).write_text("wrong\n")

    async def program(flow: WorkflowEngine, move: bool) -> str:
        run = command(flow, here)
        if move:
            monkeypatch.chdir("other")
        one = run("one", "cat in.txt > one.txt", InputFile("in.txt"), OutputFile("out/one.txt"))
        await one
        inputs = [InputFile(f"{place}.txt") for place in ("data/in", "out/one", "./in")]
        two = "cat in.txt one.txt 2/in.txt"
        found: str = await run("two", two, *inputs)
        monkeypatch.chdir(here)
        return found

    for move in moves:
        assert await broken_off(partial(program, move=move)) == "right\n" * 3
    assert ran(here) == ["one", "two"]
    assert (here / "out/one.txt").read_text() == "right\n"
    assert not (here / "other/out").exists()


async def test_a_change_after_a_good_run_reruns_nothing_upstream(here: Path) -> None:
    for word in ("one", "two"):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            assert await chain(here, word)(flow) == "28\n"
    assert ran(here) == ["copy", "make", "one", "two"]


async def test_results_without_a_place_stay_where_the_first_run_made_them(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> None:
        run = command(flow, here)
        await run("make", "echo content > made.txt; echo x > scratch", OutputFile("made.txt"))

    await broken_off(program)
    assert {Path(name).name for name in files(here / ".rhapsody")} == {"made.txt"}
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await program(flow)
    assert flow.summary is not None
    (result,) = flow.summary.results
    assert result.path.read_text() == "content\n"


async def test_a_saved_result_is_saved_again(here: Path) -> None:
    program = pipeline(here, save="results/")
    saved = here / "results/both.txt"
    await broken_off(program)
    saved.write_text("changed")
    await broken_off(program)
    assert saved.read_text() == "content\n" * 2
    saved.unlink()
    await broken_off(program)
    assert saved.read_text() == "content\n" * 2
    assert ran(here) == ["double", "make", "show"]
    await broken_off(pipeline(here, save="elsewhere/"))
    assert (here / "elsewhere/both.txt").read_text() == "content\n" * 2
    assert ran(here) == ["double", "make", "show"]


async def test_after_a_run_that_ended_well_saved_results_are_read_from_their_places(
    here: Path,
) -> None:
    async def program(flow: WorkflowEngine, word: str) -> str:
        run = command(flow, here)
        made = run("make", "echo content > made.txt", OutputFile("results/made.txt"))
        found: str = await run(word, "cat made.txt", made, InputFile("made.txt"))
        return found

    for word in ("one", "two"):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            assert await program(flow, word) == "content\n"
    assert ran(here) == ["make", "one", "two"]


def chain(here: Path, word: str) -> Program:
    """Two tasks that each read what the one before wrote; the content of the first is random."""

    async def program(flow: WorkflowEngine) -> str:
        run = command(flow, here)
        made = run(
            "make", "head -c 9 /dev/urandom | od -A n -t x1 > made.txt", OutputFile("made.txt")
        )
        copied = run(
            "copy",
            "wc -c < made.txt > copy.txt",
            made,
            InputFile("made.txt"),
            OutputFile("copy.txt"),
        )
        found: str = await run(word, "cat copy.txt", copied, InputFile("copy.txt"))
        return found

    return program


async def test_a_missing_file_is_made_again_when_it_is_read(here: Path) -> None:
    await broken_off(chain(here, "one"))
    for name in ("made.txt", "copy.txt"):
        for path in (here / ".rhapsody").rglob(name):
            path.unlink()
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await chain(here, "one")(flow)
        assert flow.stats.recorded == 3
    assert ran(here) == ["copy", "make", "one"]
    for word in ("two", "two"):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            assert await chain(here, word)(flow) == "28\n"
    assert ran(here) == ["copy", "copy", "copy", "make", "make", "one", "two"]


async def test_where_no_sandboxes_are_kept_files_are_made_again(here: Path) -> None:
    await broken_off(chain(here, "one"), keep_sandboxes="none")
    assert files(here) == {"log", "run.sqlite"}
    assert await broken_off(chain(here, "two")) == "28\n"
    assert ran(here) == ["copy", "copy", "make", "make", "one", "two"]


async def test_sandboxes_that_were_to_stay_do(here: Path) -> None:
    await broken_off(pipeline(here), keep_sandboxes="all")
    kept = {name for name in files(here / ".rhapsody") if "engine" in name}
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await pipeline(here)(flow)
    assert kept <= files(here / ".rhapsody")


async def test_what_was_made_again_is_kept_where_that_run_breaks_off(here: Path) -> None:
    def program(last: str) -> Program:
        async def use(flow: WorkflowEngine) -> str:
            run = command(flow, here)
            made = run("make", "echo content > made.txt", OutputFile("made.txt"))
            found: str = await run(last, f"cat made.txt; : {last}", made, InputFile("made.txt"))
            return found

        return use

    async with WorkflowEngine.create(journal="run.sqlite", keep_sandboxes="failed") as flow:
        await program("one")(flow)
    await broken_off(program("two"), resume=True)
    assert ran(here) == ["make", "make", "one", "two"]
    assert (await broken_off(program("three"))).strip() == "content"
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        assert (await program("four")(flow)).strip() == "content"
        assert flow.stats.recorded == 1
    assert ran(here) == sorted(["make", "make", "one", "two", "three", "four"])


DRAWN: list[int] = []


async def test_samples_that_read_a_file_that_was_made_again_stay_as_many(here: Path) -> None:
    def program(version: str) -> Program:
        async def draw(flow: WorkflowEngine) -> list[int]:
            @flow.function_task(version=version)
            def sample(file: InputFile, made: str) -> int:
                DRAWN.append(len(DRAWN))
                return DRAWN[-1]

            made = command(flow, here)("make", "echo content > made.txt", OutputFile("made.txt"))
            return await asyncio.gather(*[sample(InputFile("made.txt"), made) for _ in range(3)])

        return draw

    async with WorkflowEngine.create(journal="run.sqlite", keep_sandboxes="failed") as flow:
        await program("1")(flow)
    second = await broken_off(program("2"), resume=True)
    assert await broken_off(program("2")) == second
    assert len(DRAWN) == 6


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("seen", ["by a reader", "as a result"])
async def test_no_two_tasks_see_different_versions_of_a_file_that_was_made_again(
    here: Path, cached: bool, seen: str
) -> None:
    def program(*words: str) -> Program:
        async def use(flow: WorkflowEngine) -> list[str]:
            run = command(flow, here)
            tee = "| tee made.txt" if seen == "as a result" else "> made.txt"
            random = f"head -c 9 /dev/urandom | od -A n -t x1 {tee}"
            made = run("make", random, OutputFile("made.txt"))
            found = [await made] if seen == "as a result" else []
            for word in words:
                read = run if word == "first" else run.options(cache=cached)
                shown = read(word, f"cat made.txt; : {word}", InputFile("made.txt"))
                found.append(await shown)
            return found

        return use

    words = ["first", "second"] if seen == "by a reader" else ["second"]
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await program(*words[:-1])(flow)
    for path in (here / ".rhapsody").rglob("made.txt"):
        path.unlink()
    reused = "task 'run' (task.000002)" if len(words) == 2 else "its previous result"
    with pytest.raises(DataError, match=f"'run' regenerated 'made.txt' .*{re.escape(reused)}"):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            await program(*words)(flow)
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        found = await program(*words)(flow)
    assert len(set(found)) == 1


async def test_a_file_that_is_made_again_with_other_content_stays(here: Path) -> None:
    def program(*words: str) -> Program:
        async def use(flow: WorkflowEngine) -> list[str]:
            run = command(flow, here)
            random = "head -c 9 /dev/urandom | od -A n -t x1 > made.txt"
            made = run("make", random, OutputFile("made.txt"))
            return [await run(word, "cat made.txt", made, InputFile("made.txt")) for word in words]

        return use

    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await program()(flow)
    for path in (here / ".rhapsody").rglob("made.txt"):
        path.unlink()
    found = []
    for words in (["one"], ["one"], ["one", "two"]):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            found += await program(*words)(flow)
    assert len(set(found)) == 1
    assert ran(here) == ["make", "make", "one", "two"]


async def test_a_repeated_reader_is_not_recorded_for_the_old_content(here: Path) -> None:
    def program(*words: str) -> Program:
        async def use(flow: WorkflowEngine) -> list[str]:
            run = command(flow, here)
            random = "head -c 9 /dev/urandom | od -A n -t x1 > made.txt"
            made = run("make", random, OutputFile("made.txt"))
            copy = "cp made.txt copy.txt"
            copied = run("copy", copy, made, InputFile("made.txt"), OutputFile("copy.txt"))
            read = run(words[0], "cat copy.txt", copied, InputFile("copy.txt"))
            return [await read, await run(words[1], "cat made.txt", made, InputFile("made.txt"))]

        return use

    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await program("a1", "b1")(flow)
    for name in ("made.txt", "copy.txt"):
        for path in (here / ".rhapsody").rglob(name):
            path.unlink()
    found = []
    for _ in range(3):
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            found += await program("a2", "b2")(flow)
    assert len(set(found)) == 1


async def test_missing_files_are_reported_before_their_tasks_run(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(flow: WorkflowEngine, words: list[str]) -> None:
        run = command(flow, here)
        run("make", "echo content > made.txt", OutputFile("made.txt", temporary=True))
        run("copy", "cp made.txt copy.txt", InputFile("made.txt"), OutputFile("copy.txt"))
        run("other", "echo other > other.txt", OutputFile("other.txt", temporary=True))
        for word in words:
            run(word, "cat copy.txt", InputFile("copy.txt"))
        run("last", "cat other.txt", InputFile("other.txt"))
        await flow.join()

    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await program(flow, ["one"])
    assert not [*(here / ".rhapsody").rglob("made.txt"), *(here / ".rhapsody").rglob("other.txt")]
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        await program(flow, ["one", "two"])  # reads what stays
    assert ran(here) == ["copy", "last", "make", "one", "other", "two"]
    for path in (here / ".rhapsody").rglob("copy.txt"):
        path.unlink()
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        await program(flow, ["one", "three", "four"])
    once = ["four", "last", "one", "other", "three", "two"]
    assert ran(here) == sorted([*once, "copy", "copy", "make", "make"])
    (line,) = [each.getMessage() for each in caplog.records if "rerunning" in each.getMessage()]
    assert line.startswith("rerunning 2 tasks of an earlier run")
    assert "(2 so far): task 'run' (task.000002), task 'run' (task.000001)" in line


async def test_the_summary_names_missing_files_of_reused_tasks(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> None:
        run = command(flow, here)
        run("first", "echo 1 > first.txt", OutputFile("first.txt"))
        run(
            "second", "cat first.txt > second.txt", InputFile("first.txt"), OutputFile("second.txt")
        )
        run("third", "echo 3 > 3.dat", OutputFile("*.dat", many=True))
        run("stays", "echo 4 > stays.txt", OutputFile("stays.txt"))
        await flow.join()

    async def resumed() -> list[str]:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            await program(flow)
        assert flow.summary is not None
        return sorted(f"{each.path.name} of {each.uid}" for each in flow.summary.missing)

    assert await resumed() == []
    for name in ("first.txt", "second.txt", "3.dat"):
        (path,) = (here / ".rhapsody").rglob(name)
        path.unlink()
    missing = ["3.dat of task.000003", "second.txt of task.000002"]
    assert await resumed() == missing  # `first.txt` is an intermediate file
    remove(here / ".rhapsody")
    assert await resumed() == [*missing, "stays.txt of task.000004"]
    assert ran(here) == ["first", "second", "stays", "third"]


async def test_a_missing_file_with_many_readers_is_made_once(here: Path) -> None:
    async def program(flow: WorkflowEngine, readers: int) -> list[str]:
        run = command(flow, here)
        made = run("make", "echo content > made.txt", OutputFile("made.txt"))
        reads = [
            run("read", f"cat made.txt; # {n}", made, InputFile("made.txt")) for n in range(readers)
        ]
        return [await read for read in reads]

    async with WorkflowEngine.create(journal="run.sqlite", keep_sandboxes="failed") as flow:
        await program(flow, 1)
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        assert await program(flow, 5) == ["content\n"] * 5
    assert ran(here) == ["make"] * 2 + ["read"] * 5


async def test_a_failure_while_a_file_is_made_again_is_that_of_its_reader(here: Path) -> None:
    async def program(flow: WorkflowEngine, word: str) -> str:
        run = command(flow, here)
        made = run(
            "make", f"BAD=bad; test ! -e {here}/$BAD && echo x > made.txt", OutputFile("made.txt")
        )
        found: str = await run(word, "cat made.txt", made, InputFile("made.txt"))
        return found

    async with WorkflowEngine.create(journal="run.sqlite", keep_sandboxes="failed") as flow:
        await program(flow, "one")
    (here / "bad").touch()
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        with pytest.raises(TaskFailedError, match="task 'run'"):
            await program(flow, "two")


async def test_a_changed_input_runs_what_reads_it(here: Path) -> None:
    (here / "in.txt").write_text("one\n")
    (here / "other.txt").write_text("other\n")

    async def program(flow: WorkflowEngine) -> list[str]:
        run = command(flow, here)
        return [
            await run("first", "cat in.txt", InputFile("in.txt")),
            await run("second", "cat other.txt", InputFile("other.txt")),
        ]

    await broken_off(program)
    (here / "in.txt").write_text("two\n")
    assert await broken_off(program) == ["two\n", "other\n"]
    assert ran(here) == ["first", "first", "second"]


async def test_directories_and_patterns(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> list[str]:
        run = command(flow, here)
        made = run(
            "make", "mkdir plots; echo a > plots/a; echo 1 > 1.csv; echo 2 > 2.csv",
            OutputDir("plots/"), OutputFile("*.csv", many=True),
        )  # fmt: skip

        @flow.function_task(cache=False)
        def read(_: Any, directory: Any, table: Any) -> list[str]:
            return [path.read_text() for path in [*directory, *table]]

        found: list[str] = await read(made, InputFile("plots"), InputFile("*.csv"))
        return found

    for _ in range(2):
        assert await broken_off(program) == ["a\n", "1\n", "2\n"]
    assert ran(here) == ["make"]


async def test_a_path_into_a_sandbox_is_good_as_long_as_that_is_there(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> Path:
        @flow.function_task
        def make(file: Any) -> Path:
            with (here / "log").open("a") as log:
                log.write("make ")
            place = Path(file.filepath)
            place.write_text("content")
            return place

        found: Path = await make(OutputFile("made.txt"))
        return found

    first = await broken_off(program)
    assert await broken_off(program) == first
    first.unlink()
    assert (await broken_off(program)).read_text() == "content"
    assert ran(here) == ["make", "make"]


async def test_undeclared_files_are_not_kept_and_reported(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(flow: WorkflowEngine) -> str:
        run = command(flow, here)
        plain = run("plain", "echo only this")
        made = run("make", "echo content > made.txt")
        seen = run("see", "cat made.txt", made)
        found: str = await run("show", "true", plain, seen)
        return found

    with caplog.at_level(logging.WARNING):
        await broken_off(program)
    assert caplog.text.count("is not recorded") == 1
    assert "left undeclared files in its sandbox" in caplog.text
    assert await broken_off(program) == ""
    # The file reaches the last task as well.
    assert ran(here) == ["make", "make", "plain", "see", "see", "show", "show"]


async def test_a_task_that_needs_only_the_values_of_tasks_with_undeclared_files_is_reused(
    here: Path,
) -> None:
    async def program(flow: WorkflowEngine) -> str:
        run = command(flow, here)
        made = [run("make", "echo content > made.txt"), run("make", "echo other > made.txt")]
        found: str = await run.options(implicit_data=False)("show", "ls", made)
        return found

    assert [await broken_off(program) for _ in range(2)] == ["", ""]
    assert ran(here) == ["make", "make", "make", "make", "show"]


async def test_clean_leaves_what_a_run_has_taken_up_and_still_needs(here: Path) -> None:
    await broken_off(pipeline(here))
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        await pipeline(here)(flow)
        cleaned = await asyncio.to_thread(clean)
        assert "; 1 still running" in cleaned, cleaned
    assert "removed 1 run" in clean()


def clean() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", "clean"], capture_output=True, text=True, check=True
    )
    return done.stdout


async def test_save_takes_files_of_an_earlier_run(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> Any:
        made = command(flow, here)("make", "echo content > made.txt", OutputFile("made.txt"))
        return await flow.save(made, "results/")

    for _ in range(2):
        (saved,) = await broken_off(program)
        assert saved.read_text() == "content\n"
        saved.unlink()
    assert ran(here) == ["make"]


@pytest.mark.parametrize("kind", ["command", "function", "saved command"])
async def test_files_that_save_has_copied_are_made_again_only_if_the_copies_are_missing(
    here: Path, kind: str
) -> None:
    async def program() -> None:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:

            @flow.function_task
            def make(one: OutputFile, two: OutputFile) -> None:
                for file in one, two:
                    Path(str(file)).write_text("content\n")
                with (here / "log").open("a") as log:
                    log.write("make ")

            one, two = OutputFile("one.txt"), OutputFile("two.txt")
            if kind == "saved command":
                one = OutputFile("results/one.txt")
            what = "echo content | tee one.txt > two.txt"
            made = make(one, two) if kind == "function" else command(flow, here)(
                "make", what, one, two
            )  # fmt: skip
            assert await flow.save(made, "saved/") == [
                here / "saved/one.txt", here / "saved/two.txt",
            ]  # fmt: skip
        assert flow.summary is not None
        assert not flow.summary.missing
        for saved in (here / "saved").iterdir():
            assert saved.read_text() == "content\n"

    await program()
    assert not [*(here / ".rhapsody").rglob("*.txt")]
    await program()
    assert ran(here) == ["make"]
    (here / "saved/one.txt").unlink()  # it is copied from its other destination, if any
    await program()
    assert ran(here) == ["make"] * (1 if kind == "saved command" else 2)
    (here / "saved/two.txt").write_text("changed")
    await program()
    assert len(ran(here)) == (2 if kind == "saved command" else 3)


async def test_an_undeclared_file_to_save_is_made_again(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> None:
        run = command(flow, here)

        @flow.block
        async def save() -> None:
            what = "echo content > made.txt; echo log > log.txt"
            made = run("make", what, OutputFile("made.txt"))
            await flow.save(made, "saved/", name="log.txt")
            assert await run("show", "cat made.txt", made, InputFile("made.txt")) == "content\n"

        await save()

    await broken_off(program)
    (here / "saved/log.txt").unlink()
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        await program(flow)
    assert (here / "saved/log.txt").read_text() == "log\n"
    assert ran(here) == ["make", "make", "show"]
    assert len([*(here / ".rhapsody").rglob("made.txt")]) == 1


async def test_a_file_to_save_that_is_made_again_fits_the_results_that_are_reused(
    here: Path,
) -> None:
    async def program() -> str:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            run = command(flow, here)
            made = run(
                "make", "head -c 9 /dev/urandom | od -A n -t x1 > x.txt", OutputFile("x.txt")
            )
            shown: str = await run("show", "cat x.txt", made, InputFile("x.txt"))
            await flow.save(made, "saved/")
        return shown

    assert await program() == await program()
    saved = here / "saved/x.txt"
    saved.unlink()
    with pytest.raises(DataError, match=r"regenerated 'x\.txt' with different content"):
        await program()
    assert await program() == saved.read_text()


async def test_a_dry_run_returns_the_destinations_of_files_to_save(here: Path) -> None:
    async with WorkflowEngine.create(dry_run=True) as flow:
        run = command(flow, here)
        made = run("make", "true", OutputFile("made.txt"))
        assert await flow.save(made, "saved/") == [here / "saved/made.txt"]
        assert await flow.save(made, "saved/", name="log.txt") == [here / "saved/log.txt"]
    assert files(here) == set()


@pytest.mark.parametrize("kind", ["argument", "input file"])
async def test_a_file_that_changes_while_its_task_is_queued_leaves_that_unrecorded(
    here: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = here / "in.txt"
    data.write_text("one")
    journal = Journal(here / "run.sqlite", here)
    task: Any = described(len, *([str(data)] if kind == "argument" else []))
    inputs = {} if kind == "argument" else {"in.txt": str(data)}
    looked_up: Any = {
        **task,
        "settings": {},
        "inputs": inputs,
        "implicit": (),
        "services": (),
        "after": {},
        "destinations": {},
        "texts": (),
    }
    assert await journal.rhapsody_lookup_results([looked_up]) == [None]
    data.write_text("two")
    await journal.rhapsody_record_results([Record("task.000001", task, 1, inputs=inputs)])
    assert journal.kept == 0
    assert "in.txt" in caplog.text
    journal.end("done")


async def test_files_that_were_made_again_for_another_plugin_are_left_to_it(here: Path) -> None:
    journal = Journal(here / "run.sqlite", here)
    task: Any = described(len, uid="e.task.000002.1")
    found = "e.task.000001.1"  # by the other one
    await journal.rhapsody_record_results([Record("task.000002", task, 1, makes_again=found)])
    assert journal.kept == 0
    journal.end("done")


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("kind", [OutputFile, OutputDir])
async def test_outputs_whose_destinations_were_exchanged_keep_their_content(
    here: Path, kind: type[OutputFile | OutputDir], one_by_one: bool
) -> None:
    inner = "/x" if kind is OutputDir else ""

    async def program(words: str) -> str:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            run = command(flow, here)
            for number, word in enumerate(words):
                what = f"mkdir res; echo {word} > res/x" if inner else f"echo {word} > res"
                made = run(word, what, kind(f"out/{number}/res"))
                if one_by_one:
                    await made
            names = range(len(words))
            inputs = [InputFile(f"out/{number}/res") for number in names]
            links = " ".join(f"{'' if not n else n + 1}{'/' if n else ''}res{inner}" for n in names)
            shown: str = await run("show", f"cat {links}", inputs)
        saved = "".join((here / f"out/{number}/res{inner}").read_text() for number in names)
        assert saved == shown
        return "".join(shown.split())

    for words in ("ab", "ba", "ab", "cab", "bca"):
        assert await program(words) == words


async def test_outputs_of_one_task_may_exchange_their_destinations(here: Path) -> None:
    async def program(one: str, two: str, pattern: str) -> list[str]:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            outputs = OutputFile("one", save=one), OutputFile("two", save=two)
            many = OutputFile("*.csv", many=True, save=pattern)
            await command(flow, here)(
                "make", "echo 1 > one; echo 2 > two; touch 3.csv", *outputs, many
            )
        return [(here / path).read_text().strip() for path in (one, two)]

    for one, two, pattern in (
        ("a", "b", "c/"),
        ("b", "a", "c/"),
        ("b", "c/x", "c/"),
        ("c/x", "b", "d/"),
    ):
        assert await program(one, two, pattern) == ["1", "2"]
        assert (here / pattern / "3.csv").exists()
    count = ran(here).count("make")
    assert await program(one, two, pattern) == ["1", "2"]
    assert ran(here).count("make") == count


async def test_an_output_that_is_no_longer_saved_is_not_read_from_its_former_destination(
    here: Path,
) -> None:
    async def program(*, cleaned: bool) -> str:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            run = command(flow, here)
            save = None if cleaned else "out/"
            made = run("make", "echo raw > table.txt", OutputFile("table.txt", save=save))
            if cleaned:
                await run(
                    "clean", "echo clean > final.txt", made, InputFile("table.txt"),
                    OutputFile("final.txt", save="out/table.txt"),
                )  # fmt: skip
            shown: str = await run("show", "cat table.txt", made, InputFile("table.txt"))
        return shown.strip()

    assert await program(cleaned=False) == "raw"
    assert await program(cleaned=True) == "raw"


REPLACED = {
    "file": (OutputFile("res", save="out/"), "echo old > res", "res"),
    "directory": (OutputDir("dir", save="out/"), "mkdir dir; echo old > dir/res", "dir/res"),
    "pattern": (OutputFile("r*", many=True, save="out/"), "echo old > res", "res"),
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("how", ["function", "command", "save"])
async def test_later_readers_of_a_reused_file_that_is_replaced_meanwhile_read_its_content(
    here: Path, kind: str, how: str
) -> None:
    output, what, name = REPLACED[kind]

    async def program(*, reads: bool) -> str | None:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            run = command(flow, here)

            @flow.function_task
            def read(file: Any) -> str:
                return Path(file if kind == "file" else next(iter(file))).read_text()

            made = run("make", what, output)
            await made
            if not reads:
                return None
            await run("replace", "echo new > res", OutputFile("res", save=f"out/{name}"))
            file = made.file(output.filename)
            if how == "save":
                await flow.save(made, "copy/")
                return (here / "copy" / name).read_text()
            return str(
                await (read(file) if how == "function" else run("show", f"cat {name}", file))
            )

    await program(reads=False)
    for _ in range(2):
        assert await program(reads=True) == "old\n"
        assert (here / "out" / name).read_text() == "new\n"


async def test_a_file_is_reused_if_its_destination_has_not_changed(here: Path) -> None:
    async def program(count: int) -> None:
        async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
            run = command(flow, here)
            for number in range(count):
                run(f"one{number}", f"echo {number} > res", OutputFile(f"out/{number}/res"))
            run("many", "touch a.csv b.csv", OutputFile("*.csv", many=True, save="tables/"))

    await program(2)
    await program(3)
    assert ran(here) == ["many", "one0", "one1", "one2"]
