"""Executables and files on this machine, for backends without support of their own.

Two classes to inherit from before `ManagedBackend`, for backends whose tasks see the engine's file
system. Functions, and when a task may start, are the backend's concern. Plugins import both from
`rhapsody.backends`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from rhapsody.backends.base import CompletedExecutable, Session
from rhapsody.data import link_all, link_into, make_sandbox
from rhapsody.sdk.executables import TaskProgram, task_environment
from rhapsody.sdk.processes import Program, Reaper
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["LocalPrograms", "SharedSandboxes"]


class SharedSandboxes:
    """Links between sandboxes on a file system that tasks see under the same paths as the engine.

    With it a backend can declare `files` and `shared_file_system`. The backend creates a task's
    sandbox with `rhapsody.sdk.make_sandbox` if its description names one.
    """

    session: Session

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        """Link a file into the sandbox of the task that needs it.

        Raises:
            ValueError: Neither a path nor a task and a name are given.
            DataError: The file is not there, or the name could leave the sandbox.
        """
        if file_path is not None:
            source, name = file_path, file_name or os.path.basename(file_path)
        elif src_task is not None and file_name is not None:
            source, name = os.path.join(self.sandbox_of(src_task), file_name), file_name
        else:
            raise ValueError("link_explicit_data_deps needs file_path, or src_task and file_name")
        link_into(self.sandbox_of(dst_task), name, source)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Link everything that a task left in its sandbox, except its output, into another one."""
        link_all(self.sandbox_of(src_task), self.sandbox_of(dst_task))

    def sandbox_of(self, task: Mapping[str, Any]) -> str:
        """Return the sandbox that a description names, or one of the backend's own."""
        sandbox: str = task.get("sandbox") or self.own_sandbox(task["uid"])
        return sandbox

    def own_sandbox(self, uid: str) -> str:
        """Return the sandbox of a task whose description names none."""
        return self.session.directory(uid)


class LocalPrograms(SharedSandboxes):
    """Executables as processes of this machine, each in its sandbox.

    The backend's `run_task` passes executables to `run_program`. With this class a backend can
    declare `executables`, `sandboxes` and `cancel_executables="running"` as well.

    From the first executable to `shutdown`, a small process runs that ends the programs if this
    process is killed.

    Attributes:
        grace: Seconds between SIGTERM and SIGKILL when a program is stopped.
    """

    grace: float = 5.0
    __reaper: Reaper | None = None

    async def run_program(self, task: TaskDescription) -> CompletedExecutable:
        """Run an executable task to its end, in a process group of its own.

        Canceling it stops the whole group and waits for its end.

        Returns:
            The result for `ManagedBackend.run_task`.

        Raises:
            OSError: The program cannot be started.
        """
        if self.__reaper is None:
            self.__reaper = Reaper()
        task["sandbox"] = make_sandbox(self.sandbox_of(task))
        launch = partial(Program, reaper=self.__reaper)
        program = TaskProgram(task, task_environment(task), launch=launch)
        task["worker"] = f"process {program.pid}"
        code = await program.wait(self.grace)
        return CompletedExecutable(code, task["stdout"], task["stderr"])

    async def shutdown(self) -> None:
        """Shut the backend down, and the process that watches over its programs."""
        await super().shutdown()  # type: ignore[misc]  # of `ManagedBackend`
        if self.__reaper is not None:
            await in_thread(self.__reaper.stop, or_here=True)
