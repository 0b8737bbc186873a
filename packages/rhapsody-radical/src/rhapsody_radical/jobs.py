"""One task on its way through RADICAL-Pilot, and how its kinds are told apart."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody_radical.raptor import Pair
    from rhapsody_radical.session import Pilot


class Job:
    """A task from its submission to its terminal state.

    Attributes:
        task: Its description, written into at the end.
        pilot: The pilot it goes to.
        handle: RADICAL-Pilot's task, `None` before it is submitted.
        pair: The RAPTOR master and workers it goes to, `None` for an executable.
        program: Whether it is a function task that runs as a program of its own.
        running: Whether it was reported to run.
        cancelled: Whether somebody asked for it to be cancelled.
        unready: Whether it is to end because its readiness could not be found out.
        lost: Why it is lost alone, while its pilot and pair live; empty otherwise.
        over: Whether its end has been taken note of; set once, under `lock`.
        stopped: Set at the end of a service, for whoever watches it.
        cores: How many cores it has while it runs.
        began: When it was seen to run, by the monotonic clock.
        timeout: The time-out in RADICAL-Pilot's own description, 0 for none.
        startup_timeout: That for its start.
        own_sandbox: Whether its sandbox is the backend's to remove.
    """

    __slots__ = (
        "began",
        "cancelled",
        "cores",
        "handle",
        "lock",
        "lost",
        "over",
        "own_sandbox",
        "pair",
        "pilot",
        "program",
        "running",
        "startup_timeout",
        "stopped",
        "task",
        "timeout",
        "unready",
    )

    def __init__(self, task: TaskDescription, pilot: Pilot) -> None:
        self.task: TaskDescription = task
        self.pilot: Pilot = pilot
        self.handle: Any = None
        self.pair: Pair | None = None
        self.program: bool = False
        self.running: bool = False
        self.cancelled: bool = False
        self.unready: bool = False
        self.lost: str = ""
        self.over: bool = False
        self.lock: threading.Lock = threading.Lock()
        self.stopped: threading.Event | None = threading.Event() if task["is_service"] else None
        self.cores: int = 1
        self.began: float = 0.0
        self.timeout: float = 0.0
        self.startup_timeout: float = 0.0
        self.own_sandbox: bool = False

    @property
    def uid(self) -> str:
        """The task's uid, which is RADICAL-Pilot's, too."""
        return self.task["uid"]

    @property
    def is_function(self) -> bool:
        """Whether it is a function task."""
        return self.task["function"] is not None

    @property
    def staged(self) -> bool:
        """Whether RADICAL-Pilot copies files for it, which may take long."""
        specific = self.task["task_backend_specific_kwargs"]
        return bool(specific.get("input_staging") or specific.get("output_staging"))

    def hear(self) -> None:
        """Takes note that its RAPTOR pair was heard of."""
        if self.pair is not None:
            self.pair.heard = time.monotonic()

    def claim_end(self) -> bool:
        """Whether the caller is the first to see the end: it reports it."""
        with self.lock:
            if self.over:
                return False
            self.over = True
            return True
