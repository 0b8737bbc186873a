"""The observers that an engine's own options ask for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from rhapsody.errors import JournalError
from rhapsody.journal import JournalOption
from rhapsody.observers.progress import Progress
from rhapsody.observers.tasklog import TaskLog
from rhapsody.observers.tasklog import log as task_log
from rhapsody.observers.trace import Profiler, Trace

log: logging.Logger = logging.getLogger("rhapsody.journal")


class BuiltIn:
    """The observers of one engine that Rhapsody itself brings.

    Args:
        trace: The file of the trace, `None` for no trace.
        progress: As in `WorkflowEngine.create`.
        journal: See `rhapsody.journal.JournalOption`.

    Attributes:
        observers: Those that are asked for.
        prof: Puts events of the program's into the trace.
        task_log: The observer that logs each task, if INFO is enabled.

    Raises:
        OSError: The trace cannot be written.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        trace: Path | None,
        progress: bool | Literal["lines"] | Progress,
        journal: JournalOption,
    ) -> None:
        self._progress = (
            progress
            if isinstance(progress, Progress)
            else Progress(lines=progress == "lines")
            if progress
            else None
        )
        self._ends_journal = callable(journal)
        self._journal = journal() if callable(journal) else journal
        self._trace = None if trace is None else Trace(trace)
        self.prof: Profiler = Profiler(self._trace)
        self.task_log: TaskLog | None = TaskLog() if task_log.isEnabledFor(logging.INFO) else None
        every = (self.task_log, self._journal, self._trace, self._progress)
        self.observers: list[object] = [each for each in every if each is not None]

    @property
    def shows_output(self) -> bool:
        """Whether one of them shows what tasks print."""
        return self._progress is not None and self._progress.shows_output

    @property
    def shows_failures(self) -> bool:
        """Whether one of them says at the end what failed."""
        return self._progress is not None

    def close(self, how: Literal["done", "failed", "interrupted"] = "failed") -> None:
        """Nothing happens any more; the run has ended in this way."""
        if self._journal is not None and self._ends_journal:
            try:
                self._journal.end(how)
            except JournalError as error:  # the results are there, and in it
                log.error("%s", error)
        if self._progress is not None:
            self._progress.close()
        if self._trace is not None:
            self._trace.close()
