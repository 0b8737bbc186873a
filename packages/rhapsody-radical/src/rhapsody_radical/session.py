"""RADICAL-Pilot's objects for one backend: a session, its managers and pilots.

Everything here blocks; the backend calls it on threads of its own. Each pilot has a
task manager of its own, because a task manager declares all of its tasks failed when
one of its pilots ends.
"""

from __future__ import annotations

import atexit
import difflib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rhapsody_radical import leftovers, processes, upkeep
from rhapsody_radical.environment import Environment, agents_temporary
from rhapsody_radical.library import rp, ru
from rhapsody_radical.pilot import PilotException

log: logging.Logger = logging.getLogger(__name__)

ACTIVE = "PMGR_ACTIVE"
LAUNCHED = ("PMGR_ACTIVE_PENDING", ACTIVE)
FINAL = ("DONE", "FAILED", "CANCELED")

CLOSE_LIMIT = 90.0
"""Seconds that RADICAL-Pilot may take to close before its processes are ended."""


class Pilot:
    """One pilot, its task manager, and what it has.

    Attributes:
        number: Which one of the backend's, from 0.
        settings: The parameters of its description.
        pilot: RADICAL-Pilot's object.
        manager: Its task manager.
        shared: Whether its file system is the engine's.
        sandbox: The directory of its tasks.
        reason: Why it ended, `None` while it has not.
        times: When it entered each state, in seconds since the epoch.
        closed: When the session was closed, 0 before.
        core_seconds: Cores that tasks had, times the seconds that they ran.
    """

    def __init__(self, number: int, settings: dict[str, Any]) -> None:
        self.number = number
        self.settings = settings
        self.pilot: Any = None
        self.manager: Any = None
        self.shared: bool = True
        self.sandbox = ""
        self.reason: str | None = None
        self.times: dict[str, float] = {}
        self.closed: float = 0.0
        self.core_seconds: float = 0.0
        self._config: Any = None

    @property
    def uid(self) -> str:
        """Its uid in the session."""
        return f"pilot.{self.number:04d}"

    @property
    def state(self) -> str:
        """Its native state."""
        return "NEW" if self.pilot is None else str(self.pilot.state)

    @property
    def usable(self) -> bool:
        """Whether it takes tasks, now or later."""
        return self.reason is None

    def forget(self, uid: str) -> None:
        """Has the task manager let go of a task that has ended, or it keeps each for ever."""
        with suppress(Exception), self.manager._tasks_lock:
            self.manager._tasks.pop(uid, None)
            self.manager._task_info.pop(uid, None)

    def configure(self, config: Any) -> None:
        """Takes note of the resource's configuration."""
        self._config = config
        self.shared = str(config.get("filesystem_endpoint", "file://")).startswith("file:")

    @property
    def here(self) -> bool:
        """Whether it runs on this machine, without a batch system."""
        return bool(self._config) and self._config.get("resource_manager") == "FORK"

    @property
    def needs_saga(self) -> bool:
        """Whether it is launched through ssh, which would else be tried on this machine."""
        endpoint = str(self._config.get("job_manager_endpoint", ""))
        return "ssh" in endpoint.partition(":")[0].split("+")

    def has(self, name: str) -> int:
        """How much of `cores`, `gpus` or `mem` (MB) one of its nodes has; 0 where unknown."""
        return int(self._config.get(f"{name}_per_node") or 0) if self._config else 0

    @property
    def nodes(self) -> int:
        """How many nodes it has."""
        nodes = int(self.settings.get("nodes") or 0)
        per_node = self.has("cores")
        if nodes or not per_node:
            return nodes or 1
        return -(-int(self.settings.get("cores") or 1) // per_node)

    @property
    def cores(self) -> int:
        """How many cores it has in all."""
        per_node = self.has("cores")
        return self.nodes * per_node if per_node else int(self.settings.get("cores") or 1)


class Client:
    """RADICAL-Pilot's objects for one backend. Its methods block.

    Args:
        uid: The session's uid.
        work_dir: Where the session's directory is made.
        pilots: Its pilots.
        verbose: Whether RADICAL-Pilot reports on standard error.
        keep: Whether the session's directory stays; `None`: where a pilot failed.

    Attributes:
        directory: The session's directory.
    """

    def __init__(
        self, uid: str, work_dir: str, pilots: list[Pilot], *, verbose: bool, keep: bool | None
    ) -> None:
        self.uid = uid
        self._keep = keep
        self.directory: Path = Path(os.path.abspath(work_dir)) / uid
        self.pilots = pilots
        self.session: Any = None
        self.manager: Any = None
        self._verbose = verbose
        self._environment: Environment | None = None
        self._forked: set[int] = set()
        self._addresses: frozenset[str] = frozenset()
        self._held: list[Any] = []
        self._made: list[Path] = []
        self._closed = False

    def open(
        self,
        on_task: Callable[[Any, str], None],
        on_pilot: Callable[[Any, str], None],
        stop: threading.Event,
    ) -> None:
        """Starts the session, its managers and its pilots; returns when they are submitted.

        Args:
            on_task: Called on RADICAL-Pilot's thread with each state of a task.
            on_pilot: The same for pilots.
            stop: Set where the start is given up; looked at between two of its steps.

        Raises:
            PilotException: It cannot be started; the text has RADICAL-Pilot's reason.
            SystemExit: The start was interrupted.
        """
        if not can_work_in(self.directory):
            raise PilotException(
                f"RADICAL-Pilot cannot work in {str(self.directory.parent)!r}: its scripts do not "
                "quote paths with spaces, quotes or dollar signs; give another directory: "
                "RadicalExecutionBackend(..., work_dir='/tmp/rhapsody'), or "
                "`rhapsody run -o work_dir=/tmp/rhapsody`"
            )
        try:
            self._made = [place for place in self.directory.parents if not place.exists()]
            self.directory.mkdir(parents=True, mode=0o700)
            leftovers.end_all(self.directory.parent)
            self._environment = Environment(self.directory, self.uid, verbose=self._verbose)
            self._environment.prepare()
            leftovers.note(self.directory, self.uid)
            self._environment.hold()
            _open.add(self)
            with self._environment.applied():
                self._start_managers(on_task, on_pilot, stop)
            if not stop.is_set():
                self._submit_pilots()
        except (KeyboardInterrupt, SystemExit) as error:
            raise SystemExit(self.interrupted()) from error
        except PilotException:
            raise
        except Exception as error:  # whatever RADICAL-Pilot raises
            raise PilotException(f"RADICAL-Pilot cannot start: {_text(error)}") from error

    def interrupted(self) -> str:
        """What a program says that was interrupted while the session started."""
        return f"interrupted while RADICAL-Pilot started; its session was {self.directory}"

    def _start_managers(
        self,
        on_task: Callable[[Any, str], None],
        on_pilot: Callable[[Any, str], None],
        stop: threading.Event,
    ) -> None:
        before = processes.children()
        self.session = rp.Session(uid=self.uid, cfg={"base": str(self.directory)})
        for pilot in self.pilots:
            settings = pilot.settings
            try:
                pilot.configure(
                    self.session.get_resource_config(
                        settings["resource"], settings.get("access_schema")
                    )
                )
            except (RuntimeError, ValueError) as error:
                raise PilotException(
                    f"{_text(error)} Known resources of this kind: "
                    f"{', '.join(self._resources_like(settings['resource']))}"
                ) from error
            if pilot.needs_saga and find_spec("radical.saga") is None:
                raise PilotException(
                    f"{settings['resource']} is reached through ssh, for which RADICAL-Pilot needs "
                    "another package: pip install radical.saga; or run the program on the machine "
                    "itself, with another access_schema"
                )
        try:
            self._start_each(on_task, on_pilot, stop)
        finally:
            self._addresses = upkeep.addresses(self.session)
            self._forked = processes.children() - before
            processes.detach(self._forked)
            leftovers.note(self.directory, self.uid, self._forked)

    def _start_each(
        self,
        on_task: Callable[[Any, str], None],
        on_pilot: Callable[[Any, str], None],
        stop: threading.Event,
    ) -> None:
        """Starts one manager after the other; each takes a second or more."""
        if stop.is_set():
            return
        self.manager = rp.PilotManager(session=self.session)
        self.manager.register_callback(on_pilot)
        for pilot in self.pilots:
            if stop.is_set():
                return
            pilot.manager = rp.TaskManager(session=self.session)
            pilot.manager.register_callback(on_task)

    def _resources_like(self, name: str) -> list[str]:
        known = [
            f"{site}.{label}" for site, labels in self.session.rcfgs.items() for label in labels
        ]
        return difflib.get_close_matches(name, known, 5, 0.3) or ["local.localhost"]

    def _submit_pilots(self) -> None:
        for pilot in self.pilots:
            settings = {"uid": pilot.uid, **pilot.settings}
            if pilot.shared:
                settings.setdefault("sandbox", str(self.directory))
            pilot.pilot = self.manager.submit_pilots(rp.PilotDescription(settings))
            pilot.sandbox = os.path.normpath(ru.Url(pilot.pilot.pilot_sandbox).path)
            pilot.manager.add_pilots(pilot.pilot)

    def wait_launched(self, stop: threading.Event) -> None:
        """Waits until every pilot was launched, which on a batch system means queued.

        Raises:
            PilotException: One was not; the text has RADICAL-Pilot's reason.
        """
        while not stop.is_set():
            states = [pilot.state for pilot in self.pilots]
            for pilot, state in zip(self.pilots, states, strict=True):
                if state in FINAL:
                    raise PilotException(
                        f"pilot {pilot.uid} on {pilot.settings['resource']} was not launched "
                        f"({state}): {self.why(pilot)}"
                    )
            if all(state in LAUNCHED for state in states):
                return
            time.sleep(0.05)

    def why(self, pilot: Pilot) -> str:
        """The reason in RADICAL-Pilot's own logs why a pilot ended."""
        places = [
            *sorted(Path(self.session.path).glob("pmgr_launching*.log")),
            Path(pilot.sandbox) / "agent_0.err",
            Path(pilot.sandbox) / "bootstrap_0.err",
        ]
        for place in places:
            reason = _last_error(place)
            if reason:
                return f"{reason} (more in {place})"
        return f"see the logs in {self.session.path}"

    def give_up(self, pilot: Pilot) -> None:
        """Ends a pilot that does not work as it should, with what runs on it."""
        if pilot.shared:
            inside = processes.of_session(Path(pilot.sandbox), self.uid, elsewhere=False)
            processes.kill(inside)
        with suppress(Exception):  # who would do it may be what has ended
            self.manager.cancel_pilots(pilot.uid, _timeout=5)

    def close(self) -> None:
        """Closes everything within a limit; what is left of it is ended. Never raises."""
        if self._closed:
            return
        self._closed = True
        failed = any(each.reason is not None and each.state == "FAILED" for each in self.pilots)
        keep = failed if self._keep is None else self._keep
        _open.discard(self)
        hangs = False
        if self.session is not None:
            self._held = self._objects()
            closing = threading.Thread(target=self._close_session, name="rhapsody-radical-close")
            closing.daemon = True
            try:
                closing.start()
            except RuntimeError:  # at the interpreter's end Python 3.12.0 to 3.12.2 starts none
                leftovers.end(self.directory, self.uid)
            else:
                closing.join(CLOSE_LIMIT)
                hangs = closing.is_alive()
        if self.directory.exists():
            processes.end(self.directory, self.uid)
        for pid in self._forked & processes.children():
            with suppress(Exception):
                processes.kill_pid(pid)
        if hangs:  # it may go on with what would be released
            log.warning("RADICAL-Pilot session %s did not close within %g s", self.uid, CLOSE_LIMIT)
        else:
            upkeep.release(self._held, self._addresses, self.directory)
        self._held.clear()
        if self._environment is not None:
            self._environment.release()
        leftovers.forget(self.directory)
        shutil.rmtree(agents_temporary(self.uid), ignore_errors=True)
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
            with suppress(OSError):  # something else is in it
                for place in self._made:
                    place.rmdir()

    def _objects(self) -> list[Any]:
        """RADICAL-Pilot's objects, and the parts of them that hold something."""
        found = [self.session, self.manager]
        for pilot in self.pilots:
            found += [pilot.manager, pilot.pilot]
        parts = ("_cmgr", "_reg", "_reg_service", "_proxy", "_proxy_client")
        inner = [getattr(each, name, None) for each in found for name in parts]
        return [each for each in (*found, *inner) if each is not None]

    def _close_session(self) -> None:
        try:
            # One that is not active yet does not hear of it: closing the session kills it.
            if any(pilot.state == ACTIVE for pilot in self.pilots):
                self.manager.cancel_pilots(_timeout=15)
        except Exception as error:  # closing goes on
            log.debug("pilots could not be cancelled: %r", error)
        try:
            self.session.close(download=True)
        except Exception as error:  # its processes are ended by force
            log.debug("session %s did not close: %r", self.uid, error)


def can_work_in(path: str | Path) -> bool:
    """Whether RADICAL-Pilot's scripts, which do not quote paths, work in a directory."""
    where, name = os.path.split(path)
    return not set(_real(where) + name) & set(" \t\n'\"$`\\*?[")


@lru_cache(maxsize=16)  # sandboxes are beside each other
def _real(directory: str) -> str:
    return os.path.realpath(directory)


def _text(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _last_error(path: Path) -> str:
    """The last exception or error in a log, shortened."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if any(word in line for word in ("Error", "error", "Exception", "rejected", "denied")):
            return line.strip()[-500:]
    return ""


_open: set[Client] = set()


def _at_exit() -> None:
    """Leaves nothing running when the program ends without a shutdown."""
    for client in list(_open):
        client.close()


# RADICAL-Pilot forks a process for each session, and users' programs may fork, too.
os.register_at_fork(after_in_child=_open.clear)

# The interpreter waits for RADICAL-Pilot's threads before it calls what `atexit` has; what
# is registered here it calls before it waits, as `concurrent.futures` needs it, too.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
