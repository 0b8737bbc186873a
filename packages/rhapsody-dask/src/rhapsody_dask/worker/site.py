"""Sites: the state of one backend on one worker.

A site contains the backend's running tasks on the worker, and sends the messages about them. The
backend's worker plugin opens a site on every worker, including workers that join later, and closes
it when the backend shuts down. `running` executes the tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from sys import getsizeof
from time import monotonic
from typing import TYPE_CHECKING, Any

from rhapsody.sdk import Reaper, SharedLoop, TaskContext, streams, worker_values
from rhapsody_dask.worker.messages import ATTACHED, GroupReplies, Order, Reply, key_of


@dataclass(slots=True, eq=False)
class QueuedTask:
    """Entry in the queue of a `Gate`: a task that waits for its cores.

    Attributes:
        cores: Number of cores.
        granted: True if the task has its cores.
        turn: Event that is set when the task has its cores or is canceled.
    """

    cores: float
    granted: bool = False
    turn: threading.Event = field(default_factory=threading.Event)


class Gate:
    """Allocator of one worker's cores and GPUs, with a queue of the tasks that wait for cores.

    Args:
        cores: Number of cores.
        gpus: The names of the GPUs, as in `CUDA_VISIBLE_DEVICES`.
    """

    def __init__(self, cores: int, gpus: tuple[str, ...] = ()) -> None:
        self.cores = cores
        self.gpus = gpus
        self._lock = threading.Lock()
        self._free: float = cores
        self._free_gpus = list(gpus)
        self._queue: deque[QueuedTask] = deque()

    def enter(self, cores: float) -> QueuedTask:
        """Join the queue for cores; the event of the entry is set when it is the task's turn."""
        with self._lock:
            waiting = QueuedTask(min(cores, self.cores))
            self._queue.append(waiting)
            self._serve()
            return waiting

    def cancel(self, waiting: QueuedTask) -> None:
        """Remove a waiting task from the queue and wake its thread."""
        with self._lock:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._serve()
        waiting.turn.set()

    def leave(self, cores: float) -> None:
        """Release the cores of a task; `cores` is the number that was passed to `enter`."""
        with self._lock:
            self._serve(min(cores, self.cores))

    def take_gpus(self, count: int) -> tuple[str, ...]:
        """Take up to `count` GPUs that are free, and return their names."""
        with self._lock:
            taken, self._free_gpus = self._free_gpus[:count], self._free_gpus[count:]
            return tuple(taken)

    def return_gpus(self, gpus: tuple[str, ...]) -> None:
        """Make GPUs available to other tasks again."""
        with self._lock:
            self._free_gpus = sorted([*self._free_gpus, *gpus], key=self.gpus.index)

    def _serve(self, released: float = 0) -> None:
        self._free = round(self._free + released, 3)  # fractions are multiples of 0.001
        while self._queue and self._free >= self._queue[0].cores:
            waiting = self._queue.popleft()
            self._free = round(self._free - waiting.cores, 3)
            waiting.granted = True
            waiting.turn.set()


MAX_ATTACHED = 1 << 11
"""Maximum size in bytes of a reply that is sent with the message about the end of its task.

The limit is low because the scheduler keeps its last 1,000 events in memory.
"""

STOP_TIMEOUT = 1.0
"""Time limit in seconds for stopping an idle loop."""


class WaitingLoop:
    """Event loop of one worker, shared by a backend's coroutine tasks that request no cores.

    Its thread starts with the first such task.
    """

    def __init__(self) -> None:
        self._loop = SharedLoop("rhapsody-coroutines")
        self._lock = threading.Lock()
        self._users = 1  # the site

    def run(
        self, coroutine: Coroutine[Any, Any, Any], started: Callable[[Any, Any], object]
    ) -> Any:
        """Run a coroutine and block the calling thread until it has ended.

        Args:
            coroutine: The coroutine.
            started: Called with the loop and the asyncio task of the coroutine.

        Returns:
            The coroutine's result.

        Raises:
            BaseException: The coroutine's exception.
        """
        outcome: Future[Any] = Future()
        context = contextvars.copy_context()

        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(error)

        def start() -> None:
            task = self._loop.start(lambda: coroutine, ended, context)
            started(task.get_loop(), task)

        with self._lock:
            self._users += 1
            self._loop.call(start)
        try:
            return outcome.result()
        finally:
            self.leave()

    def leave(self) -> None:
        """Stop the loop unless the site is open or a coroutine is running on the loop."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._loop.stop(STOP_TIMEOUT)


if TYPE_CHECKING:
    from distributed import Worker

REPORT_AFTER = 0.01
"""Seconds after which a site reports a task as running; shorter tasks are not reported."""

MAX_CANCELED = 100_000
"""Largest number of canceled tasks that a site remembers in case they arrive later."""


MARK = 16
"""Size in bytes of the hash that stands for an attempt in a worker's notes."""


def mark(uid: str) -> bytes:
    """Return the hash that stands for an attempt in a worker's notes."""
    return blake2b(uid.encode(), digest_size=MARK).digest()


def notes_of(directory: str, address: str) -> str:
    """Return the path of a worker's notes.

    A later worker with the same port overwrites the file.
    """
    return os.path.join(directory, f"rhapsody-{address.rpartition(':')[2].strip('/')}")


def started_on(directory: str, address: str) -> frozenset[bytes]:
    """Return the marks of the attempts that were running when a worker ended.

    Removes the worker's notes.
    """
    path = notes_of(directory, address)
    try:
        with open(path, "rb") as file:
            data = file.read()
        os.unlink(path)
    except FileNotFoundError:  # the worker ended before the site was open
        return frozenset()
    return frozenset(data[at : at + MARK] for at in range(0, len(data), MARK))


class Notes:
    """File that lists the attempts on a worker; the scheduler reads it if the worker is killed.

    A task may kill its worker before any message about it is sent, but the contents of a file are
    kept. The methods are called under the site's lock. The file stays open until the process ends.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._free: list[int] = []
        self._used = 0

    def add(self, uid: str) -> int:
        """Record that an attempt starts, and return the offset of its mark in the file."""
        if not self._free:
            self._free.append(self._used)
            self._used += MARK
        place = self._free.pop()
        os.pwrite(self._file, mark(uid), place)
        return place

    def remove(self, place: int) -> None:
        """Record that the attempt whose mark is at this offset has ended."""
        os.pwrite(self._file, bytes(MARK), place)
        self._free.append(place)


@dataclass(slots=True, eq=False)
class Running:
    """Task or group that has started on this worker.

    Attributes:
        site: The state of the backend on this worker.
        order: The task's description.
        values: The values that Dask holds for the task.
        replies: The replies of a group so far; `None` for other tasks.
        uid: The uid of the attempt or of the group.
        context: The value of `current_task()` in the task.
        token: The id of this start of the attempt, unique among all workers.
        cancelled: True if the task's cancellation was requested.
        stop: Function that stops the task, on any thread; `None` if the task cannot be stopped.
        waiting: The task's entry in the gate's queue; `None` if the task needs no cores.
        cores: Number of cores that the task has taken from the gate.
        gpus: The names of the GPUs that the task has taken from the gate.
        place: The offset of the task's mark in the worker's notes; `None` until the task has its
            cores, or if the worker writes no notes.
        since: The time when the task received its cores, by the monotonic clock.
    """

    site: Site
    order: Order
    values: Sequence[Any] = ()
    replies: GroupReplies | None = None
    uid: str = field(init=False)
    context: TaskContext = field(init=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    cancelled: bool = False
    stop: Callable[[], object] | None = None
    waiting: QueuedTask | None = None
    cores: float = 0
    gpus: tuple[str, ...] = ()
    place: int | None = None
    since: float = 0.0

    def __post_init__(self) -> None:
        order = self.order
        more = {"uid": order.uid, "name": order.name, "attempt": order.attempt, **order.more}
        self.uid, self.context = order.uid, TaskContext.of(more)

    def stop_with(self, loop: Any, stop: Callable[[], object]) -> None:
        """Let other threads stop the task by calling a function on the loop that runs it."""

        def call() -> None:
            with suppress(RuntimeError):  # the loop is closed: the task has ended
                loop.call_soon_threadsafe(stop)

        self.stop = call
        if self.cancelled:
            call()


class Site:
    """State of one backend on one worker: its running tasks, and the messages about them.

    Args:
        worker: Dask's worker.
        session: The backend's session.
        grace: Seconds between SIGTERM and SIGKILL.
        notes: The directory for notes about running attempts, or `None` to write none.
        gpus: The names of the GPUs that the worker may assign.
        directory: The main program's current directory when the backend was started.

    Attributes:
        elsewhere: The worker's current directory if it is another one, otherwise `None`.
    """

    def __init__(
        self,
        worker: Worker,
        session: str,
        grace: float,
        notes: str | None = None,
        gpus: tuple[str, ...] = (),
        directory: str = "",
    ) -> None:
        self.worker = worker
        self.session = session
        self.topic: str = topic(session)
        self.grace = grace
        self.address: str = worker.address
        self.host: str = _host(worker.address)
        resources = worker.state.total_resources
        self.threads: int = worker.state.nthreads
        cores = max(self.threads, int(resources.get("cores", 0)))
        self.gate: Gate = Gate(cores, gpus)
        self.waiting: WaitingLoop = WaitingLoop()
        self.notes: Notes | None = Notes(notes_of(notes, worker.address)) if notes else None
        here = current_directory()
        self.elsewhere: str | None = None if here == directory else here
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._cancelled: dict[str, None] = {}  # oldest first
        self._fresh: list[Running] = []
        self._armed = False

    # On the threads of tasks.

    def begin(self, running: Running, group: Running | None = None) -> bool:
        """Register a task as started.

        Returns:
            True if the task may start, False if the task or its group has already been canceled.
        """
        with self._lock:
            if group is not None and group.cancelled:
                return False
            if self._cancelled.pop(running.uid, running) is None:
                return False
            self._running[running.uid] = running
            return True

    def started(self, running: Running) -> None:
        """Register that a task has its cores and is running."""
        self.note(running)
        running.since = monotonic()
        self._fresh.append(running)
        if not self._armed:
            self._armed = True
            loop = self.worker.loop
            loop.add_callback(loop.call_later, REPORT_AFTER, self._report)

    def note(self, running: Running) -> None:
        """Record in the worker's notes that a task or group has started."""
        if self.notes is not None:
            with self._lock:
                running.place = self.notes.add(running.uid)

    def leave(self, running: Running) -> None:
        """Release the cores of a task once it has ended or left Dask's thread pool."""
        with self._lock:
            cores, running.cores = running.cores, 0
        if cores:
            self.gate.leave(cores)

    def end(self, running: Running) -> None:
        """Register that a task has ended."""
        with self._lock:
            if self._running.get(running.uid) is running:
                del self._running[running.uid]
            if self.notes is not None and running.place is not None:
                self.notes.remove(running.place)

    def attach(self, running: Running, reply: Reply) -> None:
        """Add a small reply to Dask's message about the end of a task."""
        key = key_of(running.context.name, self.session, running.uid)
        task = self.worker.state.tasks.get(key)
        if task is None:  # Dask has released it
            return
        task.metadata.pop(ATTACHED, None)  # of an earlier start
        if not reply.buffers and getsizeof(reply) <= MAX_ATTACHED:
            packed = pickle.dumps(reply, 4)  # without `PickleBuffer`
            if len(packed) <= MAX_ATTACHED:
                task.metadata[ATTACHED] = packed

    def notify(self, message: dict[str, Any]) -> None:
        """Send a message to the backend, from any thread."""
        self.worker.log_event(self.topic, {"worker": self.address, **message})

    # On the worker's loop.

    def cancel(self, uids: Iterable[str]) -> list[str]:
        """Stop the tasks that have started, and prevent the others from starting.

        Returns:
            The uids of those tasks that had already started.
        """
        started = []
        for uid in uids:
            with self._lock:
                running = self._running.get(uid)
                if running is None:
                    self._cancelled[uid] = None
                    if len(self._cancelled) > MAX_CANCELED:
                        del self._cancelled[next(iter(self._cancelled))]
                    continue
            started.append(uid)
            running.cancelled = True
            running.context.request_cancel()
            if running.waiting is not None:
                self.gate.cancel(running.waiting)
            if running.stop is not None:
                running.stop()
        return started

    def stop_group(self, group: str, uid: str) -> GroupReplies | None:
        """Stop a group after its running call, and return the replies of the calls before it.

        Args:
            group: The uid of the group.
            uid: The uid of the call.

        Returns:
            The replies, or `None` if the call is no longer running.
        """
        with self._lock:
            running = self._running.get(group)
            if running is None or running.replies is None or uid not in self._running:
                return None
            running.cancelled = True
            return {**running.replies}

    def seceded(self, key: str) -> None:
        """Release the cores of a task that has left Dask's thread pool.

        A task usually leaves the pool before it waits for other tasks of Dask. When it rejoins the
        pool, Dask ensures that the number of threads does not grow.
        """
        with self._lock:
            tasks = self._running.values()
            found = [t for t in tasks if key == key_of(t.context.name, self.session, t.uid)]
        for running in found:
            self.leave(running)
            if running.replies is not None:  # start no further calls of the group
                running.cancelled = True

    def stop_all(self) -> None:
        """Stop all tasks; called when the site closes."""
        self.cancel([*self._running])

    def _report(self) -> None:
        self._armed = False
        fresh, self._fresh = self._fresh, []
        running = [one for one in fresh if one.uid in self._running]
        until = monotonic() - REPORT_AFTER
        started = [(one.uid, one.token) for one in running if one.since <= until]
        if started:
            self.notify({"running": started})
        if len(started) < len(running):
            self._fresh += [one for one in running if one.since > until]
            self._armed = True
            self.worker.loop.call_later(REPORT_AFTER, self._report)


supervisor: Reaper = Reaper()
"""Reaper of the executables that this process starts."""

_sites: dict[tuple[str, str], Site] = {}


def topic(session: str) -> str:
    """Return Dask's topic for the events of a session."""
    return f"rhapsody.{session}"


def leave_ctrl_c(client: int) -> None:
    """Make a worker ignore Ctrl-C, which a terminal sends to the workers and to the main program.

    The main program stops its workers when it ends. Executables on the workers still receive the
    signal: unlike an ignored signal, a handler is not inherited.

    Args:
        client: The main program's process id; nothing is changed in that process.
    """
    if os.getpid() != client and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: None)


def open_site(
    worker: Worker,
    session: str,
    grace: float,
    notes: str | None = None,
    directory: str = "",
    *,
    client: int | None = None,
) -> Site:
    """Create the state of a backend on a worker.

    Args:
        worker: Dask's worker.
        session: The backend's session.
        grace: Seconds between SIGTERM and SIGKILL.
        notes: The directory for notes about running attempts, or `None` to write none.
        directory: The main program's current directory when the backend was started.
        client: The main program's process id, if it started this worker, so that all workers are
            on one machine and share its GPUs.

    Returns:
        The state.
    """
    streams.acquire()
    count = int(worker.state.total_resources.get("gpus", 0))
    gpus = _gpus(count, 0 if client is None else int(worker.name))  # LocalCluster counts them
    if gpus and client not in (None, os.getpid()):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # for functions
    site = _sites[session, worker.address] = Site(worker, session, grace, notes, gpus, directory)
    return site


def current_directory() -> str:
    """Return the current directory without links, or an empty string if it was removed."""
    try:
        return os.path.realpath(os.getcwd())
    except FileNotFoundError:
        return ""


def close_site(worker: Worker, session: str) -> None:
    """Stop a backend's tasks on a worker, and remove its state there."""
    site = _sites.pop((session, worker.address), None)
    if site is None:
        return
    site.stop_all()
    site.waiting.leave()
    worker_values().close(session)
    streams.release()
    if not _sites:
        supervisor.stop()


def site_of(worker: Any, session: str) -> Site | None:
    """Return the state of a backend on a worker, or `None` if no site is open there."""
    return _sites.get((session, worker.address))


def cancel(session: str, uids: list[str], dask_worker: Any = None) -> list[str]:
    """Stop tasks on this worker; see `Site.cancel`. Called through `Client.run`.

    Returns:
        The uids of those tasks that had already started on this worker.
    """
    site = site_of(dask_worker, session)
    return [] if site is None else site.cancel(uids)


def stop_group(session: str, group: str, uid: str, dask_worker: Any = None) -> GroupReplies | None:
    """Stop a group after its running call; see `Site.stop_group`. Called through `Client.run`."""
    site = site_of(dask_worker, session)
    return None if site is None else site.stop_group(group, uid)


async def close_value(session: str, key: bytes) -> None:
    """Close a session's worker value on this worker; called through `Client.run`."""
    await asyncio.to_thread(worker_values().close_value, key, session)


def sees(path: str, text: str, dask_worker: Any = None) -> bool:
    """Return True if a file on this worker has this content; called through `Client.run`."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() == text
    except OSError:
        return False


def _host(address: str) -> str:
    """Return the host of a worker's address, or the loopback address if it contains no host."""
    scheme, _, place = address.rpartition("://")
    if scheme == "inproc":
        return "127.0.0.1"
    return place.rpartition(":")[0].strip("[]") or "127.0.0.1"


def _gpus(count: int, index: int) -> tuple[str, ...]:
    """Return the names of the GPUs that a worker may assign.

    Args:
        count: Number of GPUs of each worker.
        index: The worker's index among the workers that share the GPUs.
    """
    first, end = index * count, (index + 1) * count
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not names[0] or len(names) < end:
        names = [*map(str, range(end))]
    return tuple(names[first:end])
