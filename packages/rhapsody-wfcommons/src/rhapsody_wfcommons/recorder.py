"""Recorder of a run as a WfCommons instance.

The recorder is an observer of one engine. It records the dependencies of each task before the task
is submitted, and the task's times and files when the task ends. The instance is written to its file
once, when the engine shuts down.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rhapsody
from rhapsody import LocalExecutionBackend, TaskDescription, TasksMainStates, hookimpl
from rhapsody.plugins import AttemptId, ObservedEngine, TaskEvent
from rhapsody_wfcommons.instance import Instance, RecordedFile, RecordedMachine
from rhapsody_wfcommons.runs import FileIds, TaskData, instance_of
from rhapsody_wfcommons.writing import write

log: logging.Logger = logging.getLogger("rhapsody.wfcommons")

_PATTERN = re.compile(r"[*?[]")


@dataclass(slots=True)
class _ObservedTask(TaskData):
    """Task of the observed engine."""

    number: int = 0
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    ran: bool = False


class WfCommonsRecorder:
    """Observer that records the run of one engine, and writes it to a file as a WfCommons instance.

        async with WorkflowEngine.create(observers=[WfCommonsRecorder("run.json")]) as flow:

    The duration of a task is the duration of its last attempt. Services, blocks and tasks that did
    not run, for example because their results were reused, are omitted. The parents of an omitted
    task become parents of its dependents.

    Args:
        path: Path of the file to write. Only the user can read the file. It is written when the
            engine shuts down; until then, an existing file is not changed.

    Attributes:
        push_down: `True`: the engine may submit tasks before their dependencies have ended.

    Raises:
        ValueError: The path is a directory, or its parent directory does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.push_down: bool = True
        self._path = Path(path).absolute()
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise ValueError(
                f"WfCommonsRecorder({os.fspath(path)!r}): the path must name a file in an existing "
                "directory"
            )
        self._cores: dict[str, int] = {}
        self._runs: dict[str, _ObservedTask] = {}
        self._ids = FileIds()

    @hookimpl
    def rhapsody_prepare_task(self, engine: ObservedEngine, task: TaskDescription) -> None:
        """Record the dependencies of a task and the names of its files."""
        if task["is_service"]:
            return
        known, resources = task["metadata"], task.get("resources")
        parents = [AttemptId.of(uid).task for uid in known["dependencies"]]
        own = AttemptId.of(task["uid"]).task
        self._runs[own.label] = _ObservedTask(
            number=own.number,
            name=task["name"],
            parents=[each.label for each in parents if each.engine == engine.uid],
            cores=1 if resources is None else resources.cores * resources.ranks,
            reads=list(known["input_files"]),
            writes=list(known["output_files"]),
        )

    @hookimpl
    def rhapsody_task_events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        """Record the times of tasks and the sizes of their files."""
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
                    _, self._cores[backend.name] = backend.cores_in_use()
                if event.sandbox is not None and (run.reads or run.writes):
                    paths = {} if event.files is None else event.files.inputs
                    self._look_at_files(run, event.sandbox, paths)

    @hookimpl
    def rhapsody_workflow_finished(self) -> None:
        """Write the recorded run to the file."""
        instance = self._instance()
        if instance is None:
            log.warning("%s: not written, because no task has run", self._path)
            return
        try:
            write(instance, self._path)
        except OSError as error:
            log.error(
                "%s: cannot be written; the run is not recorded: %s: %s",
                self._path,
                type(error).__name__,
                error,
            )

    def _look_at_files(
        self, run: _ObservedTask, sandbox: str, paths: Mapping[str, str | None]
    ) -> None:
        made: dict[str, RecordedFile] = {}
        for parent in run.parents:
            made |= self._runs[parent].outputs if parent in self._runs else {}
        for name in run.reads:
            path, file = paths.get(name), made.get(name)
            if file is None or path is not None:
                found = self._file(path or os.path.join(sandbox, name), name)
                if file is None or file.id != found.id:  # `file` has the size of a removed file
                    file = found
            run.inputs[name] = file
        names = [name for name in run.writes if not _PATTERN.search(name)]
        run.outputs = {name: self._file(os.path.join(sandbox, name), name) for name in names}

    def _file(self, path: str, name: str) -> RecordedFile:
        """Return the record of a file. Links to one file share the record's id."""
        path = os.path.realpath(path)
        size = os.path.getsize(path) if os.path.isfile(path) else None
        return RecordedFile(self._ids.of(path, name), size)

    def _instance(self) -> Instance | None:
        """Return the run as an instance, or `None` if no task ran."""
        in_order = sorted(self._runs.items(), key=lambda item: item[1].number)
        return instance_of(
            dict(in_order),
            program=sys.argv[0] if sys.argv else "",
            machine=_this_machine(sum(self._cores.values())),
            version=rhapsody.__version__,
        )


def _this_machine(cores: int) -> RecordedMachine:
    """Return the description of this machine, with the number of cores of the local backends."""
    system = {"linux": "linux", "darwin": "macos"}.get(sys.platform)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # unknown on this system
        memory = 0
    return RecordedMachine(
        name=platform.node() or "localhost",
        system=system,
        architecture=platform.machine() or None,
        release=platform.release() or None,
        memory=memory if memory > 0 else None,
        cores=cores or None,
    )
