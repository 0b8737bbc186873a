"""What one backend has on one worker: its tasks there, what to stop, what to tell.

A site is opened by the plugin that the backend registers with Dask, on every
worker there is or will be, and closed when the backend goes. How a task is run
is in `running`.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any

from rhapsody.sdk import TaskContext, streams
from rhapsody_dask.worker.gate import Gate, Waiting
from rhapsody_dask.worker.messages import Order, key_of
from rhapsody_dask.worker.supervisor import supervisor
from rhapsody_dask.worker.waiting import WaitingLoop

if TYPE_CHECKING:
    from distributed import Worker

REPORT = 0.01
"""Seconds after which a task that goes on is reported as running; quick ones never are."""

REMEMBERED = 100_000
"""Cancelled tasks that a site remembers, should one of them still come."""


class Running:
    """A task that has begun on this worker.

    Attributes:
        token: Tells this start of the attempt from another one, on whatever worker.
        cancelled: Somebody asked for its end.
        stop: Ends it, where that can be done; called on any thread.
        context: What the task can know of itself.
        cores: How many it has of the gate's.
    """

    __slots__ = (
        "cancelled", "context", "cores", "gpus", "stop", "token", "uid", "waiting",
    )  # fmt: skip

    def __init__(self, order: Order) -> None:
        self.uid: str = order.uid
        self.token: str = uuid.uuid4().hex[:8]
        self.cancelled: bool = False
        self.stop: Callable[[], object] | None = None
        self.waiting: Waiting | None = None
        self.cores: int = 0
        self.gpus: tuple[str, ...] = ()
        timeout = order.more.get("timeout")
        self.context: TaskContext = TaskContext(
            uid=order.uid,
            name=order.name,
            attempt=order.attempt,
            sandbox=order.more.get("sandbox"),
            deadline=None if timeout is None else time() + timeout,
        )


class Site:
    """One backend's tasks on one worker.

    Args:
        worker: Dask's worker.
        session: The backend's session.
        grace: Seconds between asking a program to end and ending it by force.
    """

    def __init__(self, worker: Worker, session: str, grace: float) -> None:
        self.worker = worker
        self.session = session
        self.topic: str = topic(session)
        self.grace = grace
        self.address: str = worker.address
        self.host: str = _host(worker.address)
        resources = worker.state.total_resources
        self.threads: int = worker.state.nthreads
        cores = max(self.threads, int(resources.get("cores", 0)))
        self.gate: Gate = Gate(cores, _gpus(int(resources.get("gpus", 0))))
        self.waiting: WaitingLoop = WaitingLoop()
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._fresh: list[Running] = []
        self._armed = False

    # On the threads of tasks.

    def begin(self, running: Running) -> bool:
        """Notes a task as running; `False` where it was cancelled before it came."""
        with self._lock:
            if self._cancelled.pop(running.uid, running) is None:
                return False
            self._running[running.uid] = running
            return True

    def started(self, running: Running) -> None:
        """The task has its cores: it runs from now on."""
        self._fresh.append(running)
        if not self._armed:
            self._armed = True
            self.worker.loop.add_callback(self._arm)

    def leave(self, running: Running) -> None:
        """Gives back the cores of a task, once, that has ended or left Dask's thread pool."""
        with self._lock:
            cores, running.cores = running.cores, 0
        if cores:
            self.gate.leave(cores)

    def end(self, running: Running) -> None:
        """The task has ended."""
        with self._lock:
            if self._running.get(running.uid) is running:
                del self._running[running.uid]

    def tell(self, message: dict[str, Any]) -> None:
        """Sends something to the backend, from any thread."""
        self.worker.log_event(self.topic, {"worker": self.address, **message})

    # On the worker's loop.

    def cancel(self, uids: Iterable[str]) -> list[str]:
        """Stops tasks, and those that come later; gives the uids of those that have begun."""
        begun = []
        for uid in uids:
            with self._lock:
                running = self._running.get(uid)
                if running is None:
                    self._cancelled[uid] = None
                    while len(self._cancelled) > REMEMBERED:
                        self._cancelled.popitem(last=False)
                    continue
            begun.append(uid)
            self._stop(running)
        return begun

    def _stop(self, running: Running) -> None:
        running.cancelled = True
        running.context.request_cancel()
        if running.waiting is not None:
            self.gate.give_up(running.waiting)
        if running.stop is not None:
            running.stop()

    def seceded(self, key: str) -> None:
        """A task has left Dask's thread pool, mostly to wait for tasks of Dask's own.

        Its cores are for others from now on. Where it rejoins the pool, Dask sees to it
        that there are no more threads than before.
        """
        with self._lock:
            tasks = self._running.values()
            found = [t for t in tasks if key == key_of(t.context.name, self.session, t.uid)]
        for running in found:
            self.leave(running)

    def stop_all(self) -> None:
        """Stops all tasks, when the worker or the backend goes."""
        with self._lock:
            tasks = list(self._running.values())
        for running in tasks:
            self._stop(running)

    def _arm(self) -> None:
        self.worker.loop.call_later(REPORT, self._report)

    def _report(self) -> None:
        self._armed = False
        fresh, self._fresh = self._fresh, []
        begun = [(one.uid, one.token) for one in fresh if one.uid in self._running]
        if begun:
            self.tell({"running": begun})


_sites: dict[tuple[str, str], Site] = {}


def topic(session: str) -> str:
    """Dask's topic for what the sites of a session tell."""
    return f"rhapsody.{session}"


def leave_ctrl_c(client: int) -> None:
    """Has a worker pass over Ctrl-C, which a terminal sends to it as well as to the program.

    The program stops its workers when it ends. What runs on them is not concerned: a
    handler, unlike an ignored signal, is not handed on to programs.

    Args:
        client: The program's process; where it is the worker's too, nothing is changed.
    """
    if os.getpid() != client and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: None)


def open_site(worker: Worker, session: str, grace: float) -> Site:
    """Opens a backend's site on a worker."""
    streams.acquire()
    site = _sites[session, worker.address] = Site(worker, session, grace)
    return site


def close_site(worker: Worker, session: str) -> None:
    """Closes it, and ends what it runs."""
    site = _sites.pop((session, worker.address), None)
    if site is None:
        return
    site.stop_all()
    site.waiting.close()
    streams.release()
    if not _sites:
        supervisor.stop()


def site_of(worker: Worker, session: str) -> Site | None:
    """A backend's site on a worker, `None` where it was closed or could not be opened."""
    return _sites.get((session, worker.address))


def cancel(session: str, uids: list[str], dask_worker: Any = None) -> list[str]:
    """Called through `Client.run` on each worker; gives which of the tasks have begun there."""
    site = site_of(dask_worker, session)
    return [] if site is None else site.cancel(uids)


def sees(path: str, text: str, dask_worker: Any = None) -> bool:
    """Whether a worker sees a file with this text. Called through `Client.run`."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() == text
    except OSError:
        return False


def _host(address: str) -> str:
    """The host in a worker's address, loopback where it has none."""
    scheme, _, place = address.rpartition("://")
    if scheme == "inproc":
        return "127.0.0.1"
    return place.rpartition(":")[0].strip("[]") or "127.0.0.1"


def _gpus(count: int) -> tuple[str, ...]:
    """The names of the GPUs that a worker may give out."""
    if not count:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    if len(names) < count:
        names = [str(number) for number in range(count)]
    return tuple(names[:count])
