"""Executables and files on this machine, for backends that bring nothing better.

Two classes to put in front of `ManagedBackend`, for backends whose tasks see the
engine's file system. Functions, and when a task may start, are the backend's business.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from rhapsody.backends.base import CompletedExecutable, Session
from rhapsody.backends.local.capture import OUTPUT_FILES
from rhapsody.backends.local.executables import Executables
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.slots import Request
from rhapsody.data import link_all, link_into
from rhapsody.task import TaskDescription


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
        link_all(self.sandbox_of(src_task), self.sandbox_of(dst_task), skip=OUTPUT_FILES)

    def sandbox_of(self, task: Mapping[str, Any]) -> str:
        """The sandbox that a description names, or one of the backend's own."""
        sandbox: str = task.get("sandbox") or self.own_sandbox(task["uid"])
        return sandbox

    def own_sandbox(self, uid: str) -> str:
        """The sandbox of a task that names none."""
        return os.path.join(self.session.path, self.session.uid, uid)


class LocalPrograms(SharedSandboxes):
    """Runs executables as processes of this machine, each in its sandbox.

    In front of `ManagedBackend`, whose `run_task` hands executables to
    `run_program`, it lets a backend declare `executables`, `sandboxes` and
    `cancel_executables="running"` as well.

    Attributes:
        grace: Seconds between SIGTERM and SIGKILL for what is stopped.
    """

    grace: float = 5.0

    async def run_program(self, task: TaskDescription) -> CompletedExecutable:
        """Runs an executable task to its end, in a process group of its own.

        Cancelling it stops the whole group and waits until it is gone.

        Returns:
            What `ManagedBackend.run_task` is to return.

        Raises:
            OSError: The program cannot be started.
        """
        programs = Executables(_nobody, self.own_sandbox, (), self.grace)
        job = Job(task, Request(cores=0), programs)
        program = programs.start(job)
        task["worker"] = f"process {program.pid}"
        cancelled: asyncio.CancelledError | None = None
        while not program.exited.done():
            try:
                await asyncio.wait([program.exited])
            except asyncio.CancelledError as error:  # nobody is told before the group is gone
                cancelled = error
                program.terminate(self.grace)
        if cancelled is not None:
            raise cancelled
        await programs.collect(job, program.exited.result())
        return CompletedExecutable(task["exit_code"], task["stdout"], task["stderr"])


def _nobody(job: Job) -> None:
    """Takes a job that has ended; `run_program` waits for it itself."""
