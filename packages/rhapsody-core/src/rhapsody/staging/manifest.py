"""Which results are in the sandboxes of an engine that has ended, for whoever removes the rest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from rhapsody.data import SavedFile

LIST = "results.json"
"""The file in an engine's directory that says so, where there are any."""


def write_list(files: Iterable[SavedFile], work_dir: Path) -> None:
    """Writes which of these, which are all there, are below the engine's directory."""
    listed = [
        {"path": str(file.path.relative_to(work_dir)), "task": file.task, "uid": file.uid}
        for file in files
        if file.path.is_relative_to(work_dir)
    ]
    if listed:
        with contextlib.suppress(OSError):  # a full disk keeps no engine from closing
            (work_dir / LIST).write_text(json.dumps(listed, indent=1), encoding="utf-8")


def read_list(work_dir: Path) -> set[str]:
    """The paths of results from an engine's directory, none where no list was written.

    Raises:
        ValueError: The list is broken.
        OSError: It cannot be read.
    """
    try:
        listed = json.loads((work_dir / LIST).read_text(encoding="utf-8"))
        return {str(each["path"]) for each in listed}
    except FileNotFoundError:
        return set()
    except (TypeError, KeyError) as error:
        raise ValueError(f"{work_dir / LIST} is no list of results") from error
