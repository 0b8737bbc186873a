"""Exhausted resources: disk space, descriptors, processes.

Checked for the message of a failure, and once at the end of a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
import time
from collections.abc import Iterator

LEFT = 65536
"""A file system with fewer bytes left than these is full: programs write in blocks."""

_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def full_disk(sandbox: str | None, error: BaseException | None = None) -> str | None:
    """Says that there is no space left for a task that failed, and where.

    Args:
        sandbox: The task's.
        error: What it raised. Where that is about space, the file that it names, the current
            directory and that for temporary files are looked at, too.

    Returns:
        A phrase with the mount point; `None` where there is space, or none can be looked at.
    """
    for path in _places(sandbox, error):
        with contextlib.suppress(OSError, ValueError):
            if _is_full(path):
                return f"no space left on device: {mount_of(path)} is full"
    return None


def disk_use(directory: str | os.PathLike[str], seconds: float = 0.5) -> int:
    """Return the bytes of the files in a directory that are found within some seconds."""
    size, end = 0, time.monotonic() + seconds
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                size += os.lstat(os.path.join(place, name)).st_size
        if time.monotonic() > end:
            break
    return size


def used_up(error: BaseException, *, program: bool) -> str | None:
    """Says that a task failed for want of descriptors, processes or threads, and what to do.

    Args:
        error: What it raised.
        program: Whether it is of a program that was to be started.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        what, flag, limit = "open files", "-n", resource.RLIMIT_NOFILE
    elif (program and number == errno.EAGAIN) or _no_thread(error):
        what, flag, limit = "processes and threads", "-u", resource.RLIMIT_NPROC
    else:
        return None
    most = resource.getrlimit(limit)[0]
    allowed = "more" if most == resource.RLIM_INFINITY else f"more than {most}"
    return (
        f"no more {what} are allowed: allow {allowed} with `ulimit {flag}` before the program "
        "starts, or run fewer tasks at once: resources={'cores': N} of the backend"
    )


def _no_thread(error: BaseException) -> bool:
    """Return whether an error means that no thread can be started."""
    return type(error) is RuntimeError and error.args == ("can't start new thread",)


def _places(sandbox: str | None, error: BaseException | None) -> Iterator[str]:
    if sandbox is not None:
        yield sandbox
    if error is None or not isinstance(error, OSError) or error.errno not in _ERRORS:
        return
    named = error.filename
    if type(named) is str:
        yield named if os.path.exists(named) else os.path.dirname(os.path.abspath(named))
    yield os.curdir
    yield tempfile.gettempdir()


def _is_full(path: str) -> bool:
    system = os.statvfs(path)
    if system.f_blocks == 0 or system.f_flag & os.ST_RDONLY:  # sizes mean nothing there
        return False
    no_files = system.f_files > 0 and system.f_favail == 0
    return no_files or system.f_bavail * system.f_frsize < LEFT


def mount_of(path: str) -> str:
    """Return the mount point of the file system that a path is in."""
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place
