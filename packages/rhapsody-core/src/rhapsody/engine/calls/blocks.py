"""Blocks: functions that call tasks and wait for them, as parts of the graph.

An asynchronous block is an asyncio task on the engine's loop. A synchronous block has its own
thread, so that blocks can be nested to any depth without waiting for each other's threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import CoroutineType
from typing import Any, TypeVar

from rhapsody.context import TaskContext, running_task
from rhapsody.engine.calls.services import ArgumentValues
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.record import BlockRecord, TaskRecord, record_of
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import WorkState
from rhapsody.resources import seconds
from rhapsody.task import TaskFuture

T = TypeVar("T")

enclosing_block: contextvars.ContextVar[BlockRecord | None] = contextvars.ContextVar(
    "rhapsody_block", default=None
)


calls_tasks: contextvars.ContextVar[TaskContext | bool] = contextvars.ContextVar(
    "rhapsody_calls_tasks", default=False
)
"""True on the thread of a synchronous `main(flow)`, which calls tasks as a block does.

If a function task has called `rhapsody.run(main)`, the context of that task.
"""


class BlockFuture(TaskFuture[T]):
    """Future of a block, or of a task that waits for a block.

    If a block awaits such a future although it would then wait for itself, the `await` raises an
    error instead of hanging.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, T]:
        record = None if self.done() else record_of(self)
        me = enclosing_block.get()
        if record is None or me is None:
            return super().__await__()
        return self._await_inside(me, record)

    __iter__ = __await__

    def add_done_callback(
        self, fn: Callable[..., object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """Call `fn` when the future is done.

        If `asyncio.gather` or a similar function of asyncio adds the callback in a block that would
        then wait for itself, this method raises the same error as `await` would.
        """
        me = enclosing_block.get()
        waits = getattr(getattr(fn, "func", fn), "__module__", None) == "asyncio.tasks"
        if waits and me is not None and me is record_of(self) and not self.done():
            _check_cycle(me, me)
        super().add_done_callback(fn, context=context)

    def _await_inside(self, me: BlockRecord, record: TaskRecord) -> Generator[Any, None, T]:
        with _awaiting(me, record):
            return (yield from super().__await__())


def wait(future: asyncio.Future[T], timeout: float | str | None = None) -> T:
    """Wait for a future on the thread of a synchronous block.

    This blocks the calling thread only; the engine's loop continues.

    Args:
        future: The future of a task or block, or any other future of the engine's loop.
        timeout: Maximum time to wait, in seconds or as text such as `"3 min"`; `None` waits
            indefinitely. A timeout does not stop the task.

    Returns:
        The future's result.

    Raises:
        RuntimeError: Called on the thread of a running event loop, in a function task, or in a
            block that would wait for itself; or the future's loop is not running.
        TimeoutError: The future was not done in time.
        asyncio.CancelledError: The future, or the block that waits for it, was canceled.
        BaseException: The future's own exception.
        TypeError: The argument is not a future.
    """
    task = running_task()
    if task is not None and enclosing_block.get() is None and calls_tasks.get() is not task:
        raise RuntimeError(
            f"wait() was called in function task {task.name!r} ({task.uid}), whose worker it would "
            "block; pass the future to the task as an argument to receive its value, or call "
            "wait() in a synchronous @flow.block"
        )
    if not asyncio.isfuture(future):
        raise TypeError(f"wait() takes a future, got {future!r}")
    if timeout is not None:
        timeout = seconds("timeout", timeout, zero=True)
    if running_loop() is not None:
        raise RuntimeError(
            "wait() was called on the thread of a running event loop, which it would block; "
            "write `await future`"
        )
    if future.done():
        return future.result()
    me = enclosing_block.get()
    record = record_of(future) if isinstance(future, BlockFuture) else None
    done = threading.Event()

    def notify(_: asyncio.Future[Any]) -> None:
        done.set()

    if not future.get_loop().is_running():
        raise RuntimeError(f"wait(): the event loop of {future!r} is not running")
    # A canceled block stops waiting even if the future is not done.
    watched: list[asyncio.Future[Any]] = [future] if me is None else [future, me.future]
    for one in watched:
        one.get_loop().call_soon_threadsafe(one.add_done_callback, notify)
    try:
        with _awaiting(me, record) if me is not None and record is not None else nullcontext():
            if me is not None:
                me.in_wait = True
            done.wait(timeout)
    finally:
        if me is not None:
            me.in_wait = False
        for one in watched:
            if not one.done():
                one.get_loop().call_soon_threadsafe(one.remove_done_callback, notify)
    if future.done():
        return future.result()
    if me is not None and me.future.done():
        raise asyncio.CancelledError(f"block {me.call.task.name!r} ({me.future.uid}) was canceled")
    raise TimeoutError(f"{future!r} was not done within {timeout} seconds")


@contextmanager
def _awaiting(me: BlockRecord, record: TaskRecord) -> Iterator[None]:
    """Record that block `me` waits for `record` while the `with` statement runs.

    Raises:
        RuntimeError: `record` waits for `me`, directly or through other blocks.
    """
    edges = me.awaiting
    edges.append(record)  # before the check, so that at least one of two threads sees the cycle
    try:
        _check_cycle(me, record)
        yield
    finally:
        edges.remove(record)


def _check_cycle(me: TaskRecord, record: TaskRecord) -> None:
    seen, stack = {record}, [record]
    while stack:
        other = stack.pop()
        if other is me:
            raise RuntimeError(
                f"block {me.call.task.name!r} ({me.future.uid}) would wait for itself: it awaits "
                f"{record.call.task.name!r} ({record.future.uid})"
                + ("" if record is me else ", which waits for it")
            )
        ahead = list(other.awaiting) if isinstance(other, BlockRecord) else []
        for dependency in other.call.dependencies:
            if isinstance(dependency, BlockFuture) and not dependency.done():
                record_ahead = record_of(dependency)
                if record_ahead is not None:
                    ahead.append(record_ahead)
        for further in ahead:
            if further not in seen:
                seen.add(further)
                stack.append(further)


async def _value_of(future: asyncio.Future[Any]) -> Any:
    return await future


class Blocks:
    """Runner of the blocks of one engine.

    Args:
        scheduler: The scheduler, which receives the outcomes of blocks.
        background: The runner of calls on the loop.
        values: The object that replaces futures and files in arguments.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        background: Background,
        values: ArgumentValues,
    ) -> None:
        self._scheduler = scheduler
        self._background = background
        self._values = values
        self._threads: dict[BlockRecord, threading.Thread] = {}
        self._woken: dict[BlockRecord, asyncio.Future[None]] = {}  # until their threads have ended

    def start(self, record: BlockRecord) -> None:
        """Start a block whose dependencies have ended."""
        self._scheduler.run(record)
        context = record.context
        context.run(enclosing_block.set, record)
        try:
            args, kwargs = self._values.of(record)
            coroutine = (
                record.call.task.function(*args, **kwargs) if record.call.task.is_async else None
            )
        except (Exception, SystemExit) as error:  # of the user's code: only this block fails
            self._ended(record, None, error)
            return
        if coroutine is not None:
            self._run(record, coroutine, context)
            return
        thread = threading.Thread(
            target=context.run,
            args=(self._call, record, args, kwargs),
            name=f"rhapsody {record.future.uid}",
            daemon=True,  # a block that never returns does not hold up the program's exit
        )
        self._threads[record] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system refuses another thread
            self._background.soon(partial(self._ended, record, None, error))

    def _run(
        self, record: BlockRecord, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context
    ) -> None:
        block = self._background.loop.create_task(
            coroutine, name=record.future.uid, context=context
        )
        guarded = self._background.guarded
        block.add_done_callback(lambda task: guarded(partial(self._async_ended, record, task)))
        record.running = block

    def stop(self, record: BlockRecord) -> None:
        """Cancel a block. A synchronous block stops at its next `wait` or task call."""
        if record.running is not None:
            record.running.cancel()
        elif record.in_wait and record not in self._woken:
            self._woken[record] = self._background.loop.create_future()

    @property
    def on_threads(self) -> tuple[str, ...]:
        """Uids of the synchronous blocks that are running, except those in `wait`."""
        return tuple(record.future.uid for record in self._threads if not record.in_wait)

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for canceled blocks to end. Called at shutdown.

        A synchronous block is included only if it was canceled in `rhapsody.wait`.
        """
        running = [n.running for n in self._scheduler.live if isinstance(n, BlockRecord)]
        blocks = [*(task for task in running if task is not None), *self._woken.values()]
        if blocks:
            await asyncio.wait(blocks, timeout=grace)

    def _call(self, record: BlockRecord, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value, error = None, None
        try:
            value = record.call.task.function(*args, **kwargs)
        except BaseException as raised:  # any exception is the outcome of the block
            error = raised
        ended = partial(self._thread_ended, record, value, error)
        if not self._background.soon_from_anywhere(ended):
            self._threads.pop(record, None)
        del record, args, kwargs, error, ended  # the error's traceback refers to this frame

    def _thread_ended(self, record: BlockRecord, value: Any, error: BaseException | None) -> None:
        if type(value) is CoroutineType:  # a plain wrapper around a coroutine function
            if record.state.work is WorkState.RUNNING:
                self._threads.pop(record, None)
                self._run(record, value, contextvars.copy_context())
                return
            value.close()
        self._returned(record, value, error)

    def _async_ended(self, record: BlockRecord, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._ended(record, None, asyncio.CancelledError())
        else:
            error = task.exception()
            self._returned(record, None if error is not None else task.result(), error)

    def _returned(self, record: BlockRecord, value: Any, error: BaseException | None) -> None:
        """End a block, or await the future that it has returned."""
        future = issubclass(type(value), asyncio.Future)  # without calling methods of the value
        if error is None and record.state.work is WorkState.RUNNING and future:
            self._threads.pop(record, None)
            # A copy, because the block's thread may not have left its own context yet.
            context = record.context.copy()
            self._run(record, _value_of(value), context)
        else:
            self._ended(record, value, error)

    def _ended(self, record: BlockRecord, value: Any, error: BaseException | None) -> None:
        self._threads.pop(record, None)
        woken = self._woken.pop(record, None)
        if woken is not None:
            woken.set_result(None)
        # Both refer to the record, and to the block's arguments and result.
        record.context, record.running = contextvars.Context(), None
        self._scheduler.end_block(record, value, error)
