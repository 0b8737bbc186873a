"""RAPTOR's masters and workers on one pilot: started, chosen in turn, replaced when lost.

A master and its workers are one pair: a new worker at an old master does not serve, so
that both are given up together. Everything here blocks, and runs on the backend's
threads.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rhapsody_radical.descriptions import check_keys
from rhapsody_radical.library import rp
from rhapsody_radical.session import FINAL, Pilot

log: logging.Logger = logging.getLogger(__name__)

OWN_WORKER = Path(__file__).with_name("_raptor_worker.py")
OWN_CLASS = "RhapsodyWorker"


class Pair:
    """A master and its workers.

    Attributes:
        master: RADICAL-Pilot's task of the master.
        workers: Those of its workers.
        lost: Why it is lost, `None` while it is not.
    """

    def __init__(self, master: Any, workers: list[Any], settings: Mapping[str, Any]) -> None:
        self.master = master
        self.workers = workers
        self.settings = settings
        self.lost: str | None = None

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
                return f"RAPTOR {name} {task.uid} ended ({task.state})"
        return None


def checked(config: Any) -> dict[str, Any]:
    """A RAPTOR configuration, checked.

    Raises:
        TypeError: It is not of the documented form, or has an unknown key.
        ValueError: It has no master, or a master has no worker.
    """
    form = (
        "raptor_config must be {'masters': [{'executable': ..., 'workers': [{...}]}]}, "
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
        check_keys("raptor_config", {k: 0 for k in master if k != "workers"}, known, "a master")
        for worker in master["workers"]:
            check_keys(
                "raptor_config", {k: 0 for k in worker if k != "worker_type"}, known, "a worker"
            )
    return {"masters": masters}


def checked_settings(
    functions: Any, config: Mapping[str, Any] | None, cores: Any
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
    return None if config is None else checked(config)


def default(cores: int) -> dict[str, Any]:
    """The configuration where the user gave none: one pair, with a worker of our own."""
    worker: dict[str, Any] = {
        "worker_type": OWN_CLASS,
        "raptor_file": str(OWN_WORKER),
        "ranks": 1,
        "cores_per_rank": cores,
    }
    return {"masters": [{"workers": [worker]}]}


class Raptor:
    """The pairs on one pilot.

    Args:
        pilot: The pilot.
        config: What to start, checked.
        on_lost: Called with each pair that is lost, once.
    """

    def __init__(
        self, pilot: Pilot, config: dict[str, Any], on_lost: Callable[[Pair], None]
    ) -> None:
        self._pilot = pilot
        self._config = config
        self._on_lost = on_lost
        self._count = 0
        self._turn = 0
        self._lock = threading.RLock()
        self.pairs: list[Pair] = []

    @property
    def cores(self) -> int:
        """Cores that the pairs take."""
        return sum(
            _cores(master) + sum(map(_cores, master["workers"]))
            for master in self._config["masters"]
        )

    @property
    def function_cores(self) -> int:
        """Cores that one call can have at most."""
        return min(
            max(1, int(worker.get("cores_per_rank") or 1))
            for master in self._config["masters"]
            for worker in master["workers"]
        )

    def start(self) -> None:
        """Starts the pairs that are not there."""
        with self._lock:
            running = [pair.settings for pair in self.pairs]
            for settings in self._config["masters"]:
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
            words.setdefault("raptor_class", worker.get("worker_type", "DefaultWorker"))
            words.update(mode=rp.RAPTOR_WORKER, uid=f"{uid}.worker.{number:04d}")
            words.update(pilot=self._pilot.uid)
            descriptions.append(rp.TaskDescription(words))
        return Pair(master, master.submit_workers(descriptions), settings)

    def check(self) -> None:
        """Gives up pairs whose master or worker has ended."""
        with self._lock:
            for pair in list(self.pairs):
                problem = pair.problem()
                if problem is not None:
                    self.give_up(pair, problem)

    def give_up(self, pair: Pair, reason: str) -> None:
        """Ends a pair; the next call starts another."""
        with self._lock:
            if pair.lost is not None:
                return
            pair.lost = reason
            self.pairs.remove(pair)
        with suppress(Exception):  # the pilot may be gone
            self._pilot.manager.cancel_tasks(pair.uids())
        log.warning("%s; a new pair is started when it is needed", reason)
        self._on_lost(pair)


def _cores(settings: Mapping[str, Any]) -> int:
    return int(settings.get("ranks") or 1) * max(1, int(settings.get("cores_per_rank") or 1))
