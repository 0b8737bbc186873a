"""Push-down: tasks submitted before their inputs exist, and values that stay with a backend.

If a backend can wait for dependencies itself, a task whose unfinished dependencies are all on that
backend is submitted immediately, with references instead of values. The values stay on the backend
until something in this process needs them. Only plain function tasks take part; other tasks are
submitted when their dependencies have finished.

A future whose value a backend holds has no result yet, so asyncio treats it as pending. Waiting for
such a future, or calling its `done`, starts fetching the value. Engines with such a backend
therefore use a separate class of futures, `RemoteFuture`.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from rhapsody._private import mark_seen
from rhapsody.aio import on_loop
from rhapsody.engine.configuration.settings import NO_FALLBACK
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.events import UnawaitedErrors
from rhapsody.engine.core.record import TaskRecord, link_of, record_of, replace_link
from rhapsody.engine.core.states import FutureState, WorkState
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.errors import BackendUnavailableError, TaskLostError
from rhapsody.plugins.specs import Stats
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, HeldValue, Reference, TaskFacts, TaskFuture, how_to_wait

T = TypeVar("T")

FETCH_SECONDS: Final = 0.01
"""Estimated time in seconds to fetch and record a small value that stays with a backend."""

FETCH_RATE: Final = 100e6
"""Estimated number of bytes per second at which values that stay with backends are fetched."""

_WITH_BACKEND = (WorkState.READY, WorkState.SUBMITTING, WorkState.SUBMITTED, WorkState.RUNNING)


class RemoteFuture(TaskFuture[T]):
    """Future of a task whose value may stay with the backend."""

    __slots__ = ()

    def done(self) -> bool:
        """Return True if the future has its value or exception.

        If a backend holds the value, this starts fetching the value, and returns False until the
        value has arrived.
        """
        return self._requested() is None and super().done()

    def result(self) -> T:
        """Return the value. If a backend holds the value, start fetching it and raise an error.

        Raises:
            asyncio.InvalidStateError: The value has not been fetched yet.
        """
        if (holder := self._requested()) is not None:
            raise holder.not_here()
        return super().result()

    def exception(self) -> BaseException | None:
        """Return the exception. If a backend holds the value, start fetching it and raise an error.

        Raises:
            asyncio.InvalidStateError: The value has not been fetched yet.
        """
        if (holder := self._requested()) is not None:
            raise holder.not_here()
        return super().exception()

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Any = None) -> None:
        """Call `fn` when the future is done. If a backend holds the value, start fetching it."""
        super().add_done_callback(fn, context=context)
        self._requested()

    def _requested(self) -> RemoteResult | None:
        link: object = self._link
        if not isinstance(link, RemoteResult):
            return None
        link.request()
        return link


class RemoteResult:
    """Value that a backend holds; replaces the task's record as the future's `LiveNode`.

    The future refers to this object, which refers to the future only weakly. Once nothing else
    refers to the future, both are deleted and the backend drops the value.

    Args:
        pushdown: Push-down of the engine.
        record: The task.
        report: The backend's report, which contains the handle of the value.

    Attributes:
        requested: True if something in this process needs the value.
        size: The size of the value in bytes; `None` if the backend does not know it.
        seconds: The time that computing the value took; `None` if the backend did not measure it.
    """

    __slots__ = (
        "__weakref__",
        "_facts",
        "_fetching",
        "_future",
        "_record",
        "_value",
        "backend",
        "pushdown",
        "requested",
        "seconds",
        "size",
        "uid",
    )

    scheduler = None  # so that schedulers treat the future as one that they did not create

    def __init__(self, pushdown: PushDown, record: TaskRecord, report: Mapping[str, Any]) -> None:
        value: HeldValue = report["held"]
        interval: tuple[float, float] | None = report.get("interval")
        self.backend: BackendHandle = record.attempt.backend
        self.uid: str = record.attempt.uid
        self.pushdown: PushDown = pushdown
        self.requested: bool = False
        self.size: int | None = getattr(value, "size", None)  # older backends do not report it
        self.seconds: float | None = None if interval is None else interval[1] - interval[0]
        self._value = value
        self._facts = record.facts()
        self._future = weakref.ref(record.future)
        self._fetching: asyncio.Task[None] | None = None
        self._record: Recorder | None = None

    @property
    def started(self) -> None:
        """`None`, because the task is no longer running."""

    def facts(self) -> TaskFacts:
        """Return the facts about the task."""
        return self._facts

    def public_state(self) -> TasksMainStates:
        """Return DONE, because the task has succeeded."""
        return TasksMainStates.DONE

    def cancel(self, msg: Any) -> bool:
        """Cancel fetching the value; return `False` if it is not being fetched."""
        return on_loop(self.pushdown.background.loop, partial(self._cancel, msg))

    async def wait_ended(self) -> None:
        """Return immediately, because the work has ended."""

    def describe(self) -> None:
        """Return `None`, because a finished task has no description."""

    # Fetching the value.

    @property
    def worth_fetching(self) -> bool:
        """True if computing the value has taken longer than fetching it is estimated to take."""
        if self.size is None or self.seconds is None:
            return False
        return self.seconds > FETCH_SECONDS + self.size / FETCH_RATE

    def request(self) -> None:
        """Start fetching the value unless fetching has already started. Thread-safe."""
        background = self.pushdown.background
        if running_loop() is background.loop:
            self._fetch_once()
        elif not self.requested:
            background.soon_from_anywhere(self._fetch_once)

    def record_with(self, recorder: Recorder) -> None:
        """Fetch the value in order to record it.

        Unless something requests the value, the value itself stays with the backend.

        Args:
            recorder: Function that records a value, before the future receives it.
        """
        self._record = recorder
        future = self._future()
        if future is not None:
            self.pushdown.recording(self._start(future))

    def not_here(self) -> asyncio.InvalidStateError:
        """Return the error for a call that needs the value immediately."""
        name = self.uid if (future := self._future()) is None else _named(future)
        return asyncio.InvalidStateError(
            f"the value of {name} has not been fetched from its backend yet: {how_to_wait()}"
        )

    def close(self) -> None:
        """Settle the future when the engine shuts down: cancel fetching, or fail the future."""
        future = self._future()
        if future is None or self.requested:
            self._cancel(None)
            return
        error = BackendUnavailableError(
            f"the value of {_named(future)} stayed with backend {self.backend.name!r} and was not "
            "fetched before the engine shut down; await the future earlier, or create the engine "
            "with push_down=False"
        )
        self._release(future)
        future.fail(error)
        mark_seen(future)  # most likely nothing waits for it

    def _fetch_once(self) -> None:
        future = self._future()
        if future is not None and not self.requested and link_of(future) is self:
            self.requested = True
            self._start(future)

    def _start(self, future: TaskFuture[Any]) -> asyncio.Task[None]:
        if self._fetching is None:
            fetch = self._fetch(future)
            self._fetching = self.pushdown.background.spawn(fetch, f"value of {self.uid}")
        return self._fetching

    async def _fetch(self, future: TaskFuture[Any]) -> None:
        error: BaseException | None
        try:
            task = await self._value.fetch()
        except Exception as problem:  # an error of the backend: only this value is lost
            task, error = {}, problem
        else:
            error = task.get("exception")
        if error is None and "return_value" not in task:
            error = TaskLostError("the backend returned no value")
        recorder, self._record = self._record, None
        if recorder is not None and error is None:
            await recorder(task)
        if not self.requested:
            self._fetching = None
            return
        if isinstance(error, (TaskLostError, BackendUnavailableError)):
            error = self._lost_error(future, error)
        stdout, stderr = task.get("stdout"), task.get("stderr")
        if error is None and (stdout is not None or stderr is not None):
            backend, usage = self._facts.backend, future.usage
            outcome = AttemptInfo(self.uid, stdout, stderr, backend=backend, usage=usage)
            self._facts = self._facts.with_outcome(outcome)
        self._release(future)
        if future.done():
            return  # canceled while the value was fetched
        if error is not None:
            self.pushdown.lose(future, error)
            return
        future.set_result(task["return_value"])

    def _lost_error(
        self, future: TaskFuture[Any], cause: TaskLostError | BackendUnavailableError
    ) -> TaskLostError | BackendUnavailableError:
        kind = TaskLostError if isinstance(cause, TaskLostError) else BackendUnavailableError
        error = kind(
            f"the value of {_named(future)} stayed with backend {self.backend.name!r} and was lost "
            f"there: {cause}; with push_down=False, values are fetched as soon as tasks finish"
        )
        error.__cause__ = cause
        return error

    def _cancel(self, msg: Any) -> bool:
        future, fetching = self._future(), self._fetching
        if future is None or fetching is None or not self.requested or link_of(future) is not self:
            return False
        self._release(future)
        fetching.cancel()
        return future.set_cancelled(msg)

    def _release(self, future: TaskFuture[Any]) -> None:
        replace_link(future, self, self._facts)


Recorder = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Function that records a value, given the result keys of the task's description."""


def _named(future: TaskFuture[Any]) -> str:
    return f"{future.uid} ({future.name!r})"


def held(future: asyncio.Future[Any]) -> RemoteResult | None:
    """Return the `RemoteResult` of a future whose value a backend holds, otherwise `None`."""
    link = link_of(future)
    return link if isinstance(link, RemoteResult) else None


class PushDown:
    """Selection of the tasks that one engine pushes down, and registry of values held by backends.

    Args:
        background: The runner of the coroutines that fetch values.
        backends: The attached backends, the default one first; backends may be added later.
        unawaited: The watcher of futures whose values were lost.
        stats: The counters, among them that of lost values.
        allowed: False to disable push-down, because the user turned it off, or because default
            retries, a default timeout or a plugin require the engine to handle each task.

    Attributes:
        possible: True if push-down is allowed and an attached backend can wait for dependencies.
        holds: True if a backend has held a value for this engine.
    """

    def __init__(
        self,
        background: Background,
        backends: Mapping[str, BackendHandle],
        unawaited: UnawaitedErrors,
        stats: Stats,
        *,
        allowed: bool,
    ) -> None:
        self.background: Background = background
        self._backends = backends
        self._unawaited = unawaited
        self._stats = stats
        self._allowed = allowed
        self._held: weakref.WeakSet[RemoteResult] = weakref.WeakSet()
        self._recording: set[asyncio.Task[None]] = set()
        self.possible: bool = False
        self.holds: bool = False

    def attach(self, backend: BackendHandle) -> None:
        """Update `possible` for a newly attached backend."""
        self.possible |= self._allowed and backend.capabilities.unfinished_dependencies

    # Submission before the dependencies have finished.

    def followers(self, record: TaskRecord, backend: BackendHandle) -> Iterator[TaskRecord]:
        """Yield the dependents that can be submitted right after a task that is in the next batch.

        Args:
            record: The task in the next batch.
            backend: The backend that the batch is for.
        """
        if record.attempt.number != 1 or not self._takes_part(record, backend):
            return
        for dependent in record.dependents or ():
            if dependent.state.work is not WorkState.WAITING:
                continue
            dependent.sent += 1
            if dependent.sent >= dependent.unfinished and self._may_go(dependent, backend):
                yield dependent

    def may_follow(self, record: TaskRecord) -> bool:
        """Return True if a new task can be submitted before its dependencies have finished.

        This requires that all its unfinished dependencies have been submitted to its backend.
        """
        if not self.possible:
            return False
        backend = self._of(record.call.task)
        if not backend.capabilities.unfinished_dependencies:
            return False
        record.sent = sum(self._is_there(d, backend, sent=True) for d in record.call.dependencies)
        return record.sent >= record.unfinished and self._may_go(record, backend)

    def _may_go(self, record: TaskRecord, backend: BackendHandle) -> bool:
        """Return True if a task can be sent to its backend before its dependencies have finished.

        The backend must run each dependency, hold its value, or be able to receive the value.
        """
        if not self._takes_part(record, backend) or self._hopeless(record):
            return False
        for dependency in record.call.dependencies:
            holder = held(dependency)
            if holder is not None:
                if holder.backend is not backend:
                    return False
            elif not (dependency.done() or self._is_there(dependency, backend)):
                return False
        return True

    def reference(self, future: asyncio.Future[Any]) -> Reference | None:
        """Return the reference for a dependency of a pushed task.

        For a failed dependency, the backend does not know the reference, and therefore fails the
        task with `ReferenceLostError`.

        Returns:
            The reference; `None` if the value of the dependency is in this process.
        """
        holder = held(future)
        if holder is not None:
            return Reference(holder.uid)
        if future.done() and not future.cancelled() and future.exception() is None:
            return None
        record = record_of(future)
        uid = "" if record is None else record.attempt.uid
        return Reference(uid or "a task that failed")

    def references(self, record: TaskRecord) -> list[str]:
        """Return the uids of the dependencies that a pushed task receives as references."""
        found = (self.reference(future) for future in record.call.dependencies)
        return [reference.uid for reference in found if reference is not None]

    def _hopeless(self, record: TaskRecord) -> bool:
        """Return True if a dependency has failed or was canceled."""
        return any(
            d.done() and (d.cancelled() or d.exception() is not None)
            for d in self.with_values(record)
        )

    # Values that stay with backends.

    def hold(self, record: TaskRecord, report: Mapping[str, Any]) -> bool:
        """Leave a finished task's value with its backend; return False if that is not possible."""
        task = record.call.task
        if task.kind != "function" or task.settings.service:
            return False
        if report.get("return_value") is not None:
            return False
        if (usage := report.get("usage")) is not None:
            record.note_outcome(
                AttemptInfo(
                    record.attempt.uid, backend=record.submitted_to, name=task.name, usage=usage
                )
            )
        future, holder = record.future, RemoteResult(self, record, report)
        self.holds = True
        self._held.add(holder)
        replace_link(future, record, holder)
        if type(future) is not RemoteFuture or future._callbacks:
            holder.request()  # something already waits for the value
        return True

    def is_held(self, dependency: asyncio.Future[Any]) -> bool:
        """Return True if a backend of this engine holds the value of a dependency."""
        holder = held(dependency)
        return holder is not None and holder.pushdown is self

    def is_at_rest(self, dependency: asyncio.Future[Any]) -> bool:
        """Return True if a backend holds the value of a dependency and nothing has requested it."""
        holder = held(dependency)
        return holder is not None and not holder.requested

    def with_values(self, record: TaskRecord) -> Sequence[asyncio.Future[Any]]:
        """Return the dependencies of a task except those whose values are held by a backend."""
        if not self.holds:
            return record.call.dependencies
        return [dependency for dependency in record.call.dependencies if held(dependency) is None]

    def needs_values(self, record: TaskRecord) -> bool:
        """Return True if values that backends hold must be fetched before a task is ready.

        If the task's own backend holds all these values, they stay there, and the task is marked as
        pushed so that it receives references.
        """
        if not self.holds:
            return False
        backends = {
            holder.backend for d in record.call.dependencies if (holder := held(d)) is not None
        }
        if len(backends) == 1 and self._takes_part(record, next(iter(backends))):
            record.pushed = True
            return False
        return bool(backends)

    def remote(self, record: TaskRecord) -> list[asyncio.Future[Any]]:
        """Return those dependencies of a task whose values are held by a backend."""
        return [
            dependency for dependency in record.call.dependencies if held(dependency) is not None
        ]

    def recording(self, fetch: asyncio.Task[None]) -> None:
        """Let `drain` wait for an asyncio task that fetches and records a value."""
        self._recording.add(fetch)
        fetch.add_done_callback(self._recording.discard)

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for values that are being fetched in order to record them."""
        if self._recording:
            await asyncio.wait(self._recording, timeout=grace)

    def close(self) -> None:
        """Settle the futures of values that are still held when the engine shuts down."""
        for holder in tuple(self._held):
            holder.close()

    def lose(self, future: TaskFuture[Any], error: BaseException) -> None:
        """Fail a future whose value its backend has lost."""
        self._stats.lost += 1
        future.fail(error)
        self._unawaited.watch(future)

    # Selection of tasks.

    def _is_there(
        self, dependency: asyncio.Future[Any], backend: BackendHandle, *, sent: bool = False
    ) -> bool:
        record = record_of(dependency)
        return (
            record is not None
            and record.attempt.backend is backend
            and record.state.future is FutureState.PENDING
            and record.state.work in _WITH_BACKEND
            and not (sent and record.state.work is WorkState.READY)
            and self._takes_part(record, backend)
        )

    def _takes_part(self, record: TaskRecord, backend: BackendHandle) -> bool:
        task, found = record.call.task, record.call.found
        if task.pushable is None or task.pushable[0] is not backend:
            task.pushable = backend, self._is_plain(task, backend)
        if not task.pushable[1] or type(record.future) is not RemoteFuture:
            return False
        return found is None or not (
            found.inputs or found.outputs or found.inexact or found.has_open_handles
        )

    def _is_plain(self, task: TaskFunction[Any, Any], backend: BackendHandle) -> bool:
        settings = task.settings
        return (
            self._allowed
            and task.kind == "function"
            and not settings.service
            and settings.retries is None
            and not settings.other_backends
            and settings.timeout is None
            and not settings.after
            and not settings.limit
            and settings.fallback is NO_FALLBACK
            and settings.capture != "files"
            and self._of(task) is backend
        )

    def _of(self, task: TaskFunction[Any, Any]) -> BackendHandle:
        """Return the backend in a task's settings, or the default one."""
        name = task.settings.backend
        return next(iter(self._backends.values())) if name is None else self._backends[name]
