"""Handling of SIGINT, SIGTERM and SIGHUP: the first signal shuts down all engines.

After the shutdown, the main coroutine receives `KeyboardInterrupt` for SIGINT and
`SystemExit(128 + n)` for the other signals. Before that, the handler that the program had set is
called, if there is one; the main coroutine receives an exception that it raises instead. A second
signal kills the programs and worker processes of tasks, and its exception ends the loop. If the
loop is blocked, the exception is raised in the blocking code instead, possibly in the middle of a
step.

One registry per process serves all engines. When the last engine closes, the registry restores the
handlers that it replaced. An ignored signal stays ignored, as `nohup` expects. A forked child,
which has no loop, starts with an empty registry and the replaced handlers.

`loop.add_signal_handler` is not enough: its callbacks cannot run while the loop is blocked, and it
would replace callbacks that the program has set on the same loop. `asyncio.Runner` handles only
SIGINT, and cancels the main task, which a program may mistake for a cancellation it requested. This
module therefore sets handlers with `signal.signal`, and `_Alarm` wakes the loop as asyncio does for
its own handlers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

from rhapsody.sdk.processes import kill_groups

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SIGNAL_INTERVAL = 0.1
"""Seconds within which two signals are treated as one.

The command `timeout`, and a terminal that is closed, send two signals.
"""

T = TypeVar("T")

Handler = Callable[[int, FrameType | None], Any]

Stop = Callable[[int], Coroutine[Any, Any, None]]


class _Registry:
    """Registry of the engines that signals shut down, and of the replaced signal handlers."""

    def __init__(self) -> None:
        self._stops: dict[object, tuple[Stop, Callable[[], Any]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._found: dict[int, Any] = {}
        self._received: float | None = None  # time of the last signal
        self._forced = False  # True after a second signal
        self._ending: asyncio.Task[None] | None = None
        self._alarm: _Alarm | None = None

    def add(self, engine: object, stop: Stop, settle: Callable[[], Any]) -> None:
        """Register an engine to be stopped on a signal.

        Do nothing outside the main thread, because only that thread handles signals.

        Args:
            engine: The engine, or a placeholder for one that is starting.
            stop: Coroutine function that stops the engine's work and leaves its futures pending;
                called with the number of the signal.
            settle: Function that settles the futures; called after the signal's exception was
                raised in the main coroutine.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        if self._stops and self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                return
            self._forget()  # engines that were not shut down, of a loop that has ended
        self._loop = loop
        if self._main is None or self._main.done():
            self._main = _outermost(loop)
        self._stops[engine] = (stop, settle)
        if not self._found:
            for number in SIGNALS:
                found = signal.getsignal(number)
                if found is not signal.SIG_IGN:  # such as SIGHUP under `nohup`
                    self._found[number] = found
                    signal.signal(number, self._receive)
            if self._found:
                self._alarm = _Alarm(loop)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine that starts an engine, and cancel it if a signal arrives.

        The signal's exception is raised after `work` has cleaned up.

        Args:
            work: The coroutine, which cleans up if it is canceled.

        Returns:
            The result of `work`.
        """
        running = asyncio.ensure_future(work)
        gate = running.get_loop().create_future()  # where the signal's exception is raised
        signalled = False

        def ended(_: object) -> None:
            if not signalled and not gate.done():
                gate.set_result(None)

        async def stop(_: int) -> None:
            nonlocal signalled
            signalled = True
            running.cancel()
            await asyncio.wait([running])

        running.add_done_callback(ended)
        self.add(gate, stop, gate.cancel)
        try:
            await gate
        except BaseException:  # the signal's, or a cancellation of the caller
            running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # mark it as retrieved: the other exception is raised
            raise
        finally:
            self.remove(gate)
        return running.result()

    @property
    def interrupted(self) -> bool:
        """True if a signal was received whose exception has not been raised yet."""
        return self._received is not None

    async def delivered(self) -> None:
        """If a signal was received, wait until its exception is raised in the main coroutine.

        Otherwise return immediately.
        """
        if self._received is not None and self._ending is None:
            await asyncio.sleep(0)  # let the loop call `_start`
        if self._ending is not None:
            await asyncio.wait([self._ending])

    def remove(self, engine: object) -> None:
        """Remove an engine; if it was the last one, restore the replaced signal handlers."""
        if self._stops.pop(engine, None) is not None and not self._stops and self._received is None:
            self._forget()

    def _forget(self) -> None:
        self._stops.clear()
        found, self._found = self._found, {}
        for number, handler in found.items():
            if signal.getsignal(number) == self._receive and handler is not None:
                signal.signal(number, handler)
        if self._alarm is not None:
            self._alarm.close()
        self._alarm = None
        self._loop = self._main = self._ending = None
        self._received = None
        self._forced = False

    def _replaced(self, number: int) -> Handler | None:
        """Return the program's own handler of a signal, which was replaced, or `None`."""
        found = self._found.get(number)
        if not callable(found) or found is signal.default_int_handler or _is_of_runner(found):
            return None
        handler: Handler = found
        return handler

    def forked(self) -> None:
        """Restore the replaced signal handlers in a forked child, and forget the engines.

        The child shares the epoll object of the loop with its parent, so the loop is not touched.
        """
        # The handler of `asyncio.Runner` cancels a task that no longer runs.
        if _is_of_runner(self._found.get(signal.SIGINT)):
            self._found[signal.SIGINT] = signal.default_int_handler
        if self._alarm is not None:
            self._alarm.close_sockets()
            self._alarm = None
        self._forget()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        loop, now = self._loop, time.monotonic()
        if loop is None or not loop.is_running():
            former = self._replaced(number)
            self._forget()
            if former is None:
                raise _exception(number)
            former(number, frame)
            return
        if self._received is None:
            self._received = now
            loop.call_soon_threadsafe(self._start, number)
        elif now - self._received < SIGNAL_INTERVAL:
            return
        elif self._ending is None or self._forced:  # the loop is blocked
            main = self._main
            self._forget()
            kill_groups()
            loop.call_soon_threadsafe(_insist, main, number)
            raise _exception(number)
        else:
            self._received, self._forced = now, True
            kill_groups()  # the graceful shutdown is still waiting for these programs
            loop.call_soon_threadsafe(self._force, number)

    def _force(self, number: int) -> None:
        """Raise the second signal's exception in a callback of the loop, while no task runs."""
        if self._forced:
            self._forget()
            raise _exception(number)

    def _start(self, number: int) -> None:
        if self._loop is None:  # a second signal came while the loop was blocked
            return
        self._ending = self._loop.create_task(self._end(number), name="rhapsody interrupted")

    async def _end(self, number: int) -> None:
        stops = list(self._stops.values())
        main, former = self._main, self._replaced(number)
        await asyncio.gather(*(stop(number) for stop, _ in stops), return_exceptions=True)
        self._forget()
        error: BaseException = _exception(number)
        if former is not None:
            try:
                former(number, None)
            except BaseException as raised:  # of the program's handler, such as `SystemExit`
                error = raised
        if main is not None:
            _raise_in(main, error)
        for _, settle in stops:
            settle()


class _Alarm:
    """Wakeup descriptor that wakes a loop for signals that do not interrupt its wait.

    These are signals that arrive just before the wait begins, and signals that the system delivers
    to another thread: Python runs their handlers only when the main thread continues.

    Args:
        loop: The loop of the main thread, on which this is created.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reads, self._writes = socket.socketpair()
        self._reads.setblocking(False)
        self._writes.setblocking(False)
        former = signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
        if former != -1:  # asyncio's, which wakes the loop as well
            signal.set_wakeup_fd(former)
        loop.add_reader(self._reads, self._reads.recv, 4096)

    def close(self) -> None:
        """Stop waking the loop, and close the sockets."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._reads)
        self.close_sockets()

    def close_sockets(self) -> None:
        """Close the wakeup descriptor, after removing it unless the program has set another one."""
        former = signal.set_wakeup_fd(-1)
        if former != self._writes.fileno():
            signal.set_wakeup_fd(former)
        self._reads.close()
        self._writes.close()


def _is_of_runner(handler: object) -> bool:
    """Return True if a handler is the one that `asyncio.run` sets for SIGINT."""
    return isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _insist(main: asyncio.Task[Any] | None, number: int) -> None:
    """Raise a signal's exception again if the blocking code caught it and the loop continues."""
    if main is not None and not main.done() and not main.cancelling():
        raise _exception(number)


def _outermost(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    """Return the first task that is not done, presumably the one that `asyncio.run` created."""
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
    numbered = sorted(tasks, key=_number)
    return numbered[0] if numbered else None


def _number(task: asyncio.Task[Any]) -> tuple[int, str]:
    name = task.get_name()
    tail = name.removeprefix("Task-")
    return (int(tail), "") if tail.isdecimal() else (1 << 62, name)


def _raise_in(task: asyncio.Task[Any], error: BaseException) -> None:
    """Raise `error` at the point where a suspended task waits.

    If the task waits for a plain future, the exception is set on that future; if it waits for
    another task, the same applies to that task. Otherwise, the task is canceled, and the error is
    raised in the loop once the task has ended.
    """
    waits_for: Any = task
    while hasattr(waits_for, "get_coro"):  # a task of any class
        task = waits_for
        waits_for = getattr(task, "_fut_waiter", None)
    if asyncio.isfuture(waits_for) and not waits_for.done():
        waits_for.set_exception(error)
        return

    def end(_: asyncio.Task[Any]) -> None:
        raise error

    task.add_done_callback(end)
    task.cancel()


registry: _Registry = _Registry()
os.register_at_fork(after_in_child=registry.forked)
