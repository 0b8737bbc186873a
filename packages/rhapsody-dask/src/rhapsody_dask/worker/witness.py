"""What a worker was running, to be known after it was killed: a file that outlives it.

A task may kill its worker before anything can be sent. So each is noted, before it
begins, in memory that is a file's: the kernel keeps what was written there, however
the process ends. Only where the backend is on the same machine can it look.
"""

from __future__ import annotations

import mmap
from hashlib import blake2b
from pathlib import Path

SIZE = 16
"""Bytes that stand for a task."""

PLACES = 4096
"""Tasks that can be noted at once."""


class Witness:
    """The notes of one worker. Its methods are called under the site's lock.

    Args:
        path: Their file; one that is there was another worker's.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "w+b") as file:
            file.truncate(SIZE * PLACES)
            self._memory = mmap.mmap(file.fileno(), SIZE * PLACES)
        self._free: list[int] = []
        self._used = 0

    def note(self, uid: str) -> int | None:
        """Notes that a task begins; gives its place, `None` where there is none left."""
        if self._free:
            place = self._free.pop()
        elif self._used < PLACES:
            place = self._used
            self._used += 1
        else:
            return None
        self._memory[place * SIZE : (place + 1) * SIZE] = mark(uid)
        return place

    def release(self, place: int | None) -> None:
        """The task in a place has ended. Where its reply is lost, it is run again uncounted."""
        if place is not None:
            self._memory[place * SIZE : (place + 1) * SIZE] = bytes(SIZE)
            self._free.append(place)


def mark(uid: str) -> bytes:
    """What stands for a task in the file."""
    return blake2b(uid.encode(), digest_size=SIZE).digest()


def path_of(directory: str, address: str) -> Path:
    """The file of a worker, by its address."""
    return Path(directory, address.rpartition(":")[2].strip("/"))


def running(directory: str, address: str) -> frozenset[bytes]:
    """The marks of the tasks that a worker was running; none where it never came so far."""
    try:
        data = path_of(directory, address).read_bytes()
    except FileNotFoundError:
        return frozenset()
    return frozenset(data[at : at + SIZE] for at in range(0, len(data), SIZE))
