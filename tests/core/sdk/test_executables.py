"""Executable tasks and services as third-party backends run them with `rhapsody.sdk`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from rhapsody import data
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


MEMORY = """
import asyncio, resource
from rhapsody import WorkflowEngine

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

async def main():
    async with WorkflowEngine.create(record=True) as flow:
        @flow.executable_task
        def command(size):
            return f"truncate -s {size} /dev/stdout /dev/stderr && echo end >> /dev/stdout"

        await command(17_000_000)
        before = peak()
        text = await command(300_000_000)
        assert text.startswith("[truncated: the output has 300000004 bytes"), text[:100]
        assert text.endswith("\\0end\\n"), text[-100:]
        print(peak() - before)

asyncio.run(main())
"""


async def test_output_of_a_command_takes_little_memory_whatever_its_size(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(MEMORY)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "flow.py", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await within(program.communicate())
    assert program.returncode == 0
    assert int(out) < 50_000_000


async def test_output_up_to_the_limit_is_returned_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_OUTPUT", 10)
    monkeypatch.setattr(data, "KEPT_OUTPUT", 3)
    path = tmp_path / "out"
    path.write_text("0123456789")
    assert data.output_of(str(path)) == "0123456789"
    path.write_text("01234567890")
    note, text = data.output_of(str(path)).split("\n")
    assert str(path) in note
    assert text == "890"
    assert data.output_of(str(tmp_path / "missing")) == ""


async def test_characters_that_utf_8_does_not_allow_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "MAX_LOOP_READ", 3)
    task = described(tmp_path, "printf 'a\\303\\244\\360\\237\\230\\200\\377b\\303'")
    await asyncio.wait_for(TaskProgram(task, {}).wait(grace=1), 30)
    assert task["stdout"] == "aä😀\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
