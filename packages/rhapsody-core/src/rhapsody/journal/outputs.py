"""The files that tasks make, as part of their results."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rhapsody.data import RESERVED
from rhapsody.journal.files import FileDigests
from rhapsody.journal.values import UnhashableError
from rhapsody.plugins.specs import TaskFiles


class Outputs:
    """Notes what tasks made, and finds it again where it has not changed.

    Paths are told relative to the journal's directory, so that it can be moved with the files.

    Args:
        directory: The journal's.
        digests: Makes digests of files.
    """

    def __init__(self, directory: Path, digests: FileDigests) -> None:
        self._directory = os.fspath(directory)
        self._digests = digests

    def noted(self, files: TaskFiles | None, *, named: bool) -> str | None:
        """What is kept of a task's files, as JSON; `None` where there are none.

        Args:
            files: What it made.
            named: Whether its result is, or holds, a path into its sandbox.

        Raises:
            UnhashableError: They cannot be had again in a later run.
        """
        if files is None:
            return None
        if files.shared and has_files(files.sandbox):
            raise UnhashableError(
                f"it left files in its sandbox and declares none, so that its dependents see them "
                f"all ({files.sandbox}); pass it an OutputFile for each that is needed"
            )
        if not (files.paths or named):
            return None
        kept = {}
        for name, path in files.paths.items():
            digest = self._digests.of_any(path) or self._digests.of_any(files.places.get(name, ""))
            if digest is None:
                raise UnhashableError(f"its output {name!r} cannot be read from here")
            # `of` looks once at what is a file, and has no digest of a directory.
            there = digest in (self._digests.of(path), self._digests.of(files.places.get(name, "")))
            kept[name] = {
                "path": self._told(path),
                "digest": digest.hex(),
                "directory": not there,
            }
            if name in files.places:
                kept[name]["place"] = self._told(files.places[name])
        noted = {
            "sandbox": self._told(files.sandbox),
            "named": named,
            "stays": files.stays,
            "matches": dict(files.matches),
            "files": kept,
        }
        return json.dumps(noted)

    def changed(self, former: str, made: str) -> dict[str, bytes]:
        """Return the former paths of files that a repeated attempt wrote with different content.

        Args:
            former: The record of the former attempt.
            made: The record of the repeated attempt.

        Returns:
            The former paths, each with the digest of the new file.
        """
        before, now = json.loads(former)["files"], json.loads(made)["files"]
        return {
            self._path(file[kind]): bytes.fromhex(now[name]["digest"]) if name in now else b""
            for name, file in before.items()
            if before.keys() != now.keys() or file["digest"] != now[name]["digest"]
            for kind in ("path", "place")
            if kind in file
        }

    def found(self, noted: str) -> TaskFiles | None:
        """What is there of a task's files.

        Returns:
            The files, which may be gone; `None` where one has changed, a directory is gone, or
            something of what the task's result names.
        """
        read = json.loads(noted)
        paths, places, gone = {}, {}, set()
        sandbox = self._path(read["sandbox"])
        if read["named"] and not os.path.isdir(sandbox):
            return None
        for name, file in read["files"].items():
            digest = bytes.fromhex(file["digest"])
            path, place = self._path(file["path"]), self._path(file.get("place", file["path"]))
            in_place = "place" in file and self._digests.of_any(place) == digest
            if os.path.lexists(path) and self._digests.of_any(path) == digest:
                paths[name] = path
            elif read["named"]:
                return None
            elif in_place:
                paths[name] = place
            elif file["directory"] or os.path.lexists(path):
                return None
            else:
                paths[name] = path
                gone.add(name)
                self._digests.gone[path] = digest
            if in_place:
                places[name] = place
        matches = {pattern: tuple(names) for pattern, names in read["matches"].items()}
        return TaskFiles(sandbox, paths, matches, places, stays=read["stays"], gone=frozenset(gone))

    def is_saved(self, noted: str, name: str) -> bool:
        """Return whether a file was copied to a destination outside the sandbox."""
        return "place" in json.loads(noted)["files"][name]

    def _told(self, path: str) -> str:
        return os.path.relpath(path, self._directory)

    def _path(self, told: str) -> str:
        return os.path.normpath(os.path.join(self._directory, told))


def has_files(sandbox: str) -> bool:
    """Whether a task left something in its sandbox besides what was put there for it."""
    own = os.path.basename(sandbox)
    try:
        with os.scandir(sandbox) as entries:
            return any(
                not (entry.is_symlink() or entry.name.startswith((RESERVED, f"{own}.")))
                for entry in entries
            )
    except OSError:  # it was never made
        return False
