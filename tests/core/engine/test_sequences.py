"""Which output a plain file name stands for: the calls that a coroutine or block made before."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody import DataError, InputFile, OutputFile, WorkflowEngine
from rhapsody.engine.calls.sequences import Sequences
from tests._support.saving import writer
from tests._support.scripted import within

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.timeout(60)]

NAMES = ["a", "b", "c"]


def steps(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that writes a word, as a command, and a function that reads the word."""

    @flow.function_task
    def read(file: InputFile, *after: Any) -> str:
        return Path(file).read_text().strip()

    return writer(flow), read


@pytest.mark.asyncio
async def test_coroutines_that_use_the_same_names_read_their_own_files(
    flow: WorkflowEngine,
) -> None:
    write, read = steps(flow)
    all_wrote = asyncio.Barrier(len(NAMES))

    async def sample(name: str) -> str:
        await write(name, OutputFile("clean.csv"))
        await all_wrote.wait()
        return str(await read(InputFile("clean.csv")))

    assert await within(asyncio.gather(*map(sample, NAMES))) == NAMES
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sample(name)) for name in NAMES]
    assert [task.result() for task in tasks] == NAMES


@pytest.mark.asyncio
async def test_a_loop_reads_as_it_is_written(flow: WorkflowEngine) -> None:
    write, read = steps(flow)

    async def clean(name: str) -> None:  # is awaited directly, and so belongs to its caller
        write(name, OutputFile("clean.csv"))

    futures = []
    for name in NAMES:
        await clean(name)
        futures.append(read(InputFile("clean.csv")))
    assert await within(asyncio.gather(*futures)) == NAMES


@pytest.mark.asyncio
async def test_blocks_that_use_the_same_names_read_their_own_files(flow: WorkflowEngine) -> None:
    write, read = steps(flow)

    @flow.block
    async def on_loop(name: str) -> str:
        await write(name, OutputFile("clean.csv"))
        return str(await read(InputFile("clean.csv")))

    @flow.block
    def on_thread(name: str) -> str:
        one = write(name, OutputFile("clean.csv"))
        other = write(name.upper(), OutputFile("clean.csv"), one)
        rhapsody.wait(other)
        return str(rhapsody.wait(read(InputFile("clean.csv"))))

    assert await within(asyncio.gather(*map(on_loop, NAMES))) == NAMES
    assert await within(asyncio.gather(*map(on_thread, NAMES))) == ["A", "B", "C"]


@pytest.mark.asyncio
async def test_a_child_sees_what_was_called_before_it_was_started(flow: WorkflowEngine) -> None:
    write, read = steps(flow)

    async def child() -> str:
        return str(await read(InputFile("settings.txt")))

    @flow.block
    def block() -> str:
        return str(rhapsody.wait(read(InputFile("settings.txt"))))

    children = []
    for name in NAMES:
        write(name, OutputFile("settings.txt"))
        children += [asyncio.ensure_future(child()), block()]
    write("later", OutputFile("settings.txt"))
    assert await within(asyncio.gather(*children)) == ["a", "a", "b", "b", "c", "c"]
    assert await within(read(InputFile("settings.txt"))) == "later"


@pytest.mark.asyncio
async def test_a_file_of_several_other_coroutines_is_refused(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = steps(flow)

    async def sample(name: str) -> Any:
        future = write(name, OutputFile("clean.csv"))
        await future
        return future.file("clean.csv"), future.uid

    (one, uid), (_, other) = await within(asyncio.gather(*map(sample, NAMES[:2])))
    with pytest.raises(DataError, match=r"pass future\.file\('clean\.csv'\)") as raised:
        read(InputFile("clean.csv"))
    assert uid in str(raised.value)
    assert other in str(raised.value)
    assert await within(read(one)) == "a"
    (here / "clean.csv").write_text("on disk")
    assert await within(read(InputFile("./clean.csv"))) == "on disk"
    write("own", OutputFile("clean.csv"))
    assert await within(read(InputFile("clean.csv"))) == "own"


@pytest.mark.asyncio
async def test_a_file_that_one_other_coroutine_declared_is_meant(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = steps(flow)

    async def sample() -> Any:
        future = write("word", OutputFile("clean.csv"))
        write("placed", OutputFile("placed.csv", save="out/"))
        write("here", OutputFile("./here.csv"))
        return future.uid, future.file("clean.csv")

    uid, file = await asyncio.create_task(sample())
    for name, word in (("clean", "word"), ("placed", "placed"), ("here", "here")):
        assert await within(read(InputFile(f"{name}.csv"))) == word
    assert await within(read(InputFile("here.csv"))) == "here"  # now also on disk

    (here / "clean.csv").write_text("on disk")  # now two files could be meant
    with pytest.raises(DataError, match=r"future\.file\(.*'\./clean\.csv'") as raised:
        read(InputFile("clean.csv"))
    assert uid in str(raised.value)
    assert await within(read(file)) == "word"
    assert await within(read(InputFile("./clean.csv"))) == "on disk"
    (here / "placed.csv").write_text("on disk")
    with pytest.raises(DataError, match="is ambiguous"):
        read(InputFile("placed.csv"))
    write("own", OutputFile("clean.csv"))
    assert await within(read(InputFile("clean.csv"))) == "own"


@pytest.mark.asyncio
async def test_an_output_with_a_separate_destination_is_found_by_both_names(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = steps(flow)
    (here / "q.txt").write_text("stale")
    write("one", OutputFile("q.txt", save="res/"))
    assert await within(read(InputFile("q.txt"))) == "one"
    assert await within(read(InputFile("res/q.txt"))) == "one"
    write("two", OutputFile("q.txt", save="res/other.txt"))
    assert await within(read(InputFile("q.txt"))) == "two"
    assert await within(read(InputFile("res/q.txt"))) == "one"
    assert await within(read(InputFile("./q.txt"))) == "stale"


@pytest.mark.asyncio
async def test_an_output_with_directories_in_its_name_is_found_by_its_destination(
    here: Path, flow: WorkflowEngine
) -> None:
    write, read = steps(flow)
    write("one", OutputFile("res/q.txt"))
    with pytest.raises(DataError, match=r"pass InputFile\('res/q\.txt'\)") as raised:
        await within(read(InputFile("q.txt")))
    assert "no earlier call" not in str(raised.value)
    (here / "q.txt").write_text("on disk")
    assert await within(read(InputFile("q.txt"))) == "on disk"


@pytest.mark.asyncio
async def test_a_dependency_comes_before_the_calls_of_the_coroutine(flow: WorkflowEngine) -> None:
    write, read = steps(flow)

    @flow.executable_task
    def several(out: OutputFile) -> str:
        return "echo matched > clean.csv; echo > other.csv"

    first, many = write("first", OutputFile("clean.csv")), several(OutputFile("*.csv", many=True))
    write("second", OutputFile("clean.csv"))
    assert await within(read(InputFile("clean.csv"))) == "second"
    assert await within(read(InputFile("clean.csv"), first)) == "first"
    assert await within(read.options(after=first)(InputFile("clean.csv"))) == "first"
    assert await within(read(InputFile("clean.csv"), many)) == "matched"
    write("third", OutputFile("third.csv"))
    assert await within(read(InputFile("third.csv"), many)) == "third"


@pytest.mark.asyncio
async def test_two_engines_of_a_program_do_not_disturb_each_other(flow: WorkflowEngine) -> None:
    async with WorkflowEngine.create() as other:
        tasks = [steps(flow), steps(other)]

        async def sample(name: str) -> list[str]:
            for number, (write, _) in enumerate(tasks):
                write(f"{name}{number}", OutputFile("clean.csv"))
            return [await read(InputFile("clean.csv")) for _, read in tasks]

        found = await within(asyncio.gather(*map(sample, NAMES)))
    assert found == [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]]


def test_a_program_on_a_thread_reads_as_it_is_written() -> None:
    def main(flow: WorkflowEngine) -> list[str]:
        write, read = steps(flow)

        @flow.block
        def sample(name: str) -> str:
            write(name, OutputFile("clean.csv"))
            return str(rhapsody.wait(read(InputFile("clean.csv"))))

        blocks = [sample(name) for name in NAMES]
        others = [rhapsody.wait(block) for block in blocks]
        for name in NAMES:
            write(name, OutputFile("clean.csv"))
            others.append(rhapsody.wait(read(InputFile("clean.csv"))))
        return others

    assert rhapsody.run(main) == [*NAMES, *NAMES]


def test_branches_see_what_was_added_before_they_began() -> None:
    sequences = Sequences()
    context = contextvars.Context()
    context.run(sequences.add, 1, ["x"])
    one, two = context.copy(), context.copy()
    one.run(sequences.add, 2, ["x", "y"])
    two.run(sequences.add, 3, ["y"])
    context.run(sequences.add, 4, ["x"])
    three = context.copy()
    three.run(sequences.add, 5, ["z"])
    context.run(sequences.add, 6, ["z"])
    found = [
        [branch.run(sequences.latest, [name]) for name in "xyz"]
        for branch in (one, two, three, context, contextvars.Context())
    ]
    assert found == [
        [2, 2, None],
        [1, 3, None],
        [4, None, 5],
        [4, None, 6],
        [None, None, None],
    ]
    assert one.run(sequences.latest, ["x", "z"]) == 2


def test_a_context_does_not_keep_an_engine_alive() -> None:
    sequences = Sequences()
    sequences.add(1, ["x"])
    dead = weakref.ref(sequences)
    del sequences
    gc.collect()
    assert dead() is None
