"""Tasks that run on the local backend after Dask has failed them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine
from rhapsody.engine.core.pushdown import held
from rhapsody_dask import DaskExecutionBackend
from tests.dask.clusters import ONE_EACH, foreign

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(100)]

PATIENCE = 60.0


async def test_a_task_that_kills_its_workers_runs_on_the_local_backend(tmp_path: Path) -> None:
    backends = [DaskExecutionBackend(ONE_EACH), LocalExecutionBackend()]
    async with WorkflowEngine.create(backends, lost_retries=1) as flow, asyncio.timeout(PATIENCE):
        home, trace = os.getpid(), tmp_path / "trace"

        @flow.function_task
        def make() -> int:
            return 20

        @flow.function_task(other_backends=("local",))
        def deadly(value: int) -> int:
            with open(trace, "a") as log:
                log.write("x")
            if os.getpid() != home:
                os.kill(os.getpid(), signal.SIGKILL)
            return value + 1

        @flow.function_task
        def double(value: int) -> int:
            return 2 * value

        future = deadly(double(make()))
        middle = double(future)
        last = double(middle)
        assert await last == 164
        assert held(middle) is not None  # what does not leave Dask stays there as ever
        assert trace.read_text() == "xxx"
        assert (future.backend, future.attempt) == ("local", 3)
        assert (last.backend, flow.stats.lost, flow.stats.retried) == ("dask", 2, 2)


async def test_tasks_of_a_lost_cluster_run_on_the_local_backend(tmp_path: Path) -> None:
    with foreign(tmp_path, tls=False) as there:
        dask = await DaskExecutionBackend(scheduler_file=there["scheduler_file"])
        backends = [dask, LocalExecutionBackend()]
        async with WorkflowEngine.create(backends) as flow, asyncio.timeout(PATIENCE):
            started, gate = tmp_path / "started", tmp_path / "gate"

            @flow.executable_task(backend="local")
            def write(out: Any) -> str:
                return f"echo data > {out}"

            @flow.executable_task(other_backends=("local",))
            def program(text: Any, made_by: Any) -> str:
                wait = f"while [ ! -e '{gate}' ]; do sleep 0.05; done"
                return f"touch '{started}'; {wait}; cat {text}"

            future = program(InputFile("x.txt"), write(OutputFile("x.txt")))
            while not started.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            sandbox = future.sandbox
            there["processes"][0].send_signal(signal.SIGKILL)
            later = program(InputFile("x.txt"), write(OutputFile("x.txt")))
            while (future.backend, later.backend) != ("local", "local"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            gate.touch()
            assert (await future, await later) == ("data\n", "data\n")
            assert future.sandbox != sandbox
