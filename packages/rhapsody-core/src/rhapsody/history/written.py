"""Records that this process is writing."""

from __future__ import annotations

from pathlib import Path

from rhapsody.forks import PerProcess

_written: PerProcess[dict[Path, None]] = PerProcess(dict)
"""The paths of the records, in the order of their start."""


def record_opened(path: Path) -> None:
    """Add a record. Called by the recorder, from any thread."""
    _written.get()[path] = None


def record_closed(path: Path) -> None:
    """Remove a record. Called by the recorder, from any thread."""
    _written.get().pop(path, None)


def open_records() -> list[Path]:
    """Return the paths of the records that this process is writing, in the order of their start."""
    return list(_written.get())
