"""Shared memory for large values between the program and its worker processes.

The pickle of a large argument or result is written to a file in memory (`memfd_create`) that the
program shares with its workers, and is unpickled from a mapping of this file. The data is copied
once on each side, and the values are the same as those sent through a socket. The file has no name
and needs no cleanup: the system frees it when all processes that have opened it have ended.

The blocks of the file are far apart. The file is sparse, so each block can grow to any size and no
allocator is needed. Only the program assigns blocks: one to each call with large arguments, and one
to each worker for its next large result. A worker writes only once to the block that the last call
offered, because the program may still be reading from the block. A block is free again when the
program's `Block` is garbage collected, so canceled calls and killed workers need no special care.

Freed blocks are reused with their pages, because allocating and clearing pages costs more than
copying to them. At most `MAX_WARM_BLOCKS` free blocks of at most `MAX_WARM_SIZE` bytes keep their
pages. Where shared memory is not available, values are sent through the socket.

A call with an argument of 10 MB takes 0.19 to 0.25 times the processor time of the socket, which
copies the value five times, and a result 0.43 to 0.54 times (Ray 2: 0.57 and 0.86). Smaller values
than `MIN_SHARED_SIZE` gain nothing. Mapping pickle's out-of-band buffers would save the copy out,
but needs a new file for each value, whose pages cost more (9 ms for 10 MB) than the copy (2 ms),
and a descriptor for each array. Descriptors sent over a socket are lost if the receiver has reached
its limit, and the named files of `multiprocessing.shared_memory` remain after a crash.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections import deque
from contextlib import suppress
from multiprocessing import reduction
from pickle import PickleBuffer
from typing import Any

from rhapsody.sdk.runner import loads, pickler

MIN_SHARED_SIZE = 1 << 18
"""Minimum size in bytes of a pickle that is passed through shared memory."""

MAX_WARM_BLOCKS = 4
"""Maximum number of free blocks that keep their pages."""

MAX_WARM_SIZE = 1 << 24
"""Maximum size in bytes of a free block that keeps its pages."""

BLOCK_SPACING = 1 << 40
"""Distance in bytes between the starts of two blocks."""


class SharedMemory:
    """File of shared blocks: base class of the program's side and the workers' side.

    Args:
        descriptor: The file's descriptor; `None` if there is no shared memory.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor: int | None = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        """Pass the descriptor to a process that `multiprocessing` starts."""
        shared = None if self.descriptor is None else reduction.DupFd(self.descriptor)
        return _inherited, (shared,)

    def take(self) -> Block | None:
        """Take a free block. Return `None` if there is none."""
        return None

    def free(self, number: int) -> None:
        """Mark a block as free. Called when its `Block` is garbage collected."""

    def dump(self, value: Any) -> Block | bytearray:
        """Pickle a value.

        Returns:
            The block with the pickle if the pickle is large and a block is available; otherwise the
            pickle.
        """
        file = _PickleFile(self)
        try:
            pickler()(file).dump(value)
            return file.data if file.block is None else file.block
        finally:
            del file.block, file.data  # the traceback of an error refers to the file

    def load(self, number: int, size: int) -> Any:
        """Unpickle a value from the first `size` bytes of a block."""
        return loads(self.read(number, size))

    def read(self, number: int, size: int) -> mmap.mmap | bytearray:
        """Map the first `size` bytes of a block into memory, or copy them if mapping fails.

        Returns:
            The memory map, or the copy.

        Raises:
            EOFError: The file ends before the last byte to read.
        """
        assert self.descriptor is not None
        offset = number * BLOCK_SPACING
        if os.fstat(self.descriptor).st_size < offset + size:
            raise EOFError("a value in shared memory is truncated")
        try:
            return mmap.mmap(self.descriptor, size, prot=mmap.PROT_READ, offset=offset)
        except OSError:
            data = bytearray(size)
            view = memoryview(data)
            while view:
                count = os.preadv(self.descriptor, [view], offset + size - len(view))
                view = view[count:]
            return data

    def write(self, number: int, start: int, view: memoryview) -> None:
        """Write data to a block, starting at byte `start`.

        Raises:
            OSError: The system does not have enough memory.
        """
        assert self.descriptor is not None
        offset = number * BLOCK_SPACING + start
        while view:
            count = os.pwrite(self.descriptor, view, offset)
            view, offset = view[count:], offset + count


class ProgramMemory(SharedMemory):
    """The main process's side of the memory: creates the file, assigns blocks. Thread-safe."""

    def __init__(self) -> None:
        super().__init__()
        with suppress(OSError, AttributeError):  # too many open files, or not Linux
            self.descriptor = os.memfd_create("rhapsody")
        self._numbers = itertools.count(1)
        self._warm: deque[int] = deque()
        self._cold: deque[int] = deque()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which must not be used afterward."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def take(self) -> Block | None:
        """Take a free block, preferably one whose pages are still allocated.

        Returns:
            The block, or `None` if there is no shared memory.
        """
        if self.descriptor is None:
            return None
        for free in (self._warm, self._cold):
            with suppress(IndexError):
                return Block(self, free.pop())
        return Block(self, next(self._numbers))

    def free(self, number: int) -> None:
        """Mark a block as free, and release its pages unless they are kept for the next value."""
        if self.descriptor is None:
            return
        try:
            start = number * BLOCK_SPACING
            size = os.lseek(self.descriptor, start, os.SEEK_HOLE) - start
        except OSError:  # nothing has been written to the block
            size = 0
        if 0 < size <= MAX_WARM_SIZE and len(self._warm) < MAX_WARM_BLOCKS:
            self._warm.append(number)
            return
        if size:
            with (
                suppress(OSError),
                mmap.mmap(self.descriptor, size, offset=number * BLOCK_SPACING) as pages,
            ):
                pages.madvise(mmap.MADV_REMOVE)
        self._cold.append(number)


class WorkerMemory(SharedMemory):
    """Worker's side of the shared memory: writes once to each block that the program offers.

    Attributes:
        offered: The number of the block for the next large result; 0 if there is none.
    """

    def __init__(self, descriptor: int | None) -> None:
        super().__init__(descriptor)
        self.offered: int = 0
        self._used = 0

    def take(self) -> Block | None:
        """Take the block that was offered last. Return `None` if it has been used."""
        if self.offered == self._used:
            return None
        self._used = self.offered
        return Block(self, self._used)


def _inherited(shared: Any) -> WorkerMemory:
    if shared is None:
        return WorkerMemory(None)
    descriptor = shared.detach()
    os.set_inheritable(descriptor, False)
    return WorkerMemory(descriptor)


class Block:
    """Block of shared memory with one pickle. Deleting this object frees the block.

    Attributes:
        number: The block's number in the file, counted from 1.
        size: Size of the pickle in bytes.
    """

    def __init__(self, memory: SharedMemory, number: int) -> None:
        self._memory = memory
        self.number: int = number
        self.size: int = 0

    def __len__(self) -> int:
        return self.size

    def __del__(self) -> None:
        self._memory.free(self.number)

    def load(self) -> Any:
        """Unpickle the value."""
        return self._memory.load(self.number, self.size)

    def append(self, view: memoryview) -> None:
        """Append data to the pickle."""
        self._memory.write(self.number, self.size, view)
        self.size += len(view)

    def content(self) -> mmap.mmap | bytearray:
        """Return the pickle, as a memory map or as a copy; see `SharedMemory.read`."""
        return self._memory.read(self.number, self.size)


class _PickleFile:
    """File for a pickler. Its content moves to shared memory when it becomes large."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._full = False
        self.data = bytearray()
        self.block: Block | None = None

    def write(self, data: Any) -> None:
        """Append data to the pickle."""
        view = data.raw() if type(data) is PickleBuffer else memoryview(data)
        if self.block is None and len(self.data) + len(view) >= MIN_SHARED_SIZE and not self._full:
            self.block = self._memory.take()
            self._full = self.block is None
            if self.block is not None:
                self._share(memoryview(self.data))
        if self.block is not None:
            self._share(view)
        else:
            self.data += view

    def _share(self, view: memoryview) -> None:
        """Append data to the block. If that fails, move the pickle to this process's memory."""
        assert self.block is not None
        try:
            self.block.append(view)
        except OSError:
            self.data = bytearray(self.block.content()) if self.block.size else bytearray()
            self.data += view
            self.block, self._full = None, True
