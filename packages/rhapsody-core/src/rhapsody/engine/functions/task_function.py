"""Decorated functions: callables that return futures instead of results.

A `TaskFunction` combines a function, its settings and an engine. It checks the arguments of each
call and passes the call to the engine; see `rhapsody.engine.calls.submission`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import keyword
import os
import re
import types
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from rhapsody.engine.configuration.settings import (
    Settings,
    TaskDefaults,
    TaskSettings,
    specific_settings,
)
from rhapsody.engine.functions.closures import ClosureCopy, has_closure
from rhapsody.environments import SETTINGS, environment_conflict
from rhapsody.errors import add_note
from rhapsody.identity import Prefix
from rhapsody.sdk.generators import CapturedGenerator
from rhapsody.task import TaskDescription, TaskFuture, TaskKind, is_async

P = ParamSpec("P")
R = TypeVar("R")

CallKind = Literal["function", "executable", "block"]

_BLOCK_SETTINGS = frozenset({"name", "after", "service"})
_ITERABLES = frozenset({"after", "limit", "modules", "other_backends"})


Command = str | Sequence[str | os.PathLike[str]]
"""A command: a string for a shell, or a list of arguments, which may be files and paths."""


class Caller(Protocol):
    """Interface between task functions and the engine.

    Attributes:
        uid: The engine's uid.
        loop: The engine's event loop.
        task_defaults: The settings of tasks from the engine's profile.
    """

    uid: str
    loop: asyncio.AbstractEventLoop
    task_defaults: TaskDefaults

    def call(
        self,
        task: TaskFunction[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        specific: Mapping[str, Any] | None,
    ) -> TaskFuture[Any]:
        """Accept a call on the loop, whose arguments have been checked against the signature.

        Raises the other exceptions of `TaskFunction.__call__`.
        """

    def call_elsewhere(
        self, task: TaskFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Accept a call on a thread other than the loop's."""

    def declare(self, settings: Settings) -> Settings:
        """Check settings against the engine's backends and named limits."""

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Count a failed future that was deleted without being awaited. Thread-safe."""


class TaskFunction(Generic[P, R]):
    """A decorated function: calling it returns a future immediately.

    Attributes:
        function: The function that was decorated.
        settings: The settings of the function's tasks.
        given: The settings in the code, without those of a profile.
        kind: `"function"`, `"executable"` or `"block"`.
        on_other_loop: True if the function is a coroutine function that a backend runs on its own
            event loop.
        has_closure: True if calls use copies of the function, with the values of its closure at the
            call. See `at_call`.
    """

    # Slots, because each call reads many of them and `update_wrapper` makes the dict slow to read.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_check",
        "_copied",
        "accepted_by",
        "described",
        "direct",
        "engine",
        "function",
        "generators",
        "given",
        "has_closure",
        "is_async",
        "kind",
        "may_retry",
        "name",
        "on_other_loop",
        "optional",
        "prefix",
        "pushable",
        "recording_settings",
        "searched",
        "settings",
        "task_kind",
        "template",
    )

    _pickle_advice: ClassVar[str] = (
        "only the program and blocks call tasks: make the function a block with @flow.block"
    )

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        engine: Caller,
        kind: CallKind,
        function: Callable[..., Any],
        settings: Settings,
        given: Mapping[str, Any],
    ) -> None:
        functools.update_wrapper(self, function)
        self.engine: Caller = engine
        self.kind: CallKind = kind
        self.function: Callable[..., Any] = function
        self.settings: Settings = settings
        self.given: Mapping[str, Any] = given
        self.prefix: Prefix = "block" if kind == "block" else "task"
        self.name: str = settings.name or _name(function)
        self.is_async: bool = is_async(function)
        self.on_other_loop: bool = self.is_async and kind == "function"
        self.searched: bool = False  # see `rhapsody.engine.calls.loop_objects`
        self.task_kind: TaskKind = _task_kind(kind, self.is_async, settings.service)
        self.optional: dict[str, Any] = _optional_keys(settings)
        recording = {"cache": settings.cache, "version": settings.version}
        self.recording_settings: Mapping[str, Any] = types.MappingProxyType(recording)
        self.template: tuple[TaskDescription, bool] | None = None  # see `TaskBuilder`
        self.may_retry: bool = False  # set with `template`
        self.described: Any = None  # see `rhapsody.engine.core.task_calls`
        self.accepted_by: object = None  # the backend that was checked last
        self.direct: object = None  # the backend for which calls without files need no check
        # The classes of the last arguments, and the generators that are sent to workers with them.
        self.generators: tuple[tuple[type, ...], tuple[CapturedGenerator, ...]] | None = None
        self.pushable: tuple[object, bool] | None = None  # backend; True for push-down to it
        self.has_closure: bool = has_closure(function)
        self._copied: ClosureCopy | None = None
        self._check = file_checker(function, call_checker(function))

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def __call__(self, /, *args: Any, **kwargs: Any) -> TaskFuture[R]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Create a task for this call.

        The arguments are those of the function, or futures for them. The additional argument
        `task_description` is a dict of backend-specific settings.

        Returns:
            The future of the result.

        Raises:
            TypeError: The arguments do not fit the function, or a future is the key of a dict or
                in a container that is not searched.
            ValueError: A container in the arguments contains itself, or containers are nested too
                deeply.
            RuntimeError: The engine is shut down, or the call is made neither on the thread of
                its loop nor on the thread of a synchronous block or `main`.
        """
        engine = self.engine
        if running_loop() is not engine.loop:
            return engine.call_elsewhere(self, args, kwargs)
        specific = None
        if kwargs and "task_description" in kwargs:
            specific = {
                **self.settings.specific,
                **specific_settings(kwargs.pop("task_description")),
            }
        try:
            self._check(*args, **kwargs)
        except TypeError as error:
            for name in sorted(kwargs.keys() & TaskSettings.__optional_keys__):
                if repr(name) in str(error):  # Python's message names the unexpected argument
                    shown = f"{_name(self.function)}.options({name}=...)(...)"
                    add_note(error, f"{name} is a setting of the task: call {shown}")
            raise
        return engine.call(self, args, kwargs, specific)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else Method(self, instance)

    def options(self, **settings: Unpack[TaskSettings]) -> TaskFunction[P, R]:
        """Return a copy with changed settings, for example `task.options(retries=2)(x)`.

        Raises:
            TypeError: A setting is unknown, or a value is of the wrong type.
            ValueError: A value is out of range.
        """
        return make_task(self.engine, self.kind, self.function, self.given, dict(settings))

    def at_call(self) -> TaskFunction[P, R]:
        """Return a copy whose function has the present values of its closure.

        The copy is reused until a variable of the closure is assigned.
        """
        copied = self._copied
        if copied is None or not copied.is_current():
            copied = self._copied = ClosureCopy(self, TaskFunction)
        task: TaskFunction[P, R] = copied.function
        return task

    def with_function(self, function: Callable[..., Any]) -> TaskFunction[P, R]:
        """Return a copy with another function, which has the same code. For `ClosureCopy`."""
        former = self if self._copied is None else self._copied.function  # has seen the backend
        new: TaskFunction[P, R] = object.__new__(TaskFunction)
        for name in TaskFunction.__slots__:
            if name != "__weakref__":
                setattr(new, name, getattr(former, name))
        new.function, new.has_closure = function, False
        new.template = new.generators = None
        return new

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Count a failed future that was deleted without being awaited. Thread-safe."""
        self.engine.unawaited(future)

    def __repr__(self) -> str:
        return f"<{self.kind} task {self.name!r}>"


class Method:
    """Task function that was decorated in a class body, bound to an instance of the class."""

    def __init__(self, task: TaskFunction[Any, Any], instance: object) -> None:
        functools.update_wrapper(self, types.MethodType(task.function, instance))
        self._task = task
        self._instance = instance

    def __call__(self, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Call the task function with the instance as the first argument."""
        return self._task(self._instance, *args, **kwargs)

    def options(self, **settings: Unpack[TaskSettings]) -> Method:
        """Return a copy with changed settings; see `TaskFunction.options`."""
        return Method(self._task.options(**settings), self._instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class FunctionDecorator(Protocol):
    """Decorator that `flow.function_task` returns if only settings are given."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class BlockDecorator(Protocol):
    """Decorator that `flow.block` returns if only settings are given."""

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
    """Decorator that `flow.executable_task` returns if only settings are given."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, Command]], /
    ) -> TaskFunction[P, str]: ...
    @overload
    def __call__(self, function: Callable[P, Command], /) -> TaskFunction[P, str]: ...


def make_task(
    engine: Caller,
    kind: CallKind,
    function: Callable[..., Any],
    base: Mapping[str, Any],
    given: Mapping[str, Any],
) -> TaskFunction[Any, Any]:
    """Check the settings of a decorated function and create its task function.

    Args:
        engine: The engine.
        kind: The kind of work.
        function: The function.
        base: The settings to start from.
        given: The changes that the user passed, by name.

    Returns:
        The task function.

    Raises:
        TypeError: `function` is not callable, a setting is unknown or not for tasks of this kind,
            or a value is of the wrong type.
        ValueError: A value is out of range, or a setting contradicts `service`.
    """
    if not callable(function):
        decorator = "block" if kind == "block" else f"{kind}_task"
        raise TypeError(f"@flow.{decorator} decorates a function, got {function!r}")
    if kind == "block" and not _BLOCK_SETTINGS.issuperset(given):
        wrong = next(name for name in given if name not in _BLOCK_SETTINGS)
        raise TypeError(f"a block has no setting {wrong!r}; valid settings: after, name")
    # Settings are checked again by `options`, so iterators must not be exhausted.
    own = {
        name: tuple(value) if name in _ITERABLES and isinstance(value, Iterator) else value
        for name, value in {**base, **given}.items()
    }
    profile, name = engine.task_defaults, str(own.get("name") or _name(function))
    if kind == "block" or not (profile.defaults or profile.overrides):
        return _checked_task(engine, kind, function, own, own)
    try:
        completed = profile.complete(name, own, function=kind == "function")
        return _checked_task(engine, kind, function, own, completed)
    except (TypeError, ValueError) as error:
        sources = profile.sources(name)
        if sources:
            add_note(error, f"task {name!r} has settings from {', '.join(sources)}")
        raise


def _checked_task(
    engine: Caller,
    kind: CallKind,
    function: Callable[..., Any],
    own: Mapping[str, Any],
    completed: Mapping[str, Any],
) -> TaskFunction[Any, Any]:
    """Create a task function from the settings in the code, `own`, and the completed settings.

    Returns:
        The task function.

    Raises:
        TypeError: A setting is unknown or not for tasks of this kind, or a value is of the wrong
            type.
        ValueError: A value is out of range, or a setting contradicts `service`.
    """
    settings = Settings().changed(completed)
    if kind == "block" and settings.service:
        raise TypeError("service=True is for tasks, not for blocks")
    if kind == "function" and settings.cwd is not None:
        raise TypeError(
            f"cwd={settings.cwd!r} applies only to executable tasks, because functions share the "
            "current directory of their process; pass the path as an argument"
        )
    if kind == "function" and settings.shell is not None:
        raise TypeError(f"shell={settings.shell!r} applies only to commands, not to functions")
    selected = {name: value for name in SETTINGS if (value := getattr(settings, name))}
    conflict = environment_conflict(selected)
    if conflict is not None:
        raise conflict
    if settings.service and settings.timeout is not None:
        raise ValueError(
            f"timeout={settings.timeout!r} does not apply to services, which run until they are "
            "canceled; use ready_timeout to limit the time until the service is ready"
        )
    if settings.restarts and not settings.service:
        raise ValueError(
            f"restarts={settings.restarts} applies only to services; use retries for tasks that "
            "may fail"
        )
    return TaskFunction(engine, kind, function, engine.declare(settings), own)


def definition_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the setting `task_description`, if the function has a parameter of this name.

    The value is the parameter's default. Without such a parameter, the result is empty.

    Raises:
        TypeError: The parameter has no default, or one that is not a dict.
    """
    try:
        parameter = inspect.signature(function).parameters.get("task_description")
    except (TypeError, ValueError):  # no signature: builtins
        return {}
    if parameter is None:
        return {}
    if parameter.default is inspect.Parameter.empty:
        raise TypeError(
            f"the parameter task_description of {_name(function)}() has no default; its default "
            "must be a dict of settings for the backend"
        )
    return {"task_description": specific_settings(parameter.default)}


def call_checker(function: Callable[..., Any]) -> Callable[..., None]:
    """Return a function with the same signature that does nothing.

    Calling it makes Python check the arguments, a hundred times faster than
    `inspect.Signature.bind` and with Python's own messages.
    """
    if isinstance(function, functools.partial):
        return functools.partial(call_checker(function.func), *function.args, **function.keywords)
    if inspect.ismethod(function):
        return types.MethodType(call_checker(function.__func__), function.__self__)
    called = type(function).__call__
    if inspect.isfunction(called):  # an object with its own `__call__`
        return types.MethodType(call_checker(called), function)
    try:
        # `follow_wrapped=False`, because a wrapper may take other arguments than its function.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return lambda *args, **kwargs: None
    parts: list[str] = []
    namespace: dict[str, Any] = {}
    star = False
    previous = None
    for name, parameter in signature.parameters.items():
        if not name.isidentifier() or keyword.iskeyword(name):
            return lambda *args, **kwargs: None
        kind = parameter.kind
        if previous is parameter.POSITIONAL_ONLY and kind is not previous:
            parts.append("/")
        if kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        if kind is parameter.VAR_POSITIONAL:
            parts.append(f"*{name}")
            star = True
        elif kind is parameter.VAR_KEYWORD:
            parts.append(f"**{name}")
        else:
            parts.append(name if parameter.default is parameter.empty else f"{name}=None")
        previous = kind
    if previous is inspect.Parameter.POSITIONAL_ONLY:
        parts.append("/")
    source = f"def check({', '.join(parts)}): pass"
    exec(source, namespace)  # noqa: S102 - `inspect` lets nothing but identifiers be names
    check: Callable[..., None] = namespace["check"]
    check.__qualname__ = getattr(function, "__qualname__", _name(function))
    check.__name__ = _name(function)
    return check


FILES: frozenset[str] = frozenset({"InputFile", "OutputDir", "OutputFile"})


def file_checker(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., None]:
    """Extend `check` so that it rejects strings and paths for parameters annotated as files.

    A parameter is regarded as a file if its annotation names exactly one of the classes in `FILES`,
    and no type of string or path.

    Returns:
        The extended check.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return check
    wanted: dict[str, str] = {}
    for name, parameter in signature.parameters.items():
        words = set(re.findall(r"\w+", _spelled(parameter.annotation)))
        kinds = words & FILES
        if len(kinds) == 1 and not words & {"str", "Path", "PathLike", "PurePath", "Any"}:
            wanted[name] = kinds.pop()
    if not wanted:
        return check

    def checked(*args: Any, **kwargs: Any) -> None:
        check(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        for name, kind in wanted.items():
            value: Any = given.get(name)
            for each in value if type(value) in (tuple, list) else (value,):
                if isinstance(each, str | PurePath):
                    raise TypeError(
                        f"{_name(function)}() takes an {kind} for {name!r}, got {each!r}: write "
                        f"{kind}({str(each)!r})"
                    )

    return checked


def _spelled(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _task_kind(kind: CallKind, asynchronous: bool, service: bool) -> TaskKind:
    if kind == "executable":
        return "service" if service else "executable"
    if service:
        return "function_service"
    return "async_function" if asynchronous else "function"


def _optional_keys(settings: Settings) -> dict[str, Any]:
    """Return the items of a task's description that are present only if they are set."""
    keys = {
        "resources": settings.resources,
        "timeout": settings.timeout,
        "stdin": settings.stdin,
        "cwd": settings.cwd,
        "ready": settings.ready,
        **{name: value for name in SETTINGS if (value := getattr(settings, name))},
    }
    if settings.capture is not True:
        keys["capture"] = settings.capture
    return {key: value for key, value in keys.items() if value is not None}
