"""Floors: the standard library alone, used as efficiently as possible."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from benchmarks.suite.contestant import SLOTS, Contestant


class Tasks(Contestant):
    """asyncio tasks: one for each call, which awaits its dependencies."""

    title = "asyncio tasks"

    async def start(self) -> None:
        """Do nothing."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Create a task."""
        if arguments and isinstance(arguments[-1], asyncio.Future):
            return asyncio.create_task(after(function, arguments))
        return asyncio.create_task(at_once(function, arguments))

    async def wait(self, futures: Sequence[Any]) -> None:
        """Await all futures."""
        await asyncio.gather(*futures)


async def at_once(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function, and await the result if it is a coroutine."""
    result = function(*arguments)
    return await result if asyncio.iscoroutine(result) else result


async def after(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function with the results of the futures among its arguments."""
    values = [await each if isinstance(each, asyncio.Future) else each for each in arguments]
    return function(*values)


class Futures(Tasks):
    """asyncio futures that the loop resolves without a task: the lowest possible cost."""

    title = "asyncio futures"

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Create a future."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        return future


class InExecutor(Tasks):
    """Threads behind `loop.run_in_executor`, the usual way in asyncio programs."""

    title = "run_in_executor"

    async def start(self) -> None:
        """Start the threads."""
        self.pool = self.stack.enter_context(ThreadPoolExecutor(SLOTS))
        self.loop = asyncio.get_running_loop()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Pass a call to the executor when its arguments are ready."""
        if arguments and isinstance(arguments[-1], asyncio.Future):
            return self.loop.create_task(self.later(function, arguments))
        return self.loop.run_in_executor(self.pool, function, *arguments)

    async def later(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Await the arguments, then pass the call to the executor."""
        values = [await each if isinstance(each, asyncio.Future) else each for each in arguments]
        return await self.loop.run_in_executor(self.pool, function, *values)


class Pool(Contestant):
    """An executor whose futures submit the calls that depend on them, in callbacks."""

    async def start(self) -> None:
        """Start the executor."""
        self.pool = self.stack.enter_context(self.executor())
        self.lock = threading.Lock()

    def executor(self) -> Executor:
        """Return the executor."""
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a call when its arguments are ready."""
        waits = [each for each in arguments if isinstance(each, Future)]
        if not waits:
            return self.pool.submit(function, *arguments)
        done: Future[Any] = Future()
        left = len(waits)

        def arrived(_: Future[Any]) -> None:
            nonlocal left
            with self.lock:
                left -= 1
                if left:
                    return
            values = [each.result() if isinstance(each, Future) else each for each in arguments]
            inner = self.pool.submit(function, *values)
            inner.add_done_callback(lambda future: done.set_result(future.result()))

        for future in waits:
            future.add_done_callback(arrived)
        return done

    async def wait(self, futures: Sequence[Any]) -> None:
        """Wait for the futures one after the other."""
        for future in futures:
            future.result()


class ThreadPool(Pool):
    """Threads."""

    title = "ThreadPoolExecutor"

    def executor(self) -> Executor:
        """Return an executor with as many threads as cores."""
        return ThreadPoolExecutor(SLOTS)


class ProcessPool(Pool):
    """Processes."""

    title = "ProcessPoolExecutor"

    def executor(self) -> Executor:
        """Return an executor with as many processes as cores."""
        return ProcessPoolExecutor(SLOTS)
