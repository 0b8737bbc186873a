"""Runs executable tasks: a description in, a program in its directory, its results in again.

For backends that start programs themselves, on this machine or on their workers. Where the
sandbox is, when a task may start and what it is given are the backend's to decide. Services
are in `rhapsody.sdk.services`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from rhapsody.aio import wait_through
from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk._memory import memory_error, memory_group
from rhapsody.sdk._outputs import ProgramOutput
from rhapsody.sdk.processes import Program
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["Launch", "TaskProgram", "task_environment", "working_directory"]

Launch = Callable[..., Program]
"""Starts a program: takes what `Program` takes, and gives one."""

SMALL = 1 << 20
"""Bytes of output that are read on the loop; more is read on a thread."""

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Variables that say how many threads numeric libraries use."""


def thread_count(cores: float) -> int:
    """Return the number of threads for numeric libraries on some cores; 0 without cores."""
    return max(1, int(cores)) if cores else 0


def task_environment(
    task: TaskDescription, *, cores: float = 0, gpus: Sequence[str] | None = None
) -> dict[str, str]:
    """Return the variables that a task in a process of its own gets, beside those that are there.

    Its own win over the others.

    Args:
        task: The description.
        cores: The number of threads for numeric libraries, at least one for a fraction; 0 does
            not limit them.
        gpus: The GPUs it was given, perhaps none at all; `None` where nobody hands out GPUs.
    """
    environment: dict[str, str] = {}
    if cores:
        environment = dict.fromkeys(THREAD_COUNTS, str(thread_count(cores)))
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    environment.update(task.get("environment", {}))
    return environment


def working_directory(task: TaskDescription) -> str:
    """Return where the program of a task is to run: its `cwd`, or its sandbox where it has none.

    Raises:
        FileNotFoundError: Its `cwd` is not there; the error names both.
        NotADirectoryError: Its `cwd` is a file.
    """
    cwd = task.get("cwd")
    if cwd is None:
        return task["sandbox"]
    if os.path.isdir(cwd):
        return cwd
    what = f"task {task['name']!r} is to run in {cwd!r}, its cwd, "
    if os.path.exists(cwd):
        raise NotADirectoryError(errno.ENOTDIR, f"{what}which is no directory")
    raise FileNotFoundError(errno.ENOENT, f"{what}which is not there; make it first")


class TaskProgram:
    """Starts the program of an executable task, and brings back what came of it.

    Made on a loop, and all else is for the thread of that loop. The sandbox that the
    description names must be there (`rhapsody.data.make_sandbox`).

    Args:
        task: The description. Its end writes `exit_code`, `stdout` and `stderr` into it.
        environment: Variables beside those of this process, see `task_environment`.
        launch: What starts the program; `partial(Program, guardian=guardian)` for one that is
            to end where this process is killed.
        stdout: A descriptor for its output instead of the file in the sandbox.
        port: What `{port}` in the command stands for.

    Raises:
        OSError: The program cannot be started, or its `cwd` is not there; the error names the task.
        ValueError: The description has no program, or one that no system can start.
    """

    def __init__(
        self,
        task: TaskDescription,
        environment: Mapping[str, str],
        *,
        launch: Launch = Program,
        stdout: int | None = None,
        port: int | None = None,
    ) -> None:
        memory_group()  # what was killed before does not count
        self._task = task
        self._terminated = False
        self._output: ProgramOutput | None = None
        executable = task["executable"]
        if not isinstance(executable, str) or not executable:
            raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
        arguments = task.get("arguments")
        command = ["/bin/sh", "-c", executable] if arguments is None else [executable, *arguments]
        if port is not None:
            command = [word.replace("{port}", str(port)) for word in command]
        place = working_directory(task)
        with ExitStack() as files:
            capture, output = task.get("capture", True), None
            own: tuple[int | None, int | None] = (None, None)
            if capture is not False:
                output = ProgramOutput(task["sandbox"])
                files.callback(output.close)
                own = output.descriptors
            try:
                self._program = launch(
                    command,
                    cwd=place,
                    environment=os.environ | environment,
                    stdin=task.get("stdin"),
                    stdout=own[0] if stdout is None else stdout,
                    stderr=own[1],
                )
            except OSError as error:  # its number makes it of the same type
                reason = f"task {task['name']!r} cannot start {executable!r:.200}: {error.strerror}"
                raise OSError(error.errno, reason, error.filename) from None
            except ValueError as error:
                raise ValueError(
                    f"task {task['name']!r} cannot start {executable!r:.200}: {error}"
                ) from error
            if capture is True:
                self._output = output
                files.pop_all()

    @property
    def pid(self) -> int:
        """The process id, which is the id of its process group as well."""
        return self._program.pid

    @property
    def running(self) -> bool:
        """Whether something of its process group is left."""
        return not self._program.exited.done()

    def terminate(self, grace: float) -> None:
        """Ask the program and what it started to end; by force after `grace` seconds.

        Returns at once; `wait` returns when it has ended.
        """
        self._terminated = True
        self._program.terminate(grace)

    async def wait(self, grace: float) -> int:
        """Wait for the program's end, and write its exit code and output into the description.

        Called once. A cancellation stops the whole group, waits until it is gone, and writes
        nothing into the description.

        Args:
            grace: Seconds between SIGTERM and SIGKILL where it is cancelled.

        Returns:
            The exit code, which is minus the signal's number where a signal ended it.

        Raises:
            OutOfMemoryError: The kernel killed it because memory ran out; all is written.
            OSError: Its output cannot be read.
        """
        exited = self._program.exited
        if await wait_through(exited, partial(self.terminate, grace)):
            self._close()
            raise asyncio.CancelledError
        code = await self._collect(exited.result())
        if not self._terminated and (error := memory_error(self._task, code)) is not None:
            raise error
        return code

    async def _collect(self, code: int) -> int:
        task = self._task
        output, self._output = self._output, None
        stdout = stderr = ""
        if output is not None:
            # Little is read here, more beside the loop.
            small = output.size <= SMALL
            stdout, stderr = output.take() if small else await in_thread(output.take)
        elif task.get("capture", True) == "files":
            stdout, stderr = (os.path.join(task["sandbox"], name) for name in OUTPUT_FILES)
        task["exit_code"], task["stdout"], task["stderr"] = code, stdout, stderr
        return code

    def _close(self) -> None:
        if self._output is not None:
            self._output.close()
