"""`rhapsody clean`: removes the directories of runs that have ended."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rhapsody.cli.output import DONE, FAILED, complain, say
from rhapsody.plugins.specs import UsageError
from rhapsody.resources import seconds, size_text

if TYPE_CHECKING:
    from rhapsody.staging.runs import LeftRun

HELP = "remove the directories of runs that have ended"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "the directory that contains .rhapsody (default: the current directory)"
    parser.add_argument("directory", nargs="?", default=".", metavar="DIRECTORY", help=text)
    text = "remove only runs that have not changed for this long, such as 30d, 12h or 45m"
    parser.add_argument("--older", metavar="AGE", help=text)
    text = "keep output files that have no destination and that no task has read"
    parser.add_argument("--keep-results", action="store_true", help=text)
    text = "show what would be removed, and remove nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Remove the directories of runs that have ended, and print how much was removed.

    With `--dry-run`, only print what would be removed.

    Returns:
        The exit code.

    Raises:
        UsageError: The age or the directory is invalid.
    """
    from rhapsody.staging.runs import jobs_lists, left_runs, tidy

    before = time.time() - (0 if arguments.older is None else age(arguments.older))
    base = base_of(arguments.directory)
    found = left_runs(base)
    if not found:
        say(f"no runs in {base}")
        return DONE
    stays: Counter[str] = Counter()
    removed, size, alive, code = 0, 0, 0, DONE
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
                "over their results, or cancel them with the command of the batch system and run: "
                f"rm {' '.join(map(str, jobs))}"
            )
        elif each.changed > before:
            stays[f"changed in the last {arguments.older}"] += 1
        else:
            try:
                freed = _clean(each, arguments.keep_results, arguments.dry_run)
            except BlockingIOError:
                alive += 1
            except FileNotFoundError:  # another process is removing it
                pass
            except OSError as error:
                complain(f"cannot remove {each.path}: {error}")
                code = FAILED
            else:
                removed, size = removed + (freed is not None), size + (freed or 0)
    if not arguments.dry_run:
        tidy(base)
    verb = "would remove" if arguments.dry_run else "removed"
    parts = [f"{verb} {removed} run{'s' * (removed != 1)}, {size_text(size)}"]
    rest = {"still running": alive, **stays}
    say("; ".join([*parts, *(f"{count} {what}" for what, count in rest.items() if count)]))
    return code


def _clean(run: LeftRun, keep_results: bool, dry: bool) -> int | None:
    """Remove a run's directory, and print the size of what was removed.

    Args:
        run: The ended run.
        keep_results: True to keep the run's results.
        dry: True to print the size without removing anything.

    Returns:
        The size in bytes, or `None` if there is nothing to remove or the list of results cannot be
        read.

    Raises:
        BlockingIOError: Another process has locked the run.
        OSError: A file cannot be removed.
    """
    try:
        kept = run.results() if keep_results else set()
    except (ValueError, OSError) as error:
        say(f"{run.path.name}  kept: {error}")
        return None
    goes = run.goes(kept)
    if kept and not goes:
        return None
    if not dry and not run.remove(iter(goes)):
        raise BlockingIOError(f"{run.path} is in use")
    size = sum(goes.values())
    say(f"{run.path.name}  {size_text(size)}{' (results kept)' if kept else ''}")
    return size


def base_of(directory: str) -> Path:
    """Return the directory if its name is `.rhapsody`, otherwise the path of `.rhapsody` in it.

    Raises:
        UsageError: The directory does not exist.
    """
    from rhapsody.staging.runs import BASE

    path = Path(os.path.abspath(directory))
    if not path.is_dir():
        raise UsageError(f"directory {directory!r} does not exist (looked in {os.getcwd()})")
    return path if path.name == BASE else path / BASE


def age(text: str) -> float:
    """Return the number of seconds in an age such as `30d`.

    Raises:
        UsageError: The age is invalid.
    """
    try:
        return seconds("--older", text, zero=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
