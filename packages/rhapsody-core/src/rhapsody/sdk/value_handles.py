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
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from copy import copy
from functools import cached_property, partial
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from rhapsody.data import File, InputFiles, Output
from rhapsody.errors import describe_error
from rhapsody.sdk.calls import argument_name, variable_inside
from rhapsody.sdk.runner import CLASSES, CallValues, ValueSpec, dumps, worker_values
from rhapsody.task import is_async

T = TypeVar("T")
P = ParamSpec("P")

Fill = Callable[[tuple[Any, ...], dict[str, Any], dict[int, Any]], tuple[Any, Any]]

NOT_SEARCHED: Any = object()
"""Value of `WorkerValue.found` before the arguments of the factory have been searched."""


class WorkerValue(Generic[T]):
    """Handle of a value that each worker process builds once, when a task first needs it.

    Calling a function that was decorated with `WorkflowEngine.worker_value`, the factory, returns a
    handle. Handles of the same factory with the same arguments are equal, and stand for the same
    value.

    A function task that receives the handle is called with the value instead. Lists, tuples, dicts,
    sets, named tuples and dataclasses in the arguments may contain handles, just as they may
    contain futures. Blocks and functions that return commands receive the handle itself.

    In an `async with` statement, the value is closed at the end of the statement.

    Attributes:
        definition: The factory.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        found: The futures, files and handles among these arguments; set by the engine.
        alone: What the engine has found in the arguments of calls that receive only this handle.
        handle: An identifier of the handle; see `rhapsody.sdk.runner.ValueSpec`.
    """

    __slots__ = (
        "__dict__", "__weakref__", "_ready", "_stamp", "alone", "args", "definition", "found",
        "handle", "kwargs",
    )  # fmt: skip

    _pickle_advice = "this also applies to threads"

    def __init__(
        self,
        definition: WorkerValueFactory[Any, T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        handle: str = "",
        stamp: str = "",
    ) -> None:
        self.definition: WorkerValueFactory[Any, T] = definition
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs
        self.found: Any = NOT_SEARCHED
        self.alone: Any = None
        self.handle: str = handle or secrets.token_hex(8)
        self._stamp = stamp
        self._ready: tuple[list[Any], WorkerValue[T]] | None = None

    @classmethod
    def of(
        cls,
        spec: ValueSpec,
        factory: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> WorkerValue[T]:
        """Return the handle with a specification, which was unpickled in the program."""
        definition: WorkerValueFactory[Any, T] = WorkerValueFactory(
            factory, per_thread=spec.per_thread, keep=spec.keep
        )
        return cls(definition, args, kwargs, handle=spec.handle)

    def with_arguments(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        replaced: list[Any],
        files: Iterable[File],
    ) -> WorkerValue[T]:
        """Return the handle with values and paths instead of futures and files.

        Args:
            args: The positional arguments of the factory.
            kwargs: Its keyword arguments.
            replaced: The values and files that the arguments contain. For the same objects, the
                same handle is returned.
            files: The files among them. Another state of one of them means another value.
        """
        stamp = " ".join(map(_stamp_of, files))
        if self._ready is not None:
            former, ready = self._ready
            same = len(former) == len(replaced) and all(map(_is_same, former, replaced))
            if same and ready._stamp == stamp:
                return ready
        ready = WorkerValue(self.definition, args, kwargs, handle=self.handle, stamp=stamp)
        ready.found = None
        self._ready = replaced, ready
        return ready

    @property
    def name(self) -> str:
        """The name of the factory."""
        return self.definition.__name__

    @cached_property
    def _packed(self) -> bytes:
        definition = self.definition
        named: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for argument, value in named:
            try:
                dumps(value)
            except BaseException as error:  # pickling runs the objects' own code
                part = argument_name(definition.factory, argument)
                raise TypeError(
                    f"worker value {self.name!r}: {part} ({type(value).__qualname__}) cannot be "
                    f"pickled: {describe_error(error)}; pass data that can be pickled"
                ) from error
        try:
            return dumps((definition.factory, self.args, self.kwargs))
        except BaseException as error:  # it uses an object that cannot be pickled
            part, cure = "its function", "create such objects inside the function"
            if (inner := variable_inside(definition.factory)) is not None:
                part, culprit = f"{inner[0]} used by its function", inner[1]
                cure = getattr(type(culprit), "_pickle_advice", cure)
            raise TypeError(
                f"worker value {self.name!r}: {part} cannot be pickled: {describe_error(error)}; "
                f"{cure}"
            ) from error

    @cached_property
    def size(self) -> int:
        """The size in bytes of what a worker receives; `sys.maxsize` if it cannot be pickled."""
        try:
            return len(self._packed)
        except TypeError:  # the backend reports it
            return sys.maxsize

    @cached_property
    def spec(self) -> ValueSpec:
        """The identity of the value, for workers."""
        definition = self.definition
        key = _digest(self._packed + self._stamp.encode())
        group = _digest(dumps(definition.factory)) if definition.keep else b""
        return ValueSpec(key, self.name, definition.per_thread, definition.keep, group, self.handle)

    @cached_property
    def keys(self) -> frozenset[bytes]:
        """The key of the value, as a set."""
        return frozenset((self.spec.key,))

    @cached_property
    def _reduced(self) -> tuple[Any, ...]:
        return sys.modules[CLASSES].value, (tuple(self.spec), self._packed)

    def value(self, call: CallValues) -> Any:
        """Return the value in this process; build it if this process has not built it yet.

        Args:
            call: The values of the call that uses this one.
        """
        # Functions on threads cannot set the variables that choose GPUs.
        return _values.take(self.spec, partial(self._build, call), call, None)

    def _build(self, call: CallValues) -> tuple[Callable[..., Any], Any, Any]:
        args, kwargs = _replaced([self.args, dict(self.kwargs)], call)
        return self.definition.factory, args, kwargs

    async def close(self) -> None:
        """Close the value in all processes, to free its memory.

        A process that is running a call that uses the value closes it when that call has ended. A
        task that receives the handle afterwards builds the value again. Workers of a pilot and of
        batch jobs keep the value until they end.

        Must be called on the loop of the engine.

        Raises:
            RuntimeError: The handle was returned by a task, so that its engine is not known.
        """
        if self.definition.close is None:
            raise RuntimeError(f"{self!r} was returned by a task; close the original handle")
        ready = self if self._ready is None else self._ready[1]
        with suppress(TypeError):  # it has never been built, as with an unfinished future
            await self.definition.close(ready.spec.key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkerValue):
            return NotImplemented
        return self is other or self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> Any:
        try:
            return self.spec.key, self.definition.per_thread
        except TypeError:  # an argument cannot be pickled, such as a future
            return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced

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
        keep: Maximum number of values that a process keeps; 0 for no limit.
        timeout: Number of seconds that building a value may take; `None` for no limit.
        close: Function of the engine that closes the values with a key in all processes; `None` for
            a factory that was unpickled in the program.
        at_call: Function that returns a copy of a function with the present values of its closure,
            or the function itself; the same copy as before if nothing has changed.
    """

    _pickle_advice = "call it in the program, and pass the result as an argument"

    def __init__(
        self,
        factory: Callable[P, Any],
        *,
        per_thread: bool = False,
        keep: int = 0,
        timeout: float | None = None,
        close: Callable[[bytes], Awaitable[None]] | None = None,
        at_call: Callable[[Callable[P, Any]], Callable[P, Any]] | None = None,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"worker_value expects a function, got {factory!r}")
        if is_async(factory) or inspect.isasyncgenfunction(factory):
            raise TypeError(
                "worker_value expects a function or a generator function, got the asynchronous "
                f"function {factory!r}; call asyncio.run in a function"
            )
        self.factory: Callable[P, Any] = factory
        self.per_thread: bool = per_thread
        self.keep: int = keep
        self.timeout: float | None = timeout
        self.close: Callable[[bytes], Awaitable[None]] | None = close
        self._at_call = at_call
        self._copied: WorkerValueFactory[P, T] | None = None
        self.__doc__ = factory.__doc__
        self.__name__: str = getattr(factory, "__name__", type(factory).__name__)

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> WorkerValue[T]: ...
    @overload
    def __call__(self, /, *args: Any, **kwargs: Any) -> WorkerValue[T]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> WorkerValue[T]:
        """Return the handle of the value that the function builds with these arguments.

        The arguments may contain futures and `InputFile` objects. The function receives the results
        and, for each file, the object that a function task would receive; workers must be able to
        read the file at its path.

        Raises:
            TypeError: An argument is an output file, or the function does not accept the arguments.
        """
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for argument, value in named:
            if isinstance(value, Output):
                raise TypeError(
                    f"worker value {self.__name__!r}: {argument_name(self.factory, argument)} is "
                    f"{value!r}; only tasks write output files"
                )
        with suppress(ValueError):  # a built-in function without a signature
            inspect.signature(self.factory).bind(*args, **kwargs)
        return WorkerValue(self._now(), args, kwargs)

    def _now(self) -> WorkerValueFactory[P, T]:
        """Return the factory with the present values of the function's closure."""
        if self._at_call is None or (now := self._at_call(self.factory)) is self.factory:
            return self
        if self._copied is None or self._copied.factory is not now:
            self._copied = copy(self)
            self._copied.factory = now
        return self._copied


class WorkerValueDecorator(Protocol):
    """Decorator that `flow.worker_value` returns if only settings are given."""

    @overload
    def __call__(self, factory: Callable[P, Iterator[T]], /) -> WorkerValueFactory[P, T]: ...
    @overload
    def __call__(
        self, factory: Callable[P, AbstractContextManager[T]], /
    ) -> WorkerValueFactory[P, T]: ...
    @overload
    def __call__(self, factory: Callable[P, T], /) -> WorkerValueFactory[P, T]: ...


class TaskValues:
    """Worker values that one attempt uses; the key `worker_values` of its description.

    Args:
        handles: The handles in the attempt's arguments.
        uid: The uid of the attempt.
        changed: Function that is called with the uid when the attempt begins or ends to build a
            value, on any thread.

    Attributes:
        handles: The handles.
        is_building: True while the attempt builds a value, or waits for another attempt that does.
        seconds: The time that this took, if the function runs in the program's process; else 0.
    """

    __slots__ = ("_changed", "_keys", "_uid", "handles", "is_building", "seconds")

    def __init__(
        self, handles: list[WorkerValue[Any]], uid: str, changed: Callable[[str], object]
    ) -> None:
        self.handles: list[WorkerValue[Any]] = handles
        self.is_building: bool = False
        self.seconds: float = 0.0
        self._uid = uid
        self._changed = changed
        self._keys: frozenset[bytes] | None = None

    @property
    def keys(self) -> frozenset[bytes]:
        """The keys of the values. A worker that has built them need not build them again."""
        if self._keys is None:
            sets = [each.keys for each in self.handles]
            self._keys = sets[0] if len(sets) == 1 else frozenset[bytes]().union(*sets)
        return self._keys

    @property
    def limit(self) -> float | None:
        """The number of seconds that building the values may take; `None` for no limit."""
        limits = [each.definition.timeout for each in self.handles]
        return None if None in limits else sum(cast("list[float]", limits))

    @property
    def names(self) -> str:
        """The names of the factories, for messages."""
        return ", ".join(dict.fromkeys(repr(each.name) for each in self.handles))

    def building(self, begins: bool) -> None:
        """Report that the attempt begins, or ends, to build a value, or to wait for one.

        Called by backends that declare `worker_values`, on any thread; see
        `rhapsody.sdk.Runner.building`. The time in between does not count toward the timeout.
        """
        self.is_building = begins
        self._changed(self._uid)


def with_values(
    function: Callable[..., Any],
    values: TaskValues,
    fill: Fill,
    session: str,
    *,
    is_async: bool,
) -> Callable[..., Any]:
    """Return a function that calls another one in this process, with values instead of handles.

    Args:
        function: The function to call.
        values: The worker values that the attempt uses.
        fill: Function that replaces the handles in the arguments, given the values by the `id` of
            each handle.
        session: See `rhapsody.sdk.runner.WorkerValues.close`.
        is_async: True if `function` is a coroutine function.
    """
    handles = values.handles

    def filled(call: CallValues, args: Any, kwargs: Any) -> tuple[Any, Any]:
        found = fill(args, kwargs, {id(each): each.value(call) for each in handles})
        if call.seconds is not None:
            values.seconds = call.seconds
        return found

    if not is_async:

        def run(*args: Any, **kwargs: Any) -> Any:
            call = CallValues(session, values.building)
            try:
                args, kwargs = filled(call, args, kwargs)
                return function(*args, **kwargs)
            finally:
                _values.release(call)

        return run

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        call = CallValues(session, values.building)
        try:
            if any(each.definition.per_thread for each in handles):
                args, kwargs = filled(call, args, kwargs)
            else:  # building may take long
                args, kwargs = await asyncio.to_thread(filled, call, args, kwargs)
            return await function(*args, **kwargs)
        finally:
            _values.release(call)

    return run_async


def _replaced(value: Any, call: CallValues) -> Any:
    """Return an argument of a factory, with values instead of handles."""
    if isinstance(value, WorkerValue):
        return value.value(call)
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, call) for each in value)
    if type(value) is dict:
        return {key: _replaced(each, call) for key, each in value.items()}
    return value


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _stamp_of(file: Any) -> str:
    """Return the state of a file, or of the files of a directory or pattern."""
    states = [os.stat(path) for path in (file if isinstance(file, InputFiles) else [file])]
    return ",".join(f"{state.st_ino}:{state.st_size}:{state.st_mtime_ns}" for state in states)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, File | InputFiles) and one == other)


_values = worker_values()
_values.handle = WorkerValue
