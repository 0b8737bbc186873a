"""Record of one task on its way through RADICAL-Pilot, and the distinction of its kinds."""

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
    """RADICAL-Pilot's information about a task that has ended; `None` if there is none.

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
        task: Its description, which receives the result.
        pilot: Its pilot.
        sent: Whether the client has it.
        on_raptor: Whether it is a call on RAPTOR.
        program: Whether it is a function task that runs as a program of its own.
        running: Whether it was reported as running.
        cancelled: Whether its cancellation was requested.
        lost: The reason for its loss while its pilot is alive; empty otherwise.
        ended: RADICAL-Pilot's information about its end.
        awaited: Whether it is a service with a readiness condition.
        info: The readiness information of a service, `None` before it is ready.
        ready: The future for its readiness; `None` for other tasks.
        host: The node that it runs on, empty if that is not reported.
        over: Whether its end has been recorded; set once, under `lock`.
        stopped: Set at the end of a service, for the thread that watches it.
        cores: The number of its cores while it runs.
        began: The time when it was reported as running, by the monotonic clock.
        timeout: The timeout in RADICAL-Pilot's own description, 0 for none.
        startup_timeout: The timeout for its start.
        own_sandbox: Whether the backend removes its sandbox.
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
        """Return whether the caller is the first to see the end, and has to report it."""
        with self.lock:
            if self.over:
                return False
            self.over = True
            return True
