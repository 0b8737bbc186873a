"""Copies of files, which share blocks with the original or keep its holes.

The engine copies outputs with these functions, and backends copy inputs that a task may change.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

from rhapsody.errors import DataError

_BUFFER, _CHUNK = 1 << 16, 1 << 20


def copy_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], root: str | None = None
) -> None:
    """Copy a file and its mode. Until the content is copied, only the user can read the copy.

    The copy shares the blocks of the file if the file system can do this; otherwise it has holes
    where the file has them.

    Args:
        source: The path of the file.
        target: The path of the copy, which must not exist.
        root: If `source` is a link, the directory that must contain the file to which it leads,
            even if links change during the call; `None` for any directory.

    Raises:
        DataError: The file is a link to a path outside `root`, or is not a regular file.
        OSError: The file cannot be read, or the copy cannot be created.
    """
    with contextlib.ExitStack() as files:
        is_link = False
        try:
            file = files.enter_context(open(source, "rb", 0, opener=_no_link))
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                raise
            is_link = True
            file = files.enter_context(open(source, "rb", 0, opener=_at_once))
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise DataError("it is not a regular file")
        if is_link and root is not None and not _is_in(file.fileno(), source, root):
            raise DataError("it is a link to a path outside the sandbox; write the file itself")
        copy = files.enter_context(open(target, "xb", _BUFFER, opener=_private))
        if not clone(file.fileno(), copy.fileno()):
            _copy_content(file, copy, found)
        os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode))


_FICLONE: Final[int] = getattr(fcntl, "FICLONE", 0x40049409)


def clone(source: int, target: int) -> bool:
    """Make an open, empty file share the blocks of another one, which copies no data.

    Returns:
        False if the file system cannot do this, or the files are on different ones.
    """
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy_content(file: BinaryIO, copy: BinaryIO, status: os.stat_result) -> None:
    if status.st_blocks * 512 >= status.st_size:  # it has no holes
        shutil.copyfileobj(file, copy, _CHUNK if status.st_size > _BUFFER else _BUFFER)
        return
    for start, end in _extents(file.fileno(), status.st_size):
        file.seek(start)
        copy.seek(start)
        while start < end and (data := file.read(min(_CHUNK, end - start))):
            copy.write(data)
            start += len(data)
    copy.truncate(status.st_size)


def _extents(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of a file that is not a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # do not wait for the writer of a FIFO


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_in(opened: int, path: str | os.PathLike[str], root: str) -> bool:
    """Return True if an open file is in a directory, even if links have changed meanwhile."""
    try:
        real = os.readlink(f"/proc/self/fd/{opened}")
    except OSError:  # not Linux: use the path to which the links point now
        real = os.path.realpath(path)
    return real.startswith(os.path.realpath(root) + os.sep)
