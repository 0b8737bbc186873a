"""RAPTOR's masters and workers: started, chosen in turn, asked, and replaced when lost.

A master and its workers are one pair: a new worker at an old master does not serve, so
that both are given up together. Everything here blocks, and runs on the client's threads.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import RUNNER_FILE
from rhapsody_radical import calls
from rhapsody_radical.client.session import ClientPilot
from rhapsody_radical.raptor_config import (
    DEFAULT_CLASS,
    MASTER_CLASS,
    OWN_CLASS,
    THEIRS,
    is_own,
)
from rhapsody_radical.schema import AGENT_EXECUTING, FINAL, PMGR_ACTIVE
from rhapsody_radical.states import TASK_STATES, Generation

log: logging.Logger = logging.getLogger(__name__)

OWN_MASTER, OWN_WORKER, OWN_CALL = (
    Path(__file__).parents[1] / name
    for name in ("_raptor_master.py", "_raptor_worker.py", "call.py")
)
PROTOCOL = Path(RUNNER_FILE)
ORDER = TASK_STATES[Generation.CURRENT]
AGENT_SCHEDULING = "AGENT_SCHEDULING"
BEFORE = ORDER[: ORDER.index(AGENT_SCHEDULING)]
"""States of a task that the pilot's agent does not yet have in its hands."""

ANSWERED = ORDER[ORDER.index("AGENT_STAGING_OUTPUT_PENDING") :]
"""States of a task that its worker is done with."""

MARK = "rhapsody"
"""What tells our own worker our calls and probes, in a task's metadata."""

PROBED = 60.0
"""Seconds between two probes of a pair that has calls; as many for the answer, from when the
agent has the probe, without which a pair that says nothing else either is lost."""

COMING_UP = 180.0
"""Seconds from when a pair began to run until it is probed although nothing was heard of it."""

STUCK = 120.0
"""Seconds for which a master may wait for cores on an active pilot where nothing runs: now and
then the agent's scheduler hangs from its start on, and never hears that masters may be started."""

PACE = 20.0
"""Calls a second that go from a master to its worker even on a slow machine: a probe waits
behind them, and is given the time (70 were measured on two busy cores)."""

ASKED = 100
"""How many calls, the oldest, a probe asks the worker about."""


class Pair:
    """A master and its workers.

    Attributes:
        uid: The master's uid, which calls are sent to.
        takes_orders: Whether calls reach workers of our own alone, by RAPTOR's own master.
        master: RADICAL-Pilot's task of the master.
        workers: Those of its workers.
        lost: Why it is lost, `None` while it is not.
        joined: Whether a program gave the master more workers.
        heard: When something was last heard of it, by the monotonic clock; 0 before.
        began: When all of it was first seen to run; 0 before.
        probe: RADICAL-Pilot's task of a probe that was not answered yet.
        probed: When the last probe was sent, and seen on its way to the agent; before the
            first one, when the pair was started.
        missing: Calls that the worker did not know when it was last asked.
    """

    def __init__(self, master: Any, workers: list[Any], settings: Mapping[str, Any]) -> None:
        self.uid: str = str(master.uid)
        theirs = any(settings.get(key) for key in THEIRS)
        self.takes_orders: bool = not theirs and all(map(is_own, settings["workers"]))
        self.master = master
        self.workers = workers
        self.settings = settings
        self.lost: str | None = None
        self.joined: bool = False
        self.heard: float = 0.0
        self.began: float = 0.0
        self.probe: Any = None
        self.probed: float = time.monotonic()
        self.missing: set[str] = set()

    @property
    def answers_probes(self) -> bool:
        """Whether there is one process of our own that has all calls: of several, each has some."""
        worker, *others = self.settings["workers"]
        one = not others and not self.joined and int(worker.get("ranks") or 1) == 1
        return one and self.takes_orders

    def hear(self) -> None:
        """Takes note that something was heard of it."""
        self.heard = time.monotonic()

    def is_up(self) -> bool:
        """Whether it can be expected to answer: it was heard of, or has run for a while."""
        if self.heard:
            return True
        if any(task.state != AGENT_EXECUTING for task in (self.master, *self.workers)):
            return False
        self.began = self.began or time.monotonic()
        return time.monotonic() - self.began > COMING_UP

    def uids(self) -> list[str]:
        """The uids of the master and its workers."""
        return [self.uid, *(str(worker.uid) for worker in self.workers)]

    def problem(self) -> str | None:
        """Which of them has ended, in words."""
        for name, task in (("master", self.master), *(("worker", each) for each in self.workers)):
            if task.state in FINAL:
                told = [task.exception, (task.stderr or "").strip()[-500:]]
                return ": ".join(
                    [f"RAPTOR {name} {task.uid} ended ({task.state})", *filter(None, told)]
                )
        return None


class Raptor:
    """The pairs on one pilot.

    Args:
        pilot: The pilot.
        config: What to start, checked.
        on_change: Called with a pair that was given up, and with `None` when some were started.

    Attributes:
        config: What it starts.
        pairs: Those that live.
        lost: The uids of the masters that do not.
    """

    def __init__(
        self, pilot: ClientPilot, config: dict[str, Any], on_change: Callable[[Pair | None], None]
    ) -> None:
        self._pilot = pilot
        self.config: dict[str, Any] = config
        self._on_change = on_change
        self._count = 0
        self._turn = 0
        self._lock = threading.RLock()
        self._idle = 0.0
        self.pairs: list[Pair] = []
        self.lost: set[str] = set()

    def start(self) -> None:
        """Starts the pairs that are not there."""
        with self._lock:
            running = [pair.settings for pair in self.pairs]
            new = [
                each for each in self.config["masters"] if not any(each is one for one in running)
            ]
            self.pairs += map(self._start, new)
        if new:
            self._on_change(None)

    def choose(self) -> Pair:
        """The pair whose turn it is; starts what is not there."""
        with self._lock:
            self.start()
            self._turn += 1
            return self.pairs[self._turn % len(self.pairs)]

    def _start(self, settings: dict[str, Any]) -> Pair:
        self._count += 1
        manager, uid = self._pilot.manager, f"raptor.{self._pilot.number}.{self._count:04d}"
        words = {key: value for key, value in settings.items() if key != "workers"}
        if not any(words.get(key) for key in THEIRS):
            self._make_own(words, uid, MASTER_CLASS, OWN_MASTER)
        master = manager.submit_raptors(
            rp.TaskDescription({**words, "mode": rp.RAPTOR_MASTER, "uid": uid}),
            pilot_id=self._pilot.uid,
        )[0]
        descriptions = []
        for number, worker in enumerate(settings["workers"]):
            words = {key: value for key, value in worker.items() if key != "worker_type"}
            own = f"{uid}.worker.{number:04d}"
            if is_own(worker):
                self._make_own(words, own, OWN_CLASS, OWN_WORKER, OWN_CALL, PROTOCOL)
            words.setdefault("raptor_class", worker.get("worker_type", DEFAULT_CLASS))
            words.update(mode=rp.RAPTOR_WORKER, uid=own, pilot=self._pilot.uid)
            descriptions.append(rp.TaskDescription(words))
        return Pair(master, master.submit_workers(descriptions), settings)

    def _make_own(self, words: dict[str, Any], uid: str, name: str, *files: Path) -> None:
        """Has a class of ours loaded from the first of some files, which are sent along.

        They are of two distributions, neither of which need be installed in the pilot.
        """
        words.update(raptor_class=name, raptor_file=files[0].name)
        # RADICAL-Pilot's COPY knows no spaces, and its LINK no other file system.
        sandbox = Path(self._pilot.sandbox, words.get("sandbox") or uid)
        sandbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, sandbox / file.name)

    def check(self, calls: Mapping[Pair, list[str]]) -> set[str]:
        """Gives up pairs whose master or worker has ended, or does not answer.

        Args:
            calls: The open calls of pairs that are expected to be heard of, the oldest first.

        Returns:
            Those that the worker did not know in two answers running: they, or what came of
            them, are lost on the way.
        """
        lost: set[str] = set()
        with self._lock:
            for pair in list(self.pairs):
                problem, asked = pair.problem(), calls.get(pair)
                if problem is None and asked is not None and pair.answers_probes and pair.is_up():
                    lost |= self._read_probe(pair) & set(asked)
                    problem = self._probe(pair, asked)
                if problem is not None:
                    self.give_up(pair, problem)
        return lost

    def waits_in_vain(self) -> bool:
        """Whether a master has waited for too long on a pilot where nothing runs.

        To be called about once a second.
        """
        waiting = any(pair.master.state == AGENT_SCHEDULING for pair in self.pairs)
        if not waiting or self._pilot.state != PMGR_ACTIVE or self._pilot.runs_something():
            self._idle = 0.0
            return False
        self._idle = self._idle or time.monotonic()
        return time.monotonic() - self._idle > STUCK

    def _read_probe(self, pair: Pair) -> set[str]:
        """Takes note of a probe's answer; returns the calls that are missing once more."""
        probe = pair.probe
        if probe is None or probe.state not in ANSWERED:
            return set()
        pair.heard = time.monotonic()
        if probe.state not in FINAL:
            return set()
        pair.probe = None
        self._pilot.forget(probe.uid)
        missing = set(json.loads(probe.return_value or "[]"))
        again, pair.missing = missing & pair.missing, missing
        return again

    def _probe(self, pair: Pair, calls: list[str]) -> str | None:
        """Probes a pair where it is time to; says so where the last probe has no answer."""
        now = time.monotonic()
        if pair.probe is not None and pair.probe.state in BEFORE:
            pair.probed = now  # perhaps it waits for the transfer of somebody's files
        patience = PROBED if pair.probe is None else PROBED + len(calls) / PACE
        if now - pair.probed <= patience:
            return None
        if pair.probe is not None:
            if pair.heard <= pair.probed:
                return f"RAPTOR master {pair.uid} and its worker do not answer"
            self._pilot.forget(pair.probe.uid)  # it was lost itself
            pair.probe = None
        self._count += 1
        pair.probed = now
        words = {"mode": rp.TASK_FUNCTION, "function": "probe", "raptor_id": pair.uid}
        words.update(uid=f"probe.{self._pilot.number}.{self._count:04d}")
        words.update(metadata={MARK: "probe", "calls": calls[:ASKED]})
        pair.probe = self._pilot.manager.submit_tasks(rp.TaskDescription(words))
        return None

    def joined(self, worker: Mapping[str, Any], uid: str) -> None:
        """Takes note of a worker that a program gave to a master itself."""
        for pair in list(self.pairs):
            if worker.get("raptor_id") == pair.uid and uid not in pair.uids():
                pair.joined = True

    def give_up(self, pair: Pair, reason: str) -> None:
        """Ends a pair; the next call starts another."""
        with self._lock:
            if pair.lost is not None:
                return
            pair.lost = reason
            self.lost.add(pair.uid)
            self.pairs.remove(pair)
        with suppress(Exception):  # the pilot may be gone
            self._pilot.manager.cancel_tasks(pair.uids())
        if not self._pilot.ended:
            log.warning("%s; a new pair is started when it is needed", reason)
        self._on_change(pair)


class Raptors:
    """RAPTOR on all pilots of a session.

    Args:
        pilots: The pilots.
        on_change: Called with the number of a pilot whose pairs are others now, and with the one
            of them that was lost, if one was.

    Attributes:
        found: RAPTOR by the number of its pilot.
    """

    def __init__(
        self, pilots: list[ClientPilot], on_change: Callable[[int, Pair | None], None]
    ) -> None:
        self._pilots = pilots
        self._on_change = on_change
        self.found: dict[int, Raptor] = {}

    def start(self, number: int, config: dict[str, Any]) -> None:
        """Starts RAPTOR on a pilot, with the configuration that comes first."""
        found = self.found.get(number)
        if found is None:
            pilot, changed = self._pilots[number], partial(self._on_change, number)
            found = self.found[number] = Raptor(pilot, config, changed)
        found.start()

    def send(self, words: dict[str, Any], order: Any, pilot: ClientPilot) -> Pair | None:
        """Puts a call and who makes it into a task's description.

        Returns:
            The pair that it goes to; `None` for a master that the program started itself.

        Raises:
            ValueError: The task names a master that there is not.
        """
        named = words.get("raptor_id")
        pair = self._named(named, pilot) if named else self.found[pilot.number].choose()
        # Our own workers know what to do with an order; others are told that, too.
        alone = pair is not None and pair.takes_orders
        kind, encoded = ("call", calls.as_text) if alone else ("task", calls.python_task)
        words["function"] = encoded(order)
        words["metadata"] = {**(words.get("metadata") or {}), MARK: kind}
        words["raptor_id"] = pair.uid if pair is not None else named
        return pair

    def _named(self, master: str, pilot: ClientPilot) -> Pair | None:
        """The pair of a master that a task names; `None` for one that the program started itself.

        Raises:
            ValueError: There is none, its pair is lost, or it is on another pilot: RADICAL-Pilot
                would wait for ever.
        """
        for number, each in list(self.found.items()):
            there = self._pilots[number].uid
            if master in each.lost:
                raise ValueError(
                    f"raptor_id: RAPTOR master {master!r} is lost; leave raptor_id out"
                )
            for pair in each.pairs:
                if pair.uid == master and number == pilot.number:
                    return pair
                if pair.uid == master:
                    raise ValueError(
                        f"raptor_id: RAPTOR master {master!r} is on pilot {there}, the task goes "
                        f"to {pilot.uid}; say pilot={there!r} in its task_description, too"
                    )
        if not any(master in each.manager.list_tasks() for each in self._pilots):
            pairs = [pair.uid for each in self.found.values() for pair in each.pairs]
            raise ValueError(
                f"raptor_id: there is no RAPTOR master {master!r}; there are: "
                f"{', '.join(pairs) or 'none yet'}"
            )
        return None

    def look_at(self, handle: Any, state: str) -> bool:
        """Takes note of a task that is none of the engine's: a master or a worker, maybe.

        Returns:
            Whether it is one of a pair's that has ended.
        """
        for each in list(self.found.values()):
            if state in FINAL:
                if any(handle.uid in pair.uids() for pair in list(each.pairs)):
                    return True
            elif state == AGENT_EXECUTING and handle.mode == rp.RAPTOR_WORKER:
                each.joined(handle.description, handle.uid)
        return False
