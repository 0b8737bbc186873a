"""Does blocking work beside the loop, on threads that nobody waits for at exit.

A library that blocks must not run on the engine's loop. `asyncio.to_thread` puts it on the
loop's executor, whose threads Python joins at exit: a call that hangs would hold the program.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from rhapsody.aio import settable

__all__ = ["in_thread", "start_thread"]

T = TypeVar("T")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that runs a function, and that does not keep the program from ending."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def in_thread(function: Callable[[], T], *, or_here: bool = False) -> T:
    """Return what a blocking function returns, run on a thread of its own.

    Called on a loop, by a backend that has something to open, close, read or write. A
    cancellation leaves the function running: nobody hears of its end.

    The thread ends with the call. On Linux a process that the function starts with a
    parent-death signal (`PR_SET_PDEATHSIG`, which some libraries set) is killed then: start
    such processes on a thread that lives as long as they do.

    Args:
        function: What to call.
        or_here: Whether it is called on the loop where no thread can be started: for what must
            be done at the end.

    Raises:
        RuntimeError: No thread can be started.
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

    try:
        thread = start_thread(run, getattr(function, "__name__", "rhapsody"))
    except RuntimeError:  # there are too many
        if or_here:
            return function()
        raise
    try:
        return await future
    finally:
        if future.done() and not future.cancelled():
            thread.join()  # it has nothing left to do
