"""What waits for what: edges between nodes, and what settling one does to the others.

Nothing here talks to a backend. Everything runs on the engine's loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rhapsody.aio import settable
from rhapsody.engine import life
from rhapsody.engine.arguments import search
from rhapsody.engine.blocks import BlockFuture, enclosing_block
from rhapsody.engine.held import HeldFuture
from rhapsody.engine.life import Event, Future, Work
from rhapsody.engine.node import Node
from rhapsody.errors import DependencyFailureError, describe_error, is_a
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.runtime import Runtime
    from rhapsody.engine.tasks import Task

T = TypeVar("T")

current_scope: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "rhapsody_scope", default=None
)


class _InTurn(Generic[T]):
    """Handles items one after the other, also those that are put meanwhile.

    A queue instead of recursion: chains may be a hundred thousand long.
    """

    def __init__(self, handle: Callable[[T], object]) -> None:
        self._handle = handle
        self._items: deque[T] = deque()
        self._handling = False

    def put(self, item: T) -> None:
        self._items.append(item)
        if self._handling:
            return
        self._handling = True
        try:
            while self._items:
                self._handle(self._items.popleft())
        finally:
            self._handling = False


class Graph:
    """All live nodes of one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._numbers = {"task": 0, "block": 0}
        self._settled = _InTurn(self._tell_dependents)
        self._cancelled = _InTurn(self._stop_cancelled)
        self._joins: list[tuple[set[Node], asyncio.Future[None]]] = []
        self.live: set[Node] = set()
        self.failed: weakref.WeakSet[TaskFuture[Any]] = weakref.WeakSet()
        self.calls: list[tuple[str, str, tuple[str, ...]]] | None = None  # kept by a dry run

    def add(
        self,
        task: Task[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        specific: Mapping[str, Any] | None,
    ) -> TaskFuture[Any]:
        """Registers a call and returns its future.

        Raises:
            RuntimeError: The engine is shut down, or a future in the arguments
                belongs to another loop or to a block around this call.
            ValueError: A container in the arguments holds itself.
        """
        runtime = self._runtime
        if runtime.closing:
            raise runtime.closed_error(task.name)
        found = search(args, kwargs)
        parent = enclosing_block.get()
        if parent is not None and parent.life.future is Future.CANCELLED:
            raise asyncio.CancelledError(f"block {parent.task.name!r} has been cancelled")
        if parent is not None and parent.life.future is not Future.PENDING:
            parent = None  # it has ended, and left something behind that goes on
        after = task.settings.after
        dependencies: tuple[asyncio.Future[Any], ...] = ()
        if found is not None or after:
            dependencies = tuple(dict.fromkeys((*(found.futures if found else ()), *after)))
            self._check_dependencies(task, dependencies, parent)

        if found is not None:
            args, kwargs = found.copy(args, kwargs)
        number = self._numbers[task.prefix] = self._numbers[task.prefix] + 1
        future: TaskFuture[Any]
        guarded = bool(dependencies) and any(isinstance(d, BlockFuture) for d in dependencies)
        if guarded or task.prefix == "block":
            future = BlockFuture(loop=runtime.loop)
        else:
            future = TaskFuture(loop=runtime.loop)
        node = Node(runtime, task, future, number, args, kwargs or None, specific)
        future._node = node
        future._definition = task
        future._number = number
        future._attempt = 1
        future._backend = None
        future._outcome = None
        self.live.add(node)

        scope = current_scope.get()
        if found is not None or scope is not None:
            extra = node.more()
            extra.found = found
            extra.scope = scope
        if task.prefix == "block":
            node.more().context = contextvars.copy_context()
        if parent is not None:
            node.parent = parent
            parent.more().children[node] = None
        runtime.stats.tasks += 1
        if runtime.observed:
            runtime.observe(node, TasksMainStates.PENDING)
        if self.calls is not None:
            self.calls.append((future.uid, task.name, dependency_uids(dependencies)))
        if dependencies:
            self._link(node, dependencies)
        elif task.prefix == "task":
            node.life = life.READY
            runtime.route(node)
        else:
            self._resolve(node)
        return future

    def _check_dependencies(
        self,
        task: Task[Any, Any],
        dependencies: tuple[asyncio.Future[Any], ...],
        parent: Node | None,
    ) -> None:
        for dependency in dependencies:
            if dependency.get_loop() is not self._runtime.loop:
                raise RuntimeError(
                    f"task {task.name!r} got a future of another event loop: {dependency!r}; "
                    "await it there, and pass its result"
                )
            around = parent
            while around is not None:
                if around.future is dependency:
                    raise RuntimeError(
                        f"task {task.name!r} is called inside block {around.task.name!r} and got "
                        "that block's own future: it would wait for ever"
                    )
                around = around.parent

    def _link(self, node: Node, dependencies: tuple[asyncio.Future[Any], ...]) -> None:
        node.dependencies = dependencies
        pushdown = self._runtime.pushdown
        cancelled = False
        for dependency in dependencies:
            if pushdown.holds and pushdown.is_held(dependency):
                continue
            if dependency.done():
                cancelled = cancelled or dependency.cancelled()
                continue
            node.unfinished += 1
            other = self._own(dependency)
            if other is None:
                dependency.add_done_callback(node.dependency_done)
                continue
            if other.dependents is None:
                other.dependents = {}
            other.dependents[node] = None
        if cancelled:
            self.cancel(node)
        elif node.unfinished == 0:
            self._resolve(node)
        else:
            pushdown.follow(node)

    def _own(self, dependency: asyncio.Future[Any]) -> Node | None:
        if isinstance(dependency, TaskFuture):
            node = dependency._node
            if isinstance(node, Node) and node.runtime is self._runtime:
                return node
        return None

    def foreign_done(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        """A future that is not ours, and that a node waits for, is done."""
        if node.life.work is Work.WAITING:
            self._dependency_settled(node, dependency)
        elif node.pushed:
            self._runtime.pushdown.dependency_settled(node, dependency)

    # Settling.

    def settled(self, node: Node) -> None:
        """The future of a node has been settled: tells its dependents, closes it if it ended."""
        if node.dependents is not None:
            self._settled.put(node)
        for pending, done in self._joins:
            pending.discard(node)
            if not pending and not done.done():
                done.set_result(None)
        if node.life.work is Work.ENDED or node.life.work is Work.LOST:
            self.close(node)

    def pending(self) -> set[Node]:
        """The nodes whose futures are not settled."""
        return {node for node in self.live if node.life.future is Future.PENDING}

    async def all_settled(self) -> None:
        """Waits until no future is pending; those of calls made meanwhile count."""
        while pending := self.pending():
            join = (pending, self._runtime.loop.create_future())
            self._joins.append(join)
            try:
                await join[1]
            finally:
                self._joins.remove(join)

    def _tell_dependents(self, node: Node) -> None:
        dependents, node.dependents = node.dependents, None
        for dependent in dependents or ():
            if dependent.life.work is Work.WAITING:
                self._dependency_settled(dependent, node.future)
            elif dependent.pushed:
                self._runtime.pushdown.dependency_settled(dependent, node.future)

    def _dependency_settled(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        node.unfinished -= 1
        if dependency.cancelled():
            self.cancel(node, f"its dependency {_future_name(dependency)!r} was cancelled")
        elif node.unfinished == 0:
            self._resolve(node)

    def _resolve(self, node: Node) -> None:
        """The last dependency has ended: the node is ready, or fails with them."""
        if self.fail_with_dependencies(node) or self._runtime.pushdown.needs_values(node):
            return
        node.step(Event.RESOLVE)
        if node.task.prefix == "task":
            self._runtime.route(node)
        else:
            self._runtime.blocks.start(node)

    def fail_with_dependencies(self, node: Node) -> bool:
        """Fails a node whose dependencies have ended where one of them failed."""
        ended = self._runtime.pushdown.with_values(node)
        failed = [d for d in ended if not d.cancelled() and d.exception() is not None]
        if failed:
            self.fail(node, _dependency_failure(node, failed))
        return bool(failed)

    # Ends.

    def fail(self, node: Node, error: BaseException) -> None:
        """The task has failed for good."""
        if not node.step(Event.FAIL):
            self._runtime.stats.late += 1
            return
        if node.life.future is Future.FAILED:
            self.set_exception(node, error)
        self.settled(node)

    def set_exception(self, node: Node, error: BaseException) -> None:
        """Gives a failed node's future its exception, and counts it."""
        runtime = self._runtime
        runtime.stats.failed += 1
        error = settable(error, f"task {node.task.name!r}")
        if not node.future.done():
            node.future.fail(error)
            self.failed.add(node.future)
        if runtime.failures is not None:
            runtime.failures.add(node, error)
        if runtime.observed:
            runtime.observe(node, TasksMainStates.FAILED, error=error)
        if runtime.fail_fast and not runtime.closing:
            runtime.stop_all_after(node)

    def cancel(self, node: Node, msg: Any = None) -> bool:
        """Cancels a node and, at once, all that depends on it."""
        before = node.life
        if before.work is Work.SERVING:
            node.step(Event.CANCEL)
            self._runtime.stop_work(node)
            return True
        if before.future is not Future.PENDING or not node.step(Event.CANCEL):
            return False
        extra = node.extra
        if extra is not None and extra.timer is not None:
            extra.timer.cancel()
            extra.timer = None
        self._runtime.stats.cancelled += 1
        if not node.future.done():
            node.future.set_cancelled(msg)
        stop = node.life.work is Work.CANCELING and before.work is not Work.CANCELING
        self._cancelled.put((node, stop))
        return True

    def _stop_cancelled(self, cancelled: tuple[Node, bool]) -> None:
        """Stops the work of a cancelled node and what a block has started; tells dependents."""
        node, stop = cancelled
        if stop:
            self._runtime.stop_work(node)
        if self._runtime.observed and node.life.work is Work.ENDED:
            self._runtime.observe(node, TasksMainStates.CANCELED)
        if node.extra is not None:
            for child in tuple(node.extra.children):
                child.cancel(None)  # by the engine that it belongs to
        self.settled(node)

    def close(self, node: Node) -> None:
        """The future is settled and the work has ended: lets go of all that the node held."""
        self.live.discard(node)
        future = node.future
        if node.description is not None and "sandbox" in node.description:
            self._runtime.drop_sandbox(node)
        if future._node is node:
            future._node = None
        if node.dependencies:
            for dependency in node.dependencies:
                if type(dependency) is not HeldFuture and not dependency.done():
                    self._unlink(node, dependency)
            node.dependencies = ()
        if node.parent is not None:
            if node.parent.extra is not None:
                node.parent.extra.children.pop(node, None)
            node.parent = None
        node.args = ()
        node.kwargs = node.description = node.specific = None
        extra, node.extra = node.extra, None
        if extra is not None:
            if extra.timer is not None:
                extra.timer.cancel()
            if extra.limits:
                node.extra = extra
                self._runtime.give_back(node)
                node.extra = None
            for waiter in extra.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _unlink(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        other = self._own(dependency)
        if other is not None and other.dependents is not None:
            other.dependents.pop(node, None)
        elif other is None:
            dependency.remove_done_callback(node.dependency_done)


def _dependency_failure(node: Node, failed: list[asyncio.Future[Any]]) -> DependencyFailureError:
    names = [_future_name(future) for future in failed]
    cause = failed[0].exception()
    root = cause.root_cause if is_a(cause, DependencyFailureError) else cause
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    assert cause is not None
    return DependencyFailureError(
        f"{node.task.prefix} {node.task.name!r} ({node.future.uid}) did not run because "
        f"{names[0]!r} failed{others}: {describe_error(root)}",
        names,
        root,
    ).follows(cause)


def dependency_uids(dependencies: Iterable[asyncio.Future[Any]]) -> tuple[str, ...]:
    """The uids of those dependencies that are tasks or blocks."""
    return tuple(future.uid for future in dependencies if isinstance(future, TaskFuture))


def _future_name(future: asyncio.Future[Any]) -> str:
    if isinstance(future, TaskFuture):
        return future.name
    name = getattr(future, "get_name", None)  # of asyncio's tasks
    return repr(future) if name is None else str(name())
