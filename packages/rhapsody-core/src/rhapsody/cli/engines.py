"""The engines that a program makes."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from typing import TYPE_CHECKING

from rhapsody._version import __version__
from rhapsody.observers.account import duration
from rhapsody.plugins.specs import hookimpl
from rhapsody.staging.runs import note_in_log

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine
    from rhapsody.plugins.specs import Summary


class Engines:
    """Observes every engine of a program.

    Args:
        dry_run: They run nothing, and are kept for their graphs.

    Attributes:
        started: How many there have been.
        dry: Those of a dry run.
        summaries: Of those that have ended.
        verdicts: For a dry run with `--resume`: by the uids of engines and tasks, whether each
            task would run, and why.
    """

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self.started: int = 0
        self.dry: list[WorkflowEngine] = []
        self.summaries: list[Summary] = []
        self.verdicts: dict[str, dict[str, str]] = {}

    @hookimpl
    def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
        """Count the engine, and begin the log of its run."""
        self.started += 1
        if self._dry_run:
            self.dry.append(engine)
        else:
            backends = ", ".join(engine.backends)
            note_in_log(
                engine.work_dir,
                f"engine {engine.uid} begins on {backends}; process {os.getpid()} on "
                f"{platform.node()}, rhapsody-core {__version__}, Python "
                f"{platform.python_version()}: {shlex.join(sys.argv)}",
            )

    @hookimpl
    def rhapsody_workflow_finished(self, engine: WorkflowEngine, summary: Summary) -> None:
        """Keep the summary, and end the log."""
        self.summaries.append(summary)
        if not self._dry_run:
            stats = summary.stats
            note_in_log(
                engine.work_dir,
                f"engine {engine.uid} ends after {duration(summary.seconds)}: {stats.done} done, "
                f"{stats.recorded} of them reused, {stats.failed - stats.skipped} failed, "
                f"{stats.skipped} skipped, {stats.cancelled} cancelled, {stats.retried} retried",
            )
