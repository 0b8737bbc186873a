"""The journal of `rhapsody run`: one for each program and its arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rhapsody.cli.output import UsageError, complain, note
from rhapsody.cli.scripts import Program
from rhapsody.errors import JournalError

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal

LARGEST = 16 << 20
"""Bytes of a result that is kept; larger ones would make every run slow that nobody resumes."""

HOW = {"killed": "was killed", "failed": "failed", "interrupted": "was interrupted"}
"""How a run ended, in words."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what is reused of the last run."""
    reused = parser.add_mutually_exclusive_group()
    reused.add_argument(
        "--fresh",
        action="store_true",
        help="run everything, also where the last run of this program with these arguments did "
        "not end well; otherwise what that one has done is not done again",
    )
    reused.add_argument(
        "--resume",
        action="store_true",
        help="run only what has changed since the last run, also where that one ended well",
    )
    reused.add_argument(
        "--no-journal", action="store_true", help="reuse nothing, and keep nothing to be reused"
    )
    parser.add_argument(
        "--rerun",
        action="append",
        default=[],
        metavar="NAME",
        help="run the tasks of this name again, whatever is kept of them; may be given several "
        "times",
    )


def resume_of(arguments: argparse.Namespace) -> bool | Literal["auto"]:
    """Whether results of the last run are used, see `WorkflowEngine.create`."""
    return False if arguments.fresh else True if arguments.resume else "auto"


class Recording:
    """The journal of one run.

    Args:
        arguments: The command's.

    Attributes:
        journal: The journal, `None` where nothing is recorded.
        how: How the run has ended, to be set where no signal ended it.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.journal: Journal | None = None
        self.how: Literal["done", "failed", "interrupted"] = "interrupted"
        self._rerun: Sequence[str] = arguments.rerun

    def begin(self, arguments: argparse.Namespace, program: Program) -> None:
        """Opens the journal of a program, and says what of the last run is reused.

        Raises:
            UsageError: The journal may not be used; the text says what to do.
        """
        if not (arguments.no_journal or arguments.dry_run):
            self.journal = self._open(arguments, program)
        if arguments.resume and self.journal is not None and not self.journal.reused:
            note("rhapsody: no earlier run with these arguments is kept; everything runs")
        if self.journal is not None and self.journal.reused and not arguments.quiet:
            before, count = self.journal.before, self.journal.reused
            results = "1 result" if count == 1 else f"{count} results"
            if before in HOW:
                note(
                    f"rhapsody: the last run {HOW[before]}, and what it has done is not done again "
                    f"({results}); --fresh starts over"
                )
            else:
                note(f"rhapsody: reusing what has not changed since the last run ({results})")

    def _open(self, arguments: argparse.Namespace, program: Program) -> Journal | None:
        from rhapsody.journal.places import NotYoursError, journal_of_program
        from rhapsody.journal.plugin import Journal
        from rhapsody.journal.store import JournalInUseError

        resume = resume_of(arguments)
        module = program.spec is not None
        try:
            path = journal_of_program(
                [program.path, *arguments.arguments], function=program.function
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            return Journal(
                path,
                Path.cwd() if module else Path(os.path.dirname(program.path)),
                resume=None if resume == "auto" else resume,
                shared=False,
                largest=LARGEST,
                again=self._rerun,
                push_down=True,
            )
        except (NotYoursError, JournalInUseError, OSError) as error:
            complain(f"this run is not recorded, and cannot be resumed: {error}")
        except JournalError as error:
            raise UsageError(f"{error}; or run without: --no-journal") from None
        return None

    def end(self) -> None:
        """Ends the run in the journal, and says how to go on where it has not ended well."""
        journal = self.journal
        if journal is None:
            return
        unknown = [name for name in self._rerun if name not in journal.names]
        try:
            journal.end(self.how)
        except JournalError as error:
            complain(str(error))
            return
        if unknown and self.how == "done":
            complain(f"--rerun {unknown[0]}: no task of that name was called")
        if self.how != "done" and (journal.kept or journal.taken):
            note("rhapsody: what is done is kept; the same command goes on from there")
