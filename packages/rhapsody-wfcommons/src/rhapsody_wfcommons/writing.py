"""Writer of instances in version 1.5 of the format."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rhapsody_wfcommons.instance import Instance, RecordedFile, RecordedMachine, RecordedTask
from rhapsody_wfcommons.reading import loads
from rhapsody_wfcommons.values import InstanceError

_NOT_IN_TASKS = re.compile(r"[^0-9a-zA-Z\-_.#]")
_NOT_IN_FILES = re.compile(r"[^0-9a-zA-Z\-_./:#]")

_Rename = Callable[[str], str]


def write(instance: Instance, path: str | os.PathLike[str]) -> None:
    """Write an instance to a file that is private to the user.

    An existing file is replaced only when the new one is complete. A device, or a file in a
    directory that is not writable, is written in place and keeps its permissions.

    Raises:
        InstanceError: The instance is invalid; see `dumps`. Nothing is written.
        OSError: The file cannot be written.
    """
    path, text = Path(path), dumps(instance)
    if path.exists() and not (path.is_file() and os.access(path.resolve().parent, os.W_OK)):
        path.write_text(text, encoding="utf-8")  # such as /dev/stdout
        return
    path = path.resolve()
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def dumps(instance: Instance) -> str:
    """Return the text of an instance's file.

    In ids, `_` replaces characters that the format does not allow, and a number is appended to an
    id that is already used. `execution` is omitted if the makespan, the start time of the run or
    the runtime of any task is unknown, because the format requires these values there. `?` replaces
    lone surrogates.

    Raises:
        InstanceError: `loads` would reject the text, for example because a parent is not in the
            instance or a time is not a number.
    """
    _check_parents(instance)
    tasks = _renamer(_NOT_IN_TASKS, (task.id for task in instance.tasks))
    every = [file for task in instance.tasks for file in (*task.inputs, *task.outputs)]
    files = _renamer(_NOT_IN_FILES, (file.id for file in every))
    workflow: dict[str, Any] = {"specification": _specification(instance, every, tasks, files)}
    known = instance.makespan is not None and instance.started is not None
    if known and all(task.runtime is not None for task in instance.tasks):
        workflow["execution"] = _execution(instance, tasks)
    made_by = instance.made_by
    content = {
        "name": instance.name,
        "description": instance.description,
        "createdAt": instance.created,
        "schemaVersion": "1.5",
        "runtimeSystem": made_by and {"name": made_by[0], "version": made_by[1]},
        "workflow": workflow,
    }
    text = json.dumps(_drop_unknown(content), indent=1, ensure_ascii=False) + "\n"
    text = text.encode("utf-8", "replace").decode()
    loads(text)
    return text


def _check_parents(instance: Instance) -> None:
    known = {task.id for task in instance.tasks}
    for task in instance.tasks:
        for parent in task.parents:
            if parent not in known:
                raise InstanceError(
                    f"task {task.id!r} has the parent {parent!r}, which is not in the instance"
                )


def _renamer(disallowed: re.Pattern[str], ids: Iterable[str]) -> _Rename:
    """Return a function that maps each id to a unique id that the format allows."""
    given: dict[str, str] = {}
    taken: set[str] = set()
    for each in dict.fromkeys(ids):
        stem = name = disallowed.sub("_", each)
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}#{number}"
        taken.add(name)
        given[each] = name
    return given.__getitem__


def _drop_unknown(values: dict[str, Any]) -> dict[str, Any]:
    """Return the items whose values are neither `None` nor empty."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def _specification(
    instance: Instance, files: Iterable[RecordedFile], task_id: _Rename, file_id: _Rename
) -> dict[str, Any]:
    children = instance.children()
    sizes = {file_id(file.id): file.size for file in files if file.size is not None}
    return {
        "tasks": [
            {
                "name": task.name,
                "id": task_id(task.id),
                "parents": [task_id(each) for each in task.parents],
                "children": [task_id(each) for each in children[task.id]],
                "inputFiles": [file_id(file.id) for file in task.inputs],
                "outputFiles": [file_id(file.id) for file in task.outputs],
            }
            for task in instance.tasks
        ],
        "files": [{"id": name, "sizeInBytes": size} for name, size in sizes.items()],
    }


def _execution(instance: Instance, task_id: _Rename) -> dict[str, Any]:
    return _drop_unknown(
        {
            "makespanInSeconds": instance.makespan,
            "executedAt": instance.started,
            "tasks": [_task_execution(task, task_id) for task in instance.tasks],
            "machines": tuple(_machine(each) for each in instance.machines),
        }
    )


def _task_execution(task: RecordedTask, task_id: _Rename) -> dict[str, Any]:
    return _drop_unknown(
        {
            "id": task_id(task.id),
            "runtimeInSeconds": task.runtime,
            "executedAt": task.started,
            "coreCount": task.cores,
            "machines": task.machines,
        }
    )


def _machine(machine: RecordedMachine) -> dict[str, Any]:
    cpu = {"coreCount": machine.cores, "speedInMHz": machine.speed, "vendor": machine.vendor}
    return _drop_unknown(
        {
            "system": machine.system,
            "architecture": machine.architecture,
            "nodeName": machine.name,
            "release": machine.release,
            "memoryInBytes": machine.memory,
            "cpu": _drop_unknown(cpu) or None,
        }
    )
