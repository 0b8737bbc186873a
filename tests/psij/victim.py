"""A program that tests kill at a moment.

Run as `python -m tests.psij.victim EXECUTOR DIRECTORY MOMENT`. The program prints `now` at the
moment and continues. Most of its tasks write their process id to a file and wait.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rhapsody import TasksMainStates, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend

MOMENTS = (
    "starting",
    "idle",
    "submitting",
    "queued",  # and no job is running
    "running",
    "shared",  # a job that runs several tasks
    "between",  # between two tasks of a job
    "canceling",
    "returning",
    "stopping",
)

now = partial(print, "now", flush=True)


async def main(executor: str, directory: Path, moment: str) -> None:
    never = {"slurm.begin": "now+1hour"} if moment == "queued" and executor == "slurm" else {}
    per_job = 10 if moment in ("shared", "between") else 1
    seconds = 1 if moment in ("between", "returning") else 300  # for slots to become free
    backend = PsijExecutionBackend(executor, attributes=never, tasks_per_job=per_job)
    if moment == "starting":
        now()
    async with WorkflowEngine.create(backend, work_dir=directory / "work") as flow:

        @flow.executable_task
        def first() -> str:
            return "true"

        @flow.executable_task(capture=False)
        def wait(number: int) -> str:
            return f"echo $$ >{directory}/{number}.pid; exec sleep {seconds}"

        @flow.function_task
        def large() -> bytes:
            (directory / "returning").touch()
            return bytes(10**8)

        if moment == "idle":
            now()
            await asyncio.Future()
        result = asyncio.gather(first(), large())
        tasks = [wait(number) for number in range(60)]  # some are being submitted
        conditions: dict[str, Callable[[], bool]] = {
            "submitting": lambda: True,
            "queued": lambda: (
                executor == "local" or bool(subprocess.check_output(["squeue", "-h"]))
            ),
            "between": lambda: any(task.done() for task in tasks),
            "returning": (directory / "returning").exists,
        }

        def running() -> bool:
            return any(task.state is TasksMainStates.RUNNING for task in tasks)

        while not conditions.get(moment, running)():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if moment == "canceling":
            for task in tasks:
                task.cancel()
        now()
        if moment == "stopping":
            await flow.shutdown()
        await asyncio.gather(result, *tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
