"""RAPTOR's masters and workers: started, chosen in turn, checked, and replaced when lost.

A master and its workers form a pair. A new worker cannot be added to an old master, so both are
ended and replaced together. All methods block, and run on the client's threads.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import RUNNER_FILE
from rhapsody_radical import functions
from rhapsody_radical._raptor import MARK
from rhapsody_radical.client import health
from rhapsody_radical.client.health import WAITING, IdleTime, is_stuck
from rhapsody_radical.client.session import ClientPilot
from rhapsody_radical.descriptions import (
    CLASS_KEYS,
    DEFAULT_CLASS,
    MASTER_CLASS,
    OWN_CLASS,
    cores_taken,
    described,
    is_own,
    leave_gpus,
)
from rhapsody_radical.states import AGENT_EXECUTING, FINAL

log: logging.Logger = logging.getLogger("rhapsody.radical")

OWN_CLASSES = Path(__file__).parents[1] / "_raptor.py"
CALL_FILES = (OWN_CLASSES.with_name("call.py"), Path(RUNNER_FILE))
"""Files with the worker's side of calls."""

MAX_GROUP_CALLS, MAX_GROUP_TEXT = 256, 1 << 18
"""Limits of a group: the number of calls, and the total length of the packed calls in
characters."""

MIN_GROUPS_PER_WORKER = 16
"""Minimum number of groups per worker if there are several workers.

Many small groups give all workers about the same number of calls.
"""


class Pair:
    """RAPTOR master and its workers.

    Attributes:
        uid: The master's uid, to which calls are sent.
        takes_orders: True if the master and all of its workers have Rhapsody's own classes, which
            accept packed calls.
        master: RADICAL-Pilot's task of the master.
        workers: RADICAL-Pilot's tasks of the workers.
        settings: The validated configuration of the master, with its workers.
        lost: The reason for the pair's loss; `None` until the pair is lost.
        progress: The time since the pair last started a call.
    """

    def __init__(self, master: Any, workers: list[Any], settings: Mapping[str, Any]) -> None:
        self.uid: str = str(master.uid)
        other_class = any(settings.get(key) for key in CLASS_KEYS)
        self.takes_orders: bool = not other_class and all(map(is_own, settings["workers"]))
        self.master = master
        self.workers = workers
        self.settings = settings
        self.lost: str | None = None
        self.progress: IdleTime = IdleTime()

    def is_stuck(self, calls: Sequence[Any]) -> bool:
        """Return True if one of the pair's waiting calls could start.

        Return False for workers other than Rhapsody's: they neither report that a call has started
        nor start calls in order. Also return False while the master or a worker is starting, and if
        a call is running and there are several workers: each call is assigned to one worker, and
        may have to wait for it although another worker is free.
        """
        members = (self.master, *self.workers)
        own = all((call.description.get("metadata") or {}).get(MARK) for call in calls)
        if not (self.takes_orders and own and all(x.state == AGENT_EXECUTING for x in members)):
            return False
        running = [call for call in calls if call.state == AGENT_EXECUTING]
        several = len(self.workers) > 1 or int(self.settings["workers"][0].get("ranks") or 1) > 1
        if several and running:
            return False
        oldest = [call for call in calls if call.state in WAITING][:1]
        return is_stuck([*running, *oldest], [cores_taken(x.description) for x in self.workers])

    def uids(self) -> list[str]:
        """Return the uids of the master and its workers."""
        return [self.uid, *(str(worker.uid) for worker in self.workers)]

    def problem(self) -> str | None:
        """Return a description of the master or worker that has ended, or `None` if none has."""
        for name, task in (("master", self.master), *(("worker", each) for each in self.workers)):
            if task.state in FINAL:
                details = [task.exception, (task.stderr or "").strip()[-500:]]
                return ": ".join(
                    [f"RAPTOR {name} {task.uid} ended ({task.state})", *filter(None, details)]
                )
        return None


class Raptor:
    """RAPTOR on one pilot: pairs of a master and its workers.

    Args:
        pilot: The pilot.
        config: The validated configuration of the pairs.
        on_change: Called with each lost pair, and with `None` after pairs have been started.

    Attributes:
        config: The configuration of the pairs.
        pairs: The pairs that were started and not lost.
        lost: The uids of the masters that were lost.
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
        self.pairs: list[Pair] = []
        self.lost: set[str] = set()

    def start(self) -> None:
        """Start each configured pair that is not running."""
        with self._lock:
            running = [pair.settings for pair in self.pairs]
            new = [
                each for each in self.config["masters"] if not any(each is one for one in running)
            ]
            self.pairs += map(self._start, new)
        if new:
            self._on_change(None)

    def choose(self) -> Pair:
        """Start missing pairs, and return the next pair in turn."""
        with self._lock:
            self.start()
            self._turn += 1
            return self.pairs[self._turn % len(self.pairs)]

    def _start(self, settings: dict[str, Any]) -> Pair:
        self._count += 1
        manager, uid = self._pilot.manager, f"raptor.{self._pilot.number}.{self._count:04d}"
        words = {key: value for key, value in settings.items() if key != "workers"}
        if not any(words.get(key) for key in CLASS_KEYS):
            self._make_own(words, uid, MASTER_CLASS)
        words.update(mode=rp.RAPTOR_MASTER, uid=uid)
        leave_gpus(words, self._pilot.config)
        description = described("TaskDescription", words, "raptor_config: a master", ["workers"])
        workers = []
        for number, worker in enumerate(settings["workers"]):
            words = {key: value for key, value in worker.items() if key != "worker_type"}
            own = f"{uid}.worker.{number:04d}"
            if is_own(worker):
                self._make_own(words, own, OWN_CLASS, *CALL_FILES)
            words.setdefault("raptor_class", worker.get("worker_type", DEFAULT_CLASS))
            words.update(mode=rp.RAPTOR_WORKER, uid=own, pilot=self._pilot.uid)
            leave_gpus(words, self._pilot.config)
            what, hints = "raptor_config: a worker", ["worker_type"]
            workers.append(described("TaskDescription", words, what, hints))
        master = manager.submit_raptors(description, pilot_id=self._pilot.uid)[0]
        return Pair(master, master.submit_workers(workers), settings)

    def _make_own(self, words: dict[str, Any], uid: str, name: str, *files: Path) -> None:
        """Copy files to a sandbox, and make RAPTOR load Rhapsody's class there.

        The files belong to two distributions, which need not be installed in the pilot.
        """
        words.update(raptor_class=name, raptor_file=OWN_CLASSES.name)
        # RADICAL-Pilot's COPY does not support spaces; its LINK does not work across file systems.
        sandbox = Path(self._pilot.sandbox, words.get("sandbox") or uid)
        sandbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in (OWN_CLASSES, *files):
            shutil.copyfile(file, sandbox / file.name)

    def check(self, calls: Mapping[str, Sequence[Any]] | None = None) -> None:
        """End pairs whose master or worker has ended, or that do not start their calls.

        Args:
            calls: RADICAL-Pilot's tasks for the calls of each master, by the master's uid; `None`
                to check only for masters and workers that have ended.
        """
        with self._lock:
            for pair in list(self.pairs):
                problem = pair.problem()
                if problem is None and calls is not None:
                    waits = pair.is_stuck(calls.get(pair.uid, ()))
                    if pair.progress.is_stalled(waits):
                        problem = (
                            f"RAPTOR master {pair.uid} and its worker start no calls: a call for "
                            f"which there are free cores has waited {health.STALL_TIMEOUT:g} s"
                        )
                if problem is not None:
                    self.give_up(pair, problem)

    def give_up(self, pair: Pair, reason: str) -> None:
        """End a pair that no longer works; the next call starts a new pair."""
        with self._lock:
            if pair.lost is not None:
                return
            pair.lost = reason
            self.lost.add(pair.uid)
            self.pairs.remove(pair)
        with suppress(Exception):  # the pilot may have ended
            self._pilot.manager.cancel_tasks(pair.uids())
        if not self._pilot.ended:
            log.warning("%s; the next call starts a new master and worker", reason)
        self._on_change(pair)


class Raptors:
    """RAPTOR on all pilots of a session.

    Args:
        pilots: The pilots.
        on_change: Called with the number of a pilot and its lost pair; the pair is `None` after
            pairs have been started.

    Attributes:
        found: The pairs on each pilot where RAPTOR was started, by the pilot's number.
    """

    def __init__(
        self, pilots: list[ClientPilot], on_change: Callable[[int, Pair | None], None]
    ) -> None:
        self._pilots = pilots
        self._on_change = on_change
        self.found: dict[int, Raptor] = {}

    def start(self, number: int, config: dict[str, Any]) -> None:
        """Start the masters and workers that are missing on a pilot.

        Args:
            number: The pilot's number.
            config: The configuration of the masters and workers; ignored if RAPTOR has already been
                started on this pilot.
        """
        found = self.found.get(number)
        if found is None:
            pilot, changed = self._pilots[number], partial(self._on_change, number)
            found = self.found[number] = Raptor(pilot, config, changed)
        found.start()

    def release(self, number: int) -> None:
        """End RAPTOR on a pilot on which no call is open."""
        pairs = self.found.pop(number).pairs
        uids = [uid for pair in pairs for uid in pair.uids()]
        self._pilots[number].manager.cancel_tasks(uids)

    def group_size(self, pilot: ClientPilot, calls: int) -> int:
        """Return the largest number of calls that may share a RADICAL-Pilot task.

        Only Rhapsody's workers support groups. A worker executes the calls of a group
        independently, on all of its cores. If there are several workers, all must receive groups.
        """
        raptor = self.found.get(pilot.number)
        masters = [] if raptor is None else raptor.config["masters"]
        workers = [worker for master in masters for worker in master["workers"]]
        other_class = any(master.get(key) for master in masters for key in CLASS_KEYS)
        if not workers or other_class or not all(map(is_own, workers)):
            return 1
        number = sum(int(worker.get("ranks") or 1) for worker in workers)
        return (
            MAX_GROUP_CALLS
            if number == 1
            else max(1, min(MAX_GROUP_CALLS, calls // (MIN_GROUPS_PER_WORKER * number)))
        )

    def send(self, words: dict[str, Any], order: Any, pilot: ClientPilot) -> Pair | None:
        """Add a call or a group of calls, and the master that receives them, to a description.

        Args:
            words: The RADICAL-Pilot description, which is changed.
            order: The packed call; for a group, a list with the uid and the packed call of each.
            pilot: The pilot of the task.

        Returns:
            The pair that receives the call or group, or `None` if the program itself has started
            the master.

        Raises:
            ValueError: The task names an unknown master.
        """
        named = words.get("raptor_id")
        pair = self._named(named, pilot) if named else self.found[pilot.number].choose()
        # Rhapsody's workers can execute a packed call; others receive a function that executes it.
        alone = pair is not None and pair.takes_orders
        if type(order) is list:
            kind, words["function"] = "calls", json.dumps(order)
        else:
            kind = "call" if alone else "task"
            encoded = functions.as_text if alone else functions.python_task
            words["function"] = encoded(order)
        words["metadata"] = {**(words.get("metadata") or {}), MARK: kind}
        words["raptor_id"] = pair.uid if pair is not None else named
        return pair

    def _named(self, master: str, pilot: ClientPilot) -> Pair | None:
        """Return the pair of a master that a task names, or `None` if the program started it.

        Raises:
            ValueError: The master is unknown, was lost, or is on another pilot. In these cases,
                RADICAL-Pilot would wait forever.
        """
        for number, each in list(self.found.items()):
            there = self._pilots[number].uid
            if master in each.lost:
                raise ValueError(f"raptor_id: RAPTOR master {master!r} was lost; omit raptor_id")
            for pair in each.pairs:
                if pair.uid == master and number == pilot.number:
                    return pair
                if pair.uid == master:
                    raise ValueError(
                        f"raptor_id: RAPTOR master {master!r} is on pilot {there}, but the task is "
                        f"on {pilot.uid}; set pilot={there!r} in its task_description as well"
                    )
        if not any(master in each.manager.list_tasks() for each in self._pilots):
            pairs = [pair.uid for each in self.found.values() for pair in each.pairs]
            raise ValueError(
                f"raptor_id: no RAPTOR master {master!r}; the masters are "
                f"{', '.join(pairs) or 'not started yet'}"
            )
        return None

    def look_at(self, uid: str, state: str) -> bool:
        """Return True if a task is a master or worker, and its state is final."""
        pairs = [pair for each in list(self.found.values()) for pair in list(each.pairs)]
        return state in FINAL and any(uid in pair.uids() for pair in pairs)
