"""Whole output of tasks, in one compressed file next to the record of a run.

The record contains the end of each output. Output that is longer is also appended to this file, as
a member in gzip format, whose place is in the record. The thread that writes the record compresses
the text. Short output costs nothing, and a run without long output has no such file.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import threading
import zlib
from typing import Final

from rhapsody.resources import size_text
from rhapsody.staging.fsutil import open_file, open_own

log: logging.Logger = logging.getLogger("rhapsody.engine")

LIMIT: Final = 200_000_000
"""Maximum number of characters of whole output that one process keeps for a record."""

LEVEL: Final = 1
"""Level of compression. Higher levels take several times as long."""

Place = tuple[int, int]
"""Offset and size in bytes of a compressed text in the file."""


def outputs_path(record: str | os.PathLike[str]) -> str:
    """Return the path of the file with the whole output of tasks, given the path of the record."""
    return f"{os.fspath(record).removesuffix('.jsonl')}.output.gz"


class OutputStore:
    """Writer of the file with the whole output of tasks.

    An error while writing is logged once; only the ends of later outputs are then kept.

    Args:
        record: The path of the record.
        fresh: True to remove an existing file; False to continue it.
    """

    def __init__(self, record: str, *, fresh: bool) -> None:
        self._path = outputs_path(record)
        self._lock = threading.Lock()
        self._available = LIMIT
        self._file: int | None = None
        if fresh:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def reserve(self, size: int) -> bool:
        """Return True if a text of `size` characters may be added. May be called on any thread.

        If the text would exceed the limit, this text and all later ones are refused.
        """
        with self._lock:
            if size <= self._available:
                self._available -= size
                return True
            was_full, self._available = self._available < 0, -1
        if not was_full:
            log.warning(
                "record: the limit of %s for stored output is reached; for later tasks, only the "
                'end of the output is recorded. The task setting capture="files" keeps all of it',
                size_text(LIMIT),
            )  # fmt: skip
        return False

    def add(self, text: str) -> Place | None:
        """Append a text, and return its place; `None` after an error. Used on one thread only."""
        data = gzip.compress(text.encode("utf-8", "backslashreplace"), LEVEL, mtime=0)
        try:
            if self._file is None:
                self._file = open_own(self._path, os.O_WRONLY | os.O_APPEND)
            offset, rest = os.lseek(self._file, 0, os.SEEK_END), memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with self._lock:
                was_full, self._available = self._available < 0, -1
            if not was_full:
                log.warning(
                    "record: output is no longer stored in full (%s: %s)",
                    self._path,
                    error.strerror,
                )
            return None
        return offset, len(data)

    def sync(self) -> None:
        """Pass what was added to the disk or server."""
        if self._file is not None:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def read_output(record: str | os.PathLike[str], place: Place) -> str | None:
    """Return a whole output; `None` if the file was removed or is damaged.

    Args:
        record: The path of the record.
        place: The place, from `Attempt.stdout_at` or `stderr_at`.
    """
    offset, size = place
    try:
        with open_file(outputs_path(record)) as file:
            file.seek(offset)
            data = file.read(min(size, LIMIT))
        unpacked = zlib.decompressobj(zlib.MAX_WBITS + 16)  # of gzip
        text = unpacked.decompress(data, LIMIT)
        return text.decode("utf-8", "replace") if unpacked.eof else None
    except (OSError, EOFError, zlib.error, ValueError, OverflowError):
        return None
