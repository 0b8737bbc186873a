"""Executable tasks and services as third-party backends run them with `rhapsody.sdk`."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from rhapsody.sdk import executables
from rhapsody.sdk.executables import TaskProgram, task_environment
from rhapsody.sdk.processes import group_alive
from tests._support.described import described
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio


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
    monkeypatch.setattr(executables, "MAX_LOOP_READ", 3)
    task = described(tmp_path, "printf 'a\\303\\244\\360\\237\\230\\200\\377b\\303'")
    await asyncio.wait_for(TaskProgram(task, {}).wait(grace=1), 30)
    assert task["stdout"] == "aä😀\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
