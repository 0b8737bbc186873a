"""Records that this process is writing."""

from __future__ import annotations

import os
from pathlib import Path

_written: dict[Path, int] = {}
"""The id of the process that opened each record, by path: a forked child writes none of them."""


def record_opened(path: Path) -> None:
    """Add a record. Called by the recorder, from any thread."""
    _written[path] = os.getpid()


def record_closed(path: Path) -> None:
    """Remove a record. Called by the recorder, from any thread."""
    _written.pop(path, None)


def open_records() -> list[Path]:
    """Return the paths of the records that this process is writing, in the order of their start."""
    return [path for path, process in list(_written.items()) if process == os.getpid()]
