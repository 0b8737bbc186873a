"""Promised files of an engine's calls, which make the dependencies of later `InputFile`s.

A call promises its outputs when it is made, and reads files that were promised before: a later
promise of the same destination is a new version, for later calls only. A file with a destination is
identified by that destination, other files by their names.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody.data import InputFile, Output, OutputDir, SavedFile
from rhapsody.errors import DataError
from rhapsody.staging.files import Stager
from rhapsody.staging.fsutil import RealPaths
from rhapsody.task import TaskFuture

Producer = TaskFuture[Any]
Producers = Mapping[int, Producer]
"""Producers of a call's inputs, by the `id` of each input."""


@dataclasses.dataclass(slots=True)
class _Temporary:
    """A temporary file.

    Attributes:
        unfinished: How many of its readers have not ended.
        needed: Whether it is kept for the next run, because a reader failed or was cancelled.
        removed: Whether it has been removed.
    """

    unfinished: int = 0
    needed: bool = False
    removed: bool = False


class Promises:
    """Files that the calls of one engine have promised so far.

    Args:
        stager: Has the directory that destinations are relative to, and removes files.
    """

    def __init__(self, stager: Stager) -> None:
        self._stager = stager
        self._directory = stager.results.directory
        self._real = RealPaths()
        self._latest: dict[str, Producer] = {}
        self._temporary: dict[tuple[int, str], _Temporary] = {}  # by task and name

    def promise(self, future: Producer, outputs: Iterable[Output]) -> None:
        """Record the files that a call promises."""
        promised: dict[str, str | None] = {}
        for output in outputs:
            place = promised[output.filename] = self._place(output)
            if not output.many:  # several calls may promise one pattern
                self._latest[place or output.filename] = future
            if output.temporary:
                self._temporary[future._number, output.filename] = _Temporary()
        future._promised = promised
        future.add_done_callback(self._ended)

    def _place(self, output: Output) -> str | None:
        if not output.save:
            return None
        path = os.path.join(self._directory, output.save)
        if isinstance(output, OutputDir) or path.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, output.filename)
        return self._real.of(os.path.normpath(path))

    def _ended(self, future: Producer) -> None:
        """Release the result of a finished call, whose files outlive it."""
        if future.cancelled() or future._exception is not None:  # readers must fail with it
            return
        stub: Producer = TaskFuture(loop=future.get_loop())
        stub._definition, stub._number = future._definition, future._number
        stub._uid, stub._backend = future._uid, future._backend
        stub._node = None
        stub._promised = future._promised
        outcome = future._outcome
        if outcome is not None:
            outcome = dataclasses.replace(outcome, stdout=None, stderr=None, keeper=None)
        stub._outcome = outcome
        stub.set_result(None)
        for name, place in future._promised.items():
            if self._latest.get(place or name) is future:
                self._latest[place or name] = stub

    def stale(self, saved: Iterable[SavedFile]) -> list[SavedFile]:
        """Return existing files at the destinations of promised files that were not saved.

        Args:
            saved: The files that this run has saved.
        """
        fresh = {str(file.path) for file in saved}
        found = []
        for place, future in self._latest.items():
            failed = future.cancelled() or (future.done() and future._exception is not None)
            if failed and os.path.isabs(place) and os.path.lexists(place) and place not in fresh:
                found.append(SavedFile(Path(place), future.name, future.uid))
        return found

    def producers(
        self, inputs: Iterable[InputFile], dependencies: Iterable[asyncio.Future[Any]]
    ) -> dict[int, Producer]:
        """Return the producers of a new call's inputs, by the `id` of each input.

        A dependency that the user passes takes precedence over other calls. If two of them promise
        the file, there is no producer.

        Raises:
            DataError: An input is a temporary file that was removed.
        """
        passed: dict[str, Producer | None] | None = None
        found: dict[int, Producer] = {}
        for file in inputs:
            producer = file._producer
            if producer is None and file.remote_url is None:
                if passed is None:
                    passed = _promised_by(dependencies)
                if passed or self._latest:
                    producer = self._producer(file, passed)
            if producer is not None:
                found[id(file)] = producer
                temporary = self._temporary.get((producer._number, file.filename))
                if temporary is not None and temporary.removed:
                    raise DataError(
                        f"temporary file {file.filename!r} of {producer.name!r} ({producer.uid}) "
                        "was removed after its last reader: call all its readers before you "
                        "await one, or leave out temporary=True"
                    )
        return found

    def read(self, reader: Producer, inputs: Iterable[InputFile], made_by: Producers) -> None:
        """Count a new call among the readers of temporary files."""
        for file in inputs if self._temporary else ():
            producer = made_by.get(id(file))
            if producer is not None:
                temporary = self._temporary.get((producer._number, file.filename))
                if temporary is not None:
                    temporary.unfinished += 1
                    done = partial(self._has_read, temporary, producer, file.filename)
                    reader.add_done_callback(done)

    def _has_read(
        self, temporary: _Temporary, producer: Producer, name: str, reader: Producer
    ) -> None:
        temporary.unfinished -= 1
        if reader.cancelled() or reader._exception is not None:
            temporary.needed = True  # the next run may run this reader
        outcome = producer._outcome
        if not (temporary.unfinished or temporary.needed) and outcome is not None:
            temporary.removed = self._stager.discard(outcome.path_of(name)) or temporary.removed

    def _producer(self, file: InputFile, passed: Mapping[str, Producer | None]) -> Producer | None:
        given = file.local_file or file.other_task_file or ""
        paths = {os.path.join(self._directory, given), str(file.expected_at)}
        keys = [self._real.of(os.path.normpath(path)) for path in paths]
        if given == file.filename:
            keys.append(given)
        for key in keys:
            if key in passed:
                return passed[key]
        found = [self._latest[key] for key in keys if key in self._latest]
        return max(found, key=lambda future: future._number) if found else None


def _promised_by(dependencies: Iterable[asyncio.Future[Any]]) -> dict[str, Producer | None]:
    """Return the future that promises a destination or a name, `None` if there are two."""
    found: dict[str, Producer | None] = {}
    for future in dependencies:
        if not isinstance(future, TaskFuture):
            continue
        promised: Mapping[str, str | None] = getattr(future, "_promised", {})
        for name, place in promised.items():
            for key in (name,) if place is None else (name, place):
                found[key] = None if key in found else future
    return found
