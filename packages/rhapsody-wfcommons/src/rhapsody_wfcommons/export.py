"""Export of a run's record as an instance: `rhapsody export RUN --format wfcommons`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rhapsody.sdk import describe_error
from rhapsody_wfcommons.instance import Instance, RecordedFile, RecordedMachine
from rhapsody_wfcommons.runs import FileIds, TaskData, instance_of
from rhapsody_wfcommons.values import InstanceError
from rhapsody_wfcommons.writing import write

SYSTEMS = {"linux": "linux", "macos": "macos", "darwin": "macos"}
"""Name of the operating system in the format, by the first word of the record's `platform`."""


def export(record: Path, output: Path) -> None:
    """Write a record as an instance.

    Args:
        record: The path of the record.
        output: The path of the file to write.

    Raises:
        InstanceError: No task has run, or the record contains values of wrong types.
        OSError: The record cannot be read, or the file cannot be written.
    """
    try:
        instance = _instance(record)
        if instance is None:
            raise InstanceError(f"{record}: no task has run")
        write(instance, output)
    except InstanceError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InstanceError(f"{record}: the record is damaged: {describe_error(error)}") from None


def _instance(record: Path) -> Instance | None:
    """Return the instance of a record; `None` if no task has run."""
    reading = _Reading()
    for line in _lines(record):
        reading.take(line)
    program, cores = reading.about, sum(reading.cores.values())
    return instance_of(
        reading.runs,
        program=program.get("program", ""),
        machine=RecordedMachine(
            name=program.get("host") or "localhost",
            system=SYSTEMS.get(program.get("platform", "").partition("-")[0].lower()),
            cores=int(cores) or None,
        ),
        version=program.get("packages", {}).get("rhapsody-core", "unknown"),
    )


def _lines(record: Path) -> Iterator[dict[str, Any]]:
    with open(record, "rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:  # incomplete, because the process was killed
                continue
            if isinstance(found, dict):
                yield found


class _Reading:
    """Data of the lines read so far.

    Attributes:
        about: The line about the process.
        runs: The tasks by id: their uids, after the uid of any engine but the first.
        cores: The cores of the local backends, by engine and name.
    """

    def __init__(self) -> None:
        self.about: Mapping[str, Any] = {}
        self.runs: dict[str, TaskData] = {}
        self.cores: dict[tuple[str, str], float] = {}
        self._local: set[tuple[str, str]] = set()
        self._first: str | None = None
        self._ids = FileIds()
        self._saved: dict[str, str] = {}  # where outputs were saved, by their path in the sandbox

    def take(self, line: Mapping[str, Any]) -> None:
        """Take over the data of a line."""
        match line.get("event"):
            case "run":
                self.about = line
            case "engine":
                self._engine(line)
            case "call" if line.get("kind") != "block":
                if not line.get("settings", {}).get("service"):
                    self._call(line)
            case "end":
                self._end(line)

    def _engine(self, line: Mapping[str, Any]) -> None:
        if self._first is None:
            self._first = line["uid"]
        for backend in line.get("backends", ()):
            if backend.get("class", "").endswith(".LocalExecutionBackend"):
                place = line["uid"], backend["name"]
                self._local.add(place)
                self.cores[place] = backend.get("cores", 0)

    def _id(self, line: Mapping[str, Any], uid: str) -> str:
        engine = line.get("engine", self._first)
        return uid if engine == self._first else f"{engine}.{uid}"

    def _call(self, line: Mapping[str, Any]) -> None:
        self.runs[self._id(line, line["uid"])] = TaskData(
            name=line["name"],
            parents=[self._id(line, uid) for uid in line.get("dependencies", ())],
            cores=_cores(line),
        )

    def _end(self, line: Mapping[str, Any]) -> None:
        run = self.runs.get(self._id(line, line["uid"]))
        done, begin = line["state"] == "DONE", line.get("started")
        if run is None or line.get("reused") or not (done or line["state"] == "FAILED"):
            return
        if begin is None and done:
            begin = line.get("submitted")
        if begin is None or "ended" not in line:  # the work has not started
            return
        run.begin, run.end = begin, line["ended"]
        run.local = (line.get("engine", self._first), line.get("backend")) in self._local
        if "resources" in line:
            run.cores = _cores(line)
        run.outputs = self._files(line.get("outputs", ()))
        for file in line.get("outputs", ()):
            if "sandbox" in line and "path" in file:
                self._saved[os.path.join(line["sandbox"], file["name"])] = file["path"]
        run.inputs = self._files(line.get("inputs", ()))

    def _files(self, files: Any) -> dict[str, RecordedFile]:
        found = {}
        for file in files:
            name, path = file["name"], file.get("path", file["name"])
            uid = self._ids.of(self._saved.get(path, path), name)
            found[name] = RecordedFile(uid, file.get("size"))
        return found


def _cores(line: Mapping[str, Any]) -> float:
    resources = line.get("resources", {})
    found: float = resources.get("cores", 1) * resources.get("ranks", 1)
    return found
