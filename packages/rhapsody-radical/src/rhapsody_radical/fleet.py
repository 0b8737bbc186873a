"""The pilots of one backend: which of them a task goes to, and what is told of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.task import TaskDescription
from rhapsody_radical.session import ACTIVE, FINAL, Pilot

if TYPE_CHECKING:
    from rhapsody_radical.jobs import Job

log: logging.Logger = logging.getLogger(__name__)

PilotCallback = Callable[[str, str], Any]
"""`callback(uid, state)` with a pilot's uid and its native state."""


class Fleet:
    """The pilots of one backend.

    Args:
        settings: The parameters of each pilot's description, checked.
        on_end: Called once with each pilot that ended, after its `reason` was set.

    Attributes:
        pilots: The pilots, the first one first.
        callbacks: Who is told of the pilots' states, on whatever thread hears of them.
    """

    def __init__(self, settings: list[dict[str, Any]], on_end: Callable[[Pilot], None]) -> None:
        self.pilots: list[Pilot] = [Pilot(number, one) for number, one in enumerate(settings)]
        self.callbacks: list[PilotCallback] = []
        self._on_end = on_end
        self._lock = threading.Lock()

    def spread(self, tasks: Sequence[TaskDescription], jobs: Iterable[Job]) -> list[Pilot]:
        """The pilots for some tasks, in their order.

        Each gets the pilot it names, or the one with the least to do for its cores.

        Args:
            tasks: The tasks to come.
            jobs: Those that have not ended.
        """
        usable = [pilot for pilot in self.pilots if pilot.usable] or self.pilots
        busy = Counter(job.pilot.number for job in jobs) if len(self.pilots) > 1 else Counter()
        chosen = []
        for task in tasks:
            wanted = task["task_backend_specific_kwargs"].get("pilot")
            pilot = next((pilot for pilot in self.pilots if pilot.uid == wanted), None)
            if pilot is None:  # one that is named is not replaced, not even after its end
                pilot = min(usable, key=lambda pilot: busy[pilot.number] / max(1, pilot.cores))
            busy[pilot.number] += 1
            chosen.append(pilot)
        return chosen

    def heard(self, handle: Any, state: str) -> None:
        """RADICAL-Pilot's callback, on its thread."""
        for pilot in self.pilots:
            if handle is pilot.pilot or str(handle.uid) == pilot.uid:
                self.note(pilot, state)

    def note(self, pilot: Pilot, state: str) -> None:
        """Takes note of a pilot's state, and tells of it once. Any thread."""
        with self._lock:
            new = state not in pilot.times
            pilot.times.setdefault(state, time.time())
        if new:
            resource = pilot.settings["resource"]
            log.info(
                "pilot %s on %s: %s", pilot.uid, resource, state,
                extra={"pilot": pilot.uid, "resource": resource, "state": state},
            )  # fmt: skip
            for callback in tuple(self.callbacks):
                try:
                    callback(pilot.uid, state)
                except Exception:  # the user's own; the pilot goes on
                    log.exception("a callback for pilots' states failed")
        if state in FINAL:
            how = {"DONE": "ended: its walltime is over, or it was cancelled"}.get(state, state)
            self.ended(pilot, how)

    def ended(self, pilot: Pilot, how: str) -> None:
        """Gives a pilot up, the first time for good. Any thread."""
        with self._lock:
            if pilot.reason is not None:
                return
            pilot.reason = f"pilot {pilot.uid} on {pilot.settings['resource']} {how}"
        self._on_end(pilot)

    def close(self) -> None:
        """The session was closed: pilots that were active are so no more."""
        for pilot in self.pilots:
            pilot.closed = pilot.closed or time.time()

    def account(self) -> list[dict[str, Any]]:
        """What became of each pilot: its states and when it entered them, and how busy it was."""
        return [
            {
                "uid": pilot.uid,
                "resource": pilot.settings["resource"],
                "cores": pilot.cores,
                "states": dict(pilot.times),
                "utilisation": _utilisation(pilot),
            }
            for pilot in self.pilots
        ]


def _utilisation(pilot: Pilot) -> float | None:
    """The share of its cores that tasks had while it was active; `None` if it never was."""
    begun = pilot.times.get(ACTIVE)
    if begun is None:
        return None
    ends = [when for state, when in pilot.times.items() if state in FINAL]
    seconds = min([*ends, pilot.closed or time.time()]) - begun
    return pilot.core_seconds / (pilot.cores * seconds) if seconds > 0 else 0.0
