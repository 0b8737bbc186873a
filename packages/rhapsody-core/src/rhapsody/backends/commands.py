"""Backends on systems that are used by commands: jobs are submitted, asked about, cancelled.

A batch system is one. What its commands are called is all that its backend has to know; the
job's script, its output and exit code, when to ask and how to cancel are here. Such a
system cannot call back, so it is asked, while there are jobs, at intervals of the backend's own.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from rhapsody.aio import wait_through
from rhapsody.backends.base import Capabilities, CompletedExecutable, ManagedBackend
from rhapsody.backends.programs import SharedSandboxes
from rhapsody.backends.scripts import exit_code, output, write_script
from rhapsody.data import make_sandbox
from rhapsody.errors import BackendError, TaskLostError
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["CommandBackend", "run_command"]

log: logging.Logger = logging.getLogger(__name__)

SOON = 0.1
"""Seconds until the system is asked again after something has changed; they double from there."""

AT_ONCE = 8
"""Jobs that are submitted at the same time."""


class _Job:
    """A task that the system has."""

    def __init__(self, task: TaskDescription) -> None:
        self.task: TaskDescription = task
        self.running = False
        self.cancelled = False
        self.seen = False  # the system may list it only some time after it has taken it
        self.gone: float | None = None  # since when, where it has left no exit code
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class CommandBackend(SharedSandboxes, ManagedBackend):
    """Runs executables as jobs of a system that has commands to submit, ask and cancel.

    A backend writes `submit_job`, `ask_jobs` and `cancel_jobs`, each mostly one
    `run_command`. The file system must be shared: a job is a script in its task's sandbox,
    which leaves the output and the exit code there, so that the system need not remember
    jobs that have ended.

    The system is asked about all open jobs at once: soon after something has changed, then
    less and less often; not at all while there are none. `max_running` is how many jobs it
    has at a time.

    Attributes:
        ask_every: Seconds between two questions at most.
        patience: Seconds in which the system may give no answer, or the exit code of a job
            that is gone may be late. Tasks are lost then.
    """

    capabilities: Capabilities = Capabilities(
        functions=False,
        sync_functions=False,
        cancel_executables="running",
        sandboxes=True,
        cwd=True,
        files=True,
        shared_file_system=True,
        reports_running=True,
    )
    running_when_called = False
    ask_every: float = 10.0
    patience: float = 30.0

    def __init__(self, max_running: int | None = None, *, name: str | None = None) -> None:
        super().__init__(max_running, name=name)
        self.__jobs: dict[str, _Job] = {}
        self.__submitting = asyncio.Semaphore(AT_ONCE)
        self.__news = asyncio.Event()
        self.__asking: asyncio.Task[None] | None = None

    # What an author writes. All on the loop; a cancellation does not reach them.

    @abstractmethod
    async def submit_job(self, task: TaskDescription, script: str) -> str:
        """Hand a job to the system.

        Args:
            task: The description, for its `resources` and `task_backend_specific_kwargs`.
            script: The path of the shell script to run, which prints nothing.

        Returns:
            What the system calls the job.

        Raises:
            Exception: Fails the task with this exception.
        """

    @abstractmethod
    async def ask_jobs(self, jobs: Sequence[str]) -> Mapping[str, bool]:
        """Find out which of some jobs wait and which run; never called twice at a time.

        Returns:
            Whether it runs, for each job that waits or runs; others have ended. There may be
            jobs that nobody asked about.

        Raises:
            Exception: The system gives no answer now; it is asked again.
        """

    @abstractmethod
    async def cancel_jobs(self, jobs: Sequence[str]) -> None:
        """Have the system end jobs, some of which may have ended.

        Raises:
            Exception: It could not be told; it is told again.
        """

    # What is the same everywhere.

    async def run_task(self, task: TaskDescription) -> CompletedExecutable:
        """Runs a task as a job; when cancelled, returns when the job is gone."""
        task["sandbox"] = make_sandbox(self.sandbox_of(task))
        script = await in_thread(partial(write_script, task))
        job = _Job(task)
        cancel = partial(self.__cancel, job)
        async with self.__submitting:
            submitting = asyncio.ensure_future(self.submit_job(task, script))
            await wait_through(submitting, cancel)
        self.__jobs[submitting.result()] = job
        self.__ask_soon()
        await wait_through(job.ended, cancel)
        if job.cancelled:
            job.ended.exception()  # looked at
            raise asyncio.CancelledError
        stdout, stderr = await in_thread(partial(output, task))
        return CompletedExecutable(job.ended.result(), stdout, stderr)

    def __cancel(self, job: _Job) -> None:
        job.cancelled = True
        self.__ask_soon()

    def __ask_soon(self) -> None:
        self.__news.set()
        if self.__asking is None or self.__asking.done():
            self.__asking = asyncio.create_task(self.__ask())

    async def __ask(self) -> None:
        wait, answered, told = SOON, monotonic(), set[str]()
        while self.__jobs:
            self.__news.clear()
            jobs = dict(self.__jobs)
            try:
                async with asyncio.timeout(self.patience):
                    seen = await self.ask_jobs(list(jobs))
                    to_end = [
                        name
                        for name, job in jobs.items()
                        if job.cancelled and name not in told and (name in seen or not job.seen)
                    ]
                    if to_end:
                        await self.cancel_jobs(to_end)
                told.update(to_end)
                if any([self.__changed(name, jobs[name], seen.get(name)) for name in jobs]):  # noqa: C419 - each
                    wait = SOON / 2
                answered = monotonic()
            except Exception as error:  # whatever its commands say
                log.warning("backend %r: no answer about its jobs: %r", self.name, error)
                if monotonic() - answered >= self.patience:
                    self.__lose(jobs, repr(error))
            wait = min(2 * wait, self.ask_every)
            await asyncio.sleep(min(SOON, wait))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait - SOON):
                    await self.__news.wait()
                wait = SOON

    def __changed(self, name: str, job: _Job, running: bool | None) -> bool:
        """Reports what is new of a job; whether anything is."""
        code = exit_code(job.task) if running is None else None
        if running is not None:
            job.seen, job.gone = True, None
        if running is False or (running and job.running):
            return False
        if not job.running and (running or code is not None):
            job.running = True
            self.task_state_cb(job.task, self.get_task_states_map().RUNNING)
        if running:
            return True
        job.gone = job.gone or monotonic()
        if code is not None or job.cancelled:
            self.__jobs.pop(name).ended.set_result(code or 0)
        elif monotonic() - job.gone > self.patience:
            self.__lose({name: job}, "it is gone, and has left no exit code")
        return True

    def __lose(self, jobs: Mapping[str, _Job], reason: Any) -> None:
        for name, job in jobs.items():
            del self.__jobs[name]
            lost = TaskLostError(f"job {name} of task {job.task['name']!r} was lost: {reason}")
            job.ended.set_exception(lost)


async def run_command(*words: str) -> str:
    """Run a command of the system to its end, and return what it prints.

    On a loop. A cancellation kills it.

    Raises:
        BackendError: It cannot be started, or fails; the text has what it says.
    """
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise BackendError(f"{words[0]!r} cannot be started: {error.strerror}") from error
    try:
        out, err = (data.decode("utf-8", "replace") for data in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        command, said = shlex.join(words), err.strip()[-500:]
        raise BackendError(f"{command:.200} ended with {process.returncode}: {said}")
    return out
