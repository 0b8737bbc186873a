"""The smallest backend that is worth the name, over `ManagedBackend`: a subject for the kit."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any

from rhapsody.backends.base import Capabilities, CompletedExecutable, ManagedBackend
from rhapsody.task import TaskDescription, task_kind


class SmallBackend(ManagedBackend):
    """Runs functions in threads and executables as child processes."""

    name = "small"
    canonical_states = True
    capabilities = Capabilities(
        cancel_async_functions="running",
        cancel_executables="running",
        sandboxes=True,
        cwd=True,
        shared_file_system=True,
        reports_running=True,
    )

    def __init__(self) -> None:
        super().__init__(max_running=4)

    async def run_task(self, task: TaskDescription) -> Any:
        function = task["function"]
        if function is None:
            return await self._execute(task)
        if task_kind(task) == "async_function":
            return await function(*task["args"], **task["kwargs"])
        return await asyncio.to_thread(function, *task["args"], **task["kwargs"])

    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        sandbox = task["sandbox"]
        os.makedirs(sandbox, mode=0o700, exist_ok=True)
        command = task["executable"] or ""
        words = [command, *task["arguments"]] if "arguments" in task else ["sh", "-c", command]
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=task.get("cwd", sandbox),
                env={**os.environ, **task.get("environment", {})},
                start_new_session=True,
            )
        )
        try:
            process = await asyncio.shield(starting)
            streams = await process.communicate(task.get("stdin", "").encode())
        except asyncio.CancelledError:
            process = await starting
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        keep = task.get("capture", True)
        texts = [stream.decode(errors="replace") if keep else "" for stream in streams]
        if keep == "files":
            for number, name in enumerate(("stdout", "stderr")):
                texts[number] = os.path.join(sandbox, f".{name}")
                with open(texts[number], "wb") as file:  # noqa: ASYNC230 - small
                    file.write(streams[number])
        return CompletedExecutable(process.returncode or 0, *texts)
