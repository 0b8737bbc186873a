"""A program with running and waiting jobs, which tests kill.

Run as `python -m tests.psij.victim EXECUTOR DIRECTORY`. Each task writes its process id to a file.
The program prints `running` when a task is running.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rhapsody import TasksMainStates, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend


async def main(executor: str, directory: Path) -> None:
    backend = PsijExecutionBackend(executor)
    print("starting", flush=True)
    async with WorkflowEngine.create(backend, work_dir=directory / "work") as flow:

        @flow.executable_task(capture=False)
        def task(number: int) -> str:
            return f"echo $$ >{directory}/{number}.pid; exec sleep 300"

        tasks = [task(number) for number in range(60)]  # some are being submitted
        print("submitting", flush=True)
        while all(each.state is not TasksMainStates.RUNNING for each in tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        print("running", flush=True)
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
