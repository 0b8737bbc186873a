"""Tests of lookups of results: their arguments, and lookups that take a while."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine, hookimpl
from rhapsody.plugins.specs import LookupTask, Record, Recorded, TaskFiles
from tests._support.engine_fixtures import engine, local_threads
from tests._support.scripted import Inline, Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


class Sought:
    """Notes what is looked for and recorded.

    Attributes:
        tasks: What was looked for.
        records: What was recorded.
        answer: Called with each batch; what the look-up returns.
        looks_up_in_turn: True if tasks that are called during a lookup wait for it.
    """

    def __init__(self) -> None:
        self.tasks: list[LookupTask] = []
        self.records: list[Record] = []
        self.answer: Any = lambda tasks: None
        self.looks_up_in_turn = False

    @hookimpl
    def rhapsody_lookup_results(self, tasks: Sequence[LookupTask]) -> Any:
        self.tasks.extend(tasks)
        return self.answer(tasks)

    @hookimpl
    def rhapsody_record_results(self, records: Sequence[Record]) -> None:
        self.records.extend(records)


async def test_a_task_that_is_looked_up_tells_its_settings() -> None:
    sought = Sought()
    async with WorkflowEngine.create(backend := Inline(), observers=[sought]) as flow:

        @flow.function_task(version="7")
        def part(x: int) -> int:
            return x

        await within(part(1))
        (task,) = sought.tasks
        assert (task["name"], task["args"]) == ("part", (1,))
        assert task["settings"] == {"cache": True, "version": "7"}
        assert task["inputs"] == {}
        described = part(2).task
        assert described is not None
        assert not {"settings", "inputs"} & described.keys()
        assert backend.ran == ["part"]


async def test_input_files_can_be_read_when_their_task_is_looked_up(tmp_path: Path) -> None:
    sought, seen = Sought(), {}
    data = tmp_path / "data.txt"
    data.write_text("from disk")

    def read(tasks: Sequence[LookupTask]) -> None:
        for task in tasks:
            for name, path in task["inputs"].items():
                assert path is not None
                seen[task["name"], name] = Path(path).read_text()
            if "sandbox" in task:
                assert not Path(task["sandbox"]).exists()  # they are linked afterwards

    sought.answer = read
    async with engine(local_threads(), observers=[sought], work_dir=tmp_path / "work") as flow:

        @flow.function_task
        def write(target: OutputFile) -> OutputFile:
            Path(target).write_text("from a task")
            return target

        @flow.function_task
        def join(first: InputFile, second: InputFile, third: InputFile, after: Any) -> str:
            return ", ".join(Path(file).read_text() for file in (first, second, third))

        written = write(OutputFile("made.txt"))
        files = InputFile(str(data)), InputFile("made.txt"), InputFile("data:,from%20afar")
        joined = await join(*files, written)
    assert joined == "from disk, from a task, from afar"
    names = [file.filename for file in files]
    assert [seen["join", name] for name in names] == ["from disk", "from a task", "from afar"]
    assert dict(sought.records[-1].inputs) == sought.tasks[-1]["inputs"]


async def test_a_result_can_be_keyed_by_the_content_of_files_off_the_loop(tmp_path: Path) -> None:
    class Cache:
        def __init__(self) -> None:
            self.found: dict[Any, Any] = {}
            self.keys: dict[str, Any] = {}

        @hookimpl
        async def rhapsody_lookup_results(
            self, tasks: Sequence[LookupTask]
        ) -> list[Recorded | None]:
            return await asyncio.to_thread(lambda: [self.find(task) for task in tasks])

        @hookimpl
        def rhapsody_record_results(self, records: Sequence[Record]) -> None:
            for record in records:
                self.found[self.keys.pop(record.task["uid"])] = record.value

        def find(self, task: LookupTask) -> Recorded | None:
            digests = [
                hashlib.sha256(Path(path).read_bytes()).hexdigest()
                for path in task["inputs"].values()
                if path is not None
            ]
            key = self.keys[task["uid"]] = task["name"], task["settings"]["version"], *digests
            return Recorded(self.found[key]) if key in self.found else None

    data, cache, runs = tmp_path / "data.txt", Cache(), []

    async def measure(text: str, version: str) -> int:
        data.write_text(text)
        work_dir = tmp_path / "work"
        async with engine(local_threads(), observers=[cache], work_dir=work_dir) as flow:

            @flow.function_task(version=version)
            def size(file: InputFile) -> int:
                runs.append(text + version)
                return len(Path(file).read_text())

            result: int = await size(InputFile(str(data)))
            return result

    for text, version in [("ab", "1"), ("abc", "1"), ("ab", "1"), ("ab", "2"), ("abc", "1")]:
        assert await measure(text, version) == len(text)
    assert runs == ["ab1", "abc1", "ab2"]
    assert not list((tmp_path / "work").glob("*.task.*"))


async def test_a_missing_input_fails_its_task_before_it_is_looked_up(tmp_path: Path) -> None:
    sought = Sought()
    async with engine(local_threads(), observers=[sought], work_dir=tmp_path) as flow:

        @flow.function_task
        def read(file: InputFile) -> None: ...

        with pytest.raises(Exception, match=r"nowhere\.txt"):
            await read(InputFile("nowhere.txt"))
    assert sought.tasks == []


async def test_a_look_up_that_takes_a_while_holds_its_tasks_and_nothing_else() -> None:
    sought = Sought()
    found = asyncio.get_running_loop().create_future()
    async with WorkflowEngine.create(backend := Scripted(), observers=[sought]) as flow:

        @flow.function_task
        def part() -> Any: ...

        sought.answer = lambda tasks: found
        held, run = part.options(name="held")(), part.options(name="run")()
        await until(lambda: len(sought.tasks) == 2)
        sought.answer = lambda tasks: None
        other = part.options(name="other")()
        backend.done(await backend.next(), 1)
        assert await within(other) == 1
        assert not held.done()
        found.set_result([Recorded("found"), None])
        assert await within(held) == "found"
        task = await backend.next()
        assert task["name"] == "run"
        backend.done(task, 2)
        assert await within(run) == 2
        assert flow.stats.recorded == 1


async def test_tasks_that_are_called_during_a_lookup_in_turn_are_one_batch() -> None:
    sought = Sought()
    sought.looks_up_in_turn = True
    found = asyncio.get_running_loop().create_future()
    async with WorkflowEngine.create(Inline(), observers=[sought]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        sought.answer = lambda tasks: found
        held = part(1)
        await until(lambda: len(sought.tasks) == 1)
        sizes: list[int] = []
        sought.answer = lambda tasks: sizes.append(len(tasks))
        others = [part(x) for x in range(2, 5)]
        await turns()
        assert sizes == []
        found.set_result([Recorded("found")])
        assert await within(asyncio.gather(held, *others)) == ["found", 2, 3, 4]
        assert sizes == [3]


@pytest.mark.parametrize("files", [None, TaskFiles("/made/before", {})])
async def test_a_task_can_be_cancelled_while_it_is_looked_up(files: TaskFiles | None) -> None:
    sought = Sought()
    found = asyncio.get_running_loop().create_future()
    async with WorkflowEngine.create(backend := Scripted(), observers=[sought]) as flow:

        @flow.function_task
        def part() -> Any: ...

        sought.answer = lambda tasks: found
        cancelled, kept = part(), part()
        await until(lambda: len(sought.tasks) == 2)
        assert cancelled.cancel()
        found.set_result([Recorded(1, files), Recorded(2)])
        assert await within(kept) == 2
        await turns()
        assert cancelled.cancelled()
        assert backend.tasks == []
        assert flow.stats.recorded == 1


@pytest.mark.parametrize("answer", [OSError("disk gone"), [Recorded(1)] * 5, "nonsense"])
async def test_an_awaited_look_up_that_goes_wrong_is_reported_and_the_tasks_run(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def answered() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    sought, second = Sought(), Sought()
    sought.answer = lambda tasks: answered()
    async with WorkflowEngine.create(Inline(), observers=[sought, second]) as flow:

        @flow.function_task
        def part(x: int) -> int:
            return x

        for _ in range(2):
            assert await within(asyncio.gather(*flow.map(part, [1, 2]))) == [1, 2]
    assert len(second.tasks) == 4
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(messages) == 1
    assert "Sought" in messages[0]


async def test_shutdown_ends_a_look_up_that_does_not_come_back() -> None:
    sought = Sought()
    never = asyncio.get_running_loop().create_future()
    sought.answer = lambda tasks: never
    flow = await WorkflowEngine.create(Inline(), observers=[sought])

    @flow.function_task
    def part() -> Any: ...

    held = part()
    await until(lambda: sought.tasks)
    await within(flow.shutdown())
    assert held.cancelled()
