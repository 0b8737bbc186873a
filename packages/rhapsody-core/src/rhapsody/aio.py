"""Helpers for asyncio that are used by several modules."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Timer(Protocol):
    """Scheduled call, as returned by `Clock.call_at`."""

    def cancel(self) -> object:
        """Cancel the call."""


class Clock(Protocol):
    """Source of an engine's time, used on its loop. Tests and simulations replace it."""

    def time(self) -> float:
        """Return the seconds since the epoch, for display."""

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes back, for durations and deadlines."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` when `monotonic` reaches `when`."""


def is_cancelling() -> bool:
    """Return True if the running asyncio task itself was canceled.

    If the result is False, a `CancelledError` comes from an object that the task awaits, and is an
    ordinary error.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_of(future: asyncio.Future[None]) -> None:
    """Wait until a shared future is done, without canceling the future if the wait is canceled.

    Unlike with `asyncio.shield`, an exception that a signal handler raises ends the wait.
    """
    await _wakened_by(future)
    future.result()


async def _wakened_by(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, whatever its outcome. `asyncio.wait` takes longer."""
    waiter = future.get_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)


async def wait_through(future: asyncio.Future[Any], cancel: Callable[[], object]) -> bool:
    """Wait until a future is done; call `cancel` each time the wait itself is canceled.

    Returns:
        True if the wait was canceled; the caller must then clean up and raise `CancelledError`.
    """
    cancelled = False
    while not future.done():
        try:
            await _wakened_by(future)
        except asyncio.CancelledError:
            cancelled = True
            cancel()
    return cancelled


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> T:
    """Call a function on a loop's thread, and wait until it returns. May be called on any thread.

    If the loop is not running, the function is called on the calling thread.

    Returns:
        The function's result. An exception that the function raises is raised here.
    """
    if asyncio._get_running_loop() is loop or not loop.is_running():
        return call()
    done = threading.Event()
    outcome: list[Any] = [None, None]

    def run() -> None:
        try:
            outcome[0] = call()
        except BaseException as error:  # raised in the calling thread
            outcome[1] = error
        finally:
            done.set()

    loop.call_soon_threadsafe(run, context=contextvars.copy_context())
    done.wait()
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def settable(error: BaseException, who: str) -> BaseException:
    """Return an exception that can be set on a future, which refuses a `StopIteration`.

    Args:
        error: The exception; returned unchanged unless it is a `StopIteration`.
        who: The code that raised the exception, for the message of the `RuntimeError` that replaces
            a `StopIteration`.
    """
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{who} raised StopIteration")
    wrapped.__cause__ = error
    return wrapped


def eager_task(
    coroutine: Coroutine[Any, Any, T], *, name: str, context: contextvars.Context
) -> asyncio.Task[T]:
    """Create a task for a coroutine, and run it in `context` until the coroutine first waits."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, name=name, context=context, eager_start=True)
    first: dict[str, Any] = {}
    rest = _rest(coroutine, first)
    rest.send(None)
    task: asyncio.Task[T] = loop.create_task(rest, name=name, context=context)
    caller = asyncio.current_task()
    if caller is not None:
        asyncio._leave_task(loop, caller)
    asyncio._enter_task(loop, task)
    try:
        first["waits for"] = context.run(coroutine.send, None)
    except StopIteration as end:
        first["value"] = end.value
    except BaseException as error:  # raised by the coroutine, so it is the task's exception
        trace = error.__traceback__  # contains this frame, which would keep the task alive
        first["error"] = error.with_traceback(trace.tb_next if trace is not None else None)
    finally:
        asyncio._leave_task(loop, task)
        if caller is not None:
            asyncio._enter_task(loop, caller)
    return task


def _rest(coroutine: Coroutine[Any, Any, T], first: dict[str, Any]) -> Generator[Any, None, T]:
    """Run a coroutine from its second step on; `first` contains the outcome of the first step."""
    try:
        try:
            yield  # until its task runs, or is canceled before that
        except BaseException as error:
            if "waits for" not in first:
                raise
            waits_for = coroutine.throw(error)
        else:
            if "error" in first:
                raise first.pop("error")
            if "value" in first:
                value: T = first["value"]
                return value
            waits_for = first["waits for"]
        return (yield from resumed(coroutine, waits_for))
    except StopIteration as end:
        last: T = end.value
        return last


@types.coroutine
def resumed(
    steps: Generator[Any, Any, T] | Coroutine[Any, Any, T], waits_for: Any
) -> Generator[Any, Any, T]:
    """Await an awaitable whose first step has already run.

    Args:
        steps: The iterator that the awaitable's `__await__()` returned, or the coroutine.
        waits_for: The value that the first step yielded.

    Returns:
        The result of the awaitable.

    Yields:
        The objects that the awaitable waits for.
    """
    try:
        while True:
            try:
                yield waits_for
            except BaseException as error:
                waits_for = steps.throw(error)
            else:
                waits_for = steps.send(None)
    except StopIteration as end:
        last: T = end.value
        return last
