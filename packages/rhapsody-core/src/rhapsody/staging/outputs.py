"""What a task left in its sandbox: the files it promised, and those that its result names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.data import File, OutputFile, SavedFile
from rhapsody.errors import DataError
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend


def check_outputs(
    task: TaskDescription,
    outputs: Sequence[OutputFile],
    backend: BaseExecutionBackend | None = None,
) -> None:
    """Makes sure that a successful attempt wrote what it promised.

    Sandboxes that are not on this file system are the backend's to check.

    Args:
        task: The attempt's description.
        outputs: The output files among its arguments.
        backend: The backend that ran it.

    Raises:
        DataError: Files are missing, or are links that lead out of the sandbox.
    """
    if not outputs:
        return
    place = task.get("sandbox", "")
    sandbox = os.path.realpath(place)
    shared = backend is None or backend.capabilities.shared_file_system
    if not shared and not os.path.isdir(sandbox):
        return
    missing = []
    for name in dict.fromkeys(output.filename for output in outputs):
        real = os.path.realpath(os.path.join(sandbox, name))
        if not real.startswith(sandbox + os.sep):
            raise DataError(
                f"task {task['name']!r}: its output file {name!r} is a link that leaves the "
                f"sandbox, to {real!r}; write the file itself"
            )
        if not os.path.exists(real):
            missing.append(name)
    if missing:
        raise DataError(
            f"task {task['name']!r} promised and did not write "
            f"{', '.join(map(repr, missing))} in {place!r}"
        )


def without_place(
    task: TaskDescription, sandbox: str, outputs: Sequence[OutputFile]
) -> dict[str, SavedFile]:
    """The files of an attempt for which nobody said a place, by their names."""
    uid = future_uid(task)
    return {
        output.filename: SavedFile(Path(sandbox, output.filename), task["name"], uid)
        for output in outputs
        if output.save is None
    }


def future_uid(task: Mapping[str, Any]) -> str:
    """The uid of the future that an attempt is for, `task.000001`."""
    return ".".join(task["uid"].split(".")[-3:-1])


def leads_into(value: object, sandbox: str | None) -> bool:
    """Whether a result is a path into a sandbox, or a collection with one in it."""
    if sandbox is None:
        return False
    try:
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if isinstance(value, list | tuple | set | frozenset):
            return any(_is_path_into(item, sandbox) for item in value)
        return _is_path_into(value, sandbox)
    except BaseException:  # the result's own code; what cannot be looked into leads nowhere
        return False


def _is_path_into(value: object, sandbox: str) -> bool:
    if isinstance(value, File):
        value = value.filepath
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return isinstance(value, str) and (value == sandbox or value.startswith(sandbox + os.sep))
