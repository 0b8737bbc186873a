"""Values that stay with a backend, and tasks that go there before they have theirs.

Where a backend can wait for dependencies itself, a task whose unfinished dependencies are all
with it goes there at once, with references in place of their values, so that values need not
come here and go back. Those values stay there until somebody else needs them. Only plain
function tasks take part; all others wait in the graph.

The future of a task whose value is held is pending for asyncio, since it has no result yet.
Whoever waits for it, or looks whether it is done, has the value brought.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from rhapsody.aio import on_loop
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.background import Background
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.engine.states import FutureState, WorkState
from rhapsody.engine.task_function import TaskFunction
from rhapsody.errors import BackendUnavailableError, TaskLostError, is_a
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, HeldValue, Reference, TaskFuture

T = TypeVar("T")

_WITH_BACKEND = (WorkState.READY, WorkState.SUBMITTING, WorkState.SUBMITTED, WorkState.RUNNING)


class RemoteFuture(TaskFuture[T]):
    """A future whose value nobody has asked for. The first who does makes it a usual one."""

    __slots__ = ()

    def done(self) -> bool:
        """Has the value brought; it is not here yet."""
        _ask(self)
        return False

    def result(self) -> T:
        """Has the value brought.

        Raises:
            asyncio.InvalidStateError: Always, for it is not here yet.
        """
        raise _ask(self)

    def exception(self) -> BaseException | None:
        """Has the value brought.

        Raises:
            asyncio.InvalidStateError: Always, for it is not here yet.
        """
        raise _ask(self)

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Any = None) -> None:
        """Has the value brought; `fn` is called when it is here."""
        super().add_done_callback(fn, context=context)
        _ask(self)


def _ask(future: RemoteFuture[Any]) -> asyncio.InvalidStateError:
    """Has a value brought; gives the error for whom that is too late."""
    record = future._node
    if type(record) is RemoteResult:
        record.ask()
    return asyncio.InvalidStateError(
        f"the value of {future.uid} ({future.name!r}) is still with its backend: await the future"
    )


class RemoteResult:
    """What stands behind a future in the place of its task (`rhapsody.task.LiveNode`).

    The future holds it and is not held by it, so that the value goes with the last
    who holds the future.

    Args:
        values: Those that backends hold for the engine.
        record: The task.
        value: The value with the backend.
    """

    __slots__ = ("__weakref__", "_bringing", "_future", "_value", "backend", "uid", "values")

    def __init__(self, values: PushDown, record: TaskRecord, value: HeldValue) -> None:
        self.backend: BackendHandle = record.backend
        self.uid: str = record.uid
        self.values: PushDown = values
        self._value = value
        self._future = weakref.ref(record.future)
        self._bringing: asyncio.Task[None] | None = None

    # What the future asks.

    @property
    def started(self) -> None:
        """`None`: it does not run any more."""

    def public_state(self) -> TasksMainStates:
        """The task is done, wherever its value is."""
        return TasksMainStates.DONE

    def cancel(self, msg: Any) -> bool:
        """Cancels the wait for the value; `False` where nobody waits, for the task is done."""
        return on_loop(self.values.background.loop, partial(self._cancel, msg))

    async def wait_ended(self) -> None:
        """The work has ended."""

    def describe(self) -> None:
        """The description is gone with the work."""

    # Bringing the value.

    def ask(self) -> None:
        """Somebody needs the value: has it brought, once. Any thread."""
        if running_loop() is self.values.background.loop:
            self._bring_once()
        else:
            self.values.background.soon_from_anywhere(self._bring_once)

    def close(self) -> None:
        """The engine ends: a value that is on its way is given up, and so is one that is not."""
        future = self._future()
        if future is None or self._bringing is not None:
            self._cancel(None)
            return
        error = BackendUnavailableError(
            f"the value of {future.uid} ({future.name!r}) stayed with backend "
            f"{self.backend.name!r}, and nobody had asked for it when the engine was shut down: "
            "await the future before, or make the engine with push_down=False"
        )
        self._let_go(future)
        future.fail(error)
        future._log_traceback = False  # nobody waits for it, most likely

    def _bring_once(self) -> None:
        future = self._future()
        if future is None or self._bringing is not None or future._node is not self:
            return
        _make_usual(future)
        self._bringing = self.values.background.spawn(self._bring(future), f"value of {self.uid}")

    async def _bring(self, future: TaskFuture[Any]) -> None:
        error: BaseException | None
        try:
            task = await self._value.fetch()
        except Exception as problem:  # a backend's fault: this value alone is lost
            task, error = {}, problem
        else:
            error = task.get("exception")
        if error is None and "return_value" not in task:
            error = TaskLostError("nothing came")
        if is_a(error, TaskLostError):
            error = self._lost_error(future, error)
        self._let_go(future)
        if future.done():
            return  # cancelled meanwhile
        if error is not None:
            self.values.value_lost(future, error)
            return
        stdout, stderr = task.get("stdout"), task.get("stderr")
        if stdout is not None or stderr is not None:
            future._outcome = AttemptInfo(
                uid=self.uid, stdout=stdout, stderr=stderr, backend=future._backend
            )
        future.set_result(task["return_value"])

    def _lost_error(self, future: TaskFuture[Any], cause: TaskLostError) -> TaskLostError:
        error = TaskLostError(
            f"the value of {future.uid} ({future.name!r}) stayed with backend "
            f"{self.backend.name!r} and was lost there: {cause}; with push_down=False each value "
            "comes here when its task is done"
        )
        error.__cause__ = cause
        return error

    def _cancel(self, msg: Any) -> bool:
        future, bringing = self._future(), self._bringing
        if future is None or bringing is None or future._node is not self:
            return False
        self._let_go(future)
        bringing.cancel()
        return future.set_cancelled(msg)

    def _let_go(self, future: TaskFuture[Any]) -> None:
        _make_usual(future)
        if future._node is self:
            future._node = None


def _make_usual(future: Any) -> None:
    if type(future) is RemoteFuture:
        future.__class__ = TaskFuture  # type: ignore[assignment]


def held(future: asyncio.Future[Any]) -> RemoteResult | None:
    """What holds a future's value, `None` where it is here or yet to be made."""
    if isinstance(future, TaskFuture):
        record: Any = future._node
        if type(record) is RemoteResult:
            return record
    return None


class PushDown:
    """What is pushed down in one engine.

    Args:
        background: Runs the fetching of values.
        backends: The attached backends, the default one first; may grow.
        plain: Whether tasks that say nothing of their own may take part: a default time-out
            or retries, or a plugin that looks at each task, keeps them all in the graph.
        wanted: `False` pushes nothing down.
        value_lost: Called with a future whose value is lost, and the error to set.

    Attributes:
        holds: A backend has held a value for this engine.
    """

    def __init__(
        self,
        background: Background,
        backends: Mapping[str, BackendHandle],
        *,
        plain: bool,
        wanted: bool,
        value_lost: Callable[[TaskFuture[Any], BaseException], object],
    ) -> None:
        self.background: Background = background
        self._backends = backends
        self._plain = plain
        self._wanted = wanted
        self.value_lost: Callable[[TaskFuture[Any], BaseException], object] = value_lost
        self._held: weakref.WeakSet[RemoteResult] = weakref.WeakSet()
        self.holds: bool = False

    # Tasks to the backend.

    def followers(self, record: TaskRecord, backend: BackendHandle) -> Iterator[TaskRecord]:
        """Yield the dependents of a task in the next batch that may be sent right after it."""
        dependents = record.dependents
        if not dependents or not self._wanted or not backend.capabilities.unfinished_dependencies:
            return
        if record.attempt != 1 or not self._takes_part(record, backend):
            return
        for dependent in dependents:
            if dependent.state.work is not WorkState.WAITING:
                continue
            dependent.unsent += 1
            if dependent.unsent >= dependent.unfinished and self._may_go(dependent, backend):
                yield dependent

    def may_follow(self, record: TaskRecord) -> bool:
        """Return whether a new task may be sent now, because its backend has its dependencies."""
        if not self._wanted:
            return False
        backend = self._of(record.task)
        if not backend.capabilities.unfinished_dependencies:
            return False
        record.unsent = sum(self._is_there(d, backend, sent=True) for d in record.dependencies)
        return record.unsent >= record.unfinished and self._may_go(record, backend)

    def _may_go(self, record: TaskRecord, backend: BackendHandle) -> bool:
        """Return whether the backend has each dependency, or the dependency's value is here."""
        if not self._takes_part(record, backend) or self._hopeless(record):
            return False
        for dependency in record.dependencies:
            holder = held(dependency)
            if holder is not None:
                if holder.backend is not backend:
                    return False
            elif not (dependency.done() or self._is_there(dependency, backend)):
                return False
        return True

    def reference(self, future: asyncio.Future[Any]) -> Reference | None:
        """What stands for a dependency of a pushed task, `None` where its value is here.

        One that has failed meanwhile has a reference that no backend knows, so that
        the task comes back.
        """
        holder = held(future)
        if holder is not None:
            return Reference(holder.uid)
        if future.done() and not future.cancelled() and future.exception() is None:
            return None
        record = future._node if isinstance(future, TaskFuture) else None
        return Reference(getattr(record, "uid", None) or "a task that failed")

    def references(self, record: TaskRecord) -> list[str]:
        """The uids in the references of a pushed task's arguments."""
        found = (self.reference(future) for future in record.dependencies)
        return [reference.uid for reference in found if reference is not None]

    def _hopeless(self, record: TaskRecord) -> bool:
        """Whether a dependency has failed already."""
        return any(
            d.done() and (d.cancelled() or d.exception() is not None)
            for d in self.with_values(record)
        )

    # Values that stay there.

    def hold(self, record: TaskRecord, report: Mapping[str, Any]) -> bool:
        """Whether a task that is done leaves its value with its backend until somebody asks."""
        task = record.task
        if task.kind != "function" or task.settings.service:
            return False
        if report.get("return_value") is not None:
            return False
        future, holder = record.future, RemoteResult(self, record, report["held"])
        self.holds = True
        self._held.add(holder)
        future._node = holder
        if type(future) is not TaskFuture or future._callbacks:
            holder.ask()  # somebody waits already
        else:
            future.__class__ = RemoteFuture
        return True

    def is_held(self, dependency: asyncio.Future[Any]) -> bool:
        """Whether a dependency has ended, and a backend of this engine holds its value."""
        holder = held(dependency)
        return holder is not None and holder.values is self

    def is_at_rest(self, dependency: asyncio.Future[Any]) -> bool:
        """Whether a value stays with a backend and nobody has asked for it."""
        return type(dependency) is RemoteFuture

    def with_values(self, record: TaskRecord) -> Sequence[asyncio.Future[Any]]:
        """A task's dependencies without those whose values are held."""
        if not self.holds:
            return record.dependencies
        return [dependency for dependency in record.dependencies if held(dependency) is None]

    def needs_values(self, record: TaskRecord) -> bool:
        """Return whether values that backends hold must be fetched before a task is ready.

        Where the task's own backend holds them all, they stay there and the task gets references.
        """
        if not self.holds:
            return False
        backends = {holder.backend for d in record.dependencies if (holder := held(d)) is not None}
        if len(backends) == 1 and self._takes_part(record, next(iter(backends))):
            record.pushed = True
            return False
        return bool(backends)

    def remote(self, record: TaskRecord) -> list[asyncio.Future[Any]]:
        """Return the dependencies of a task whose values backends hold."""
        return [dependency for dependency in record.dependencies if held(dependency) is not None]

    def close(self) -> None:
        """The engine ends: no value comes any more."""
        for holder in tuple(self._held):
            holder.close()

    # Which tasks take part.

    def _is_there(
        self, dependency: asyncio.Future[Any], backend: BackendHandle, *, sent: bool = False
    ) -> bool:
        if not isinstance(dependency, TaskFuture) or held(dependency) is not None:
            return False
        record = dependency._node
        return (
            isinstance(record, TaskRecord)
            and getattr(record, "backend", None) is backend  # unset until one has been chosen
            and record.state.future is FutureState.PENDING
            and record.state.work in _WITH_BACKEND
            and not (sent and record.state.work is WorkState.READY)
            and self._takes_part(record, backend)
        )

    def _takes_part(self, record: TaskRecord, backend: BackendHandle) -> bool:
        task, found = record.task, record.found
        if task.pushable is None or task.pushable[0] is not backend:
            task.pushable = backend, self._is_plain(task, backend)
        if not task.pushable[1] or type(record.future) is not TaskFuture:
            return False
        return found is None or not (found.inputs or found.outputs or found.inexact)

    def _is_plain(self, task: TaskFunction[Any, Any], backend: BackendHandle) -> bool:
        settings = task.settings
        return (
            self._plain
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
        """The backend of a task."""
        name = task.settings.backend
        return next(iter(self._backends.values())) if name is None else self._backends[name]
