"""`rhapsody journal`: shows, prunes and verifies journals, and explains the last run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rhapsody.builtin.journal.run import END_PHRASES
from rhapsody.errors import JournalError
from rhapsody.masking import escaped, mask
from rhapsody.plugins.specs import UsageError
from rhapsody.resources import seconds, size_text

DONE, FAILED = 0, 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "what",
        choices=("show", "explain", "prune", "verify"),
        help="show: list journals and their runs; explain: print why each task of the last run ran "
        "or was reused; prune: remove results that no run can reuse; verify: check for damage",
    )
    text = "for explain: the name, uid or number of a task (default: all tasks)"
    parser.add_argument("task", nargs="?", metavar="TASK", help=text)
    text = "the journal (default: all in .rhapsody/journals; for explain, the one used last)"
    parser.add_argument("-j", "--journal", metavar="FILE", help=text)
    text = "for prune: also remove journals that have not been used for this long, such as 30d"
    parser.add_argument("--older", metavar="AGE", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand that the arguments name.

    Returns:
        The exit code.

    Raises:
        UsageError: A journal cannot be read, or an argument is invalid.
    """
    if arguments.what != "explain" and arguments.task is not None:
        raise UsageError(f"unexpected argument {arguments.task!r}: only explain takes a task")
    found = _journals(arguments.journal)
    if not found:
        say(f"no journals in {_directory()}")
        return DONE
    try:
        if arguments.what == "explain":
            _explain(found[-1], arguments.task)
        elif arguments.what == "prune":
            return _prune(found, arguments.older)
        else:
            look = _show if arguments.what == "show" else _verify
            return max(look(path) for path in found)
    except JournalError as error:
        raise UsageError(str(error)) from None
    return DONE


def _directory() -> Path:
    from rhapsody.builtin.journal.store import DIRECTORY
    from rhapsody.history.selection import runs_directory

    return runs_directory() / DIRECTORY


def _journals(given: str | None) -> list[Path]:
    """Return the path `given` or, if it is `None`, all journals in the order of their last use."""
    if given is not None:
        return [Path(os.path.abspath(given))]
    return sorted(_directory().glob("*.sqlite"), key=lambda path: path.lstat().st_mtime)


def _show(path: Path) -> int:
    from rhapsody.builtin.journal.store import opened

    with opened(path) as journal:
        known = journal.runs()
    say(f"{os.path.relpath(path)}  {size_text(path.stat().st_size)}")
    rows = [
        ("RUN", "STARTED", "ENDED", "RECORDED", "REUSED"),
        *(
            (
                str(each.number),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.began)),
                each.how or "running or killed",
                str(each.kept),
                str(each.reused),
            )
            for each in known
        ),
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(f"  {'  '.join(cells)}".rstrip())
    return DONE


def _explain(path: Path, task: str | None) -> None:
    from rhapsody.builtin.journal.store import opened

    with opened(path) as journal:
        found, how = journal.explain(task), journal.runs()[-1].how
    for each in found:
        call = f"{each.name} ({each.uid})" if each.uid else each.name
        say(f"{call}  {each.what}")
    if how in END_PHRASES:
        note(f"the last run {END_PHRASES[how]}: tasks that failed or did not run are not listed")


def _prune(found: list[Path], older: str | None) -> int:
    from rhapsody.builtin.journal.store import Store

    before = None if older is None else time.time() - _age(older)
    code, freed, removed = DONE, 0, 0
    for path in found:
        about = path.lstat()  # a link that leads nowhere is reported below
        try:
            if before is not None and about.st_mtime < before:
                Store.remove(path)
                freed, removed = freed + about.st_size, removed + 1
            else:
                Store(path, shared=False).prune()
                freed += about.st_size - path.stat().st_size
        except JournalError as error:
            complain(str(error))
            code = FAILED
    say(f"removed {removed} journal{'s' * (removed != 1)}, {size_text(max(0, freed))}")
    return code


def _verify(path: Path) -> int:
    from rhapsody.builtin.journal.store import opened

    with opened(path) as journal:
        found = journal.damage()
    for each in found:
        complain(f"{os.path.relpath(path)}: damaged: {each}")
    if not found:
        say(f"{os.path.relpath(path)}  no damage found")
    return FAILED if found else DONE


def _age(text: str) -> float:
    try:
        return seconds("--older", text, zero=True)
    except ValueError as error:
        raise UsageError(str(error)) from None


def say(text: str) -> None:
    """Write a line to standard output."""
    print(escaped(text))  # noqa: T201 - the command's output


def note(text: str) -> None:
    """Write a line to standard error."""
    print(escaped(mask(text)), file=sys.stderr)  # noqa: T201 - the command's output


def complain(text: str) -> None:
    """Write an error to standard error."""
    note(f"rhapsody: {text}")
