"""Programs without asyncio: `rhapsody.run` and a `main(flow)` that is not a coroutine function.

Such a `main` runs on a separate thread, as a synchronous block does, because the engine needs the
thread of its loop. It is not a block: it is not part of the graph, and an exception that it raises
is an error of the program, not a failed task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import Any, TypeVar, overload

from rhapsody.aio import settable
from rhapsody.engine.blocks import calls_tasks
from rhapsody.engine.engine import WorkflowEngine
from rhapsody.sdk.threads import start_thread
from rhapsody.task import is_async

T = TypeVar("T")


@overload
def run(
    main: Callable[[WorkflowEngine], Coroutine[Any, Any, asyncio.Future[T]]], /, **settings: Any
) -> T: ...
@overload
def run(main: Callable[[WorkflowEngine], Coroutine[Any, Any, T]], /, **settings: Any) -> T: ...
@overload
def run(main: Callable[[WorkflowEngine], asyncio.Future[T]], /, **settings: Any) -> T: ...
@overload
def run(main: Callable[[WorkflowEngine], T], /, **settings: Any) -> T: ...
def run(main: Callable[[WorkflowEngine], Any], /, **settings: Any) -> Any:
    """Make an engine, call `main` with it, and shut it down when all its tasks have ended.

    Args:
        main: A function of one argument, the engine. A coroutine function runs on the engine's
            event loop. Any other runs on a thread, where it calls tasks and waits for them with
            `rhapsody.wait`.
        **settings: Those of `WorkflowEngine.create`.

    Returns:
        The return value of `main`; if that is a future, its result.

    Raises:
        TypeError: `main` cannot be called with an engine, or a setting is of the wrong type.
        ValueError: A setting is out of range.
        RuntimeError: An event loop runs on this thread already.
        BaseException: Whatever `main` raises.
    """
    problem = "is not callable" if not callable(main) else not_a_main(main)
    if problem is not None:
        raise TypeError(f"rhapsody.run() takes a function of one argument: {main!r} {problem}")
    if running_loop() is not None:
        raise RuntimeError(
            "rhapsody.run() makes an event loop, and one is running on this thread: write `async "
            "with WorkflowEngine.create() as flow:` here instead"
        )

    async def program() -> Any:
        async with WorkflowEngine.create(**settings) as flow:
            return await call_main(main, flow)

    return asyncio.run(program())


def not_a_main(main: Callable[..., Any]) -> str | None:
    """Return the reason why a function cannot be called with an engine alone, if any."""
    try:
        inspect.signature(main).bind(None)
    except TypeError:
        return "must take one argument, the workflow engine"
    except ValueError:  # it has no signature
        pass
    return None


async def call_main(main: Callable[[WorkflowEngine], Any], flow: WorkflowEngine) -> Any:
    """Call a program's `main`, on a thread if it is no coroutine function."""
    value = await (main(flow) if is_async(main) else _on_thread(partial(main, flow)))
    while issubclass(type(value), asyncio.Future | CoroutineType):
        value = await value
    return value


async def _on_thread(function: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()
    context.run(calls_tasks.set, True)

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():  # a signal has ended the program meanwhile
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(settable(error, "main"))

    def call() -> None:
        value = error = None
        try:
            value = context.run(function)
        except BaseException as raised:  # raised again where `main` is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    start_thread(call, "rhapsody main")
    return await future
