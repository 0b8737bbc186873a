"""Looks once a second for what RADICAL-Pilot calls nobody back about."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Set

from rhapsody_radical import processes
from rhapsody_radical.client.raptor import STUCK, Pair, Raptors
from rhapsody_radical.client.session import ClientPilot, Session
from rhapsody_radical.client.tasks import Tasks
from rhapsody_radical.schema import FINAL, PMGR_ACTIVE

log: logging.Logger = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks."""

FIRST_WORD, NEXT_WORD = 30.0, 180.0
"""Seconds without an active pilot until that is said, and then between two such lines."""


COMING_UP = 180.0
"""Seconds from a pilot's first process on this machine until it must be active: now and then its
agent loses a message to itself while it starts, and waits for the answer for ever."""

CONFIRMED = 3
"""Looks after which a title is taken for one that stays."""

PATIENCE = 20
"""Number of looks after which a component is reported whose pilot has not ended with it."""


class Vitals:
    """The components of one pilot, or of the client, those of them that are on this machine.

    Nothing is told when one of its components dies alone: the pilot stays active, and its
    tasks never end. Components are known by their titles, which `processes.titles` finds.

    Args:
        grows: Whether there may be more than at the first looks. Those that a program adds to
            the client's are its own to end.
    """

    def __init__(self, *, grows: bool = True) -> None:
        self._grows = grows
        self._looks = 0
        self._seen: dict[str, int] = {}
        self._missing = 0

    def note(self, found: Set[str]) -> str | None:
        """Takes note of the titles that are there now; to be called about once a second.

        By title: a component may fork others, which end when they are done.

        Returns:
            The title that no process has had for a while, `None` where all are there.
        """
        gone = [title for title in self._seen if self.knows(title) and title not in found]
        self._looks += 1
        if not self._grows and self._looks > CONFIRMED:
            found = found & self._seen.keys()
        for title in found:
            self._seen[title] = self._seen.get(title, 0) + 1
        for title in [one for one in self._seen if not self.knows(one) and one not in found]:
            del self._seen[title]  # there for a moment only
        self._missing = self._missing + 1 if gone else 0
        return gone[0] if self._missing >= PATIENCE else None

    def knows(self, title: str) -> bool:
        """Whether the end of the processes of this title would be told of."""
        return self._seen.get(title, 0) >= CONFIRMED


class Watch:
    """The watch over one session.

    Args:
        session: RADICAL-Pilot's objects.
        tasks: The engine's tasks.
        raptors: RAPTOR's masters and workers.
        heard: Takes a pilot and its state.
        give_up: Takes a pilot that is lost although RADICAL-Pilot does not say so, and how.
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
        self._vitals = {
            "": Vitals(grows=False),
            **{pilot.uid: Vitals() for pilot in session.pilots},
        }
        self._began = time.monotonic()
        self._said: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="rhapsody-radical-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
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
        self._look_at_components()
        calls: dict[Pair, list[str]] = {}
        again = False
        for entry in self._tasks.open():
            if entry.handle is None:
                continue
            if (state := entry.handle.state) in FINAL:
                self._tasks.end(entry, state)
                continue
            again = again or entry.cancelled
            if entry.pair is not None:
                calls.setdefault(entry.pair, [])
                if not entry.staged:
                    calls[entry.pair].append(entry.uid)
        if again:
            self._tasks.cancel_again()
        for raptor in list(self._raptors.found.values()):
            for uid in raptor.check(calls):
                self._tasks.lose_call(uid)
        for number, raptor in list(self._raptors.found.items()):
            if raptor.waits_in_vain():
                how = f"starts nothing: for {STUCK:g} s its scheduler has let a RAPTOR master wait"
                self._give_up(self._session.pilots[number], f"{how} with all cores free")

    def _look_at_components(self) -> None:
        """Gives up the pilots whose part of RADICAL-Pilot is incomplete."""
        titles = processes.titles(self._session.uid)
        for pilot in self._session.pilots:
            if titles.get(pilot.uid) and pilot.state != PMGR_ACTIVE and not pilot.ended:
                self._give_up_what_does_not_come_up(pilot)
        for uid, vitals in self._vitals.items():
            if (name := vitals.note(titles.get(uid, set()))) is None:
                continue
            for pilot in self._session.pilots:
                if uid in ("", pilot.uid) and not pilot.ended:
                    self._give_up(pilot, f"is lost: RADICAL-Pilot's process {name} has ended")

    def _give_up_what_does_not_come_up(self, pilot: ClientPilot) -> None:
        now = time.monotonic()
        if now - self._seen.setdefault(pilot.uid, now) > COMING_UP:
            how = f"does not come up: its agent runs since {COMING_UP:g} s and is not active"
            self._give_up(pilot, how)

    def _say_that_it_waits(self, pilot: ClientPilot) -> None:
        """Says of a pilot that is not active yet for how long, and where."""
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
