"""Sandbox of a task on disk: creating it, linking files into it, and reading the task's output.

Backends import these names from `rhapsody.data`. The engine removes sandboxes.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from typing import Any

from rhapsody.errors import DataError

RESERVED = ".rhapsody."
"""Prefix of the names that backends use in every sandbox."""

OUTPUT_FILES = (f"{RESERVED}stdout", f"{RESERVED}stderr")
"""Files of a task's output in its sandbox: hidden, and never linked to dependents."""

STDERR_TAIL = 2000
"""Number of last characters of each output stream in the error of a task."""


def plain_name(name: str) -> str:
    """Return the name if it is one of an entry directly in a sandbox.

    Raises:
        DataError: It is empty, has a directory part, or is `.` or `..`.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name or os.sep in name:
        raise DataError(f"{name!r} is not a plain file name: it could lead out of a sandbox")
    return name


def make_sandbox(sandbox: str | os.PathLike[str]) -> str:
    """Create a sandbox directory, private to the user, unless it exists.

    Raises:
        DataError: The path is not a directory, for example a link, or another user's directory that
            others may write to.
        OSError: It cannot be created.
    """
    path = os.path.abspath(sandbox)
    for tries_left in (2, 1, 0):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            _require_sandbox(path)
        except FileNotFoundError:
            # Another engine may remove an empty parent meanwhile.
            if not tries_left:
                raise
            os.makedirs(os.path.dirname(path), exist_ok=True)
            continue
        break
    return path


def _require_sandbox(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise DataError(f"sandbox {path!r} is not a directory")
    if found.st_uid != os.geteuid() and stat.S_IMODE(found.st_mode) & 0o022:
        raise DataError(
            f"sandbox {path!r} belongs to another user, who can change its files; choose another "
            "work_dir that only you can write to"
        )


def moved(text: str, former: str, sandbox: str) -> str:
    """Return a text, such as a command, with one sandbox's path in it replaced by another's."""
    # The uids that sandboxes are named for end in numbers.
    return re.sub(re.escape(former) + r"(?![0-9~])", lambda _: sandbox, text)


def stderr_tail(task: Mapping[str, Any]) -> str:
    """Return the end of what a task has written to standard error, which may be in a file."""
    return _tail(task, "stderr")


def stdout_tail(task: Mapping[str, Any]) -> str:
    """Return the end of what a task has written to standard output, which may be in a file."""
    return _tail(task, "stdout")


def _tail(task: Mapping[str, Any], stream: str) -> str:
    text = task.get(stream)
    if not isinstance(text, str):
        return ""
    if task.get("capture") == "files":
        text = end_of_file(text, STDERR_TAIL)
    return text[-STDERR_TAIL:]


def end_of_file(path: str, count: int) -> str:
    """Return the last `count` bytes of an output file as text, without waiting for anything.

    The text is empty if the file does not exist here or is not a regular file: a task may have
    replaced it by a link or a FIFO.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read().decode(errors="replace")


def link_into(sandbox: str | os.PathLike[str], name: str, source: str | os.PathLike[str]) -> None:
    """Link a file or directory into a sandbox, which is created if necessary.

    For `link_explicit_data_deps` of backends. It is a symbolic link, or a copy on a file system
    without links. A second identical call does nothing.

    Args:
        sandbox: The sandbox of the task that needs the file.
        name: The name in the sandbox, without directories.
        source: The path of the file.

    Raises:
        DataError: The name could leave the sandbox or is taken, or `source` does not exist.
    """
    origin = os.path.abspath(source)
    if not os.path.exists(origin):
        raise DataError(f"cannot link {name!r} into {os.fspath(sandbox)!r}: no file {origin!r}")
    target = os.path.join(make_sandbox(sandbox), plain_name(name))
    if not _link(origin, target) and not _same(origin, target):
        raise DataError(f"cannot link {origin!r} to {target!r}: there is another file")


def link_all(
    source: str | os.PathLike[str],
    sandbox: str | os.PathLike[str],
) -> list[str]:
    """Link all entries of one sandbox into another, which is created if necessary.

    For `link_implicit_data_deps` of backends. Names that are taken are skipped, and so are the
    backends' own files, such as those of the source's output. The source need not exist.

    Args:
        source: The sandbox to link from.
        sandbox: The sandbox to link into.

    Returns:
        The names that were linked.
    """
    root = os.path.abspath(source)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    entries = [entry for entry in entries if not entry.name.startswith(RESERVED)]
    if not entries:
        return []
    target_root = make_sandbox(sandbox)
    linked = []
    for entry in entries:
        origin = entry.path
        if entry.is_symlink():
            # Straight to the file, or a long chain of tasks would exceed the
            # number of links that the system follows.
            target = os.readlink(origin)
            origin = target if os.path.isabs(target) else origin
        if _link(origin, os.path.join(target_root, entry.name)):
            linked.append(entry.name)
    return linked


def _link(origin: str, target: str) -> bool:
    """Link or copy; return `False` if the target exists."""
    try:
        os.symlink(origin, target)
    except FileExistsError:
        return False
    except OSError:
        return _copy(origin, target)
    return True


def _copy(origin: str, target: str) -> bool:
    if os.path.lexists(target):
        return False
    # Copied aside and renamed, so that an incomplete file is never visible.
    aside = tempfile.mkdtemp(prefix=".linking-", dir=os.path.dirname(target))
    try:
        part = os.path.join(aside, "part")
        if os.path.isdir(origin):
            shutil.copytree(origin, part, symlinks=True)
        else:
            shutil.copy2(origin, part)
        os.rename(part, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _same(origin: str, target: str) -> bool:
    """Return True if linking would change nothing: the target is the same file or a copy."""
    with contextlib.suppress(OSError):
        if os.path.samefile(origin, target):
            return True
        return not os.path.islink(target) and filecmp.cmp(origin, target)
    return False
