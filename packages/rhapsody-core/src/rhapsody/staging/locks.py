"""File locks, and the uids of engines, which they keep to one engine at a time.

A lock ends with the process that holds it, however that ends. A process that ends well removes the
file as well, so that a file that is left and not locked was left by a process that was killed.
Two engines with one uid would mix up their updates and sandboxes. Uids that engines make up are
unique, and are not claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import threading
from typing import Literal

from rhapsody.data import make_sandbox

log: logging.Logger = logging.getLogger(__name__)

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


_claims: dict[str, Claim] = {}
_lock = threading.Lock()


class Claim:
    """Keeps a uid to one engine, from here on until `release`.

    Other processes see it by a lock on a file in `work_dir`, which ends with this process however
    that ends. Made on the engine's loop: one that is closed has no engine any more.

    Args:
        uid: The engine's uid.
        work_dir: Where its sandboxes are; made where it is not there.

    Raises:
        ValueError: Another engine has the uid.
        OSError: The file cannot be made.
    """

    def __init__(self, uid: str, work_dir: str) -> None:
        self._uid = uid
        self._loop = asyncio.get_running_loop()
        with _lock:
            other = _claims.get(uid)
            if other is not None and not other._loop.is_closed():
                raise ValueError(
                    f"uid {uid!r} is in use by another engine of this process: shut that one down "
                    "first, or give each engine a uid of its own"
                )
            if other is not None:
                other._file.release()
            if not os.path.isdir(work_dir):  # which others may share
                make_sandbox(os.path.realpath(work_dir))  # `work_dir` itself may be a link
            self._file: FileLock = self._locked(work_dir)
            _claims[uid] = self

    def _locked(self, work_dir: str) -> FileLock:
        try:
            file = FileLock(os.path.join(work_dir, f".{self._uid}.lock"))
        except BlockingIOError:
            raise ValueError(
                f"uid {self._uid!r} is in use by another program, which works in "
                f"{work_dir}: give each engine a uid of its own, or another work_dir"
            ) from None
        if file.problem is not None:
            log.warning(
                "%s cannot be locked (%s): two programs that use uid %r there at the same time "
                "would share their sandboxes",
                file.path, file.problem, self._uid,
            )  # fmt: skip
        return file

    def release(self) -> None:
        """Lets others have the uid; twice is harmless."""
        with _lock:
            if _claims.get(self._uid) is self:
                del _claims[self._uid]
                self._file.release()
