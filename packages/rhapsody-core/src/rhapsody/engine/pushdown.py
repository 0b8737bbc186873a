"""Hands tasks to a backend before their dependencies are finished, where it can wait itself.

A task whose unfinished dependencies are all with the same backend goes there at
once, with references in place of their values, so that values need not come here
and go back. Only plain function tasks take part; all others wait in the graph,
and what a user sees is the same.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rhapsody.engine.life import Event, Future, Work
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.task import Reference, TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.graph import Node
    from rhapsody.engine.runtime import Runtime
    from rhapsody.engine.tasks import Task

_WITH_BACKEND = (Work.READY, Work.SUBMITTING, Work.SUBMITTED, Work.RUNNING)


class PushDown:
    """What is pushed down in one engine.

    Args:
        runtime: The engine's runtime.
        wanted: `False` pushes nothing down.
    """

    def __init__(self, runtime: Runtime, wanted: bool) -> None:
        self._runtime = runtime
        self._wanted = wanted

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
            if dependent.unsent < dependent.unfinished or not self._takes_part(dependent, lane):
                continue
            if all(
                dependency.done() or self._is_there(dependency, lane)
                for dependency in dependent.dependencies
            ) and not _hopeless(dependent):
                dependent.pushed = True
                dependent.step(Event.RESOLVE)
                lane.push(dependent)

    def reference(self, future: asyncio.Future[Any]) -> Reference | None:
        """What stands for a dependency of a pushed node, `None` where its value is here.

        One that has failed meanwhile has a reference that no backend knows, so that
        the node comes back.
        """
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
        node.pushed = False
        if _hopeless(node):
            self._runtime.graph.fail_with_dependencies(node)
        elif node.step(Event.DUE):
            self._runtime.route(node)

    def _is_there(self, dependency: asyncio.Future[Any], lane: Lane) -> bool:
        if not isinstance(dependency, TaskFuture):
            return False
        node = dependency._node
        if node is None or getattr(node, "runtime", None) is not self._runtime:
            return False
        there: Node = node  # type: ignore[assignment]
        return (
            there.lane is lane
            and there.life.future is Future.PENDING
            and there.life.work in _WITH_BACKEND
            and self._takes_part(there, lane)
        )

    def _takes_part(self, node: Node, lane: Lane) -> bool:
        task, extra = node.task, node.extra
        if task.pushable is None or task.pushable[0] is not lane:
            task.pushable = lane, self._is_plain(task, lane)
        if not task.pushable[1]:
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


def _hopeless(node: Node) -> bool:
    """Whether a dependency has failed already."""
    return any(d.done() and (d.cancelled() or d.exception() is not None) for d in node.dependencies)
