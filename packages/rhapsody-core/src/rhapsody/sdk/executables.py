"""Programs of executable tasks: runs them, and writes the results into the descriptions.

This module is for backends that start programs themselves, on this machine or on their workers. The
backend decides where the sandbox is, when a task starts and which resources it receives. Services
are in `rhapsody.sdk.services`.

Output is read through the descriptors with which the program was started, because the paths belong
to the program: it may remove its output files or replace them with links or FIFOs.

The kernel counts the processes that it kills for lack of memory, in a file of their control group.
Programs and worker processes share a control group with the process that starts them. The count is
read before the first program starts and whenever SIGKILL has ended a program. If the count has
increased since the last reading, this program is reported as out of memory.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from rhapsody.aio import wait_through
from rhapsody.data import OUTPUT_FILES, read_output, stderr_tail
from rhapsody.errors import OutOfMemoryError
from rhapsody.sdk.processes import Program
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription

__all__ = ["Launch", "TaskProgram", "task_environment", "working_directory"]

MAX_LOOP_READ = 1 << 16
"""Maximum number of bytes of output to read on the loop; larger output is read on a thread."""


class ProgramOutput:
    """Files for the standard output and standard error of one program.

    Args:
        directory: The sandbox in which the files are created.

    Raises:
        OSError: The files cannot be created.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._descriptors: list[int] = []
        for name in OUTPUT_FILES:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            self._descriptors.append(os.open(os.path.join(directory, name), flags, 0o600))

    def __del__(self) -> None:
        self.close()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors to which the program writes its standard output and standard error."""
        stdout, stderr = self._descriptors
        return stdout, stderr

    def sizes(self) -> list[int]:
        """Return the numbers of bytes in the two files."""
        return [os.fstat(descriptor).st_size for descriptor in self._descriptors]

    def take(self, sizes: Sequence[int]) -> list[str]:
        """Return standard output and standard error as text, and close the files.

        Of output that is too long, the text contains only the end; see `read_output`.

        Args:
            sizes: The numbers of bytes to return.
        """
        try:
            paths = [os.path.join(self._directory, name) for name in OUTPUT_FILES]
            return list(map(read_output, self._descriptors, paths, sizes))
        finally:
            self.close()

    def close(self) -> None:
        """Close the files without removing them."""
        while self._descriptors:
            os.close(self._descriptors.pop())


SIGKILL_EXIT_CODES = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes after SIGKILL: of the program that it killed, and of a shell that ran the program."""

UNLIMITED = 1 << 60
"""Smallest limit in bytes that is regarded as "no limit": cgroup version 1 uses large numbers."""


class CgroupFiles(NamedTuple):
    """Names of files in the directory of a control group.

    Attributes:
        kills: The file that contains the line `oom_kill COUNT`.
        limit: The file with the number of bytes that the group may use.
        peak: The file with the maximum number of bytes that the group has used.
    """

    kills: str
    limit: str
    peak: str


V1 = CgroupFiles("memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
V2 = CgroupFiles("memory.events", "memory.max", "memory.peak")


class MemoryGroup:
    """Control group of this process, with the count of its processes killed for lack of memory.

    Args:
        own: The file that names the groups of this process.
        mount: The directory where control groups are mounted.
    """

    def __init__(
        self, own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
    ) -> None:
        lines = [line.split(":", 2) for line in _read_text(own).splitlines()]
        paths = {kind: path for _, kinds, path in lines for kind in kinds.split(",")}
        first = "memory" in paths
        self._files = V1 if first else V2
        self._top = mount / "memory" if first else mount
        inside = self._top / paths.get("memory" if first else "", "").lstrip("/")
        # In a container, the group itself may be mounted at the top.
        self._directory = inside if (inside / self._files.kills).exists() else self._top
        self._seen = self._kills()

    def has_killed(self) -> bool:
        """Return True if the kernel has killed a process of the group since the last call.

        The first call considers the time since this object was created.
        """
        former, self._seen = self._seen, self._kills()
        return self._seen > former

    def limits(self) -> dict[Path, int]:
        """Return the limits, in bytes, of the group and the groups that contain it.

        Groups without a limit are omitted.
        """
        limits = {}
        for group in (self._directory, *self._directory.parents):
            limit = _read_text(group / self._files.limit).strip()
            if limit.isdecimal() and int(limit) < UNLIMITED:
                limits[group] = int(limit)
            if group == self._top:
                break
        return limits

    def usage(self) -> str:
        """Describe how much memory the group may use and has used."""
        for group, limit in self.limits().items():
            peak = _read_text(group / self._files.peak).strip()
            used = f"; up to {_size(peak)} were in use" if peak.isdecimal() else ""
            return f"the limit is {_size(limit)} for all processes of {group}{used}"
        return "no limit is known, so the machine itself may have run out of memory"

    def _kills(self) -> int:
        for line in _read_text(self._directory / self._files.kills).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0


@cache
def memory_group() -> MemoryGroup:
    """Return the memory control group of this process, always as the same object.

    Its `has_killed` does not report processes that were killed before the first call.
    """
    return MemoryGroup()


def memory_error(task: TaskDescription, code: int | None) -> OutOfMemoryError | None:
    """Return the error if the kernel killed a task's process for lack of memory, else `None`.

    Args:
        task: The task's description, with its output.
        code: The exit code of the process. The caller must have checked that the backend did not
            kill the process itself.
    """
    if code not in SIGKILL_EXIT_CODES or not memory_group().has_killed():
        return None
    tail = stderr_tail(task)
    message = (
        f"task {task['name']!r} was killed by the kernel because memory ran out: "
        f"{memory_group().usage()}. Use a machine with more memory, or run fewer tasks at once by "
        "declaring the memory of each task, resources={'memory': ...}"
    )
    message += f"\n{tail.rstrip()}" if tail.strip() else ""
    return OutOfMemoryError(message, exit_code=code, stderr=tail)


def _read_text(path: Path) -> str:
    with suppress(OSError):  # missing on older kernels and other systems
        return path.read_text()
    return ""


def _size(count: int | str) -> str:
    return f"{int(count) / 2**20:.0f} MiB"


Launch = Callable[..., Program]
"""Callable that starts a program: it takes the arguments of `Program`, and returns a `Program`."""

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables that set the number of threads of numeric libraries."""


def thread_count(cores: float) -> int:
    """Return the number of threads that numeric libraries may start; 0 if `cores` is 0."""
    return max(1, int(cores)) if cores else 0


def task_environment(
    task: TaskDescription, *, cores: float = 0, gpus: Sequence[str] | None = None
) -> dict[str, str]:
    """Return the environment variables to add for a task that runs in a separate process.

    For an executable, they include its trace context: `TRACEPARENT` for the header `traceparent`.
    Variables in the task's description take precedence.

    Args:
        task: The task's description.
        cores: Number of cores that numeric libraries may use. They start one thread per whole
            core, but at least one. 0 means no limit.
        gpus: The GPUs assigned to the task, possibly empty; `None` if the backend does not assign
            GPUs.
    """
    environment: dict[str, str] = {}
    if cores:
        environment = dict.fromkeys(THREAD_COUNTS, str(thread_count(cores)))
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if task.get("function") is None:
        for name, value in task.get("trace_context", {}).items():
            environment[name.upper().replace("-", "_")] = value
    environment.update(task.get("environment", {}))
    return environment


def working_directory(task: TaskDescription) -> str:
    """Return the working directory of a task's program: the task's `cwd` or, if unset, its sandbox.

    A task with a `cwd` has a sandbox as well, for its output and declared files. If `cwd` were the
    sandbox, two tasks would write to the same files, cleaning up would remove the user's files, and
    an older file could be mistaken for an output.

    Raises:
        FileNotFoundError: The task's `cwd` does not exist.
        NotADirectoryError: The task's `cwd` is not a directory.
    """
    cwd = task.get("cwd")
    if cwd is None:
        return task["sandbox"]
    if os.path.isdir(cwd):
        return cwd
    what = f"task {task['name']!r}: its cwd {cwd!r}"
    if os.path.exists(cwd):
        raise NotADirectoryError(errno.ENOTDIR, f"{what} is not a directory")
    raise FileNotFoundError(errno.ENOENT, f"{what} does not exist; create it first")


MAX_FIRST_LINE = 256
"""Number of bytes of a script that the system reads to find its interpreter."""


def interpreter_fault(path: str) -> str | None:
    """Return why a program that exists cannot be started; `None` if no reason is known.

    Args:
        path: The path of the program.
    """
    try:
        with open(path, "rb") as file:
            start, newline, _ = file.read(MAX_FIRST_LINE).partition(b"\n")
    except OSError:
        return None
    if not start.startswith(b"#!"):
        return None
    if newline and start.endswith(b"\r"):
        return (
            f"the first line of {path!r} ends with a carriage return, which becomes part of the "
            "interpreter's name; save the file with Unix line endings"
        )
    name, *words = os.fsdecode(start[2:]).split() or [""]
    if not os.path.exists(name):
        return f"the interpreter {name!r} of {path!r} does not exist"
    if os.path.basename(name) == "env" and len(words) == 1 and shutil.which(words[0]) is None:
        return f"the interpreter {words[0]!r} of {path!r} is not on PATH"
    return None


def start_fault(error: OSError, command: Sequence[str], directory: str, search: str | None) -> str:
    """Return the end of the message of an error that the start of a program has raised.

    Args:
        error: The error.
        command: The program and its arguments.
        directory: The program's working directory.
        search: The directories in which the program is looked for, as in `PATH`.
    """
    if error.errno == errno.E2BIG:
        size = sum(len(os.fsencode(word)) + 1 for word in command)
        return (
            f" (its {len(command) - 1} arguments have {size} bytes; Linux accepts 128 KiB for each "
            "and about 2 MB for all): write the names to a file, or pass them on standard input, "
            "as xargs does"
        )
    name = command[0]
    path = os.path.join(directory, name) if "/" in name else shutil.which(name, path=search)
    if path is None or not os.path.isfile(path):
        return ""
    if error.errno == errno.ENOENT:
        fault = interpreter_fault(path)
        return f": {fault or f'{path!r} exists, but not the loader that it needs'}"
    if error.errno == errno.ENOEXEC:
        return f": {path!r} is not a program; a script needs a first line such as #!/bin/sh"
    return ""


class TaskProgram:
    """Program of an executable task. Creating the object starts the program.

    The object must be created on a running loop and used on that loop's thread; `launch` can permit
    its creation on another thread. The sandbox in the task's description must exist
    (`rhapsody.data.make_sandbox`).

    Args:
        task: The task's description. When the program has ended, `wait` writes `exit_code`,
            `stdout`, `stderr` and `usage` into the description.
        environment: Variables in addition to those of this process; see `task_environment`.
        launch: Callable that starts the program. Pass `partial(Program, reaper=reaper)` if the
            program must end when this process is killed. Add `loop=loop` if the object is created
            on a thread other than the loop's, and call `watch` on the loop.
        stdout: A descriptor for the program's standard output, instead of the file in the sandbox.
        port: The value of `{port}` in the command.
        inherited: The variables of this process; default: `os.environ`. Pass a copy if the object
            is created on another thread, because code on the loop may change the variables
            meanwhile.

    Attributes:
        seconds_for_files: Number of seconds that it took to open the files for the output.

    Raises:
        OSError: The program cannot be started, or its `cwd` does not exist; the message names the
            task.
        ValueError: The description has no program, or an invalid one.
    """

    def __init__(
        self,
        task: TaskDescription,
        environment: Mapping[str, str],
        *,
        launch: Launch = Program,
        stdout: int | None = None,
        port: int | None = None,
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        if inherited is None:  # as a default, its content would be printed with the signature
            inherited = os.environ
        memory_group()  # so that earlier kills are not counted
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
        begin = perf_counter()
        place = working_directory(task)
        with ExitStack() as files:
            capture, output = task.get("capture", True), None
            own: tuple[int | None, int | None] = (None, None)
            if capture is not False:
                output = ProgramOutput(task["sandbox"])
                files.callback(output.close)
                own = output.descriptors
            self.seconds_for_files: float = perf_counter() - begin
            try:
                self._program = launch(
                    command,
                    cwd=place,
                    environment={**inherited, **environment},
                    stdin=task.get("stdin"),
                    stdout=own[0] if stdout is None else stdout,
                    stderr=own[1],
                )
            except OSError as error:  # the same `errno` makes it the same subclass
                reason = f"task {task['name']!r} cannot start {executable!r:.200}: {error.strerror}"
                path = environment.get("PATH", inherited.get("PATH"))
                raise OSError(
                    error.errno,
                    reason + start_fault(error, command, place, path),
                    error.filename,
                ) from None
            except ValueError as error:
                raise ValueError(
                    f"task {task['name']!r} cannot start {executable!r:.200}: {error}"
                ) from error
            if capture is True:
                self._output = output
                files.pop_all()

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._program.pid

    @property
    def running(self) -> bool:
        """True while the program's process group exists."""
        return not self._program.exited.done()

    def watch(self) -> None:
        """Notice the end of the program. Called on the loop before other methods; see `launch`."""
        self._program.watch()

    def terminate(self, grace: float) -> None:
        """Terminate the program and its children, and kill them after `grace` seconds.

        Returns immediately; `wait` returns when they have ended.
        """
        self._terminated = True
        self._program.terminate(grace)

    async def wait(self, grace: float) -> int:
        """Wait until the program has ended, and write its results into the task's description.

        May be called only once. If this call is canceled, it terminates the whole process group,
        waits until the group has ended, and writes only `usage` into the description.

        Args:
            grace: Seconds between SIGTERM and SIGKILL after a cancellation.

        Returns:
            The exit code; if a signal ended the program, minus the signal's number.

        Raises:
            OutOfMemoryError: The kernel killed the program because memory ran out. The exit code
                and output have been written into the description.
            OSError: The program's output cannot be read.
            asyncio.CancelledError: This call of `wait` was canceled.
        """
        exited = self._program.exited
        cancelled = await wait_through(exited, partial(self.terminate, grace))
        if self._program.usage:
            self._task["usage"] = self._program.usage
        if cancelled:
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
            take = partial(output.take, sizes := output.sizes())
            stdout, stderr = take() if sum(sizes) <= MAX_LOOP_READ else await in_thread(take)
        elif task.get("capture", True) == "files":
            stdout, stderr = (os.path.join(task["sandbox"], name) for name in OUTPUT_FILES)
        task["exit_code"], task["stdout"], task["stderr"] = code, stdout, stderr
        return code

    def _close(self) -> None:
        if self._output is not None:
            self._output.close()
