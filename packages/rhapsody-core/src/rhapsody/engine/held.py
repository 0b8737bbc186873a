"""Futures of tasks that are done and whose values stay with their backend until asked for.

Such a future is pending for asyncio, since it has no result yet. Whoever waits for
it, or looks whether it is done, has the value brought. Which tasks these are is
decided in `rhapsody.engine.pushdown`.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rhapsody.errors import BackendUnavailableError, TaskLostError, is_a
from rhapsody.states import TasksMainStates
from rhapsody.task import HeldValue, Outcome, TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime

T = TypeVar("T")


class HeldFuture(TaskFuture[T]):
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


def _ask(future: HeldFuture[Any]) -> asyncio.InvalidStateError:
    """Has a value brought; gives the error for whom that is too late."""
    node = future._node
    if type(node) is Held:
        node.ask()
    return asyncio.InvalidStateError(
        f"the value of {future.uid} ({future.name!r}) is still with its backend: await the future"
    )


class Held:
    """What stands behind a future in the place of its node (`rhapsody.task.LiveNode`).

    The future holds it and is not held by it, so that the value goes with the last
    who holds the future.

    Args:
        runtime: The engine's runtime.
        node: The task's node.
        value: The value with the backend.
    """

    __slots__ = ("__weakref__", "_bringing", "_future", "_value", "lane", "runtime", "uid")

    def __init__(self, runtime: Runtime, node: Node, value: HeldValue) -> None:
        assert node.lane is not None
        self.lane: Lane = node.lane
        self.uid: str = node.uid
        self.runtime: Runtime = runtime
        self._value = value
        self._future = weakref.ref(node.future)
        self._bringing: asyncio.Task[None] | None = None

    # What the future asks.

    def state(self) -> TasksMainStates:
        """The task is done, wherever its value is."""
        return TasksMainStates.DONE

    def cancel(self, msg: Any) -> bool:
        """Cancels the wait for the value; `False` where nobody waits, for the task is done."""
        return self.runtime.on_loop(partial(self._cancel, msg))

    async def wait_ended(self) -> None:
        """The work has ended."""

    def describe(self) -> None:
        """The description is gone with the work."""

    # Bringing the value.

    def ask(self) -> None:
        """Somebody needs the value: has it brought, once. Any thread."""
        if running_loop() is self.runtime.loop:
            self._bring_once()
            return
        try:
            self.runtime.loop.call_soon_threadsafe(self._bring_once)
        except RuntimeError:  # the loop is closed: nothing comes any more
            return

    def close(self) -> None:
        """The engine ends: a value that is on its way is given up, and so is one that is not."""
        future = self._future()
        if future is None or self._bringing is not None:
            self._cancel(None)
            return
        error = BackendUnavailableError(
            f"the value of {future.uid} ({future.name!r}) stayed with backend {self.lane.name!r}, "
            "and nobody had asked for it when the engine was shut down: await the future before, "
            "or make the engine with push_down=False"
        )
        self._let_go(future)
        future.fail(error)
        future._log_traceback = False  # nobody waits for it, most likely

    def _bring_once(self) -> None:
        future = self._future()
        if future is None or self._bringing is not None or future._node is not self:
            return
        _make_usual(future)
        self._bringing = self.runtime.spawn(self._bring(future), f"value of {self.uid}")

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
            self._lost(future, error)
            return
        stdout, stderr = task.get("stdout"), task.get("stderr")
        if stdout is not None or stderr is not None:
            future._outcome = Outcome(
                uid=self.uid, stdout=stdout, stderr=stderr, backend=future._backend
            )
        future.set_result(task["return_value"])

    def _lost_error(self, future: TaskFuture[Any], cause: TaskLostError) -> TaskLostError:
        error = TaskLostError(
            f"the value of {future.uid} ({future.name!r}) stayed with backend "
            f"{self.lane.name!r} and was lost there: {cause}; with push_down=False each value "
            "comes here when its task is done"
        )
        error.__cause__ = cause
        return error

    def _lost(self, future: TaskFuture[Any], error: BaseException) -> None:
        stats = self.runtime.stats
        stats.done -= 1
        stats.failed += 1
        future.fail(error)
        self.runtime.graph.failed.add(future)

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
    if type(future) is HeldFuture:
        future.__class__ = TaskFuture  # type: ignore[assignment]


def held(future: asyncio.Future[Any]) -> Held | None:
    """What holds a future's value, `None` where it is here or yet to be made."""
    if isinstance(future, TaskFuture):
        node: Any = future._node
        if type(node) is Held:
            return node
    return None
