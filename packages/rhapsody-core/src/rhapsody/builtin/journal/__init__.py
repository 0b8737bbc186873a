"""Plugin that keeps the results of tasks for later runs: the journal.

It implements the engine options `journal`, `resume` and `journal_max_value`, options of `rhapsody
run`, and the command `rhapsody journal`. This module is imported together with the engine; the rest
of the package is imported when a journal is opened.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.builtin.paths import directory_of_script, require_directory
from rhapsody.errors import JournalError
from rhapsody.plugins.specs import (
    CommandLine,
    CommandOption,
    EngineOption,
    Outcome,
    StartedRun,
    Summary,
    UsageError,
    hookimpl,
)
from rhapsody.resources import memory_in_bytes

if TYPE_CHECKING:
    import argparse

    from rhapsody.builtin.journal.plugin import Journal
    from rhapsody.builtin.journal.run import JournalOfRun

log: logging.Logger = logging.getLogger("rhapsody.journal")

_run: JournalOfRun | None = None
"""The journal of the `rhapsody run` in this process, if there is one."""


def _checked_journal(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str):
        require_directory("journal", Path(value))
        return value
    raise TypeError(f"journal must be True, False or the path of a file, got {value!r}")


def _checked_resume(value: object) -> object:
    if value not in ("auto", True, False):
        raise ValueError(f'resume must be "auto", True or False, got {value!r}')
    return value


def _checked_limit(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int | str):
        raise TypeError(
            f"journal_max_value must be a number of bytes or text such as '16 MiB', got {value!r}"
        )
    return memory_in_bytes(value, "journal_max_value")


@hookimpl
def rhapsody_engine_options() -> Sequence[EngineOption]:
    """Declare the options of engines."""
    return [
        EngineOption(
            name="journal",
            default=False,
            help="File that stores results for `resume`, or `True` for the default file of this "
            "program and its arguments, `.rhapsody/journals/<program>-<digits>.sqlite`. Only the "
            "user can access the file. On a local file system, several engines can use it at the "
            "same time.",
            check=_checked_journal,
            is_path=True,
            in_runs=True,
        ),
        EngineOption(
            name="resume",
            default="auto",
            help="Reuse the results in the journal instead of running the same tasks again; with "
            '`"auto"`, only if the last run with this journal did not succeed.',
            check=_checked_resume,
            instead_of_flag="use --resume or --fresh",
            instead_of_key="use rhapsody run --resume, or set it in the program",
        ),
        EngineOption(
            name="journal_max_value",
            help="Size limit of a result in the journal, in bytes or as text such as "
            '`"16 MiB"`. It applies to the pickled result and to the object in memory, as measured '
            "by `sys.getsizeof`. Larger results are not recorded. Default: no limit.",
            check=_checked_limit,
        ),
    ]


@hookimpl
def rhapsody_observers(
    engine_options: Mapping[str, Any], sources: Mapping[str, str]
) -> Sequence[object] | None:
    """Open the journal of an engine, or add that of the run.

    Returns:
        The journal, and an observer that ends it with the engine.

    Raises:
        JournalError: The journal cannot be used.
        UsageError: The options contradict each other.
    """
    journal, resume = engine_options["journal"], engine_options["resume"]
    if _run is not None:
        journal, resume = _run.chosen(engine_options, sources)
    if journal is None or journal is False:
        if resume is True:
            raise UsageError("resume=True needs a journal; pass journal=True as well")
        return None
    if engine_options["dry_run"]:
        return None
    if _run is not None and journal is _run.journal:
        return [journal]
    limit = engine_options["journal_max_value"]
    opened = _opened(journal, None if resume == "auto" else bool(resume), limit)
    return [opened, _End(opened)]


class _End:
    """Observer that ends the journal of one engine."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @hookimpl(trylast=True)
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """End the journal with the outcome of the run."""
        self._end(summary.outcome)

    @hookimpl
    def rhapsody_workflow_not_started(self) -> None:
        """End the journal of an engine that could not be started."""
        self._end("failed")

    def _end(self, outcome: Outcome) -> None:
        try:
            self._journal.end(outcome)
        except JournalError as error:  # the results themselves have been recorded
            log.error("%s", error)


def _opened(
    journal: Literal[True] | str | os.PathLike[str], resume: bool | None, largest: int | None
) -> Journal:
    from rhapsody.builtin.journal.others import other_journals
    from rhapsody.builtin.journal.plugin import Journal
    from rhapsody.builtin.journal.store import journal_of_program, make_directory

    program, others = _program_directory(), list[Path]()
    if journal is True:
        path = journal_of_program()
        if resume is True:
            others = other_journals(path, program)
        make_directory(path)
    else:
        path = Path(os.path.abspath(journal))
    return Journal(path, program, resume=resume, largest=largest, others=others)


def _program_directory() -> Path:
    """Return the directory of the program's script.

    At a prompt, and for a module that was started with `python -m`, return the current directory.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return Path.cwd()
    return directory_of_script(file)


# The command line.


@hookimpl
def rhapsody_run_options() -> Sequence[CommandOption]:
    """Declare the options of `rhapsody run`."""
    flags = {
        "fresh": "run all tasks (default: resume the last run if it failed or was interrupted)",
        "resume": "reuse the valid results of the last run, even if that run succeeded",
        "no_journal": "neither reuse nor record results",
    }
    return [
        *(
            CommandOption(name, bool, text, group="journal", in_profiles=False)
            for name, text in flags.items()
        ),
        CommandOption(
            "rerun",
            list[str],
            "like --resume, but run all tasks with this name; may be repeated",
            "NAME",
            in_profiles=False,
        ),
    ]


@hookimpl
def rhapsody_run_started(run: StartedRun) -> AbstractContextManager[object] | None:
    """Use one journal for the engines of the run."""
    global _run
    from rhapsody.builtin.journal.run import JournalOfRun

    _run = JournalOfRun(run)
    return _preview(_run) if run.dry_run and _run.resumes else None


@contextmanager
def _preview(run: JournalOfRun) -> Iterator[object]:
    yield run


@hookimpl(trylast=True)
def rhapsody_run_ended(outcome: Outcome) -> None:
    """End the journal of the run."""
    global _run
    run, _run = _run, None
    if run is not None:
        run.end(outcome)


@hookimpl
def rhapsody_commands(cli: CommandLine) -> None:
    """Add the command `rhapsody journal`."""

    def configure(parser: argparse.ArgumentParser) -> None:
        from rhapsody.builtin.journal import command

        command.configure(parser)

    def run(arguments: argparse.Namespace) -> int:
        from rhapsody.builtin.journal import command

        return command.run(arguments)

    text = "inspect, prune or verify the recorded results of runs"
    cli.add_command("journal", text, configure, run)
