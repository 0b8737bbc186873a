"""Writer of the whole output of tasks; see `rhapsody.history.outputs`.

The thread that writes the record compresses the text. Short output costs nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import threading
from typing import Final

from rhapsody.fsutil import open_own
from rhapsody.history.outputs import LIMIT, Place, outputs_path
from rhapsody.resources import size_text

log: logging.Logger = logging.getLogger("rhapsody.engine")

LEVEL: Final = 1
"""Level of compression. Higher levels take several times as long."""


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
