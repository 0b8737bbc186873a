"""Whole output of tasks, in one compressed file next to the record of a run.

The record contains the end of each output. Output that is longer is also in this file, as a member
in gzip format, whose place is in the record. A run without long output has no such file.
"""

from __future__ import annotations

import os
import zlib
from typing import Final

from rhapsody.fsutil import open_file

PRINTED: Final = 2000
"""Maximum number of characters that are recorded from the end of each output stream."""

LIMIT: Final = 200_000_000
"""Maximum number of characters of whole output that one process keeps for a record."""

Place = tuple[int, int]
"""Offset and size in bytes of a compressed text in the file."""


def outputs_path(record: str | os.PathLike[str]) -> str:
    """Return the path of the file with the whole output of tasks, given the path of the record."""
    return f"{os.fspath(record).removesuffix('.jsonl')}.output.gz"


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
