"""`rhapsody clean`: removes the directories of runs that have ended."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rhapsody.cli.output import DONE, FAILED, complain, say
from rhapsody.plugins.specs import UsageError
from rhapsody.resources import seconds, size_text

if TYPE_CHECKING:
    from rhapsody.sdk.runs import LeftRun


MAX_NAMES = 3
"""Maximum number of results that are named for each run."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "the directory that contains .rhapsody (default: the current directory)"
    parser.add_argument("directory", nargs="?", default=".", metavar="DIRECTORY", help=text)
    text = "remove only runs that have not changed for this long, such as 30d, 12h or 45m"
    parser.add_argument("--older", metavar="AGE", help=text)
    text = "also remove results: output files that have no destination and that no task has read"
    parser.add_argument("--results", action="store_true", help=text)
    text = "show what would be removed, and remove nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Remove the directories of runs that have ended, except results, and print what was removed.

    With `--results`, also remove results. With `--dry-run`, only print what would be removed.

    Returns:
        The exit code.

    Raises:
        UsageError: The age or the directory is invalid.
        DataError: Another user could replace the runs.
    """
    from rhapsody.history.selection import runs_directory
    from rhapsody.sdk.runs import jobs_lists, left_runs, require_trusted, tidy

    before = time.time() - (0 if arguments.older is None else age(arguments.older))
    base = runs_directory(arguments.directory)
    require_trusted(base)
    found = left_runs(base)
    if not found:
        say(f"no runs in {base}")
        return DONE
    stays: Counter[str] = Counter()
    total, alive, code = _Total(), 0, DONE
    for each in found:
        if each.state == "held":
            alive += 1
        elif each.state == "unknown":
            stays["may still be running"] += 1
            say(
                f"{each.path.name}  kept: it may still be running on another host; if it is not, "
                f"run: rm {each.lock}"
            )
        elif jobs := jobs_lists(each.path):
            stays["may have jobs"] += 1
            say(
                f"{each.path.name}  kept: its jobs may continue; run the program again to take "
                "over their results, or cancel them (with rhapsody cancel if the run was submitted "
                "with rhapsody submit, otherwise with the command of the batch system) and run: "
                f"rm {' '.join(map(str, jobs))}"
            )
        elif each.changed > before:
            stays[f"changed in the last {arguments.older}"] += 1
        else:
            try:
                _clean(each, total, results=arguments.results, dry=arguments.dry_run)
            except BlockingIOError:
                alive += 1
            except FileNotFoundError:  # another process is removing it
                pass
            except OSError as error:
                complain(f"cannot remove {each.path}: {error}")
                code = FAILED
    if not arguments.dry_run:
        tidy(base)
    verb = "would remove" if arguments.dry_run else "removed"
    parts = [f"{verb} {_several(total.runs, 'run')}, {size_text(total.size)}"]
    rest = {"still running": alive, **stays}
    say("; ".join([*parts, *(f"{count} {what}" for what, count in rest.items() if count)]))
    if total.results:
        say(
            f"kept {_several(total.results, 'result')}, {size_text(total.results_size)}; to remove "
            "results as well, run: rhapsody clean --results"
        )
    return code


@dataclass(slots=True)
class _Total:
    """Numbers of what was removed and kept.

    Attributes:
        runs: Number of runs from which something was removed.
        size: Size in bytes of what was removed.
        results: Number of results that were kept.
        results_size: Size in bytes of these results.
    """

    runs: int = 0
    size: int = 0
    results: int = 0
    results_size: int = 0


def _clean(run: LeftRun, total: _Total, *, results: bool, dry: bool) -> None:
    """Remove a run's directory, and print the size of what was removed and kept.

    Args:
        run: The ended run.
        total: The numbers to which those of this run are added.
        results: True to remove the run's results as well.
        dry: True to print the sizes without removing anything.

    Raises:
        BlockingIOError: Another process has locked the run.
        OSError: A file cannot be removed.
    """
    try:
        kept = {} if results else run.results()
    except (ValueError, OSError) as error:
        say(f"{run.path.name}  kept: {error}; to remove it, run: rhapsody clean --results")
        return
    goes = run.goes(kept)
    total.results += len(kept)
    total.results_size += (kept_size := sum(kept.values()))
    if kept and not goes:
        return
    if not dry and not run.remove(iter(goes)):
        raise BlockingIOError(f"{run.path} is in use")
    total.runs += 1
    total.size += (size := sum(goes.values()))
    line = f"{run.path.name}  {size_text(size)}"
    if kept:
        names = [os.path.basename(path) for path in sorted(kept)]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        line += f" (kept: {', '.join(names[:MAX_NAMES])}{more}, {size_text(kept_size)})"
    say(line)


def _several(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def age(text: str) -> float:
    """Return the number of seconds in an age such as `30d`.

    Raises:
        UsageError: The age is invalid.
    """
    try:
        return seconds("--older", text, zero=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
