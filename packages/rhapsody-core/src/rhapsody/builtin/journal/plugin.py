"""Journal plugin: reuses the results of earlier runs and records the results of this run."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import pickle
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from rhapsody.builtin.journal import pickling
from rhapsody.builtin.journal.addresses import (
    contained,
    identifies,
    parts_of,
    texts_in_files,
    texts_of,
)
from rhapsody.builtin.journal.files import (
    Edits,
    FileDigests,
    Outputs,
    has_files,
    is_data_set,
    paths_in,
    stat_of,
)
from rhapsody.builtin.journal.keys import (
    Key,
    Keys,
    as_text,
    require_no_relative_paths,
    require_not_changed,
)
from rhapsody.builtin.journal.opened import OpenedFiles, current_directory
from rhapsody.builtin.journal.others import Other, OtherJournals
from rhapsody.builtin.journal.program import Surroundings
from rhapsody.builtin.journal.store import FILES_MISSING, Earlier, How, Recording, Store, opened
from rhapsody.builtin.journal.values import UnhashableError
from rhapsody.data import leads_into
from rhapsody.errors import DataError, JournalError, describe_error
from rhapsody.identity import AttemptId, call_text, without_engine
from rhapsody.plugins.specs import LookupTask, Record, Recorded, Summary, TaskFiles, hookimpl
from rhapsody.sdk.generators import set_state
from rhapsody.sdk.modules import own_modules
from rhapsody.sdk.runner import MAX_OPENED

T = TypeVar("T")

log: logging.Logger = logging.getLogger("rhapsody.journal")


_Call = tuple[Key, int, str | None, tuple[float, str, str]]
"""A call that may be recorded: its key, its number among the calls with that key, the reason why an
earlier result is not used (`None` if there is none), and the time and current directory of the
lookup."""


class _Service(NamedTuple):
    """Service that was looked up.

    Attributes:
        name: The service's name.
        key: The service's key when it was looked up; `None` if the service has none.
        inputs: The paths of the service's input files by name.
        parts: The parts of the keys of the tasks that use the service.
        refused: The reason why the service has no key, or an empty string.
    """

    name: str
    key: Key | None
    inputs: Mapping[str, str | None] = MappingProxyType({})
    parts: Mapping[str, str] = MappingProxyType({})
    refused: str = ""


class _Uses(NamedTuple):
    """Services that a call uses.

    Attributes:
        services: The services, by the uids of their first attempts.
        addresses: See `LookupTask.addresses`.
    """

    services: Mapping[str, _Service]
    addresses: Mapping[str, Sequence[object]]

    def parts(self) -> Iterator[tuple[str, set[str]]]:
        """Yield the name of each service, and the parts of the addresses that it has had so far."""
        for uid, service in self.services.items():
            yield service.name, parts_of(self.addresses.get(uid, ()))


_NO_USES = _Uses(MappingProxyType({}), MappingProxyType({}))
_NOT_ADVANCED: Mapping[str, object] = MappingProxyType({})


class Journal:
    """Plugin that records the results of a run, and reuses the results of earlier runs.

    A journal object belongs to one run of a program. All engines of the run may share it; they call
    its hooks on their event loop. The hooks do their work on the journal's own thread and wait for
    it.

    Args:
        path: The path of the journal's file. A missing file is created so that only the current
            user can read and write it.
        program: The directory of the program. Paths below it are compared relative to it, so that
            the program can be moved.
        resume: True to reuse the results of the last run, False to ignore them, `None` to reuse
            them only if that run did not succeed.
        shared: True if another run may use the journal at the same time.
        largest: Maximum size of a recorded result in bytes, in memory (`sys.getsizeof`) and as a
            pickle; `None` for no limit.
        again: Names of tasks that run again, because their recorded results are not used.
        others: The paths of further journals, in which results are looked up that this journal does
            not contain. The first ones take precedence.
        push_down: True if, on backends that keep values, the engine may submit tasks before their
            dependencies have finished. Such tasks are not recorded. Values that a backend keeps
            are recorded if computing them took longer than fetching them.

    Attributes:
        path: The path of the journal's file.
        journal: The same as text; see `rhapsody_observers`.
        looks_up_in_turn: True, because one thread does the work.
        push_down: The argument `push_down`.
        max_value: The argument `largest`.
        names: The names in `again` that a task of this run has had so far.
        failed: Number of tasks that have failed, in the engines of this run that have ended.

    Raises:
        JournalInUseError: Another run uses the journal, and `shared` is False or the journal is on
            a network file system, where it cannot be shared.
        JournalError: The journal cannot be used.
    """

    def __init__(
        self,
        path: Path,
        program: Path,
        *,
        resume: bool | None = None,
        shared: bool = True,
        largest: int | None = None,
        again: Collection[str] = (),
        others: Sequence[Path] = (),
        push_down: bool = False,
    ) -> None:
        self.path: Path = path
        self.journal: str = str(path)
        self.looks_up_in_turn: bool = True
        self.push_down: bool = push_down
        self.max_value: int | None = largest
        self.names: set[str] = set()
        self._store = Store(path, shared=shared)
        try:
            self._store.begin(resume, again)
        except BaseException:
            self._store.end("failed")
            raise
        self._files = FileDigests(self._store.digest)
        self._exists = partial(self._files.once, os.path.lexists)
        self._program = Surroundings(program, self._files)
        self._keys = Keys(self._program)
        self._opened = OpenedFiles(self._program, self._files, path)
        self._others = OtherJournals(others, self._store.fresh_since)
        self._outputs = Outputs(path.parent, self._files)
        self._largest = largest
        self._again = frozenset(again)
        self._calls: dict[str, _Call] = {}
        self._services: dict[str, _Service] = {}
        self._uses: dict[str, _Uses] = {}  # of the calls in `_calls`
        self._noted: dict[str, tuple[int, str]] = {}  # files of reused calls
        self._outdated: set[str] = set()  # reused calls that are repeated with other input files
        self._readers: dict[str, dict[str, str]] = {}  # task names, by input and reused call
        self._numbers: dict[bytes, int] = {}
        self._identities: dict[bytes, int] = {}
        self._moved: dict[bytes, set[int]] = {}  # numbers of calls that had another key before
        self._refused: dict[str, str] = {}
        self._edits: Edits | None = None  # loaded when it is needed
        self._drawing: dict[int, set[str]] = {}  # calls in progress, by id of generator
        self._mixed: set[str] = set()  # calls with a generator that another one had meanwhile
        self._advances: list[tuple[object, object]] = []  # generators, and others to copy from
        self._many: set[str] = set()  # names of tasks that opened too many files
        self._reading: set[str] = set()  # names of commands that read undeclared directories
        self._moved_on: set[str] = set()  # names of tasks whose results contain old addresses
        # Files whose paths were returned: state, task and its name.
        self._returned: dict[str, tuple[tuple[int, int], str, str]] = {}
        self._sharing: set[str] = set()  # names of tasks that returned files of other tasks
        self.failed: int = 0
        self._now = 0.0, "", ""  # time, directory and variables at the current lookup
        self._failed = False

    @property
    def kept(self) -> int:
        """Number of results that this run has recorded."""
        return self._store.kept

    @property
    def taken(self) -> int:
        """Number of results of earlier runs that this run has used so far."""
        return len(self._store.used)

    @property
    def copied(self) -> Mapping[Path, int]:
        """Number of results of other journals that this run has used so far, by journal."""
        return self._others.taken

    @property
    def reused(self) -> int:
        """Number of recorded results that were available when this run began."""
        return self._store.reused

    @property
    def outdated(self) -> frozenset[str]:
        """Names of tasks whose recorded results are not used, because they run again."""
        return self._store.outdated

    @property
    def before(self) -> str:
        """Outcome of the previous run, which this run resumes, such as `"failed"`.

        Meaningless if this run resumes none.
        """
        return self._store.before

    def end(self, how: How) -> None:
        """End the run. A second call has no effect.

        Args:
            how: The outcome of the run.

        Raises:
            JournalError: The journal cannot be written.
        """
        self._store.end(how, self._others.close)

    # On the loop.

    @hookimpl
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """Count the tasks that failed."""
        self.failed += summary.stats.failed - summary.stats.skipped

    @hookimpl
    async def rhapsody_lookup_results(
        self, tasks: Sequence[LookupTask]
    ) -> Sequence[Recorded | None]:
        """Find the results of the same calls in earlier runs.

        Generators in the arguments of reused calls are advanced as the calls had advanced them.

        Returns:
            For each task, its recorded result, or `None` if it runs.
        """
        found = await self._on_thread(partial(self._find, tasks)) or [None] * len(tasks)
        advances, self._advances = self._advances, []
        for generator, other in advances:
            set_state(generator, other)
        return found

    @hookimpl
    async def rhapsody_record_results(
        self, records: Sequence[Record]
    ) -> Sequence[Exception | None] | None:
        """Record results before the engine sets them on their futures."""
        return await self._on_thread(partial(self._keep, records))

    async def _on_thread(self, work: Callable[[], T]) -> T | None:
        """Return the result of calling `work` on the journal's thread.

        If SQLite or the operating system reports an error, the journal is disabled. The result is
        then `None`, and later calls return `None` immediately.
        """
        if self._failed:
            return None
        try:
            return await self._store.do(work)
        except (sqlite3.Error, OSError) as error:  # a full disk, say: the run goes on
            if not self._failed:
                self._failed = True
                log.error(
                    "journal %s: disabled (%s); later results are not recorded, and the next run "
                    "will compute them again",
                    self.path,
                    error,
                )
            return None

    async def _has_content(self, noted: str, name: str, path: str) -> bool:
        return bool(await self._on_thread(partial(self._outputs.has_content, noted, name, path)))

    async def preview(
        self, tasks: Sequence[LookupTask]
    ) -> Sequence[tuple[Recorded | None, str]] | None:
        """Find the results that a run would reuse, and explain for each task whether it would run.

        Returns:
            A list with two values for each task: the result that a run would reuse (or `None`), and
            the explanation. `None` instead of the list if the journal is disabled.
        """
        return await self._on_thread(partial(self._preview, tasks))

    # On the journal's thread.

    def _preview(self, tasks: Sequence[LookupTask]) -> list[tuple[Recorded | None, str]]:
        results = self._find(tasks, preview=True)
        self._store.write((), self._keys.codes, {})
        with opened(self.path) as journal:
            earlier = journal.earlier(self._store.run, self._store.lineage)
            pairs = zip(tasks, results, strict=True)
            return [self._verdict(task, found, earlier) for task, found in pairs]

    def _verdict(
        self, task: LookupTask, found: Recorded | None, earlier: Earlier
    ) -> tuple[Recorded | None, str]:
        """Return the result that a run would reuse, and explain whether the task would run."""
        if found is None:
            return None, self._why(task, earlier)
        if found.files is None or not found.files.missing:
            return found, "reused"
        _, noted = self._noted[call_text(task["uid"])]
        missing = sorted(found.files.missing)
        saved = [name for name in missing if self._outputs.is_saved(noted, name)]
        if saved:
            return None, f"runs: its output {saved[0]} is missing"
        text = f"reused; its missing file {missing[0]} is written again only if it is read or saved"
        return found, text

    def _why(self, task: LookupTask, earlier: Earlier) -> str:
        call = self._calls.get(call_text(task["uid"]))
        if call is None:
            return f"runs: {self._refused.get(task['name'], 'it is not recorded')}"
        key, _, why, *_ = call
        parts = _with_files(key.parts, key.paths)
        uid = AttemptId.of(task["uid"]).task.label
        return f"runs: {why or earlier.what_changed(task['name'], uid, parts, key.code)}"

    def _find(self, tasks: Sequence[LookupTask], *, preview: bool = False) -> list[Recorded | None]:
        self._keys.begin()
        self._now = time.time(), current_directory(), self._opened.variables()
        own_modules()  # read the sources that workers receive, before keys are computed
        with self._files.looking_once(), self._store.lookups():  # none of the tasks has started
            results = [self._look_up(task, preview=preview) for task in tasks]
            for task, result in zip(tasks, results, strict=True):
                if task["destinations"] and not preview:
                    self._keep_edits(task, result)
        return results

    def _keep_edits(self, task: LookupTask, result: Recorded | None) -> None:
        """Copy files that a task is about to replace, if they were edited since they were saved."""
        places = () if result is None or result.files is None else result.files.places.values()
        others = [path for path in task["destinations"].values() if path not in places]
        others = list(filter(os.path.lexists, others))
        if not others:
            return
        if self._edits is None:
            self._edits = Edits(self._outputs.saved(self._store.files()), self._files)
        for path in others:
            for edited, copy in self._edits.keep(path):
                log.warning(
                    "%s was changed since it was saved, and task %r saves it again; the changed "
                    "version was kept as %s",
                    edited, task["name"], copy,
                )  # fmt: skip

    def _look_up(self, task: LookupTask, *, preview: bool = False) -> Recorded | None:
        name, call = task["name"], call_text(task["uid"])
        destinations = None if preview else task["destinations"]
        try:
            depends = task["implicit"] or task["after"] or task["services"]
            services = task["services"]
            more = self._more_parts(task, services) if depends else {}
            key = self._keys.of(task, task["settings"], task["inputs"], task["texts"], more)
            if "addresses" in task and (received := self._received(task, key)):
                services = [*services, *received]
                more = self._more_parts(task, services)
                key = self._keys.of(task, task["settings"], task["inputs"], task["texts"], more)
            if task["is_service"]:
                self._services[call] = self._service(task, key)
                return None
        except UnhashableError as error:
            if task["is_service"]:
                self._services[call] = _Service(name, None, refused=str(error))
            else:
                self._refuse(name, str(error))
            return None
        former = self._calls.pop(call, None)
        if former is None:
            ordered = any(map(_is_order, more))
            number = self._number(key.digest, self._place(key) if ordered else None)
        elif former[0].digest == key.digest:  # its input files were produced again, unchanged
            number = former[1]
        else:
            number = self._number(key.digest, former[1])
        identity = self._identify(key)
        uses = _NO_USES
        if services:
            used = {uid: self._services[call_text(uid)] for uid in services}
            uses = _Uses(used, task.get("addresses", {}))
        found = why = None
        again = name in self._again
        if again:
            why = "requested by --rerun"
            self.names.add(name)
        elif self._store.reused or self._others.paths:
            found, why = self._found(call, name, key, number, destinations, uses)
            if found is not None:
                for path in filter(None, task["inputs"].values()) if task["inputs"] else ():
                    self._readers.setdefault(path, {})[call] = name
                if not (found.files and found.files.missing):
                    return found
        for generator in key.generators.values() if key.generators else ():
            calls = self._drawing.setdefault(id(generator), set())
            calls.add(call)
            if len(calls) > 1:
                self._mixed |= calls
        self._calls[call] = key, number, why, self._now
        if services:
            self._uses[call] = uses
        if key.may_open:
            task["watch"] = self._opened.watched(key.paths.keys() & self._files.directories)
        if found is None and not again:
            digest, files, number = identity
            task["identity"] = f"{self._store.origin}-{digest.hex()}-{number}", files
        return found

    def _received(self, task: LookupTask, key: Key) -> list[str]:
        """Return the uids of services whose address a task receives, but not their futures."""
        others = [uid for uid in task["addresses"] if uid not in task["services"]]
        if not others:
            return []
        command = [task["executable"], *task.get("arguments", ())]
        function = task["function"]
        values = command if function is None else (function, task["args"], task["kwargs"])
        codes = [] if function is None else [function]
        texts = {*key.paths, *texts_of(values, codes), *texts_in_files(task["inputs"].values())}
        texts |= self._keys.texts_of_code(codes)
        found = []
        for uid in others:
            parts = parts_of(task["addresses"][uid])
            if identifies(parts, contained(parts, texts)):
                found.append(uid)
        return sorted(found, key=lambda uid: AttemptId.of(uid).task)

    def _more_parts(self, task: LookupTask, services: Sequence[str]) -> dict[str, str]:
        """Return the parts of the key of a task that represent other tasks and services.

        Args:
            task: The task.
            services: The uids of the services that the task uses.

        Raises:
            UnhashableError: The task has no key.
        """
        if task["implicit"] and any(map(has_files, task["implicit"])):
            raise UnhashableError(
                "it sees undeclared files that its dependencies left in their sandboxes; "
                "declare each file that it reads as an OutputFile of the task that writes it, "
                "and as an InputFile of this task"
            )
        more: dict[str, str] = {}
        for name, computed in task["after"].items():
            began = self._store.began if math.isinf(computed) else computed
            more[f"after {name!r}"] = f"{began:.6f}"
        for number, uid in enumerate(services):
            service = self._services.get(call_text(uid))
            if service is None:
                raise UnhashableError(
                    "it uses a service of an engine with another journal; start the service in the "
                    "engine of the task"
                )
            if service.key is None:
                raise UnhashableError(f"it uses service {service.name!r}: {service.refused}")
            which = f" {number}" if number else ""
            more |= {f"service{which} {part}": text for part, text in service.parts.items()}
        return more

    def _service(self, task: LookupTask, key: Key) -> _Service:
        """Return a service, whose parts become parts of the keys of the tasks that use it.

        Raises:
            UnhashableError: A file that the service's function opened has changed since then.
        """
        name, inputs = task["name"], dict(task["inputs"])
        parts = ast.literal_eval(key.parts)
        del parts["name"]
        if key.code is not None:
            parts["code"] = key.code.hex()
        portable = self._keys.program.portable
        for path, digest in key.paths.items():
            if digest is not None:
                parts[f"file {portable(path)}"] = digest.hex()
        if task.get("opened"):
            named = (path for path, digest in key.paths.items() if digest)
            start = int(task["interval"][0] * 1e9)
            known = *named, *inputs.values()
            links = key.paths if key.resolves else None
            opened = self._opened.noted(task, known, (), start, *self._now[1:], links, key.caches)
            parts |= {f"opened {path}": state for path, state in json.loads(opened or "{}").items()}
        parts = {f"{name!r}: {part}": text for part, text in parts.items()}
        return _Service(name, key, inputs, parts)

    def _require_unchanged(self, services: Iterable[_Service]) -> None:
        """Raise an error if the files of services have changed since the services started.

        Raises:
            UnhashableError: A file has changed.
        """
        for name, key, inputs, *_ in services:
            if key is None:
                continue
            try:
                self._keys.require_same_inputs(inputs, key.watched)
                require_not_changed(key.paths, self._keys.files(key.paths))
            except UnhashableError as error:
                raise UnhashableError(f"it uses service {name!r}: {error}") from None

    def _identify(self, key: Key) -> tuple[bytes, dict[str, str], int]:
        """Return the parts of the identity of the next call with a key. See `TaskDescription`.

        These are the digest of the key without the contents of files, the digests of these files,
        and the number of the call among those with the same digest.
        """
        digest = key.digest
        files: dict[str, str] = {}
        if key.paths and any(key.paths.values()):
            files = {path: digest.hex() for path, digest in key.paths.items() if digest}
            digest = self._keys.digest(key.parts, key.code, {})
        number = self._identities[digest] = self._identities.get(digest, 0) + 1
        return digest, files, number

    def _number(self, key: bytes, wanted: int | None = None) -> int:
        """Return the number of a call among the calls with the same key.

        Args:
            key: The key's digest.
            wanted: The number that the call had with its previous key; `None` if it had none. The
                call keeps this number unless another call with the new key has it.
        """
        counted, moved = self._numbers.get(key, 0), self._moved.get(key, ())
        if wanted is not None and wanted > counted and wanted not in moved:
            self._moved.setdefault(key, set()).add(wanted)
            return wanted
        counted += 1
        while counted in moved:
            counted += 1
        self._numbers[key] = counted
        return counted

    def _place(self, key: Key) -> int:
        """Return the number of a call among those that differ only in `after=`, also of services.

        If one of them runs again, because what it waits for did, the others keep their results.
        """
        parts = ast.literal_eval(key.parts)
        others = {name: part for name, part in parts.items() if not _is_order(name)}
        return self._number(self._keys.digest(f"in order: {as_text(others)}", key.code, key.paths))

    def _found(
        self,
        call: str,
        name: str,
        key: Key,
        number: int,
        destinations: Mapping[str, str] | None,
        uses: _Uses,
    ) -> tuple[Recorded | None, str | None]:
        """Find the recorded result of a call.

        Args:
            call: The part of the uid that all attempts of the call share.
            name: The task's name.
            key: The task's key.
            number: The number of the call among the calls with this key.
            destinations: The paths to which the outputs of the call will be saved, by name, or
                `None` if they are unknown.
            uses: The services that the call uses.

        Returns:
            The result (or `None`), and the reason why it cannot be used (or `None`). Both are
            `None` if none is recorded. Neither is `None` if files are missing: the call then runs
            again only if a task reads one of these files.

        Raises:
            sqlite3.Error: The journal cannot be read.
        """
        try:
            row, other = self._store.find(key.digest, number), None
            if row is None:
                if name in self._store.outdated:
                    return None, "requested by --rerun"
                other = self._others.find(key.digest, number) if key.portable else None
                if other is None:
                    return None, None
                noted = other.files and self._outputs.moved(other.files, other.journal.parent)
                row = 0, other.value, noted, other.began, other.opened
            recording, packed, noted, computed, opened = row
            if opened is not None and (changed := self._opened.changed(opened)):
                return None, changed
            files = None
            if noted is not None:
                why = self._outputs.returned_elsewhere(noted, self._program.roots[0])
                if why is not None:
                    return None, why
                noted = self._outputs.without_returned(noted)
                files = None if noted is None else self._outputs.found(noted)
                if noted is not None and files is None:
                    return None, "a file that it wrote is missing or has changed"
                if files is not None and _only_elsewhere(files, destinations):
                    return None, "the destination of a file that it wrote has changed"
            content = pickle.loads(packed)  # noqa: S301 - written by the user: `require_private`
            value, stdout, stderr, exit_code, *more = content
            advanced: Mapping[str, object] = _NOT_ADVANCED
            if more:
                advanced = more[0]
                addresses, returned = more[1:] or ({}, None)
                if returned and key.here:
                    value = {**key.arguments, **key.generators}.get(returned, value)
                if (why := _other_address(addresses, uses)) is not None:
                    if name not in self._moved_on:
                        self._moved_on.add(name)
                        log.warning("task %r runs again: %s", name, why)
                    return None, why
                if advanced and not self._keys.can_advance(key, advanced):
                    return None, "a random number generator cannot be advanced as the task did"
        except JournalError as error:
            log.warning("task %r runs again: %s", name, error)
            return None, str(error)
        except sqlite3.Error:
            raise
        except Exception as error:  # any error raised by a user's class
            why = f"its recorded result cannot be read: {describe_error(error)}"
            log.warning("task %r runs again: %s", name, why)
            return None, why
        if other is not None:
            recording = self._copy(call, name, key, number, other._replace(files=noted))
        if noted is not None and files is not None:
            files = replace(files, has_content=partial(self._has_content, noted))
        found = Recorded(value, files, stdout, stderr, exit_code, computed)
        for name in advanced.keys() & key.generators.keys() if advanced else ():
            self._advances.append((key.generators[name], advanced[name]))
        if noted is not None:
            self._noted[call] = recording, noted
        if files is None or not files.missing:
            self._store.used[recording] = 0
            return found, None
        self._store.used[recording] = FILES_MISSING
        return found, "a file that it wrote is missing or has changed"

    def _copy(self, call: str, name: str, key: Key, number: int, other: Other) -> int:
        """Copy a result of another journal to this one, and return its id."""
        why = f"recorded in journal {other.journal.name}"
        parts, code = _with_files(key.parts, key.paths), key.code
        text = None if code is None else self._keys.codes.pop(code, None)
        recording = Recording(
            key.digest, number, name, without_engine(call), parts, code, other.files, why,
            other.value, other.opened,
        )  # fmt: skip
        self._others.taken[other.journal] += 1
        codes = {} if code is None or text is None else {code: text}
        return self._store.copy(recording, codes, other.began)

    def _keep(self, records: Sequence[Record]) -> list[Exception | None] | None:
        refused: dict[str, Exception] = {}
        kept: list[Recording] = []
        self._keys.begin()
        with self._files.looking_once():  # all of these tasks have ended
            for record in records:
                if record.makes_again is not None:
                    error = self._made_again(record, call_text(record.makes_again))
                    if error is not None:
                        refused[record.uid] = error
                    continue
                task = call_text(record.task["uid"])
                if task in self._noted:  # it ran again: its files were missing
                    del self._noted[task]
                    for path in filter(None, record.inputs.values()):
                        self._readers.get(path, {}).pop(task, None)
                call = self._calls.pop(task, None)
                if call is None:
                    continue
                try:
                    recording = self._recording(record, call, self._uses.pop(task, _NO_USES))
                except sqlite3.Error:
                    raise
                except Exception as error:  # any error raised by its value or its files
                    self._refuse(record.task["name"], f"{type(error).__name__}: {error}")
                    continue
                if recording is not None:
                    kept.append(recording)
        if kept:
            codes = self._keys.codes
            new = codes.keys() & {recording.code for recording in kept}
            self._store.write(kept, {code: codes.pop(code) for code in new}, self._files.new)
            self._files.new.clear()
        return [refused.get(record.uid) for record in records] if refused else None

    def _made_again(self, record: Record, call: str) -> DataError | None:
        """Record files that a task has produced again after its result was reused.

        If the content of the files differs, it replaces the old content only if the run has reused
        no result that depends on the latter: the tasks of a run must not see two versions of a
        file. A reused task that is repeated with the new content is not recorded, since its key
        belongs to the old content.

        Returns:
            The error for the task if such a result was reused, otherwise `None`. After an error,
            the next run computes the results of the task and of its dependents again.
        """
        recording, former = self._noted.pop(call, (0, None))
        try:
            files = self._files_of(record)
        except UnhashableError:
            return None
        if files is None or former is None:  # another plugin found the result
            return None
        changed = self._outputs.changed(former, files)
        waiting, name = set(map(call_text, record.made_for)), record.task["name"]
        reused = [
            f"the result of task {reader!r} ({without_engine(other)})"
            for path in changed
            for other, reader in self._readers.get(path, {}).items()
            if other not in waiting
        ]
        if changed and not reused and not self._has_value(recording, record.value):
            reused = ["its previous result"]
        if not reused:
            self._files.gone |= changed  # for lookups that are still to come
            if changed:  # results of repeated readers belong to the old content
                self._outdated |= waiting & self._noted.keys()
            if call in self._outdated:
                self._store.forget(recording)
            else:
                self._store.replace_files(recording, files)
            return None
        self._store.forget(recording)
        files_named = ", ".join(sorted({repr(os.path.basename(path)) for path in changed}))
        return DataError(
            f"task {name!r} regenerated {files_named} with different content, but this run has "
            f"already reused {reused[0]}, which belongs to the old content; run the program again "
            "to recompute both"
        )

    def _has_value(self, recording: int, value: object) -> bool:
        """Return True if a value and the recorded one have the same pickle."""
        packed = self._store.value(recording)
        try:
            recorded = pickle.loads(packed)[0]  # noqa: S301 - `_found` has loaded it before
            return pickle.dumps(recorded) == pickle.dumps(value)
        except Exception:  # any error raised by a user's class
            return False

    def _files_of(self, record: Record) -> str | None:
        """Return the files recorded for a task, as JSON. See `Outputs.noted`."""
        files, returned = record.files, paths_in(record.value, self._exists)
        if files is None and not returned:
            return None
        if returned:
            self._warn_of_shared(record, returned)
        named = files is not None and leads_into(record.value, files.sandbox)
        root = self._program.roots[0]
        return self._outputs.noted(files, named=named, returned=returned, root=root)

    def _recording(self, record: Record, call: _Call, uses: _Uses) -> Recording | None:
        """Return a result as the journal stores it, or `None` if it cannot be recorded."""
        task = record.task
        key, number, why, looked_up = call
        digest, paths = key.digest, key.paths
        advanced = self._advanced(key, call_text(record.task["uid"])) if key.generators else {}
        packed = None if advanced is None else self._packed(record, key, advanced, uses)
        if advanced is None:
            self._refuse(
                task["name"],
                "other tasks received its random number generator at the same time, or one that "
                "received it before has failed; give each task its own, such as "
                "numpy.random.default_rng(0).spawn(n)",
            )
        if packed is None:
            return None
        try:
            files = self._files_of(record)
            self._keys.require_same_values(task, key, record.inputs)
            if record.inputs or task["function"] is None:
                self._keys.require_unchanged(task, record.inputs, key.watched)
            if uses.services:
                self._require_unchanged(uses.services.values())
            if paths and "directory" in task:
                require_no_relative_paths(paths, task["directory"])
            if paths and (now := self._keys.files(paths)) != paths:
                require_not_changed(paths, now)  # files that it wrote are part of the key
                paths = now
                digest = self._keys.digest(key.parts, key.code, paths)
                number = self._number(digest, number)
            opened = None
            if "opened" in task or self._files.directories or key.resolves:
                opened = self._opened_by(record, key, paths, *looked_up)
        except UnhashableError as error:
            self._refuse(task["name"], str(error))
            return None
        parts, name, uid = key.parts, task["name"], record.uid
        if paths:
            parts = _with_files(parts, paths)
        row = digest, number, name, uid, parts, key.code, files, why, packed, opened
        return tuple.__new__(Recording, row)  # calling the class takes twice as long

    def _opened_by(
        self,
        record: Record,
        key: Key,
        paths: Mapping[str, bytes | None],
        since: float,
        directory: str,
        variables: str,
    ) -> str | None:
        """Return the undeclared files that a task opened, as JSON. See `OpenedFiles.noted`."""
        task, files = record.task, record.files
        opened = task.get("opened") or key.resolves
        if not opened and self._files.directories.isdisjoint(paths):
            return None
        directories = sorted(paths.keys() & self._files.directories)
        trees = [path for path in directories if self._files.once(is_data_set, path)]
        start = int(task.get("interval", (since,))[0] * 1e9)
        if directories and task["function"] is None:
            self._warn_of_directories(record, set(directories).difference(trees), start)
        if not (opened or trees):
            return None
        if len(task.get("opened", ())) >= MAX_OPENED and task["name"] not in self._many:
            self._many.add(task["name"])
            log.warning(
                "task %r opened more than %d undeclared files: changes in the others do not count; "
                "pass their directory as InputFile",
                task["name"],
                MAX_OPENED,
            )
        written = () if files is None else (*files.paths.values(), *files.places.values())
        named = (path for path, digest in paths.items() if digest)
        known = *named, *record.inputs.values(), *written
        links = paths if key.resolves else None
        return self._opened.noted(
            task, known, trees, start, directory, variables, links, key.caches
        )

    def _warn_of_shared(self, record: Record, returned: Iterable[str]) -> None:
        """Warn once for each task name of files that have changed since another task returned them.

        Args:
            record: The task.
            returned: The existing paths in its result.
        """
        name, call = record.task["name"], call_text(record.task["uid"])
        for path in map(os.path.abspath, returned):
            about = stat_of(path)
            if about is None or not stat.S_ISREG(about.st_mode):
                continue
            state = about.st_mtime_ns, about.st_size
            former, other, of_other = self._returned.setdefault(path, (state, call, name))
            if former != state and other != call and name not in self._sharing:
                self._sharing.add(name)
                log.warning(
                    "task %r returned the path %s, and so did task %r (%s), but the file has "
                    "changed since then: if both are reused, tasks that read it find only its last "
                    "content. Let each task write another file, or pass them OutputFile(%r)",
                    name, path, of_other, other, os.path.basename(path),
                )  # fmt: skip

    def _warn_of_directories(self, record: Record, directories: Iterable[str], start: int) -> None:
        """Warn once for each task name of directories that a command reads without declaring them.

        Args:
            record: The task.
            directories: The directories that the command names.
            start: The start time of the task, in nanoseconds since the epoch.
        """
        name, declared = record.task["name"], set(record.inputs.values())
        if name in self._reading:
            return
        for path in sorted(directories):
            if path not in declared and self._opened.is_only_read(path, start):
                self._reading.add(name)
                log.warning(
                    "task %r: changes in the directory %s, which its command names, do not count; "
                    "if the command reads files in it, pass InputFile(%r)",
                    name, path, path,
                )  # fmt: skip
                return

    def _advanced(self, key: Key, call: str) -> dict[str, object] | None:
        """Return the generators that a call has advanced; `None` if others had them meanwhile."""
        for number in set(map(id, key.generators.values())):
            self._drawing[number].discard(call)
            if not self._drawing[number]:
                del self._drawing[number]
        advanced = self._keys.advanced(key)
        return None if advanced and call in self._mixed else advanced

    def _packed(
        self, record: Record, key: Key, advanced: Mapping[str, object], uses: _Uses
    ) -> bytes | None:
        packed, largest = b"", self._largest
        value: tuple[object, ...] = record.value, record.stdout, record.stderr, record.exit_code
        addresses = _addresses_in(record, uses) if uses.services else {}
        returned = _argument(key, record.value)
        if advanced or addresses or returned:
            value += advanced, addresses, returned
        try:
            if largest is None or sys.getsizeof(record.value) <= largest:  # else it is too large
                read = key.used.found.read if key.here and key.used else ()
                packed = pickling.packed(value, read, self._program.is_own)
        except UnhashableError as error:
            self._refuse(record.task["name"], str(error))
            return None
        except Exception as error:
            why = f"its result cannot be pickled: {describe_error(error)}"
            self._refuse(record.task["name"], why)
            return None
        if largest is None:
            return packed
        name, size = record.task["name"], len(packed) or sys.getsizeof(record.value)
        if size > largest:
            self._refuse(
                name, f"its result has {size} bytes, more than journal_max_value={largest}"
            )
            return None
        return packed

    def _refuse(self, name: str, why: str) -> None:
        """Log and store the reason why tasks with this name are not recorded, once per name."""
        if name not in self._refused:
            self._refused[name] = why
            self._store.refuse(name, why)
            log.warning("task %r is not recorded and will run again on resume: %s", name, why)


def _argument(key: Key, value: object) -> str | None:
    """Return the name of the argument that a function in this process has returned, if any."""
    if key.here:
        for name, argument in (*key.arguments.items(), *key.generators.items()):
            if argument is value:
                return name
    return None


def _addresses_in(record: Record, uses: _Uses) -> dict[str, list[str]]:
    """Return the parts of the addresses of services that a result contains, by service name."""
    texts = texts_of([record.value])
    if record.files is not None:
        texts |= texts_in_files(record.files.paths.values())
    found: dict[str, list[str]] = {}
    for name, parts in uses.parts():
        if some := contained(parts, texts):
            found[name] = sorted({*found.get(name, ()), *some})
    return found


def _other_address(recorded: Mapping[str, Iterable[str]], uses: _Uses) -> str | None:
    """Return the reason why a result cannot be reused: it contains an address that is not valid.

    Args:
        recorded: See `_addresses_in`.
        uses: The services that the call uses.
    """
    now: dict[str, set[str]] = {}
    for name, parts in uses.parts():
        now.setdefault(name, set()).update(parts)
    for name, some in recorded.items():
        known = now.get(name, set())
        if not known.issuperset(some):
            how = "has changed" if known else "a dry run does not know"
            return f"its result contains the address of service {name!r}, which {how}"
    return None


def _is_order(name: str) -> bool:
    """Return True if a part of a key represents `after=` of the task or of a service it uses."""
    return name.startswith("after ") or (name.startswith("service") and ": after " in name)


def _only_elsewhere(files: TaskFiles, destinations: Mapping[str, str] | None) -> bool:
    """Return True if a file exists only at a path that is no longer its destination.

    Another file may be saved there, before or while this one is read.
    """
    if destinations is None:
        return False
    patterns = {name: pattern for pattern, names in files.matches.items() for name in names}

    def is_destination(name: str, path: str) -> bool:
        if name in patterns:
            return os.path.dirname(path) == destinations.get(patterns[name])
        return path == destinations.get(name)

    return any(
        path == files.places.get(name) and not is_destination(name, path)
        for name, path in files.paths.items()
    )


def _with_files(parts: str, paths: Mapping[str, bytes | None]) -> str:
    """Return the text `parts` of a key (see `Key.parts`) with the digests of files added."""
    if not any(paths.values()):
        return parts
    read = {f"file {path}": digest.hex() for path, digest in paths.items() if digest}
    return f"{parts[:-1]}, {as_text(read)[1:]}"
