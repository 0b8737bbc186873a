"""Locks on files, which end with the process that has them, however that ends.

Whoever ends well removes the file, too: one that is left and not locked was left by a process
that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Literal

State = Literal["free", "held", "left", "unknown"]
"""Of a lock: nobody has it; somebody has; a killed process had; another host may have."""

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class FileLock:
    """Locks a file, from here on until `release`.

    Args:
        path: The file, made where it is not there.

    Attributes:
        problem: Why it is not locked: the file system has no locks.

    Raises:
        BlockingIOError: Somebody else has it.
        OSError: It cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self.problem: OSError | None = None
        self._file = self._locked()
        with contextlib.suppress(OSError):  # a disk that is full
            os.truncate(self._file, 0)
            os.pwrite(self._file, socket.gethostname().encode(), 0)

    def _locked(self) -> int:
        while True:
            file = os.open(self.path, _FLAGS | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise
            except OSError as error:
                self.problem = error
                return file
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    return file
            os.close(file)  # it was removed by who had it, meanwhile

    def release(self) -> None:
        """Removes the file, and lets others lock one of that name."""
        with contextlib.suppress(OSError):  # as somebody removed it
            os.unlink(self.path)
        self.let_go()

    def let_go(self) -> None:
        """Closes this process's own copy of the lock: for forked children, which have one, too."""
        with contextlib.suppress(OSError):
            os.close(self._file)


def state_of(path: str | os.PathLike[str]) -> State:
    """Who has the lock on a file; nothing is made or changed."""
    try:
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        return "free"
    except OSError:
        return "unknown"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host = os.pread(file, 256, 0)
    except BlockingIOError:
        return "held"
    except OSError:  # the file system has no locks
        return "unknown"
    finally:
        os.close(file)
    # Some network file systems keep each host's locks to itself.
    return "left" if host in (b"", socket.gethostname().encode()) else "unknown"
