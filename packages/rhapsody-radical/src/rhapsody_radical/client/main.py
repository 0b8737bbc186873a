"""Client of one session, which carries out requests and checks the session once a second."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import start_thread
from rhapsody_radical import cleanup
from rhapsody_radical.client import health
from rhapsody_radical.client.objects import Calls
from rhapsody_radical.client.raptor import Pair, Raptors
from rhapsody_radical.client.session import ClientPilot, PilotSession, text_of
from rhapsody_radical.client.tasks import HANDLED, Tasks
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.states import AGENT_EXECUTING, FINAL, PMGR_ACTIVE
from rhapsody_radical.wire import CallThread, Message, Outbox

log: logging.Logger = logging.getLogger("rhapsody.radical")

CHECK_INTERVAL = 1.0
"""Seconds between two checks."""

JOB_INTERVAL = 10.0
"""Seconds between two queries for the job of a pilot whose runtime has passed."""

FIRST_WORD, NEXT_WORD = 30.0, 180.0
"""Seconds until the first warning about a pilot that is not active, and between later warnings."""


REGISTRATION_TIMEOUT = 5.0
"""Seconds for which a service's registration may delay the report that the service is ready."""

START_TIMEOUT = 10.0
"""Seconds to wait for the end of a start that was interrupted."""

REMOVAL_TIMEOUT = 10.0
"""Time limit in seconds for removing one of the session's directories."""


class PilotClient:
    """Client that starts a RADICAL-Pilot session and carries out the program's requests.

    Args:
        outbox: The queue of messages to the program.
        settings: The content of the program's first message:
            `uid`, `directory`: The session's uid and directory.
            `made`: Parent directories to remove together with the session's directory.
            `work_dir`: The directory that contains the session's directory.
            `here`: The program's current directory.
            `path`: The program's own part of `sys.path`.
            `pilots`: The parameters of each pilot's description.
            `keep`: See the attribute.

    Attributes:
        session: The session, with RADICAL-Pilot's objects.
        tasks: The engine's open tasks.
        raptors: RAPTOR's masters and workers.
        keep: True to keep the session's directory after an unexpected end of the program, False to
            remove it, `None` to keep it only if a pilot failed.
    """

    def __init__(self, outbox: Outbox, settings: dict[str, Any]) -> None:
        self._send: Callable[..., None] = outbox.put
        self._settings = settings
        self._stopping = threading.Event()
        self._session_file: cleanup.SessionFile | None = None
        self.keep: bool | None = settings["keep"]
        self._began = 0.0
        self._watch = threading.Thread(
            target=self._run_checks, name="rhapsody-radical-watch", daemon=True
        )
        self._lock = threading.Lock()
        sys.path += [path for path in settings["path"] if path not in sys.path]
        self.session: PilotSession = PilotSession(
            settings["uid"], settings["directory"], settings["here"], settings["pilots"]
        )
        pilots = self.session.pilots
        self.raptors: Raptors = Raptors(pilots, self._pairs_changed)
        self.tasks: Tasks = Tasks(
            self.session.uid, pilots, self.raptors, self._send, self._end_with_job
        )
        self._calls = Calls(self.session.objects, self.raptors, self._send)
        self._commands = CallThread("rhapsody-radical-commands")
        self._started = self._commands.submit(self._start)

    # Messages from the program; their methods must not block.

    def do(self, message: Message) -> None:
        """Handle a message from the program with the method `_on_NAME`."""
        name, *parts = message
        getattr(self, f"_on_{name}")(*parts)

    def _on_submit(self, number: int, batch: list[tuple[str, dict[str, Any], Any]]) -> None:
        self._commands.post(partial(self.tasks.submit, number, batch))

    def _on_cancel(self, uids: list[str]) -> None:
        self._commands.post(partial(self.tasks.cancel, uids))

    def _on_ready(self, uid: str, info: Any) -> None:
        """Register a ready service with RADICAL-Pilot, then set the information of its task."""
        entry = self.tasks.by_uid.get(uid)
        if entry is None or entry.handle is None:
            return
        handle, pilot = entry.handle, entry.pilot.pilot

        def register() -> None:
            try:  # for `RP_INFO_<UID>` in tasks that name the service
                pilot.register_service(uid, str(info))
            except Exception as error:  # then only the variable is missing
                log.debug("service %s: cannot be registered: %r", uid, error)

        def report() -> None:
            start_thread(register, "rhapsody-radical-register").join(REGISTRATION_TIMEOUT)
            handle._set_info(info)

        start_thread(report, "rhapsody-radical-ready")

    def _on_call(self, *parts: Any) -> None:
        self._calls.call(*parts)

    # Start and end.

    def _start(self) -> None:
        """Start the session, and report the result to the program."""
        settings = self._settings
        try:
            place = cleanup.place(Path(settings["work_dir"]))
            cleanup.clean_up(place)
            if self._stopping.is_set():
                return
            self._write_session_file(place)
            self.session.open(self._on_task, self._on_pilot, self._stopping)
            manager = self.session.objects.task_manager  # all managers use the same channel
            manager.register_subscriber(rp.constants.STATE_PUBSUB, self.tasks.receive_news)
            if self._stopping.is_set():
                return
        except (PilotException, TypeError) as error:
            self._calls.reply(0, error, good=False)
        except Exception as error:  # RADICAL-Pilot raises exceptions of any type
            log.debug("RADICAL-Pilot session %s: cannot start", settings["uid"], exc_info=True)
            where = settings["work_dir"]
            text = f"RADICAL-Pilot cannot start in {where}: {text_of(error)}"
            self._calls.reply(0, PilotException(text), good=False)
        else:
            self._began = time.monotonic()
            self._watch.start()
            objects = self.session.objects
            pilots = [(each.pilot, each.config, each.sandbox) for each in self.session.pilots]
            managers = objects.pilot_manager, objects.task_manager
            self._calls.reply(0, (objects.session, *managers, pilots))

    def _write_session_file(self, place: Path) -> None:
        session, directory = self.session, Path(self.session.directory)
        try:
            self._session_file = cleanup.SessionFile(
                place, session.uid, directory, session.managers
            )
        except OSError as error:
            log.warning(
                "RADICAL-Pilot session %s: cannot write the session file (%s); if the program "
                "and its client are killed, the next start will not clean up after them",
                session.uid, error,
            )  # fmt: skip
        else:
            os.register_at_fork(after_in_child=self._session_file.close)

    def close(self, keep: bool | None) -> None:
        """Close the session, and block until everything has ended.

        Args:
            keep: True to keep the session's directory, False to remove it, `None` to keep it only
                if a pilot failed.
        """
        self._stopping.set()
        with suppress(TimeoutError):  # a session that is being opened can only be ended by force
            self._started.exception(START_TIMEOUT)
        if self._watch.is_alive():
            self._watch.join(30)
        self.session.close()
        if keep is None:
            keep = any(pilot.state == "FAILED" for pilot in self.session.pilots)
        for directory in () if keep else self.session.directories():
            _remove(directory)
        if self._session_file is not None:
            self._session_file.remove()
        for place in self._settings["made"]:
            try:
                os.rmdir(place)
            except OSError:  # it is not empty
                break

    # Checks, once a second.

    def _run_checks(self) -> None:
        while not self._stopping.wait(CHECK_INTERVAL):
            try:
                self._look()
            except Exception:  # the next check may succeed
                log.exception("RADICAL-Pilot session %s: a check failed", self.session.uid)

    def _look(self) -> None:
        for pilot in self.session.pilots:
            self._on_pilot_state(pilot, pilot.state)
            self._warn_if_not_active(pilot)
            if not pilot.ended:
                self._look_at_progress(pilot)
                self._look_at_job(pilot)
        again = False
        for entry in self.tasks.open():
            again = again or entry.cancelled
            if entry.handle is not None and (state := entry.handle.state) in FINAL:
                self.tasks.end(entry, state)
        if again:
            self.tasks.cancel_again()

    def _look_at_progress(self, pilot: ClientPilot) -> None:
        """End a pilot or a RAPTOR pair that starts no tasks although one fits."""
        known = pilot.manager.get_tasks() if pilot.state == PMGR_ACTIVE else []
        tasks = [task for task in known if task.state not in FINAL]
        calls: dict[str, list[Any]] = {}
        programs = []
        for task in tasks:
            if (master := task.description.get("raptor_id")) and task.mode != rp.RAPTOR_WORKER:
                calls.setdefault(master, []).extend(self.tasks.calls_of(task))
            else:
                programs.append(task)
        if (raptor := self.raptors.found.get(pilot.number)) is not None:
            raptor.check(calls)
        if pilot.progress.is_stalled(health.is_stuck(programs, pilot.cores())):
            self._give_up(
                pilot,
                "starts no tasks: a task for which it has free cores has waited "
                f"{health.STALL_TIMEOUT:g} s, so RADICAL-Pilot's agent or client hangs",
            )

    def _look_at_job(self, pilot: ClientPilot) -> None:
        """End a pilot whose runtime has passed if its batch job has ended."""
        now = time.monotonic()
        runtime = 60.0 * (pilot.settings.get("runtime") or math.inf)
        if now >= max(pilot.active_since + runtime, pilot.asked + JOB_INTERVAL):
            pilot.asked = now
            self._end_with_job(pilot)

    def _end_with_job(self, pilot: ClientPilot) -> bool:
        """End a pilot if its batch job has ended, which RADICAL-Pilot reports late.

        Returns:
            True if the pilot has ended.
        """
        if not pilot.ended and (how := self.session.why_over(pilot)) is not None:
            self._end(pilot, how)
        return pilot.ended

    def _warn_if_not_active(self, pilot: ClientPilot) -> None:
        """Warn about a pilot that is not active, or end the pilot if it can never start."""
        if pilot.state == PMGR_ACTIVE or pilot.state in FINAL or pilot.ended:
            return
        now = time.monotonic()
        if now < max(self._began + FIRST_WORD, pilot.warned + NEXT_WORD):
            return
        pilot.warned = now
        if (never := self.session.why_never(pilot)) is not None:
            self._give_up(pilot, never)
            return
        log.warning(
            "pilot %s on %s: not active after %.0f s: state %s%s; its tasks are waiting",
            pilot.uid, pilot.settings["resource"], now - self._began, pilot.state,
            self.session.place_in_queue(pilot),
            extra={"pilot": pilot.uid, "resource": pilot.settings["resource"]},
        )  # fmt: skip

    # RADICAL-Pilot's callbacks, on its threads.

    def _on_task(self, handle: Any, state: str) -> None:
        if state in HANDLED:
            entry = self.tasks.by_uid.get(handle.uid)
            if entry is not None:
                self.tasks.handle_state(entry, handle, state)
            elif state == AGENT_EXECUTING:
                for pilot in self.session.pilots:
                    if pilot.uid == handle.pilot:
                        pilot.progress.moved()
            elif self.raptors.look_at(handle.uid, state):
                self._commands.post(self._look_at_pairs)
        self._calls.changed(handle)

    def _look_at_pairs(self) -> None:
        for raptor in list(self.raptors.found.values()):
            raptor.check()

    def _on_pilot(self, handle: Any, state: str) -> None:
        for pilot in self.session.pilots:
            if handle is pilot.pilot or str(handle.uid) == pilot.uid:
                self._on_pilot_state(pilot, state)

    def _on_pilot_state(self, pilot: ClientPilot, state: str) -> None:
        """Report a pilot's state once; may be called on any thread."""
        with self._lock:
            if pilot.pilot is None or pilot.reported == state:
                return
            pilot.reported = state
            if state == PMGR_ACTIVE:
                pilot.active_since = time.monotonic()
        ref = self._calls.ref(pilot.pilot)
        self._send("pilot", pilot.number, {"state": (state, time.time()), "pilot": ref})
        if state in FINAL:
            how = "ended: its walltime has expired, or it was canceled"
            if state == "CANCELED":
                how = "was canceled by a program, the batch system or an administrator"
            elif state == "FAILED":
                how = state if self._stopping.is_set() else f"{state}: {self.session.why(pilot)}"
            self._end(pilot, how)

    def _give_up(self, pilot: ClientPilot, how: str) -> None:
        """End a pilot that does not work, without waiting for RADICAL-Pilot to report its end."""
        self._end(pilot, how)
        self._commands.post(partial(self.session.give_up, pilot))

    def _end(self, pilot: ClientPilot, how: str) -> None:
        with self._lock:
            if pilot.ended:
                return
            pilot.ended = True
        self._send("pilot", pilot.number, {"ended": how})
        self.tasks.drop(pilot)

    def _pairs_changed(self, number: int, lost: Pair | None) -> None:
        raptor = self.raptors.found[number]
        ref = self._calls.ref
        pairs = [(ref(pair.master), list(map(ref, pair.workers))) for pair in raptor.pairs]
        self._send("pilot", number, {"pairs": pairs})
        if lost is not None:
            self.tasks.lose(lost, str(lost.lost))


def _remove(directory: str) -> None:
    """Remove a directory; retry for a while, because a canceled job may still be writing to it."""
    until = time.monotonic() + REMOVAL_TIMEOUT
    while os.path.exists(directory):
        shutil.rmtree(directory, ignore_errors=True)
        if time.monotonic() > until:
            return
        time.sleep(0.1)
