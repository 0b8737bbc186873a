"""Files of one attempt, from their declaration until nothing of the attempt needs them.

A `FileFlow` is the only owner of the files of an attempt: the locations of its inputs, the
destinations of its outputs, and the sandboxes that must stay on disk for it. `TABLE` contains its
phases, and the transitions between them. Each transition is a method of the same name; one that is
not in the table raises `IllegalFileTransitionError`. A method that raises another error leaves the
phase unchanged, so that the attempt can still fail or be released.

    declared -> resolved -> placed -> checked -> saved -> released

Undeclared files of dependencies are part of the flow: they are found and copied when the inputs are
placed (see `rhapsody.staging.inheritance`), and not regarded as outputs when these are checked.

The destinations are claimed for the call, not for the attempt. An attempt that fails therefore
leaves them to the next one, and `release` gives them up when the work of the call has ended. The
following holds in the phase `released`:

1. The attempt keeps no sandbox of another attempt on disk, and no link is created or copied for it.
2. If `release` was called, the call claims no path.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from rhapsody.data import InputFile, InputFiles, Output
from rhapsody.errors import CapabilityError, DataError
from rhapsody.fsutil import remove_directory
from rhapsody.identity import AttemptId, TaskId
from rhapsody.sdk.threads import FAST_FILES
from rhapsody.staging.claims import Target
from rhapsody.staging.inheritance import FileState, Inheritance, file_state, inherit
from rhapsody.staging.inputs import (
    InputPlace,
    InputSearch,
    Origin,
    as_source,
    is_in_state,
    left_place,
    state_at,
)
from rhapsody.staging.outputs import check_outputs, names_of, without_place
from rhapsody.staging.sandboxes import Disposition
from rhapsody.staging.stager import Stager
from rhapsody.task import NO_FILES, AttemptInfo, ProducedFiles, Sandbox, TaskDescription, Written

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.plugins.specs import TaskFiles


class FilePhase(StrEnum):
    """Phase of the files of an attempt."""

    DECLARED = "declared"  # the files are known by name
    RESOLVED = "resolved"  # the inputs are found, and the destinations are claimed
    PLACED = "placed"  # the inputs are in the sandbox, or are read in place
    CHECKED = "checked"  # the attempt has succeeded, and its outputs exist
    SAVED = "saved"  # the outputs are at their destinations
    RELEASED = "released"  # the attempt needs no files any more


class FileTransition(StrEnum):
    """Event that moves the files of an attempt to another phase."""

    RESOLVE = "resolve"
    PLACE = "place"
    CHECK = "check"  # the attempt has succeeded
    REUSE = "reuse"  # a recorded result is used instead of running the attempt
    SAVE = "save"
    FAIL = "fail"  # the attempt has failed; there may be another one
    STOP = "stop"  # the attempt has ended, and its result is not used
    RELEASE = "release"  # the work of the call has ended


_P, _T = FilePhase, FileTransition

TABLE: Final[tuple[tuple[FilePhase, FileTransition, FilePhase], ...]] = (
    (_P.DECLARED, _T.RESOLVE, _P.RESOLVED),
    (_P.RESOLVED, _T.RESOLVE, _P.RESOLVED),  # missing inputs have been recreated
    (_P.DECLARED, _T.PLACE, _P.PLACED),  # there is nothing to find, as in dry runs
    (_P.RESOLVED, _T.PLACE, _P.PLACED),
    (_P.DECLARED, _T.REUSE, _P.CHECKED),
    (_P.RESOLVED, _T.REUSE, _P.CHECKED),
    (_P.PLACED, _T.CHECK, _P.CHECKED),
    (_P.PLACED, _T.FAIL, _P.RELEASED),
    (_P.PLACED, _T.STOP, _P.RELEASED),
    (_P.CHECKED, _T.SAVE, _P.SAVED),
    (_P.CHECKED, _T.FAIL, _P.RELEASED),  # an output cannot be saved
    *((phase, _T.RELEASE, _P.RELEASED) for phase in _P),
)
"""Rows of the table: (phase, transition, next phase)."""


class IllegalFileTransitionError(RuntimeError):
    """The engine attempted a transition that is not in the table."""


class _PhaseRow(dict[FileTransition, FilePhase]):
    """Next phase for each transition that is possible from one phase."""

    def __missing__(self, transition: FileTransition) -> FilePhase:
        raise IllegalFileTransitionError(
            f"no transition {transition!s} of the files of an attempt; possible are {[*self]}"
        )


AFTER: Final[Mapping[FilePhase, _PhaseRow]] = {
    phase: _PhaseRow({event: after for before, event, after in TABLE if before is phase})
    for phase in FilePhase
}


_UNUSED = (FilePhase.DECLARED, FilePhase.RESOLVED, FilePhase.PLACED)
"""Phases in which it is not decided when the sandbox is removed."""

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class FileFlow:
    """Files of one attempt. All methods are called on the engine's loop.

    Args:
        stager: The engine's stager.
        task: The attempt's description.
        inputs: The input files among the attempt's arguments.
        outputs: The output files among the attempt's arguments.
        sources: The outcomes of the attempt's dependencies that have a sandbox, in argument order.
        left: The sources whose undeclared files the attempt receives.
        written: The outputs that inputs stand for, by the `id` of the input.
        states: The states of inputs at the call, by the `id` of the input.
        repeats: The call that the attempt repeats, if any. Its files that another task has replaced
            at their destinations are not saved again.

    Attributes:
        phase: The phase.
        left: The argument `left`; once it is known on which backend the attempt runs, the sources
            among them that may have left files which the attempt can receive there.
        places: The locations of the inputs, by their paths in the sandbox, once found.
        targets: The destinations of the outputs, by name, once claimed.
        matches: The files that match each pattern among the outputs, once checked.
        linked: The states of undeclared files to which links in the sandbox may lead, by path.
        at_call: The paths, in the sandbox, of inputs whose states were taken at the call.
    """

    __slots__ = (
        "_coming", "_copies", "_held", "_inheritance", "_inputs", "_links_wait", "_needs",
        "_outputs", "_reads", "_reference", "_repeats", "_search", "_sources", "_stager", "_states",
        "_task", "at_call", "left", "linked", "matches", "phase", "places", "targets",
    )  # fmt: skip

    def __init__(
        self,
        stager: Stager,
        task: TaskDescription,
        inputs: Sequence[InputFile] = (),
        outputs: Sequence[Output] = (),
        sources: Sequence[AttemptInfo] = (),
        left: Sequence[AttemptInfo] = (),
        written: Mapping[int, Written] = _NOTHING,
        states: Mapping[int, FileState] = _NOTHING,
        repeats: TaskId | None = None,
    ) -> None:
        self._stager = stager
        self._task = task
        self._inputs = inputs
        self._outputs = outputs
        self._repeats = repeats
        self._sources = sources
        self.left: Sequence[AttemptInfo] = left
        self.phase: FilePhase = FilePhase.DECLARED
        self._search: InputSearch | None = None
        if inputs:
            unique = tuple({source.uid: source for source in sources}.values())
            self._search = InputSearch(
                task["name"], inputs, outputs, unique, written, states,
                str(stager.directory), stager.destinations,
            )  # fmt: skip
            writers = chain.from_iterable(output.attempts for output in written.values())
            self._sources = (*unique, *writers)
        self._states = states
        self.places: dict[str, InputPlace] = {}
        self.targets: Mapping[str, Target] = _NOTHING
        self.matches: Mapping[str, tuple[str, ...]] = _NOTHING
        self.linked: Mapping[str, FileState] = _NOTHING
        self.at_call: frozenset[str] = frozenset()
        self._copies: frozenset[str] = frozenset()  # inputs that are copied: paths in the sandbox
        self._links_wait = False  # True if `copy` creates the links
        self._coming: Mapping[str, asyncio.Task[str]] = _NOTHING  # pending fetches
        self._reads: Sequence[tuple[str, str]] = ()  # files of other tasks: sandboxes and names
        self._held: tuple[Sandbox, ...] = ()  # sandboxes that stay while the attempt runs
        self._needs: tuple[Sandbox, ...] = ()  # those to which links in the sandbox may lead
        self._inheritance: Inheritance | None = None
        self._reference: Sandbox | None = None  # to the sandbox of the attempt itself

    # Before the attempt.

    def arguments(self, *, by_path: bool) -> dict[int, Any]:
        """Return the objects that the task receives for its files, by the `id` of the file.

        Args:
            by_path: See `File.bound_to`.

        Raises:
            DataError: Two inputs would have the same name.
        """
        sandbox, search = self._task.get("sandbox"), self._search
        bound: dict[int, Any] = {}
        if sandbox is not None:
            for output in self._outputs:
                bound[id(output)] = output.bound_to(sandbox, by_path=by_path)
        if search is not None and sandbox is not None:
            for file in self._inputs:
                bound[id(file)] = search.bound(file, sandbox, by_path=by_path)
        elif search is not None and self.phase is not FilePhase.DECLARED:
            for file in self._inputs:
                bound[id(file)] = search.located(file, self.places)
        return bound

    def located(self, files: Iterable[InputFile]) -> dict[int, InputFile | InputFiles]:
        """Return objects for inputs with their original paths, by the `id` of the input.

        Worker values read them there, because they are used longer than the sandbox of a task.

        Args:
            files: The inputs.

        Returns:
            The objects; empty before the inputs have been found.

        Raises:
            DataError: An input is only on the backend, so that this process knows no path.
        """
        search = self._search
        if search is None or self.phase is FilePhase.DECLARED:
            return {}
        found: dict[int, InputFile | InputFiles] = {}
        for file in files:
            place = self.places.get(search.names()[id(file)])
            if place is not None and place.path is None:
                raise DataError(
                    f"task {self._task['name']!r}: {file!r} is in the arguments of a worker value, "
                    "but only its backend has the file; save it with OutputFile(..., save=...), or "
                    "pass the file to the task"
                )
            found[id(file)] = search.located(file, self.places)
        return found

    def expected(self) -> dict[str, Origin]:
        """Return the origins of the inputs that exist already. For dry runs, which link nothing."""
        found: dict[str, Origin] = {}
        if self._search is not None:
            for file in self._inputs:
                with contextlib.suppress(DataError):  # it does not exist yet
                    found |= self._search.origins([file])
        return found

    def resolve(
        self,
        backend: BaseExecutionBackend,
        others: Iterable[BaseExecutionBackend] = (),
        *,
        dry: bool = False,
    ) -> bool:
        """Find the inputs, start fetching the remote ones, and claim the destinations.

        Args:
            backend: The backend to which the attempt will be submitted.
            others: Other backends that must be able to handle the files.
            dry: True if the backend runs nothing, and therefore reads nothing.

        Returns:
            True if `fetch` must be awaited.

        Raises:
            DataError: An input is missing or ambiguous; or a file cannot be saved to its
                destination; see `PathClaims.claim`.
            CapabilityError: A backend cannot link or save files, or an input cannot be copied from
                the backend of the task that wrote it.
        """
        after = AFTER[self.phase][_T.RESOLVE]
        if self.left:
            receives, has_left = backend.capabilities.sandboxes, self._stager.has_left
            self.left = [each for each in self.left if receives and has_left(each, backend)]
        if dry or not (self._inputs or self._outputs or self.left):
            return False
        for each in (*others, backend):
            self._stager.require_capable(self._task, each, self._inputs, self._outputs)
        if self._search is not None:
            if self.phase is FilePhase.RESOLVED:
                self._search.forget()
            self._find(self._search, backend)
        references = (source.files.reference for source in self._sources)
        self._held = tuple(each for each in references if each is not None)
        if not self._coming and self._outputs:
            self._claim()
        self.phase = after
        return bool(self._coming)

    def _find(self, search: InputSearch, backend: BaseExecutionBackend) -> None:
        task, stager, origins = self._task, self._stager, search.origins()
        self.at_call = frozenset(map(search.names().__getitem__, self._states))
        self._copies = frozenset(to for to, origin in origins.items() if origin.copy)
        if self._copies and not _takes_copies(backend):
            raise CapabilityError(
                f"task {task['name']!r} has an input with copy=True, but backend {backend.name!r} "
                "does not copy inputs; use another backend, or copy the file in the task"
            )
        places: dict[str, InputPlace] = {}
        coming: dict[str, asyncio.Task[str]] = {}
        reads: list[tuple[str, str]] = []
        for to, (name, producer, path, url, copy, state) in origins.items():
            if url is not None:
                coming[to] = stager.fetcher.download(url, name)
            elif producer is None:
                stager.results.claims.reads(task, str(path))
                places[to] = InputPlace(path, state=state, given=True)
            else:
                place = self._place_of(producer, name, to, backend, copied=copy)
                if place is None:
                    coming[to] = stager.copied(task, producer, name)
                else:
                    places[to] = place
                if producer.files.sandbox is not None:
                    reads.append((producer.files.sandbox, name))
                    stager.results.is_read(AttemptId.of(producer.uid).task.label, name)
        self.places, self._coming, self._reads = places, coming, reads

    def _place_of(
        self,
        producer: AttemptInfo,
        name: str,
        to: str,
        backend: BaseExecutionBackend,
        *,
        copied: bool,
    ) -> InputPlace | None:
        """Return the location of a file that another task wrote; `None` if it must be copied out.

        Args:
            producer: The outcome of the task.
            name: The name of the file.
            to: The path of the file in the sandbox of this attempt.
            backend: The backend of this attempt.
            copied: True if this attempt receives a copy.

        Raises:
            DataError: The file needs another name, and this process cannot read it.
        """
        place, files = left_place(producer, name), producer.files
        if files.paths is not None:  # a task of an earlier run
            lost = files.regeneration is not None and self._stager.is_lost(producer, place)
            missing = producer if lost else None
            return place._replace(path=files.path_of(name), producer=None, missing=missing)
        if self._stager.is_on(backend, producer):
            if to == name and not copied:
                return place
            if place.path is not None:  # the backend would look for a file with the new name
                return place._replace(producer=None)
            if not backend.capabilities.copies_files_out:
                raise DataError(
                    f"task {self._task['name']!r}: input {name!r} cannot be named {to!r}, because "
                    "the sandbox that contains it cannot be read on this machine; rename the file "
                    "in the task that writes it"
                )
        return None if place.path is None else place._replace(producer=None)

    def destinations(self) -> dict[str, str]:
        """Return the destinations that the run has not written so far, by name of the output."""
        written = self._stager.results.claims.has_written
        targets = self.targets.items()
        return {name: str(path) for name, (path, _) in targets if not written(path)}

    async def fetch(self) -> None:
        """Wait for the inputs that are being fetched, and claim the destinations.

        Raises:
            DataError: A file cannot be fetched, or a file cannot be saved to its destination; see
                `PathClaims.claim`.
        """
        for name, fetch in self._coming.items():
            path = await asyncio.shield(fetch)
            self.places[name] = InputPlace(path, state=state_at(path))
        if self._outputs and self.phase is FilePhase.RESOLVED:  # it was not canceled meanwhile
            self._claim()

    def _claim(self) -> None:
        claims = self._stager.results.claims
        self.targets = claims.claim(self._task, self._outputs, self._repeats)

    def missing(self) -> list[AttemptInfo]:
        """Return the outcomes of the tasks that wrote the missing inputs in earlier runs."""
        lost = (place.missing for place in self.places.values() if place.missing is not None)
        return list({producer.uid: producer for producer in lost}.values())

    def choose_place(self, backend: BaseExecutionBackend) -> bool:
        """Decide if a function reads its inputs in place, without links, or in a sandbox.

        Creating and removing a sandbox and its links costs more than many calls. The function needs
        a sandbox if an input has another name there, which the function may use. A sandbox cannot
        be created later, because the function receives the paths of its inputs.

        Returns:
            False if the attempt had a sandbox already.
        """
        if "sandbox" in self._task:
            return False
        can = backend.capabilities
        in_place = (
            self.phase is FilePhase.RESOLVED
            and can.shared_file_system
            and not can.copies_files_out  # for all of its workers
            and not any(file.name is not None or file.copy for file in self._inputs)
            and all(
                place.path is not None and os.path.basename(place.path) == os.path.basename(name)
                for name, place in self.places.items()
            )
        )
        if not in_place:
            self._task["sandbox"] = self._stager.sandbox_path(self._task["uid"])
        return True

    def place(self, backend: BaseExecutionBackend) -> bool:
        """Link the inputs into the sandbox, just before submission.

        The sandboxes that contain them stay on disk until the attempt has ended. If links are slow
        or have not been measured, and the backend can create them on another thread, `copy` creates
        them.

        Returns:
            True if `copy` must be awaited.

        Raises:
            DataError: A file cannot be linked.
            OSError: The backend cannot create a link.
        """
        after = AFTER[self.phase][_T.PLACE]
        in_sandbox = self.phase is FilePhase.RESOLVED and "sandbox" in self._task
        if in_sandbox and len(self.places) > len(self._copies):
            self._links_wait = not self._stager.links.on_loop and _takes_copies(backend)
            if not self._links_wait:
                self._link_all(backend, self.places)
        self.phase = after
        return in_sandbox and bool(self._links_wait or self._copies or self.left)

    def _link_all(self, backend: BaseExecutionBackend, places: Mapping[str, InputPlace]) -> None:
        for name, place in places.items():
            if name not in self._copies:
                begin = perf_counter()
                self._link(name, place, backend)
                self._stager.links.note(perf_counter() - begin < FAST_FILES)

    def _link(self, name: str, place: InputPlace, backend: BaseExecutionBackend) -> None:
        producer = place.producer
        try:
            backend.link_explicit_data_deps(
                src_task=None if producer is None else as_source(producer),
                dst_task=self._task,
                file_name=name,
                file_path=place.path if producer is None else None,
            )
        except (DataError, OSError) as error:
            if "/" not in name:
                raise
            raise DataError(
                f"backend {backend.name!r} cannot link input {name!r} of task "
                f"{self._task['name']!r} into a directory of the sandbox ({error}); give each "
                "input with this name a different name, as in InputFile(..., name='a.txt')"
            ) from error

    async def copy(self, backend: BaseExecutionBackend) -> None:
        """Copy files into the sandbox, on another thread. Called after `place`.

        These are inputs with `copy=True`, and undeclared files of dependencies unless an input has
        the same name. Inputs that `place` has not linked are linked before.

        Raises:
            DataError: Two dependencies left files with the same name; an undeclared file that is
                too large to be copied has been changed; or a file cannot be copied.
        """
        if self.phase is FilePhase.PLACED:  # it was not canceled meanwhile
            work = partial(self._copy, backend, self.places, self.left)
            await self._stager.threads.run(work)

    def _copy(
        self,
        backend: BaseExecutionBackend,
        places: Mapping[str, InputPlace],
        left: Sequence[AttemptInfo],
    ) -> None:
        link: Any = backend.link_explicit_data_deps  # `copy` is optional for backends
        task = self._task
        try:
            if self._links_wait:
                self._link_all(backend, places)
            for name in sorted(self._copies):
                path = places[name].path
                link(src_task=None, dst_task=task, file_name=name, file_path=path, copy=True)
            if left:
                taken = {name.partition("/")[0] for name in places}
                self._copy_undeclared(backend, left, taken)
        finally:
            if self.phase is FilePhase.RELEASED:  # it was canceled meanwhile
                self._needs = ()
                if self._stager.keep != "all":
                    with contextlib.suppress(OSError):
                        remove_directory(task["sandbox"])

    def _copy_undeclared(
        self, backend: BaseExecutionBackend, left: Sequence[AttemptInfo], taken: Collection[str]
    ) -> None:
        task, originals = self._task, self._stager.originals
        here = [source for source in left if os.path.isdir(source.files.sandbox or "")]
        inheritance = self._inheritance = inherit(task["name"], here, taken)
        for path, state in inheritance.linked.items():
            if originals.get(path, state) != state:
                raise DataError(
                    f"task {task['name']!r} needs {path!r}, which another task has changed through "
                    "a link. Declare the file as an OutputFile of the task that writes it, and "
                    "pass it as InputFile(..., copy=True) to the task that changes it"
                )
            if path in inheritance.large:
                originals[path] = state
        self.linked = inheritance.linked
        linked = (each.files for each in left if each.uid in inheritance.linked_uids)
        self._needs = tuple(each.reference for each in linked if each.reference is not None)
        for source in left:
            left_out = inheritance.left_out.get(source.uid, ())
            backend.link_implicit_data_deps(as_source(source, left_out), task)

    # After the attempt.

    def changed(self) -> dict[str, str]:
        """Return the paths of inputs that have changed since they were found, by staged path.

        Directories, inputs that are copied, and files that this process cannot read are not
        checked: tools write caches and indexes into directories. A fetched file that has changed is
        fetched again for later tasks.

        A changed input fails the task, without retries or a fallback, which would hide the change.
        Copying all inputs would be too slow, and write-protecting them would not stop root and
        would change the mode of users' files.
        """
        changed = {
            name: place.path
            for name, place in self.places.items()
            if place.state is not None and place.path is not None and name not in self._copies
            if not is_in_state(place.path, place.state)
        }
        for path, state in self.linked.items():
            if file_state(path) != state:
                changed[path] = path
        for path in changed.values():
            self._stager.fetcher.forget(path)
        return changed

    def changed_since_call(self, *, copied: bool = False) -> dict[str, str]:
        """Return the inputs whose states at the call have changed.

        Args:
            copied: True for only the inputs that are copied, which `changed` does not check.
        """
        names = self.at_call & self._copies if copied else self.at_call
        places = ((name, self.places[name]) for name in names if name in self.places)
        return {
            name: place.path
            for name, place in places
            if place.path is not None and place.state is not None
            if not is_in_state(place.path, place.state)
        }

    def check(
        self,
        sandbox: str | None,
        backend: BaseExecutionBackend,
        *,
        dry: bool = False,
        stays: bool = False,
        recorded: bool = False,
    ) -> ProducedFiles:
        """Check the outputs of an attempt that has succeeded, and decide what is kept.

        Inputs that other tasks wrote are regarded as intermediate files from then on.

        Args:
            sandbox: The sandbox that the backend reports, if any.
            backend: The backend that ran the attempt.
            dry: True if the backend has run nothing.
            stays: True if the attempt's result is, or contains, a path into the sandbox.
            recorded: True if the result is recorded, so that the outputs stay until the run
                succeeds.

        Returns:
            The sandbox and the outputs.

        Raises:
            DataError: An output is missing; see `check_outputs`.
        """
        after = AFTER[self.phase][_T.CHECK]
        if self._outputs and not dry and backend.capabilities.shared_file_system:
            given = {*self.places}
            if self._inheritance is not None:
                given.update(self._inheritance.unchanged(self._task["sandbox"]))
            self.matches = check_outputs(self._task, self._outputs, given=given)
        for place, name in self._reads:
            self._stager.sandboxes.read(place, name)
        files = self._leave(sandbox, self._outputs, stays=stays, recorded=recorded)
        self._reference = files.reference
        self.phase = after
        return files

    def _leave(
        self,
        sandbox: str | None,
        outputs: Sequence[Output] = (),
        *,
        failed: bool = False,
        stays: bool = False,
        recorded: bool = False,
    ) -> ProducedFiles:
        """Decide when the sandbox is removed, and release the sandboxes of other attempts."""
        task, stager, inheritance, reference = self._task, self._stager, self._inheritance, None
        path = self._removable()
        if failed and stager.keep != "none":
            if path is not None or "sandbox" not in task:
                for source in self._held:
                    source.spare()
                stager.cache_stays |= bool(self._coming)
        elif path is not None:
            results = without_place(task, task["sandbox"], outputs, self.matches) if outputs else {}
            if stays or stager.keep == "all":
                stager.results.add(results.values())
                stager.sandboxes.note(path, Disposition.STAY)
                for source in self._needs:
                    source.spare()
            elif outputs:
                reference = stager.keep_outputs(
                    path, outputs, self.matches, results, self._needs, recorded=recorded
                )
            else:
                reference = stager.sandboxes.hold(path, Disposition.REMOVE, self._needs)
        self._held = self._needs = ()
        return ProducedFiles(
            sandbox,
            names_of(self._outputs, self.matches) if self._outputs else (),
            self.matches,
            None,
            _NOTHING if inheritance is None else inheritance.origins,
            reference,
        )

    def _removable(self) -> str | None:
        """Return the path of the sandbox; `None` if there is none, or if it is not the engine's."""
        sandbox = self._task.get("sandbox")
        if sandbox is None or not sandbox.startswith(self._stager.root):
            return None
        uid = self._task["uid"]
        if os.path.basename(sandbox) != uid:
            own = self._stager.sandbox_path(uid)
            if sandbox.startswith(own + os.sep):
                return own  # the backend started the attempt again, in a subdirectory
        return sandbox

    def reuse(self, files: TaskFiles | None, *, dry: bool) -> Sandbox | None:
        """Use a recorded result, whose files an earlier run wrote, and decide what is kept.

        Args:
            files: The files that exist; `None` if there are none.
            dry: True for a dry run, which changes nothing on disk.

        Returns:
            The reference that keeps the files on disk; `None` if they are not removed.
        """
        after = AFTER[self.phase][_T.REUSE]
        for place, name in self._reads:
            self._stager.sandboxes.read(place, name)
        if files is not None and not dry:
            self._reference = self._stager.take_up(self._task, self._outputs, files)
        self.phase = after
        self._held = ()
        return self._reference

    async def save(
        self, backend: BaseExecutionBackend, files: TaskFiles | None = None
    ) -> Sequence[Path]:
        """Save the outputs to their destinations.

        Args:
            backend: The backend that ran the attempt.
            files: Files of an earlier run, which are saved instead.

        Returns:
            The paths of the saved files and directories.

        Raises:
            DataError: An output could not be saved.
        """
        after = AFTER[self.phase][_T.SAVE]
        matches, repeats = self.matches, self._repeats
        if repeats is not None:
            others = partial(self._stager.results.claims.is_replaced, call=repeats)
            matches = {
                pattern: tuple(
                    each for each in names if not others(self.targets[pattern].path / each)
                )
                for pattern, names in matches.items()
                if pattern in self.targets
            }
        saved = await self._stager.save(self._task, self.targets, matches, backend, files)
        if self.phase is FilePhase.CHECKED:  # it was not canceled meanwhile
            self.phase = after
        return saved

    def fail(self, sandbox: str | None = None, *, stays: bool = False) -> ProducedFiles:
        """Keep the sandbox and the inputs of an attempt that has failed, to find out why.

        Args:
            sandbox: The sandbox that the backend reports, if any.
            stays: See `check`.

        Returns:
            The sandbox, and the names of the outputs.
        """
        after = AFTER[self.phase][_T.FAIL]
        if self._reference is not None:
            self._reference.spare()
            self._reference = None
        self.phase, before = after, self.phase
        if before is FilePhase.CHECKED:  # the sandbox is kept already
            return NO_FILES
        return self._leave(sandbox, failed=True, stays=stays)

    def stop(self, sandbox: str | None = None, *, stays: bool = False) -> ProducedFiles:
        """Remove the sandbox of an attempt whose result is not used, unless it stays.

        Args:
            sandbox: The sandbox that the backend reports, if any.
            stays: See `check`.

        Returns:
            The sandbox, and the names of the outputs.
        """
        self.phase = AFTER[self.phase][_T.STOP]
        return self._leave(sandbox, stays=stays)

    def release(self) -> None:
        """Release the destinations, and all sandboxes except the one of a successful attempt."""
        after = AFTER[self.phase][_T.RELEASE]
        if self.phase in _UNUSED:
            self._leave(None)
        self.phase = after
        self._held = self._needs = self._sources = self.left = ()
        self._search = self._reference = None
        self.places = {}
        self._stager.results.claims.release(self._task)


def _takes_copies(backend: BaseExecutionBackend) -> bool:
    """Return True if a backend can copy an input into a sandbox."""
    parameters = inspect.signature(backend.link_explicit_data_deps).parameters.values()
    return any(each.name == "copy" or each.kind is each.VAR_KEYWORD for each in parameters)
