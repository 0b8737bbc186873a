"""The smallest backend that is worth the name, over `ManagedBackend`: a subject for the kit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from rhapsody.backends.base import Capabilities, CompletedExecutable, ManagedBackend
from rhapsody.data import OUTPUT_FILES, end_of_file
from rhapsody.errors import CapabilityError
from rhapsody.sdk import task_environment
from rhapsody.task import TaskDescription, task_kind


class SmallBackend(ManagedBackend):
    """Runs functions in threads and executables as child processes."""

    name = "small"
    canonical_states = True
    shares_memory = True
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
        task["worker"] = "this process"
        if function is None:
            return await self._execute(task)
        if task.get("environment"):
            raise CapabilityError("functions share the environment of the program")
        if task_kind(task) == "async_function":
            return await function(*task["args"], **task["kwargs"])
        return await asyncio.to_thread(function, *task["args"], **task["kwargs"])

    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        sandbox = task["sandbox"]
        os.makedirs(sandbox, mode=0o700, exist_ok=True)
        command = task["executable"] or ""
        words = [command, *task["arguments"]] if "arguments" in task else ["sh", "-c", command]
        paths = [os.path.join(sandbox, name) for name in OUTPUT_FILES]
        out, err = (open(path, "wb") for path in paths)  # noqa: ASYNC230, SIM115 - small
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=task.get("cwd", sandbox),
                env=os.environ | task_environment(task),
                start_new_session=True,
            )
        )
        try:
            process = await asyncio.shield(starting)
            await process.communicate(task.get("stdin", "").encode())
        except asyncio.CancelledError:
            process = await starting
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        finally:
            out.close()
            err.close()
        keep = task.get("capture", True)
        if keep == "files":
            return CompletedExecutable(process.returncode or 0, *paths)
        texts = [end_of_file(path, sys.maxsize) if keep else "" for path in paths]
        return CompletedExecutable(process.returncode or 0, *texts)
