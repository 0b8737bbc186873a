"""What waits for what: nodes, their edges, and what settling one does to the others.

A node is one call of a task or block from the call until its work has ended.
Nothing here talks to a backend. Everything runs on the engine's loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rhapsody.aio import settable
from rhapsody.engine import life
from rhapsody.engine.arguments import Found, search
from rhapsody.engine.blocks import BlockFuture, enclosing_block
from rhapsody.engine.held import HeldFuture
from rhapsody.engine.life import Event, Future, Life, Work
from rhapsody.engine.timers import Timer
from rhapsody.errors import DependencyFailureError, describe_error
from rhapsody.states import TasksMainStates
from rhapsody.task import Outcome, TaskDescription, TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.runtime import Runtime
    from rhapsody.engine.tasks import Task

current_scope: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "rhapsody_scope", default=None
)

_FUTURE_STATES = {
    Future.DONE: TasksMainStates.DONE,
    Future.FAILED: TasksMainStates.FAILED,
    Future.CANCELLED: TasksMainStates.CANCELED,
}
_WORK_STATES = {
    Work.WAITING: TasksMainStates.PENDING,
    Work.READY: TasksMainStates.PENDING,
    Work.RETRY_WAIT: TasksMainStates.PENDING,
    Work.SUBMITTING: TasksMainStates.SUBMITTED,
    Work.SUBMITTED: TasksMainStates.SUBMITTED,
    Work.RUNNING: TasksMainStates.RUNNING,
    Work.SERVING: TasksMainStates.RUNNING,
    Work.CANCELING: TasksMainStates.RUNNING,
    Work.ENDED: TasksMainStates.RUNNING,
    Work.LOST: TasksMainStates.RUNNING,
}


class Extra:
    """What only some nodes need, kept out of the others."""

    __slots__ = (
        "awaiting",
        "block",
        "children",
        "command",
        "context",
        "failures",
        "found",
        "limits",
        "losses",
        "scope",
        "sources",
        "timer",
        "verdict",
        "waiters",
    )

    def __init__(self) -> None:
        self.awaiting: list[Node] = []  # the blocks that a block awaits now
        self.block: asyncio.Task[Any] | None = None  # what runs an asynchronous block
        self.children: dict[Node, None] = {}  # what a block has started
        self.command: str | list[str] | None = None  # an executable's, once built
        self.context: contextvars.Context | None = None  # the one a block was called in
        self.failures: int = 0  # attempts that failed
        self.found: Found | None = None  # futures and files in the arguments
        self.limits: tuple[tuple[str, int], ...] = ()  # named limits it holds
        self.losses: int = 0  # attempts that the infrastructure lost
        self.scope: str | None = None
        self.sources: list[Outcome] = []  # what its dependencies left behind
        self.timer: Timer | None = None  # its time-out, or the wait before a retry
        self.verdict: BaseException | None = None  # why it is being stopped
        self.waiters: list[asyncio.Future[None]] = []  # for the end of the work


class Node:
    """One call of a task or block while its work is alive."""

    __slots__ = (
        "args",
        "attempt",
        "dependencies",
        "dependents",
        "description",
        "extra",
        "future",
        "kwargs",
        "lane",
        "life",
        "native",
        "number",
        "parent",
        "pushed",
        "runtime",
        "specific",
        "stage",
        "task",
        "uid",
        "unfinished",
        "unsent",
    )

    def __init__(
        self,
        runtime: Runtime,
        task: Task[Any, Any],
        future: TaskFuture[Any],
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        specific: Mapping[str, Any] | None,
    ) -> None:
        self.runtime: Runtime = runtime
        self.task: Task[Any, Any] = task
        self.future: TaskFuture[Any] = future
        self.number: int = number
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] | None = kwargs
        self.specific: Mapping[str, Any] | None = specific
        self.life: Life = life.START
        self.unfinished: int = 0
        self.unsent: int = 0  # dependencies that are with a backend, see `pushdown`
        self.pushed: bool = False  # it is with a backend before they are finished
        self.attempt: int = 0
        self.stage: int = 0
        self.uid: str = ""
        self.native: str | None = None  # the backend's word for the last state, for events
        self.dependencies: tuple[asyncio.Future[Any], ...] = ()
        self.dependents: dict[Node, None] | None = None
        self.description: TaskDescription | None = None
        self.lane: Lane | None = None
        self.parent: Node | None = None
        self.extra: Extra | None = None

    def more(self) -> Extra:
        """The node's rare fields, made when first needed."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    def step(self, event: Event) -> bool:
        """Moves the node through the table; `False` for an event that has no row."""
        after = self.life.after.get(event)
        if after is None:
            return False
        self.life = after
        return True

    def dependency_done(self, dependency: asyncio.Future[Any]) -> None:
        """Done callback on futures that are not this engine's."""
        self.runtime.guarded(partial(self.runtime.graph.foreign_done, self, dependency))

    # What the future asks (`rhapsody.task.LiveNode`).

    def state(self) -> TasksMainStates:
        """The canonical state of the future, or of the work while that is undecided."""
        future, work = self.life.future, self.life.work
        if future is Future.DONE and work is not Work.ENDED:
            return TasksMainStates.RUNNING  # a service
        return _FUTURE_STATES.get(future) or _WORK_STATES[work]

    def cancel(self, msg: Any) -> bool:
        """Cancels from any thread; see `TaskFuture.cancel`."""
        return self.runtime.on_loop(partial(self.runtime.graph.cancel, self, msg))

    async def wait_ended(self) -> None:
        """Waits until the node is closed."""
        if self.life.work in (Work.ENDED, Work.LOST) and self.life.future is not Future.PENDING:
            return
        waiter = asyncio.get_running_loop().create_future()
        self.more().waiters.append(waiter)
        await waiter

    def describe(self) -> Mapping[str, Any]:
        """The description of the attempt, or of the call before the first one."""
        if self.description is not None:
            return MappingProxyType(self.description)
        return {
            "uid": self.future.uid,
            "name": self.task.name,
            "function": self.task.function if self.task.kind != "executable" else None,
            "executable": None,
            "args": self.args,
            "kwargs": self.kwargs or {},
            "is_service": self.task.settings.service,
            "task_backend_specific_kwargs": dict(self.specific or self.task.settings.specific),
            "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        }


class Graph:
    """All live nodes of one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._numbers = {"task": 0, "block": 0}
        self._settled: deque[Node] = deque()
        self._settling = False
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
        if parent is not None and parent.life.future is not Future.PENDING:
            raise asyncio.CancelledError(f"block {parent.task.name!r} has been cancelled")
        after = task.settings.after
        dependencies: tuple[asyncio.Future[Any], ...] = ()
        if found is not None or after:
            dependencies = tuple(dict.fromkeys((*(found.futures if found else ()), *after)))
            self._check_dependencies(task, dependencies, parent)

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
            self._settle_all()
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
            self._settle_all()
        elif node.pushed:
            self._runtime.pushdown.dependency_settled(node, dependency)

    # Settling. A queue instead of recursion: chains may be a hundred thousand long.

    def settled(self, node: Node) -> None:
        """The future of a node has been settled: tells its dependents, closes it if it ended."""
        if node.dependents is not None:
            self._settled.append(node)
            self._settle_all()
        if node.life.work is Work.ENDED or node.life.work is Work.LOST:
            self.close(node)

    def _settle_all(self) -> None:
        if self._settling:
            return
        self._settling = True
        try:
            while self._settled:
                node = self._settled.popleft()
                dependents, node.dependents = node.dependents, None
                for dependent in dependents or ():
                    if dependent.life.work is Work.WAITING:
                        self._dependency_settled(dependent, node.future)
                    elif dependent.pushed:
                        self._runtime.pushdown.dependency_settled(dependent, node.future)
        finally:
            self._settling = False

    def _dependency_settled(self, node: Node, dependency: asyncio.Future[Any]) -> None:
        node.unfinished -= 1
        if dependency.cancelled():
            self.cancel(node)
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
            asyncio.Future.cancel(node.future, msg)
        if node.life.work is Work.CANCELING and before.work is not Work.CANCELING:
            self._runtime.stop_work(node)
        if self._runtime.observed and node.life.work is Work.ENDED:
            self._runtime.observe(node, TasksMainStates.CANCELED)
        if extra is not None:
            for child in tuple(extra.children):
                self.cancel(child)
        self.settled(node)
        return True

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
    root = cause.root_cause if isinstance(cause, DependencyFailureError) else cause
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    error = DependencyFailureError(
        f"{node.task.prefix} {node.task.name!r} ({node.future.uid}) did not run because "
        f"{names[0]!r} failed{others}: {describe_error(root)}",
        names,
        root,
    )
    error.__cause__ = cause
    return error


def dependency_uids(dependencies: Iterable[asyncio.Future[Any]]) -> tuple[str, ...]:
    """The uids of those dependencies that are tasks or blocks."""
    return tuple(future.uid for future in dependencies if isinstance(future, TaskFuture))


def _future_name(future: asyncio.Future[Any]) -> str:
    if isinstance(future, TaskFuture):
        return future.name
    if isinstance(future, asyncio.Task):
        return future.get_name()
    return repr(future)
