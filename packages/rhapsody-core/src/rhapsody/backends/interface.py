"""What the engine calls of a backend; plugins import it from `rhapsody.backends.base`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from rhapsody.backends.session import Session
from rhapsody.capabilities import Capabilities
from rhapsody.errors import CapabilityError


class BaseExecutionBackend(ABC):
    """What the engine needs of a backend. Subclass `ManagedBackend` to get most of it.

    A backend object is also awaitable (which starts it and gives itself) and an
    asynchronous context manager. All coroutines run on the engine's loop.

    Attributes:
        name: What users call it.
        capabilities: What it declares it can do.
        dry: It runs nothing and only says that tasks are done. Then no file that a task
            declares is looked for, fetched, linked or missed.
        shares_memory: Functions run in the program's own process and see what the program sets in
            its modules. Resume does not share results that depend on that between backends that
            differ in it.
        session: What this object's life is known by.
    """

    name: str = ""
    capabilities: Capabilities = Capabilities()
    dry: bool = False
    shares_memory: bool = False
    session: Session

    @abstractmethod
    async def submit_tasks(self, tasks: Any) -> Any:
        """Starts tasks; returns when the backend has accepted them.

        Called by the engine with a list of descriptions, never while an earlier
        call is still running. States may be reported before this returns. A
        problem with one task is a FAILED callback for it. Raising says that none
        of the batch was accepted but the tasks already reported.

        Args:
            tasks: A list of `TaskDescription`. The backend owns them from now on.
        """

    @abstractmethod
    async def cancel_task(self, uid: Any) -> Any:
        """Asks for a task to be stopped; its terminal state arrives by the callback.

        Called by the engine after the `submit_tasks` that held the task returned.

        Returns:
            `True` where the task was known and cancellation was attempted.
        """

    @abstractmethod
    def build_task(self, *args: Any, **kwargs: Any) -> Any:
        """Translates a description into the backend's own form.

        For the backend's own use and for people who want to see the translation;
        the engine does not call it.
        """

    @abstractmethod
    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: Any = None,
        file_path: Any = None,
    ) -> Any:
        """Makes a declared file or directory available to a task that is about to be submitted.

        Called by the engine on its loop, once for each, before `submit_tasks`.

        Args:
            src_task: The description of the attempt that produced the file (`uid`,
                `sandbox` and `metadata` at least), `None` for a file from outside.
            dst_task: The description of the task that needs it. May be changed.
            file_name: The name that the task sees the file under.
            file_path: Where a file from outside is, an absolute path.

        Returns:
            Anything or `None`; not used by the engine.
        """

    @abstractmethod
    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> Any:
        """Makes all that `src_task` left in its sandbox available to `dst_task`.

        Called by the engine on its loop, once per dependency that declared no
        output files, before `submit_tasks`.
        """

    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        """Writes a file that a task left in its sandbox to the engine's file system.

        Called by the engine on its loop when a task of another backend needs the file and
        the sandbox cannot be seen from here, only with `capabilities.copies_files_out`.
        What is at `path` after cancellation, or after an error, is removed by the engine.

        Args:
            task: The description of the attempt that has ended (`uid`, `sandbox` and
                `metadata` at least).
            name: The file's name in the sandbox.
            path: Where to write it. Nothing is there yet; its directory is.

        Raises:
            DataError: It is not there, or its name could leave the sandbox.
            CapabilityError: The backend does not copy files out.
        """
        raise CapabilityError(f"backend {self.name!r} does not copy files out of its sandboxes")

    def seconds_left(self, task: Any = None) -> float | None:
        """How long a task could run if it were started now, before the backend ends.

        Called by the engine on its loop: once when it attaches the backend, and, unless that
        gave `None`, for each task with a time-out or the hint `walltime` that it is about to
        hand over. What does not fit goes to another backend, or is held back. A backend that
        has tasks wait may fail one that does not fit any more with `InsufficientWalltimeError`.

        Args:
            task: Its description, not to be changed; `None`: any task.

        Returns:
            Seconds, 0 or more; infinity where the end is not known yet, and `None` where
            there is none.
        """
        return None

    @abstractmethod
    def get_task_states_map(self) -> Any:
        """The `StateMapper` for the states this backend reports. Called once per engine."""

    @abstractmethod
    def register_callback(self, func: Any) -> Any:
        """Sets whom to tell about states; called by the engine before the first submission.

        Args:
            func: `func(task, state, service_callback=None)`. `task` is the
                description with the results in it, or an object with
                `as_dict()`; `state` a native state. It may be called from any
                thread, and never raises. `service_callback(future, task, state)`,
                given with a service's running state, gets a future whose
                `set_result` and `set_exception` may be called from any thread
                when the service is ready.
        """

    @abstractmethod
    def state(self) -> Any:
        """`"initialized"`, `"running"`, `"shutting_down"`, `"shutdown"` or `"error"`."""

    @abstractmethod
    def task_state_cb(self, task: Any, state: Any) -> Any:
        """Reports a state to whom `register_callback` named. Any thread."""

    @abstractmethod
    async def shutdown(self) -> Any:
        """Stops every task and gives back all that the backend holds. Twice is harmless."""


BaseBackend = BaseExecutionBackend
"""Another name that programs use for the interface."""
