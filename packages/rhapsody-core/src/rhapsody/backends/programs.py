"""Executables and files on this machine, for backends that bring nothing better.

Two classes to put in front of `ManagedBackend`, for backends whose tasks see the
engine's file system. Functions, and when a task may start, are the backend's business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from rhapsody.backends.base import CompletedExecutable, Session
from rhapsody.data import link_all, link_into, make_sandbox
from rhapsody.sdk.executables import TaskProgram, task_environment
from rhapsody.sdk.processes import Guardian, Program
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["LocalPrograms", "SharedSandboxes"]


class SharedSandboxes:
    """Links files into sandboxes that tasks see under the same path as the engine.

    In front of `ManagedBackend` it lets a backend declare `files` and
    `shared_file_system`. A task's sandbox is made by `rhapsody.data.make_sandbox`,
    where its description names one.
    """

    session: Session

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        """Links a file into the sandbox of the task that needs it.

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
        """Links all that one task left in its sandbox into another's, but what it printed."""
        link_all(self.sandbox_of(src_task), self.sandbox_of(dst_task))

    def sandbox_of(self, task: Mapping[str, Any]) -> str:
        """The sandbox that a description names, or one of the backend's own."""
        sandbox: str = task.get("sandbox") or self.own_sandbox(task["uid"])
        return sandbox

    def own_sandbox(self, uid: str) -> str:
        """The sandbox of a task that names none."""
        return self.session.directory(uid)


class LocalPrograms(SharedSandboxes):
    """Runs executables as processes of this machine, each in its sandbox.

    In front of `ManagedBackend`, whose `run_task` hands executables to
    `run_program`, it lets a backend declare `executables`, `sandboxes` and
    `cancel_executables="running"` as well.

    Beside it runs, from the first executable to `shutdown`, a small process that ends
    what still runs where this one is killed.

    Attributes:
        grace: Seconds between SIGTERM and SIGKILL for what is stopped.
    """

    grace: float = 5.0
    __guardian: Guardian | None = None

    async def run_program(self, task: TaskDescription) -> CompletedExecutable:
        """Runs an executable task to its end, in a process group of its own.

        Cancelling it stops the whole group and waits until it is gone.

        Returns:
            What `ManagedBackend.run_task` is to return.

        Raises:
            OSError: The program cannot be started.
        """
        if self.__guardian is None:
            self.__guardian = Guardian()
        task["sandbox"] = make_sandbox(self.sandbox_of(task))
        launch = partial(Program, guardian=self.__guardian)
        program = TaskProgram(task, task_environment(task), launch=launch)
        task["worker"] = f"process {program.pid}"
        code = await program.wait(self.grace)
        return CompletedExecutable(code, task["stdout"], task["stderr"])

    async def shutdown(self) -> None:
        """Shuts the backend down, and ends what watches over its programs."""
        await super().shutdown()  # type: ignore[misc]  # of `ManagedBackend`
        if self.__guardian is not None:
            await in_thread(self.__guardian.stop, or_here=True)
