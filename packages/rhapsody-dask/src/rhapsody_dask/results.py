"""Results of tasks: fetched from Dask's workers, and reported to the engine.

Replies are fetched in batches: the replies of tasks that end during one request form the next
batch. If a worker does not answer, the next batch is fetched without waiting for the previous one.
A value that other tasks use stays on Dask's workers, and is fetched only if the engine needs it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

from rhapsody import (
    BackendError,
    DataError,
    StateMapper,
    TaskDescription,
    TaskFailedError,
    TaskLostError,
)
from rhapsody.backends import ReferenceLostError
from rhapsody.sdk import Readiness, add_note, call_ready, in_thread, unpack_error
from rhapsody_dask.files import write_back
from rhapsody_dask.task import Call, named
from rhapsody_dask.values import Shared
from rhapsody_dask.worker.messages import (
    CANCELED,
    DEPENDENCY,
    DONE,
    Reply,
    TaskRaised,
    unpack,
    writable,
)

log: logging.Logger = logging.getLogger(__name__)

MAX_BATCH = 2_000
"""Largest number of replies in a batch."""

LARGE_BATCH = 4
BATCH_PAUSE = 0.01
"""Seconds to wait for further replies after a batch of more than `LARGE_BATCH` replies."""

BATCH_TIMEOUT = 0.5
"""Longest time in seconds that a batch waits for the previous one."""


class Held:
    """Value that Dask keeps on a worker as long as this object exists.

    Implements `rhapsody.task.HeldValue`.

    Args:
        call: The task, with the future that makes Dask keep the value.
        fetch: Coroutine function that fetches the value and returns the task's description.
        release: Called with the task when this object is deleted, on any thread.
    """

    __slots__ = ("__weakref__", "_fetch", "_release", "call")

    def __init__(
        self,
        call: Call,
        fetch: Callable[[Call], Awaitable[TaskDescription]],
        release: Callable[[Call], None],
    ) -> None:
        self.call: Call = call
        self._fetch = fetch
        self._release = release

    async def fetch(self) -> TaskDescription:
        """Fetch the value.

        Returns:
            The task's description. It contains the value or, if the value was lost, the error.
        """
        return await self._fetch(self.call)

    def __del__(self) -> None:
        self._release(self.call)


class Results:
    """Results of one backend's tasks.

    Args:
        client: Dask's client.
        tasks: The open tasks by uid; this object removes tasks that end.
        states: The backend's names for states.
        shared: The large arguments of the tasks.
        notify: Reports a task's state to the engine.
        cancel: Stops a task.
        require_running: Raises if the connection was lost.
        direct: True to fetch from the workers, False to fetch through the scheduler; `None` leaves
            the choice to the client.

    Attributes:
        calls: The open tasks that were submitted, and the ended tasks whose held value is being
            fetched, by key in Dask.
        ended: Event that is set when a task has ended.
    """

    def __init__(
        self,
        client: Any,
        tasks: dict[str, Call],
        states: StateMapper,
        shared: Shared,
        *,
        notify: Callable[..., None],
        cancel: Callable[[Call], None],
        require_running: Callable[[], None],
        direct: bool | None,
    ) -> None:
        self.calls: dict[str, Call] = {}
        self.ended: asyncio.Event = asyncio.Event()
        self._client = client
        self._tasks = tasks
        self._running: Any = states.RUNNING
        self._ends: dict[str, Any] = {
            "done": states.DONE,
            "failed": states.FAILED,
            "canceled": states.CANCELED,
        }
        self._shared = shared
        self._notify = notify
        self._cancel = cancel
        self._require_running = require_running
        self._direct = direct
        self._loop = asyncio.get_running_loop()
        self._held: WeakValueDictionary[str, Held] = WeakValueDictionary()
        self._queue: list[str] = []
        self._closed = False
        self._fetching: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._in_flight: dict[str, list[str]] = {}

    def close(self) -> None:
        """Stop fetching replies and watching tasks."""
        self._closed = True
        self._queue.clear()
        for task in (self._fetching, *self._background):
            if task is not None:
                task.cancel()
        self._fetching = None

    # Reports to the engine.

    def announce(self, call: Call) -> None:
        """Report that a task is running, unless this has already been reported."""
        if call.announced:
            return
        call.announced = True
        if call.ready is None:
            self._notify(call.task, self._running)
            return
        call.readiness = Readiness()
        self._notify(call.task, self._running, call.readiness.attach)
        if callable(call.ready):
            call.watch = asyncio.ensure_future(self._watch_readiness(call))

    async def _watch_readiness(self, call: Call) -> None:
        """Call a service's `ready` in this process; see `call_ready`."""
        try:
            value = await call_ready(call.ready, call.task)
        except Exception as error:  # raised by the user's callable
            if call.uid in self._tasks:
                call.error = error
                self._cancel(call)
        else:
            call.readiness.set(value)

    def withdraw(self, call: Call) -> None:
        """Forget a task that was not submitted, without reporting it to the engine."""
        if self._tasks.get(call.uid) is call:
            del self._tasks[call.uid]
            self._release(call)
            self.ended.set()

    def settle(self, call: Call, state: str) -> None:
        """End a task that has run.

        Args:
            call: The task.
            state: `"done"`, `"failed"` or `"canceled"`. A task with an error always ends as failed;
                another task whose cancellation was requested always ends as canceled.
        """
        self._wake(call)
        if call.uid not in self._tasks:
            return
        if call.error is None and call.cancelled:
            state = "canceled"
        if state != "canceled" or call.started:
            self.announce(call)
        self.end(call, state if call.error is None else "failed")

    def fail(self, call: Call, error: BaseException) -> None:
        """Fail a task that was lost or never sent; end it as canceled if it is being canceled."""
        if not call.cancelled and call.error is None:
            call.error = error
        self._wake(call)
        self.end_unstarted(call)

    def end_unstarted(self, call: Call) -> None:
        """End a task without reporting it as running.

        The task has failed if it has an error; otherwise it has been canceled.
        """
        if call.uid in self._tasks:
            self.end(call, "canceled" if call.error is None else "failed")

    def end(self, call: Call, state: str) -> None:
        """Report a task's terminal state and forget the task."""
        task = call.task
        if state == "failed" and call.error is not None:
            task["exception"] = call.error
        del self._tasks[call.uid]
        self.calls.pop(call.key, None)
        call.error = None
        call.sources = []
        for watching in (call.watch, call.refusal):
            if watching is not None:
                watching.cancel()
        call.watch = call.refusal = None  # break the cycle that would keep Dask's future
        if "held" not in task:
            if call.future is not None and not call.referred_to:
                # Explicitly, because a `gather` of several futures may still refer to this one.
                call.future.release()
            call.future = None
            self._release(call)
        self._notify(task, self._ends[state])
        self.ended.set()

    def _release(self, call: Call) -> None:
        """Release the large arguments of a task."""
        entries, call.entries = call.entries, []
        for entry in entries:
            self._shared.release(entry)

    # Values that stay on the workers.

    def held(self, uid: str) -> Call | None:
        """Return the task with a uid if its value is held on a worker, otherwise `None`."""
        held = self._held.get(uid)
        return None if held is None else held.call

    def hold(self, call: Call) -> None:
        """End a task, but leave its value on the worker.

        The task's large arguments are kept as well, because Dask needs them to compute the value
        again if the worker is lost.
        """
        task = call.task
        held = task["held"] = Held(call, self._fetch_held, self._release_held)
        self._held[call.uid] = held
        self.settle(call, "done")
        # The engine has its own description, and arguments may be large.
        kept = {key: task[key] for key in ("uid", "name", "function")}
        call.task = cast("TaskDescription", kept)

    async def _fetch_held(self, call: Call) -> TaskDescription:
        if call.error is not None:
            call.task["exception"] = call.error
            return call.task
        call.waiter = self._loop.create_future()
        self.calls[call.key] = call
        try:
            self._require_running()
            self.fetch(call.key)
            await call.waiter
        finally:
            call.waiter = None
            self.calls.pop(call.key, None)
        return call.task

    @staticmethod
    def _wake(call: Call) -> None:
        """Wake the coroutine that waits for a task's value, which has arrived or was lost."""
        if call.waiter is not None:
            if call.error is not None:
                call.task["exception"] = call.error
            if not call.waiter.done():
                call.waiter.set_result(None)

    def _release_held(self, call: Call) -> None:
        if call.entries:
            try:
                self._loop.call_soon_threadsafe(partial(self._release, call))
            except RuntimeError:  # the loop is closed, and so is the backend
                return

    # Events of tasks.

    def watch(self, calls: Sequence[Call]) -> None:
        """Watch for tasks that the scheduler rejects.

        The scheduler rejects tasks whose dependencies it has forgotten, and graphs that it cannot
        unpickle. The plugin publishes no transition for rejected tasks.
        """
        for number, call in enumerate(calls):
            if not number or call.references or call.entries:
                call.refusal = self._spawn(self._watch_refusal(call, call.future))

    async def _watch_refusal(self, call: Call, future: Any) -> None:
        await future.exception()
        if call.key in self.calls and not call.finished:
            if future.status == "cancelled":
                self.dropped(call)
            elif future.status == "error":
                await self._erred(call)

    def stuck(self, key: str) -> None:
        """Fail a task that Dask can never run because a dependency was lost.

        If the task has ended and its value is held, mark the value as lost.
        """
        call = self.calls.get(key)
        if call is not None:
            self.fail(call, reference_lost(call))
            return
        for held in list(self._held.values()):
            if held.call.key == key:
                held.call.error = TaskLostError(
                    f"the value of {named(held.call)} was lost with the worker that held it"
                )

    def dropped(self, call: Call) -> None:
        """Fail a task that Dask has forgotten."""
        if call.references and call.waiter is None:
            # Usually one of the dependencies was forgotten.
            self.fail(call, reference_lost(call))
        else:
            self.fail(
                call,
                TaskLostError(
                    f"{named(call)} was dropped by Dask: a client canceled it, the scheduler "
                    "restarted the workers, or the worker with a large argument of the task was "
                    "lost"
                ),
            )

    def erred(self, call: Call) -> None:
        """Fail a task that Dask has marked as erred."""
        if call.future is not None:
            self._spawn(self._erred(call))

    async def _erred(self, call: Call) -> None:
        from distributed import KilledWorker

        error = await call.future.exception()
        if self.calls.get(call.key) is not call:
            return
        if call.future.status == "cancelled":  # the workers were restarted meanwhile
            self.dropped(call)
        elif call.references and _is_of_another(call, error):
            self.fail(call, reference_lost(call))
        elif isinstance(error, TaskRaised):
            self.receive(call, error.reply)
        elif isinstance(error, KilledWorker):
            self.fail(
                call, worker_lost(call, getattr(error.last_worker, "address", "of unknown address"))
            )
        else:
            problem = BackendError(f"Dask could not run {named(call)}: {error!r}")
            problem.__cause__ = error
            self.fail(call, problem)

    # Replies.

    def fetch(self, key: str) -> None:
        """Fetch a reply from a worker's memory with the next batch."""
        if self._closed or key not in self.calls:
            return
        self._queue.append(key)
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(self._fetch_batches())

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
                batch = self._spawn(self._fetch_batch(keys))
                await asyncio.wait([batch], timeout=BATCH_TIMEOUT)
                if len(keys) > LARGE_BATCH and len(self._queue) < MAX_BATCH:
                    # With many results, larger batches deliver all of them sooner.
                    await asyncio.sleep(BATCH_PAUSE)
        finally:
            self._fetching = None

    async def _fetch_batch(self, keys: list[str]) -> None:
        futures = {key: self.calls[key].future for key in keys if key in self.calls}
        self._in_flight |= dict.fromkeys(futures, keys)
        try:
            replies = await self._client.gather(futures, errors="skip", direct=self._direct)
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

    def _not_fetched(self, call: Call, error: Exception) -> None:
        if isinstance(error, OSError) and not call.refetched:
            # If the scheduler was lost, the client will report that.
            call.refetched = True
            self.fetch(call.key)
        else:
            self.fail(call, TaskLostError(f"cannot fetch the result of {named(call)}: {error!r}"))

    def receive(self, call: Call, reply: Reply) -> None:
        """Write a reply into the description, and report that the task has ended."""
        task: Any = call.task
        if reply.worker is not None:
            task["worker"] = reply.worker
        if reply.more:
            if "files" in reply.more:
                self._spawn(self._receive_files(call, reply))
                return
            task.update(reply.more)
        self.settle(call, _state(call, reply))

    async def _receive_files(self, call: Call, reply: Reply) -> None:
        """Create the sandbox of a task from the files in its reply, and end the task."""
        task: Any = call.task
        more = dict(reply.more or {})
        files, sandbox = more.pop("files"), task["sandbox"]
        more.pop("sandbox", None)
        left_out = more.pop("left_out", ())
        if left_out:
            log.warning(
                "%s: output files not copied from %s: %s; dangling links, links out of the "
                "sandbox, pipes and sockets are not supported",
                named(call), reply.worker, ", ".join(left_out),
            )  # fmt: skip
        task.update(more)
        missing: list[str] = []
        try:
            missing = await in_thread(partial(write_back, task, sandbox, files, call.links))
        except Exception as error:  # raised by the local disk
            call.error = error
        state = _state(call, reply)
        if state == "done" and missing and call.error is None:
            state = "failed"
            call.error = DataError(
                f"{named(call)} did not write {', '.join(map(repr, missing))} (declared as output) "
                f"in its sandbox on {reply.worker}"
            )
        self.settle(call, state)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _state(call: Call, reply: Reply) -> str:
    """Write a reply's value or error into the task, and return the task's state."""
    if reply.kind == CANCELED or call.cancelled:
        return "canceled"
    if reply.kind == DONE:
        if call.task["function"] is None:
            return "done"
        try:
            call.task["return_value"] = unpack(reply.payload, writable(reply.buffers))
        except BaseException as error:  # unpickling runs the objects' own code
            add_note(error, f"raised while unpickling the result of {named(call)}")
            call.error = error
            return "failed"
        return "done"
    if reply.kind == DEPENDENCY:
        call.error = reference_lost(call)
    elif reply.payload:
        call.error = _error(call, reply)
    return "failed"


def _is_of_another(call: Call, error: BaseException | None) -> bool:
    """Return True if Dask failed a task because one of its dependencies had failed."""
    if isinstance(error, TaskRaised):
        return error.uid != call.uid
    return error is None or getattr(error, "task", call.key) != call.key


def worker_lost(call: Call, worker: str) -> TaskLostError:
    """Return the error for a task that was lost with a worker."""
    attempt = f"attempt {call.task.get('attempt', 1)}"
    if call.started and call.worker == worker:
        during = f"while the task was running ({attempt}, start {call.token})"
    else:
        during = f"before the task was reported as running ({attempt})"
    return TaskLostError(
        f"{named(call)} was lost: worker {worker} disappeared {during}. Check the worker's log: "
        "Dask kills workers that exceed their memory limit"
    )


def reference_lost(call: Call) -> ReferenceLostError:
    """Return the error for a task that was not run because the value of a dependency is missing."""
    return ReferenceLostError(
        f"{named(call)} was not run: the value of a task that it depends on is not available"
    )


def _error(call: Call, reply: Reply) -> BaseException:
    """Return the task's exception, with the worker's traceback as its cause.

    Returns:
        The exception, or a `TaskFailedError` if the exception cannot be unpickled.
    """
    try:
        return unpack_error(reply.payload)
    except BaseException as error:  # unpickling runs the objects' own code
        return TaskFailedError(
            f"{named(call)} raised an exception that cannot be unpickled: {error!r}"
        )
