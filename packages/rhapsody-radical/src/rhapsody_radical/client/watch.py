"""Watch over one session: checks once a second for changes that RADICAL-Pilot does not report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

from rhapsody_radical.client import health
from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.session import ClientPilot, Session
from rhapsody_radical.client.tasks import Tasks
from rhapsody_radical.schema import FINAL, PMGR_ACTIVE

log: logging.Logger = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks."""

FIRST_WORD, NEXT_WORD = 30.0, 180.0
"""Seconds until the first warning about a pilot that is not active, and between later ones."""


class Watch:
    """The watch over one session.

    Args:
        session: RADICAL-Pilot's objects.
        tasks: The engine's tasks.
        raptors: RAPTOR's masters and workers.
        heard: Called with a pilot and its state.
        give_up: Called with a pilot that is lost although RADICAL-Pilot does not report it, and the
            reason.
    """

    def __init__(
        self,
        session: Session,
        tasks: Tasks,
        raptors: Raptors,
        heard: Callable[[ClientPilot, str], None],
        give_up: Callable[[ClientPilot, str], None],
    ) -> None:
        self._session = session
        self._tasks = tasks
        self._raptors = raptors
        self._heard = heard
        self._give_up = give_up
        self._began = time.monotonic()
        self._said: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="rhapsody-radical-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(TICK):
            try:
                self._look()
            except Exception:  # the next look may do better
                log.exception("RADICAL-Pilot could not be watched")

    def _look(self) -> None:
        for pilot in self._session.pilots:
            self._heard(pilot, pilot.state)
            self._say_that_it_waits(pilot)
            if not pilot.ended:
                self._look_at_progress(pilot)
        again = False
        for entry in self._tasks.open():
            if entry.handle is None:
                continue
            if (state := entry.handle.state) in FINAL:
                self._tasks.end(entry, state)
            again = again or entry.cancelled
        if again:
            self._tasks.cancel_again()

    def _look_at_progress(self, pilot: ClientPilot) -> None:
        """Give up a pilot, or a RAPTOR pair on it, that does not start tasks that fit."""
        known = pilot.manager.get_tasks() if pilot.state == PMGR_ACTIVE else []
        tasks = [task for task in known if task.state not in FINAL]
        calls: dict[str, list[Any]] = {}
        programs = []
        for task in tasks:
            if (master := task.description.get("raptor_id")) and task.mode != rp.RAPTOR_WORKER:
                calls.setdefault(master, []).append(task)
            else:
                programs.append(task)
        if (raptor := self._raptors.found.get(pilot.number)) is not None:
            raptor.check(calls)
        if pilot.progress.is_stalled(health.waits_in_vain(programs, pilot.cores())):
            self._give_up(
                pilot,
                f"starts nothing: a task for which it has free cores has waited {health.STALLED:g} "
                "s; RADICAL-Pilot's agent or client hangs",
            )

    def _say_that_it_waits(self, pilot: ClientPilot) -> None:
        """Log for how long a pilot has not been active, and where it waits."""
        if pilot.state == PMGR_ACTIVE or pilot.state in FINAL or pilot.ended:
            return
        now = time.monotonic()
        last = self._said.get(pilot.uid)
        if now - self._began < FIRST_WORD or (last is not None and now - last < NEXT_WORD):
            return
        self._said[pilot.uid] = now
        log.warning(
            "pilot %s on %s is not active after %.0f s: %s%s; its tasks wait",
            pilot.uid, pilot.settings["resource"], now - self._began, pilot.state,
            self._session.place_in_queue(pilot),
            extra={"pilot": pilot.uid, "resource": pilot.settings["resource"]},
        )  # fmt: skip
