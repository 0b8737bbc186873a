"""The journal of `rhapsody run`: one for each program and its arguments."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.cli.output import complain, note
from rhapsody.cli.scripts import Program
from rhapsody.errors import JournalError
from rhapsody.plugins.specs import UsageError
from rhapsody.tracebacks import is_users_code

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal
    from rhapsody.plugins.specs import Summary

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
        help="run the tasks of this name again, even if their results are recorded; implies "
        "--resume: of the other tasks only those run that have changed or depend on a changed "
        "result; may be given several times",
    )


def resume_of(arguments: argparse.Namespace) -> bool | Literal["auto"]:
    """Whether results of the last run are used, see `WorkflowEngine.create`."""
    return False if arguments.fresh else True if arguments.resume else "auto"


def resumes(arguments: argparse.Namespace) -> bool:
    """Return whether results of the last run are used even if it succeeded."""
    rerun = arguments.rerun and not (arguments.fresh or arguments.no_journal)
    return bool(arguments.resume or rerun)


class Recording:
    """The journal of one run, which is opened for the first engine that names no other.

    Args:
        arguments: The command's.

    Attributes:
        how: How the run has ended, to be set where no signal ended it.
        summaries: Of its engines: one that has held tasks back has not ended well.
        preview: A copy of the journal, for a dry run that shows what would be reused.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.how: Literal["done", "failed", "interrupted"] = "interrupted"
        self.summaries: Sequence[Summary] = ()
        self.preview: Journal | None = None
        self._copied: Path | None = None
        self._arguments = arguments
        self._journal: Journal | None = None
        self._opened = self._told = False

    def settings(self, program: Program, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of an engine that say what it records and reuses.

        Args:
            program: What runs.
            given: The engine's settings.

        Raises:
            UsageError: The journal may not be used; the text says what to do.
        """
        arguments, journal = self._arguments, given.get("journal", True)
        if arguments.dry_run and resumes(arguments) and journal is True and not self._opened:
            self._opened = True
            self.preview = self._open(program, True)
            if self.preview is None:
                note("rhapsody: no earlier run with these arguments is recorded; everything runs")
        if arguments.dry_run or journal is None or journal is False:
            return {}
        if journal is True:
            if arguments.no_journal:
                return {"journal": None, "resume": "auto"}
            if not self._opened:
                self._opened = True
                self._journal = self._open(
                    program, given.get("resume", resumes(arguments) or resume_of(arguments))
                )
                self._announce()
            asked = "journal" in given and self._journal is None  # tells why it cannot be
            return {} if asked else {"journal": self._journal, "resume": "auto"}
        named = "resume" in given
        useless = {
            "--no-journal": arguments.no_journal,
            "--rerun": arguments.rerun,
            "--resume": arguments.resume and named,
            "--fresh": arguments.fresh and named,
        }
        if any(useless.values()) and not self._told:
            self._told = True
            options = " and ".join(name for name, asked in useless.items() if asked)
            complain(f"{options}: not for the journal that the program names, {journal}")
        return {} if named else {"resume": resume_of(arguments)}

    def _announce(self) -> None:
        """Says what of the last run is reused."""
        arguments, journal = self._arguments, self._journal
        if journal is None:
            return
        if resumes(arguments) and not journal.reused:
            note("rhapsody: no earlier run with these arguments is recorded; everything runs")
        if journal.reused and not arguments.quiet:
            results = "1 result" if journal.reused == 1 else f"{journal.reused} results"
            if journal.before in HOW:
                note(
                    f"rhapsody: the last run {HOW[journal.before]}, and what it has done is not "
                    f"done again ({results}); --fresh starts over"
                )
            else:
                note(f"rhapsody: reusing what has not changed since the last run ({results})")

    def _open(self, program: Program, resume: bool | Literal["auto"]) -> Journal | None:
        from rhapsody.journal.places import NotYoursError, journal_of_program
        from rhapsody.journal.plugin import Journal
        from rhapsody.journal.store import JournalInUseError

        arguments = self._arguments
        module = program.spec is not None
        try:
            path = journal_of_program(
                [program.path, *arguments.arguments], function=program.function
            )
            _check_names(arguments.rerun, program, path)
            if arguments.dry_run:
                if not path.is_file():
                    return None
                path = self._copy(path)
            path.parent.mkdir(0o775, parents=True, exist_ok=True)
            return Journal(
                path,
                Path.cwd() if module else Path(os.path.dirname(program.path)),
                resume=None if resume == "auto" else resume,
                shared=False,
                largest=LARGEST,
                again=arguments.rerun,
                push_down=True,
            )
        except (NotYoursError, JournalInUseError, OSError) as error:
            complain(f"this run is not recorded, and cannot be resumed: {error}")
        except JournalError as error:
            raise UsageError(f"{error}; or run without: --no-journal") from None
        return None

    def _copy(self, path: Path) -> Path:
        """Copy a journal into its own directory, because its paths are relative to that."""
        from rhapsody.journal.reading import opened

        with opened(path) as source:
            file, name = tempfile.mkstemp(".preview", f".{path.stem}.", path.parent)
            os.close(file)
            self._copied = Path(name)
            with closing(sqlite3.connect(name)) as target:
                source.backup(target)
        return self._copied

    def end(self) -> None:
        """Ends the run in the journal, and says how to go on where it has not ended well."""
        journal = self._journal
        if self.preview is not None:
            with suppress(JournalError):
                self.preview.end("failed")
        if self._copied is not None:
            for each in self._copied.parent.glob(f"{self._copied.name}*"):
                each.unlink(missing_ok=True)
        if journal is None:
            return
        if self.how == "done" and any(summary.held_back for summary in self.summaries):
            self.how = "failed"
        unknown = [name for name in self._arguments.rerun if name not in journal.names]
        try:
            journal.end(self.how)
        except JournalError as error:
            complain(str(error))
            return
        if unknown and self.how == "done":
            complain(f"--rerun {unknown[0]}: no task of that name was called")
        if self.how != "done" and (journal.kept or journal.taken):
            note("rhapsody: what is done is kept; the same command goes on from there")


def _check_names(wanted: Sequence[str], program: Program, path: Path) -> None:
    """Raise an error for `--rerun` with a name that no task can have, before anything runs.

    A name is known if it is in the journal, or if it is a word in the source of the program or of
    another module of the user that is loaded by now.

    Args:
        wanted: The names.
        program: The program.
        path: Its journal, which need not exist.

    Raises:
        UsageError: A name is not known.
        JournalError: The journal cannot be read.
    """
    if not wanted:
        return
    from rhapsody.journal.reading import names, opened

    known: list[str] = []
    if path.is_file():
        with opened(path) as database:
            known = names(database)
    words = set[str]()
    for file in {program.path, *map(_source_of, list(sys.modules.values()))} - {None}:
        with suppress(OSError):
            words.update(re.findall(r"[\w.-]+", Path(str(file)).read_text(errors="replace")))
    for name in wanted:
        parts = re.findall(r"[\w.-]+", name)
        if name not in known and not words.issuperset(parts):
            close = difflib.get_close_matches(name, [*known, *words], 1)
            there = f"; the journal contains {', '.join(sorted(known)[:20])}" if known else ""
            hint = f"; did you mean {close[0]}?" if close else there
            raise UsageError(f"--rerun {name}: no task of the program has that name{hint}")


def _source_of(module: object) -> str | None:
    """Return the file of a module, if it is the user's code."""
    file = getattr(module, "__file__", None)
    own = isinstance(file, str) and file.endswith(".py") and is_users_code(file)
    return file if own else None
