"""The engine's tasks in the client: submission to RADICAL-Pilot, cancellation, and reports.

The client reports three states of a task to the program: that the agent has received the task (not
for calls on RAPTOR), that the task is running, and its end. The end is reported once. If
a running program was canceled or timed out, its end is reported when none of its processes is left
on this machine.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from rhapsody_radical import cleanup, functions
from rhapsody_radical._raptor import CALL_REPORTS
from rhapsody_radical.client.raptor import MAX_GROUP_TEXT, Pair, Raptors
from rhapsody_radical.client.session import ClientPilot
from rhapsody_radical.descriptions import described, leave_gpus
from rhapsody_radical.states import AGENT_EXECUTING, AGENT_STAGING_INPUT_PENDING, FINAL
from rhapsody_radical.wire import CallThread

log: logging.Logger = logging.getLogger("rhapsody.radical")

HANDLED = frozenset({AGENT_STAGING_INPUT_PENDING, AGENT_EXECUTING, *FINAL})
"""The states that the client handles."""

Send = Callable[..., None]
"""Function that takes a message's name and parts, and sends the message to the program.

The keyword `within` limits the time in seconds that the message may wait for others.
"""

Submitted = tuple[str, dict[str, Any], Any]
"""A task's uid, its RADICAL-Pilot description, and its packed call.

The call is `None` for a program that RADICAL-Pilot starts, and a dict for a command on RAPTOR.
"""

KILLED = frozenset({137, 143, -9, -15})
"""Exit codes of programs that SIGKILL or SIGTERM has ended, as RADICAL-Pilot reports them."""

GROUPED = frozenset({"mode", "uid", "cores_per_rank"})
"""Keys that the description of a call may contain if the call is to share a RADICAL-Pilot task."""

SHARE, LONGEST = 0.005, 0.5
"""Seconds that a report may wait for others: for each task that has not started, and in total.

The main cost of a report is that it wakes the program. While many tasks wait for cores, a late
report does no harm. If all open tasks are running, cores are idle until a report arrives, so
reports are sent immediately.
"""


@dataclass(eq=False, slots=True)
class SubmittedTask:
    """Task from its submission to its end, or a group of calls on RAPTOR.

    Attributes:
        uid: The uid of the task or group.
        pilot: The pilot that runs the task.
        handle: RADICAL-Pilot's task; `None` before the submission, and for open calls of a group.
        pair: The RAPTOR pair that executes the task, or `None` for a program.
        running: True if the task was reported as running.
        cancelled: True if the task's cancellation was requested; the request is repeated until the
            task has ended.
        group: The group that contains the call; `None` for other tasks.
        command: True for a command on RAPTOR.
        found: The worker's report about the end of a call of a group.
        calls: The calls of a group, in order.
    """

    uid: str
    pilot: ClientPilot
    handle: Any = None
    pair: Pair | None = None
    running: bool = False
    cancelled: bool = False
    group: SubmittedTask | None = None
    command: bool = False
    found: tuple[Any, ...] | None = None
    calls: list[SubmittedTask] = field(default_factory=list)


class Tasks:
    """Tasks that have not ended.

    Args:
        session: The session's uid.
        pilots: The session's pilots.
        raptors: RAPTOR on these pilots.
        send: Sends a message to the program.
        end_with_job: Ends a pilot if its batch job has ended, and returns True if it has.

    Attributes:
        by_uid: The tasks by their uids. Several threads remove tasks that have ended; use `open` to
            iterate over the tasks.
    """

    def __init__(
        self,
        session: str,
        pilots: list[ClientPilot],
        raptors: Raptors,
        send: Send,
        end_with_job: Callable[[ClientPilot], bool] = lambda pilot: pilot.ended,
    ) -> None:
        self._session = session
        self._pilots = pilots
        self._raptors = raptors
        self._send = send
        self._end_with_job = end_with_job
        self.by_uid: dict[str, SubmittedTask] = {}
        self._queued: set[str] = set()
        self._groups = 0
        self._lock = threading.Lock()
        self._ending: list[tuple[SubmittedTask, str]] = []
        self._reaper = CallThread("rhapsody-radical-reaper")

    def open(self) -> list[SubmittedTask]:
        """Return the tasks that have not ended, oldest first."""
        return list(self.by_uid.values())

    def calls_of(self, handle: Any) -> list[Any]:
        """Return objects like RADICAL-Pilot's tasks for the open calls of a group.

        If the task is not a group, the list contains the task itself.
        """
        group = self.by_uid.get(handle.uid)
        if group is None or not group.calls:
            return [handle]
        waits = "AGENT_SCHEDULING" if handle.state == AGENT_EXECUTING else handle.state
        return [
            SimpleNamespace(
                state=AGENT_EXECUTING if call.running else waits, description=handle.description
            )
            for call in group.calls
            if call.uid in self.by_uid
        ]

    # Requests of the program; on the command thread.

    def submit(self, number: int, batch: list[Submitted]) -> None:
        """Submit tasks to RADICAL-Pilot.

        Args:
            number: The number of the tasks' pilot.
            batch: The tasks.
        """
        pilot, ready = self._pilots[number], []
        for uid, words, order in self._grouped(batch, pilot):
            try:
                ready.append(self._described(uid, words, order, pilot))
            except Exception as error:  # fails only this task
                for each in [uid] if type(order) is not list else [call for call, *_ in order]:
                    self._refuse(each, error)
        if not ready:
            return
        for entry, _ in ready:
            self.by_uid[entry.uid] = entry
            self.by_uid.update((call.uid, call) for call in entry.calls)
            self._queued.update(call.uid for call in entry.calls or [entry])
        try:
            handles = pilot.manager.submit_tasks([description for _, description in ready])
        except Exception as error:  # raised by RADICAL-Pilot, which has submitted none of them
            for entry, _ in ready:
                for each in (entry, *entry.calls):
                    self._forget(each)
                    self._refuse(each.uid, error)
            return
        for (entry, _), handle in zip(ready, handles, strict=True):
            entry.handle = handle
            if entry.pair is not None and entry.pair.lost is not None:  # lost meanwhile
                self.end(entry, "LOST", entry.pair.lost)
        if pilot.ended:  # ended meanwhile; the program ends the tasks itself
            self.drop(pilot)

    def _grouped(self, batch: list[Submitted], pilot: ClientPilot) -> Iterator[Submitted]:
        """Group commands on RAPTOR, and calls that differ only in their functions and arguments.

        Each RADICAL-Pilot task adds overhead, so a group of calls is submitted as one task.

        Yields:
            Calls and groups. Instead of a packed call, a group contains a list of its calls, as
            `rhapsody_radical._raptor` reads it.
        """
        most = self._raptors.group_size(pilot, len(batch))
        started: dict[Any, Submitted] = {}
        for uid, words, order in batch:
            command = type(order) is dict
            alone = not command and (most == 1 or not words.keys() <= GROUPED)
            if order is None or alone:
                yield uid, words, order
                continue
            cores = words.get("cores_per_rank")
            if cores not in started:
                self._groups += 1
                name = f"calls.{self._groups:06d}"
                started[cores] = name, {**words, "uid": name}, []
            calls = started[cores][2]
            more = {"script": order["script"]} if command else {}
            calls.append((uid, functions.as_text(order), more))
            if len(calls) == most or sum(len(text) for _, text, _ in calls) > MAX_GROUP_TEXT:
                yield started.pop(cores)
        yield from started.values()

    def _described(
        self, uid: str, words: dict[str, Any], order: Any, pilot: ClientPilot
    ) -> tuple[SubmittedTask, Any]:
        entry = SubmittedTask(uid, pilot)
        if order is None:
            leave_gpus(words, pilot.config)
        else:
            entry.pair = self._raptors.send(words, order, pilot)
        if type(order) is list:
            entry.calls = [
                SubmittedTask(call, pilot, pair=entry.pair, group=entry, command="script" in more)
                for call, _, more in order
            ]
        return entry, described("TaskDescription", words, "task_description")

    def _refuse(self, uid: str, error: Exception) -> None:
        self._send("end", uid, "REFUSED", str(error), type(error).__name__)

    def cancel(self, uids: Iterable[str]) -> None:
        """Request the cancellation of tasks.

        `cancel_again` repeats the requests until the tasks have ended.
        """
        for uid in uids:
            if (entry := self.by_uid.get(uid)) is not None:
                entry.cancelled = True
                if (group := entry.group) and all(call.cancelled for call in group.calls):
                    group.cancelled = True  # the group may be waiting for its pilot
        self.cancel_again()

    def cancel_again(self) -> None:
        """Repeat requests for cancellation; RADICAL-Pilot may lose them between its components."""
        chosen: dict[int, list[str]] = {}
        for entry in self.open():
            if entry.cancelled and (entry.group or entry).handle is not None:
                chosen.setdefault(entry.pilot.number, []).append(entry.uid)
        for number, uids in chosen.items():
            with suppress(Exception):  # the pilot may have ended, which is handled elsewhere
                self._pilots[number].manager.cancel_tasks(uids)

    # Reports to the program; on any thread.

    def handle_state(self, entry: SubmittedTask, handle: Any, state: str) -> None:
        """Handle the new state of a task. RADICAL-Pilot calls this method on its own thread."""
        entry.handle = handle
        if state in FINAL:
            self.end(entry, state)
        elif state == AGENT_EXECUTING:
            entry.running = True
            (entry.pilot if entry.pair is None else entry.pair).progress.moved()
            if not entry.calls:  # the calls of a group are reported instead of the group
                self._queued.discard(entry.uid)
                self._report("running", entry.uid, state, _node(handle))
        elif state == AGENT_STAGING_INPUT_PENDING and entry.pair is None:
            self._report("running", entry.uid, state, "")

    def receive_news(self, topic: str, message: dict[str, Any]) -> None:
        """Handle a message on RADICAL-Pilot's state channel; called on RADICAL-Pilot's thread."""
        if message.get("cmd") == CALL_REPORTS:
            self._note(message["arg"])

    def _note(self, news: list[Any]) -> None:
        """Report the starts and outcomes of grouped calls."""
        for uid, *outcome in news:
            entry = self.by_uid.get(uid)
            if entry is None:
                continue
            text, error, cancelled = outcome or (None, None, False)
            if not entry.running and (not outcome or text is not None):
                entry.running = True
                self._queued.discard(uid)
                if entry.pair is not None:
                    entry.pair.progress.moved()
                self._report("running", uid, AGENT_EXECUTING, "")
            if outcome and self._forget(entry):
                code: int | None = int(text is None)
                if entry.command:  # it has no exit code if it was lost
                    code = None if text is None else json.loads(text).get("exit_code", 0)
                failed = text is None or code
                entry.found = (code, error, error, text)
                state = "CANCELED" if cancelled else "FAILED" if failed else "DONE"
                self._end_program(entry, state, code)

    def end(self, entry: SubmittedTask, state: str, reason: str = "") -> None:
        """Record and report the end of a task or group.

        Args:
            entry: The task or group.
            state: The task's final state, or `"LOST"`.
            reason: The reason why the task was lost; otherwise empty.
        """
        if not self._forget(entry):
            return
        if entry.calls:
            if state == "DONE":
                self._note(json.loads(entry.handle.return_value))
            for call in entry.calls:
                call.handle = entry.handle
                self.end(call, state, reason)
            entry.pilot.forget(entry.uid)
            return
        if state == "CANCELED" and not entry.running:
            self._free_cores(entry)
        code = None if entry.handle is None else entry.handle.exit_code
        self._end_program(entry, state, code, reason)

    def _end_program(
        self, entry: SubmittedTask, state: str, code: int | None, reason: str = ""
    ) -> None:
        """Report the end of a task; for a canceled program, once its processes have ended.

        Args:
            entry: The task.
            state: The task's final state, or `"LOST"`.
            code: The exit code, if it is known.
            reason: See `end`.
        """
        # RADICAL-Pilot cancels tasks that exceed its own `timeout`.
        cut = entry.cancelled or state == "CANCELED"
        if cut and entry.running and (entry.command or entry.pair is None):
            with self._lock:
                self._ending.append((entry, state))
            self._reaper.post(self._reap)
        elif state == "FAILED" and code in KILLED:
            self._reaper.post(partial(self._end_killed, entry))
        else:
            self._report_end(entry, state, reason)

    def _end_killed(self, entry: SubmittedTask) -> None:
        """Report the end of a program that a signal has ended.

        If the signal came from the batch system, the pilot has ended, and all of its tasks are lost
        with it.
        """
        if not self._end_with_job(entry.pilot):
            self._report_end(entry, "FAILED")

    def _free_cores(self, entry: SubmittedTask) -> None:
        """Free the cores of a task that was canceled after it was scheduled and before it started.

        RADICAL-Pilot's executor discards such a task without notifying the scheduler, so the task's
        cores would stay reserved until the pilot ends. When a task ends, the scheduler frees its
        slots, even if they were set in its description. Therefore, run an empty task on each slot
        of the discarded task.
        """
        handle, pilot = entry.handle, entry.pilot
        if handle is None or pilot.ended or handle.description.get("raptor_id"):
            return
        batch: list[Submitted] = []
        for number, slot in enumerate(handle.slots or ()):
            uid = f"{entry.uid}.free.{number}"
            words = {"uid": uid, "executable": "true", "pilot": handle.pilot, "slots": [slot]}
            batch.append((uid, words, None))
        if batch:
            self._reaper.post(partial(self.submit, pilot.number, batch))

    def _report(self, *message: Any) -> None:
        """Send a report.

        While many tasks have not started, the report may wait to be sent with others.
        """
        self._send(*message, within=min(LONGEST, SHARE * len(self._queued)))

    def _forget(self, entry: SubmittedTask) -> bool:
        """Remove a task; return False if the task had already been removed."""
        self._queued.discard(entry.uid)
        return self.by_uid.pop(entry.uid, None) is not None

    def drop(self, pilot: ClientPilot) -> None:
        """Remove the tasks of a pilot that has ended, without reports: the program ends them."""
        for entry in self.open():
            if entry.pilot is pilot:
                self._forget(entry)

    def lose(self, pair: Pair, reason: str) -> None:
        """End the calls of a RAPTOR pair that was lost."""
        for entry in self.open():
            if entry.pair is pair:
                self.end(entry, "LOST", reason)

    def _reap(self) -> None:
        """End the remaining processes of canceled tasks, then report the tasks' ends."""
        with self._lock:
            batch, self._ending = self._ending, []
        try:
            if batch:
                uids = [entry.uid for entry, _ in batch]
                cleanup.end(self._session, cleanup.TASK, uids, patience=1.0)
        finally:
            for entry, state in batch:
                self._report_end(entry, state)

    def _report_end(self, entry: SubmittedTask, state: str, reason: str = "") -> None:
        handle, found = entry.handle, entry.found
        if handle is not None and found is None:
            error = (handle.exception, handle.exception_detail)
            value = handle.return_value if entry.group is None else None  # that of the group
            found = (handle.exit_code, *error, value)
        self._report("end", entry.uid, state, reason, found)
        if handle is not None and not handle._info_evt.is_set():
            handle._set_info(None)  # `wait_info` raises
        if entry.group is None:
            entry.pilot.forget(entry.uid)


def _node(handle: Any) -> str:
    """Return the node that a task runs on, or an empty string if no node is reported."""
    slots = handle.slots
    with suppress(Exception):  # the slots may have another form
        return str(slots[0]["node_name"])
    return ""
