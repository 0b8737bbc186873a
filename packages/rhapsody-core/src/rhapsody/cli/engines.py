"""The engines that a program makes, and the graphs that those of a dry run have found."""

from __future__ import annotations

import os
import sysconfig
import traceback
from typing import TYPE_CHECKING

from rhapsody.cli.output import table
from rhapsody.errors import DependencyFailureError
from rhapsody.plugins.specs import hookimpl

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine
    from rhapsody.plugins.reports import Summary

OURS: str = os.path.dirname(os.path.dirname(__file__))


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


def graph(engine: WorkflowEngine) -> list[str]:
    """The lines that show what was called in a dry run, and what depends on what."""
    rows = [(uid, name, ", ".join(needs) or "-") for uid, name, needs in engine.graph]
    if not rows:
        return ["no task was called"]
    return table(("TASK", "NAME", "DEPENDS ON"), rows)


def stop(error: BaseException, path: str) -> str:
    """Says in a line where in the user's code a dry run has stopped, and by what."""
    error = _origin(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = next((one for one in reversed(frames) if _is_users(one.filename, path)), frames[-1])
    what = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    return (
        f"the dry run stopped at {os.path.relpath(place.filename)}, line {place.lineno}: {what} "
        "(tasks give 'Dummy Output' in a dry run); this is the graph up to there"
    )


def _origin(error: BaseException) -> BaseException:
    """What failed first, where an error tells of others."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, DependencyFailureError) and error.root_cause is not None:
            error = error.root_cause
        else:
            return error


def _is_users(file: str, path: str) -> bool:
    """Whether a file is the program's, or another of the user's own."""
    paths = sysconfig.get_paths()
    others = {paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")} | {OURS}
    return file == path or not (
        file.startswith("<") or any(file.startswith(f"{other}{os.sep}") for other in others)
    )
