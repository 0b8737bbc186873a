"""Executables and files on this machine, for backends that bring nothing better.

Two classes to put in front of `ManagedBackend`, for backends whose tasks see the
engine's file system. Functions, and when a task may start, are the backend's business.
"""

from __future__ import annotations

from functools import partial

from rhapsody.backends.base import CompletedExecutable
from rhapsody.backends.sandboxes import SharedSandboxes
from rhapsody.data import make_sandbox
from rhapsody.sdk.executables import TaskProgram, task_environment
from rhapsody.sdk.processes import Guardian, Program
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
