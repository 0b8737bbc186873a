"""What waits for what: edges between tasks, and those who wait for many of them at once.

It moves no task itself: it tells the scheduler of those that may begin, or have failed or were
cancelled with what they wait for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from rhapsody.engine import error_messages
from rhapsody.engine.actions import Actions, HeldValues
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.states import OVER, FutureState, WorkState
from rhapsody.task import TaskFuture

T = TypeVar("T")


class SerialQueue(Generic[T]):
    """Handles items one after the other, also those that are put meanwhile.

    A queue instead of recursion: chains may be a hundred thousand long.

    Args:
        handle: Called with each item.
    """

    def __init__(self, handle: Callable[[T], object]) -> None:
        self._handle = handle
        self._items: deque[T] = deque()
        self._handling = False

    def put(self, item: T) -> None:
        """Handles an item, after those before it."""
        self._items.append(item)
        if self._handling:
            return
        self._handling = True
        try:
            while self._items:
                self._handle(self._items.popleft())
        finally:
            self._handling = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Handles what is put meanwhile when all of it is there."""
        outer, self._handling = self._handling, True
        try:
            yield
        finally:
            self._handling = outer
            if self._items and not outer:
                self.put(self._items.pop())


class Decider(Protocol):
    """What the graph tells of tasks whose dependencies have ended; the scheduler."""

    def begin(self, record: TaskRecord) -> None:
        """They have ended well, and the task has all of their values."""

    def fail(self, record: TaskRecord, error: BaseException) -> None:
        """One of them failed."""

    def cancel(self, record: TaskRecord, msg: Any = None) -> bool:
        """One of them was cancelled."""


class Graph:
    """The unfinished tasks of one scheduler and the edges between them.

    Args:
        scheduler: Is told what becomes of a task, and its own tasks are known by it.

    Attributes:
        actions: Follows futures that are not the engine's.
        held: Values that stay with backends.
        live: What has not ended.
        joins: Those who wait for many tasks, each with what it still waits for.
    """

    def __init__(self, scheduler: Decider) -> None:
        self.actions: Actions
        self.held: HeldValues
        self._scheduler = scheduler
        self._settled = SerialQueue(self._tell_dependents)
        self.live: set[TaskRecord] = set()
        self.joins: list[tuple[set[TaskRecord], Callable[[], object]]] = []

    def _own(self, dependency: Any) -> TaskRecord | None:
        record = getattr(dependency, "_node", None)
        return (
            record
            if isinstance(record, TaskRecord) and record.scheduler is self._scheduler
            else None
        )

    def link(self, record: TaskRecord) -> None:
        """Has a task wait for those of its dependencies that have not ended."""
        held, cancelled = self.held, False
        for dependency in record.dependencies:
            if held.holds and held.is_held(dependency):
                continue
            if dependency.done():
                cancelled = cancelled or dependency.cancelled()
                continue
            record.unfinished += 1
            other = self._own(dependency)
            if other is None:
                self.actions.follow(record, dependency)
            elif other.dependents is None:
                other.dependents = {record: None}
            else:
                other.dependents[record] = None
        if cancelled:
            self._scheduler.cancel(record)
        elif record.unfinished == 0:
            self._resolve(record)
        else:
            held.follow(record)

    def _unlink(self, record: TaskRecord) -> None:
        for dependency in record.dependencies:
            if self.held.is_at_rest(dependency) or dependency.done():
                continue
            other = self._own(dependency)
            if other is None:
                self.actions.unfollow(record, dependency)
            elif other.dependents is not None:
                other.dependents.pop(record, None)

    def foreign_done(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """A future that a task waits for, and that is not ours, is done."""
        if record.life.work is WorkState.WAITING:
            self._dependency_settled(record, dependency)
        elif record.pushed:
            self.held.dependency_settled(record, dependency)

    def settle(self, record: TaskRecord) -> None:
        """A task's future is settled: tells who waits, and closes it if its work has ended."""
        if record.dependents is not None:
            self._settled.put(record)
        for join in tuple(self.joins) if self.joins else ():
            join[0].discard(record)
            if not join[0]:
                self.forget(join)
                join[1]()
        if record.life.work in OVER:
            self._close(record)

    def _close(self, record: TaskRecord) -> None:
        """Lets go of all that a task held that has ended."""
        self.live.discard(record)
        if record.description is not None and "sandbox" in record.description:
            self.actions.leave(record)
        if record.future._node is record:
            record.future._node = None
        if record.unfinished:
            self._unlink(record)
        record.dependencies, record.found = (), None
        if record.parent is not None:
            if record.parent.extra is not None:
                record.parent.extra.children.pop(record, None)
            record.parent = None
        record.args = ()
        record.kwargs = record.description = record.specific = None

    def _tell_dependents(self, record: TaskRecord) -> None:
        dependents, record.dependents = record.dependents, None
        for dependent in dependents or ():
            if dependent.life.work is WorkState.WAITING:
                self._dependency_settled(dependent, record.future)
            elif dependent.pushed:
                self.held.dependency_settled(dependent, record.future)

    def _dependency_settled(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        record.unfinished -= 1
        if dependency.cancelled():
            name = error_messages.future_name(dependency)
            self._scheduler.cancel(record, f"its dependency {name!r} was cancelled")
        elif record.unfinished == 0:
            self._resolve(record)

    def _resolve(self, record: TaskRecord) -> None:
        """The last dependency has ended: the task is ready, or fails with them."""
        if not (self.fail_with_dependencies(record) or self.held.needs_values(record)):
            self._scheduler.begin(record)

    def fail_with_dependencies(self, record: TaskRecord) -> bool:
        """Fails a task whose dependencies have ended where one of them failed."""
        ended = self.held.with_values(record)
        failed = [
            d  # `exception` of ours takes a call more; one that has failed is of another class
            for d in ended
            if not d.cancelled()
            and (d._exception if type(d) is TaskFuture else d.exception()) is not None
        ]
        if failed:
            self._scheduler.fail(record, error_messages.of_dependencies(record, failed))
        return bool(failed)

    # Who waits for many.

    def pending(self) -> set[TaskRecord]:
        """The tasks whose futures are not settled."""
        return {record for record in self.live if record.life.future is FutureState.PENDING}

    def when_settled(self, records: Iterable[TaskRecord], call: Callable[[], object]) -> object:
        """Calls back once the futures of these tasks are settled.

        Returns:
            What `forget` takes.
        """
        join = (set(records), call)
        self.joins.append(join)
        return join

    def forget(self, join: Any) -> None:
        """Takes `when_settled` back; twice is harmless."""
        if join in self.joins:
            self.joins.remove(join)
