"""Objects of asyncio that belong to the program's event loop, in calls of coroutine functions.

A coroutine function that is a task runs on an event loop of its backend, in another thread or
process. A lock, an event or a queue of the program does not work there: nothing wakes the coroutine
that waits for it, or each loop is unaware of the waiters of the other. The call is refused instead.
"""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Mapping
from itertools import islice
from typing import Any

from rhapsody.sdk.calls import argument_name
from rhapsody.sdk.introspect import names_read, variables

_KINDS = (
    asyncio.Lock,
    asyncio.Event,
    asyncio.Condition,
    asyncio.Semaphore,
    asyncio.Barrier,
    asyncio.Queue,
)

_THREADSAFE = frozenset({"call_soon_threadsafe", "run_coroutine_threadsafe"})
"""Functions with which a coroutine uses objects of another loop correctly.

Calls of coroutine functions that name one of them are not refused.
"""

MAX_ITEMS = 100
"""Maximum number of items of a container in the arguments that are inspected."""

_CONTAINERS = frozenset({list, tuple, set, frozenset})


def _belongs_to_a_loop(value: object) -> bool:
    kind: type = type(value)
    return _is_of_loops(kind)


@functools.lru_cache(1024)
def _is_of_loops(kind: type) -> bool:
    return issubclass(kind, _KINDS)


def captured_loop_object(function: object) -> tuple[str, Any] | None:
    """Find an object of a loop that a coroutine function uses as a variable.

    The closure, the defaults and the globals that the function reads are searched, and those of
    the functions of the same module that it uses. Futures that are not done count as well.

    Returns:
        A description of the variable and the object, or `None` if there is none.
    """
    todo: list[tuple[str, Any]] = [("", function)]
    seen: set[int] = set()
    home: Any = None
    while todo:
        name, value = todo.pop()
        kind = type(value)
        if _belongs_to_a_loop(value) or (issubclass(kind, asyncio.Future) and not value.done()):
            return (f"variable {name!r}" if name else "an argument of functools.partial"), value
        if kind is functools.partial:
            todo += [("", each) for each in (*value.args, *value.keywords.values(), value.func)]
        elif kind is types.MethodType:
            todo.append(("", value.__func__))
        elif kind is types.FunctionType and id(value) not in seen:
            seen.add(id(value))
            home = value.__globals__ if home is None else home
            if value.__globals__ is home and not _is_threadsafe(value):
                todo += [(variable, each) for variable, _, each in variables(value)]
    return None


def passed_loop_object(
    function: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, Any] | None:
    """Find an object of a loop among the arguments of a call, or directly in a container.

    Returns:
        A description of the argument and the object, or `None` if there is none.
    """
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for name, value in arguments:
        kind = type(value)
        items = value.values() if kind is dict else value if kind in _CONTAINERS else (value,)
        for item in islice(items, MAX_ITEMS):
            if _belongs_to_a_loop(item) and not _is_threadsafe(function):
                return argument_name(function, name), item
    return None


def _is_threadsafe(function: Any) -> bool:
    while type(function) in (functools.partial, types.MethodType):
        function = function.func if type(function) is functools.partial else function.__func__
    code = getattr(function, "__code__", None)
    return type(code) is types.CodeType and not _THREADSAFE.isdisjoint(names_read(code))
