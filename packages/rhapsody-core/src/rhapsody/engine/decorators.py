"""The decorators, and the ways to make many tasks at once.

The base class of `WorkflowEngine`; apart because its signatures are long.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from rhapsody.engine.settings import Settings, TaskSettings, whole_number
from rhapsody.engine.submission import Submission, current_scope
from rhapsody.engine.task_function import CallKind, TaskFunction, definition_settings, make_task
from rhapsody.task import TaskFuture

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Command = str | Sequence[str | os.PathLike[str]]
"""A command: a string for a shell, or a list of arguments, which may be files and paths."""

_LATER: Any = object()
"""Says that a decorator was called with its settings alone."""


class FunctionDecorator(Protocol):
    """What `@flow.function_task(...)` with settings returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class BlockDecorator(Protocol):
    """What `@flow.block(...)` with settings returns."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, asyncio.Future[R]]], /
    ) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, asyncio.Future[R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class ExecutableDecorator(Protocol):
    """What `@flow.executable_task(...)` with settings gives."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, Command]], /
    ) -> TaskFunction[P, str]: ...
    @overload
    def __call__(self, function: Callable[P, Command], /) -> TaskFunction[P, str]: ...


class Decorators:
    """How functions become tasks and blocks of an engine."""

    _calls: Submission

    @overload
    def function_task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R]: ...
    @overload
    def function_task(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...
    @overload
    def function_task(self, /, **settings: Unpack[TaskSettings]) -> FunctionDecorator: ...
    def function_task(self, function: Any = _LATER, /, **settings: Any) -> Any:
        """Makes tasks of a function; `@flow.function_task` or `@flow.function_task(...)`.

        Calling the decorated function returns a `TaskFuture` of its result at once.
        The function, synchronous or a coroutine function, runs on the backend;
        futures among its arguments are waited for and replaced by their values.

        Args:
            function: The function to decorate.
            **settings: See `rhapsody.TaskSettings`.

        Raises:
            TypeError: Not callable, an unknown setting, or one of the wrong type.
            ValueError: A setting out of range.
        """
        return self._decorate("function", function, settings)

    @overload
    def executable_task(
        self, function: Callable[P, Coroutine[Any, Any, Command]], /
    ) -> TaskFunction[P, str]: ...
    @overload
    def executable_task(self, function: Callable[P, Command], /) -> TaskFunction[P, str]: ...
    @overload
    def executable_task(self, /, **settings: Unpack[TaskSettings]) -> ExecutableDecorator: ...
    def executable_task(self, function: Any = _LATER, /, **settings: Any) -> Any:
        """Makes tasks of the commands that a function returns.

        The function runs on the engine's loop once its dependencies have their
        values, and returns a string, run by a shell, or a list of arguments, run
        without one. The command runs in a sandbox directory of its own. The future's
        result is its standard output; a non-zero exit code fails it with
        `TaskFailedError`.

        Args:
            function: The function to decorate.
            **settings: See `rhapsody.TaskSettings`.

        Raises:
            TypeError: Not callable, an unknown setting, or one of the wrong type.
            ValueError: A setting out of range.
        """
        return self._decorate("executable", function, settings)

    @overload
    def block(
        self, function: Callable[P, Coroutine[Any, Any, asyncio.Future[R]]], /
    ) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, asyncio.Future[R]], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...
    @overload
    def block(self, /, **settings: Unpack[TaskSettings]) -> BlockDecorator: ...
    def block(self, function: Any = _LATER, /, **settings: Any) -> Any:
        """Makes a part of the workflow that calls tasks and awaits them.

        A coroutine function runs on the engine's loop. A synchronous one runs in a
        thread of its own and waits with `rhapsody.wait`. A future that a block returns
        is awaited: its value is the block's. Cancelling a block cancels what it has
        started and is unfinished.

        Args:
            function: The function to decorate.
            **settings: `name` and `after`, see `rhapsody.TaskSettings`.

        Raises:
            TypeError: Not callable, or an unknown setting.
        """
        return self._decorate("block", function, settings)

    def _decorate(self, kind: CallKind, function: Any, settings: dict[str, Any]) -> Any:
        def decorate(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
            base = Settings()
            if callable(function):
                base = base.changed(definition_settings(function))
            return make_task(self._calls, kind, function, base, settings)

        return decorate if function is _LATER else decorate(function)

    def map(
        self, task: Callable[..., TaskFuture[T]], /, *iterables: Iterable[Any]
    ) -> list[TaskFuture[T]]:
        """Calls a task with the items of each iterable, like the built-in `map`.

        Args:
            task: A decorated function.
            *iterables: Its arguments; the shortest one ends the map.

        Returns:
            The futures in order, submitted as one batch.
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable of arguments")
        return [_call("map", task, *arguments) for arguments in zip(*iterables, strict=False)]

    async def imap(
        self,
        task: Callable[..., TaskFuture[T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        window: int = 1000,
    ) -> AsyncGenerator[T, None]:
        """Calls a task with each item and yields the results in order, in bounded memory.

        Draws the next item when a result is taken, so that `iterable` may be
        larger than memory. Leaving the loop early, or a failure, cancels the calls
        that are under way.

        Args:
            task: A decorated function of one argument.
            iterable: Its arguments, from a plain or an asynchronous iterable.
            window: How many calls may be under way at once.

        Yields:
            The results.

        Raises:
            ValueError: `window` is less than 1.
            BaseException: What the first failed call raised.
        """
        window = whole_number("window", 1)(window)
        futures: deque[TaskFuture[T]] = deque()
        try:
            if isinstance(iterable, AsyncIterable):
                async for item in iterable:
                    futures.append(_call("imap", task, item))
                    if len(futures) >= window:
                        yield await futures.popleft()
            else:
                for item in iterable:
                    futures.append(_call("imap", task, item))
                    if len(futures) >= window:
                        yield await futures.popleft()
            while futures:
                yield await futures.popleft()
        finally:
            for future in futures:
                future.cancel()

    def scope(self, name: str) -> AbstractAsyncContextManager[str]:
        """Labels the tasks that are made inside, in events, reports and traces.

        Args:
            name: The label. Inside another scope it is joined to that one's with `/`.

        Returns:
            To be entered with `async with`, which gives the whole label.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"scope() takes a non-empty string, got {name!r}")
        return _Scope(name)


class _Scope(AbstractAsyncContextManager[str]):
    """The block of `scope`."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __aenter__(self) -> str:
        outer = current_scope.get()
        label = self._name if outer is None else f"{outer}/{self._name}"
        self._token = current_scope.set(label)
        return label

    async def __aexit__(self, *error: object) -> None:
        current_scope.reset(self._token)


def _call(caller: str, task: Callable[..., Any], *arguments: Any) -> TaskFuture[Any]:
    """Calls what the user gave in place of a task.

    Raises:
        TypeError: It does not return a future.
    """
    future = task(*arguments) if callable(task) else None
    if not isinstance(future, TaskFuture):
        raise TypeError(
            f"{caller}() takes a decorated function, or one that returns a task's future, "
            f"got {task!r}"
        )
    return future
