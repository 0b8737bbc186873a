"""The engine's tasks in the client: submission to RADICAL-Pilot, cancellation, and their ends.

The program receives three of the fifteen states of a task: that the agent has it (only for
programs, because a call goes to RAPTOR), that it is running, and its end. The end is reported
once; for a running task that was canceled or timed out, when none of its processes is left on this
machine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

from rhapsody_radical import cleanup
from rhapsody_radical.client.raptor import Pair, Raptors
from rhapsody_radical.client.session import ClientPilot
from rhapsody_radical.schema import AGENT_EXECUTING, AGENT_STAGING_INPUT_PENDING, FINAL
from rhapsody_radical.wire import Worker

log: logging.Logger = logging.getLogger(__name__)

HEARD = frozenset({AGENT_STAGING_INPUT_PENDING, AGENT_EXECUTING, *FINAL})
"""The states to which the client reacts."""

Say = Callable[..., None]
"""Sends a message to the program: its name, its parts, and `within` how many seconds."""

SHARE, LONGEST = 0.005, 0.5
"""Seconds that a report may wait for each task that has not started, and in all.

The cost of a report in the program is mostly waking it up. While many tasks wait for cores, a late
report does no harm; if all open tasks run, cores stay idle until it arrives: it is sent at once.
"""


@dataclass(eq=False, slots=True)
class Entry:
    """One task from its submission to its end.

    Attributes:
        uid: Its uid.
        pilot: Its pilot.
        handle: RADICAL-Pilot's task, `None` before it is submitted.
        pair: The RAPTOR pair for it, `None` for a program.
        running: Whether it was reported as running.
        cancelled: Whether it is to be canceled, which is repeated until it has ended.
    """

    uid: str
    pilot: ClientPilot
    handle: Any = None
    pair: Pair | None = None
    running: bool = False
    cancelled: bool = False


class Tasks:
    """The tasks that have not ended.

    Args:
        session: The session's uid.
        pilots: Its pilots.
        raptors: RAPTOR on them.
        say: Sends a message to the program.

    Attributes:
        by_uid: The same, by their uids. Threads take out what has ended, so that it is not
            iterated over, see `open`.
    """

    def __init__(self, session: str, pilots: list[ClientPilot], raptors: Raptors, say: Say) -> None:
        self._session = session
        self._pilots = pilots
        self._raptors = raptors
        self._say = say
        self.by_uid: dict[str, Entry] = {}
        self._queued: set[str] = set()
        self._lock = threading.Lock()
        self._ending: list[tuple[Entry, str]] = []
        self._reaper = Worker("rhapsody-radical-reaper")

    def open(self) -> list[Entry]:
        """Those that have not ended, the oldest first."""
        return list(self.by_uid.values())

    # In; on the thread of commands.

    def submit(self, number: int, batch: list[tuple[str, dict[str, Any], Any]]) -> None:
        """Hands tasks to RADICAL-Pilot.

        Args:
            number: The pilot's.
            batch: Their uids, each with RADICAL-Pilot's words, and a call on RAPTOR, packed.
        """
        pilot, ready = self._pilots[number], []
        for uid, words, order in batch:
            try:
                ready.append(self._described(uid, words, order, pilot))
            except Exception as error:  # one task's problem
                self._refuse(uid, error)
        if not ready:
            return
        for entry, _ in ready:
            self.by_uid[entry.uid] = entry
            self._queued.add(entry.uid)
        try:
            handles = pilot.manager.submit_tasks([description for _, description in ready])
        except Exception as error:  # whatever RADICAL-Pilot raises: it has none of them
            for entry, _ in ready:
                self._forget(entry)
                self._refuse(entry.uid, error)
            return
        for (entry, _), handle in zip(ready, handles, strict=True):
            entry.handle = handle
            if entry.pair is not None and entry.pair.lost is not None:  # meanwhile
                self.end(entry, "LOST", entry.pair.lost)
        if pilot.ended:  # meanwhile: the program has ended them
            self.drop(pilot)

    def _described(
        self, uid: str, words: dict[str, Any], order: Any, pilot: ClientPilot
    ) -> tuple[Entry, Any]:
        entry = Entry(uid, pilot)
        if order is not None:
            entry.pair = self._raptors.send(words, order, pilot)
        description = rp.TaskDescription(words)
        try:
            description.verify()
            if words.get("input_staging") or words.get("output_staging"):
                rp.staging_directives.expand_description(description)
        except Exception as error:  # whatever RADICAL-Pilot raises
            raise ValueError(f"task_description: {error}") from error
        return entry, description

    def _refuse(self, uid: str, error: Exception) -> None:
        self._say("end", uid, "REFUSED", str(error), type(error).__name__)

    def cancel(self, uids: Iterable[str]) -> None:
        """Asks RADICAL-Pilot to cancel tasks; it is asked again until they have ended."""
        for uid in uids:
            if (entry := self.by_uid.get(uid)) is not None:
                entry.cancelled = True
        self.cancel_again()

    def cancel_again(self) -> None:
        """Repeats what RADICAL-Pilot may have lost while a task was handed on."""
        chosen: dict[int, list[str]] = {}
        for entry in self.open():
            if entry.cancelled and entry.handle is not None:
                chosen.setdefault(entry.pilot.number, []).append(entry.uid)
        for number, uids in chosen.items():
            with suppress(Exception):  # the pilot may have ended, which is handled elsewhere
                self._pilots[number].manager.cancel_tasks(uids)

    # Out; on any thread.

    def heard(self, entry: Entry, handle: Any, state: str) -> None:
        """Handle a state of a task; RADICAL-Pilot's callback, on its thread."""
        entry.handle = handle
        if state in FINAL:
            self.end(entry, state)
        elif state == AGENT_EXECUTING:
            entry.running = True
            self._queued.discard(entry.uid)
            (entry.pilot if entry.pair is None else entry.pair).progress.moved()
            self._report("running", entry.uid, state, _node(handle))
        elif state == AGENT_STAGING_INPUT_PENDING and entry.pair is None:
            self._report("running", entry.uid, state, "")

    def end(self, entry: Entry, state: str, reason: str = "") -> None:
        """Record an end.

        Args:
            entry: The task.
            state: Its final state, or `"LOST"`.
            reason: Why it is lost.
        """
        if not self._forget(entry):
            return
        # RADICAL-Pilot cancels tasks that exceed its own `timeout`.
        cut = entry.cancelled or state == "CANCELED"
        if cut and entry.running and entry.pair is None:
            with self._lock:
                self._ending.append((entry, state))
            self._reaper.post(self._reap)
        else:
            self._tell(entry, state, reason)

    def _report(self, *message: Any) -> None:
        """Report the end of a task, possibly together with others while many have not started."""
        self._say(*message, within=min(LONGEST, SHARE * len(self._queued)))

    def _forget(self, entry: Entry) -> bool:
        """Remove a task; return `False` if it was already removed."""
        self._queued.discard(entry.uid)
        return self.by_uid.pop(entry.uid, None) is not None

    def drop(self, pilot: ClientPilot) -> None:
        """Forget the tasks of a pilot that has ended; the program ends them itself."""
        for entry in self.open():
            if entry.pilot is pilot:
                self._forget(entry)

    def lose(self, pair: Pair, reason: str) -> None:
        """End the calls of a RAPTOR pair that has ended."""
        for entry in self.open():
            if entry.pair is pair:
                self.end(entry, "LOST", reason)

    def _reap(self) -> None:
        """Report the ends of canceled tasks, once none of their processes is left."""
        with self._lock:
            batch, self._ending = self._ending, []
        try:
            if batch:
                uids = [entry.uid for entry, _ in batch]
                cleanup.end(self._session, cleanup.TASK, uids, patience=1.0)
        finally:
            for entry, state in batch:
                self._tell(entry, state)

    def _tell(self, entry: Entry, state: str, reason: str = "") -> None:
        handle, found = entry.handle, None
        if handle is not None:
            error = (handle.exception, handle.exception_detail)
            found = (handle.exit_code, *error, handle.return_value)
        self._report("end", entry.uid, state, reason, found)
        if handle is not None and not handle._info_evt.is_set():
            handle._set_info(None)  # `wait_info` raises
        entry.pilot.forget(entry.uid)


def _node(handle: Any) -> str:
    """Return the node that a task runs on, empty if RADICAL-Pilot does not report it."""
    slots = handle.slots
    with suppress(Exception):  # of whatever form
        return str(slots[0]["node_name"])
    return ""
