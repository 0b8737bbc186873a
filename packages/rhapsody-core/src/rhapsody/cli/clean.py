"""`rhapsody clean`: removes the directories of runs that have ended."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rhapsody.cli.output import DONE, FAILED, complain, say
from rhapsody.plugins.specs import UsageError
from rhapsody.quantities import seconds, size_text

if TYPE_CHECKING:
    from rhapsody.staging.cleaning import LeftRun

HELP = "remove the directories of runs that have ended"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "directory",
        nargs="?",
        default=".",
        metavar="DIRECTORY",
        help="where the programs ran: the directory with .rhapsody in it (default: this one)",
    )
    parser.add_argument(
        "--older",
        metavar="AGE",
        help="only runs without a change for as long as this, such as 30d, 12h or 45m",
    )
    parser.add_argument(
        "--keep-results",
        action="store_true",
        help="keep promised files without a destination that no task has read, and list them",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="remove nothing, show what would be removed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Removes the directories, and says of each how much that was.

    Raises:
        UsageError: The age or the directory is not right.
    """
    from rhapsody.staging.cleaning import left_runs, tidy

    before = time.time() - (0 if arguments.older is None else age(arguments.older))
    base = base_of(arguments.directory)
    found = left_runs(base)
    if not found:
        say(f"no runs in {base}")
        return DONE
    cleaning = _Cleaning(arguments.keep_results, arguments.dry_run)
    for one in found:
        if one.state == "held":
            cleaning.alive += 1
        elif one.state == "unknown":
            cleaning.pass_by(one)
        elif one.changed > before:
            cleaning.young += 1
        else:
            cleaning.clean(one)
    if not arguments.dry_run:
        tidy(base)
    say(cleaning.account(arguments.older))
    return FAILED if cleaning.failed else DONE


class _Cleaning:
    """What has been removed so far, or would be, and what stays."""

    def __init__(self, keep_results: bool, dry: bool) -> None:
        self._keep, self._dry = keep_results, dry
        self.runs = self.bytes = self.alive = self.unknown = self.young = 0
        self.failed = False

    def pass_by(self, run: LeftRun) -> None:
        """Says what can be done about a run that another host may have."""
        self.unknown += 1
        say(
            f"{run.path.name}  stays: whether it still runs, on another host, cannot be seen from "
            f"here; if it does not: rm {run.lock}"
        )

    def clean(self, run: LeftRun) -> None:
        """Removes a run's directory, or all but its results, and says so."""
        try:
            kept = run.results() if self._keep else set()
        except (ValueError, OSError) as error:
            say(f"{run.path.name}  stays: {error}")
            return
        try:
            goes = run.goes(kept)
            if kept and not goes:
                return
            if not self._dry and not run.remove(iter(goes)):
                self.alive += 1
                return
        except FileNotFoundError:  # another one removes it, too
            return
        except OSError as error:
            self.failed = True
            complain(f"{run.path} cannot be removed: {error}")
            return
        self.runs += 1
        self.bytes += sum(goes.values())
        stays = " but for its results" if kept else ""
        say(f"{run.path.name}  {size_text(sum(goes.values()))}{stays}")

    def account(self, older: str | None) -> str:
        """The last line."""
        verb = "would remove" if self._dry else "removed"
        first = f"{verb} {self.runs} run{'s' * (self.runs != 1)}, {size_text(self.bytes)}"
        rest = {
            "still runs" if self.alive == 1 else "still run": self.alive,
            "may still run": self.unknown,
            f"changed in the last {older}": self.young,
        }
        return "; ".join([first, *(f"{count} {what}" for what, count in rest.items() if count)])


def base_of(directory: str) -> Path:
    """The `.rhapsody` of a directory, or the directory itself where it is one.

    Raises:
        UsageError: There is no such directory.
    """
    from rhapsody.staging.runs import BASE

    path = Path(os.path.abspath(directory))
    if not path.is_dir():
        raise UsageError(f"there is no directory {directory!r} (looked in {os.getcwd()})")
    return path if path.name == BASE else path / BASE


def age(text: str) -> float:
    """The seconds in an age such as `30d`.

    Raises:
        UsageError: It is none.
    """
    try:
        return seconds("--older", text, zero=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
