"""Executable tasks and services as third-party backends run them with `rhapsody.sdk`."""

from __future__ import annotations

import asyncio
import re
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rhapsody.data import make_sandbox
from rhapsody.errors import TaskFailedError
from rhapsody.sdk import executables
from rhapsody.sdk.executables import TaskProgram, task_environment
from rhapsody.sdk.processes import group_alive
from rhapsody.sdk.services import TaskService, search_output
from rhapsody.task import TaskDescription
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio


def described(tmp_path: Path, command: str, **keys: Any) -> TaskDescription:
    task: Any = {
        "uid": "flow.task.000001.1",
        "name": "tool",
        "executable": command,
        "sandbox": make_sandbox(str(tmp_path / "sandbox")),
        **keys,
    }
    return task  # type: ignore[no-any-return]


async def test_a_program_leaves_its_results_in_the_description(tmp_path: Path) -> None:
    task = described(tmp_path, "echo out $X; echo err >&2; exit 3", environment={"X": "1"})
    program = TaskProgram(task, task_environment(task))
    assert await within(program.wait(1)) == 3
    assert (task["exit_code"], task["stdout"], task["stderr"]) == (3, "out 1\n", "err\n")
    assert not program.running


async def test_a_cancelled_wait_leaves_no_process_and_nothing_in_the_description(
    tmp_path: Path,
) -> None:
    task = described(tmp_path, "sleep 60 & sleep 60")
    program = TaskProgram(task, task_environment(task))
    waiting = asyncio.ensure_future(program.wait(5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert not group_alive(program.pid)
    assert "stdout" not in task


async def test_children_of_a_program_have_ended_when_it_has_ended(tmp_path: Path) -> None:
    task = described(tmp_path, "for _ in $(seq 50); do sleep 60 & done")
    program = TaskProgram(task, task_environment(task))
    assert await within(program.wait(1)) == 0
    assert not group_alive(program.pid)


async def test_variables_say_what_a_task_was_given(tmp_path: Path) -> None:
    task = described(tmp_path, "true", environment={"OMP_NUM_THREADS": "7"})
    given = task_environment(task, cores=2, gpus=("1", "3"))
    assert given["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert (given["MKL_NUM_THREADS"], given["OMP_NUM_THREADS"]) == ("2", "7")
    assert task_environment(task) == {"OMP_NUM_THREADS": "7"}


async def test_a_service_tells_when_it_is_ready_and_is_stopped_by_a_cancelled_wait(
    tmp_path: Path,
) -> None:
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    task = described(tmp_path, "echo at 4711; exec sleep 60", ready=r"stdout:at (\d+)")
    service = TaskService(task, {}, ready=ready.set_result)
    serving = asyncio.ensure_future(service.wait(5))
    assert await within(ready) == "4711"
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving)
    assert not group_alive(service.pid)


async def test_a_service_that_is_cancelled_before_it_is_ready_never_is(tmp_path: Path) -> None:
    told: list[Any] = []
    task = described(tmp_path, "exec sleep 60", ready="file:never")
    service = TaskService(task, {}, ready=told.append)
    serving = asyncio.ensure_future(service.wait(5))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving)
    assert not group_alive(service.pid)
    assert told == []


class Writing(threading.Event):
    """Event that is never set; the service writes more output during each wait."""

    def __init__(self, file: Path, *parts: str) -> None:
        super().__init__()
        self._file = file
        self._parts = list(parts)

    def wait(self, timeout: float | None = None) -> bool:
        with self._file.open("a") as file:
            file.write(self._parts.pop(0))
        return False


@pytest.mark.parametrize(
    "parts", [("port 8", "0\n"), ("port 8", "0 is open"), ("po", "rt 80\n"), ("port 80", "")]
)
async def test_a_line_that_comes_in_parts_is_searched_as_a_whole(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    file = tmp_path / "stdout"
    writing = Writing(file, *parts)
    assert search_output(str(file), re.compile(r"port (\d+)"), writing) == "80"


async def test_a_service_that_ends_too_early_fails_with_its_last_words(tmp_path: Path) -> None:
    task = described(tmp_path, "echo no license >&2; exit 2", ready="file:never")
    service = TaskService(task, {}, ready=lambda value: None)
    with pytest.raises(TaskFailedError, match="exit code 2 before it was ready: no license"):
        await within(service.wait(5))


async def test_large_output_takes_no_more_memory_than_twice_its_text(tmp_path: Path) -> None:
    task = described(tmp_path, "head -c 30000000 /dev/zero | tr '\\0' x")
    program = TaskProgram(task, {})
    tracemalloc.start()
    try:
        await asyncio.wait_for(program.wait(grace=1), 30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(task["stdout"]) == 30_000_000
    assert peak < 2.3 * 30_000_000


async def test_characters_may_lie_across_the_pieces_that_output_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "CHUNK", 3)
    monkeypatch.setattr(executables, "SMALL", 3)
    task = described(tmp_path, "printf 'a\\303\\244\\360\\237\\230\\200\\377b\\303'")
    await asyncio.wait_for(TaskProgram(task, {}).wait(grace=1), 30)
    assert task["stdout"] == "aä😀\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
