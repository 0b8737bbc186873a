"""Runs executable tasks and services of the local backend, each as a process group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from rhapsody.backends.local.jobs import Job
from rhapsody.data import make_sandbox
from rhapsody.sdk.executables import TaskProgram
from rhapsody.sdk.processes import Guardian, Program
from rhapsody.sdk.services import Readiness, TaskService
from rhapsody.task import TaskDescription


class Executables:
    """Runs executable tasks.

    Args:
        deliver: Takes each job that has ended; called on the loop.
        sandbox: Gives a task's sandbox where the description names none.
        gpus: All the GPUs there are to give.
        grace: Seconds between asking a program to end and ending it by force.
        guardian: What ends the programs where this process is killed.
    """

    announces = False
    stoppable = True

    def __init__(
        self,
        deliver: Callable[[Job], object],
        sandbox: Callable[[str], str],
        gpus: tuple[str, ...],
        grace: float,
        guardian: Guardian,
    ) -> None:
        self._deliver = deliver
        self._sandbox = sandbox
        self._gpus = gpus
        self._grace = grace
        self._launch = partial(Program, guardian=guardian)
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, job: Job) -> None:
        """Starts the program."""
        self._run(job, TaskProgram)

    def _run(self, job: Job, start: Callable[..., TaskProgram]) -> None:
        job.task["sandbox"] = make_sandbox(job.task.get("sandbox") or self._sandbox(job.uid))
        environment = job.environment(self._gpus)
        job.handle = program = start(job.task, environment, launch=self._launch)
        job.pid = program.pid
        job.worker = f"process {program.pid}"
        task = asyncio.create_task(self._finish(job, program))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, job: Job) -> None:
        """Asks the program's group to end, and ends it by force after the grace period."""
        job.cancelled = True
        if job.handle is not None:
            job.handle.terminate(self._grace)

    def ended(self, job: Job) -> None:
        """Nothing to note."""

    async def stop(self) -> None:
        """Waits until nothing is left to do for jobs that have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _finish(self, job: Job, program: TaskProgram) -> None:
        try:
            job.failed = await program.wait(self._grace) != 0
        except Exception as error:  # its output cannot be read, or it was not ready
            job.error = error
        self._deliver(job)


def check_shell(task: TaskDescription) -> None:
    """Raise where a task's setting `shell` is not what its command says.

    Raises:
        ValueError: It says what to write instead.
    """
    wanted = task["task_backend_specific_kwargs"].get("shell")
    by_shell = "arguments" not in task
    if wanted not in (None, by_shell):
        command = "a string, which a shell runs" if by_shell else "a list, which no shell sees"
        raise ValueError(
            f"task {task['name']!r}: task_description says shell={wanted!r}, and the command is "
            f"{command}; return a {'list of words' if by_shell else 'string'} instead"
        )


class Services(Executables):
    """Runs executable services.

    Args:
        deliver: Takes each job that has ended; called on the loop.
        serving: Called on the loop with each job whose program was started.
        sandbox: Gives a task's sandbox where the description names none.
        gpus: All the GPUs there are to give.
        grace: Seconds between asking a program to end and ending it by force.
        guardian: What ends the programs where this process is killed.
    """

    announces = True

    def __init__(
        self,
        deliver: Callable[[Job], object],
        serving: Callable[[Job, Callable[..., None] | None], object],
        sandbox: Callable[[str], str],
        gpus: tuple[str, ...],
        grace: float,
        guardian: Guardian,
    ) -> None:
        super().__init__(deliver, sandbox, gpus, grace, guardian)
        self._serving = serving

    def run(self, job: Job) -> None:
        """Starts the service's program and begins to watch for its readiness."""
        readiness = Readiness()
        self._run(job, partial(TaskService, ready=readiness.set))
        self._serving(job, None if job.task.get("ready") is None else readiness.attach)
