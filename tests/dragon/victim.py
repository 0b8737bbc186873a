"""Program that a test kills: its tasks write the ids of their processes, and do not end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from rhapsody import WorkflowEngine
from rhapsody_dragon import DragonExecutionBackend


def work(path: str) -> None:
    Path(path, "function.part").write_text(str(os.getpid()))
    Path(path, "function.part").rename(Path(path, "function"))
    time.sleep(600)


async def main(path: str) -> None:
    async with WorkflowEngine.create(await DragonExecutionBackend(cores=2)) as flow:
        function = flow.function_task(lost_retries=0)(work)(path)
        file = f"{path}/program"
        command = f"echo $$ >{file}.part && mv {file}.part {file} && sleep 600"
        await asyncio.gather(function, flow.executable_task(lost_retries=0)(lambda: command)())


asyncio.run(main(sys.argv[1]))
