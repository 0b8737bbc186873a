"""Base classes for backends that link files or run executables on this machine.

A backend whose tasks see the engine's file system can list `SharedSandboxes` or `LocalPrograms`
before `ManagedBackend` in its bases. The backend itself runs functions and decides when a task may
start. Plugins import both classes from `rhapsody.backends`.

This module also writes shell scripts. `write_script` writes the script that runs an executable task
as a job; the script writes the job's output and exit code to files, because a batch system may
forget jobs that have ended. `write_again` writes a script with which the user can run a task again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from rhapsody.backends.base import CompletedExecutable, Session
from rhapsody.data import (
    OUTPUT_FILES,
    RESERVED,
    copy_into,
    link_into,
    make_sandbox,
    output_of,
)
from rhapsody.masking import looks_secret
from rhapsody.resources import Resources
from rhapsody.sdk.executables import TaskProgram, task_environment, working_directory
from rhapsody.sdk.processes import Program, Reaper
from rhapsody.sdk.threads import in_thread
from rhapsody.task import TaskDescription
from rhapsody.undeclared import copy_all

__all__ = ["LocalPrograms", "SharedSandboxes"]


class SharedSandboxes:
    """Base class that links files into sandboxes, for backends whose tasks see the engine's paths.

    With this class a backend can declare `files` and `shared_file_system`. If a task's description
    names a sandbox, the backend must create it with `rhapsody.sdk.make_sandbox`.
    """

    session: Session

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
        *,
        copy: bool = False,
    ) -> None:
        """Link a file into the sandbox of the task that needs it, or copy it if `copy` is true.

        Raises:
            ValueError: Neither `file_path` nor both `src_task` and `file_name` are given.
            DataError: The file does not exist, or the name could lead out of the sandbox.
        """
        if file_path is not None:
            source, name = file_path, file_name or os.path.basename(file_path)
        elif src_task is not None and file_name is not None:
            source, name = os.path.join(self.sandbox_of(src_task), file_name), file_name
        else:
            raise ValueError(
                "link_explicit_data_deps requires file_path, or src_task and file_name"
            )
        put = copy_into if copy else link_into
        put(self.sandbox_of(dst_task), name, source)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Copy the files of `src_task`, except captured output, into the sandbox of `dst_task`."""
        left_out = src_task.get("left_out", ())
        copy_all(self.sandbox_of(src_task), self.sandbox_of(dst_task), left_out)

    def sandbox_of(self, task: Mapping[str, Any]) -> str:
        """Return the path of a task's sandbox: the one in its description, or `own_sandbox`."""
        sandbox: str = task.get("sandbox") or self.own_sandbox(task["uid"])
        return sandbox

    def own_sandbox(self, uid: str) -> str:
        """Return the path of the sandbox of a task whose description names no sandbox."""
        return self.session.directory(uid)


class LocalPrograms(SharedSandboxes):
    """Base class that runs each executable as a local process in its own sandbox.

    The backend's `run_task` passes executables to `run_program`. With this class a backend can
    declare `executables`, `sandboxes` and `cancel_executables="running"`, in addition to the
    capabilities of `SharedSandboxes`.

    A helper process runs from the first executable until `shutdown`. It kills the executables if
    this process is killed.

    Attributes:
        grace: Number of seconds between SIGTERM and SIGKILL when an executable is stopped.
    """

    grace: float = 5.0
    __reaper: Reaper | None = None

    async def run_program(self, task: TaskDescription) -> CompletedExecutable:
        """Run an executable task to completion, in its own process group.

        Canceling this call stops all processes of the group and waits until they have ended.

        Returns:
            The result, which `run_task` can return.

        Raises:
            OSError: The executable cannot be started.
        """
        if self.__reaper is None:
            self.__reaper = Reaper()
        task["sandbox"] = make_sandbox(self.sandbox_of(task))
        launch = partial(Program, reaper=self.__reaper)
        program = TaskProgram(task, task_environment(task), launch=launch)
        task["worker"] = f"process {program.pid}"
        code = await program.wait(self.grace)
        return CompletedExecutable(code, task["stdout"], task["stderr"])

    async def shutdown(self) -> None:
        """Shut the backend down, and stop the helper process."""
        await super().shutdown()  # type: ignore[misc]  # of `ManagedBackend`
        if self.__reaper is not None:
            await in_thread(self.__reaper.stop, or_here=True)


# Shell scripts.

SCRIPT, STDIN, CODE = (f"{RESERVED}{name}" for name in ("job", "stdin", "code"))
RERUN_SCRIPT = f"{RESERVED}again"
END = "END OF STANDARD INPUT"


def write_script(task: TaskDescription) -> str:
    """Write the shell script that runs a task as a job.

    Returns:
        The path of the script.

    Raises:
        OSError: The script cannot be written, or the task's `cwd` does not exist.
    """
    secret, variables = _parted(task_environment(task))
    command, there = _command(task, variables), working_directory(task)
    if there != task["sandbox"]:
        command = f"(cd {shlex.quote(there)} && exec {command})"
    out, err = OUTPUT_FILES if task.get("capture", True) else (os.devnull, os.devnull)
    place = task["sandbox"]
    with open(os.path.join(place, STDIN), "w", encoding="utf-8", opener=_private) as file:
        file.write(task.get("stdin") or "")
    path = os.path.join(place, SCRIPT)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in secret.items())
    with open(path, "w", encoding="utf-8", opener=_private) as file:
        file.write(
            f"#!/bin/sh\ncd {shlex.quote(place)} && exec <{STDIN} || exit\n"
            f"rm -f {SCRIPT} {STDIN}\n"  # both are open; they are not the task's files
            f"{exports}{command} >{out} 2>{err}\n"
            f"code=$?\necho $code >{CODE}.new && mv {CODE}.new {CODE}\nexit $code\n"
        )
    os.chmod(path, 0o700)
    return path


def write_again(task: TaskDescription) -> str:
    """Write a script, in a task's sandbox, with which the user can run the task again.

    The script sets the variables that this program has set in its environment, the task's
    environment variables and thread counts. It does not set `CUDA_VISIBLE_DEVICES` or variables
    whose names look secret; the user must set them before running the script. Only the user can
    read the script.

    Returns:
        The path of the script.

    Raises:
        OSError: The script cannot be written, or a file with its name exists in the sandbox.
    """
    path = os.path.join(task["sandbox"], RERUN_SCRIPT)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    resources = task.get("resources") or Resources(cores=0 if task["is_service"] else 1)
    untraced = cast("TaskDescription", {**task, "trace_context": {}})
    added, removed = changed_variables()
    secret, variables = _parted(added | task_environment(untraced, cores=resources.cores))
    command = _command(task, variables)
    asked = "".join(f': "${{{name}:?set it first: secrets are not saved}}"\n' for name in secret)
    asked += f"export {' '.join(secret)}\n" if secret else ""
    asked += f"unset {' '.join(removed)}\n" if removed else ""
    gpus = "# Set CUDA_VISIBLE_DEVICES: the task had GPUs.\n" if resources.gpus else ""
    stdin = task.get("stdin")
    given = "</dev/null" if stdin is None else f"<<'{END}'\n{stdin}\n{END}"
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(
            f"#!/bin/sh\n# The command of task {task['name']!r} ({task['uid']}), as it was run.\n"
            f"{asked}{gpus}cd {shlex.quote(task.get('cwd') or task['sandbox'])} || exit\n"
            f"{command} {given}\n"
        )
    return path


_at_import = dict(os.environ)


def changed_variables() -> tuple[dict[str, str], list[str]]:
    """Return the environment variables that this program has set, and the names of removed ones.

    On Linux, they are compared with those with which the process was started, elsewhere with those
    that existed when Rhapsody was imported. (`setproctitle` overwrites the former; more variables
    are then set.)
    """
    former = _at_import
    with suppress(OSError):
        pairs = os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0")
        former = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    changed = {name: value for name, value in os.environ.items() if former.get(name) != value}
    removed = [name for name in _at_import | former if name not in os.environ and _valid(name)]
    return changed, removed


def _valid(name: str) -> bool:
    return name.isascii() and name.isidentifier()  # in a shell


def _parted(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split variables into those with secret-looking names that a shell accepts, and the others."""
    secret = {
        name: value for name, value in variables.items() if looks_secret(name) and _valid(name)
    }
    return secret, {name: value for name, value in variables.items() if name not in secret}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _command(task: TaskDescription, variables: Mapping[str, str]) -> str:
    executable, arguments = str(task["executable"]), task.get("arguments")
    command = ["/bin/sh", "-c", executable] if arguments is None else [executable, *arguments]
    if variables:
        command = ["env", *(f"{name}={value}" for name, value in variables.items()), *command]
    return shlex.join(command)


def exit_code(task: TaskDescription) -> int | None:
    """Return the exit code that a job's script has written, or `None` if there is none yet."""
    try:
        with open(os.path.join(task["sandbox"], CODE), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def output(task: TaskDescription) -> tuple[str, str]:
    """Return the standard output and standard error of a job.

    Returns:
        Two strings: the outputs; their paths if the task's `capture` is `"files"`; or empty strings
        if `capture` is False.
    """
    capture = task.get("capture", True)
    if not capture:
        return "", ""
    out, err = (os.path.join(task["sandbox"], name) for name in OUTPUT_FILES)
    if capture == "files":
        return out, err
    return output_of(out), output_of(err)
