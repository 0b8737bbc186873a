"""Reader of instances in all published versions of the format.

Up to version 1.4, each task is one object (in `workflow.tasks`, before 1.3 in `workflow.jobs`), and
parents are given by `name`. Since 1.5, the workflow (`workflow.specification`) is separate from its
run (`workflow.execution`), and tasks and files are identified by `id`. Data that replaying does not
need, such as commands, is neither stored nor checked.
"""

from __future__ import annotations

import graphlib
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from rhapsody.sdk import suggestion
from rhapsody_wfcommons.instance import Instance, RecordedFile, RecordedMachine, RecordedTask
from rhapsody_wfcommons.values import JsonValue

T = TypeVar("T")
_Edges = dict[tuple[str, str], JsonValue]
"""For each pair of a parent and its child, the value in the file that defines the pair."""

VERSIONS: tuple[str, ...] = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
_SYSTEMS = ("linux", "macos", "windows")
_MOST_CORES = 1_000_000


def read(path: str | os.PathLike[str]) -> Instance:
    """Read a WfCommons workflow instance from a file.

    File sizes in versions before 1.4 are read as bytes, as in WfCommons' own conversion.

    Returns:
        The instance.

    Raises:
        InstanceError: The instance is malformed. The message contains the file, the position, the
            value, and the accepted values.
        OSError: The file cannot be read.
    """
    return _instance(JsonValue.of_json(os.fspath(path), Path(path).read_bytes()))


def loads(text: str) -> Instance:
    """Read an instance from the text of its file, as `read` does.

    Returns:
        The instance.

    Raises:
        InstanceError: The instance is malformed.
    """
    return _instance(JsonValue.of_json("instance", text))


def _instance(root: JsonValue) -> Instance:
    root.need("schemaVersion").one_of(*VERSIONS)
    workflow = root.need("workflow")
    if workflow.get("specification") is not None:
        tasks, run = _tasks(workflow), workflow.get("execution")
    else:
        tasks, run = _flat_tasks(workflow), workflow
    return Instance(
        name=root.need("name").text(),
        tasks=tasks,
        machines=() if run is None else tuple(_machine(each) for each in run.items("machines")),
        makespan=_maybe(run, JsonValue.number, "makespanInSeconds", "makespan"),
        started=_maybe(run, JsonValue.text, "executedAt"),
        description=_maybe(root, JsonValue.text, "description"),
        created=_maybe(root, JsonValue.text, "createdAt"),
        made_by=_maybe(root, _system, "runtimeSystem", "wms"),
    )


def _maybe(of: JsonValue | None, take: Callable[[JsonValue], T], *names: str) -> T | None:
    """Return the first member with one of these names, converted by `take`.

    Return `None` if there is no such member.
    """
    found = None if of is None else of.get(*names)
    return None if found is None else take(found)


def _system(system: JsonValue) -> tuple[str, str]:
    return system.need("name").text(), system.need("version").text()


def _machine(machine: JsonValue) -> RecordedMachine:
    cpu = machine.get("cpu")
    system = machine.get("system")
    memory = _maybe(machine, _positive, "memoryInBytes")
    kilobytes = _maybe(machine, _positive, "memory")  # up to 1.3
    return RecordedMachine(
        name=machine.need("nodeName").text(),
        system=None if system is None else system.one_of(*_SYSTEMS),
        architecture=_maybe(machine, JsonValue.text, "architecture"),
        release=_maybe(machine, JsonValue.text, "release"),
        memory=kilobytes * 1000 if memory is None and kilobytes else memory,
        cores=_maybe(cpu, _positive, "coreCount", "count"),
        speed=_maybe(cpu, _positive, "speedInMHz", "speed"),
        vendor=_maybe(cpu, JsonValue.text, "vendor"),
    )


def _positive(value: JsonValue) -> int:
    return value.whole(1)


def _cores(value: JsonValue) -> float:
    cores = value.number(1)
    if cores > _MOST_CORES:
        value.refuse(f"a number from 1 to {_MOST_CORES}")
    return int(cores) if cores.is_integer() else cores


# Version 1.5.


def _tasks(workflow: JsonValue) -> tuple[RecordedTask, ...]:
    specification = workflow.need("specification")
    specification.need("tasks")
    values = list(specification.items("tasks", empty=False))
    ids = [value.need("id") for value in values]
    known = _unique(ids)
    sizes = _sizes(specification)
    runs = _executions(workflow, known)
    parents = _parents(zip(known, values, strict=True), lambda one: _known(one, known))
    return tuple(
        RecordedTask(
            id=name,
            name=value.need("name").text(),
            parents=parents[name],
            runtime=_maybe(runs.get(name), JsonValue.number, "runtimeInSeconds"),
            cores=_maybe(runs.get(name), _cores, "coreCount") or 1,
            inputs=_files(value, "inputFiles", sizes),
            outputs=_files(value, "outputFiles", sizes),
            started=_maybe(runs.get(name), JsonValue.text, "executedAt"),
            machines=_texts(runs.get(name), "machines"),
        )
        for name, value in zip(known, values, strict=True)
    )


def _unique(ids: Iterable[JsonValue]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for each in ids:
        first = found.setdefault(each.text(), each)
        if first is not each:
            each.fail(f"the id {each} is already used by {first.place}")
    return found


def _executions(workflow: JsonValue, known: Collection[str]) -> dict[str, JsonValue]:
    """Return a mapping from task ids to the records of their executions."""
    execution = workflow.get("execution")
    if execution is None:
        return {}
    execution.need("tasks")
    values = list(execution.items("tasks"))
    ids = _unique([value.need("id") for value in values])
    for each in ids.values():
        _known(each, known)
    for value in values:
        value.need("runtimeInSeconds")
    return dict(zip(ids, values, strict=True))


def _sizes(specification: JsonValue) -> dict[str, int]:
    values = list(specification.items("files"))
    ids = _unique([value.need("id") for value in values])
    return {
        name: value.need("sizeInBytes").whole() for name, value in zip(ids, values, strict=True)
    }


def _files(task: JsonValue, member: str, sizes: dict[str, int]) -> tuple[RecordedFile, ...]:
    return tuple(RecordedFile(name, sizes.get(name)) for name in _texts(task, member))


def _texts(of: JsonValue | None, member: str) -> tuple[str, ...]:
    values = () if of is None else of.items(member)
    return tuple(dict.fromkeys(value.text() for value in values))


# Up to 1.4.


def _flat_tasks(workflow: JsonValue) -> tuple[RecordedTask, ...]:
    if workflow.get("tasks", "jobs") is None:
        workflow.need("specification", "tasks", "jobs")
    values = list(workflow.items("tasks", "jobs", empty=False))
    names = _TaskIds(values)
    parents = _parents(zip(names.ids, values, strict=True), names.find)
    return tuple(
        RecordedTask(
            id=name,
            name=value.need("name").text(),
            parents=parents[name],
            runtime=_maybe(value, JsonValue.number, "runtimeInSeconds", "runtime"),
            cores=_maybe(value, _cores, "cores") or 1,
            inputs=_linked(value, "input"),
            outputs=_linked(value, "output"),
            machines=_maybe(value, lambda machine: (machine.text(),), "machine") or (),
        )
        for name, value in zip(names.ids, values, strict=True)
    )


class _TaskIds:
    """Ids of the tasks of an instance in a version before 1.5.

    As in WfCommons' own conversion, an id consists of the name and the `id` of the task.

    Args:
        tasks: Tasks in the file.

    Attributes:
        ids: A unique id for each task.
    """

    def __init__(self, tasks: Iterable[JsonValue]) -> None:
        found: dict[str, JsonValue] = {}
        self._meant: dict[str, list[str]] = {}
        for task in tasks:
            name, own = task.need("name").text(), _maybe(task, JsonValue.text, "id")
            full = name if own is None or own in name else f"{name}_{own}"
            first = found.setdefault(full, task)
            if first is not task:
                task.fail(f'the task "{full}" is defined twice, first at {first.place}')
            for each in {full, name, own or full}:
                self._meant.setdefault(each, []).append(full)
        self.ids: tuple[str, ...] = tuple(found)

    def find(self, named: JsonValue) -> str:
        """Return the id of the task to which a value refers."""
        meant = self._meant[_known(named, self._meant)]
        if len(meant) > 1:
            named.fail(f"{named} is ambiguous: write {' or '.join(meant[:2])}")
        return meant[0]


def _linked(task: JsonValue, link: str) -> tuple[RecordedFile, ...]:
    found: dict[str, RecordedFile] = {}
    for file in task.items("files"):
        name, size = file.need("name").text(), file.need("sizeInBytes", "size").whole()
        if file.need("link").one_of("input", "output") == link:
            found[name] = RecordedFile(name, size)
    return tuple(found.values())


# Parents.


def _known(named: JsonValue, known: Collection[str]) -> str:
    """Return the id in a value. A task with this id must exist.

    Raises:
        InstanceError: No task has this id.
    """
    name = named.text()
    if name not in known:
        named.fail(f"unknown task {named}{suggestion(name, known)}")
    return name


def _parents(
    tasks: Iterable[tuple[str, JsonValue]], find: Callable[[JsonValue], str]
) -> dict[str, tuple[str, ...]]:
    """Return the parents of each task.

    A parent may be listed by the task, or may itself list the task as its child.
    """
    edges: _Edges = {}
    parents: dict[str, list[str]] = {}
    for name, task in tasks:
        parents[name] = []
        for parent in task.items("parents"):
            edges.setdefault((find(parent), name), parent)
        for child in task.items("children"):
            edges.setdefault((name, find(child)), child)
    for above, below in edges:
        parents[below].append(above)
    _check_acyclic(parents, edges)
    return {name: tuple(found) for name, found in parents.items()}


def _check_acyclic(parents: dict[str, list[str]], edges: _Edges) -> None:
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        # Each id in the cycle is a parent of the next id; the last id is the first one again.
        cycle: list[str] = error.args[1]
        way = " -> ".join(cycle if len(cycle) <= 6 else [*cycle[:3], "...", *cycle[-2:]])
        edges[cycle[0], cycle[1]].fail(f"tasks depend on each other in a cycle: {way}")
