"""Results in other journals, which a run with `--resume` may use as well.

A program has one journal for each combination of arguments. If it is run with other arguments, was
renamed, or is run in another directory, many of its calls are often the same. The other journals
are only read. A result that is used is copied to the journal of the run.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from rhapsody.builtin.journal.store import DIRECTORY, Reader, opened
from rhapsody.errors import JournalError
from rhapsody.sdk.runs import BASE

log: logging.Logger = logging.getLogger("rhapsody.journal")

MAX_JOURNALS = 100
"""Maximum number of other journals that are read: those that were used last."""


class Other(NamedTuple):
    """Result in another journal.

    Attributes:
        journal: The path of the journal.
        value: See `rhapsody.builtin.journal.store.Recording`.
        files: See `rhapsody.builtin.journal.store.Recording`.
        began: The time at which the run that made the result began, if it is known.
        opened: See `rhapsody.builtin.journal.store.Recording`.
    """

    journal: Path
    value: bytes
    files: str | None
    began: float | None
    opened: str | None


class OtherJournals:
    """Results in other journals. All methods are called on the thread of the run's journal.

    The journals are opened when the first result is looked up. If several contain a result, the
    one in the first journal is used.

    Args:
        paths: The paths of the journals.
        since: The time before which results are ignored, in seconds since the epoch.

    Attributes:
        paths: The argument `paths`.
        taken: Number of results that were copied, by the path of the journal.
    """

    def __init__(self, paths: Sequence[Path], since: float) -> None:
        self.paths: Sequence[Path] = paths
        self.taken: Counter[Path] = Counter()
        self._since = since
        self._places: dict[tuple[bytes, int], tuple[Path, Reader, int]] | None = None
        self._open = ExitStack()

    def find(self, key: bytes, number: int) -> Other | None:
        """Return the result of a call, or `None` if there is none.

        Args:
            key: See `rhapsody.builtin.journal.store.Recording`.
            number: See `rhapsody.builtin.journal.store.Recording`.

        Raises:
            JournalError: The result is damaged or cannot be read.
        """
        if self._places is None:
            self._places = self._read()
        place = self._places.get((key, number))
        if place is None:
            return None
        path, reader, recording = place
        try:
            return Other(path, *reader.result(recording, key, number))
        except sqlite3.Error as error:
            raise JournalError(f"journal {path} cannot be read: {error}") from error

    def _read(self) -> dict[tuple[bytes, int], tuple[Path, Reader, int]]:
        """Open the journals, and return the place of each result by its key and number."""
        found: dict[tuple[bytes, int], tuple[Path, Reader, int]] = {}
        for path in self.paths:
            try:
                reader = self._open.enter_context(opened(path))
                results = reader.results(self._since)
            except (JournalError, sqlite3.Error) as error:  # such as one of another user
                log.info("journal %s is not used: %s", path, error)
                continue
            for call, recording in results.items():
                found.setdefault(call, (path, reader, recording))
        return found

    def close(self) -> None:
        """Close the journals."""
        self._places = {}
        self._open.close()


def other_journals(path: Path, program: Path) -> list[Path]:
    """Return the journals that may contain results of the same calls, newest first.

    These are the other journals of programs that are in the same directory, and those in
    `.rhapsody/journals` in the directory of the program.

    Args:
        path: The path of the run's journal, made by `store.journal_of_program`.
        program: The directory of the program.
    """
    found: dict[str, float] = {}
    own = os.path.realpath(path)
    for directory in (path.parent, program / BASE / DIRECTORY):
        for each in Path(os.path.realpath(directory)).glob("*.sqlite"):
            if str(each) != own:
                with suppress(OSError):  # it was removed meanwhile
                    found[str(each)] = each.stat().st_mtime
    newest = sorted(found, key=found.__getitem__, reverse=True)
    return [Path(each) for each in newest[:MAX_JOURNALS]]
