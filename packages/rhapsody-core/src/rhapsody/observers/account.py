"""The account of a run: what became of its tasks, why, and where the results are, in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rhapsody.data import SavedFile
from rhapsody.observers.counts import Counts
from rhapsody.observers.failure_groups import shown
from rhapsody.plugins.specs import Summary
from rhapsody.quantities import size_text
from rhapsody.staging.runs import BASE, LOG

LISTED = 20
"""How many results are listed."""

MUCH = 10**9
"""Disk use of runs, in bytes, above which it is shown."""


def account(summary: Summary, counts: Counts, directory: Path) -> list[str]:
    """The lines of the account, none where nothing was called; what matters most comes last.

    Args:
        summary: How the run ended.
        counts: What was counted of its tasks.
        directory: Where its engine worked; the run's is named where something is left in it.
    """
    if not counts.rows:
        return []
    lines = results_of(summary.results, directory)
    lines += _stale(summary.stale)
    failures = counts.failures.lines()
    lines += ["failed:"] * bool(failures) + [f"  {line}" for line in failures]
    lines += _held_back(counts)
    run = directory.parent if directory.parent.parent.name == BASE else directory
    if _holds_files(run):
        lines.append(f"the run's files: {shown(run)}")
    if summary.disk_use > MUCH:
        base = run.parent if run is not directory else directory
        hint = ": rhapsody clean removes the files of ended runs" if base.name == BASE else ""
        lines.append(f"{size_text(summary.disk_use)} in {shown(base)}{hint}")
    how = numbers(counts, summary.stats.retried, summary.stats.recorded)
    return [*lines, f"rhapsody: {how} in {duration(summary.seconds)}"]


def _holds_files(directory: Path) -> bool:
    """Return whether a run's directory contains more than its lock and its log."""
    try:
        return any(not name.startswith(".") and name != LOG for name in os.listdir(directory))
    except OSError:
        return False


def numbers(counts: Counts, retried: int = 0, reused: int = 0) -> str:
    """How many tasks ended in which way; what is zero is left out, but for those that are done."""
    row = counts.all
    others = {
        "failed": row.failed,
        "held back": row.held,
        "skipped": row.skipped,
        "cancelled": row.cancelled,
        "retried": retried,
    }
    done = f"{row.done} done ({reused} of them reused)" if reused else f"{row.done} done"
    return ", ".join([done, *(f"{n} {word}" for word, n in others.items() if n)])


def duration(seconds: float) -> str:
    """A time in seconds below a minute, and as `h:mm:ss` above."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _held_back(counts: Counts) -> list[str]:
    """A line for each backend that tasks were held back from."""
    lines = []
    for backend in dict.fromkeys(each.backend for each in counts.held.values()):
        held = [each for each in counts.held.values() if each.backend == backend]
        one, first = len(held) == 1, held[0]
        which = first.name if one else f"the first of them, {first.name},"
        lines.append(
            f"{len(held)} {'task was' if one else 'tasks were'} held back: {backend!r} had "
            f"{duration(first.left)} left, and {which} needs {duration(first.needs)}"
        )
    return lines


def results_of(results: Sequence[SavedFile], directory: Path) -> list[str]:
    """Return the lines about the files that a run has left, the first ones of many.

    Files that other tasks read come last, preceded by those without a destination, which are in the
    engine's directory.
    """

    def order(file: SavedFile) -> tuple[bool, bool]:
        return file.intermediate, directory in file.path.parents

    if not results:
        return []
    lines = [f"results ({len(results)}):"]
    for file in sorted(results, key=order)[:LISTED]:
        slash = "/" * file.path.is_dir()
        lines.append(f"  {shown(file.path)}{slash}  ({file.task}, {file.uid})")
    more = len(results) - LISTED
    return lines + [f"  ... and {more} more"] * (more > 0)


def _stale(files: Sequence[SavedFile]) -> list[str]:
    """Return the lines about results that are not from this run."""
    if not files:
        return []
    lines = [f"stale, from an earlier run ({len(files)}):"]
    lines += [f"  {shown(file.path)}  ({file.task}, {file.uid})" for file in files[:LISTED]]
    more = len(files) - LISTED
    return lines + [f"  ... and {more} more"] * (more > 0)
