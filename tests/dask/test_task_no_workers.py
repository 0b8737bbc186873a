"""Submission to clusters without workers, as batch systems and adaptive clusters are at first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.errors import CapabilityError, DataError
from tests.dask.clusters import scale

pytestmark = pytest.mark.asyncio

BIG = 2_000_000


async def _submitted(flow: WorkflowEngine, count: int) -> None:
    """Wait until Dask has that many tasks."""
    backend: Any = flow.backend
    async with asyncio.timeout(30):
        while len(backend._results.calls) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_task_with_resources_waits_for_the_first_worker(
    empty: Any, waiting: WorkflowEngine
) -> None:
    @waiting.function_task(resources={"cores": 2})
    def twice(x: int) -> int:
        return 2 * x

    @waiting.function_task(resources={"cores": 3})
    def greedy() -> None: ...

    future = twice(21)
    await _submitted(waiting, 1)
    await scale(empty, 1)
    assert await future == 42
    with pytest.raises(CapabilityError, match="the largest amounts on any worker are cores=2"):
        await greedy()


async def test_large_arguments_and_files_are_sent_with_their_tasks(
    empty: Any, waiting: WorkflowEngine, tmp_path: Path
) -> None:
    np = pytest.importorskip("numpy")
    (tmp_path / "in.txt").write_text("from outside\n")

    @waiting.function_task
    def size(values: Any) -> int:
        return len(values)

    @waiting.function_task
    def read(source: InputFile, values: Any) -> str:
        with open(source) as file:
            return f"{len(values)} {file.read()}"

    blob = b"x" * BIG
    futures: list[Any] = [size(blob), size(blob), size(np.zeros(BIG // 8))]
    futures.append(read(InputFile(tmp_path / "in.txt"), blob))
    await _submitted(waiting, 4)
    await scale(empty, 1)
    assert await asyncio.gather(*futures) == [BIG, BIG, BIG // 8, f"{BIG} from outside\n"]
    assert await size(blob) == BIG


async def test_outputs_are_checked_whenever_workers_join(
    empty: Any, waiting: WorkflowEngine
) -> None:
    @waiting.executable_task
    async def write(target: OutputFile) -> str:
        return f"echo written > {target.filename}"

    @waiting.executable_task
    async def forget(target: OutputFile) -> str:
        return "true"

    @waiting.executable_task
    async def read(source: InputFile, after: object) -> str:
        return f"cat {source.filename}"

    early = [write(OutputFile("out.txt")), forget(OutputFile("never"))]
    await _submitted(waiting, 2)
    await scale(empty, 1)
    assert await read(InputFile("out.txt"), early[0]) == "written\n"
    with pytest.raises(DataError, match="did not write 'never'"):
        await early[1]
    late = write(OutputFile("out.txt"))
    assert await read(InputFile("out.txt"), late) == "written\n"
    with pytest.raises(DataError, match="did not write 'never'"):
        await forget(OutputFile("never"))
