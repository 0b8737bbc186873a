"""Undeclared files, through the engine: each dependent receives its own copy."""

# ruff: noqa: ASYNC240 - the files are small

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DataError, InputFile, OutputFile, RetryPolicy, current_task, undeclared
from tests._support.engine_fixtures import engine, local_threads, on_machines
from tests._support.scripted import outcome
from tests._support.staging import no_clones


@pytest.mark.asyncio
@on_machines
async def test_parallel_dependents_do_not_see_what_the_others_write(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt; mkdir d; echo 0 > d/log"

        @flow.executable_task
        def step(name: str, former: object) -> str:
            return f"echo {name} >> out.txt; echo {name} > d/log; cat out.txt d/log"

        first = start()
        left, right = step("left", first), step("right", first)
        assert (await left).split() == ["start", "left", "left"]
        assert (await right).split() == ["start", "right", "right"]
        assert (await step("again", first)).split() == ["start", "again", "again"]
        last = await step("last", left)
        assert last.split() == ["start", "left", "last", "last"]


@pytest.mark.asyncio
@on_machines
async def test_after_passes_no_files(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt"

        first = start()

        @flow.executable_task(after=[first])
        def look(*_: Any) -> str:
            return "ls"

        assert await look() == ""
        assert await look(first) == "out.txt\n"


@pytest.mark.asyncio
@on_machines
async def test_two_dependencies_that_left_the_same_name_are_refused(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def simulate(name: str) -> str:
            return f"echo energy-{name} > out.txt"

        @flow.executable_task
        def merge(*_: Any) -> str:
            return "cat *.txt"

        one, two = simulate("a"), simulate("b")
        error = await outcome(merge(one, two))
        assert isinstance(error, DataError)
        for part in ("'out.txt'", "task.000001", "task.000002"):
            assert part in str(error)
        assert await merge(one) == "energy-a\n"
        assert not [p for p in flow.work_dir.iterdir() if "000003" in p.name]


@pytest.mark.asyncio
@on_machines
async def test_a_task_that_needs_only_the_values_receives_no_files(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def simulate(number: int) -> str:
            return f"echo {number} > OUTCAR; mkdir d; touch d/{number}; echo {number}"

        @flow.executable_task(implicit_data=False, retries=1)
        def summarize(values: list[str], file: Any = None) -> str:
            return f"case $PWD in *.2) ls; echo {len(values)};; *) false;; esac"

        scan = [simulate(number) for number in range(3)]
        assert await summarize(scan) == "3\n"
        Path("in.txt").write_text("x")
        assert (await summarize(scan, InputFile("in.txt"))).split() == ["in.txt", "3"]
        for task in (
            summarize.options(implicit_data=None),
            summarize.options(implicit_data=True),
        ):
            error = await outcome(task(scan))
            assert isinstance(error, DataError)
            assert "set implicit_data=False for it" in str(error)


@pytest.mark.asyncio
async def test_the_error_says_if_the_common_name_is_that_of_a_directory() -> None:
    async with engine(local_threads()) as flow:

        @flow.executable_task
        def simulate(number: int) -> str:
            return f"mkdir results; touch results/{number}"

        @flow.executable_task
        def merge(*_: Any) -> str:
            return "ls"

        error = await outcome(merge(simulate(1), simulate(2)))
        assert isinstance(error, DataError)
        assert "the directory 'results'" in str(error)


@pytest.mark.asyncio
async def test_a_task_cannot_receive_files_that_the_engine_does_not_pass_on() -> None:
    async with engine(local_threads(), implicit_data=False) as flow:
        task = flow.executable_task(implicit_data=False)(lambda: "true")
        with pytest.raises(ValueError, match="implicit_data=True"):
            task.options(implicit_data=True)


@pytest.mark.asyncio
@on_machines
async def test_an_unchanged_file_of_a_common_ancestor_is_no_conflict(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def prepare() -> str:
            return "echo parameters > settings; mkdir d; echo x > d/y; ln -s settings current"

        @flow.executable_task
        def run(name: str, _: object, command: str = "true") -> str:
            return f"touch {name}; {command}"

        @flow.executable_task
        def merge(*_: Any) -> str:
            return "ls; cat settings current"

        first = prepare()
        branches = [run(name, first) for name in "ab"]
        names = ["a", "b", "current", "d", "settings"]
        assert (await merge(*branches, first)).split() == [*names, "parameters", "parameters"]
        changed = run("c", first, "echo more >> settings")
        assert isinstance(await outcome(merge(branches[0], changed)), DataError)
        assert isinstance(await outcome(merge(first, changed)), DataError)


@pytest.mark.asyncio
@on_machines
async def test_inputs_of_dependencies_are_passed_on_unless_they_differ(machine: Any) -> None:
    for name in "ab":
        Path(name).mkdir()
        Path(name, "data").write_text(name)
    async with engine(machine()) as flow:

        @flow.executable_task
        def read(file: InputFile, name: str) -> str:
            return f"touch {name}"

        @flow.executable_task
        def look(*_: Any) -> str:
            return "ls; cat data; test -L data"

        one, two, three = (read(InputFile(f"{n}/data"), n + n) for n in "aab")
        assert (await look(one)).split() == ["aa", "data", "a"]
        four = read(InputFile("a/data"), "dd")
        assert (await look(one, four)).split() == ["aa", "data", "dd", "a"]
        own = look(three, four, InputFile("a/data"))
        assert (await own).split() == ["bb", "data", "dd", "a"]

        @flow.executable_task
        def names(*_: Any) -> str:
            return "ls"

        assert (await names(three, four)).split() == ["bb", "dd"]

        @flow.executable_task
        def read_both(one: InputFile, two: InputFile) -> str:
            return "ls > /dev/null"

        both = [read_both(InputFile("a/data"), InputFile("b/data")) for _ in "ab"]
        swapped = read_both(InputFile("b/data"), InputFile("a/data"))
        assert (await names(*both)) == (await names(both[0])) != ""
        assert await names(both[0], swapped) == ""
        assert await two == ""


@pytest.mark.asyncio
@on_machines
async def test_a_retry_starts_with_a_fresh_copy(machine: Any) -> None:
    Path("tries").touch()
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt"

        tries = Path("tries").absolute()

        @flow.executable_task(retries=RetryPolicy(attempts=2))
        def step(_: object) -> str:
            count = f"echo x >> '{tries}'; test $(wc -l < '{tries}') = 2"
            return f"echo x >> out.txt; {count} && cat out.txt"

        assert (await step(start())).split() == ["start", "x"]


@pytest.mark.asyncio
@on_machines
async def test_a_function_receives_a_copy_in_its_sandbox(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt"

        @flow.function_task(capture="files")
        def append(_: object) -> None:
            with Path(str(current_task().sandbox), "out.txt").open("a") as file:
                file.write("appended\n")

        @flow.executable_task
        def look(*_: Any) -> str:
            return "cat out.txt"

        first = start()
        second = append(first)
        assert await look(second) == "start\nappended\n"
        assert await look(first) == "start\n"


@pytest.mark.asyncio
@on_machines
async def test_an_unchanged_copy_is_not_an_output(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt"

        @flow.executable_task
        def step(_: object, output: OutputFile, command: str) -> str:
            return command

        first = start()
        assert isinstance(await outcome(step(first, OutputFile("out.txt"), "true")), DataError)
        several = OutputFile("*.txt", many=True)
        assert isinstance(await outcome(step(first, several, "true")), DataError)
        done = step(first, OutputFile("out.txt"), "echo more >> out.txt")
        await done
        assert Path(str(done.sandbox), "out.txt").read_text() == "start\nmore\n"


@pytest.mark.asyncio
@on_machines
async def test_a_task_that_changes_a_file_too_large_to_copy_fails(
    machine: Any, monkeypatch: Any
) -> None:
    no_clones(monkeypatch, 100)
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "seq 100 > big; echo small > small"

        @flow.executable_task
        def step(_: object, command: str) -> str:
            return command

        first = start()
        read = "tail -c 2 big; echo x >> small; test -L big"
        assert await step(first, read) == "0\n"
        error = await outcome(step(first, "echo x >> big"))
        assert isinstance(error, DataError)
        assert "big'" in str(error)
        # The former content is lost, so no other task may use the file.
        assert isinstance(await outcome(step(first, read)), DataError)


@pytest.mark.asyncio
@on_machines
async def test_a_file_too_large_to_copy_stays_as_long_as_links_lead_to_it(
    machine: Any, monkeypatch: Any
) -> None:
    no_clones(monkeypatch, 100)
    async with engine(machine()) as flow:

        @flow.executable_task
        def start() -> str:
            return "seq 100 > big"

        @flow.executable_task
        def step(_: object) -> str:
            return "tail -n 1 big"

        last = start()
        for _ in range(3):
            last = step(last)  # nothing else refers to the former tasks
            await last
        assert await last == "100\n"


@pytest.mark.asyncio
async def test_a_task_that_is_canceled_during_the_copy_leaves_nothing(monkeypatch: Any) -> None:
    copying, go_on = threading.Event(), threading.Event()

    def wait(source: str, target: str) -> None:
        copying.set()
        go_on.wait(20)
        shutil.copyfile(source, target)

    monkeypatch.setattr(undeclared, "copy_file", wait)
    async with engine(local_threads()) as flow:

        @flow.executable_task
        def start() -> str:
            return "echo start > out.txt"

        @flow.executable_task
        def step(_: object) -> str:
            return "cat out.txt"

        last = step(start())
        await asyncio.to_thread(copying.wait, 20)
        last.cancel()
        await asyncio.wait([last])
        go_on.set()
        await flow.shutdown()
        assert not [path for path in flow.work_dir.glob("*") if "000002" in path.name]
