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
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar, TypeVarTuple

from rhapsody.aio import settable

__all__ = ["Mailbox", "in_thread", "start_thread"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def start_thread(function: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that runs a function. Python does not join the thread at exit."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def in_thread(
    function: Callable[[*Arguments], T], *args: *Arguments, or_here: bool = False
) -> T:
    """Call a blocking function on a separate thread, and return its result.

    A backend calls this on its loop for functions that open, close, read or write something.
    If the call is canceled, the function continues to run, and its result is discarded.

    The thread ends with the function. On Linux, this kills any process that the function has
    started with a parent-death signal (`PR_SET_PDEATHSIG`, which some libraries set). Start such
    processes on a thread that lives as long as they do.

    Args:
        function: The function to call.
        *args: Its arguments.
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
        name = getattr(function, "__name__", "rhapsody")
        thread = start_thread(partial(_call, partial(function, *args), future), name)
    except RuntimeError:  # too many threads
        if or_here:
            return function(*args)
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


SLOW_CALL = 0.002
"""Seconds after which a call is slow, so that a pool uses another thread for the next calls."""


class ThreadPool:
    """Pool of threads for blocking calls. Threads are started as they are needed.

    Unlike the threads of `concurrent.futures`, these are not joined at exit. Destructors may add
    calls. The threads run until `close`, because programs that they have started may end with them;
    see `in_thread`.

    One thread makes all calls as long as it returns from each within about 2 ms. While a call takes
    longer, as on a slow file system, other threads make the next calls. Threads that return from
    fast system calls at the same time would mostly wait for the interpreter.

    Args:
        size: The maximum number of threads.
        name: The name of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open: deque[None] = deque()  # one item for each call that has not returned
        self._lock = threading.Lock()  # for the threads to be no more than `size`
        self._late: SimpleQueue[bool] = SimpleQueue()  # wakes threads other than the first

    def put(self, call: Callable[[], object]) -> None:
        """Add a call to the queue of the threads.

        The call must not raise an exception. It runs when `start` has started a thread.

        This method may be called from any thread, and from destructors, because it takes no lock.
        """
        self._open.append(None)
        self._calls.put(call)

    def start(self) -> None:
        """Start the first thread unless it is running.

        Raises:
            RuntimeError: The thread cannot be started.
        """
        if not self._threads:
            self._threads.append(start_thread(self._work, self._name))

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
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        waits = bool(self._open)
        self.put(partial(_call, function, future))
        if not waits:
            return await future
        timer = loop.call_later(SLOW_CALL, self._use_another)
        try:
            return await future
        finally:
            timer.cancel()

    def _use_another(self) -> None:
        """Let another thread make the calls that are waiting now, if any."""
        if self._calls.empty():
            return
        with self._lock:
            if len(self._threads) < self._size:
                with suppress(RuntimeError):  # too many threads
                    self._threads.append(start_thread(self._help, self._name))
            elif self._size > 1:
                self._late.put(True)

    async def close(self) -> None:
        """Wait until all calls have returned, and end the threads."""
        if self._threads:
            self._calls.put(None)
        for _ in range(self._size):
            self._late.put(False)
        for thread in self._threads:  # slow calls may still add threads
            await in_thread(thread.join, or_here=True)
        self._threads, self._late = [], SimpleQueue()
        calls = [self._calls.get() for _ in range(self._calls.qsize())]
        if any(calls):  # no thread could be started
            await in_thread(lambda: [call() for call in calls if call is not None], or_here=True)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._make(call)
            del call  # do not keep the call alive while waiting for the next one

    def _help(self) -> None:
        goes_on = True
        while True:
            with suppress(Empty):
                while (call := self._calls.get_nowait()) is not None:
                    self._make(call)
                    del call
                self._calls.put(None)  # for the first thread
            if not goes_on:
                return
            goes_on = self._late.get()

    def _make(self, call: Callable[[], object]) -> None:
        begin = perf_counter()
        call()
        self._open.popleft()
        if perf_counter() - begin > SLOW_CALL:
            self._use_another()


FAST_FILES = 0.0002
"""Seconds in which a fast file system creates a few files."""

FAST_CALLS = 5
"""Number of consecutive fast calls after which the loop makes the next call itself."""


class FastCalls:
    """Decides whether calls of one kind are made on a thread or on the loop.

    Calls to a slow file system block the loop, but a fast call takes several times as long on a
    thread, which mostly waits for the interpreter. Therefore, the first calls are made on a thread.
    After some fast ones, the loop makes the next calls itself, until one of them is slow.
    """

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    @property
    def on_loop(self) -> bool:
        """True if the loop should make the next call itself."""
        return self._count >= FAST_CALLS

    def note(self, fast: bool) -> None:
        """Record whether a call was fast. Called on the thread that made the call."""
        self._count = self._count + 1 if fast else 0


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
