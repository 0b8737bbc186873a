"""The engines that a program makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody.plugins.specs import hookimpl

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine
    from rhapsody.plugins.reports import Summary


class Engines:
    """Observes every engine of a program.

    Args:
        dry_run: They run nothing, and are kept for their graphs.

    Attributes:
        started: How many there have been.
        dry: Those of a dry run.
        summaries: Of those that have ended.
    """

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self.started: int = 0
        self.dry: list[WorkflowEngine] = []
        self.summaries: list[Summary] = []

    @hookimpl
    def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
        """Counts it."""
        self.started += 1
        if self._dry_run:
            self.dry.append(engine)

    @hookimpl
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """Keeps the summary."""
        self.summaries.append(summary)
