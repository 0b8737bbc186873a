"""What waits for what: edges between nodes, and those who wait for many of them at once.

It moves no node itself: it tells the machine of those that may begin, or have failed or were
cancelled with what they wait for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from rhapsody.engine import failures
from rhapsody.engine.actions import Actions, HeldValues
from rhapsody.engine.life import OVER, Future, Work
from rhapsody.engine.node import Node
from rhapsody.task import TaskFuture

T = TypeVar("T")


class InTurn(Generic[T]):
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
    """What the graph tells of nodes whose dependencies have ended; the machine."""

    def begin(self, node: Node) -> None:
        """They have ended well, and the node has all of their values."""

    def fail(self, node: Node, error: BaseException) -> None:
        """One of them failed."""

    def cancel(self, node: Node, msg: Any = None) -> bool:
        """One of them was cancelled."""


class Graph:
    """The unfinished nodes of one machine and the edges between them.

    Args:
        machine: Is told what becomes of a node, and its own nodes are known by it.

    Attributes:
        actions: Follows futures that are not the engine's.
        held: Values that stay with backends.
        live: What has not ended.
        joins: Those who wait for many nodes, each with what it still waits for.
    """

    def __init__(self, machine: Decider) -> None:
        self.actions: Actions
        self.held: HeldValues
        self._machine = machine
        self._settled = InTurn(self._tell_dependents)
        self.live: set[Node] = set()
        self.joins: list[tuple[set[Node], Callable[[], object]]] = []

    def _own(self, dependency: Any) -> Node | None:
        node = getattr(dependency, "_node", None)
        return node if isinstance(node, Node) and node.machine is self._machine else None

    def link(self, node: Node) -> None:
        """Has a node wait for those of its dependencies that have not ended."""
        held, cancelled = self.held, False
        for dependency in node.dependencies:
            if held.holds and held.is_held(dependency):
                continue
            if dependency.done():
                cancelled = cancelled or dependency.cancelled()
                continue
            node.unfinished += 1
            other = self._own(dependency)
            if other is None:
                self.actions.follow(node, dependency)
            elif other.dependents is None:
                other.dependents = {node: None}
            else:
                other.dependents[node] = None
        if cancelled:
            self._machine.cancel(node)
        elif node.unfinished == 0:
            self._resolve(node)
        else:
            held.follow(node)

    def _unlink(self, node: Node) -> None:
        for dependency in node.dependencies:
            if self.held.is_at_rest(dependency) or dependency.done():
                continue
            other = self._own(dependency)
            if other is None:
                self.actions.unfollow(node, dependency)
            elif other.dependents is not None:
                other.dependents.pop(node, None)

    def foreign_done(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        """A future that a node waits for, and that is not ours, is done."""
        if node.life.work is Work.WAITING:
            self._dependency_settled(node, dependency)
        elif node.pushed:
            self.held.dependency_settled(node, dependency)

    def settle(self, node: Node) -> None:
        """A node's future is settled: tells who waits, and closes it if its work has ended."""
        if node.dependents is not None:
            self._settled.put(node)
        for join in tuple(self.joins) if self.joins else ():
            join[0].discard(node)
            if not join[0]:
                self.forget(join)
                join[1]()
        if node.life.work in OVER:
            self._close(node)

    def _close(self, node: Node) -> None:
        """Lets go of all that a node held that has ended."""
        self.live.discard(node)
        if node.description is not None and "sandbox" in node.description:
            self.actions.leave(node)
        if node.future._node is node:
            node.future._node = None
        if node.unfinished:
            self._unlink(node)
        node.dependencies, node.found = (), None
        if node.parent is not None:
            if node.parent.extra is not None:
                node.parent.extra.children.pop(node, None)
            node.parent = None
        node.args = ()
        node.kwargs = node.description = node.specific = None

    def _tell_dependents(self, node: Node) -> None:
        dependents, node.dependents = node.dependents, None
        for dependent in dependents or ():
            if dependent.life.work is Work.WAITING:
                self._dependency_settled(dependent, node.future)
            elif dependent.pushed:
                self.held.dependency_settled(dependent, node.future)

    def _dependency_settled(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        node.unfinished -= 1
        if dependency.cancelled():
            name = failures.future_name(dependency)
            self._machine.cancel(node, f"its dependency {name!r} was cancelled")
        elif node.unfinished == 0:
            self._resolve(node)

    def _resolve(self, node: Node) -> None:
        """The last dependency has ended: the node is ready, or fails with them."""
        if not (self.fail_with_dependencies(node) or self.held.needs_values(node)):
            self._machine.begin(node)

    def fail_with_dependencies(self, node: Node) -> bool:
        """Fails a node whose dependencies have ended where one of them failed."""
        ended = self.held.with_values(node)
        failed = [
            d  # `exception` of ours takes a call more; one that has failed is of another class
            for d in ended
            if not d.cancelled()
            and (d._exception if type(d) is TaskFuture else d.exception()) is not None
        ]
        if failed:
            self._machine.fail(node, failures.of_dependencies(node, failed))
        return bool(failed)

    # Who waits for many.

    def pending(self) -> set[Node]:
        """The nodes whose futures are not settled."""
        return {node for node in self.live if node.life.future is Future.PENDING}

    def when_settled(self, nodes: Iterable[Node], call: Callable[[], object]) -> object:
        """Calls back once the futures of these nodes are settled.

        Returns:
            What `forget` takes.
        """
        join = (set(nodes), call)
        self.joins.append(join)
        return join

    def forget(self, join: Any) -> None:
        """Takes `when_settled` back; twice is harmless."""
        if join in self.joins:
            self.joins.remove(join)
