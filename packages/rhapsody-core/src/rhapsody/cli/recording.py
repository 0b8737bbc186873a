"""Journals of `rhapsody run`: one for each combination of program and arguments."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.cli.output import complain, note
from rhapsody.cli.scripts import Program
from rhapsody.errors import JournalError
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal
    from rhapsody.plugins.specs import Summary

MAX_RESULT_SIZE = 16 << 20
"""Maximum size in bytes of a recorded result. Larger results would slow down every run."""

END_PHRASES = {"killed": "was killed", "failed": "failed", "interrupted": "was interrupted"}
"""Phrases for messages about how a run ended."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options that control the reuse of results."""
    reused = parser.add_mutually_exclusive_group()
    text = "run all tasks (default: resume the last run if it failed or was interrupted)"
    reused.add_argument("--fresh", action="store_true", help=text)
    text = "reuse the valid results of the last run, even if that run succeeded"
    reused.add_argument("--resume", action="store_true", help=text)
    text = "neither reuse nor record results"
    reused.add_argument("--no-journal", action="store_true", help=text)
    parser.add_argument(
        "--rerun",
        action="append",
        default=[],
        metavar="NAME",
        help="like --resume, but run all tasks with this name; may be repeated",
    )


class Recording:
    """Journal of one run, opened for the first engine that does not specify its own journal.

    Args:
        arguments: The parsed arguments of the command.

    Attributes:
        resumes: True if the results of the last run are reused even if that run succeeded.
        how: The outcome of the run: `"interrupted"`, unless the command sets another outcome.
        summaries: The summaries of the run's engines. A run in which an engine held tasks back is
            recorded as failed.
        journal: The journal or, in a dry run, a copy of the journal; `None` if it is not open.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        rerun = arguments.rerun and not (arguments.fresh or arguments.no_journal)
        self.resumes: bool = bool(arguments.resume or rerun)
        self.how: Literal["done", "failed", "interrupted"] = "interrupted"
        self.summaries: Sequence[Summary] = ()
        self.journal: Journal | None = None
        self._arguments = arguments
        self._copied: Path | None = None
        self._others = 0  # number of other journals in which results are looked up
        self._opened = self._warned = False

    @property
    def outcome(self) -> Literal["done", "failed", "interrupted"]:
        """The outcome of the run: `how`, or `"failed"` if an engine held tasks back."""
        held_back = any(summary.held_back for summary in self.summaries)
        return "failed" if self.how == "done" and held_back else self.how

    def settings(
        self, program: Program, given: Mapping[str, Any], in_program: Set[str]
    ) -> dict[str, Any]:
        """Return the values of `journal` and `resume` that override an engine's options.

        Args:
            program: The program that creates the engine.
            given: The engine's options.
            in_program: The names of the options that the program sets.

        Raises:
            UsageError: The journal cannot be used.
        """
        arguments, journal = self._arguments, given.get("journal", True)
        named = "resume" in given
        resume = False if arguments.fresh else True if arguments.resume else "auto"
        if arguments.dry_run:
            if self.resumes and journal is True:
                self._open(program, True)
            return {}
        if journal is None or journal is False:
            return {}
        if arguments.no_journal and (journal is True or "journal" not in in_program):
            return {"journal": None, "resume": "auto"}
        if journal is True:
            self._open(program, given.get("resume", self.resumes or resume))
            asked = "journal" in given and self.journal is None  # the engine raises the error
            return {} if asked else {"journal": self.journal, "resume": "auto"}
        useless = {
            "--no-journal": arguments.no_journal,
            "--rerun": arguments.rerun,
            "--resume": arguments.resume and named,
            "--fresh": arguments.fresh and named,
        }
        if any(useless.values()) and not self._warned:
            self._warned = True
            options = " and ".join(name for name, asked in useless.items() if asked)
            complain(f"ignoring {options}: the program uses its own journal, {journal}")
        return {} if named else {"resume": resume}

    def _open(self, program: Program, resume: bool | Literal["auto"]) -> None:
        """Open the journal on the first call, and print how many results it contains."""
        if self._opened:
            return
        self._opened = True
        arguments, journal = self._arguments, self._journal(program, resume)
        self.journal = journal
        if journal is None and not arguments.dry_run:
            return
        if self.resumes and (journal is None or not journal.reused):
            others, s = self._others, "" if self._others == 1 else "s"
            what = f"looking for results in {others} other journal{s}" if others else None
            note(
                "rhapsody: no earlier run with these arguments is recorded; "
                f"{what or 'running all tasks'}"
            )
        elif journal is not None and journal.reused and not (arguments.quiet or arguments.dry_run):
            count, s = journal.reused, "" if journal.reused == 1 else "s"
            if journal.before in END_PHRASES:
                how = END_PHRASES[journal.before]
                note(
                    f"rhapsody: the last run {how}; found {count} recorded result{s} "
                    "(--fresh starts over)"
                )
            else:
                note(f"rhapsody: found {count} recorded result{s} of the last run")

    def _journal(self, program: Program, resume: bool | Literal["auto"]) -> Journal | None:
        from rhapsody.journal.others import other_journals
        from rhapsody.journal.plugin import Journal
        from rhapsody.journal.store import (
            JournalInUseError,
            NotYoursError,
            journal_of_program,
            make_directory,
        )

        arguments = self._arguments
        script = Path(os.path.realpath(program.path))
        base = Path.cwd() if program.spec is not None else script.parent
        try:
            path = journal_of_program(
                [program.path, *arguments.arguments], function=program.function
            )
            others = other_journals(path, base) if resume is True else []
            self._others = len(others)
            if arguments.dry_run:
                if not path.is_file() and not others:
                    return None
                path = self._copy(path)
            make_directory(path)
            return Journal(
                path,
                base,
                resume=None if resume == "auto" else resume,
                shared=False,
                largest=MAX_RESULT_SIZE,
                again=arguments.rerun,
                others=others,
                push_down=True,
            )
        except (NotYoursError, JournalInUseError, OSError) as error:
            complain(f"this run is not recorded, and cannot be resumed: {error}")
        except JournalError as error:
            raise UsageError(f"{error}. To run without a journal, pass --no-journal") from None
        return None

    def _copy(self, path: Path) -> Path:
        """Copy a journal within its directory, because the journal contains relative paths."""
        from rhapsody.journal.store import make_directory, opened

        make_directory(path)
        file, name = tempfile.mkstemp(".preview", f".{path.stem}.", path.parent)
        os.close(file)
        self._copied = Path(name)
        if path.is_file():
            with opened(path) as journal:
                journal.copy(self._copied)
        else:
            self._copied.unlink()
        return self._copied

    def end(self) -> None:
        """Record the end of the run, and print how to continue a run that did not succeed.

        In a dry run, remove the copy of the journal.
        """
        journal = self.journal
        if self._arguments.dry_run:
            if journal is not None:
                with suppress(JournalError):
                    journal.end("failed")
            for each in self._copied.parent.glob(f"{self._copied.name}*") if self._copied else ():
                each.unlink(missing_ok=True)
            return
        if journal is None:
            return
        self.how = self.outcome
        unknown = [name for name in self._arguments.rerun if name not in journal.names]
        try:
            journal.end(self.how)
        except JournalError as error:
            complain(str(error))
            return
        for path, count in journal.copied.items():
            s = "" if count == 1 else "s"
            note(f"rhapsody: {count} result{s} reused from another run, in journal {path.name}")
        if unknown and self.how == "done":
            complain(f"--rerun {unknown[0]}: no task with this name was called")
        if self.how != "done" and (journal.kept or journal.taken):
            note("rhapsody: results are kept; run the same command again to continue")
