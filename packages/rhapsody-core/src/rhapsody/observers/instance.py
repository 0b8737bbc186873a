"""The instance of a run: what its tasks waited for, how long each took, and its files.

A WfCommons instance (`rhapsody.wfformat`), for people who study workflows, and for `rhapsody
replay`. Written once, at the end: what happens meanwhile is in the trace.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import describe_error
from rhapsody.plugins.reports import ObservedEngine
from rhapsody.plugins.specs import TaskEvent, hookimpl
from rhapsody.staging.runs import program
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody.wfformat import Instance, RecordedFile, RecordedMachine, RecordedTask, write

log: logging.Logger = logging.getLogger("rhapsody.engine")

_PATTERN = re.compile(r"[*?[]")


@dataclass(slots=True)
class _Run:
    """One task, as far as it has come."""

    name: str
    parents: list[str]
    cores: float
    reads: list[str]
    writes: list[str]
    begin: float | None = None
    ran: bool = False
    end: float | None = None
    local: bool = False
    inputs: dict[str, RecordedFile] = field(default_factory=dict)
    outputs: dict[str, RecordedFile] = field(default_factory=dict)


class InstanceRecorder:
    """Writes the instance of one engine's run, when that ends.

    A task has the time of its last attempt. Services, blocks, and tasks that did not run are left
    out, as those whose results were reused: what waited for such a task has its parents.

    Args:
        path: The file, written at the end and private to the user.

    Attributes:
        push_down: Tasks may go to their backends before their dependencies have ended.
    """

    def __init__(self, path: Path) -> None:
        self.push_down: bool = True
        self._path = path.absolute()
        self._cores: dict[str, int] = {}
        self._runs: dict[str, _Run] = {}
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()

    @hookimpl
    def rhapsody_prepare_task(self, engine: ObservedEngine, task: TaskDescription) -> None:
        """Notes what a task waits for, and the names of its files."""
        own = f"{engine.uid}."
        if task["is_service"]:
            return
        known, resources = task["metadata"], task.get("resources")
        self._runs[_own_id(task["uid"], own)] = _Run(
            name=task["name"],
            parents=[_own_id(each, own) for each in known["dependencies"] if each.startswith(own)],
            cores=1 if resources is None else resources.cores * resources.ranks,
            reads=known["input_files"],
            writes=known["output_files"],
        )

    @hookimpl
    def rhapsody_task_events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        """Notes when tasks begin and end, and the sizes of their files."""
        for event in events:
            run = self._runs.get(event.uid)
            if run is None:
                continue
            if event.state is TasksMainStates.SUBMITTED:
                run.begin, run.ran = event.time, False
            elif event.state is TasksMainStates.RUNNING:
                run.begin, run.ran = event.time, True
            elif event.state is TasksMainStates.DONE or (
                event.state is TasksMainStates.FAILED and run.ran
            ):
                run.end = event.time
                backend = engine.backends.get(event.backend or "")
                if isinstance(backend, LocalExecutionBackend):
                    run.local = True
                    self._cores[backend.name] = backend.machine.cores
                if event.sandbox is not None and (run.reads or run.writes):
                    self._look_at_files(run, event.sandbox)

    @hookimpl
    def rhapsody_workflow_finished(self) -> None:
        """Writes the file."""
        instance = self._instance()
        if instance is None:
            log.warning("%s: no task has run, so that there is nothing to record", self._path)
            return
        try:
            write(instance, self._path)
        except OSError as error:
            log.error("%s: the run is not recorded: %s", self._path, describe_error(error))

    def _look_at_files(self, run: _Run, sandbox: str) -> None:
        made: dict[str, RecordedFile] = {}
        for parent in run.parents:
            made |= self._runs[parent].outputs if parent in self._runs else {}
        run.inputs = {name: made.get(name) or self._file(sandbox, name) for name in run.reads}
        names = [name for name in run.writes if not _PATTERN.search(name)]
        run.outputs = {name: self._file(sandbox, name) for name in names}

    def _file(self, sandbox: str, name: str) -> RecordedFile:
        """A file by its name in a sandbox; the same for all links to it."""
        path = os.path.realpath(os.path.join(sandbox, name))
        if path not in self._ids:
            free, number = name, 1
            while free in self._taken:
                number += 1
                free = f"{name}#{number}"
            self._ids[path] = free
            self._taken.add(free)
        size = os.path.getsize(path) if os.path.isfile(path) else None
        return RecordedFile(self._ids[path], size)

    def _instance(self) -> Instance | None:
        ran = {uid: run for uid, run in self._runs.items() if _seconds(run) is not None}
        begins = [run.begin for run in ran.values() if run.begin is not None]
        if not begins:
            return None
        machine = this_machine(sum(self._cores.values()))
        parents = _parents(self._runs, ran)
        ends = [run.end for run in ran.values() if run.end is not None]
        return Instance(
            name=program(),
            tasks=tuple(
                RecordedTask(
                    id=uid,
                    name=run.name,
                    parents=parents[uid],
                    runtime=_seconds(run),
                    cores=max(run.cores, 1),
                    inputs=tuple(run.inputs.values()),
                    outputs=tuple(run.outputs.values()),
                    started=_timestamp(run.begin),
                    machines=(machine.name,) if run.local else (),
                )
                for uid, run in ran.items()
            ),
            machines=(machine,) if any(run.local for run in ran.values()) else (),
            makespan=max(ends) - min(begins),
            started=_timestamp(min(begins)),
            created=datetime.now(UTC).isoformat(),
            made_by=_made_by(),
        )


def _own_id(uid: str, own: str) -> str:
    """The id of a task in its engine, from the uid of an attempt."""
    return uid.removeprefix(own).rpartition(".")[0]


def _seconds(run: _Run) -> float | None:
    if run.begin is None or run.end is None:
        return None
    return max(0.0, run.end - run.begin)


def _timestamp(when: float | None) -> str | None:
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat()


def _parents(runs: Mapping[str, _Run], kept: Mapping[str, _Run]) -> dict[str, tuple[str, ...]]:
    """The parents of each task; those of the parent in place of one that is not kept."""
    found: dict[str, tuple[str, ...]] = {}
    for uid in sorted(runs, key=lambda uid: int(uid.rpartition(".")[2])):  # parents come first
        parents: dict[str, None] = {}
        for parent in runs[uid].parents:
            parents |= dict.fromkeys([parent] if parent in kept else found.get(parent, ()))
        found[uid] = tuple(parents)
    return found


def this_machine(cores: int) -> RecordedMachine:
    """What an instance says of the machine that this process runs on, with the cores in use."""
    system = {"linux": "linux", "darwin": "macos"}.get(sys.platform)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # this system does not say
        memory = 0
    return RecordedMachine(
        name=platform.node() or "localhost",
        system=system,
        architecture=platform.machine() or None,
        release=platform.release() or None,
        memory=memory if memory > 0 else None,
        cores=cores or None,
    )


def _made_by() -> tuple[str, str]:
    from rhapsody._version import __version__

    return "Rhapsody", __version__
