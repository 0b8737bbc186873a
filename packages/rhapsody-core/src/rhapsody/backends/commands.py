"""Base class of backends for systems with commands to submit, query and cancel jobs.

An example is a batch system. A subclass implements only the commands; the base class writes each
job's script, reads the job's output and exit code, and schedules queries and cancellations. Such
systems send no notifications, so the backend queries them periodically while there are jobs.
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
from rhapsody.backends.programs import SharedSandboxes, exit_code, output, write_script
from rhapsody.data import make_sandbox
from rhapsody.errors import BackendError, TaskLostError
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["CommandBackend", "run_command"]

log: logging.Logger = logging.getLogger(__name__)

MIN_POLL_INTERVAL = 0.1
"""Seconds from a change of a job to the next query; the interval doubles after each query."""

MAX_SUBMISSIONS = 8
"""Maximum number of concurrent calls of `submit_job`."""


class _SystemJob:
    """Job that was submitted to the system to run one task."""

    def __init__(self, task: TaskDescription) -> None:
        self.task: TaskDescription = task
        self.running = False
        self.cancelled = False
        self.seen = False  # the system may not list a new job immediately
        self.missing_since: float | None = None  # since when it is not listed and has no exit code
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class CommandBackend(SharedSandboxes, ManagedBackend):
    """Backend that runs executables as jobs of a system with commands to submit, query and cancel.

    Subclasses implement `submit_job`, `ask_jobs` and `cancel_jobs`, usually with one call of
    `run_command` each. The engine and the jobs must share a file system. Each job is a script in
    its task's sandbox, and writes its output and exit code to files in the sandbox. The system
    therefore need not keep any information about jobs that have ended.

    All open jobs are queried together: soon after one of them has changed, then less and less
    often. `max_running` limits the number of submitted jobs.

    Attributes:
        ask_every: Maximum number of seconds between two queries.
        patience: Time limit in seconds for one query, including the cancellations that follow it.
            If queries keep failing for this long, all open jobs are reported as lost. A job that
            is no longer listed is reported as lost if no exit code appears for this long.
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
        self.__jobs: dict[str, _SystemJob] = {}
        self.__submitting = asyncio.Semaphore(MAX_SUBMISSIONS)
        self.__news = asyncio.Event()
        self.__asking: asyncio.Task[None] | None = None

    # For authors to implement. Called on the loop. `submit_job` is never canceled; the others are
    # canceled if together they take longer than `patience` seconds.

    @abstractmethod
    async def submit_job(self, task: TaskDescription, script: str) -> str:
        """Submit a job to the system.

        Args:
            task: The task's description. Its `resources`, if present, and its
                `task_backend_specific_kwargs` apply to the job.
            script: The path of the shell script to run. The script prints nothing.

        Returns:
            The system's name for the job.

        Raises:
            Exception: The job was not submitted. The task fails with this exception.
        """

    @abstractmethod
    async def ask_jobs(self, jobs: Sequence[str]) -> Mapping[str, bool]:
        """Query which jobs are waiting and which are running. Calls do not overlap.

        Args:
            jobs: The names of all open jobs.

        Returns:
            A mapping from job names to True for running jobs and False for waiting ones. Jobs that
            have ended must be missing. The mapping may contain other jobs, which are ignored.

        Raises:
            Exception: The query failed. It will be repeated.
        """

    @abstractmethod
    async def cancel_jobs(self, jobs: Sequence[str]) -> None:
        """Cancel jobs, some of which may have ended.

        Args:
            jobs: The names of the jobs to cancel.

        Raises:
            Exception: The cancellation failed. It will be repeated.
        """

    # Common to all systems.

    async def run_task(self, task: TaskDescription) -> CompletedExecutable:
        """Run a task as a job. If this call is canceled, cancel the job and wait for its end."""
        task["sandbox"] = make_sandbox(self.sandbox_of(task))
        script = await in_thread(write_script, task)
        job = _SystemJob(task)
        cancel = partial(self.__cancel, job)
        async with self.__submitting:
            submitting = asyncio.ensure_future(self.submit_job(task, script))
            await wait_through(submitting, cancel)
        self.__jobs[submitting.result()] = job
        self.__ask_soon()
        await wait_through(job.ended, cancel)
        if job.cancelled:
            job.ended.exception()  # marks it as retrieved
            raise asyncio.CancelledError
        stdout, stderr = await in_thread(output, task)
        return CompletedExecutable(job.ended.result(), stdout, stderr)

    def __cancel(self, job: _SystemJob) -> None:
        job.cancelled = True
        self.__ask_soon()

    def __ask_soon(self) -> None:
        self.__news.set()
        if self.__asking is None or self.__asking.done():
            self.__asking = asyncio.create_task(self.__ask())

    async def __ask(self) -> None:
        wait, answered, ending = MIN_POLL_INTERVAL, monotonic(), set[str]()
        while self.__jobs:
            self.__news.clear()
            jobs = dict(self.__jobs)
            try:
                async with asyncio.timeout(self.patience):
                    seen = await self.ask_jobs(list(jobs))
                    names = [
                        name
                        for name, job in jobs.items()
                        if job.cancelled and name not in ending and (name in seen or not job.seen)
                    ]
                    if names:
                        await self.cancel_jobs(names)
                ending.update(names)
                if any([self.__changed(name, jobs[name], seen.get(name)) for name in jobs]):  # noqa: C419 - each
                    wait = MIN_POLL_INTERVAL / 2
                answered = monotonic()
            except Exception as error:  # the commands may fail in any way
                log.warning("backend %r: cannot query or cancel jobs: %r", self.name, error)
                if monotonic() - answered >= self.patience:
                    self.__lose(jobs, repr(error))
            wait = min(2 * wait, self.ask_every)
            await asyncio.sleep(min(MIN_POLL_INTERVAL, wait))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait - MIN_POLL_INTERVAL):
                    await self.__news.wait()
                wait = MIN_POLL_INTERVAL

    def __changed(self, name: str, job: _SystemJob, running: bool | None) -> bool:
        """Record a job's status, and report RUNNING when the job has started.

        Args:
            name: The job's name.
            job: The job.
            running: True if the job is running, False if it is waiting, `None` if it is not listed.

        Returns:
            False if the job is waiting, or is running and was already known to be running;
            otherwise True.
        """
        code = exit_code(job.task) if running is None else None
        if running is not None:
            job.seen, job.missing_since = True, None
        if running is False or (running and job.running):
            return False
        if not job.running and (running or code is not None):
            job.running = True
            self.task_state_cb(job.task, self.get_task_states_map().RUNNING)
        if running:
            return True
        job.missing_since = job.missing_since or monotonic()
        if code is not None or job.cancelled:
            self.__jobs.pop(name).ended.set_result(code or 0)
        elif monotonic() - job.missing_since > self.patience:
            self.__lose({name: job}, "it is no longer listed and has written no exit code")
        return True

    def __lose(self, jobs: Mapping[str, _SystemJob], reason: Any) -> None:
        for name, job in jobs.items():
            del self.__jobs[name]
            lost = TaskLostError(f"job {name} of task {job.task['name']!r} was lost: {reason}")
            job.ended.set_exception(lost)


async def run_command(*words: str) -> str:
    """Run a command of the system, and kill it if this call is canceled.

    Returns:
        The command's standard output as text.

    Raises:
        BackendError: The command cannot be started or fails. After a failure, the message contains
            the end of the command's standard error.
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
        command, reason = shlex.join(words), err.strip()[-500:]
        raise BackendError(f"{command:.200} failed with exit code {process.returncode}: {reason}")
    return out
