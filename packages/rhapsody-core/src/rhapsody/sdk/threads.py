"""Does blocking work beside the loop, on threads that nobody waits for at exit.

A library that blocks must not run on the engine's loop. `asyncio.to_thread` puts it on the
loop's executor, whose threads Python joins at exit: a call that hangs would hold the program.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from rhapsody.aio import asked_to_stop, settable
from rhapsody.errors import describe_error
from rhapsody.task import is_async

__all__ = ["call_ready", "in_thread", "start_thread"]

T = TypeVar("T")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that runs a function, and that does not keep the program from ending."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def call_ready(ready: Callable[[Any], Any], task: Any) -> Any:
    """What a service's `ready` callable returns; a coroutine function is called on the loop.

    Others are called on a thread, and what they give to be awaited is awaited on the loop.

    Raises:
        RuntimeError: It raised what would end more than its service.
        Exception: The callable's own.
    """
    try:
        if is_async(ready):
            return await ready(task)
        value = await in_thread(partial(ready, task))
        return await value if inspect.isawaitable(value) else value
    except (SystemExit, asyncio.CancelledError) as error:
        if asked_to_stop():
            raise
        raise RuntimeError(f"ready raised {describe_error(error)}") from error


async def in_thread(function: Callable[[], T]) -> T:
    """Return what a blocking function returns, run on a thread of its own.

    Called on a loop, by a backend that has something to open, close, read or write. A
    cancellation leaves the function running: nobody hears of its end.

    Raises:
        Exception: What the function raises; a `StopIteration` as the cause of a `RuntimeError`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]
        else:
            future.set_exception(settable(error, "the call"))

    def run() -> None:
        value = error = None
        try:
            value = function()
        except BaseException as raised:  # handed to whoever waits
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    thread = start_thread(run, getattr(function, "__name__", "rhapsody"))
    try:
        return await future
    finally:
        if future.done() and not future.cancelled():
            thread.join()  # it has nothing left to do
