"""A uid that a program chose belongs to one engine at a time, in its process and `work_dir`.

Two engines of one uid would take each other's updates and sandboxes for their own. Uids that
engines make up are unique, and are not claimed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading

from rhapsody.data import make_sandbox
from rhapsody.staging.locks import FileLock

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
