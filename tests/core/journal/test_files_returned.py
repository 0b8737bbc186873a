"""Results that are paths: the task runs again if such a file is missing."""

from __future__ import annotations

import collections
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from rhapsody import WorkflowEngine
from rhapsody.builtin.journal.files import paths_in
from rhapsody.fsutil import remove
from tests._support.recorded import LOG, broken_off, engine, note, ran

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()


def path_of(name: str) -> str:
    return name


def absolute_path_of(name: str) -> Path:
    return Path(name).absolute()


def in_a_list(name: str) -> list[str]:
    return ["no path", name]


def in_a_dict(name: str) -> dict[str, tuple[Path, ...]]:
    return {"made": (Path(name),)}


class Written(NamedTuple):
    path: str


@dataclasses.dataclass(slots=True)
class Found:
    path: Path


def in_a_named_tuple(name: str) -> Written:
    return Written(name)


def in_a_dataclass(name: str) -> list[Found]:
    return [Found(Path(name))]


def in_a_default_dict(name: str) -> dict[str, str]:
    return collections.defaultdict(str, made=name)


def with_a_newline(name: str) -> str:
    return f"{name}\n"  # as commands print it


def in_a_deque(name: str) -> collections.deque[str]:
    return collections.deque([name])


def directory_of(name: str) -> str:
    return str(Path(name).parent)


async def program(flow: WorkflowEngine, returned: Callable[[str], object]) -> str:
    @flow.function_task
    def write() -> object:
        note("write")
        name = "/".join(("results", "table.txt"))
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("made")
        return returned(name)

    @flow.function_task
    def read(made: object, more: str) -> str:
        note("read")
        return Path("results", "table.txt").read_text()

    answer: str = await read(write(), "now")
    return answer


@pytest.mark.parametrize(
    "returned",
    [
        path_of,
        absolute_path_of,
        in_a_list,
        in_a_dict,
        in_a_named_tuple,
        in_a_dataclass,
        in_a_default_dict,
        with_a_newline,
        in_a_deque,
        directory_of,
    ],
)
async def test_a_task_runs_again_if_a_path_that_it_returned_is_missing(
    here: Path, returned: Callable[[str], object]
) -> None:
    for times in (1, 1, 2, 2):
        if times > ran()["write"] > 0:
            remove(here / "results")
        async with engine(resume=True) as flow:
            assert await program(flow, returned) == "made"
        assert ran() == {"write": times, "read": 1}


async def test_a_path_into_the_directory_of_the_program_that_was_copied_is_not_reused(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def paths(flow: WorkflowEngine) -> list[str]:
        @flow.function_task
        def make(name: str, absolute: bool) -> str:
            note(name)
            path = Path("/".join((".", name)))
            path.write_text("content")
            return str(path.absolute() if absolute else path)

        return [await make("a", False), await make("b", True)]

    original = await broken_off(paths)
    copy = tmp_path / "copy"
    shutil.copytree(here, copy)
    monkeypatch.chdir(copy)
    assert await broken_off(paths) == [original[0], str(copy / "b")]
    assert ran() == {"a": 1, "b": 2}
    assert await broken_off(paths) == [original[0], str(copy / "b")]
    assert ran() == {"a": 1, "b": 2}


async def test_the_former_directory_of_the_program_is_not_reused(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def directory(flow: WorkflowEngine) -> Path:
        @flow.function_task
        def where() -> Path:
            note("where")
            return Path.cwd()

        found: Path = await where()
        return found

    assert await broken_off(directory) == here
    copy = tmp_path / "copy"
    shutil.copytree(here, copy)
    monkeypatch.chdir(copy)
    for _ in range(2):
        assert await broken_off(directory) == copy
    assert ran() == {"where": 2}


async def test_only_strings_and_paths_that_exist_are_paths(here: Path) -> None:
    (here / "a").touch()
    assert paths_in({"x": ["a", "b", b"a", 1, Path("a"), "a\0", "a" * 5000]}) == ["a", "a"]
    assert paths_in("a") == ["a"]
    assert paths_in("") == []
    assert paths_in(None) == []


@pytest.mark.parametrize("shared", [True, False])
async def test_files_that_several_tasks_write_and_return_are_named(
    here: Path, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(resume=True) as flow:

        @flow.function_task
        def write(text: str) -> str:
            name = "".join(("scratch", "" if shared else text, ".txt"))
            Path(name).write_text(text)
            return name

        @flow.function_task
        def same(name: str) -> str:
            return name

        for text in ("a", "bb", "ccc"):
            name = await write(text)
            assert await same(name) == name
    warnings = [text for text in caplog.messages if "scratch" in text]
    assert len(warnings) == (2 if shared else 0)  # one for each name
    for text in warnings[:1]:
        assert "task 'write' returned the path" in text
        assert "OutputFile('scratch.txt')" in text
