"""Starts a program at the least cost, and says which variables this process has.

`subprocess.Popen` takes as long to get ready as the system takes to start a small program, most of
it to encode the variables of each anew. Here is what it calls in the end, which is not public:
where that is another one, and for all errors, there is `Popen` itself.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

fork_exec: Any = None
with suppress(ImportError):  # another Python
    from _posixsubprocess import fork_exec

_known: tuple[dict[bytes, bytes], dict[str, str]] = {}, {}


def inherited() -> dict[str, str]:
    """Return the variables of this process, not to be changed; decoded only where they are new."""
    global _known
    encoded = getattr(os.environ, "_data", None)
    if encoded is None:  # another Python, or another mapping in its place
        return dict(os.environ)
    if encoded != _known[0]:
        _known = dict(encoded), dict(os.environ)
    return _known[1]


def start(
    command: Sequence[str],
    cwd: str,
    environment: dict[str, str],
    stdin: int,
    stdout: IO[bytes] | int | None,
    stderr: IO[bytes] | int | None,
) -> tuple[int, subprocess.Popen[bytes] | None]:
    """Start a program in a session of its own; the arguments are those of `subprocess.Popen`.

    Returns:
        Its process id, which the caller reaps, and what is to be kept until then.

    Raises:
        OSError: It cannot be started.
        ValueError: It has a name or a value that no program can be given.
    """
    pid = _fork(command, cwd, environment, [_descriptor(file) for file in (stdin, stdout, stderr)])
    if pid is not None:
        return pid, None
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    return process.pid, process


def _descriptor(file: IO[bytes] | int | None) -> int:
    """A descriptor; -1 for one that is inherited, less for what only `Popen` knows."""
    if file is None:
        return -1
    return file if isinstance(file, int) else file.fileno()


def _fork(
    command: Sequence[str], cwd: str, environment: dict[str, str], files: list[int]
) -> int | None:
    """The process id; `None` where it did not start, or is nothing for this."""
    vfork = getattr(subprocess, "_USE_VFORK", True)  # users may forbid it so
    stdin, stdout, stderr = files
    reader, writer = os.pipe()  # the child writes an error to it, and closes it where there is none
    try:
        if fork_exec is None or min(files) < -1 or writer < 3:
            return None
        try:
            pid: int = fork_exec(
                list(command), _places(command[0], environment), True, (writer,), cwd,
                _encoded(environment), stdin, -1, -1, stdout, -1, stderr, reader, writer,
                True, True, -1, None, None, None, -1, None, vfork,
            )  # fmt: skip
        except (OSError, TypeError, ValueError):  # `Popen` says what is wrong, or can do it
            return None
        finally:
            os.close(writer)
            writer = -1
        if not os.read(reader, 1):
            return pid
        with suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(pid, 0)
        return None
    finally:
        os.close(reader)
        if writer != -1:
            os.close(writer)


def _places(name: str, environment: dict[str, str]) -> tuple[bytes, ...]:
    """Where a program may be, as `Popen` looks for it."""
    program = os.fsencode(name)
    if os.path.dirname(program):
        return (program,)
    return tuple(os.path.join(os.fsencode(p), program) for p in os.get_exec_path(environment))


def _encoded(environment: dict[str, str]) -> list[bytes]:
    """The variables as the system has them.

    Raises:
        ValueError: A name or value cannot be one.
        TypeError: The same.
    """
    if not environment:
        return []
    text = "\0".join([name + "=" + value for name, value in environment.items()])
    encoded = os.fsencode(text).split(b"\0")
    if len(encoded) != len(environment) or "=" in "".join(environment):
        raise ValueError("a variable has NUL in it, or = in its name")
    return encoded
