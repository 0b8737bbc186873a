"""Helpers for asyncio that several modules use."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def is_cancelling() -> bool:
    """Return True if the running asyncio task was cancelled itself.

    Otherwise a `CancelledError` comes from something that it awaited, and is an ordinary error.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_of(future: asyncio.Future[None]) -> None:
    """Wait for a shared future. Cancelling the wait does not cancel the future.

    Unlike with `asyncio.shield`, an exception that a signal handler raises ends the wait.
    """
    waiter = future.get_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
    future.result()


async def wait_through(future: asyncio.Future[Any], cancel: Callable[[], object]) -> bool:
    """Wait until a future is done, and call `cancel` if the wait is cancelled meanwhile.

    Returns:
        True if it was cancelled; the caller raises `CancelledError` when it has cleaned up.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
            cancel()
    return cancelled


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> T:
    """Call a function on a loop's thread and return its result. Any thread."""
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
    """Return the exception, wrapped if it is a `StopIteration`, which futures refuse."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{who} raised StopIteration")
    wrapped.__cause__ = error
    return wrapped


def eager_task(
    coroutine: Coroutine[Any, Any, T], *, name: str, context: contextvars.Context
) -> asyncio.Task[T]:
    """Make a task of a coroutine, which runs to its first wait before this returns.

    Python 3.11 has no eager tasks: there it begins in the loop's next turn.

    Returns:
        The asyncio task.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, name=name, context=context, eager_start=True)
    return loop.create_task(coroutine, name=name, context=context)


@types.coroutine
def resumed(
    steps: Generator[Any, Any, T] | Coroutine[Any, Any, T], waits_for: Any
) -> Generator[Any, Any, T]:
    """Await the rest of an awaitable after its first step.

    Args:
        steps: Its `__await__()`, or a coroutine, after that step.
        waits_for: What the step gave.

    Returns:
        The result of the awaitable.

    Yields:
        What the awaitable waits for.
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
