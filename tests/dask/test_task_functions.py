"""Functions, which each task receives as they were when it was called."""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio

MEGABYTE = 1 << 20


def _closure() -> Callable[[int], list[int]]:
    seen: list[int] = []

    def note(x: int) -> list[int]:
        seen.append(x)
        return seen

    return note


def _default() -> Callable[[int], list[int]]:
    def note(x: int, seen: list[int] = []) -> list[int]:  # noqa: B006 - what is tested
        seen.append(x)
        return seen

    return note


def _main_global() -> Callable[[int], list[int]]:
    program: dict[str, Any] = {"__name__": "__main__", "seen": []}
    exec("def note(x):\n    seen.append(x)\n    return seen", program)
    note: Callable[[int], list[int]] = program["note"]
    return note


@pytest.mark.parametrize("make", [_closure, _default, _main_global])
async def test_tasks_do_not_share_the_state_of_a_function(
    make: Callable[[], Callable[[int], list[int]]], flow: WorkflowEngine, raw: Any
) -> None:
    note = make()
    task = flow.function_task(note)
    for x in range(4):
        assert await task(x) == await raw.submit(note, x, pure=False) == [x]
    assert await asyncio.gather(*flow.map(task, range(4))) == [[0], [1], [2], [3]]


async def test_functions_of_a_loop_use_the_loops_variable_at_the_call(
    flow: WorkflowEngine, raw: Any
) -> None:
    ours, theirs = [], []
    for sample in range(3):

        def name(_: Any) -> int:
            return sample  # noqa: B023 - what is tested

        ours.append(flow.function_task(name)(asyncio.sleep))
        theirs.append(raw.submit(name, None, pure=False))
    assert await asyncio.gather(*ours) == await asyncio.gather(*theirs) == [0, 1, 2]


async def test_a_generator_of_the_program_is_refused_in_a_second_call(flow: WorkflowEngine) -> None:
    rng, imported = random.Random(0), random.random

    def draw(rng: random.Random) -> float:
        return rng.random()

    captured = flow.function_task(lambda: rng.random())
    assert await captured() == random.Random(0).random()
    with pytest.raises(ValueError, match="'rng'"):
        await captured()
    rng.random()
    task = flow.function_task(draw)
    await task(rng)
    with pytest.raises(ValueError, match="'rng'"):
        await task(rng)
    own = flow.function_task(lambda number: imported())
    assert len(set(await asyncio.gather(*flow.map(own, range(5))))) == 5


async def test_a_function_uses_the_last_uploaded_version_of_its_module(
    backend: DaskExecutionBackend,
    flow: WorkflowEngine,
    raw: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "changing_module.py"
    file.write_text("def version():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("changing_module")
    monkeypatch.setitem(sys.modules, "changing_module", module)
    workers = list((await backend.client.scheduler.identity(n_workers=-1))["workers"])
    for version in (1, 2):
        file.write_text(f"def version():\n    return {version}\n")
        await backend.client.upload_file(str(file))  # loads it anew here, too
        task = flow.function_task(module.version)
        for worker in workers:
            assert await raw.submit(module.version, pure=False, workers=[worker]) == version
        for worker in workers:
            assert await task(task_description={"workers": [worker]}) == version
            assert await raw.submit(module.version, pure=False, workers=[worker]) == version


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


def _holding(number: int, size: int) -> Callable[[], int]:
    data = bytearray(size)
    return lambda: len(data) + number


async def test_workers_do_not_keep_functions_with_large_data(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    worker, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
    here = {"workers": [worker]}
    memory = flow.function_task(_memory)
    size = 20 * MEGABYTE
    assert await flow.function_task(_holding(0, size))(task_description=here) == size
    before = await memory(task_description=here)
    for number in range(10):
        task = flow.function_task(_holding(number, size))
        assert await task(task_description=here) == size + number
    async with asyncio.timeout(30):
        while await memory(task_description=here) - before > 4 * size:
            continue


async def test_a_function_with_large_data_is_sent_once(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    np = pytest.importorskip("numpy")
    data = np.zeros(MEGABYTE)

    @flow.function_task
    def count(x: int, text: bytes) -> tuple[int, float]:
        data[0] += 1
        return x + len(text), float(data[0])

    big = b"x" * MEGABYTE
    results = await asyncio.gather(*(count(x, big) for x in range(20)))
    assert [*results] == [(x + MEGABYTE, 1.0) for x in range(20)]
    assert len(backend._shared) == 2
