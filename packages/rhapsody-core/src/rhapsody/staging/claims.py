"""A uid that a program chose belongs to one engine at a time, in its process and `work_dir`.

Two engines of one uid would take each other's updates and sandboxes for their own. Uids that
engines make up are unique, and are not claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading

from rhapsody.data import make_sandbox

log: logging.Logger = logging.getLogger(__name__)

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
        self._path = os.path.join(work_dir, f".{uid}.lock")
        self._file = -1
        with _lock:
            other = _claims.get(uid)
            if other is not None and not other._loop.is_closed():
                raise ValueError(
                    f"uid {uid!r} is in use by another engine of this process: shut that one down "
                    "first, or give each engine a uid of its own"
                )
            if other is not None:
                other._unlock()
            make_sandbox(os.path.realpath(work_dir))  # `work_dir` itself may be a link
            self._lock_file(work_dir)
            _claims[uid] = self

    def _lock_file(self, work_dir: str) -> None:
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                raise ValueError(
                    f"uid {self._uid!r} is in use by another program, which works in "
                    f"{work_dir}: give each engine a uid of its own, or another work_dir"
                ) from None
            except OSError as error:  # a file system without locks
                log.warning(
                    "%s cannot be locked (%s): two programs that use uid %r there at the same time "
                    "would share their sandboxes",
                    self._path, error, self._uid,
                )  # fmt: skip
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                    return
            os.close(self._file)  # it was removed by who had it, meanwhile

    def release(self) -> None:
        """Lets others have the uid; twice is harmless."""
        with _lock:
            if _claims.get(self._uid) is self:
                del _claims[self._uid]
                self._unlock()

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):  # as somebody removed it
            os.unlink(self._path)
        os.close(self._file)
