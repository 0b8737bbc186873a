"""Origins of input files: the outputs of dependencies, the disk, or a URL."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from rhapsody.data import InputFile, InputFiles, found_at, without_secrets
from rhapsody.errors import DataError
from rhapsody.staging.fsutil import files_in
from rhapsody.staging.outputs import Target
from rhapsody.task import AttemptInfo, TaskDescription


class InputPlace(NamedTuple):
    """Location of an input, for the backend that links it and for functions that read it.

    Attributes:
        path: The file, `None` if it cannot be read from here.
        producer: The attempt whose sandbox on the same backend it is linked from, if any.
        missing: The outcome of the task of an earlier run that made it, if it is missing now.
        directory: True for a directory that a dependency made.
    """

    path: str | None
    producer: AttemptInfo | None = None
    missing: AttemptInfo | None = None
    directory: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """Places of the inputs of an attempt, before they are linked.

    Attributes:
        sources: What is left of its dependencies, each once.
        places: The inputs by their names.
        coming: The inputs that are fetched into the cache, by their names.
        targets: Where its outputs are to be saved, by their names.
        reads: Files of other tasks that it reads: their sandboxes and names.
        matches: The files that match each pattern of its outputs, once it has ended well.
    """

    sources: tuple[AttemptInfo, ...]
    places: dict[str, InputPlace]
    coming: Mapping[str, asyncio.Task[str]]
    targets: dict[str, Target]
    reads: tuple[tuple[str, str], ...]
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def missing(self) -> list[AttemptInfo]:
        """Return the outcomes of tasks of an earlier run whose files it reads and are missing."""
        found = {
            place.missing.uid: place.missing for place in self.places.values() if place.missing
        }
        return list(found.values())

    def paths(self) -> dict[str, str | None]:
        """Return the inputs' paths by their names, `None` for those not readable from here."""
        return {name: place.path for name, place in self.places.items()}


def left_by(producer: AttemptInfo, name: str) -> str | None:
    """Return the path of a file in the sandbox of an ended task, `None` if it is not readable."""
    return left_place(producer, name).path


def left_place(producer: AttemptInfo, name: str) -> InputPlace:
    """Return the place of a file in the sandbox of an ended task on the same backend."""
    path = producer.path_of(name)
    try:
        mode = os.stat(path).st_mode if producer.sandbox else 0
    except (OSError, ValueError):
        mode = 0
    return InputPlace(path if mode else None, producer, directory=stat.S_ISDIR(mode))


def as_source(producer: AttemptInfo) -> dict[str, Any]:
    """Return the part of a description that backends need to link from."""
    return {
        "uid": producer.uid,
        "sandbox": producer.sandbox,
        "metadata": {
            "dependencies": [],
            "input_files": [],
            "output_files": list(producer.output_files),
        },
    }


class Origin(NamedTuple):
    """Origin of an input; exactly one field is set."""

    producer: AttemptInfo | None = None
    path: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        if self.producer is not None:
            return f"the file that task {self.producer.task} wrote"
        return without_secrets(self.url) if self.url is not None else repr(self.path)


def origins(
    task: TaskDescription,
    inputs: Sequence[InputFile],
    sources: Sequence[AttemptInfo],
    made_by: Mapping[int, AttemptInfo] = MappingProxyType({}),
) -> dict[str, Origin]:
    """Return the origin of each file that a task reads, by its name in the sandbox.

    Args:
        task: The task's description.
        inputs: Its input files.
        sources: What is left of its dependencies.
        made_by: The outcomes of the tasks that make inputs, by the `id` of each input.

    Raises:
        DataError: One comes from nowhere or is ambiguous, or two have one name.
    """
    found: dict[str, Origin] = {}
    for file in inputs:
        for name, origin in _each(task, file, sources, made_by.get(id(file))):
            other = found.setdefault(name, origin)
            if other != origin:
                raise DataError(
                    f"task {task['name']!r} has two inputs called {name!r}: "
                    f"{other} and {origin}; rename one of them"
                )
    return found


def _each(
    task: TaskDescription,
    file: InputFile,
    sources: Sequence[AttemptInfo],
    producer: AttemptInfo | None,
) -> Iterator[tuple[str, Origin]]:
    producers = _matched_by(file, sources if producer is None else (producer,))
    for producer, names in producers:
        for name in names:
            yield name, Origin(producer=producer)
    if not producers:
        yield file.filename, origin_of(task, file, sources, producer)


def as_several(
    file: InputFile, sources: Sequence[AttemptInfo], producer: AttemptInfo | None = None
) -> InputFiles | InputFile:
    """Return the object that a task receives for an input: one file or several.

    Args:
        file: The input, bound to the task's sandbox.
        sources: What is left of its dependencies.
        producer: The outcome of the task that makes this file, if that is known.
    """
    if producer is not None:
        sources = (producer,)
    elif file.remote_url is not None or _is_absolute(file):
        return file
    producers = _matched_by(file, sources)
    if producers:
        return InputFiles(file, {n for _, names in producers for n in names}, directory=False)
    name = file.filename
    wrote = [source.path_of(name) for source in sources if name in source.output_files]
    directory = wrote[0] if len(wrote) == 1 else ""
    if not os.path.isdir(directory):
        return file
    names = (os.path.join(name, each) for each in files_in(directory))
    return InputFiles(file, names, directory=True)


def located(
    file: InputFile, resolved: Resolved, producer: AttemptInfo | None = None
) -> InputFiles | InputFile:
    """Return the object that a function receives for an input that it reads where it is.

    Args:
        file: The input.
        resolved: Where the inputs of its task are; all can be read from here.
        producer: The outcome of the task that makes this file, if that is known.
    """
    places = resolved.places
    sources = resolved.sources if producer is None else (producer,)
    matched = () if file.remote_url is not None else _matched_by(file, sources)
    names = dict.fromkeys(name for _, names in matched for name in names)
    if names:
        found = [path for name in names if (path := places[name].path) is not None]
        pattern = os.path.join(os.path.dirname(found[0]), file.filename)
        return InputFiles(found_at(file, pattern), found, directory=False)
    place = places[file.filename]
    path = place.path or ""
    bound = found_at(file, path)
    if not place.directory:
        return bound
    inside = (os.path.join(path, each) for each in files_in(path))
    return InputFiles(bound, inside, directory=True)


def _is_absolute(file: InputFile) -> bool:
    return os.path.isabs(file.local_file or file.other_task_file or "")


def _matched_by(
    file: InputFile, sources: Sequence[AttemptInfo]
) -> list[tuple[AttemptInfo, tuple[str, ...]]]:
    """Return the dependencies that promised the same pattern, and the names that matched it."""
    name = file.filename
    return [(each, each.matches[name]) for each in sources if each.matches and name in each.matches]


def origin_of(
    task: TaskDescription,
    file: InputFile,
    sources: Sequence[AttemptInfo],
    producer: AttemptInfo | None = None,
) -> Origin:
    """Return the origin of a task's input: its dependencies, a URL or the disk.

    Raises:
        DataError: There is none, or two of the dependencies wrote it.
    """
    name = file.filename
    if producer is not None:
        if name in producer.output_files:
            return Origin(producer=producer)
        raise DataError(
            f"task {task['name']!r}: missing input file {name!r}: task {producer.task} promised "
            "it, but did not write it"
        )
    if file.remote_url is not None:
        return Origin(url=file.remote_url)
    expected = str(file.expected_at)
    if not _is_absolute(file):
        producers = [source for source in sources if name in source.output_files]
        if len(producers) > 1:
            raise DataError(
                f"task {task['name']!r}: input file {name!r} is written by two of its "
                f"dependencies, {producers[0].task} and {producers[1].task}; rename one of the "
                f"files, or pass future.file({name!r}) of one of them"
            )
        if producers:
            return Origin(producer=producers[0])
    if os.path.exists(expected):
        return Origin(path=expected)
    raise DataError(
        f"task {task['name']!r}: missing input file {name!r}: no earlier call promises it, and "
        f"there is no file {expected!r}; call the task that writes it first, or correct the path"
    )
