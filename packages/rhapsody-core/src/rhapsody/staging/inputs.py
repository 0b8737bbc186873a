"""Inputs of one attempt: which files they are, and the names under which the attempt reads them.

Nothing here changes a file. `rhapsody.staging.flow` provides the files that are found.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any, NamedTuple

from rhapsody.data import (
    PATTERN,
    InputFile,
    InputFiles,
    Output,
    found_at,
    given_path,
    output_name,
    staged_as,
)
from rhapsody.errors import DataError
from rhapsody.fsutil import files_in
from rhapsody.reading import pieces
from rhapsody.staging.inheritance import FileState
from rhapsody.task import AttemptInfo, Declaration, Written, facts_of

_SMALL = 65536
"""Maximum size of a file that is compared by its content, in bytes."""

_JUST_NOW_NS = 20_000_000
"""Age below which another change may leave a file with the same modification time."""


class InputPlace(NamedTuple):
    """Location of an input, for the backend that links it and for functions that read it.

    Attributes:
        path: The path of the file, or `None` if this process cannot read it.
        producer: The attempt on the same backend from whose sandbox the file is linked; `None` if
            the file comes from elsewhere.
        missing: If the file is missing, the outcome of the task that wrote it in an earlier run;
            otherwise `None`.
        directory: True for a directory that a dependency created.
        state: The state of a file, with which a change is detected; `None` for a directory, or if
            this process cannot read the file.
        given: True for a file or directory that the program names, and that no task of the engine
            writes.
    """

    path: str | None
    producer: AttemptInfo | None = None
    missing: AttemptInfo | None = None
    directory: bool = False
    state: FileState | None = None
    given: bool = False


class Origin(NamedTuple):
    """Origin of an input. Exactly one of `producer`, `path` and `url` is not `None`.

    Attributes:
        name: The file's name at its origin.
        producer: The outcome of the task that wrote the file.
        path: The path of a file on disk.
        url: The URL of a remote file.
        copy: True if each attempt receives a copy.
        state: For a file on disk, see `InputPlace`.
    """

    name: str
    producer: AttemptInfo | None = None
    path: str | None = None
    url: str | None = None
    copy: bool = False
    state: FileState | None = None


def outcomes(producers: Mapping[int, Declaration]) -> dict[int, Written]:
    """Return the outputs that inputs stand for, by the `id` of the input.

    Tasks without an outcome, as in dry runs, are left out.
    """
    return {
        key: Written(attempts, declared.name, declared.bound)
        for key, declared in producers.items()
        if (attempts := tuple(left for f in declared.futures if (left := facts_of(f).outcome)))
    }


def left_place(producer: AttemptInfo, name: str) -> InputPlace:
    """Return the location of a file in the sandbox of an ended task on the same backend."""
    path = producer.files.path_of(name)
    found = _stat(path) if producer.files.sandbox else None
    if found is None:
        return InputPlace(None, producer)
    directory = stat.S_ISDIR(found.st_mode)
    return InputPlace(path, producer, directory=directory, state=_state_of(found))


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _state_of(found: os.stat_result | None) -> FileState | None:
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    return FileState.of(found)


class InputSearch:
    """Search for the inputs of one attempt.

    Args:
        title: The name of the task, for messages.
        inputs: The input files among the attempt's arguments.
        outputs: The output files among the attempt's arguments.
        sources: The outcomes of the attempt's dependencies, in argument order.
        written: The outputs that inputs stand for, by the `id` of the input; see `outcomes`.
        states: The states of inputs at the call, by the `id` of the input; see `states_at_call`.
        directory: The directory at which relative paths start.
        destinations: See `Stager.destinations`.
    """

    __slots__ = (
        "_destinations", "_directory", "_inputs", "_names", "_outputs", "_sources", "_states",
        "_title", "_written",
    )  # fmt: skip

    def __init__(
        self,
        title: str,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
        sources: Sequence[AttemptInfo],
        written: Mapping[int, Written],
        states: Mapping[int, FileState],
        directory: str,
        destinations: Mapping[str, str],
    ) -> None:
        self._title = title
        self._inputs = inputs
        self._outputs = outputs
        self._sources = sources
        self._written = written
        self._states = states
        self._directory = directory
        self._destinations = destinations
        self._names: dict[int, str] | None = None

    def forget(self) -> None:
        """Discard the names, because files of dependencies have been recreated."""
        self._names = None

    def names(self) -> dict[int, str]:
        """Return the path of each input relative to the task's sandbox, by the `id` of the input.

        This is the input's name, unless another file has that name in the sandbox: an input with
        the name of an output is renamed to `input-NAME`, and the second of several inputs with one
        name is staged in the directory `2`, the third one in `3`, and so on. The files that match a
        pattern are staged in one directory, and the path of the pattern is returned.

        Raises:
            DataError: Two files have the same explicit name, or an explicit name is given for
                several files.
        """
        if self._names is None:
            self._names = self._find_names()
        return self._names

    def _find_names(self) -> dict[int, str]:
        inputs, outputs = self._inputs, self._outputs
        if len(inputs) == 1 and not outputs and inputs[0].name is None:
            return {id(inputs[0]): inputs[0].filename}
        names = [file.name or file.filename for file in inputs]
        reserved = {*names, *(output.filename for output in outputs)}
        writers = chain.from_iterable(written.attempts for written in self._written.values())
        patterns = any(source.files.matches for source in (*self._sources, *writers))
        if len(reserved) == len(inputs) + len(outputs) and not patterns:
            return dict(zip(map(id, inputs), names, strict=True))
        found: dict[int, str] = {}
        used: dict[str, object] = dict.fromkeys((out.filename for out in outputs), "an output")
        for file in sorted(inputs, key=lambda file: file.name is None):  # explicit names come first
            attempts, declared = self._writers(file)
            matched = _matched_by(declared, attempts)
            which: object = file.copy, file.remote_url or _path_on_disk(file, self._directory)
            if attempts:
                which = file.copy, declared, *(attempt.uid for attempt in attempts)
            if file.name is not None:
                found[id(file)] = self._explicitly(file, which, used, several=bool(matched))
                continue
            inside = [path for path, _, _ in matched]
            name = file.filename
            if not inside:
                name = f"input-{name}" if used.get(name) == "an output" else name
                inside = [name]
            for number in count(1):
                folder = "" if number == 1 else f"{number}/"
                if number > 1 and str(number) in reserved:
                    continue
                if all(used.get(folder + each, which) == which for each in inside):
                    break
            used.update((folder + each, which) for each in inside)
            found[id(file)] = folder + name
        return found

    def _explicitly(
        self, file: InputFile, which: object, used: dict[str, object], *, several: bool
    ) -> str:
        """Return the name that the user chose for an input, and add it to `used`."""
        name = file.name
        assert name is not None
        if several:
            raise DataError(
                f"task {self._title!r}: name={name!r} names one file, but {file.filename!r} is a "
                "pattern; omit name="
            )
        if used.setdefault(name, which) != which:
            other = "an output" if used[name] == "an output" else "another input"
            raise DataError(
                f"task {self._title!r}: {file!r} has the same name as {other} of the task; choose "
                "another name, or omit name="
            )
        return name

    def origins(self, inputs: Iterable[InputFile] | None = None) -> dict[str, Origin]:
        """Return the origin of each file that a task reads, by its path in the sandbox.

        Args:
            inputs: Some of the input files. Default: all.

        Raises:
            DataError: A file has no origin or several origins.
        """
        names = self.names()
        found: dict[str, Origin] = {}
        for file in self._inputs if inputs is None else inputs:
            attempts, declared = self._writers(file)
            staged, matched = names[id(file)], _matched_by(declared, attempts)
            for path, producer, name in matched:
                place = os.path.join(os.path.dirname(staged), path)
                found[place] = Origin(name, producer, copy=file.copy)
            if matched:
                continue
            wrote = [each for each in attempts if declared in each.files.output_files]
            if len(wrote) == 1:
                found[staged] = Origin(declared, wrote[0], copy=file.copy)
            elif attempts:
                raise self._writers_error(file, declared, wrote or attempts)
            else:
                origin = self._outside(file)
                found[staged] = origin._replace(copy=True) if file.copy else origin
        return found

    def _writers(self, file: InputFile) -> tuple[Sequence[AttemptInfo], str]:
        """Return the attempts whose output an input stands for, and the output's name."""
        name, written = output_name(file), self._written.get(id(file))
        if name is not None and not (written is not None and written.bound):
            wrote = [
                source
                for source in self._sources
                if name in source.files.output_files or name in source.files.matches
            ]
            if wrote or written is None:
                return wrote, name
        return ((), "") if written is None else (written.attempts, written.name)

    def bound(self, file: InputFile, sandbox: str, *, by_path: bool) -> InputFiles | InputFile:
        """Return the object that a task receives for an input in its sandbox.

        Args:
            file: The input.
            sandbox: The task's sandbox.
            by_path: See `File.bound_to`.

        Returns:
            One file; or several, if another task declared the input as a directory or a pattern.
        """
        bound = staged_as(file, self.names()[id(file)]).bound_to(sandbox, by_path=by_path)
        attempts, declared = self._writers(file)
        matched = _matched_by(declared, attempts)
        if matched:
            return InputFiles(bound, [path for path, _, _ in matched], directory=False)
        files = [each.files for each in attempts if declared in each.files.output_files]
        directory = files[0].path_of(declared) if len(files) == 1 else ""
        if not os.path.isdir(directory):
            return bound
        staged = os.path.basename(bound.filename)
        inner = (os.path.join(staged, each) for each in files_in(directory))
        return InputFiles(bound, inner, directory=True)

    def located(self, file: InputFile, places: Mapping[str, InputPlace]) -> InputFiles | InputFile:
        """Return the object that a function receives for an input that it reads in place.

        Args:
            file: The input.
            places: The locations of the task's inputs, all of which this process can read, by their
                paths in the sandbox.
        """
        staged = self.names()[id(file)]
        attempts, declared = self._writers(file)
        matched = _matched_by(declared, attempts)
        if matched:
            inside = (places[os.path.join(os.path.dirname(staged), path)] for path, _, _ in matched)
            found = [place.path for place in inside if place.path is not None]
            pattern = os.path.join(os.path.dirname(found[0]), file.filename)
            return InputFiles(found_at(file, pattern), found, directory=False)
        place = places[staged]
        path = place.path or ""
        bound = found_at(file, path)
        if not place.directory:
            return bound
        inner = (os.path.join(path, each) for each in files_in(path))
        return InputFiles(bound, inner, directory=True)

    def _writers_error(
        self, file: InputFile, declared: str, attempts: Sequence[AttemptInfo]
    ) -> DataError:
        """Return the error for an output that several dependencies or not the single one wrote."""
        if len(attempts) > 1:
            return DataError(
                f"task {self._title!r}: input file {file.filename!r} is written by two of its "
                f"dependencies, {attempts[0].task} and {attempts[1].task}; rename one of the "
                f"files, or pass future.file({declared!r}) of one of them"
            )
        return DataError(
            f"task {self._title!r}: missing input file {file.filename!r}: task {attempts[0].task} "
            "declared it, but did not write it"
        )

    def _outside(self, file: InputFile) -> Origin:
        """Return the origin of an input that no task of the engine writes.

        Raises:
            DataError: There is no file at this path.
        """
        name = file.filename
        if file.remote_url is not None:
            return Origin(name, url=file.remote_url)
        expected = _path_on_disk(file, self._directory)
        if (state := self._states.get(id(file))) is not None:
            return Origin(name, path=expected, state=state)
        if (found := _stat(expected)) is not None:
            return Origin(name, path=expected, state=_state_of(found))
        if output_name(file) is not None and (place := self._destinations.get(name)) is not None:
            raise DataError(
                f"task {self._title!r}: missing input file {name!r}: there is no file "
                f"{expected!r}. To read the output that a call declares with the destination "
                f"{place!r}, pass InputFile({place!r})"
            )
        cure = "Call the task that writes it before this one, or correct the path"
        if PATTERN.search(name):
            cure = "To pass all files that match, write [InputFile(path) for path in glob(...)]"
        other = next((each for each in self._sources if name in each.files.output_files), None)
        if other is not None:
            cure = (
                f"Its dependency {other.task} wrote {name!r}, which has another path: to read that "
                f"file, pass future.file({name!r})"
            )
        raise DataError(
            f"task {self._title!r}: missing input file {name!r}: no earlier call declares it, and "
            f"there is no file {expected!r}. {cure}"
        )


def states_at_call(inputs: Sequence[InputFile], directory: str) -> dict[int, FileState]:
    """Return the states of the regular files among the inputs of a call, by their `id`.

    Time stamps of many file systems have a resolution of some milliseconds. A small file that was
    written just now is therefore compared by its content.
    """
    states = {}
    for file in inputs:
        path = _path_on_disk(file, directory)
        if file.remote_url is None and (state := state_at(path)) is not None:
            if state.size <= _SMALL and abs(time.time_ns() - state.mtime_ns) < _JUST_NOW_NS:
                state = state._replace(digest=_digest(path))
            states[id(file)] = state
    return states


def state_at(path: str) -> FileState | None:
    """Return the state of a regular file, or `None` if there is none."""
    return _state_of(_stat(path))


def _path_on_disk(file: InputFile, directory: str) -> str:
    return os.path.normpath(os.path.join(directory, given_path(file)))


def is_in_state(path: str, state: FileState) -> bool:
    """Return True if a file has not changed."""
    found = state_at(path)
    if found is None or state.digest is None:
        return found == state
    return found == state._replace(digest=None) and _digest(path) == state.digest


def _digest(path: str) -> bytes | None:
    try:
        return hashlib.blake2b(b"".join(pieces(path)), digest_size=16).digest()
    except OSError:
        return None


def as_source(producer: AttemptInfo, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the part of a task's description that a backend needs to link the task's files.

    Args:
        producer: The outcome of the task.
        left_out: Names of undeclared files that the dependent does not receive.
    """
    return {
        "uid": producer.uid,
        "sandbox": producer.files.sandbox,
        "metadata": {
            "dependencies": [],
            "input_files": [],
            "output_files": list(producer.files.output_files),
        },
        **({"left_out": sorted(left_out)} if left_out else {}),
    }


def _matched_by(
    declared: str, attempts: Sequence[AttemptInfo]
) -> list[tuple[str, AttemptInfo, str]]:
    """Return the files that match a pattern, which tasks declared.

    Returns:
        For each file, the path under which it is staged, relative to the directory for all of them;
        the attempt that wrote it; and its name. The second file with a name is staged in the
        directory `2`, the third one in `3`, and so on.
    """
    found: dict[str, tuple[AttemptInfo, str]] = {}
    for attempt in attempts:
        for name in attempt.files.matches.get(declared, ()):
            path, number = name, 2
            while path in found:
                path, number = f"{number}/{name}", number + 1
            found[path] = attempt, name
    return [(path, *file) for path, file in found.items()]
