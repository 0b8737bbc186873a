"""Executables and files on this machine, for backends that bring nothing better.

Two classes to put in front of `ManagedBackend`, for backends whose tasks see the
engine's file system. Functions, and when a task may start, are the backend's business.
"""

from __future__ import annotations

import asyncio

from rhapsody.backends.base import CompletedExecutable
from rhapsody.backends.local.executables import Executables
from rhapsody.backends.local.guardian import Guardian
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.slots import Request
from rhapsody.backends.sandboxes import SharedSandboxes
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["LocalPrograms", "SharedSandboxes"]


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
    _guardian: Guardian | None = None

    async def run_program(self, task: TaskDescription) -> CompletedExecutable:
        """Runs an executable task to its end, in a process group of its own.

        Cancelling it stops the whole group and waits until it is gone.

        Returns:
            What `ManagedBackend.run_task` is to return.

        Raises:
            OSError: The program cannot be started.
        """
        if self._guardian is None:
            self._guardian = Guardian()
        programs = Executables(_nobody, self.own_sandbox, (), self.grace, self._guardian)
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

    async def shutdown(self) -> None:
        """Shuts the backend down, and ends what watches over its programs."""
        await super().shutdown()  # type: ignore[misc]  # of `ManagedBackend`
        if self._guardian is not None:
            await in_thread(self._guardian.stop)


def _nobody(job: Job) -> None:
    """Takes a job that has ended; `run_program` waits for it itself."""
