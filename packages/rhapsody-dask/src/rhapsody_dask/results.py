"""Results of tasks: fetched from Dask's workers, and reported to the engine.

Small replies arrive with the message about the end of a task; see `worker.site.Site.attach`. Others
are fetched in batches: the replies of tasks that end during one request form the next batch. If a
worker does not answer, the next batch is fetched without waiting for the previous one.
A value that other tasks use stays on Dask's workers, and is fetched only if the engine needs it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

from rhapsody import BackendError, DataError, TaskDescription, TaskFailedError, TaskLostError
from rhapsody.backends import ReferenceLostError
from rhapsody.sdk import Readiness, add_note, call_ready, in_thread, unpack_error
from rhapsody_dask.files import log_left_out, write_back
from rhapsody_dask.task import ClusterTask
from rhapsody_dask.values import LargeArguments
from rhapsody_dask.worker.entry import recompute
from rhapsody_dask.worker.messages import (
    CANCELED,
    DEPENDENCY,
    DONE,
    FAILED,
    Reply,
    TaskRaised,
    unpack,
    writable,
)

log: logging.Logger = logging.getLogger("rhapsody.dask")

RUNNING = "executing"
ENDS = ("finished", "error", "cancelled")
"""Dask's names of the states in which tasks end, by the kind of reply: `DONE`, `FAILED` or
`CANCELED`.
"""

MAX_BATCH = 2_000
"""Largest number of replies in a batch."""

LARGE_BATCH = 4
BATCH_PAUSE = 0.01
"""Seconds to wait for further replies after a batch of more than `LARGE_BATCH` replies."""

BATCH_TIMEOUT = 0.5
"""Longest time in seconds that a batch waits for the previous one."""


class BackgroundTasks:
    """Set of asyncio tasks that are canceled together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as an asyncio task."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Cancel the tasks."""
        for task in self._tasks:
            task.cancel()


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Held:
    """Value that Dask keeps on a worker as long as this object exists.

    Implements `rhapsody.backends.HeldValue`.

    Args:
        call: The task, with the future that makes Dask keep the value.
        results: The backend's results, which fetch the value.
        size: The size of the value in bytes, or `None` if the worker has not reported it.
    """

    call: ClusterTask
    results: ClusterResults
    size: int | None

    async def fetch(self) -> TaskDescription:
        """Fetch the value.

        Returns:
            The result keys of the task's description: the value or, if it was lost, the error.
        """
        return await self.results.fetch_held(self.call)

    def __del__(self) -> None:
        self.results.release_held(self.call)


@dataclass(eq=False)
class ClusterResults:
    """Results of one backend's tasks.

    Attributes:
        client: Dask's client.
        tasks: The open tasks by uid; this object removes tasks that end.
        shared: The large arguments of the tasks.
        notify: Reports a task's state to the engine.
        cancel: Stops a task.
        require_running: Raises if the connection was lost.
        direct: True to fetch from the workers, False to fetch through the scheduler; `None` leaves
            the choice to the client.
        calls: The open tasks that were submitted, and the ended tasks whose held value is being
            fetched, by key in Dask.
        ended: Event that is set when a task has ended.
    """

    client: Any
    tasks: dict[str, ClusterTask]
    shared: LargeArguments
    notify: Callable[..., None]
    cancel: Callable[[ClusterTask], None]
    require_running: Callable[[], None]
    direct: bool | None
    calls: dict[str, ClusterTask] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _held: WeakValueDictionary[str, Held] = field(default_factory=WeakValueDictionary)
    _queue: list[str] = field(default_factory=list)
    _in_flight: dict[str, list[str]] = field(default_factory=dict)
    _background: BackgroundTasks = field(default_factory=BackgroundTasks)
    _closed: bool = False
    _fetching: bool = False

    def close(self) -> None:
        """Stop fetching replies and watching tasks."""
        self._closed = True
        self._queue.clear()
        self._background.close()

    # Reports to the engine.

    def announce(self, call: ClusterTask) -> None:
        """Report that a task is running, unless this has already been reported."""
        if call.announced:
            return
        call.announced = True
        ready = call.task.get("ready") if call.task["is_service"] else None
        if ready is None:
            self.notify(call.task, RUNNING)
            return
        call.readiness = Readiness()
        self.notify(call.task, RUNNING, call.readiness.attach)
        if callable(ready):
            call.watchers.append(self._background.start(self._watch_readiness(call, ready)))

    async def _watch_readiness(self, call: ClusterTask, ready: Any) -> None:
        """Call a service's `ready` in this process; see `call_ready`."""
        try:
            value = await call_ready(ready, call.task)
        except Exception as error:  # raised by the user's callable
            if call.uid in self.tasks:
                call.error = error
                self.cancel(call)
        else:
            call.readiness.set(value)

    def withdraw(self, call: ClusterTask) -> None:
        """Forget a task that was not submitted, without reporting it to the engine."""
        if self.tasks.get(call.uid) is call:
            del self.tasks[call.uid]
            self.release(call)
            self.ended.set()

    def settle(self, call: ClusterTask, kind: int) -> None:
        """End a task that has run.

        Args:
            call: The task.
            kind: `DONE`, `FAILED` or `CANCELED`. A task with an error always ends as failed;
                another task whose cancellation was requested always ends as canceled.
        """
        self._wake(call)
        if call.uid not in self.tasks:
            return
        if call.error is None and call.cancelled:
            kind = CANCELED
        if kind != CANCELED or call.started:
            self.announce(call)
        self._end(call, kind if call.error is None else FAILED)

    def fail(self, call: ClusterTask, error: BaseException) -> None:
        """Fail a task that was lost or never sent; end it as canceled if it is being canceled."""
        if not call.cancelled and call.error is None:
            call.error = error
        self._wake(call)
        self.end_unstarted(call)

    def end_unstarted(self, call: ClusterTask) -> None:
        """End a task without reporting it as running.

        The task has failed if it has an error; otherwise it has been canceled.
        """
        if call.uid in self.tasks:
            self._end(call, CANCELED if call.error is None else FAILED)

    def _end(self, call: ClusterTask, kind: int) -> None:
        """Report a task's terminal state and forget the task."""
        task = call.task
        if call.error is not None:
            task["exception"] = call.error
        del self.tasks[call.uid]
        self.calls.pop(call.key, None)
        call.error = None
        call.references = dict.fromkeys(call.references)  # release the futures
        for watcher in call.watchers:
            watcher.cancel()
        call.watchers = []  # break the cycle that would keep Dask's future
        if "held" not in task:
            if call.future is not None and not call.referred_to:
                # Explicitly, because a `gather` of several futures may still refer to this one.
                call.future.release()
            call.future = None
            self.release(call)
        self.notify(task, ENDS[kind])
        self.ended.set()

    def release(self, call: ClusterTask) -> None:
        """Release the large arguments of a task."""
        entries, call.entries = call.entries, []
        for entry in entries:
            self.shared.release(entry)

    # Values that stay on the workers.

    def held(self, uid: str) -> ClusterTask | None:
        """Return the task with a uid if its value is held on a worker, otherwise `None`."""
        held = self._held.get(uid)
        return None if held is None else held.call

    def hold(
        self, call: ClusterTask, size: int | None, interval: tuple[float, float] | None
    ) -> None:
        """End a task, but leave its value on the worker.

        The task's large arguments are kept as well, because Dask needs them to compute the value
        again if the worker is lost.

        Args:
            call: The task.
            size: The size of the value in bytes, if known.
            interval: The times at which the function was called and returned, if known.
        """
        task = call.task
        held = task["held"] = Held(call, self, size)
        if interval is not None:
            task["interval"] = interval
        self._held[call.uid] = held
        self.settle(call, DONE)
        call.lost_retries = task.get("lost_retries", 0)
        # The engine has its own description, and arguments may be large.
        kept = {key: task[key] for key in ("uid", "name", "function")}
        call.task = cast("TaskDescription", kept)

    async def fetch_held(self, call: ClusterTask) -> TaskDescription:
        """Fetch a task's held value; see `Held.fetch`."""
        former = call.task
        call.task = former.copy()  # the engine may fetch the value again
        try:
            if call.error is None or self._may_recompute(call, call.error):
                call.waiter = self._loop.create_future()
                self.calls[call.key] = call
                self.require_running()
                if call.error is None:
                    self.fetch(call.key)
                else:
                    self._lost(call, call.error)
                await call.waiter
            if call.error is not None:
                call.task["exception"] = call.error
            return call.task
        finally:
            call.waiter, call.task = None, former
            self.calls.pop(call.key, None)

    @staticmethod
    def _wake(call: ClusterTask) -> None:
        """Wake the coroutine that waits for a task's value, which has arrived or was lost."""
        if call.waiter is not None and not call.waiter.done():
            call.waiter.set_result(None)

    @staticmethod
    def _may_recompute(call: ClusterTask, error: BaseException) -> bool:
        lost = isinstance(error, TaskLostError | ReferenceLostError)
        return lost and call.lost_retries > 0

    def _lost(self, call: ClusterTask, error: BaseException) -> None:
        """Fail a task that was lost. If its held value is being fetched, compute it again."""
        if call.waiter is None or not self._may_recompute(call, error):
            self.fail(call, error)
            return
        call.lost_retries -= 1
        call.error = None
        log.warning(
            "%s: its value was lost with its worker; computing it again (lost_retries left: %d)",
            call, call.lost_retries,
        )  # fmt: skip
        self._background.start(self._recompute(call, error))

    async def _recompute(self, call: ClusterTask, error: BaseException) -> None:
        """Let Dask compute a held value again. An event announces the result."""
        found = False
        with suppress(OSError):  # the client reports the loss of the connection
            found = await self.client.run_on_scheduler(recompute, call.key)
        if not found and self.calls.get(call.key) is call:
            self.fail(call, error)

    def release_held(self, call: ClusterTask) -> None:
        """Release the large arguments of a task whose value is no longer held, on any thread."""
        if call.entries:
            with suppress(RuntimeError):  # the loop is closed, and so is the backend
                self._loop.call_soon_threadsafe(self.release, call)

    # Events of tasks.

    def watch(self, calls: Sequence[ClusterTask]) -> None:
        """Watch for tasks that the scheduler rejects.

        The scheduler rejects tasks whose dependencies it has forgotten, and graphs that it cannot
        unpickle. The plugin publishes no transition for rejected tasks.
        """
        for number, call in enumerate(calls):
            if not number or call.references or call.entries:
                watcher = self._watch_refusal(call, call.future)
                call.watchers.append(self._background.start(watcher))

    async def _watch_refusal(self, call: ClusterTask, future: Any) -> None:
        await future.exception()
        if call.key in self.calls and not call.finished:
            if future.status == "cancelled":
                self.dropped(call)
            elif future.status == "error":
                await self._erred(call, future)

    def stuck(self, key: str) -> None:
        """Fail a task that Dask can never run because a dependency was lost.

        If the task has ended and its value is held, mark the value as lost.
        """
        if key in self.calls:
            self._lost(self.calls[key], reference_lost(self.calls[key]))
            return
        for call in [held.call for held in self._held.values() if held.call.key == key]:
            message = f"the value of {call} was lost with the worker that held it"
            call.error = TaskLostError(message)

    def dropped(self, call: ClusterTask) -> None:
        """Fail a task that Dask has forgotten."""
        if call.references and call.waiter is None:
            # Usually one of the dependencies was forgotten.
            self.fail(call, reference_lost(call))
            return
        reason = (
            "a client canceled it, the scheduler restarted the workers, or the worker with a large "
            "argument of the task was lost"
        )
        self.fail(call, TaskLostError(f"{call} was dropped by Dask: {reason}"))

    def erred(self, call: ClusterTask) -> None:
        """Fail a task that Dask has marked as erred."""
        if call.future is not None:
            self._background.start(self._erred(call, call.future))

    async def _erred(self, call: ClusterTask, future: Any) -> None:
        from distributed import KilledWorker

        error = await future.exception()  # the task may end meanwhile
        if self.calls.get(call.key) is not call or (call.waiter and error in (None, call.loss)):
            return  # the value is being computed again
        call.loss = error if call.waiter else None
        if future.status == "cancelled":  # the workers were restarted meanwhile
            self.dropped(call)
        elif call.references and _is_of_another(call, error):
            self._lost(call, reference_lost(call))
        elif isinstance(error, TaskRaised):
            self.receive(call, error.reply)
        elif isinstance(error, KilledWorker):
            worker = getattr(error.last_worker, "address", "of unknown address")
            self._lost(call, worker_lost(call, worker))
        else:
            problem = BackendError(f"Dask could not run {call}: {error!r}")
            problem.__cause__ = error
            self.fail(call, problem)

    # Replies.

    def fetch(self, key: str) -> None:
        """Fetch a reply from a worker's memory with the next batch."""
        if self._closed or key not in self.calls:
            return
        self._queue.append(key)
        if not self._fetching:
            self._fetching = True
            self._background.start(self._fetch_batches())

    def refetch_others(self, key: str) -> None:
        """Fetch the other replies of a batch again after one was lost with its worker.

        `gather` returns no reply of the batch until Dask has run the task of the lost reply again.
        """
        for other in self._in_flight.pop(key, ()):
            if other != key and other in self._in_flight:
                del self._in_flight[other]
                self.fetch(other)

    async def _fetch_batches(self) -> None:
        try:
            await asyncio.sleep(0)  # collect the other events of this message
            while self._queue:
                keys, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                batch = self._background.start(self._fetch_batch(keys))
                await asyncio.wait([batch], timeout=BATCH_TIMEOUT)
                if len(keys) > LARGE_BATCH and len(self._queue) < MAX_BATCH:
                    # With many results, larger batches deliver all of them sooner.
                    await asyncio.sleep(BATCH_PAUSE)
        finally:
            self._fetching = False

    async def _fetch_batch(self, keys: list[str]) -> None:
        futures = {key: self.calls[key].future for key in keys if key in self.calls}
        self._in_flight |= dict.fromkeys(futures, keys)
        try:
            replies = await self.client.gather(futures, errors="skip", direct=self.direct)
        except Exception as error:  # raised by the connection
            for key in futures:
                if (call := self.calls.get(key)) is not None:
                    self._not_fetched(call, error)
            return
        finally:
            for key in keys:
                self._in_flight.pop(key, None)
        while replies:  # emptied, because tracebacks that user code keeps refer to this dict
            key = next(iter(replies))
            self._fetched(key, replies.pop(key), futures.pop(key))

    def _fetched(self, key: str, reply: Reply | None, future: Any) -> None:
        call = self.calls.get(key)
        if call is None:
            return
        if reply is not None:
            self.receive(call, reply)
        elif future.status == "cancelled":
            self.dropped(call)
        else:
            self.erred(call)

    def _not_fetched(self, call: ClusterTask, error: Exception) -> None:
        if isinstance(error, OSError) and not call.refetched:
            # If the scheduler was lost, the client will report that.
            call.refetched = True
            self.fetch(call.key)
        else:
            self.fail(call, TaskLostError(f"cannot fetch the result of {call}: {error!r}"))

    def receive(self, call: ClusterTask, reply: Reply) -> None:
        """Write a reply into the description, and report that the task has ended."""
        task: Any = call.task
        if reply.worker is not None:
            task["worker"] = reply.worker
        if reply.more:
            if "files" in reply.more:
                self._background.start(self._receive_files(call, reply))
                return
            task.update(reply.more)
        self.settle(call, _kind(call, reply))

    async def _receive_files(self, call: ClusterTask, reply: Reply) -> None:
        """Create the sandbox of a task from the files in its reply, and end the task."""
        task: Any = call.task
        more = dict(reply.more or {})
        files, sandbox = more.pop("files"), task["sandbox"]
        more.pop("sandbox", None)
        what = f"{call}: output files not copied from {reply.worker}"
        log_left_out(what, more.pop("left_out"))
        task.update(more)
        missing: list[str] = []
        try:
            missing = await in_thread(write_back, task, sandbox, files, call.links)
        except Exception as error:  # raised by the local disk
            call.error = error
        kind = _kind(call, reply)
        if kind == DONE and missing and call.error is None:
            call.error = DataError(
                f"{call} did not write {', '.join(map(repr, missing))} (declared as output) "
                f"in its sandbox on {reply.worker}"
            )
        self.settle(call, kind)


def _kind(call: ClusterTask, reply: Reply) -> int:
    """Write a reply's value or error into the task, and return `DONE`, `FAILED` or `CANCELED`."""
    if reply.kind == CANCELED or call.cancelled:
        return CANCELED
    if reply.kind == DONE:
        if call.task["function"] is not None:
            try:
                call.task["return_value"] = unpack(reply.payload, writable(reply.buffers))
            except BaseException as error:  # unpickling runs the objects' own code
                add_note(error, f"raised while unpickling the result of {call}")
                call.error = error
                return FAILED
        return DONE
    if reply.kind == DEPENDENCY:
        call.error = reference_lost(call)
    elif reply.payload:
        try:
            call.error = unpack_error(reply.payload)  # with the worker's traceback as its cause
        except BaseException as error:  # unpickling runs the objects' own code
            call.error = TaskFailedError(
                f"{call} raised an exception that cannot be unpickled: {error!r}"
            )
    return FAILED


def _is_of_another(call: ClusterTask, error: BaseException | None) -> bool:
    """Return True if Dask failed a task because one of its dependencies had failed."""
    if isinstance(error, TaskRaised):
        return error.uid != call.uid
    return error is None or getattr(error, "task", call.key) != call.key


def worker_lost(call: ClusterTask, worker: str) -> TaskLostError:
    """Return the error for a task that was lost with a worker."""
    attempt = f"attempt {call.task.get('attempt', 1)}"
    during = f"before the task was reported as running ({attempt})"
    if call.started and call.worker == worker:
        during = f"while the task was running ({attempt}, start {call.token})"
    return TaskLostError(
        f"{call} was lost: worker {worker} disappeared {during}. Check the worker's log: Dask "
        "kills workers that exceed their memory limit"
    )


def reference_lost(call: ClusterTask) -> ReferenceLostError:
    """Return the error for a task that was not run because the value of a dependency is missing."""
    return ReferenceLostError(
        f"{call} was not run: the value of a task that it depends on is not available"
    )
