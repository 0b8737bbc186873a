"""Named limits: how many tasks may run at once under a name such as `licence:2`."""

from __future__ import annotations

from collections import deque

from rhapsody.engine.record import TaskRecord
from rhapsody.engine.states import WorkState

Limit = tuple[tuple[str, int], ...]


class Limits:
    """The named limits of one engine, and the tasks that wait for room under them."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._waiting: dict[str, deque[TaskRecord]] = {}

    def declare(self, limits: Limit) -> None:
        """Notes the size of each limit.

        Raises:
            ValueError: The name is known with another size.
        """
        for name, size in limits:
            known = self._sizes.setdefault(name, size)
            if known != size:
                raise ValueError(
                    f"limit {name!r} is {known} elsewhere in this engine, got {name}:{size}"
                )

    def take(self, record: TaskRecord, limits: Limit) -> bool:
        """Takes a place under each limit, or puts the task into a waiting list."""
        if record.limits:
            return True  # taken for it when a place became free
        full = self._full(limits)
        if full is not None:
            self._waiting.setdefault(full, deque()).append(record)
            return False
        self._occupy(record, limits)
        return True

    def give_back(self, record: TaskRecord) -> list[TaskRecord]:
        """Gives the task's places back; returns the tasks that now have theirs."""
        limits, record.limits = record.limits, ()
        for name, _ in limits:
            self._used[name] -= 1
        admitted: list[TaskRecord] = []
        for name, _ in limits:
            waiting = self._waiting.get(name)
            while waiting and self._used[name] < self._sizes[name]:
                other = waiting.popleft()
                if other.state.work is not WorkState.READY:
                    continue  # cancelled while it waited
                wanted = other.task.settings.limit
                full = self._full(wanted)
                if full is None:
                    self._occupy(other, wanted)
                    admitted.append(other)
                else:
                    self._waiting.setdefault(full, deque()).append(other)
        return admitted

    def _full(self, limits: Limit) -> str | None:
        for name, size in limits:
            if self._used.get(name, 0) >= size:
                return name
        return None

    def _occupy(self, record: TaskRecord, limits: Limit) -> None:
        for name, _ in limits:
            self._used[name] = self._used.get(name, 0) + 1
        record.limits = limits
