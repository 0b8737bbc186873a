"""Large arguments, which are sent to the cluster once and shared by the tasks that use them.

An argument is identified by a digest of its content, because user code may change an object between
two calls. The cluster keeps an argument until shortly after the last task that uses it has ended.
If no worker can hold an argument, it is sent with each task instead.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any, NamedTuple

from rhapsody.sdk import in_thread
from rhapsody_dask.worker.messages import DONE, Reply

IDLE_SECONDS = 1.0
"""Seconds for which an argument is kept after the last task that uses it has ended, so that the
next task of a chain can use it.
"""

MAX_IDLE_SIZE = 64 << 20
"""Largest total size in bytes of arguments that are kept while no task uses them.

A single unused argument is kept even if it is larger.
"""


class Big(NamedTuple):
    """Packed function, argument or archive of input files that is sent separately.

    Attributes:
        value: The object, which is kept so that its `id` is not reused.
        payload: The pickled object without its large buffers, or the archive.
        buffers: The object's large buffers, which still refer to the user's memory.
    """

    value: Any
    payload: bytes
    buffers: list[PickleBuffer]


@dataclass(slots=True, eq=False)
class LargeArgument:
    """Large argument on the cluster.

    Attributes:
        digest: The digest of the argument's content, which identifies the argument.
        future: The argument's future in Dask, or the packed argument if no worker could hold it.
        size: The argument's size in bytes.
        users: Number of tasks that use the argument.
        timer: The timer that drops the entry; `None` while tasks use the argument.
    """

    digest: str
    future: Any
    size: int
    users: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """True if the cluster no longer holds the argument, because a worker was lost."""
        return getattr(self.future, "status", "finished") != "finished"


class LargeArguments:
    """Large arguments of one backend.

    Args:
        client: Dask's client.
        prefix: The prefix of the arguments' keys in Dask.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._entries: dict[str, LargeArgument] = {}

    def __len__(self) -> int:
        return len(self._entries)

    async def put(self, bigs: Iterable[Big]) -> dict[int, LargeArgument]:
        """Send arguments to the cluster, except arguments that the cluster already holds.

        Args:
            bigs: The arguments of a batch; the same object may occur several times.

        Returns:
            A dict that maps the `id` of each argument (`Big.value`) to its entry. The caller counts
            as a user of each entry, and must pass each entry to `release`.
        """
        distinct = {id(big.value): big for big in bigs}
        snapshots = await in_thread(lambda: [_snapshot(big) for big in distinct.values()])
        entries: dict[int, LargeArgument] = {}
        try:
            for identity, (digest, reply) in zip(distinct, snapshots, strict=True):
                entry = self._entries.get(digest)
                if entry is None or entry.lost:
                    entry = await self._send(digest, reply)
                self.use(entry)
                entries[identity] = entry
        except BaseException:
            for entry in entries.values():
                self.release(entry)
            raise
        return entries

    async def _send(self, digest: str, reply: Reply) -> LargeArgument:
        size = len(reply.payload) + sum(len(buffer.raw()) for buffer in reply.buffers)
        if not await self._client.nthreads():
            return LargeArgument(digest, reply, size)  # Dask would wait for a worker, and fail
        key = f"{self._prefix}{digest}"
        try:
            futures = await self._client.scatter({key: reply}, hash=False)
        except OSError:  # the worker that should hold it was lost
            return LargeArgument(digest, reply, size)
        entry = self._entries.setdefault(digest, LargeArgument(digest, None, size))
        entry.future = futures[key]
        return entry

    def use(self, entry: LargeArgument) -> None:
        """Add a user to an entry."""
        entry.users += 1
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def release(self, entry: LargeArgument) -> None:
        """Remove a user from an entry.

        An entry without users is dropped after `IDLE_SECONDS`, or earlier if the entries without
        users are together larger than `MAX_IDLE_SIZE`.
        """
        entry.users -= 1
        if entry.users == 0:
            entry.timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop, entry)
            unused = [each for each in self._entries.values() if each.users == 0]
            while len(unused) > 1 and sum(each.size for each in unused) > MAX_IDLE_SIZE:
                self._drop(unused.pop(0))

    def _drop(self, entry: LargeArgument) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        if self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]
        entry.future = None

    def close(self) -> None:
        """Release all arguments."""
        for entry in [*self._entries.values()]:
            self._drop(entry)


def _snapshot(big: Big) -> tuple[str, Reply]:
    """Return the digest of an argument, and a packed copy that user code cannot change."""
    digest = hashlib.blake2b(big.payload, digest_size=16)
    buffers = []
    for buffer in big.buffers:
        copied = bytes(buffer.raw())
        digest.update(copied)
        buffers.append(PickleBuffer(copied))
    return digest.hexdigest(), Reply(DONE, big.payload, buffers)
