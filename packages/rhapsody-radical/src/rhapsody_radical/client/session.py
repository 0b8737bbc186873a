"""RADICAL-Pilot's objects for one backend: a session, its managers and its pilots.

All methods block; the client calls them on threads. Each pilot has its own task manager, because a
task manager declares all of its tasks failed when one of its pilots ends.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import similar, slurm_waiting, start_thread
from rhapsody_radical import cleanup
from rhapsody_radical.client.health import IdleTime
from rhapsody_radical.descriptions import described
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.plugin import OPTIONS, PILOT_KEYS
from rhapsody_radical.states import FINAL, PMGR_ACTIVE, PMGR_ACTIVE_PENDING

log: logging.Logger = logging.getLogger("rhapsody.radical")

CLOSE_LIMIT = 60.0
"""Time limit in seconds for closing RADICAL-Pilot, after which its processes are killed."""

AGENT_TIMEOUT = 15.0
"""Time limit in seconds for the end of an agent, after which its pilot is ended by force."""

MIN_FREE_BYTES = 1 << 20
"""Free space in bytes below which a pilot cannot start on a file system."""

KNOWN = (
    *("resource_manager", "filesystem_endpoint"),
    *("cores_per_node", "gpus_per_node", "mem_per_node"),
)
"""Keys of a resource's configuration that the program receives."""

OTHERS = tuple(
    option.name for option in OPTIONS if option.name not in PILOT_KEYS and not option.instead
)
"""Parameters that users may put among those of a pilot by mistake."""


SETTINGS = {
    "account": "project",
    "queue": "queue, or what exceeds its limits",
    "walltime": "runtime or queue",
    "nodes": "nodes or queue",
    "memory": "memory or queue",
    "cores": "cores, gpus or queue",
    "attributes": "the options of the batch system",
}
"""Parameters of a pilot for the settings of its job; see `rhapsody.sdk.SlurmReason`."""


class ClientPilot:
    """Pilot and its task manager.

    Attributes:
        number: The pilot's index among the backend's pilots, from 0.
        settings: The parameters of the pilot's description.
        pilot: RADICAL-Pilot's object.
        manager: The pilot's task manager.
        config: The relevant part of the resource's configuration, as plain values.
        sandbox: The directory that contains the sandboxes of the pilot's tasks.
        ended: True if the pilot accepts no more tasks.
        progress: The time since the pilot last started a task.
        reported: The state that was last reported to the program.
        first_reason: The first reason for which Slurm let the pilot's job wait, other than `None`.
        active_since: The time at which the pilot became active, by the monotonic clock.
        asked: The time of the last query for the job of a pilot whose runtime has passed.
        warned: The time of the last warning that the pilot is not active, by the monotonic clock.
    """

    def __init__(self, number: int, settings: dict[str, Any]) -> None:
        self.number = number
        self.settings = settings
        self.pilot: Any = None
        self.manager: Any = None
        self.config: dict[str, Any] = {}
        self.sandbox = ""
        self.ended = False
        self.progress: IdleTime = IdleTime()
        self.reported = ""
        self.first_reason: str | None = None
        self.active_since: float = math.inf
        self.asked: float = -math.inf
        self.warned: float = -math.inf

    @property
    def uid(self) -> str:
        """The pilot's uid in the session."""
        return f"pilot.{self.number:04d}"

    @property
    def state(self) -> str:
        """The pilot's native state."""
        return "NEW" if self.pilot is None else str(self.pilot.state)

    def configure(self, config: Any) -> None:
        """Store the relevant part of the configuration of the pilot's resource."""
        self.config = {key: config.get(key) for key in KNOWN}

    def cores(self) -> list[int]:
        """Return the number of cores that tasks can use on each node.

        The list is empty until the nodes are known.
        """
        found = self.pilot.nodelist
        nodes = [] if found is None else found.nodes
        return [sum(core.occupation is not None for core in node.cores) for node in nodes]

    def forget(self, uid: str) -> None:
        """Remove an ended task from the task manager, which would otherwise keep the task."""
        with suppress(Exception), self.manager._tasks_lock:
            self.manager._tasks.pop(uid, None)
            self.manager._task_info.pop(uid, None)


class Objects:
    """RADICAL-Pilot's own objects, which `run_in_client` passes to a function.

    Attributes:
        session: The session.
        pilot_manager: The pilot manager.
        task_managers: The task managers, one for each pilot.
        resource_pilots: The pilots.
    """

    def __init__(self) -> None:
        self.session: Any = None
        self.pilot_manager: Any = None
        self.task_managers: list[Any] = []
        self.resource_pilots: list[Any] = []

    @property
    def task_manager(self) -> Any:
        """The task manager of the first pilot."""
        return self.task_managers[0]

    @property
    def resource_pilot(self) -> Any:
        """The first pilot."""
        return self.resource_pilots[0]


class PilotSession:
    """RADICAL-Pilot session, from its start to its end.

    Args:
        uid: The session's uid.
        directory: The session's directory, which must exist.
        here: The program's current directory, to which `client:///` refers.
        settings: The parameters of each pilot's description.

    Attributes:
        objects: RADICAL-Pilot's own objects.
        pilots: The pilots, in the order of their numbers.
        managers: The batch systems on which the pilots run, by their names in RADICAL-Pilot.
    """

    def __init__(self, uid: str, directory: str, here: str, settings: list[dict[str, Any]]) -> None:
        self.uid = uid
        self.directory = directory
        self._here = here
        self.objects: Objects = Objects()
        self.pilots: list[ClientPilot] = [
            ClientPilot(number, one) for number, one in enumerate(settings)
        ]
        self.managers: list[str] = _managers(self.pilots)

    def open(
        self,
        on_task: Callable[[Any, str], None],
        on_pilot: Callable[[Any, str], None],
        stop: threading.Event,
    ) -> None:
        """Start the session and its managers, and submit the session's pilots.

        Return when the pilots have been launched. On a batch system, they may still be queued then.

        Args:
            on_task: Called with each state of a task, on RADICAL-Pilot's thread.
            on_pilot: Called with each state of a pilot, on RADICAL-Pilot's thread.
            stop: Event that interrupts the start when it is set; checked between the steps.

        Raises:
            TypeError: A pilot's description has an unknown key, or a value of the wrong type.
            PilotException: The session cannot be started; the message contains the reason.
        """
        descriptions = [
            described("PilotDescription", settings, "resources: a pilot description", OTHERS)
            for settings in ({"sandbox": self.directory, **each.settings} for each in self.pilots)
        ]
        cfg = {"base": self.directory, "client_sandbox": self._here}
        self.objects.session = rp.Session(uid=self.uid, cfg=cfg)
        for pilot in self.pilots:
            self._look_up(pilot)
        if stop.is_set():
            return
        manager = rp.PilotManager(session=self.objects.session)
        self.objects.pilot_manager = manager
        manager.register_callback(on_pilot)
        for pilot in self.pilots:
            if stop.is_set():
                return
            pilot.manager = rp.TaskManager(session=self.objects.session)
            pilot.manager.register_callback(on_task)
            self.objects.task_managers.append(pilot.manager)
        for pilot, description in zip(self.pilots, descriptions, strict=True):
            if stop.is_set():
                return
            # RADICAL-Pilot uses the same numbers: a pilot that the program submits is the next one.
            pilot.pilot = manager.submit_pilots(description)
            self.objects.resource_pilots.append(pilot.pilot)
            pilot.sandbox = os.path.normpath(ru.Url(pilot.pilot.pilot_sandbox).path)
            pilot.manager.add_pilots(pilot.pilot)
        self._wait_launched(stop)

    def _look_up(self, pilot: ClientPilot) -> None:
        """Look up the configuration of a pilot's resource.

        Raises:
            PilotException: There is no such resource, or this machine does not see its files.
        """
        session, resource = self.objects.session, pilot.settings["resource"]
        try:
            schema = pilot.settings.get("access_schema")
            pilot.configure(session.get_resource_config(resource, schema))
        except (RuntimeError, ValueError) as error:
            known = [
                f"{site}.{label}" for site, labels in session.rcfgs.items() for label in labels
            ]
            close = similar(resource, known, 5, 0.3) or ["local.localhost"]
            raise PilotException(
                f"{text_of(error)} Similar known resources: {', '.join(close)}"
            ) from error
        files = pilot.config["filesystem_endpoint"] or "file://"
        if not files.startswith("file:"):
            raise PilotException(
                f"{resource} keeps its files at {files}, which this program cannot access. Run the "
                "program on that machine, with an access_schema whose filesystem_endpoint is "
                "file://localhost"
            )

    def _wait_launched(self, stop: threading.Event) -> None:
        """Wait until all pilots have been launched.

        Raises:
            PilotException: A pilot has ended; the message contains the reason.
        """
        while not stop.wait(0.05):
            states = [pilot.state for pilot in self.pilots]
            for pilot, state in zip(self.pilots, states, strict=True):
                if state in FINAL:
                    queue = pilot.settings.get("queue")
                    where = pilot.settings["resource"] + (f" (queue {queue})" if queue else "")
                    raise PilotException(
                        f"pilot {pilot.uid} on {where} was not launched ({state}): "
                        f"{self.why(pilot)}"
                    )
            if all(state in (PMGR_ACTIVE_PENDING, PMGR_ACTIVE) for state in states):
                return

    def why(self, pilot: ClientPilot) -> str:
        """Return the reason for a pilot's end, from the batch system or RADICAL-Pilot's logs."""
        for job in self.jobs(cleanup.ENDED_STATES) or ():
            if job.pilot == pilot.uid:
                return f"the batch system ended its job {job.id}: {job.state}"
        here = Path(self.objects.session.path)
        there = Path(pilot.sandbox)
        names = ("agent_0.err", "bootstrap_0.err", "bootstrap_0.out")
        for place in (*sorted(here.glob("pmgr_launching*.log")), *(there / each for each in names)):
            if reason := _last_error(place):
                return reason
        for place in (here, there):
            with suppress(OSError):
                if shutil.disk_usage(place).free < MIN_FREE_BYTES:
                    return f"no space left in {place}"
        return f"no reason found in its logs in {here} (keep_session=False removes these logs)"

    def directories(self) -> list[str]:
        """Return the directories created for the session, including the pilots' directories."""
        found = {self.directory}
        for pilot in self.pilots:
            if pilot.sandbox:
                sandboxes = os.path.dirname(pilot.sandbox)
                counters = os.path.join(os.path.dirname(sandboxes), ".radical/utils", self.uid)
                found |= {sandboxes, counters}  # `radical.utils` creates the counters
        return sorted(found)

    def jobs(self, states: str = cleanup.ACTIVE) -> list[cleanup.BatchJob] | None:
        """Return the session's batch jobs in these states, or `None` if they cannot be queried."""
        return cleanup.find_jobs(self.uid, states) if "SLURM" in self.managers else None

    def why_never(self, pilot: ClientPilot) -> str | None:
        """Return the reason why a queued pilot can never start, or `None` if none is known."""
        for job in self.jobs() or ():
            if job.pilot != pilot.uid or job.state != "PENDING":
                continue
            if job.reason != "None":
                pilot.first_reason = pilot.first_reason or job.reason
            meaning = slurm_waiting(job.reason, pilot.first_reason)
            if meaning is not None and not meaning.passes:
                return (
                    f"cannot start: its job {job.id} in queue {job.queue} waits for a reason that "
                    f"does not pass; change {SETTINGS[meaning.setting]} ({job.reason})"
                )
        return None

    def why_over(self, pilot: ClientPilot) -> str | None:
        """Return how a pilot's batch job has ended, or `None` unless it has ended or is ending."""
        for job in self.jobs(cleanup.OVER_STATES) or ():
            if job.pilot == pilot.uid:
                runtime = pilot.settings.get("runtime")
                limit = f"; the pilot's runtime is {runtime} minutes" if runtime else ""
                return f"ended with its batch job {job.id} ({job.state}, {job.reason}{limit})"
        return None

    def place_in_queue(self, pilot: ClientPilot) -> str:
        """Return the queue and the job of a waiting pilot, as the end of a log message."""
        queue = pilot.settings.get("queue")
        where = f", queue {queue}" if queue else ""
        found = self.jobs()
        if found is None:
            return where
        job = next((job for job in found if job.pilot == pilot.uid), None)
        if job is None:
            return f"{where}, no job in the queue"
        text = f", queue {job.queue}, job {job.id} is {job.state}"
        if job.state == "RUNNING":
            return f"{text}, and RADICAL-Pilot's agent is starting"
        return f"{text} ({job.reason})"

    def give_up(self, pilot: ClientPilot) -> None:
        """End a pilot that no longer works, and everything that runs on it."""
        cleanup.cancel_jobs(job for job in self.jobs() or () if job.pilot == pilot.uid)
        cleanup.end(self.uid, cleanup.PILOT, [pilot.uid])
        with suppress(Exception):  # the component that cancels pilots may have ended
            self.objects.pilot_manager.cancel_pilots(pilot.uid, _timeout=5)

    def close(self) -> None:
        """Close the session within a time limit, then kill its processes and cancel its jobs.

        Never raises.
        """
        closing = start_thread(self._close, "rhapsody-radical-close")
        closing.join(CLOSE_LIMIT)
        if closing.is_alive():
            log.warning(
                "RADICAL-Pilot session %s: killing its processes, because RADICAL-Pilot did not "
                "close the session within %g s", self.uid, CLOSE_LIMIT,
            )  # fmt: skip
        cleanup.end(self.uid, patience=5.0)
        # This includes a job that was being submitted when closing started.
        cleanup.cancel_jobs(self.jobs() or [])
        # RADICAL-Pilot's agents create this directory for temporary files, and never remove it.
        temporary = os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - RADICAL-Pilot's
        shutil.rmtree(os.path.join(temporary, self.uid), ignore_errors=True)

    def _close(self) -> None:
        manager = self.objects.pilot_manager
        living = [pilot for pilot in self.pilots if pilot.pilot and pilot.state not in FINAL]
        active = [pilot.uid for pilot in living if pilot.state == PMGR_ACTIVE]
        # Cancel queued jobs first, because RADICAL-Pilot's components may have ended, and it
        # detects the end of a job only after half a minute. Active pilots are ended by their
        # agents, which is quicker than the batch system.
        found = self.jobs() or []
        jobs = [job for job in found if job.pilot not in active]
        done = {job.pilot for job in jobs} if cleanup.cancel_jobs(jobs) else set()
        queued = [pilot.uid for pilot in living if pilot.uid not in {*active, *done}]
        steps: list[Callable[[], Any]] = []
        if queued:
            steps.append(lambda: manager.kill_pilots(queued, _timeout=10))
        if active:
            in_jobs = {job.pilot for job in found}.issuperset(active)
            steps.append(
                lambda: manager.cancel_pilots(active, _timeout=0.1 if in_jobs else AGENT_TIMEOUT)
            )
            steps.append(lambda: self._wait_for_jobs(active))
        if manager is not None:  # terminating would wait for pilots again, without their launcher
            steps.append(lambda: manager.close(terminate=False))
        if self.objects.session is not None:
            steps.append(lambda: self.objects.session.close(download=True))
        for step in steps:
            try:
                step()
            except Exception as error:  # continue with the next step
                log.debug("RADICAL-Pilot session %s: error while closing: %r", self.uid, error)

    def _wait_for_jobs(self, uids: list[str]) -> None:
        """Wait up to `AGENT_TIMEOUT` seconds until the agents have ended their jobs.

        RADICAL-Pilot itself notices this much later.
        """
        until = time.monotonic() + AGENT_TIMEOUT
        while any(job.pilot in uids for job in self.jobs() or ()) and time.monotonic() < until:
            time.sleep(0.2)


def _managers(pilots: list[ClientPilot]) -> list[str]:
    """Return RADICAL-Pilot's names of the pilots' batch systems. Does not need a session."""
    found, configs = set(), rp.utils.misc.get_resource_configs()
    for pilot in pilots:
        site, _, name = pilot.settings["resource"].partition(".")
        config = configs.get(site, {}).get(name) or {}
        found.add(str(config.get("resource_manager") or ""))
    return sorted(found - {"", "FORK"})


def text_of(error: BaseException) -> str:
    """Return an error's text, with a period unless it ends with another punctuation mark."""
    text = str(error).strip() or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _last_error(path: Path) -> str:
    """Return the last line with an error in a log, shortened, or an empty string."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    words = ("Error", "error", "Exception", "rejected", "denied", "No space left", "not enough")
    for line in reversed(lines):
        if any(word in line for word in words):
            return line.strip()[-500:]
    return ""
