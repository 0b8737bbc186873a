"""Journal of results that later runs can reuse: validation of its options.

This module is imported together with the engine. The rest of the package is imported when a journal
is opened.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from rhapsody.resources import memory_in_bytes

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal

JournalOption: TypeAlias = "Callable[[], Journal] | Journal | None"
"""Journal of an engine: a function that opens it; an open journal, which the engine does not close;
or `None` for no journal."""


def checked_journal(journal: object, resume: object, largest: object) -> JournalOption:
    """Check the journal options without opening or creating a journal.

    Args:
        journal: `True` for the program's own journal, the path of a journal, an open journal, or
            `None` or `False` for no journal.
        resume: The argument `resume` of `WorkflowEngine.create`.
        largest: The argument `journal_max_value` of `WorkflowEngine.create`.

    Returns:
        A function that opens the journal, the open journal that was passed, or `None` for no
        journal.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid.
    """
    if resume not in ("auto", True, False):
        raise ValueError(f'resume must be "auto", True or False, got {resume!r}')
    if largest is not None and not isinstance(largest, int | str):
        raise TypeError(
            f"journal_max_value must be a number of bytes or text such as '16 MiB', got {largest!r}"
        )
    limit = None if largest is None else memory_in_bytes(largest, "journal_max_value")
    if journal is None or journal is False:
        if resume is True:
            raise ValueError("resume=True needs a journal; pass journal=True as well")
        return None
    if hasattr(journal, "rhapsody_lookup_results"):
        return cast("Journal", journal)
    if journal is not True and not (
        isinstance(journal, str | os.PathLike) and isinstance(os.fspath(journal), str)
    ):
        raise TypeError(f"journal must be True, False or the path of a file, got {journal!r}")
    return partial(_opened, journal, None if resume == "auto" else bool(resume), limit)


def _opened(
    journal: Literal[True] | str | os.PathLike[str], resume: bool | None, largest: int | None
) -> Journal:
    from rhapsody.journal.others import other_journals
    from rhapsody.journal.plugin import Journal
    from rhapsody.journal.store import journal_of_program, make_directory

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
    return Path(os.path.dirname(os.path.realpath(file)))
