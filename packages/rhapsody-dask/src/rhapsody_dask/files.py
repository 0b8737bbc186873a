"""Files of tasks: passed by path if the workers see them, otherwise sent and returned by content.

Links are only registered here. The worker creates them in the new sandbox when a task starts.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rhapsody import DataError, TaskDescription
from rhapsody.sdk import OUTPUT_FILES, RESERVED, in_thread, make_sandbox, plain_name
from rhapsody_dask.worker.programs import pack_files, unpack_files

log: logging.Logger = logging.getLogger(__name__)

Link = tuple[str, ...]
"""`("link", name, path)` for one file, `("all", directory)` for all files in a directory."""


class Links:
    """Links to create in the sandboxes of tasks that have not been submitted."""

    def __init__(self) -> None:
        self._links: dict[str, list[Link]] = {}

    def explicit(
        self,
        own: str,
        source: Mapping[str, Any] | None,
        target: Any,
        name: str | None,
        path: str | None,
    ) -> None:
        """Register one input file of a task.

        Args:
            own: The parent directory of sandboxes for which the engine has not chosen a path.
            source: The task that wrote the file, or `None` for an external file.
            target: The task that needs the file.
            name: The file's name in the sandbox.
            path: The path of an external file.

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
        self._add(own, target, ("link", plain_name(name), path))

    def implicit(self, own: str, source: Mapping[str, Any], target: Any) -> None:
        """Register all files that a task left in its sandbox."""
        self._add(own, target, ("all", os.path.abspath(source_of(source, own))))

    def _add(self, own: str, target: Any, link: Link) -> None:
        uid = target["uid"]
        self._links.setdefault(uid, []).append(link)
        target.setdefault("sandbox", os.path.join(own, uid))

    def take(self, uid: str) -> list[Link]:
        """Remove the links of a task and return them."""
        return self._links.pop(uid, [])


class View:
    """Cached checks of whether the workers see directories of this machine.

    Args:
        client: Dask's client.
        known: The answer for all directories, or `None` to check each directory.
    """

    def __init__(self, client: Any, known: bool | None) -> None:
        self._client = client
        self._known = known
        self._roots: dict[str, bool] = {}

    async def sees(self, directory: str) -> bool | None:
        """Check whether all workers see a directory.

        The check writes a file to the directory, which it creates temporarily if necessary.

        Returns:
            True if all workers see it, False if one does not, or `None` if there are no workers.
        """
        if self._known is not None:
            return self._known
        if directory not in self._roots:
            answers = await self._look(directory)
            if not answers:
                return None
            self._roots[directory] = all(answer is True for answer in answers)
        return self._roots[directory]

    async def _look(self, directory: str) -> list[Any]:
        from rhapsody_dask.worker.site import sees

        text = uuid.uuid4().hex
        path = os.path.join(directory, f".rhapsody-{text}")
        created = await in_thread(lambda: _write(path, text))
        try:
            answers = await self._client.run(sees, path, text, on_error="return")
        finally:
            await in_thread(lambda: _remove(path, created))
        return list(answers.values())


def content_of(links: list[Link]) -> tuple[bytes, list[str]]:
    """Return an archive of a task's linked files, and the names of the files."""
    found: dict[str, str] = {}
    for kind, *words in links:
        if kind == "link":
            found.setdefault(words[0], words[1])
            continue
        with suppress(FileNotFoundError):  # the task left no files
            for name in sorted(os.listdir(words[0])):
                if not name.startswith(RESERVED):
                    found.setdefault(name, os.path.join(words[0], name))
    packed, left_out = pack_files(found.items())
    if left_out:
        log.warning(
            "input files not sent to a worker: %s; dangling links, pipes and sockets are not "
            "supported",
            ", ".join(left_out),
        )
    return packed, list(found)


def write_back(task: TaskDescription, sandbox: str, packed: bytes, links: list[Link]) -> list[str]:
    """Create a task's sandbox on this machine from the returned files and the linked inputs.

    Returns:
        The names of declared outputs that the task did not write.
    """
    from rhapsody.sdk import link_all, link_into

    directory = make_sandbox(sandbox)
    unpack_files(packed, directory)
    for kind, *words in links:
        if kind == "link":
            link_into(directory, words[0], words[1])
        else:
            link_all(words[0], directory)
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


def _write(path: str, text: str) -> list[str]:
    """Write a file, and return the directories that were created for it, deepest first."""
    created = []
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        created.append(directory)
        directory = os.path.dirname(directory)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return created


def _remove(path: str, created: list[str]) -> None:
    """Remove a file, and the directories that were created for it if they are empty."""
    with suppress(OSError):
        os.unlink(path)
    for directory in created:
        with suppress(OSError):
            os.rmdir(directory)
