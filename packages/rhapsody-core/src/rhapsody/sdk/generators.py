"""Random number generators of the program, in functions and arguments that are sent to workers.

Each call on a worker receives a copy of such a generator, in the state that it has in the program.
So all calls draw the same numbers, although on threads they draw different ones. Libraries are not
imported here: if `numpy.random` is not loaded, there are no generators of NumPy.
"""

from __future__ import annotations

import dis
import functools
import random
import sys
import types
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rhapsody.sdk.modules import MISSING, content_of, is_in_its_module, with_inner
from rhapsody.sdk.runner import home_of_method

_KINDS = {
    "random": ("Random",),
    "numpy.random": ("Generator", "RandomState", "BitGenerator"),
    "torch": ("Generator",),
}

_READS = ("LOAD_GLOBAL", "LOAD_NAME")

MAX_VALUES = 1000
"""Maximum number of values inside containers and objects that are inspected for one function."""


def is_generator(value: object) -> bool:
    """Return True if a value is a random number generator with a state that can be copied."""
    return _is_generator(type(value))  # type: ignore[arg-type]


@functools.lru_cache(1024)
def _is_generator(kind: type) -> bool:
    for module, names in _KINDS.items():
        variables = getattr(sys.modules.get(module), "__dict__", {})
        for name in names:
            base = variables.get(name)
            if isinstance(base, type) and issubclass(kind, base):
                return not issubclass(kind, random.SystemRandom)
    return False


def captured_generator(function: object) -> str | None:
    """Find a generator that is sent to a worker together with a function.

    The function's closure, its defaults and the globals that it reads are searched, and those of
    other functions among them, unless workers import the function. Containers and instances of
    classes of the script are searched as well.

    Returns:
        The variable that contains the generator, for messages, or `None` if there is none.
    """
    todo: list[tuple[str, Any]] = [("", function)]
    seen: set[int] = set()
    while todo and len(seen) < MAX_VALUES:
        name, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_generator(value):
            return name
        todo += ((inner or name, part) for inner, part in _parts(value))
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values that are pickled with a value, with the names of their variables."""
    kind = type(value)
    if kind is types.FunctionType:
        if _is_script(value.__module__) or not is_in_its_module(value):
            yield from _variables(value)
    elif kind is functools.partial:
        yield "", value.func
        yield from (("", each) for each in (*value.args, *value.keywords.values()))
    elif kind is types.MethodType:
        if home_of_method(value) is None:
            yield "", value.__func__
            yield "", value.__self__
    elif kind is types.BuiltinMethodType:
        if not isinstance(value.__self__, types.ModuleType) and home_of_method(value) is None:
            yield "", value.__self__
    elif kind in (list, tuple, set, frozenset):
        yield from (("", each) for each in islice(value, MAX_VALUES))
    elif kind is dict:
        yield from (("", each) for each in islice(value.values(), MAX_VALUES))
    elif issubclass(kind, type):
        if _is_script(value.__module__):
            yield from ((f"{value.__name__}.{name}", each) for name, each in vars(value).items())
    elif _is_script(kind.__module__):
        variables = getattr(value, "__dict__", {})
        yield from ((f"{kind.__name__}.{name}", each) for name, each in variables.items())
        yield "", kind


def _is_script(module: object) -> bool:
    """Return True if functions and classes of a module are sent by value."""
    cloudpickle = sys.modules.get("cloudpickle")  # `rhapsody run` registers the script there
    by_value = () if cloudpickle is None else cloudpickle.list_registry_pickle_by_value()
    return module == "__main__" or module in by_value


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name, content_of(cell)
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[: code.co_argcount][-len(defaults) :], defaults, strict=False)
    yield from (function.__kwdefaults__ or {}).items()
    for name in _globals_read(code):
        yield name, function.__globals__.get(name, MISSING)


@functools.lru_cache(256)
def _globals_read(code: types.CodeType) -> frozenset[str]:
    """Return the names of the globals that code and the code nested in it read."""
    inner = (found for each in with_inner(code) for found in dis.get_instructions(each))
    return frozenset(found.argval for found in inner if found.opname in _READS)
