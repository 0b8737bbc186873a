"""Reading of files without releasing the program's locks on them.

If a process closes any descriptor of a file, it loses all its POSIX locks on the file (`fcntl(2)`,
"Advisory record locking"). A library such as SQLite then no longer protects its database, although
it has the file open, and other processes may change or delete what it uses. Therefore, a descriptor
of an SQLite database that the program has open as well is kept until the program ends, and used for
the next reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import closing, suppress

SQLITE = b"SQLite format 3\0"
"""First bytes of an SQLite database."""

PIECE = 1 << 18
"""Number of bytes to read at once."""

_kept: dict[tuple[int, int], int] = {}
"""Descriptors of databases that the program has open, by device and inode."""

_lock = threading.Lock()


def pieces(path: str, size: int = PIECE) -> Generator[bytes, None, None]:
    """Yield the content of a regular file in pieces of at most `size` bytes.

    Raises:
        OSError: The file cannot be read.
    """
    descriptor, start, offset = _open(path), b"", 0
    try:
        while piece := os.pread(descriptor, size, offset):
            start = start or piece
            offset += len(piece)
            yield piece
    finally:
        _close(descriptor, start)


def start_of(path: str, size: int) -> bytes:
    """Return up to `size` bytes from the start of a regular file.

    Raises:
        OSError: The file cannot be read.
    """
    with closing(pieces(path, max(size, len(SQLITE)))) as found:
        return next(found, b"")[:size]


def _open(path: str) -> int:
    if _kept:
        about = os.stat(path)
        descriptor = _kept.get((about.st_dev, about.st_ino))
        if descriptor is not None:
            return descriptor
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _close(descriptor: int, start: bytes) -> None:
    if not (_kept or start.startswith(SQLITE)):
        os.close(descriptor)
        return
    with _lock:
        if descriptor in _kept.values():
            return
        about = os.fstat(descriptor)
        if start.startswith(SQLITE) and _is_open(about, descriptor):
            _kept[about.st_dev, about.st_ino] = descriptor
        else:
            os.close(descriptor)


def _is_open(about: os.stat_result, besides: int) -> bool:
    """Return True if this process has another descriptor of a file."""
    try:
        descriptors = map(int, os.listdir("/dev/fd"))
    except OSError:  # unknown on this system
        return False
    for descriptor in descriptors:
        with suppress(OSError):  # closed meanwhile
            if descriptor != besides and os.path.samestat(os.fstat(descriptor), about):
                return True
    return False
