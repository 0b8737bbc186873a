"""Worker values on Dask: files and results as arguments, the time for building, lost workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, TaskTimeoutError, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from tests._support.scripted import within
from tests._support.word_log import log_in, logged

pytestmark = pytest.mark.asyncio


async def test_a_factory_receives_results_and_files(flow: WorkflowEngine, tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("5")
    log = log_in(tmp_path)

    @flow.worker_value
    def model(scale: Any, file: Any) -> int:
        log("built")
        return int(scale) * int(Path(file).read_text())

    @flow.function_task
    def train(number: int) -> int:
        return number + 1

    @flow.function_task
    def use(number: int, net: int) -> int:
        return number + net

    file = InputFile(tmp_path / "weights.txt")
    nets: list[Any] = [model(train(1), file), model(train(2), file)]
    results = await within(asyncio.gather(*(use(n, net) for n in range(10) for net in nets)))
    assert results == [n + value for n in range(10) for value in (10, 15)]
    assert len(logged(tmp_path, "built")) <= 4


async def test_building_does_not_count_toward_the_timeout_and_values_are_closed(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    log = log_in(tmp_path)

    @flow.worker_value
    def model() -> Iterator[int]:
        log("built")
        time.sleep(2.5)
        yield 3
        log("closed")

    @flow.function_task(timeout=1.5)
    def use(net: int, seconds: float) -> int:
        time.sleep(seconds)
        return net

    async with model() as net:
        futures = [use(net, 0.1) for _ in range(4)]
        assert await within(asyncio.gather(*futures)) == [3] * 4
        assert any((each.usage or {}).get("build_seconds", 0) > 2 for each in futures)
        with pytest.raises(TaskTimeoutError, match=r"exceeded its timeout of 1\.5 s"):
            await use(net, 4)
    built = logged(tmp_path, "built")
    async with asyncio.timeout(20):
        while len(logged(tmp_path, "closed")) < len(built):
            await flow.function_task(int)()


async def test_a_value_is_built_again_after_its_worker_was_killed(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    backend = DaskExecutionBackend({"n_workers": 2, "threads": 1})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        @flow.worker_value
        def model() -> int:
            log("built")
            return 3

        @flow.function_task(lost_retries=3)
        def use(number: int, net: int) -> int:
            if number == 7 and not logged(tmp_path, "killed"):
                log("killed")
                os.kill(os.getpid(), signal.SIGKILL)
            return number * net

        net = model()
        results = await within(asyncio.gather(*(use(number, net) for number in range(40))))
        assert results == [number * 3 for number in range(40)]
    killed = logged(tmp_path, "killed")
    assert len(killed) == 1
    built = logged(tmp_path, "built")
    assert len(built) == len(set(built))
    assert killed[0] in built
