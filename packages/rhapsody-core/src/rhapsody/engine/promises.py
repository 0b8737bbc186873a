"""Which call of an engine makes which file, so that naming the file is enough to depend on it.

A call promises its outputs when it is made, and reads what was promised by then: a later promise
of the same place is a new version, for later calls only. A file with a place is known by that
place, others by their names.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rhapsody.data import InputFile, Output, OutputDir, SavedFile
from rhapsody.task import TaskFuture

Producer = TaskFuture[Any]


class Promises:
    """The files that the calls of one engine have promised so far.

    Args:
        directory: `results_dir`, which places are relative to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._latest: dict[str, Producer] = {}

    def promise(self, future: Producer, outputs: Iterable[Output]) -> None:
        """Note what a call promises."""
        promised: dict[str, str | None] = {}
        for output in outputs:
            place = promised[output.filename] = self._place(output)
            if not getattr(output, "many", False):  # several calls may promise one pattern
                self._latest[place or output.filename] = future
        future._promised = promised
        future.add_done_callback(self._ended)

    def _place(self, output: Output) -> str | None:
        if not output.save:
            return None
        path = os.path.join(self._directory, output.save)
        if isinstance(output, OutputDir) or path.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, output.filename)
        return os.path.realpath(path)

    def _ended(self, future: Producer) -> None:
        """Let go of a result once it is there: the file outlives it."""
        if future.cancelled() or future._exception is not None:  # readers are to fail with it
            return
        stub: Producer = TaskFuture(loop=future.get_loop())
        stub._definition, stub._number = future._definition, future._number
        stub._attempt, stub._backend = future._attempt, future._backend
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
        """Return the files at the places of what calls promised and have not made.

        Args:
            saved: What this run has saved.
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
        """Return the calls that make the inputs of a new call, by the `id` of each input.

        A dependency that the user passes comes before other calls; of two such that promise the
        file there is none.
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
        return found

    def _producer(self, file: InputFile, passed: Mapping[str, Producer | None]) -> Producer | None:
        given = file.local_file or file.other_task_file or ""
        paths = {os.path.join(self._directory, given), str(file.expected_at)}
        keys = [os.path.realpath(path) for path in paths]
        if given == file.filename:
            keys.append(given)
        for key in keys:
            if key in passed:
                return passed[key]
        found = [self._latest[key] for key in keys if key in self._latest]
        return max(found, key=lambda future: future._number) if found else None


def _promised_by(dependencies: Iterable[asyncio.Future[Any]]) -> dict[str, Producer | None]:
    """Return who of some futures promises a place or a name; `None` where there are two."""
    found: dict[str, Producer | None] = {}
    for future in dependencies:
        if not isinstance(future, TaskFuture):
            continue
        promised: Mapping[str, str | None] = getattr(future, "_promised", {})
        for name, place in promised.items():
            for key in (name,) if place is None else (name, place):
                found[key] = None if key in found else future
    return found
