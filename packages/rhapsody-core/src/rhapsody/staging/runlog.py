"""The log of a run: what is logged under `rhapsody` while its engines live, in a file.

It takes what the program has enabled, from INFO on, and changes neither a logger's level nor what
the program's own handlers get. The file is made for the first record. `rhapsody run` logs the
beginning of every run, and an engine with `progress` its summary.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

log: logging.Logger = logging.getLogger("rhapsody")

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIMES = "%Y-%m-%dT%H:%M:%S"
"""The format of a line, and of the time in it, which is UTC, as in the names of runs."""


class RunLog(logging.Handler):
    """Writes records into a file that it opens for the first of them.

    Args:
        path: Makes the file's directory and says where the file is.
    """

    def __init__(self, path: Callable[[], str]) -> None:
        super().__init__()
        self._path = path
        self._file = -1
        self._pid = os.getpid()
        self._taking = False
        self._broken = False
        lines = logging.Formatter(FORMAT, TIMES)
        lines.converter = time.gmtime
        self.setFormatter(lines)

    def begin(self) -> None:
        """Takes records from here on; twice is harmless."""
        self._taking = True
        log.addHandler(self)

    def end(self) -> None:
        """Takes no more records, until it begins again."""
        self._taking = False
        log.removeHandler(self)
        self.close()

    def close(self) -> None:
        """Closes the file; another record opens it again."""
        self.acquire()
        try:
            file, self._file = self._file, -1
            if file >= 0:
                with contextlib.suppress(OSError):  # a disk that is full may say so now
                    os.close(file)
        finally:
            self.release()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record; what is wrong with the disk is said once, and harms nobody."""
        self._take(record)
        if self._is_alone(record):
            _hand_on(record)

    def note(self, text: str) -> None:
        """Write a text to the log file only."""
        self._take(logging.LogRecord("rhapsody.run", logging.INFO, "", 0, text, None, None))

    def _take(self, record: logging.LogRecord) -> None:
        taking = self._taking and not self._broken and os.getpid() == self._pid
        if taking and record.levelno >= logging.INFO:
            try:
                self._write(self.format(record))
            except OSError as error:
                self._broken = True
                log.warning("the log of this run ends here: %s", error)
            except Exception:  # noqa: S110 - of the record's own values: who prints it says so
                pass

    def _write(self, text: str) -> None:
        if self._file < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._path(), flags, 0o600)
        os.write(self._file, f"{text}\n".encode(errors="backslashreplace"))

    def _is_alone(self, record: logging.LogRecord) -> bool:
        """Whether nobody handles a record but logs of runs, of which this is the first.

        `logging` prints a record that has no handler (`logging.lastResort`), and counts this one.
        """
        logger: logging.Logger | None = logging.getLogger(record.name)
        found: list[logging.Handler] = []
        while logger is not None:
            found += logger.handlers
            logger = logger.parent if logger.propagate else None
        return found[:1] == [self] and all(isinstance(each, RunLog) for each in found)


def _hand_on(record: logging.LogRecord) -> None:
    """Prints a record as `logging` does with those that nobody handles."""
    last = logging.lastResort
    if last is not None and record.levelno >= last.level:
        last.handle(record)
