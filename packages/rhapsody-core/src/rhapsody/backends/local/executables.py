"""Runs programs, each in a process group of its own, and ends them as a group.

No thread and no pipe: output goes to files, and the system tells the loop when a
program has ended. What a program left running in its group is ended with it.
Services add readiness to this, in `rhapsody.backends.local.services`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, Any

from rhapsody.backends.local import groups
from rhapsody.backends.local.guardian import Guardian
from rhapsody.backends.local.jobs import Job, task_environment
from rhapsody.backends.local.outputs import ProgramOutput
from rhapsody.data import OUTPUT_FILES, make_sandbox
from rhapsody.sdk.threads import in_thread, start_thread

log: logging.Logger = logging.getLogger(__name__)

SMALL = 1 << 20
"""Bytes of output that are read on the loop; more is read on a thread."""

CHECK = 0.02
"""Seconds between two looks, on a thread, whether a group that was told to end is gone."""

KILLED = 1.0
"""Seconds that the members of a group may take to be gone after SIGKILL."""


class Program:
    """One running program and whatever it started in its process group.

    Args:
        command: The program and its arguments.
        cwd: Its working directory.
        environment: All of its variables.
        stdin: Text for its standard input.
        stdout: A file or descriptor, as for `subprocess.Popen`.
        stderr: The same.
        guardian: What ends the group where this process is killed.

    Attributes:
        exited: Done when the whole group has ended, with the exit code.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str,
        environment: dict[str, str],
        stdin: str | None,
        stdout: IO[bytes] | int | None,
        stderr: IO[bytes] | int | None,
        guardian: Guardian | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._guardian = guardian
        if guardian is not None:
            guardian.pipe()  # where there can be none, nothing is started
        with ExitStack() as files:
            source: IO[bytes] | int = subprocess.DEVNULL
            if stdin:
                source = files.enter_context(tempfile.TemporaryFile())
                source.write(stdin.encode())
                source.seek(0)
            self._process = subprocess.Popen(  # noqa: S603 - running the user's command is the point
                command,
                cwd=cwd,
                env=environment,
                stdin=source,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._opened()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._deadline: float | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._descriptor = _watch(self._process.pid)
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._leader_ended)
        else:
            start_thread(self._wait, f"rhapsody-wait-{self._process.pid}")

    @property
    def pid(self) -> int:
        """The process id, which is the group's as well."""
        return self._process.pid

    def _opened(self) -> None:
        groups.opened(self.pid)
        if self._guardian is not None:
            self._guardian.began(self.pid)

    def _closed(self) -> None:
        groups.closed(self.pid)
        if self._guardian is not None:
            self._guardian.ended(self.pid)

    def terminate(self, grace: float) -> None:
        """Asks the group to end, and ends it by force after `grace` seconds."""
        if self.exited.done() or self._deadline is not None:
            return
        self._deadline = time.monotonic() + grace
        groups.send(self.pid, signal.SIGTERM)
        self._killer = self._loop.call_later(grace, groups.send, self.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Waits for the leader where the system cannot tell the loop. On a thread."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._leader_ended)

    def _leader_ended(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._deadline is None:
            # Before the leader is reaped its group's number cannot be anybody else's.
            groups.send(self.pid, signal.SIGKILL)
            self._closed()
            self._over(self._exit_code())
            return
        self._closed()
        code = self._exit_code()
        if groups.exists(self.pid):
            self._opened()  # while it has members its number is nobody else's
            # A shell ends at once when it is told to; what it runs has its time to do so.
            wait = partial(self._wait_for_group, self._deadline, code)
            start_thread(wait, f"rhapsody-end-{self.pid}")
        else:
            self._over(code)

    def _exit_code(self) -> int:
        """Reaps the leader. Of one that somebody else has reaped the code is taken for 255."""
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # for which `Popen.wait` says 0
            log.warning(
                "how process %d ended is not known, and it is taken for failed: SIGCHLD is ignored "
                "or has a handler that waits for every process. Leave it alone with "
                "signal.signal(signal.SIGCHLD, signal.SIG_DFL)", self.pid,
            )  # fmt: skip
            self._process.wait()
            return 255
        return self._process.wait()

    def _wait_for_group(self, deadline: float, code: int) -> None:
        """Waits for the rest of the group, until it is time for force. On a thread."""
        while groups.alive(self.pid) and time.monotonic() < deadline:
            time.sleep(CHECK)
        groups.send(self.pid, signal.SIGKILL)
        gone = time.monotonic() + KILLED
        while groups.alive(self.pid) and time.monotonic() < gone:
            time.sleep(CHECK)
        self._closed()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._over, code)

    def _over(self, code: int) -> None:
        if self._killer is not None:
            self._killer.cancel()
        if not self.exited.done():
            self.exited.set_result(code)


def _watch(pid: int) -> int | None:
    """A descriptor that can be read from when the process ends, where there are such."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old system, or one that forbids it
        return None


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
        guardian: Guardian | None = None,
    ) -> None:
        self._guardian = guardian
        self._deliver = deliver
        self._sandbox = sandbox
        self._gpus = gpus
        self._grace = grace
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, job: Job) -> None:
        """Starts the program."""
        job.handle = program = self.start(job)
        job.pid = program.pid
        job.worker = f"process {program.pid}"
        self._spawn(self._finish(job, program))

    def cancel(self, job: Job) -> None:
        """Asks the program's group to end, and ends it by force after the grace period."""
        job.cancelled = True
        if job.handle is not None:
            job.handle.terminate(self._grace)

    def start(self, job: Job, stdout: int | None = None) -> Program:
        """Starts a job's program.

        Args:
            job: The job.
            stdout: Where its output goes, instead of the file in the sandbox.
        """
        task = job.task
        directory = self.directory(job)
        executable = task["executable"]
        if not isinstance(executable, str) or not executable:
            raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
        arguments = task.get("arguments")
        command = ["/bin/sh", "-c", executable] if arguments is None else [executable, *arguments]
        if job.port is not None:
            command = [word.replace("{port}", str(job.port)) for word in command]
        with ExitStack() as files:
            capture, output = task.get("capture", True), None
            own: tuple[int | None, int | None] = (None, None)
            if capture is not False:
                output = ProgramOutput(directory)
                files.callback(output.close)
                own = output.descriptors
            try:
                program = self.launch(
                    command,
                    cwd=directory,
                    environment=os.environ | task_environment(job, self._gpus),
                    stdin=task.get("stdin"),
                    stdout=own[0] if stdout is None else stdout,
                    stderr=own[1],
                )
            except OSError as error:  # its number makes it of the same type
                reason = f"task {task['name']!r} cannot start {executable!r:.200}: {error.strerror}"
                raise OSError(error.errno, reason, error.filename) from error
            except ValueError as error:
                raise ValueError(
                    f"task {task['name']!r} cannot start {executable!r:.200}: {error}"
                ) from error
            if capture is True:
                job.output = output
                files.pop_all()
            return program

    def launch(self, command: Sequence[str], **options: Any) -> Program:
        """Starts a program; takes what `Program` does. For those who have more to do then."""
        return Program(command, guardian=self._guardian, **options)

    def directory(self, job: Job) -> str:
        """The job's sandbox, which exists from now on."""
        directory = make_sandbox(job.task.get("sandbox") or self._sandbox(job.uid))
        job.task["sandbox"] = directory
        return directory

    async def collect(self, job: Job, code: int) -> None:
        """Writes a program's exit code and output into the description."""
        task = job.task
        output, job.output = job.output, None
        stdout = stderr = ""
        if output is not None:
            # Little is read here, more beside the loop.
            small = output.size <= SMALL
            stdout, stderr = output.take() if small else await in_thread(output.take)
        elif task.get("capture", True) == "files":
            stdout, stderr = (os.path.join(task["sandbox"], name) for name in OUTPUT_FILES)
        task["exit_code"], task["stdout"], task["stderr"] = code, stdout, stderr
        job.failed = code != 0

    def ended(self, job: Job) -> None:
        """Nothing to note."""

    async def stop(self) -> None:
        """Waits until nothing is left to do for jobs that have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, job: Job, program: Program) -> None:
        try:
            await self.collect(job, await program.exited)
        except Exception as error:  # its output cannot be read
            job.error = error
        self._deliver(job)
