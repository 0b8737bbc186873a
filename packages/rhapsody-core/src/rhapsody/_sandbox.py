"""A task's sandbox on disk: making one, linking files into it, and reading what it printed.

For backends, which import it all from `rhapsody.data`. How long a sandbox lives is the
engine's business.
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
"""Names that begin so are the backends' own in every sandbox."""

OUTPUT_FILES = (f"{RESERVED}stdout", f"{RESERVED}stderr")
"""Where a sandbox holds what its task printed: hidden, and never linked to dependents."""

STDERR_TAIL = 2000
"""Characters of standard error, and of standard output, that the error of a task holds."""


def plain_name(name: str) -> str:
    """The name itself, where it names something directly in a sandbox.

    Raises:
        DataError: It is empty, has a directory part, or is `.` or `..`.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name or os.sep in name:
        raise DataError(f"{name!r} is not a plain file name: it could lead out of a sandbox")
    return name


def make_sandbox(sandbox: str | os.PathLike[str]) -> str:
    """Makes a sandbox directory, private to the user, where it is not there yet.

    Raises:
        DataError: Something else has its name, such as a link to elsewhere, or a directory of
            another user's that others may write to.
        OSError: It cannot be made.
    """
    path = os.path.abspath(sandbox)
    for tries_left in (2, 1, 0):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            _require_sandbox(path)
        except FileNotFoundError:
            # Again and again, as another engine may remove a parent that it emptied.
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
            f"sandbox {path!r} is another user's, who can change what is in it; name another "
            "work_dir, where nobody else may write"
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

    Empty for a file that is gone or on another machine, and for what is no file: the task
    that wrote it may have put a link or a FIFO there.
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
    """Makes a file or directory available in a sandbox, which is made where needed.

    For backends' `link_explicit_data_deps`. It is a symbolic link, or a copy where
    the file system has no links. Doing the same twice is harmless.

    Args:
        sandbox: The sandbox of the task that needs the file.
        name: The name it gets there, without directories.
        source: Where it is.

    Raises:
        DataError: The name could leave the sandbox, is taken by something else,
            or there is nothing at `source`.
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
    """Makes all that is in one sandbox available in another, which is made where needed.

    For backends' `link_implicit_data_deps`. Names that are taken are left alone, and so are
    those that are the backends' own, such as the files the source's output went to. A
    source that is empty or was never made has nothing to link.

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
    """Links or copies; `False` where the target's name is taken."""
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
    # Copied aside and renamed, so that nobody takes half a file for the whole.
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
    """Whether linking would change nothing: the same file, or the copy of it."""
    with contextlib.suppress(OSError):
        if os.path.samefile(origin, target):
            return True
        return not os.path.islink(target) and filecmp.cmp(origin, target)
    return False
