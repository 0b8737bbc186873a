"""One task on its way through RADICAL-Pilot, and how its kinds are told apart."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
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


@dataclass(eq=False, slots=True)
class Job:
    """A task from its submission to its terminal state.

    Attributes:
        task: Its description, written into at the end.
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
    ready: Future[Any] | None = None
    host: str = ""
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event | None = None
    cores: int = 1
    began: float = 0.0
    timeout: float = 0.0
    startup_timeout: float = 0.0
    own_sandbox: bool = False

    def __post_init__(self) -> None:
        if self.task["is_service"]:
            self.ready, self.stopped = Future(), threading.Event()

    @property
    def uid(self) -> str:
        """The task's uid, which is RADICAL-Pilot's, too."""
        return self.task["uid"]

    @property
    def is_function(self) -> bool:
        """Whether it is a function task."""
        return self.task["function"] is not None

    def begin(self, host: str) -> None:
        """Record that it runs, and where; RADICAL-Pilot seldom reports the node before the end."""
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
