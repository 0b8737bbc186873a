"""Shells that run the commands of executable tasks that are strings.

Just before the engine submits a task, `shell_words` turns its command into the words of a program
to run, as `rhapsody.environments` does for containers and other environments. Backends therefore
need no code for shells.

The default shell stops at the first failed command, also in the middle of a pipeline, and at
variables that are not set. These options are set by the first words of the command, not by options
of the shell: bash first reads the file in `BASH_ENV`, which module systems set and which may use
variables that are not set.

The system limits the length of each argument of a program. A longer command is written to a file in
the sandbox by the machine that runs the task. The command reaches that machine as the standard
input of the task, which every backend supports.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from functools import cache

from rhapsody.data import RESERVED
from rhapsody.errors import CapabilityError
from rhapsody.task import TaskDescription

log: logging.Logger = logging.getLogger("rhapsody.engine")

Shell = str | tuple[str, ...]
"""Checked value of the setting `shell`: `"bash"`, `"sh"`, or words that precede the command."""

DEFAULT: Shell = "bash"
SHELLS = ("bash", "sh")

MAX_ARGUMENT = 100_000
"""Number of bytes above which a command is passed in a file. Linux accepts 131071 bytes."""

COMMAND_FILE = f"{RESERVED}command"

_ACCEPTED = '"bash", "sh", or words that end with -c, such as ["zsh", "-e", "-c"]'

_SH = "set -eu; "
_BASH = "set -euo pipefail; "

# For a machine that may have no bash. Some other shells know the option pipefail as well.
_EITHER = '{ [ "${BASH_VERSION:-}" ] || (set -o pipefail) 2>/dev/null; } && set -o pipefail'
_NO_PIPEFAIL = (
    'echo "rhapsody: no bash on $(uname -n): '
    'a failure in the middle of a pipeline is not noticed" >&2'
)
_FIND = 'command -v bash >/dev/null && exec bash "$@"; exec sh "$@"'

_STORE = 'file=$1; shift; (umask 077 && cat >"$file") && exec "$@" "$file" </dev/null'

# Compiled for the first command that contains a pipe.
_EARLY = (
    r"\|(?<!\|\|)(?!\|)&?[\s\\]*(?:\w+=\S*\s+)*(?:[\w./-]*/)?"
    r"(?:(?:[efz]|bz|xz|zst)?grep\b[^|;&\n()]*?\s(?:(?P<quiet>-[a-zA-Z]*q|--quiet|--silent)"
    r"|-[a-zA-Z]*m|--max-count)|head\b(?!-)(?=[\s;)]|$))"
)
"""Pipe into a program that may end before it has read all of its input."""
_BEFORE = r"(?:\b(?:if|elif|while|until)|(?<!\S)!)\s[^;&\n(]*\Z"
_AFTER = r"(?:[^|;&\n)]|>&)*(?:\|(?!\|)(?:[^|;&\n)]|>&)*)*[)\"]*\s*(?:\|\||&&)"
_CHECKED, _WINDOW = 10_000, 500
"""Numbers of characters of a command, and on each side of a pipe, that are searched."""


def shell_setting(value: object) -> Shell:
    """Check the setting `shell`.

    Returns:
        The name of the shell, or the words of its command line as a tuple.

    Raises:
        TypeError: The value is neither a string nor a list of strings.
        ValueError: The shell is unknown, or the words do not end with an option such as `-c`.
    """
    if isinstance(value, str):
        if value not in SHELLS:
            raise ValueError(f"shell must be {_ACCEPTED}, got {value!r}")
        return value
    words = tuple(value) if isinstance(value, Sequence) else ()
    if not words or not all(isinstance(word, str) for word in words):
        raise TypeError(f"shell must be {_ACCEPTED}, got {value!r}")
    last = words[-1]
    if len(words) == 1 or not last.startswith("-") or not last.endswith("c") or "\0" in words:
        raise ValueError(f"shell must be {_ACCEPTED}, got {value!r}")
    return words


def stops_reading(command: str) -> bool:
    """Return True if a condition in a command may be false because a program stops reading.

    The program that writes to `grep -q` or `head` is ended by SIGPIPE if it has more to write than
    the pipe holds. With `pipefail` the pipeline fails then, which the shell ignores in a condition.
    """
    for pipe in re.compile(_EARLY).finditer(command, 0, _CHECKED):
        if (
            pipe["quiet"]
            or re.compile(_AFTER).match(command, pipe.end(), pipe.end() + _WINDOW)
            or re.compile(_BEFORE).search(command, max(0, pipe.start() - _WINDOW), pipe.start())
        ):
            return True
    return False


def shell_words(task: TaskDescription, *, here: bool) -> list[str]:
    """Return the program and arguments that run a task's command in its shell.

    Args:
        task: The task's description, with a string as command. If the command is long, it becomes
            the standard input of the task.
        here: True if the command runs on this machine, outside of a container.

    Raises:
        CapabilityError: The command is too long for the task's other settings.
    """
    shell = shell_setting(task.get("shell", DEFAULT))  # a hook may have changed it
    text = str(task["executable"])
    option = "-c"
    if isinstance(shell, tuple):
        words, option, before = list(shell[:-1]), shell[-1], ""
    elif shell == "sh":
        words, before = ["/bin/sh"], _SH
    else:
        words, before = _bash(text) if here else _any_host(text)
    text = before + text
    size = len(os.fsencode(text))
    if size <= MAX_ARGUMENT:
        return [*words, option, text]
    if len(option) > len("-c"):  # such as -ec
        words.append(option.removesuffix("c"))
    return _from_file(task, words, text, size)


@cache
def _local_bash() -> str | None:
    """Return the path of bash on this machine; log a warning if there is none."""
    path = shutil.which("bash")
    if path is None:
        log.warning(
            "no bash on this machine: commands run with sh -eu, and a failure in the middle of a "
            "pipeline may not be noticed"
        )
    return path


def _bash(text: str) -> tuple[list[str], str]:
    """Return the words of bash on this machine, and the options to set."""
    path = _local_bash()
    return _any_host(text) if path is None else ([path], _BASH)


def _any_host(text: str) -> tuple[list[str], str]:
    """Return the words that start bash or else sh on any machine, and the options to set."""
    otherwise = f" || {_NO_PIPEFAIL}" if "|" in text else ""
    return ["/bin/sh", "-c", _FIND, "rhapsody"], f"{_SH}{_EITHER}{otherwise}; "


def _from_file(task: TaskDescription, words: Sequence[str], text: str, size: int) -> list[str]:
    resources = task.get("resources")
    fault = None
    if task.get("stdin"):
        fault = "has a stdin: pass that text in a file"
    elif resources is not None and resources.ranks > 1:
        fault = "has several ranks: write the command to a file and run that"
    elif "{port}" in text and task.get("ready") == "tcp":
        fault = "contains {port}: use the variable $PORT"
    if fault is not None:
        raise CapabilityError(
            f"task {task['name']!r}: a command of {size} bytes is too long for a task that {fault}"
        )
    task["stdin"] = text
    path = os.path.join(task["sandbox"], COMMAND_FILE)
    return ["/bin/sh", "-c", _STORE, "rhapsody", path, *words]
