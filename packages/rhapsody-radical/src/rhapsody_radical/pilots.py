"""Pilots and tasks of one backend, with the states that the client has reported.

`Pilots.choose` chooses a pilot for each task.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rhapsody import TaskDescription
from rhapsody.sdk import Readiness, time_needed
from rhapsody_radical.descriptions import total_cores
from rhapsody_radical.remote import Remote
from rhapsody_radical.states import FINAL, PMGR_ACTIVE

log: logging.Logger = logging.getLogger("rhapsody.radical")

LOOKAHEAD_SECONDS = 10.0
"""Seconds of work that an active pilot receives in advance while other pilots are queued."""


class Pilot:
    """Pilot, with its settings and the state that the client reported.

    Attributes:
        number: The pilot's index among the backend's pilots, from 0.
        settings: The parameters of the pilot's description.
        handle: The remote object for RADICAL-Pilot's pilot; `None` before the start.
        state: The pilot's native state.
        sandbox: The directory that contains the sandboxes of the pilot's tasks.
        reason: The sentence that reports the pilot's end; `None` until the pilot has ended.
        times: The time at which the pilot entered each state, in seconds since the epoch.
        closed: The time at which the session was closed; 0 until then.
        core_seconds: The core time that the pilot's tasks have used, in seconds.
        cores_done: The sum of the cores of all tasks that ran on the pilot and have ended.
        only_programs: True if functions run as separate programs on the pilot, because a task
            needs RAPTOR's cores.
        raptor: The configuration of RAPTOR on the pilot; `None` while RAPTOR is not used.
        pairs: The RAPTOR masters on the pilot, each with its workers.
    """

    def __init__(self, number: int, settings: dict[str, Any]) -> None:
        self.number = number
        self.settings = settings
        self.handle: Remote | None = None
        self.state: str = "NEW"
        self.sandbox: str = ""
        self.reason: str | None = None
        self.times: dict[str, float] = {}
        self.closed: float = 0.0
        self.core_seconds: float = 0.0
        self.cores_done: int = 0
        self.only_programs: bool = False
        self.raptor: dict[str, Any] | None = None
        self.pairs: list[tuple[Remote, list[Remote]]] = []
        self._config: Mapping[str, Any] = {}

    @property
    def uid(self) -> str:
        """The pilot's uid in the session."""
        return f"pilot.{self.number:04d}"

    @property
    def usable(self) -> bool:
        """True if the pilot has not ended: it accepts tasks now or later."""
        return self.reason is None

    @property
    def active(self) -> bool:
        """True if the pilot is active."""
        return self.usable and PMGR_ACTIVE in self.times

    def takes_more(self, work: int) -> bool:
        """Return True if an active pilot needs more tasks to keep its cores in use.

        Args:
            work: The number of cores that the open tasks on the pilot use or wait for.
        """
        seconds = max(1.0, time.time() - self.times[PMGR_ACTIVE])
        return work < max(2 * self.cores, LOOKAHEAD_SECONDS * self.cores_done / seconds)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Store the configuration of the pilot's resource, as sent by the client."""
        self._config = config
        wanted = self.settings.get("cores")
        if wanted and wanted < self.cores:
            log.log(
                logging.INFO if self.here else logging.WARNING,
                "pilot %s on %s: has %d cores instead of %d, because its nodes have %d cores each",
                self.uid, self.settings["resource"], self.cores, wanted, self.has("cores"),
                extra={"pilot": self.uid},
            )  # fmt: skip

    def seconds_left(self) -> float:
        """Return the seconds of walltime left; before the pilot starts, the full walltime."""
        start = self.times.get(PMGR_ACTIVE)
        runtime = 60.0 * (self.settings.get("runtime") or math.inf)
        return runtime if start is None else max(0.0, start + runtime - time.time())

    @property
    def here(self) -> bool:
        """True if the pilot runs on this machine, without a batch system."""
        return self._config.get("resource_manager") == "FORK"

    def has(self, name: str) -> int:
        """Return the amount of a resource on each node, or 0 if the amount is unknown.

        Args:
            name: `"cores"`, `"gpus"` or `"mem"` (in MB).
        """
        return int(self._config.get(f"{name}_per_node") or 0)

    @property
    def nodes(self) -> int:
        """The pilot's number of nodes."""
        nodes = int(self.settings.get("nodes") or 0)
        per_node = self.has("cores")
        if nodes or not per_node:
            return nodes or 1
        return -(-int(self.settings.get("cores") or 1) // per_node)

    @property
    def cores(self) -> int:
        """The pilot's number of cores."""
        per_node = self.has("cores")
        return self.nodes * per_node if per_node else int(self.settings.get("cores") or 1)

    @property
    def raptor_cores(self) -> int:
        """The number of the pilot's cores that RAPTOR's masters and workers use."""
        return 0 if self.raptor is None else total_cores(self.raptor)


class Pilots:
    """Pilots of one backend, and the choice of a pilot for each task.

    Args:
        settings: The validated parameters of each pilot's description.
        on_end: Called once with each pilot that has ended, after its `reason` was set.

    Attributes:
        pilots: The pilots, in the order of their numbers.
    """

    def __init__(self, settings: list[dict[str, Any]], on_end: Callable[[Pilot], None]) -> None:
        self.pilots: list[Pilot] = [Pilot(number, one) for number, one in enumerate(settings)]
        self._on_end = on_end
        self._lock = threading.Lock()

    def choose(
        self, task: TaskDescription, fits: Callable[[Pilot], bool], work: Mapping[int, int]
    ) -> Pilot | None:
        """Choose a pilot for a task.

        A task that names a pilot runs on that pilot. For other tasks, the pilot with the least work
        per core is chosen.

        A queued pilot may start long after an active pilot has free cores. Therefore, tasks are not
        sent to queued pilots, and active pilots receive only the tasks that they need for the near
        future. The other tasks wait, because another pilot may become active soon.

        Args:
            task: The task.
            fits: Returns True if a pilot is large enough for the task.
            work: The number of cores that the open tasks on each pilot use or wait for, by the
                pilot's number.

        Returns:
            The pilot, or `None` if the task has to wait until a pilot needs work. If no pilot is
            suitable, the first one: the checks of the task will raise an error.
        """
        if len(self.pilots) == 1:
            return self.pilots[0]
        wanted = task["task_backend_specific_kwargs"].get("pilot")
        if wanted:  # a named pilot is not replaced, not even after its end
            return next((each for each in self.pilots if each.uid == wanted), self.pilots[0])
        usable = [pilot for pilot in self.pilots if pilot.usable] or self.pilots
        fit = [pilot for pilot in usable if fits(pilot)]
        if not fit or not fit[0].usable:
            return usable[0]  # the checks of the task will raise the error
        needs = time_needed(task) or 0.0
        fit = [pilot for pilot in fit if pilot.seconds_left() >= needs] or fit
        if not all(pilot.active for pilot in fit):
            fit = [each for each in fit if each.active and each.takes_more(work[each.number])]
        return min(fit, key=lambda pilot: work[pilot.number] / pilot.cores, default=None)

    def seconds_left(self, task: TaskDescription | None) -> float:
        """Return the seconds left on the pilot that a task names, or on the last pilot to end."""
        wanted = None if task is None else task["task_backend_specific_kwargs"].get("pilot")
        usable = [pilot for pilot in self.pilots if pilot.usable]
        pilots = [pilot for pilot in usable if pilot.uid == wanted] or usable
        return max((pilot.seconds_left() for pilot in pilots), default=math.inf)

    def note(self, pilot: Pilot, state: str, when: float) -> None:
        """Record and log a pilot's state. Called once for each state, on the reading thread."""
        pilot.state = state
        pilot.times.setdefault(state, when)
        resource = pilot.settings["resource"]
        log.info(
            "pilot %s on %s: %s", pilot.uid, resource, state,
            extra={"pilot": pilot.uid, "resource": resource, "state": state},
        )  # fmt: skip

    def ended(self, pilot: Pilot, how: str) -> None:
        """Record a pilot's end; later calls have no effect. Called on any thread.

        Args:
            pilot: The pilot.
            how: The predicate of the sentence that reports the end, such as `"was canceled"`.
        """
        with self._lock:
            if pilot.reason is not None:
                return
            pilot.reason = f"pilot {pilot.uid} on {pilot.settings['resource']} {how}"
        self._on_end(pilot)

    def close(self) -> None:
        """Record that the session has been closed, which ended all pilots."""
        for pilot in self.pilots:
            pilot.closed = pilot.closed or time.time()

    def account(self) -> list[dict[str, Any]]:
        """Return each pilot's utilization, and the times at which the pilot entered its states."""
        return [
            {
                "uid": pilot.uid,
                "resource": pilot.settings["resource"],
                "cores": pilot.cores,
                "states": dict(pilot.times),
                "utilization": _utilization(pilot),
            }
            for pilot in self.pilots
        ]


def _utilization(pilot: Pilot) -> float | None:
    """Return the share of a pilot's core time that tasks used.

    Returns:
        The share, or `None` if the pilot never became active.
    """
    start = pilot.times.get(PMGR_ACTIVE)
    if start is None:
        return None
    ends = [when for state, when in pilot.times.items() if state in FINAL]
    seconds = min([*ends, pilot.closed or time.time()]) - start
    return pilot.core_seconds / (pilot.cores * seconds) if seconds > 0 else 0.0


class Ended(NamedTuple):
    """RADICAL-Pilot's information about a task that has ended; missing items are `None`.

    Attributes:
        exit_code: The task's exit code.
        exception: The `repr` of the exception that made the task fail.
        detail: Further text about the exception, such as a traceback.
        value: The reply of a call on RAPTOR, as text.
    """

    exit_code: Any = None
    exception: str | None = None
    detail: str | None = None
    value: str | None = None


NOTHING = Ended()


@dataclass(eq=False, slots=True)
class PilotTask:
    """Task, from its submission to its terminal state.

    Attributes:
        task: The task's description, into which its result is written.
        pilot: The task's pilot; meaningless until a pilot has been chosen.
        sent: True if the task was sent to the client.
        on_raptor: True if the task is a call or a command on RAPTOR.
        program: True if the task is a function task that runs as a separate program.
        running: True if the task was reported as running.
        cancelled: True if the task's cancellation was requested.
        lost: The reason why the task was lost, if its pilot is still running; otherwise empty.
        ended: RADICAL-Pilot's information about the task's end.
        awaited: True if the task is a service with a readiness condition.
        info: The readiness information of a service; `None` before the service is ready.
        ready: The readiness of a service.
        host: The node that the task runs on, or an empty string if no node is reported.
        has_ended: True if the task's end has been recorded; set once, under `lock`.
        lock: The lock for `has_ended`.
        stopped: For a service, an event that is set when the service has ended; `None` for other
            tasks.
        cores: The number of cores that the task uses while it runs.
        began: The time at which the task was reported as running, by the monotonic clock.
        timeout: The `timeout` in the task's RADICAL-Pilot description in seconds, or 0 for none.
        startup_timeout: The `startup_timeout` in that description in seconds, or 0 for none.
        own_sandbox: True if the backend created the sandbox and may remove it.
    """

    task: TaskDescription
    pilot: Pilot
    sent: bool = False
    on_raptor: bool = False
    program: bool = False
    running: bool = False
    cancelled: bool = False
    lost: str = ""
    ended: Ended = NOTHING
    awaited: bool = False
    info: Any = None
    ready: Readiness = field(default_factory=Readiness)
    host: str = ""
    has_ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event | None = None
    cores: int = 1
    began: float = 0.0
    timeout: float = 0.0
    startup_timeout: float = 0.0
    own_sandbox: bool = False

    def __post_init__(self) -> None:
        if self.task["is_service"]:
            self.stopped = threading.Event()

    @property
    def uid(self) -> str:
        """The task's uid, which RADICAL-Pilot uses as well."""
        return self.task["uid"]

    @property
    def is_function(self) -> bool:
        """True for a function task."""
        return self.task["function"] is not None

    def begin(self, host: str) -> None:
        """Record that the task is running, and its node if RADICAL-Pilot reports one."""
        self.running, self.began, self.host = True, time.monotonic(), host
        here = socket.gethostname() if self.pilot.here else self.pilot.uid
        self.task["worker"] = host or here

    def claim_end(self) -> bool:
        """Record that the task has ended.

        Returns:
            True for the first caller, which must report the end; False for all later callers.
        """
        with self.lock:
            if self.has_ended:
                return False
            self.has_ended = True
            return True
