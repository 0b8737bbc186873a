"""One task on its way through RADICAL-Pilot, and how its kinds are told apart."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

from rhapsody import TaskDescription
from rhapsody_radical.fleet import Pilot


class Ended(NamedTuple):
    """What RADICAL-Pilot says of a task that has ended; `None` where it says nothing.

    Attributes:
        exit_code: Its exit code.
        exception: The `repr` of an exception.
        detail: More about that.
        value: The reply of a call on RAPTOR, as text.
    """

    exit_code: Any = None
    exception: str | None = None
    detail: str | None = None
    value: str | None = None


NOTHING = Ended()


class Job:
    """A task from its submission to its terminal state.

    Attributes:
        task: Its description, written into at the end.
        uid: The task's uid, which is RADICAL-Pilot's, too.
        is_function: Whether it is a function task.
        pilot: The pilot it goes to.
        sent: Whether the client has it.
        on_raptor: Whether it is a call on RAPTOR.
        program: Whether it is a function task that runs as a program of its own.
        running: Whether it was reported to run.
        cancelled: Whether somebody asked for it to be cancelled.
        lost: Why it is lost alone, while its pilot lives; empty otherwise.
        ended: What RADICAL-Pilot says of its end.
        awaited: Whether a service says when it is ready.
        info: What a service said when it was ready, `None` before.
        ready: Its readiness, for whoever waits for it; `None` for other tasks.
        host: The node that it runs on, empty where that is not told.
        over: Whether its end has been taken note of; set once, under `lock`.
        stopped: Set at the end of a service, for whoever watches it.
        cores: How many cores it has while it runs.
        began: When it was seen to run, by the monotonic clock.
        timeout: The time-out in RADICAL-Pilot's own description, 0 for none.
        startup_timeout: That for its start.
        own_sandbox: Whether its sandbox is the backend's to remove.
    """

    __slots__ = (
        "awaited",
        "began",
        "cancelled",
        "cores",
        "ended",
        "host",
        "info",
        "is_function",
        "lock",
        "lost",
        "on_raptor",
        "over",
        "own_sandbox",
        "pilot",
        "program",
        "ready",
        "running",
        "sent",
        "startup_timeout",
        "stopped",
        "task",
        "timeout",
        "uid",
    )

    def __init__(self, task: TaskDescription, pilot: Pilot) -> None:
        self.task: TaskDescription = task
        self.uid: str = task["uid"]
        self.is_function: bool = task["function"] is not None
        self.pilot: Pilot = pilot
        self.sent: bool = False
        self.on_raptor: bool = False
        self.program: bool = False
        self.running: bool = False
        self.cancelled: bool = False
        self.lost: str = ""
        self.ended: Ended = NOTHING
        self.awaited: bool = False
        self.info: Any = None
        self.ready: Future[Any] | None = Future() if task["is_service"] else None
        self.host: str = ""
        self.over: bool = False
        self.lock: threading.Lock = threading.Lock()
        self.stopped: threading.Event | None = threading.Event() if task["is_service"] else None
        self.cores: int = 1
        self.began: float = 0.0
        self.timeout: float = 0.0
        self.startup_timeout: float = 0.0
        self.own_sandbox: bool = False

    def begin(self, host: str) -> None:
        """Notes that it runs, and where: RADICAL-Pilot seldom tells the node before the end."""
        self.running, self.began, self.host = True, time.monotonic(), host
        here = socket.gethostname() if self.pilot.here else self.pilot.uid
        self.task["worker"] = host or here

    def claim_end(self) -> bool:
        """Whether the caller is the first to see the end: it reports it."""
        with self.lock:
            if self.over:
                return False
            self.over = True
            return True
