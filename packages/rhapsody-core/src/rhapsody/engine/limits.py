"""Named limits: how many tasks may run at once under a name such as `licence:2`."""

from __future__ import annotations

from collections import deque

from rhapsody.engine.life import Work
from rhapsody.engine.node import Node

Limit = tuple[tuple[str, int], ...]


class Limits:
    """The named limits of one engine, and the tasks that wait for room under them."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._waiting: dict[str, deque[Node]] = {}

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

    def take(self, node: Node, limits: Limit) -> bool:
        """Takes a place under each limit, or puts the node into a waiting list."""
        if node.more().limits:
            return True  # taken for it when a place became free
        full = self._full(limits)
        if full is not None:
            self._waiting.setdefault(full, deque()).append(node)
            return False
        self._occupy(node, limits)
        return True

    def give_back(self, node: Node) -> list[Node]:
        """Gives the node's places back; returns the nodes that now have theirs."""
        if node.extra is None or not node.extra.limits:
            return []
        limits, node.extra.limits = node.extra.limits, ()
        for name, _ in limits:
            self._used[name] -= 1
        admitted: list[Node] = []
        for name, _ in limits:
            waiting = self._waiting.get(name)
            while waiting and self._used[name] < self._sizes[name]:
                other = waiting.popleft()
                if other.life.work is not Work.READY:
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

    def _occupy(self, node: Node, limits: Limit) -> None:
        for name, _ in limits:
            self._used[name] = self._used.get(name, 0) + 1
        node.more().limits = limits
