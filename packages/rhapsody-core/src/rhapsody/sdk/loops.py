"""Event loops that run users' coroutines and are reused for further coroutines.

Creating a new loop for each task, as `asyncio.run` does, takes several times as long as a short
task. When a coroutine ends, the asyncio tasks that it has started and not awaited are canceled, so
that the next coroutine starts on a clean loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from rhapsody.errors import describe_error
from rhapsody.sdk.runner import trimmed
from rhapsody.sdk.threads import Mailbox

__all__ = ["OWN_FILES", "SharedLoop", "WorkerLoop", "without_own_frames"]

log: logging.Logger = logging.getLogger(__name__)

CLEANUP_TIMEOUT = 5.0
"""Number of seconds that asyncio tasks left behind by a coroutine may take to end once canceled."""

_family: contextvars.ContextVar[set[asyncio.Task[Any]] | None] = contextvars.ContextVar(
    "rhapsody_family", default=None
)


_Outcome = tuple[Any, BaseException | None]

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
OWN_FILES = tuple(os.path.join(_PACKAGE, part, "") for part in ("sdk", "backends"))
"""Path prefixes of core's own code, whose frames are removed from the start of tracebacks."""


def without_own_frames(error: BaseException) -> BaseException:
    """Return an exception with a traceback that begins in the user's code.

    The frames of core's backends and of this package at the start of the traceback are removed.
    """
    return trimmed(error, OWN_FILES)


def _task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Create an asyncio task, and add it to the set of tasks that the user's coroutine started."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    family = _family.get()
    if family is not None:
        family.add(task)
        task.add_done_callback(family.discard)
    return task


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(_task_factory)  # type: ignore[arg-type]
    return loop


async def _end_family(family: set[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that a coroutine has left behind, and wait until they have ended."""
    left = set(family)
    for task in left:
        task.cancel()
    _, pending = await asyncio.wait(left, timeout=CLEANUP_TIMEOUT)
    if pending:
        log.warning(
            "%d asyncio tasks left behind by a task: still running %s s after being canceled",
            len(pending),
            CLEANUP_TIMEOUT,
        )


def _run_until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Run a loop until a task is done, even if the loop is stopped before that."""
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        loop.run_forever()


class WorkerLoop:
    """Loop that runs one coroutine at a time, on the calling thread.

    This class is for a worker whose thread runs one task after another. Between coroutines, the
    loop does not run. `run` cannot be called on a thread with a running loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(
        self,
        coroutine: Coroutine[Any, Any, Any],
        started: Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], object] | None = None,
    ) -> Any:
        """Run a coroutine to its end, blocking the calling thread.

        Asyncio tasks that the coroutine leaves behind are canceled and given some time to end.

        Args:
            coroutine: The coroutine.
            started: Called with the loop and the asyncio task that runs the coroutine, before the
                coroutine's first step. Another thread can then cancel the coroutine:
                `loop.call_soon_threadsafe(task.cancel)`.

        Returns:
            The result of the coroutine.

        Raises:
            BaseException: The exception of the coroutine; `asyncio.CancelledError` if the coroutine
                was canceled.
        """
        if self._loop is None:
            self._loop = _new_loop()
            # If this object is in a cycle, the garbage collector may call the loop's `__del__`,
            # which warns that the loop is not closed, before a `__del__` of this class. Finalizers
            # are called before both.
            self._finalizer = weakref.finalize(self, self._loop.close)
            self._finalizer.atexit = False  # a daemon thread may still run the loop at exit
        loop = self._loop
        family: set[asyncio.Task[Any]] = set()
        task = _started(lambda: coroutine, family, contextvars.copy_context(), loop)
        raised: BaseException | None
        try:
            if started is not None:
                started(loop, task)
            _run_until_done(loop, task)
            value, raised = task.result()
        except BaseException as error:  # a cancellation, or a SystemExit from any asyncio task
            value, raised = None, error
            _run_until_done(loop, asyncio.Task(_end_family(family | {task}), loop=loop))
        if family or not task.done():
            self.close()  # the next coroutine receives a clean loop
        if raised is not None:
            try:
                raise raised
            finally:
                del raised, task  # the traceback refers to this frame
        return value

    def close(self) -> None:
        """Close the idle loop. May be called on any thread. A later `run` creates another loop."""
        if self._loop is not None:
            self._loop = None
            self._finalizer()


class SharedLoop:
    """Loop that runs many coroutines at the same time, on one separate thread.

    This class is for coroutines that mostly wait. `call` and `stop` may be called on any thread,
    and by several threads concurrently.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # held while the thread is started or removed
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: Mailbox[Callable[[], object]] | None = None

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop's thread soon. The first call starts the thread.

        Raises:
            RuntimeError: The thread cannot be started.
        """
        inbox = self._inbox
        if inbox is None:
            inbox = self._opened()
        inbox.put(function)

    def _opened(self) -> Mailbox[Callable[[], object]]:
        """Start the loop's thread unless it is running, and return its inbox."""
        with self._lock:
            if self._inbox is None:
                loop = _new_loop()
                self._loop = loop
                self._thread = threading.Thread(
                    target=self._run, args=(loop,), name=self._name, daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = self._loop = None
                    loop.close()
                    raise
                self._inbox = Mailbox(loop, lambda function: function())
            return self._inbox

    def start(
        self,
        call: Callable[[], Coroutine[Any, Any, Any]],
        ended: Callable[[Any, BaseException | None], object],
        context: contextvars.Context,
    ) -> asyncio.Task[_Outcome]:
        """Start a coroutine. Must be called on the loop's thread; see `call`.

        Args:
            call: Function that returns the coroutine. It is called in `context`.
            ended: Called on the loop's thread once the coroutine has ended. The arguments are the
                coroutine's result and exception; the one that does not exist is `None`.
            context: The context in which the coroutine runs.

        Returns:
            The asyncio task that runs the coroutine. Canceling this task cancels the coroutine.
        """
        task = _started(call, set(), context, asyncio.get_running_loop())
        task.add_done_callback(partial(_call_ended, ended))
        return task

    def stop(self, timeout: float) -> None:
        """End the thread without finishing its coroutines.

        Wait at most `timeout` seconds for the thread. A later `call` starts another thread.
        """
        with self._lock:
            thread, loop, inbox = self._thread, self._loop, self._inbox
            self._thread = self._loop = self._inbox = None
        if thread is None or loop is None or inbox is None:
            return
        inbox.put(loop.stop)  # no effect if a coroutine has just stopped the loop: it is closed
        thread.join(timeout)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._loop is loop:  # a coroutine must not stop the loop of other coroutines
            try:
                loop.run_forever()
            except BaseException as error:  # a SystemExit from a task that a coroutine started
                log.warning("shared loop: an asyncio task raised %s", describe_error(error))
        loop.close()


def _started(
    call: Callable[[], Coroutine[Any, Any, Any]],
    family: set[asyncio.Task[Any]],
    context: contextvars.Context,
    loop: asyncio.AbstractEventLoop,
) -> asyncio.Task[_Outcome]:
    """Create the asyncio task that runs a coroutine and then ends the tasks in its `family`."""
    context.run(_family.set, family)
    return asyncio.Task(_drive(call, family), loop=loop, context=context)


async def _drive(
    call: Callable[[], Coroutine[Any, Any, Any]], family: set[asyncio.Task[Any]]
) -> _Outcome:
    value = error = None
    try:
        value = await call()
    except BaseException as raised:  # whatever a coroutine raises is its result
        error = raised
    if family:
        await _end_family(family)
    return value, error


def _call_ended(
    ended: Callable[[Any, BaseException | None], object], task: asyncio.Task[_Outcome]
) -> None:
    if task.cancelled():  # before the first step, or while the tasks left behind were ended
        ended(None, asyncio.CancelledError())
    else:
        ended(*task.result())
