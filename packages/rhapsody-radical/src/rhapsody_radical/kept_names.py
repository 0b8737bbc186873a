"""What RADICAL-Pilot's users and older programs call, beyond what every backend has."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rhapsody import TaskDescription
from rhapsody.backends import Capabilities, ManagedBackend
from rhapsody_radical import calls, capabilities, functions, library, translate
from rhapsody_radical.fleet import Pilot
from rhapsody_radical.raptor_config import checked, has_other_workers
from rhapsody_radical.schema import PMGR_ACTIVE

if TYPE_CHECKING:
    from rhapsody_radical.connection import Connection
    from rhapsody_radical.functions import Functions
    from rhapsody_radical.links import Links
    from rhapsody_radical.threads import Worker


PilotCallback = Callable[[str, str], Any]
"""`callback(uid, state)` with a pilot's uid and its native state."""


class KeptNames(ManagedBackend):
    """The part of `RadicalExecutionBackend` that is there for the sake of its names."""

    capabilities: Capabilities
    functions: str
    pilots: list[Pilot]
    raptor_mode: bool
    resource_pilot: Any
    _commands: Worker | None
    _connection: Connection | None
    _functions: Functions
    _links: Links
    _pilot_callbacks: list[PilotCallback]
    _selector: Generator[str, None, None]

    def _able(self, config: dict[str, Any] | None) -> Capabilities:
        """What it can do, with a RAPTOR of such a configuration."""
        able = capabilities.of(
            self.functions, enabled=self.raptor_mode, other_workers=has_other_workers(config)
        )
        shared = all(pilot.shared for pilot in self.pilots)
        return able if shared else capabilities.remote(able)

    @property
    def tasks(self) -> dict[str, TaskDescription]:
        """The descriptions of the tasks that have not ended, by uid."""
        return {uid: job.task for uid, job in list(self.open_tasks.items())}

    @property
    def pilot_state(self) -> str:
        """The native state of the first pilot, `NEW` before the start."""
        return self.pilots[0].state

    def register_pilot_callback(self, func: PilotCallback) -> None:
        """Adds whom to tell about pilots: `func(uid, state)`, on a thread for users' callbacks."""
        self._pilot_callbacks.append(func)

    def get_nodelist(self) -> Any:
        """The nodes of the first pilot, `None` unless it is active."""
        if self.resource_pilot is None or self.pilot_state != PMGR_ACTIVE:
            return None
        return self.resource_pilot.nodelist

    # RAPTOR.

    @property
    def masters(self) -> list[Any]:
        """RADICAL-Pilot's tasks of the RAPTOR masters, in the client."""
        return [master for pilot in self.pilots for master, _ in pilot.pairs]

    @property
    def workers(self) -> list[Any]:
        """RADICAL-Pilot's tasks of the RAPTOR workers, in the client."""
        return [each for pilot in self.pilots for _, workers in pilot.pairs for each in workers]

    def setup_raptor_mode(self, raptor_config: Mapping[str, Any]) -> None:
        """Starts RAPTOR masters and workers. Blocks.

        Args:
            raptor_config: As for the constructor.

        Raises:
            BackendUnavailableError: The backend is not running.
            RuntimeError: RAPTOR runs with another configuration.
            TypeError: It is malformed.
            ValueError: It has no master, a master without workers, or functions are programs.
        """
        if self.functions == "executable":
            raise ValueError("functions='executable' does without RAPTOR: leave one of them out")
        self.require_running()
        assert self._commands is not None
        assert self._connection is not None
        self._connection.require_another_thread()  # it would wait for itself elsewhere
        config = checked(raptor_config)
        self._commands.submit(partial(self._functions.configure, config)).result()
        self.raptor_mode = True
        self.capabilities = self._able(config)

    def select_master(self) -> Generator[str, None, None]:
        """The uids of the masters in turn, for ever.

        Raises:
            RuntimeError: There is no RAPTOR, or no master.
        """
        for turn in itertools.count():
            masters = [str(master.uid) for master in self.masters]
            if not self.raptor_mode or not masters:
                raise RuntimeError(
                    "RAPTOR is switched off, or has no masters: give "
                    "RadicalExecutionBackend(raptor_config={'masters': [...]})"
                )
            yield masters[turn % len(masters)]

    @property
    def master_selector(self) -> Generator[str, None, None]:
        """One `select_master` for all; a new one after it raised."""
        if inspect.getgeneratorstate(self._selector) == inspect.GEN_CLOSED:
            self._selector = self.select_master()
        return self._selector

    # The description.

    def build_task(
        self,
        uid: str,
        task_desc: Mapping[str, Any],
        task_backend_specific_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """RADICAL-Pilot's description of a task; imports RADICAL-Pilot.

        Args:
            uid: The task's uid.
            task_desc: The task's description.
            task_backend_specific_kwargs: Settings in RADICAL-Pilot's own words.

        Returns:
            An `rp.TaskDescription`, or `None` after the task was reported as failed.
        """
        task = functions.completed(uid, task_desc, task_backend_specific_kwargs)
        try:
            if task["function"] is None:
                words = translate.describe_executable(task, None)
            else:
                self._functions.check(task)
                words, order = self._functions.translate(task)
                words["function"] = calls.python_task(order)
                if self.masters:
                    words.setdefault("raptor_id", next(self.master_selector))
            return library.build(words, task["name"])
        except Exception as error:  # reported, as for a task that is submitted
            task["exception"] = error
            self.report_state(task, "FAILED")
            return None

    # Files.

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> dict[str, Any]:
        """Adds the staging of one file to a task, in RADICAL-Pilot's words.

        Returns:
            The staging directive.

        Raises:
            ValueError: Neither a name nor a path is given, or no source for a name.
        """
        return self._links.add_file(src_task, dst_task, file_name, file_path)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Adds commands to a task that link all that another left in its sandbox."""
        self._links.add_all(src_task, dst_task)
