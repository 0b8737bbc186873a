"""Threads for an event loop: blocking calls on threads, and a mailbox from threads to the loop.

Code that blocks must not run on the engine's loop. `asyncio.to_thread` uses the loop's executor,
whose threads Python joins at exit: a call that hangs would keep the program from ending. The
threads of this module are daemons, which Python does not join at exit.

A `Mailbox` passes items from any thread to one loop, in order and in batches. It is not a queue to
wait on: it schedules its delivery on the loop, and an empty mailbox never wakes the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar

from rhapsody.aio import settable

__all__ = ["Mailbox", "in_thread", "start_thread"]

T = TypeVar("T")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that runs a function. Python does not join the thread at exit."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def in_thread(function: Callable[[], T], *, or_here: bool = False) -> T:
    """Call a blocking function on a separate thread, and return its result.

    A backend calls this on its loop for functions that open, close, read or write something.
    If the call is canceled, the function continues to run, and its result is discarded.

    The thread ends with the function. On Linux, this kills any process that the function has
    started with a parent-death signal (`PR_SET_PDEATHSIG`, which some libraries set). Start such
    processes on a thread that lives as long as they do.

    Args:
        function: The function to call.
        or_here: True to call the function on the loop if no thread can be started, for work that
            must not be skipped at shutdown.

    Returns:
        The function's result.

    Raises:
        RuntimeError: No thread can be started.
        Exception: Any error that the function raised. A `StopIteration` is raised as the cause of a
            `RuntimeError`.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        thread = start_thread(
            partial(_call, function, future), getattr(function, "__name__", "rhapsody")
        )
    except RuntimeError:  # too many threads
        if or_here:
            return function()
        raise
    try:
        return await future
    finally:
        if future.done() and not future.cancelled():
            thread.join()  # the thread has nothing left to do


def _call(function: Callable[[], T], future: asyncio.Future[T]) -> None:
    """Call a function on this thread, and set its outcome in a future, on the future's loop."""
    value = error = None
    try:
        value = function()
    except BaseException as raised:  # raised where the future is awaited
        error = raised
    with suppress(RuntimeError):  # the loop is closed
        future.get_loop().call_soon_threadsafe(_settle, future, value, error)


def _settle(future: asyncio.Future[T], value: T | None, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)  # type: ignore[arg-type]
    else:
        future.set_exception(settable(error, "the call"))


class ThreadPool:
    """Pool of threads for blocking calls. Threads are started as they are needed.

    Unlike the threads of `concurrent.futures`, these are not joined at exit. Destructors may add
    calls.

    Args:
        size: The maximum number of threads.
        name: The name of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, call: Callable[[], object]) -> None:
        """Add a call to the queue of the threads.

        The call must not raise an exception. It runs when `start` has started a thread.

        This method may be called from any thread, and from destructors, because it takes no lock.
        """
        self._calls.put(call)

    def start(self) -> None:
        """Start one more thread unless all threads of the pool are running.

        Raises:
            RuntimeError: The thread cannot be started, and no other thread of the pool is running.
        """
        if len(self._threads) < self._size:
            try:
                self._threads.append(start_thread(self._work, self._name))
            except RuntimeError:
                if not self._threads:
                    raise

    async def run(self, function: Callable[[], T], *, or_here: bool = False) -> T:
        """Call a blocking function on a thread of the pool, and return its result.

        Args:
            function: The function to call.
            or_here: True to call the function on the loop if no thread can be started.

        Returns:
            The function's result.

        Raises:
            RuntimeError: No thread can be started.
            Exception: Any error that the function raised; see `in_thread`.
        """
        try:
            self.start()
        except RuntimeError:  # too many threads
            if or_here:
                return function()
            raise
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.put(partial(_call, function, future))
        return await future

    async def close(self) -> None:
        """Wait until all calls have returned, and end the threads."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            await in_thread(thread.join, or_here=True)
        if not self._calls.empty():  # no thread could be started
            self._calls.put(None)
            await in_thread(self._work, or_here=True)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # do not keep the call alive while waiting for the next one


TIME_SLICE = 0.005
"""Seconds after which `drain` returns to the loop, so that other callbacks can run."""


class Mailbox(Generic[T]):
    """Queue from any thread to one event loop.

    At most one wake-up of the loop is pending at a time.

    Args:
        loop: The loop on which `deliver` is called.
        deliver: Called with each item. Items from one thread are delivered in the order of `put`.
            An exception that it raises is passed to the loop's exception handler, and the other
            items are still delivered.
    """

    __slots__ = ("_deliver", "_items", "_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[T], object]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._items: deque[T] = deque()
        self._woken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item. May be called on any thread. Does nothing if the loop is closed."""
        self._items.append(item)
        if self._woken:
            return
        # Two threads may both reach this line. Then `drain` is called once too often, but never
        # too seldom, because it clears the flag before it looks for items.
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self.drain)
        except RuntimeError:  # the loop is closed
            self._woken = False
            self._items.clear()

    def drain(self) -> None:
        """Deliver items for about 5 ms, and leave the others for the loop's next iteration.

        The mailbox calls this method on the loop's thread. Other code may call it earlier on that
        thread, even from within `deliver`.
        """
        self._woken = False
        items = self._items
        end = 0.0
        try:
            while items:
                item = items.popleft()
                try:
                    self._deliver(item)
                except Exception as error:
                    # A failing call must not prevent the delivery of the other items.
                    self._loop.call_exception_handler(
                        {"message": f"{self._deliver!r} failed for {item!r}", "exception": error}
                    )
                del item  # do not keep the item alive while waiting for the next one
                now = perf_counter()
                if not end:
                    end = now + TIME_SLICE
                elif now > end:
                    return
        finally:
            if items and not self._woken:
                self._woken = True
                self._loop.call_soon(self.drain)
