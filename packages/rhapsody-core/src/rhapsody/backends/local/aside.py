"""Blocking work beside the loop, on threads that nobody waits for at exit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from rhapsody.aio import settable

T = TypeVar("T")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Runs a function on a thread that nobody joins."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def in_thread(function: Callable[[], T]) -> T:
    """What a blocking function returns, run on a thread of its own.

    Unlike `asyncio.to_thread` it leaves the loop's executor alone, and its end is
    nobody's business when the program ends.
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
