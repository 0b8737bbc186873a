"""Shell scripts that run an executable task as a job, or again by hand.

A job's script writes output and exit code to files, because systems may forget ended jobs.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping

from rhapsody.data import OUTPUT_FILES, RESERVED, end_of_file
from rhapsody.resources import Resources
from rhapsody.sdk.executables import task_environment, working_directory
from rhapsody.task import TaskDescription

SCRIPT, STDIN, CODE = (f"{RESERVED}{name}" for name in ("job", "stdin", "code"))
AGAIN = f"{RESERVED}again"
END = "END OF STANDARD INPUT"

_SECRET = re.compile(
    r"SECRET|CREDENTIAL|PASSWORD|PASSWD|PASSPHRASE|(^|_)PASS(_|$)|TOKENS?(_|$)|KEYS?(_|$)", re.I
)


def looks_secret(name: str) -> bool:
    """Return True if a variable's value must not be shown or kept, such as that of `API_TOKEN`."""
    return _SECRET.search(name) is not None


def write_script(task: TaskDescription) -> str:
    """Write the script that runs a task, and return its path.

    Raises:
        OSError: It cannot be written, or the task's `cwd` does not exist.
    """
    secret, variables = _parted(task.get("environment", {}))
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
            f"rm -f {SCRIPT} {STDIN}\n"  # they are open, and are not the task's files
            f"{exports}{command} >{out} 2>{err}\n"
            f"code=$?\necho $code >{CODE}.new && mv {CODE}.new {CODE}\nexit $code\n"
        )
    os.chmod(path, 0o700)
    return path


def write_again(task: TaskDescription) -> str:
    """Write a script with which the user can run a task again in its sandbox; return its path.

    It sets the task's environment and thread counts, and only the user can read it. Variables with
    the names of secrets and the GPUs must be set by the user.

    Raises:
        OSError: It cannot be written, or the task has left a file of that name.
    """
    path = os.path.join(task["sandbox"], AGAIN)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    resources = task.get("resources") or Resources(cores=0 if task["is_service"] else 1)
    secret, variables = _parted(task_environment(task, cores=resources.cores))
    command = _command(task, variables)
    asked = "".join(f': "${{{name}:?set it first: secrets are not kept}}"\n' for name in secret)
    asked += f"export {' '.join(secret)}\n" if secret else ""
    gpus = "# Set CUDA_VISIBLE_DEVICES: it had GPUs.\n" if resources.gpus else ""
    stdin = task.get("stdin")
    given = "</dev/null" if stdin is None else f"<<'{END}'\n{stdin}\n{END}"
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(
            f"#!/bin/sh\n# The command of task {task['name']!r} ({task['uid']}), as it was run.\n"
            f"{asked}{gpus}cd {shlex.quote(task.get('cwd') or task['sandbox'])} || exit\n"
            f"{command} {given}\n"
        )
    return path


def _parted(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables that look secret, which no command line may show, and the others."""
    secret = {
        name: value
        for name, value in variables.items()
        if looks_secret(name) and name.isascii() and name.isidentifier()  # valid in a shell
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
    """Return the exit code that a job has written, `None` if there is none."""
    try:
        with open(os.path.join(task["sandbox"], CODE), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def output(task: TaskDescription) -> tuple[str, str]:
    """Return the output of a job in the form of its task's `capture`; reads files."""
    capture = task.get("capture", True)
    if not capture:
        return "", ""
    out, err = (os.path.join(task["sandbox"], name) for name in OUTPUT_FILES)
    if capture == "files":
        return out, err
    return end_of_file(out, sys.maxsize), end_of_file(err, sys.maxsize)
