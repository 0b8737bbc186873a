"""Files of tasks: passed by path if the workers see them, otherwise sent and returned by content.

Links are only registered here. The worker creates them in the new sandbox when a task starts.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhapsody import DataError, TaskDescription
from rhapsody.sdk import (
    OUTPUT_FILES,
    RESERVED,
    copy_into,
    in_thread,
    link_into,
    make_sandbox,
    name_in_sandbox,
    plain_name,
)
from rhapsody_dask.worker.messages import pack_files, unpack_files
from rhapsody_dask.worker.site import sees

log: logging.Logger = logging.getLogger("rhapsody.dask")

Link = tuple[str, ...]
"""`("link", name, path)`, `("private", name, path)` for a copy, or `("undeclared", directory,
*left_out)` for copies of all other files in a sandbox.

The name may be a path relative to the sandbox.
"""


class ClusterLinks:
    """Links to create in the sandboxes of tasks that have not been submitted."""

    def __init__(self) -> None:
        self._links: dict[str, list[Link]] = {}

    def explicit(
        self,
        own: str,
        source: Any,
        target: Any,
        name: str | None,
        path: str | None,
        *,
        copy: bool = False,
    ) -> None:
        """Register one input file of a task.

        Args:
            own: The parent directory of sandboxes for which the engine has not chosen a path.
            source: The task that wrote the file, or `None` for an external file.
            target: The task that needs the file.
            name: The file's name in the sandbox.
            path: The path of an external file.
            copy: True if the task receives a copy that it may change.

        Raises:
            ValueError: Neither `path` nor both `source` and `name` are given.
            DataError: The file does not exist, or its name refers to a place outside the sandbox.
        """
        if path is not None:
            name = name or os.path.basename(path)
        elif source is not None and name is not None:
            path = os.path.join(source_of(source, own), name)
        else:
            raise ValueError(
                "link_explicit_data_deps requires either file_path, or both src_task and file_name"
            )
        path = os.path.abspath(path)
        if not os.path.exists(path):
            raise DataError(f"cannot link {name!r} for {target['uid']}: no such file: {path!r}")
        self._add(own, target, ("private" if copy else "link", name_in_sandbox(name), path))

    def implicit(self, own: str, source: Mapping[str, Any], target: Any) -> None:
        """Register all files that a task left in its sandbox."""
        left_out = source.get("left_out", ())
        self._add(own, target, ("undeclared", os.path.abspath(source_of(source, own)), *left_out))

    def _add(self, own: str, target: Any, link: Link) -> None:
        uid = target["uid"]
        self._links.setdefault(uid, []).append(link)
        target.setdefault("sandbox", os.path.join(own, uid))

    def take(self, uid: str) -> list[Link]:
        """Remove the links of a task and return them."""
        return self._links.pop(uid, [])


@dataclass(eq=False)
class View:
    """Cached checks of whether the workers see directories of this machine.

    Attributes:
        client: Dask's client.
        known: The answer for all directories, or `None` to check each directory.
    """

    client: Any
    known: bool | None
    _roots: dict[str, bool] = field(default_factory=dict)

    async def sees(self, directory: str) -> bool | None:
        """Check whether all workers see a directory.

        The check writes a file to the directory, or to the closest parent directory that exists.

        Returns:
            True if all workers see it, False if one does not, or `None` if there are no workers.
        """
        if self.known is not None:
            return self.known
        if directory not in self._roots:
            text = uuid.uuid4().hex
            path = await in_thread(lambda: _write(directory, text))
            try:
                answers = await self.client.run(sees, path, text, on_error="return")
            finally:
                await in_thread(lambda: Path(path).unlink(missing_ok=True))
            if not answers:
                return None
            self._roots[directory] = all(answer is True for answer in answers.values())
        return self._roots[directory]


def _write(directory: str, text: str) -> str:
    """Write text to a file in a directory or in a parent directory, and return the file's path."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    path = os.path.join(directory, f".rhapsody-{text}")
    Path(path).write_text(text, encoding="utf-8")
    return path


def content_of(links: list[Link]) -> tuple[bytes, list[str]]:
    """Return an archive of the files that a task receives, and the names of the linked ones.

    The worker does not return the linked files. It returns the others: the task may change its
    copies of them.
    """
    found: dict[str, str] = {}
    linked = []
    for kind, *words in links:
        if kind in ("link", "private"):
            found.setdefault(words[0], words[1])
            linked.append(words[0])
            continue
        for name, path in _undeclared(words[0], words[1:]):
            if found.setdefault(name, path) is path and _target_of(path) is not None:
                linked.append(name)
    packed, left_out = pack_files(found.items())
    log_left_out("input files not sent to a worker", left_out)
    return packed, list(dict.fromkeys(name.partition("/")[0] for name in linked))


def _undeclared(directory: str, left_out: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names and paths of the files that a task left in its sandbox."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:  # the task left no files
        return []
    names = [name for name in names if not name.startswith(RESERVED) and name not in left_out]
    return [(name, os.path.join(directory, name)) for name in names]


def _target_of(path: str) -> str | None:
    """Return the target of a link to a file elsewhere, such as an input; otherwise `None`."""
    if not (os.path.islink(path) and os.path.exists(path)):
        return None
    target = os.readlink(path)
    return target if os.path.isabs(target) else None


def log_left_out(what: str, names: Sequence[str]) -> None:
    """Log the names of files that were not sent."""
    if names:
        why = "dangling links, links out of the sandbox and pipes are not supported"
        log.warning("%s: %s; %s", what, ", ".join(names), why)


def write_back(task: TaskDescription, sandbox: str, packed: bytes, links: list[Link]) -> list[str]:
    """Create a task's sandbox on this machine from the returned files and the linked inputs.

    Returns:
        The names of declared outputs that the task did not write.
    """
    directory = make_sandbox(sandbox)
    unpack_files(packed, directory)
    for kind, *words in links:
        if kind == "link":
            link_into(directory, words[0], words[1])
            continue
        if kind == "private":
            copy_into(directory, words[0], words[1])
            continue
        for name, path in _undeclared(words[0], words[1:]):
            target = _target_of(path)
            if target is not None and not os.path.lexists(os.path.join(directory, name)):
                link_into(directory, name, target)
    if task.get("capture") == "files":
        task["stdout"], task["stderr"] = (os.path.join(directory, name) for name in OUTPUT_FILES)
    task["sandbox"] = directory
    declared = task["metadata"]["output_files"]
    return [name for name in declared if not os.path.exists(os.path.join(directory, name))]


def copy_out(task: Mapping[str, Any], own: str, name: str, path: Path) -> None:
    """Copy a file from a sandbox on this machine.

    Raises:
        DataError: The file does not exist, or its name refers to a place outside the sandbox.
    """
    source = os.path.join(source_of(task, own), plain_name(name))
    try:
        shutil.copyfile(source, path)
    except OSError as error:
        raise DataError(
            f"cannot copy {name!r} from the sandbox of {task['uid']}: {error}"
        ) from error


def source_of(task: Mapping[str, Any], own: str) -> str:
    """Return the path of a task's sandbox."""
    return task.get("sandbox") or os.path.join(own, task["uid"])
