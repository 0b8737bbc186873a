"""Runs of tasks, and their conversion to an instance; shared by the recorder and the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rhapsody_wfcommons.instance import Instance, RecordedFile, RecordedMachine, RecordedTask


@dataclass(slots=True)
class TaskData:
    """Data about one task of a run."""

    name: str
    parents: list[str]
    cores: float
    begin: float | None = None
    end: float | None = None
    local: bool = False
    inputs: dict[str, RecordedFile] = field(default_factory=dict)
    outputs: dict[str, RecordedFile] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Duration of the last attempt in seconds, or `None` if the task did not run."""
        if self.begin is None or self.end is None:
            return None
        return max(0.0, self.end - self.begin)


class FileIds:
    """Unique ids of files."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, path: str, name: str) -> str:
        """Return the id of the file at a path: its name, or its name with a number."""
        if path not in self._ids:
            free, number = name, 1
            while free in self._taken:
                number += 1
                free = f"{name}#{number}"
            self._ids[path] = free
            self._taken.add(free)
        return self._ids[path]


def instance_of(
    runs: Mapping[str, TaskData], *, program: str, machine: RecordedMachine, version: str
) -> Instance | None:
    """Return the tasks that ran as an instance, or `None` if there is none.

    Args:
        runs: The tasks by id, each after its parents.
        program: The path of the program.
        machine: The machine of tasks that ran locally.
        version: The version of Rhapsody.
    """
    ran = {uid: run for uid, run in runs.items() if run.seconds is not None}
    begins = [run.begin for run in ran.values() if run.begin is not None]
    if not begins:
        return None
    parents = _parents(runs, ran)
    ends = [run.end for run in ran.values() if run.end is not None]
    return Instance(
        name=_name_of(program),
        tasks=tuple(
            RecordedTask(
                id=uid,
                name=run.name,
                parents=parents[uid],
                runtime=run.seconds,
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
        made_by=("Rhapsody", version),
    )


def _timestamp(when: float | None) -> str | None:
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat()


def _parents(
    runs: Mapping[str, TaskData], kept: Mapping[str, TaskData]
) -> dict[str, tuple[str, ...]]:
    """Return the parents of each task. A parent that is not kept is replaced by its own parents."""
    found: dict[str, tuple[str, ...]] = {}
    for uid, run in runs.items():
        parents: dict[str, None] = {}
        for parent in run.parents:
            parents |= dict.fromkeys([parent] if parent in kept else found.get(parent, ()))
        found[uid] = tuple(parents)
    return found


def _name_of(program: str) -> str:
    """Return the name of a script, or of a package that was run with `python -m`."""
    path = Path(program)
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name if name and not name.startswith("-") else "python"
