"""Journals of `rhapsody run`: one for each combination of program and arguments."""

from __future__ import annotations

import logging
import os
import tempfile
import types
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.builtin.journal.import_hook import hook
from rhapsody.builtin.paths import directory_of_script
from rhapsody.errors import JournalError, describe_error
from rhapsody.plugins.manager import importing
from rhapsody.plugins.specs import (
    LookupTask,
    Outcome,
    Recorded,
    StartedRun,
    UsageError,
    hookimpl,
)

# The rest of the package is imported when a journal is opened: many scripts open none.
if TYPE_CHECKING:
    from rhapsody.builtin.journal.plugin import Journal

log: logging.Logger = logging.getLogger("rhapsody.journal")

MAX_RESULT_SIZE = 16 << 20
"""Maximum size in bytes of a recorded result. Larger results would slow down every run."""

END_PHRASES = {"killed": "was killed", "failed": "failed", "interrupted": "was interrupted"}
"""Phrases for messages about how a run ended."""


class JournalOfRun:
    """Journal of one run, opened for the first engine whose program does not specify another one.

    Args:
        run: The call of `rhapsody run`.

    Attributes:
        resumes: True if the results of the last run are reused even if that run succeeded.
        journal: The open journal, in a dry run a copy of it; `None` before it is opened.
    """

    def __init__(self, run: StartedRun) -> None:
        given = run.options
        self._run = run
        self._fresh: bool = given["fresh"]
        self._resume: bool = given["resume"]
        self._none: bool = given["no_journal"]
        self._rerun: Sequence[str] = given["rerun"] or ()
        self.resumes: bool = self._resume or bool(self._rerun and not (self._fresh or self._none))
        self.journal: Journal | None = None
        self._named: str | os.PathLike[str] | None = None  # by the command line or a profile
        self._max_value: int | None = MAX_RESULT_SIZE
        self._copied: Path | None = None
        self._others = 0  # number of other journals in which results are looked up
        self._opened = self._warned = False
        if not (self._none or (run.dry_run and not self.resumes)):
            hook.at_end = _note_values
            hook.install()

    def chosen(
        self, options: Mapping[str, Any], sources: Mapping[str, str]
    ) -> tuple[Any, bool | str]:
        """Return the values of `journal` and `resume` for an engine.

        Args:
            options: The engine's options.
            sources: Where the values come from; see `rhapsody_observers`.

        Raises:
            UsageError: The journal cannot be used.
        """
        given, named = "journal" in sources, "resume" in sources
        journal, asked = options["journal"] if given else True, options["resume"]
        resume = False if self._fresh else True if self._resume else "auto"
        if journal is None or journal is False:
            return False, "auto" if self._run.dry_run else asked
        of_program = journal is not True and sources.get("journal") == "program"
        if not (of_program or journal is True or self._opened):
            self._named, self._max_value = journal, options["journal_max_value"]
        of_run = not of_program and journal in (True, self._named)
        if self._run.dry_run:
            if of_run and self.resumes:
                self._open(True)
            return False, "auto"
        if self._none and not of_program:
            return False, "auto"
        if of_run:
            self._open(asked if named else self.resumes or resume)
            if self.journal is None:
                return (True, asked) if given else (False, "auto")  # the engine raises the error
            return self.journal, "auto"
        useless = {
            "--no-journal": self._none,
            "--rerun": self._rerun,
            "--resume": self._resume and named,
            "--fresh": self._fresh and named,
        }
        if any(useless.values()) and not self._warned:
            self._warned = True
            flags = " and ".join(name for name, value in useless.items() if value)
            self._complain(f"ignoring {flags}: the program uses its own journal, {journal}")
        return journal, asked if named else resume

    def _complain(self, text: str) -> None:
        self._run.note(f"rhapsody: {text}")

    def _open(self, resume: bool | str) -> None:
        """Open the journal on the first call, and print how many results it contains."""
        if self._opened:
            return
        self._opened = True
        self.journal = journal = self._make(resume)
        if journal is None and not self._run.dry_run:
            return
        if self.resumes and (journal is None or not (journal.reused or journal.outdated)):
            others, s = self._others, "" if self._others == 1 else "s"
            what = f"looking for results in {others} other journal{s}" if others else None
            self._complain(
                "no earlier run with these arguments is recorded; " + (what or "running all tasks")
            )
        elif journal is not None and journal.reused and not (self._run.quiet or self._run.dry_run):
            count, s = journal.reused, "" if journal.reused == 1 else "s"
            if journal.before in END_PHRASES:
                how = END_PHRASES[journal.before]
                self._complain(
                    f"the last run {how}; found {count} recorded result{s} (--fresh starts over)"
                )
            else:
                self._complain(f"found {count} recorded result{s}")

    def _make(self, resume: bool | str) -> Journal | None:
        from rhapsody.builtin.journal.others import other_journals
        from rhapsody.builtin.journal.plugin import Journal
        from rhapsody.builtin.journal.store import (
            JournalInUseError,
            NotYoursError,
            journal_of_program,
            make_directory,
        )

        run = self._run
        base = Path.cwd() if run.is_module else directory_of_script(run.path)
        others, is_named = list[Path](), self._named is not None
        try:
            if self._named is not None:
                path = Path(os.path.abspath(self._named))
            else:
                path = journal_of_program([run.path, *run.arguments], function=run.function)
                others = other_journals(path, base) if resume is True else []
            self._others = len(others)
            if run.dry_run:
                if not path.is_file() and not others:
                    return None
                path = self._copy(path)
            elif not is_named:
                make_directory(path)
            return Journal(
                path,
                base,
                resume=None if resume == "auto" else bool(resume),
                shared=is_named,
                largest=self._max_value,
                again=self._rerun,
                others=others,
                push_down=not is_named,
            )
        except (NotYoursError, JournalInUseError, OSError) as error:
            if is_named:
                raise UsageError(str(error)) from None
            self._complain(f"this run is not recorded, and cannot be resumed: {error}")
        except JournalError as error:
            raise UsageError(f"{error}. To run without a journal, pass --no-journal") from None
        return None

    def _copy(self, path: Path) -> Path:
        """Copy a journal within its directory, because the journal contains relative paths."""
        from rhapsody.builtin.journal.store import make_directory, opened

        if self._named is None:
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

    @hookimpl
    def rhapsody_preview_results(
        self, tasks: Sequence[LookupTask]
    ) -> Awaitable[Sequence[tuple[Recorded | None, str]] | None] | None:
        """Look up results in the copy of the journal, for a dry run."""
        return None if self.journal is None else self.journal.preview(tasks)

    def end(self, outcome: Outcome) -> None:
        """Record the end of the run, and print how to continue a run that did not succeed.

        In a dry run, remove the copy of the journal.
        """
        journal, hook.at_end = self.journal, None
        if self._run.dry_run:
            if journal is not None:
                with suppress(JournalError):
                    journal.end("failed")
            for each in self._copied.parent.glob(f"{self._copied.name}*") if self._copied else ():
                each.unlink(missing_ok=True)
            return
        if journal is None:
            return
        unknown = [name for name in self._rerun if name not in journal.names]
        try:
            journal.end(outcome)
        except JournalError as error:
            self._complain(str(error))
            return
        for path, count in journal.copied.items():
            s = "" if count == 1 else "s"
            self._complain(f"{count} result{s} reused from another run, in journal {path.name}")
        if unknown and outcome == "done":
            self._complain(f"--rerun {unknown[0]}: no task with this name was called")
        if outcome != "done" and (journal.kept or journal.taken):
            self._complain("results are kept; run the same command again to continue")
        elif outcome == "done" and journal.failed and not (self._run.quiet or self.resumes):
            s = "" if journal.failed == 1 else "s"
            self._complain(f"to run only the failed task{s} again, add --resume")


def _note_values(module: types.ModuleType) -> None:
    """Note the values of a module's variables; see `rhapsody.builtin.journal.as_imported`."""
    with importing(__name__):
        from rhapsody.builtin.journal.as_imported import VALUES
    try:
        VALUES.note(module)
    except Exception as error:  # any error raised by an object that is inspected
        log.warning(
            "module %r cannot be inspected completely, so results of tasks that read its variables "
            "may not be shared between threads and workers: %s",
            module.__name__, describe_error(error),
        )  # fmt: skip
