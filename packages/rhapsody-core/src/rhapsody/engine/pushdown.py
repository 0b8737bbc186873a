"""Hands tasks to a backend before their dependencies are finished, where it can wait itself.

A task whose unfinished dependencies are all with the same backend goes there at
once, with references in place of their values, so that values need not come here
and go back. Those values stay there until somebody else needs them; see `held`.
Only plain function tasks take part; all others wait in the graph.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.engine.held import Held, HeldFuture, held
from rhapsody.engine.life import Event, Future, Work
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.states import TasksMainStates
from rhapsody.task import HeldValue, Reference, TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime
    from rhapsody.engine.tasks import Task

_WITH_BACKEND = (Work.READY, Work.SUBMITTING, Work.SUBMITTED, Work.RUNNING)


class PushDown:
    """What is pushed down in one engine.

    Args:
        runtime: The engine's runtime.
        wanted: `False` pushes nothing down.

    Attributes:
        holds: A backend has held a value for this engine.
    """

    def __init__(self, runtime: Runtime, wanted: bool) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()
        self.holds: bool = False

    # Tasks to the backend.

    def offer(self, node: Node, lane: Lane) -> None:
        """A node is in the lane's next batch: those that wait for it may follow at once."""
        dependents = node.dependents
        if not dependents or not self._wanted or not lane.capabilities.unfinished_dependencies:
            return
        if node.attempt != 1 or not self._takes_part(node, lane):
            return
        for dependent in dependents:
            if dependent.life.work is not Work.WAITING:
                continue
            dependent.unsent += 1
            if dependent.unsent >= dependent.unfinished:
                self._push(dependent, lane)

    def follow(self, node: Node) -> None:
        """A new node waits for others: it goes to its backend where that has them all."""
        runtime, name = self._runtime, node.task.settings.backend
        lane = runtime.default if name is None else runtime.lanes[name]
        if lane is None or not self._wanted or not lane.capabilities.unfinished_dependencies:
            return
        node.unsent = sum(self._is_there(d, lane, sent=True) for d in node.dependencies)
        if node.unsent >= node.unfinished:
            self._push(node, lane)

    def _push(self, node: Node, lane: Lane) -> None:
        if not self._takes_part(node, lane) or self._hopeless(node):
            return
        for dependency in node.dependencies:
            holder = held(dependency)
            if holder is not None:
                if holder.lane is not lane:
                    return
            elif not (dependency.done() or self._is_there(dependency, lane)):
                return
        node.pushed = True
        node.step(Event.RESOLVE)
        lane.push(node)

    def reference(self, future: asyncio.Future[Any]) -> Reference | None:
        """What stands for a dependency of a pushed node, `None` where its value is here.

        One that has failed meanwhile has a reference that no backend knows, so that
        the node comes back.
        """
        holder = held(future)
        if holder is not None:
            return Reference(holder.uid)
        if future.done() and not future.cancelled() and future.exception() is None:
            return None
        node = future._node if isinstance(future, TaskFuture) else None
        return Reference(getattr(node, "uid", None) or "a task that failed")

    def references(self, node: Node) -> list[str]:
        """The uids in the references of a pushed node's arguments."""
        found = (self.reference(future) for future in node.dependencies)
        return [reference.uid for reference in found if reference is not None]

    def take_back(self, node: Node) -> bool:
        """The backend did not run a pushed node: a dependency has no value. Any attempt.

        It fails or runs in the ordinary way once its dependencies have ended.
        """
        if not node.pushed or node.life.future is not Future.PENDING:
            return False
        if not node.step(Event.RETRY):
            return False
        node.stage = 0
        node.description = None
        if node.unfinished == 0:
            self._resume(node)
        return True

    def dependency_settled(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        """A dependency of a pushed node has ended."""
        node.unfinished -= 1
        if dependency.cancelled():
            self._runtime.graph.cancel(node)
        elif node.unfinished == 0 and node.life.work is Work.RETRY_WAIT:
            self._resume(node)

    def _resume(self, node: Node) -> None:
        graph = self._runtime.graph
        if any(dependency.cancelled() for dependency in node.dependencies):
            graph.cancel(node)
        elif graph.fail_with_dependencies(node) or self._ask_for_values(node):
            return
        elif node.step(Event.DUE):
            node.pushed = False
            self._runtime.route(node)

    def _hopeless(self, node: Node) -> bool:
        """Whether a dependency has failed already."""
        return any(
            d.done() and (d.cancelled() or d.exception() is not None)
            for d in self.with_values(node)
        )

    # Values that stay there.

    def hold(self, node: Node, value: HeldValue) -> None:
        """A node's task is done, and its value stays with its backend until somebody asks."""
        runtime, future = self._runtime, node.future
        if not node.step(Event.DONE):
            runtime.stats.late += 1
            return
        runtime.stats.done += 1
        holder = Held(runtime, node, value)
        self.holds = True
        self._held.add(holder)
        future._node = holder
        if type(future) is not TaskFuture or future._callbacks:
            holder.ask()  # somebody waits already
        else:
            future.__class__ = HeldFuture
        if runtime.observed:
            runtime.observe(node, TasksMainStates.DONE)
        runtime.graph.settled(node)

    def is_held(self, dependency: asyncio.Future[Any]) -> bool:
        """Whether a dependency has ended, and a backend of this engine holds its value."""
        holder = held(dependency)
        return holder is not None and holder.runtime is self._runtime

    def with_values(self, node: Node) -> Sequence[asyncio.Future[Any]]:
        """A node's dependencies without those whose values are held."""
        if not self.holds:
            return node.dependencies
        return [dependency for dependency in node.dependencies if held(dependency) is None]

    def needs_values(self, node: Node) -> bool:
        """Whether a node whose dependencies have ended well has to wait for values to come.

        Where its own backend holds them all, they stay: the node gets references.
        """
        if not self.holds:
            return False
        lanes = {holder.lane for d in node.dependencies if (holder := held(d)) is not None}
        if len(lanes) == 1 and self._takes_part(node, lane := lanes.pop()):
            assert lane.capabilities.unfinished_dependencies
            node.pushed = True
            return False
        return self._ask_for_values(node)

    def _ask_for_values(self, node: Node) -> bool:
        """Asks for the values that a node needs; `False` where all are here."""
        for dependency in node.dependencies:
            if held(dependency) is not None:
                node.unfinished += 1
                dependency.add_done_callback(node.dependency_done)
        return node.unfinished > 0

    def close(self) -> None:
        """The engine ends: no value comes any more."""
        for holder in tuple(self._held):
            holder.close()

    # Which tasks take part.

    def _is_there(self, dependency: asyncio.Future[Any], lane: Lane, *, sent: bool = False) -> bool:
        if not isinstance(dependency, TaskFuture) or held(dependency) is not None:
            return False
        node = dependency._node
        if node is None or getattr(node, "runtime", None) is not self._runtime:
            return False
        there: Node = node  # type: ignore[assignment]
        return (
            there.lane is lane
            and there.life.future is Future.PENDING
            and there.life.work in _WITH_BACKEND
            and not (sent and there.life.work is Work.READY)
            and self._takes_part(there, lane)
        )

    def _takes_part(self, node: Node, lane: Lane) -> bool:
        task, extra = node.task, node.extra
        if task.pushable is None or task.pushable[0] is not lane:
            task.pushable = lane, self._is_plain(task, lane)
        if not task.pushable[1] or type(node.future) is not TaskFuture:
            return False
        found = extra.found if extra is not None else None
        return found is None or not (found.inputs or found.outputs or found.inexact)

    def _is_plain(self, task: Task[Any, Any], lane: Lane) -> bool:
        runtime, settings, hooks = self._runtime, task.settings, self._runtime.hooks
        return (
            task.kind == "function"
            and not settings.service
            and (settings.retries or runtime.retries) is None
            and settings.timeout is None
            and runtime.timeout is None
            and not settings.after
            and not settings.limit
            and settings.fallback is NO_FALLBACK
            and settings.capture != "files"
            and (settings.backend is None or runtime.lanes[settings.backend] is lane)
            and (settings.backend is not None or lane is runtime.default)
            and not (hooks.lookup_results or hooks.record_results)
            and not (hooks.prepare_task or hooks.select_backend)
        )
