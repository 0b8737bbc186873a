"""Values that are built where tasks use them, once in each process.

The program only holds handles of these values. A task that receives a handle as an argument is
called with the value. In a worker, unpickling the handle returns the value, which
`rhapsody.sdk.runner` keeps. For functions that run in the program's own process, `with_values`
replaces the handles.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from rhapsody.data import File
from rhapsody.errors import describe_error
from rhapsody.sdk.calls import argument_name
from rhapsody.sdk.runner import CLASSES, dumps, worker_values
from rhapsody.task import is_async

T = TypeVar("T")
P = ParamSpec("P")

Fill = Callable[[tuple[Any, ...], dict[str, Any], dict[int, Any]], tuple[Any, Any]]


class WorkerValue(Generic[T]):
    """Handle of a value that each worker process builds once, when a task first needs it.

    Calling a function that was decorated with `WorkflowEngine.worker_value`, the factory, returns a
    handle. Handles of the same factory with the same arguments are equal, and stand for the same
    value.

    A function task that receives the handle is called with the value instead. Lists, tuples, dicts,
    sets, named tuples and dataclasses in the arguments may contain handles, just as they may
    contain futures. Blocks and functions that return commands receive the handle itself.

    Attributes:
        name: The name of the factory.
        factory: The function that builds the value.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        per_thread: True if each thread of a process has its own value.
    """

    __slots__ = ("__dict__", "__weakref__", "args", "factory", "kwargs", "name", "per_thread")

    def __init__(
        self,
        name: str,
        factory: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        per_thread: bool = False,
    ) -> None:
        self.name: str = name
        self.factory: Callable[..., Any] = factory
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs
        self.per_thread: bool = per_thread

    @cached_property
    def _packed(self) -> bytes:
        named: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for argument, value in named:
            try:
                dumps(value)
            except BaseException as error:  # pickling runs the objects' own code
                part = argument_name(self.factory, argument)
                raise TypeError(
                    f"worker value {self.name!r}: {part} ({type(value).__qualname__}) cannot be "
                    f"pickled: {describe_error(error)}; pass data that can be pickled"
                ) from error
        try:
            return dumps((self.factory, self.args, self.kwargs))
        except BaseException as error:  # it uses an object that cannot be pickled
            raise TypeError(
                f"worker value {self.name!r}: its function cannot be pickled: "
                f"{describe_error(error)}; create such objects inside the function"
            ) from error

    @property
    def size(self) -> int:
        """The size in bytes of what a worker receives; `sys.maxsize` if it cannot be pickled."""
        try:
            return len(self._packed)
        except TypeError:  # the backend reports it
            return sys.maxsize

    @cached_property
    def _key(self) -> bytes:
        return hashlib.blake2b(self._packed, digest_size=16).digest()

    def value(self, session: str) -> Any:
        """Return the value in this process; build it if this process has not built it yet.

        Args:
            session: See `rhapsody.sdk.runner.WorkerValues.close`.
        """
        return worker_values().take(
            self._key, self.name, self.per_thread, partial(self._build, session), session
        )

    def _build(self, session: str) -> tuple[Callable[..., Any], Any, Any]:
        args, kwargs = _replaced([self.args, dict(self.kwargs)], session)
        return self.factory, args, kwargs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkerValue):
            return NotImplemented
        return (self._key, self.per_thread) == (other._key, other.per_thread)

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> tuple[Any, ...]:
        take = sys.modules[CLASSES].value
        return take, (self._key, self.name, self.per_thread, self._packed)

    def __copy__(self) -> WorkerValue[T]:
        return self

    def __deepcopy__(self, memo: object) -> WorkerValue[T]:
        return self

    def __repr__(self) -> str:
        words = [*map(repr, self.args), *(f"{name}={each!r}" for name, each in self.kwargs.items())]
        return f"<worker value {self.name}({', '.join(words)})>"


class WorkerValueFactory(Generic[P, T]):
    """Function that was decorated with `WorkflowEngine.worker_value`.

    Args:
        factory: The function that builds a value.
        per_thread: True if each thread of a process has its own value.
    """

    def __init__(self, factory: Callable[P, Any], *, per_thread: bool) -> None:
        if not callable(factory):
            raise TypeError(f"worker_value expects a function, got {factory!r}")
        if is_async(factory) or inspect.isasyncgenfunction(factory):
            raise TypeError(
                "worker_value expects a function or a generator function, got the asynchronous "
                f"function {factory!r}; call asyncio.run in a function"
            )
        self.factory: Callable[P, Any] = factory
        self.per_thread: bool = per_thread
        self.__doc__ = factory.__doc__
        self.__name__: str = getattr(factory, "__name__", type(factory).__name__)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> WorkerValue[T]:
        """Return the handle of the value that the function builds with these arguments.

        Raises:
            TypeError: An argument is a future or a file, or the function does not accept the
                arguments.
        """
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for argument, value in named:
            if asyncio.isfuture(value):
                raise TypeError(
                    f"worker value {self.__name__!r}: {argument_name(self.factory, argument)} is a "
                    "future; await it, and pass the result"
                )
            if isinstance(value, File):
                raise TypeError(
                    f"worker value {self.__name__!r}: {argument_name(self.factory, argument)} is "
                    f"{value!r}; pass the absolute path of a file that the workers can read"
                )
        with suppress(ValueError):  # a built-in function without a signature
            inspect.signature(self.factory).bind(*args, **kwargs)
        return WorkerValue(self.__name__, self.factory, args, kwargs, per_thread=self.per_thread)


class WorkerValueDecorator(Protocol):
    """Decorator that `flow.worker_value` returns if only `per` is given."""

    @overload
    def __call__(self, factory: Callable[P, Iterator[T]], /) -> WorkerValueFactory[P, T]: ...
    @overload
    def __call__(
        self, factory: Callable[P, AbstractContextManager[T]], /
    ) -> WorkerValueFactory[P, T]: ...
    @overload
    def __call__(self, factory: Callable[P, T], /) -> WorkerValueFactory[P, T]: ...


def with_values(
    function: Callable[..., Any],
    handles: list[WorkerValue[Any]],
    fill: Fill,
    session: str,
    *,
    is_async: bool,
) -> Callable[..., Any]:
    """Return a function that calls another one in this process, with values instead of handles.

    Args:
        function: The function to call.
        handles: The handles in the arguments.
        fill: Function that replaces the handles in the arguments, given the values by the `id` of
            each handle.
        session: See `rhapsody.sdk.runner.WorkerValues.close`.
        is_async: True if `function` is a coroutine function.
    """

    def filled(args: Any, kwargs: Any) -> tuple[Any, Any]:
        return fill(args, kwargs, {id(each): each.value(session) for each in handles})

    per_thread = any(each.per_thread for each in handles)
    if is_async:

        async def call(*args: Any, **kwargs: Any) -> Any:
            if per_thread:
                args, kwargs = filled(args, kwargs)
            else:  # building may take long
                args, kwargs = await asyncio.to_thread(filled, args, kwargs)
            return await function(*args, **kwargs)

        return call

    def call_now(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = filled(args, kwargs)
        return function(*args, **kwargs)

    return call_now


def _replaced(value: Any, session: str) -> Any:
    """Return an argument of a factory, with values instead of handles."""
    if isinstance(value, WorkerValue):
        return value.value(session)
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, session) for each in value)
    if type(value) is dict:
        return {key: _replaced(each, session) for key, each in value.items()}
    return value


worker_values().handle = WorkerValue
