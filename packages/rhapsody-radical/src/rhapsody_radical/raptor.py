"""RAPTOR's masters and workers on one pilot: started, chosen in turn, replaced when lost.

A master and its workers are one pair: a new worker at an old master does not serve, so
that both are given up together. Everything here blocks, and runs on the backend's
threads.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rhapsody_radical.descriptions import check_keys, check_types
from rhapsody_radical.library import rp
from rhapsody_radical.session import FINAL, Pilot
from rhapsody_radical.states import TASK_STATES, Generation

log: logging.Logger = logging.getLogger(__name__)

OWN_WORKER = Path(__file__).with_name("_raptor_worker.py")
OWN_FILES = (OWN_WORKER, Path(__file__).with_name("call.py"))
OWN_CLASS = "RhapsodyWorker"
DEFAULT_CLASS = "DefaultWorker"
ORDER = TASK_STATES[Generation.CURRENT]
BEFORE = ORDER[: ORDER.index("AGENT_SCHEDULING")]
"""States of a task that the pilot's agent does not yet have in its hands."""

ANSWERED = ORDER[ORDER.index("AGENT_STAGING_OUTPUT_PENDING") :]
"""States of a task that its worker is done with."""

FORMER = {
    "cpu_processes": "ranks",
    "cpu_threads": "cores_per_rank",
    "gpu_processes": "gpus_per_rank",
}
"""RADICAL-Pilot's former words for what is read here of a master's or worker's settings."""

THEIRS = ("raptor_class", "raptor_file", "executable")
"""Settings that make a master or a worker another than the default."""

MARK = "rhapsody"
"""What tells our own worker our calls and probes, in a task's metadata."""

PROBED = 60.0
"""Seconds between two probes of a pair that has calls; as many for the answer, from when the
agent has the probe, without which a pair that says nothing else either is lost."""

PACE = 20.0
"""Calls a second that go from a master to its worker even on a slow machine: a probe waits
behind them, and is given the time (70 were measured on two busy cores)."""

ASKED = 100
"""How many calls, the oldest, a probe asks the worker about."""


class Pair:
    """A master and its workers.

    Attributes:
        master: RADICAL-Pilot's task of the master.
        workers: Those of its workers.
        lost: Why it is lost, `None` while it is not.
        joined: Whether a program gave the master more workers.
        heard: When something was last heard of it, by the monotonic clock; 0 before.
        probe: RADICAL-Pilot's task of a probe that was not answered yet.
        probed: When the last probe was sent, and seen on its way to the agent; before the
            first one, when the pair was started.
        missing: Calls that the worker did not know when it was last asked.
    """

    def __init__(self, master: Any, workers: list[Any], settings: Mapping[str, Any]) -> None:
        self.master = master
        self.workers = workers
        self.settings = settings
        self.lost: str | None = None
        self.joined: bool = False
        self.heard: float = 0.0
        self.probe: Any = None
        self.probed: float = time.monotonic()
        self.missing: set[str] = set()

    @property
    def takes_orders(self) -> bool:
        """Whether calls reach workers of our own alone, by RAPTOR's own master."""
        theirs = any(self.settings.get(key) for key in THEIRS)
        return not theirs and all(map(is_own, self.settings["workers"]))

    @property
    def answers_probes(self) -> bool:
        """Whether there is one process of our own that has all calls: of several, each has some."""
        worker, *others = self.settings["workers"]
        one = not others and not self.joined and int(worker.get("ranks") or 1) == 1
        return one and self.takes_orders

    @property
    def uid(self) -> str:
        """The master's uid, which calls are sent to."""
        return str(self.master.uid)

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


def is_own(worker: Mapping[str, Any]) -> bool:
    """Whether a worker's settings mean our own, which stands in for RAPTOR's default one."""
    kind = worker.get("worker_type", DEFAULT_CLASS)
    return kind in (OWN_CLASS, DEFAULT_CLASS) and not any(worker.get(key) for key in THEIRS)


def has_other_workers(config: Mapping[str, Any] | None) -> bool:
    """Whether a checked configuration has workers that are not our own."""
    masters = config["masters"] if config is not None else ()
    return not all(is_own(worker) for master in masters for worker in master["workers"])


def checked(config: Any) -> dict[str, Any]:
    """A RAPTOR configuration, checked.

    Raises:
        TypeError: It is not of the documented form, or has an unknown key.
        ValueError: It has no master, or a master has no worker.
    """
    form = (
        "raptor_config must be {'masters': [{'workers': [{'cores_per_rank': 2}]}]}, "
        f"got {config!r}"
    )
    if not isinstance(config, Mapping) or set(config) != {"masters"}:
        raise TypeError(form)
    masters = copy.deepcopy(config["masters"])
    if not isinstance(masters, list) or not all(isinstance(each, dict) for each in masters):
        raise TypeError(form)
    if not masters or not all(master.get("workers") for master in masters):
        raise ValueError(f"raptor_config needs a master, and a worker for each: {form}")
    known = rp.TaskDescription._schema
    for master in masters:
        _check("a master", master, known, "workers")
        for worker in master["workers"]:
            _check("a worker", worker, known, "worker_type")
        for settings in (master, *master["workers"]):
            for former in FORMER.keys() & settings.keys():
                if value := settings.pop(former):  # as RADICAL-Pilot does, which would win
                    settings[FORMER[former]] = value
    return {"masters": masters}


def _check(what: str, given: Any, known: Mapping[str, Any], own: str) -> None:
    """Raises for what RADICAL-Pilot's description of a master or worker does not take."""
    if not isinstance(given, Mapping):
        raise TypeError(f"raptor_config: {what} must be a dict, got {given!r}")
    theirs = {key: value for key, value in given.items() if key != own}
    check_keys("raptor_config", theirs, known, what, hints=[own])
    check_types("raptor_config", theirs, known)


def checked_settings(
    functions: Any, config: Mapping[str, Any] | None, cores: Any, enabled: bool
) -> dict[str, Any] | None:
    """How functions are to run, checked; the configuration where a user gave one.

    Raises:
        TypeError: The configuration is malformed.
        ValueError: A value cannot be meant.
    """
    if functions not in ("raptor", "executable"):
        raise ValueError(f"functions must be 'raptor' or 'executable', got {functions!r}")
    if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int) or cores < 1):
        raise ValueError(f"function_cores must be 1 or more, got {cores!r}")
    if config is None or config == {}:
        return None
    if not enabled:
        raise ValueError("raptor=False switches off what raptor_config asks for: leave one out")
    if functions == "executable":
        raise ValueError(
            "functions='executable' does without the RAPTOR that raptor_config asks for: leave "
            "one out"
        )
    return checked(config)


def cores_per_call(config: Mapping[str, Any]) -> int:
    """Cores that one call can have at most, with a checked configuration."""
    return min(
        max(1, int(worker.get("cores_per_rank") or 1))
        for master in config["masters"]
        for worker in master["workers"]
    )


def default(cores: int) -> dict[str, Any]:
    """The configuration where the user gave none: one pair, with a worker of our own."""
    return {"masters": [{"workers": [{"ranks": 1, "cores_per_rank": cores}]}]}


class Raptor:
    """The pairs on one pilot.

    Args:
        pilot: The pilot.
        config: What to start, checked.
        on_lost: Called with each pair that is lost, once.

    Attributes:
        config: What it starts.
        pairs: Those that live.
        lost: The uids of the masters that do not.
    """

    def __init__(
        self, pilot: Pilot, config: dict[str, Any], on_lost: Callable[[Pair], None]
    ) -> None:
        self._pilot = pilot
        self.config: dict[str, Any] = config
        self._on_lost = on_lost
        self._count = 0
        self._turn = 0
        self._lock = threading.RLock()
        self.pairs: list[Pair] = []
        self.lost: set[str] = set()

    @property
    def cores(self) -> int:
        """Cores that the pairs take."""
        return sum(
            _cores(master) + sum(map(_cores, master["workers"]))
            for master in self.config["masters"]
        )

    def start(self) -> None:
        """Starts the pairs that are not there."""
        with self._lock:
            running = [pair.settings for pair in self.pairs]
            for settings in self.config["masters"]:
                if not any(settings is each for each in running):
                    self.pairs.append(self._start(settings))

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
        master = manager.submit_raptors(
            rp.TaskDescription({**words, "mode": rp.RAPTOR_MASTER, "uid": uid}),
            pilot_id=self._pilot.uid,
        )[0]
        descriptions = []
        for number, worker in enumerate(settings["workers"]):
            words = {key: value for key, value in worker.items() if key != "worker_type"}
            if is_own(worker):
                words.update(raptor_class=OWN_CLASS, raptor_file=str(OWN_WORKER))
                if not self._pilot.shared:
                    self._send_worker(words)
            words.setdefault("raptor_class", worker.get("worker_type", DEFAULT_CLASS))
            words.update(mode=rp.RAPTOR_WORKER, uid=f"{uid}.worker.{number:04d}")
            words.update(pilot=self._pilot.uid)
            descriptions.append(rp.TaskDescription(words))
        return Pair(master, master.submit_workers(descriptions), settings)

    @staticmethod
    def _send_worker(words: dict[str, Any]) -> None:
        """Has our worker's files copied to where the worker starts."""
        sent = [
            {"source": str(file), "target": f"task:///{file.name}", "action": rp.TRANSFER}
            for file in OWN_FILES
        ]
        words["input_staging"] = [*(words.get("input_staging") or ()), *sent]
        words["raptor_file"] = OWN_WORKER.name

    def check(self, calls: Mapping[Pair, list[str]] | None = None) -> set[str]:
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
                problem, asked = pair.problem(), (calls or {}).get(pair)
                if problem is None and asked is not None and pair.answers_probes and pair.heard:
                    lost |= self._read_probe(pair) & set(asked)
                    problem = self._probe(pair, asked)
                if problem is not None:
                    self.give_up(pair, problem)
        return lost

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
        if self._pilot.usable:
            log.warning("%s; a new pair is started when it is needed", reason)
        self._on_lost(pair)


def _cores(settings: Mapping[str, Any]) -> int:
    return int(settings.get("ranks") or 1) * max(1, int(settings.get("cores_per_rank") or 1))
