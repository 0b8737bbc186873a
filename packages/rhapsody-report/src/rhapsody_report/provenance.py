"""Export of a record as an RO-Crate, so that a run can be published and cited.

The crate follows the Workflow Run RO-Crate profiles, version 0.5, on RO-Crate 1.1. They are three
levels: Process, Workflow and Provenance Run Crate. The higher ones must contain the program. A
record does not contain it, so it is taken from its path if it has not been modified since the run
began. Otherwise, the crate is a Process Run Crate, which describes the same actions.

The run is one action, and each attempt that has started is another one. So is each task whose
result was reused from an earlier run; its action has no times. Files are referenced by their paths.
Digests and copies are made only of files that have the recorded size and have not been modified
since the run, and copies only of files in the directories of the run. The record of another user
names only files of that user for this purpose.
"""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import os
import shlex
import stat
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from rocrate.model import ComputerLanguage, ContextEntity, DataEntity, Preview
from rocrate.rocrate import ROCrate

from rhapsody import TasksMainStates
from rhapsody.history import counts_of, counts_text, last_time, other_owner, program_of

if TYPE_CHECKING:
    from rhapsody.history import Attempt, FileRecord, RunHistory, TaskRun

__all__ = ["Files", "ro_crate"]

log: logging.Logger = logging.getLogger("rhapsody.report")

Files = Literal["reference", "digest", "copy"]
"""Treatment of data files: reference them, also compute digests, or also copy them."""

_PROCESS = {"https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate"}
_WITH_PROGRAM = {
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"
_STATUS = {
    "done": "http://schema.org/CompletedActionStatus",
    "failed": "http://schema.org/FailedActionStatus",
}


def ro_crate(history: RunHistory, *, license: str | None = None, files: Files = "digest") -> Any:
    """Return a run as a crate of the library `rocrate`, which can be written.

    The crate has a `mainEntity` if it contains the program.

    Args:
        history: The content of the record.
        license: The license of the crate, as URL or text. The profiles require one; if it is
            `None`, the crate states that no license is specified.
        files: The treatment of data files.

    Raises:
        OSError: A file cannot be read.
    """
    return _Export(history, license, files).crate


class _Export:
    """Conversion of one record into a crate."""

    def __init__(self, history: RunHistory, license: str | None, files: Files) -> None:
        self.crate = ROCrate(version="1.1")
        self.crate.add(_Preview(self.crate))
        self.crate.metadata.extra_terms["sha256"] = _SHA256
        self._history, self._run, self._files = history, history.run, files
        self._until = last_time(history)
        self._owner = other_owner(self._run.path)
        self._places = [os.path.realpath(place) for place in _directories(history)]
        self._left: list[str] = []
        self._data: dict[str, Any] = {}  # entities of files, by path
        # A task reads a file in the sandbox of the task that wrote it, which is saved elsewhere.
        self._saved: dict[str, FileRecord] = {
            os.path.join(attempt.sandbox, file.name): file
            for task in history.tasks.values()
            for attempt in task.attempts
            if attempt.sandbox is not None
            for file in attempt.outputs
        }
        self._tools: dict[tuple[str, str], Any] = {}  # by kind and name
        self._agent = self._person()
        self._read: dict[str, Any] = {}  # entities of the files that attempts have read, by id
        self._written: dict[str, Any] = {}
        actions = [
            self._attempt(task, attempt)
            for task in history.tasks.values()
            for attempt in task.attempts
            if task.kind != "block" and (attempt.started is not None or attempt.reused)
        ]
        self._describe(license, [self._run_action(), *actions])
        if self._left:
            more = f" and {len(self._left) - 1} more" if len(self._left) > 1 else ""
            log.warning(
                "not copied into the crate, as they are outside the directories of the run: %s%s",
                self._left[0],
                more,
            )

    def _describe(self, license: str | None, actions: list[Any]) -> None:
        """Describe the crate itself."""
        crate, run = self.crate, self._run
        root = crate.root_dataset
        profiles = _PROCESS if crate.mainEntity is None else _PROCESS | _WITH_PROGRAM
        root["conformsTo"] = [
            self._add(uri, {"@type": "CreativeWork", "name": name, "version": uri[-3:]})
            for uri, name in profiles.items()
        ]
        crate.name = f"Run {run.name} of {program_of(run)}"
        counts = counts_of(self._history)
        text = f"Run of {program_of(run)} with Rhapsody: {run.outcome}; {counts_text(counts)}."
        if counts["reused"]:
            text += " Reused results are those of earlier runs; their actions have no times."
        crate.description = text
        crate.license = license or "No license is specified."
        if license is not None and license.startswith(("http://", "https://")):
            crate.license = self._add(license, {"@type": "CreativeWork", "name": license})
        root["mentions"] = actions

    def _run_action(self) -> Any:
        """Add the action of the whole run, which reads the files that no attempt has written."""
        run = self._run
        end = run.ended or (None if run.outcome == "running" else self._until)
        state = None if run.outcome in ("running", "unknown") else run.outcome
        values = {
            "name": f"Run of {program_of(run)}",
            "description": shlex.join(run.command) or f"Run {run.name}",
            "startTime": _time(run.started),
            "endTime": _time(end),
            "error": f"The run was {state}." if state in ("interrupted", "killed") else None,
            "object": [each for uid, each in self._read.items() if uid not in self._written],
            "result": list(self._written.values()),
        }
        return self._action("#run", self._program(), state, values)

    def _attempt(self, task: TaskRun, attempt: Attempt) -> Any:
        """Add the action of an attempt."""
        number = f" (attempt {attempt.number})" if attempt.number > 1 else ""
        number = " (reused from an earlier run)" if attempt.reused else number
        states = {TasksMainStates.DONE: "done", TasksMainStates.FAILED: "failed"}
        state = "failed" if attempt.fallback else states.get(attempt.state)
        error = None if attempt.error is None else str(attempt.error)
        if attempt.state is TasksMainStates.CANCELED:
            state, error = "canceled", error or "The task was canceled."
        inputs, outputs = self._entities(attempt.inputs), self._entities(attempt.outputs)
        self._read |= {each.id: each for each in inputs}
        self._written |= {each.id: each for each in outputs}
        values = {
            "name": f"{task.name} {task.number}{number}",
            "description": task.call or task.name,
            "startTime": _time(attempt.started),
            "endTime": None if attempt.reused else _time(attempt.ended),
            "error": error,
            "object": inputs,
            "result": outputs,
        }
        identifier = f"#{quote(task.key)}.{attempt.number}"
        return self._action(identifier, self._tool(task), state, values)

    def _action(self, uid: str, instrument: Any, state: str | None, values: dict[str, Any]) -> Any:
        """Add an action without the values that are unknown or empty."""
        values["agent"] = self._agent
        if state is not None:
            values["actionStatus"] = _STATUS.get(state, _STATUS["failed"])
        known = {}
        for name, value in values.items():
            if value not in (None, []):  # RO-Crate recommends single values instead of short lists
                known[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return self._add(uid, {"@type": "CreateAction", "instrument": instrument, **known})

    def _program(self) -> Any:
        """Add the program: as the main workflow, or by its name if its file is not available."""
        run, crate = self._run, self.crate
        python = {"name": "Python", "version": run.python}
        language = crate.add(ComputerLanguage(crate, "#language-python", properties=python))
        software = {"Python": run.python, **run.packages}
        needs = [self._application(name, version) for name, version in software.items()]
        values = {"name": program_of(run), "softwareRequirements": needs}
        if self._tools and self._vouched(run.program, None, run.started):
            name = os.path.basename(run.program)
            program = crate.add_workflow(run.program, name, lang=language)
            values |= {"hasPart": list(self._tools.values()), "sha256": _digest(run.program)}
            for key, value in values.items():
                program[key] = value
            crate.mainEntity = program
            return program
        values |= {"@type": "SoftwareSourceCode", "programmingLanguage": language}
        return self._add("#program", values)

    def _application(self, name: str, version: str) -> Any:
        known = {"softwareVersion": version} if version else {}
        values = {"@type": "SoftwareApplication", "name": name, **known}
        return self._add(f"#software-{quote(name)}", values)

    def _tool(self, task: TaskRun) -> Any:
        """Return the entity for all calls of one task function."""
        key = (task.kind, task.name)
        if key not in self._tools:
            kind = "SoftwareApplication" if task.kind == "executable" else "SoftwareSourceCode"
            values = {"@type": kind, "name": task.name}
            self._tools[key] = self._add(f"#{task.kind}-{quote(task.name, safe='')}", values)
        return self._tools[key]

    def _person(self) -> Any:
        """Add the user who started the run, if the record names one."""
        user = self._run.user
        if not user:
            return None
        return self._add(f"#user-{quote(user)}", {"@type": "Person", "name": user})

    def _entities(self, files: Iterable[FileRecord]) -> list[Any]:
        return [self._file(file) for file in files]

    def _file(self, file: FileRecord) -> Any:
        """Return the entity of a file or directory."""
        file = self._saved.get(file.path or "", file)
        key = file.path or file.name
        if key in self._data:
            return self._data[key]
        if file.path is None:  # known by name only, and thus no data entity
            values = {"@type": "PropertyValue", "name": "file", "value": file.name}
            found = self._add(f"#file-{quote(file.name, safe='')}", values)
        else:
            found = self._add_data(file, file.path)
        self._data[key] = found
        return found

    def _add_data(self, file: FileRecord, path: str) -> Any:
        """Add a data entity, with a digest and a copy if these are requested and possible."""
        values: dict[str, Any] = {"name": file.name}
        kind, _ = mimetypes.guess_type(path)
        if kind is not None:
            values["encodingFormat"] = kind
        if file.size is not None:
            values["contentSize"] = str(file.size)
            if self._files != "reference" and self._vouched(path, file.size, self._until):
                values["sha256"] = _digest(path)
                if self._files == "copy":
                    real = os.path.realpath(path)
                    if any(os.path.commonpath((real, place)) == place for place in self._places):
                        return self.crate.add_file(real, self._place(path), properties=values)
                    self._left.append(path)
        directory = file.size is None and os.path.isdir(path)
        uri = f"file://{quote(self._run.host)}{quote(path)}{'/' if directory else ''}"
        values["@type"] = "Dataset" if directory else "File"
        return self.crate.add(DataEntity(self.crate, uri, values))

    def _vouched(self, path: str, size: int | None, since: float | None) -> bool:
        """Return True if a file is the one that the run has used or written, as far as known.

        The record of another user could name any file of this user, so it vouches only for files of
        that other user.
        """
        try:
            found = os.stat(path)
        except OSError:
            return False
        return (
            stat.S_ISREG(found.st_mode)
            and self._owner in (None, found.st_uid)
            and size in (None, found.st_size)
            and since is not None
            and found.st_mtime <= since
        )

    def _place(self, path: str) -> str:
        """Return the path of a copy in the crate."""
        inside = os.path.relpath(path, self._run.cwd or "/")
        return os.path.join("data", path.lstrip("/") if inside.startswith("..") else inside)

    def _add(self, identifier: str, values: dict[str, Any]) -> Any:
        return self.crate.add(ContextEntity(self.crate, identifier, values))


class _Preview(Preview):  # type: ignore[misc]  # rocrate has no types
    """Page that describes the crate for readers. The page of `rocrate` does not escape text."""

    def generate_html(self) -> str:
        """Return the page."""
        crate, license = self.crate, self.crate.license
        license = license if isinstance(license, str) else license.id
        files = "\n".join(
            f'<li><a href="{escape(each.id)}">{escape(each.id)}</a></li>'
            for each in crate.data_entities
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f"<title>{escape(crate.name)}</title>\n<h1>{escape(crate.name)}</h1>\n"
            f"<p>{escape(crate.description)}</p>\n<p>License: {escape(license)}</p>\n"
            f"<h2>Files</h2>\n<ul>\n{files}\n</ul>\n</html>\n"
        )


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _directories(history: RunHistory) -> list[str]:
    """Return the directories of a run: those in which it ran, and those that it was given."""
    run, places = history.run, []
    if run.directory is not None:
        places.append(str(run.directory))
    if other_owner(run.path) is None:
        places += [run.cwd] if run.cwd else []
        for engine in history.engines.values():
            given = [engine.work_dir, engine.options.get("results_dir")]
            places += [os.path.join(run.cwd or "/", place) for place in given if place]
    return places


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
