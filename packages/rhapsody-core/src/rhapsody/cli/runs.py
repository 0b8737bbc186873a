"""`rhapsody runs`: lists the recorded runs, newest first."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING

from rhapsody.cli.lookup import run_json
from rhapsody.cli.output import DONE, complain, say, say_json, say_lines, table
from rhapsody.errors import RhapsodyError
from rhapsody.history.values import counts_from, counts_of, duration, program_of, seconds_so_far
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.history.reader import RunRecord


COUNT = 20
"""Number of runs that are listed by default."""

MAX_SIZE = 20_000_000
"""Maximum size in bytes of the record of a run without an end that is read to count its tasks."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "the directory that contains .rhapsody (default: the current directory)"
    parser.add_argument("directory", nargs="?", default=".", metavar="DIRECTORY", help=text)
    text = f"list at most this many runs; 0 for all (default: {COUNT})"
    parser.add_argument("-n", "--number", type=int, default=COUNT, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print a table of runs.

    Returns:
        The exit code.

    Raises:
        UsageError: The directory does not exist, or the number is negative.
    """
    from rhapsody.history.reader import list_runs
    from rhapsody.history.selection import runs_directory

    if arguments.number < 0:
        raise UsageError(f"invalid number of runs {arguments.number}; it must be 0 or more")
    base = runs_directory(arguments.directory)
    runs = list_runs(base)
    found = [_counted(each) for each in runs[: arguments.number or None]]
    if arguments.json:
        say_json(
            [
                {**run_json(each), "counts": counts, "problem": each.problem}
                for each, counts in found
            ]
        )
        return DONE
    for each, _ in found:
        if each.problem is not None:
            complain(f"{each.name}: {each.problem}")
    if not runs:
        say(f"no recorded runs in {base}; `rhapsody run` records each run")
        return DONE
    same = Counter(each.name[-4:] for each in runs)
    rows: list[tuple[str, ...]] = [
        (
            each.name[-4:] if same[each.name[-4:]] == 1 else each.name,
            _day(each.started),
            program_of(each),
            each.outcome if each.problem is None else "unreadable",
            "-" if counts is None else f"{counts['done']}/{counts['tasks']}",
            "-" if counts is None else str(counts["failed"]),
            duration(seconds_so_far(each)),
            ",".join(map(str, each.backends)) or "-",
            each.owner or "-",
        )
        for each, counts in found
    ]
    header: tuple[str, ...] = (
        "RUN",
        "STARTED",
        "PROGRAM",
        "OUTCOME",
        "DONE",
        "FAILED",
        "TIME",
        "BACKEND",
        "OWNER",
    )
    if all(row[-1] == "-" for row in rows):  # all runs are the user's
        header, rows = header[:-1], [row[:-1] for row in rows]
    say_lines(
        table(
            header,
            rows,
            numbers=("DONE", "FAILED", "TIME"),
            flexible=("PROGRAM", "BACKEND", "RUN"),
            optional=("BACKEND", "TIME"),
        )
    )
    if len(runs) > len(found):
        say(f"{len(runs) - len(found)} more; -n 0 lists all")
    return DONE


def _counted(run: RunRecord) -> tuple[RunRecord, dict[str, int] | None]:
    """Return a run and the counts of its tasks, or `None` if they are unknown."""
    from rhapsody.history.reader import read_run

    if run.problem is not None:
        return run, None
    if run.ended is not None:
        return run, counts_from(run.stats)
    try:  # without an end, the counts and backends are in other lines
        if run.path.stat().st_size <= MAX_SIZE:
            history = read_run(run.path)
            return history.run, counts_of(history)
    except (OSError, RhapsodyError, TypeError):  # TypeError: a value has the wrong type
        pass
    return run, None


def _day(seconds: float | None) -> str:
    """Return a time to the minute, or the date if it is in another year."""
    if seconds is None:
        return "-"
    then = time.localtime(seconds)
    return time.strftime("%m-%d %H:%M" if then[0] == time.localtime()[0] else "%Y-%m-%d", then)
