"""The journal as a plugin: finds results of an earlier run, and keeps those of this one."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]

from rhapsody.errors import describe_error
from rhapsody.journal.code import Program
from rhapsody.journal.files import FileDigests
from rhapsody.journal.keys import Key, Keys
from rhapsody.journal.store import Recording, Store
from rhapsody.journal.values import NoDigestError
from rhapsody.plugins.reports import Summary
from rhapsody.plugins.specs import LookupTask, Record, Recorded, hookimpl

log: logging.Logger = logging.getLogger("rhapsody.journal")


@dataclass(slots=True)
class _Call:
    key: Key
    number: int


class Journal:
    """Keeps the results of a run, so that the next one need not make them again.

    Args:
        path: The journal's file; made where it is not there.
        program: The directory of the program: modules below it are its own.
        resume: Whether recordings are taken up; `None`: where the last run did not end well.
        largest: Bytes of a packed value above which it is not kept.

    Attributes:
        taken: How many results of an earlier run were used.

    Raises:
        JournalError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        program: Path,
        *,
        resume: bool | None = None,
        largest: int | None = None,
    ) -> None:
        self.taken: int = 0
        self._store = Store(path)
        self._store.begin(resume)
        self._keys = Keys(Program(program, FileDigests()))
        self._largest = largest
        self._calls: dict[str, _Call] = {}
        self._numbers: Counter[bytes] = Counter()
        self._told: set[str] = set()

    # On the loop.

    @hookimpl
    async def rhapsody_lookup_results(
        self, tasks: Sequence[LookupTask]
    ) -> Sequence[Recorded | None]:
        """Finds what an earlier run has kept of the same calls."""
        return await self._store.do(partial(self._find, tasks))

    @hookimpl
    async def rhapsody_record_results(self, records: Sequence[Record]) -> None:
        """Keeps results; they are seen when they are in the file."""
        await self._store.do(partial(self._keep, records))

    @hookimpl
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """Says how the run ended."""
        stats = summary.stats
        well = not (stats.failed or stats.cancelled or summary.cut_short)
        self._store.close("done" if well else "failed")

    # On the journal's thread.

    def _find(
        self, tasks: Sequence[LookupTask], database: sqlite3.Connection
    ) -> list[Recorded | None]:
        return [self._look_up(task, database) for task in tasks]

    def _look_up(self, task: LookupTask, database: sqlite3.Connection) -> Recorded | None:
        try:
            key = self._keys.of(task)
        except NoDigestError as error:
            self._say(task["name"], f"an argument has no digest: {error}")
            return None
        self._numbers[key.digest] += 1
        number = self._numbers[key.digest]
        if self._store.reused:
            packed = self._store.find(database, key.digest, number)
            if packed is not None:
                try:
                    found = Recorded(pickle.loads(packed))  # noqa: S301 - private, see `store`
                except Exception as error:  # whatever a class of the user's raises
                    self._say(task["name"], f"its result cannot be read: {describe_error(error)}")
                else:
                    self.taken += 1
                    return found
        self._calls[_call(task["uid"])] = _Call(key, number)
        return None

    def _keep(self, records: Sequence[Record], database: sqlite3.Connection) -> None:
        kept, codes = [], {}
        for record in records:
            call = self._calls.pop(_call(record.task["uid"]), None)
            packed = None if call is None else self._packed(record)
            if call is None or packed is None:
                continue
            key = call.key
            kept.append(
                Recording(
                    key.digest, call.number, record.task["name"], record.uid, key.parts, key.code,
                    packed,
                )
            )  # fmt: skip
            if key.code is not None and key.code in self._keys.codes:
                codes[key.code] = self._keys.codes.pop(key.code)
        if kept:
            self._store.write(database, kept, codes)

    def _packed(self, record: Record) -> bytes | None:
        name = record.task["name"]
        try:
            packed = pickle.dumps(record.value, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:  # of what pickle cannot name cloudpickle keeps the code
            try:
                packed = cloudpickle.dumps(record.value)
            except Exception as error:
                self._say(name, f"its result cannot be pickled: {describe_error(error)}")
                return None
        if self._largest is not None and len(packed) > self._largest:
            self._say(name, f"its result has {len(packed)} bytes, more than {self._largest}")
            return None
        return packed

    def _say(self, name: str, why: str) -> None:
        """Says, once for a task's name, that a result is not kept."""
        if name not in self._told:
            self._told.add(name)
            log.warning("task %r is not recorded, and runs again when the run is: %s", name, why)


def _call(uid: str) -> str:
    """What is the same of the uids of all attempts of a call."""
    return uid.rpartition(".")[0]
