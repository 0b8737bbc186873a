"""Random number generators of the program, in functions and arguments that are sent to workers.

Each call on a worker receives a copy of such a generator, in the state that it has in the program.
So all calls draw the same numbers, although on threads they draw different ones. Libraries are not
imported here: if `numpy.random` is not loaded, there are no generators of NumPy.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import types
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from rhapsody.sdk.introspect import (
    MISSING,
    in_slot,
    is_in_its_module,
    names_read,
    slots_of,
    variables,
)
from rhapsody.sdk.runner import home_of_method

_KINDS = {
    "random": ("Random",),
    "numpy.random": ("Generator", "RandomState", "BitGenerator"),
    "torch": ("Generator",),
}

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


def set_state(generator: Any, other: Any) -> None:
    """Set the state of a random number generator to that of another one of its kind."""
    if isinstance(generator, random.Random):
        generator.setstate(other.getstate())
    elif hasattr(generator, "set_state"):  # `RandomState`, and generators of PyTorch
        generator.set_state(other.get_state())
    else:
        bits = getattr(generator, "bit_generator", generator)
        bits.state = getattr(other, "bit_generator", other).state


class CapturedGenerator(NamedTuple):
    """Random number generator that is sent to a worker together with a function.

    Attributes:
        name: The variable that contains the generator, or an empty string.
        generator: The generator.
        parameter: The parameter of the function whose default it is, or an empty string.
        position: The position of that parameter among the arguments of a call.
    """

    name: str
    generator: Any
    parameter: str
    position: int


def captured_generators(
    function: object, arguments: Iterable[Any] = ()
) -> tuple[CapturedGenerator, ...]:
    """Find the generators that are sent to a worker together with a function.

    The function's closure, its defaults and the globals that it reads are searched, and those of
    other functions among them, unless workers import the function. Containers are searched as
    well, and the attributes of classes of the script and of their instances that the code names.

    Args:
        function: The function.
        arguments: Objects in the arguments of a call, whose methods the function may use, and
            functions. The attributes of the objects are not searched.

    Returns:
        The generators, each once.
    """
    search = _Search(function)
    for value in arguments:
        search.add_argument(value)
    return tuple(search.run().found.values())


def arguments_with_code(values: Iterable[Any]) -> tuple[dict[type, Any], list[Any]]:
    """Find the arguments, and the values directly inside them, that a function can call.

    Returns:
        One object of each class of the script, and all functions, methods and classes.
    """
    objects: dict[type, Any] = {}
    functions: list[Any] = []
    seen: set[type] = set()
    for value in values:
        for item in (value, *(each for _, each in contents(value))):
            kind = type(item)
            if kind in seen:
                continue
            if kind in _BUILTIN or issubclass(kind, type):
                functions.append(item)
            else:
                seen.add(kind)
                if _is_script(kind.__module__):
                    objects[kind] = item
    return objects, functions


def names_attribute(function: object, kind: type, attribute: str) -> bool:
    """Return True if a function or the methods that it uses of a class name an attribute."""
    search = _Search(function)
    search.add_class(kind)
    return attribute in search.run().names


def contents(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values directly inside a list, tuple, dict or object, with the attributes' names.

    The names of items of containers are empty.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        yield from (("", item) for item in islice(value, MAX_VALUES))
    elif kind is dict:
        yield from (("", item) for item in islice(value.values(), MAX_VALUES))
    elif not issubclass(kind, _NO_CONTAINERS):
        yield from _attributes(value)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Return the attributes of an object, including those in slots."""
    variables = getattr(value, "__dict__", None)
    found = list(variables.items()) if type(variables) is dict else []
    for name in slots_of(type(value)):  # type: ignore[arg-type]
        if (item := in_slot(value, name)) is not MISSING:
            found.append((name, item))
    return found


class _Search:
    """Search of the values that are pickled with a function.

    Args:
        function: The function.

    Attributes:
        found: The generators, by their ids.
        names: The names of the globals and attributes that the code reads.
    """

    def __init__(self, function: Any) -> None:
        self.found: dict[int, CapturedGenerator] = {}
        self.names: set[str] = set()
        self._function = function
        self._positional, self._given, self._called = _call_of(function)
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._todo: list[tuple[str, str, Any]] = [("", "", function)]  # with the parameter
        self._attributes: list[tuple[str, str, Any]] = []  # variable, attribute and value

    def run(self) -> _Search:
        """Search until nothing is left; attributes are searched as soon as the code names them."""
        while self._todo and len(self._seen) < MAX_VALUES:
            self._visit(*self._todo.pop())
            if not self._todo:
                waiting, self._attributes = self._attributes, []
                for name, attribute, value in waiting:
                    if attribute in self.names or attribute[:2] == attribute[-2:] == "__":
                        self._todo.append((name, "", value))
                    else:
                        self._attributes.append((name, attribute, value))
        return self

    def add_argument(self, value: Any) -> None:
        """Add the code of a function or class, or the class of an object."""
        kind = type(value)
        if kind in _BUILTIN or issubclass(kind, type):
            self._todo.append(("", "", value))
        else:
            self.add_class(kind, {name for name, _ in _attributes(value)})

    def add_class(self, kind: type, replaced: Container[str] = ()) -> None:
        """Add the methods and other attributes of a class.

        Args:
            kind: The class.
            replaced: The attributes that the object of the class has itself.
        """
        for base in kind.__mro__[:-1]:
            if base not in self._classes:
                self._classes.add(base)
                self._attributes += (
                    (f"{base.__name__}.{name}", name, _Member(value))
                    for name, value in vars(base).items()
                    if name not in _MAKERS and name not in replaced
                )

    def _visit(self, name: str, parameter: str, value: Any) -> None:
        kind = type(value)
        if is_generator(value):
            if not parameter or id(value) not in self.found:
                position = sys.maxsize
                if parameter in self._positional:
                    position = self._positional.index(parameter)
                self.found[id(value)] = CapturedGenerator(name, value, parameter, position)
            return
        if kind is _Member:
            value = value.value
            for wrapped in ("__func__", "fget", "func"):  # methods and properties
                value = getattr(value, wrapped, value) if type(value) in _WRAPPERS else value
            if type(value) is types.FunctionType:
                self._read(value.__code__)
            self._visit(name, parameter, value)
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind is types.FunctionType:
            if _is_script(value.__module__) or not is_in_its_module(value):
                self._read(value.__code__)
                is_called = any(value is function for function in self._called)
                for variable, is_default, each in variables(value):
                    if not (is_default and is_called):
                        self._todo.append((variable, parameter, each))
                    elif variable not in self._given:
                        self._todo.append((variable, variable, each))
        elif issubclass(kind, type):
            if _is_script(value.__module__):
                self.add_class(value)
                for base in value.__mro__[:-1]:
                    makers = ((name, vars(base).get(name)) for name in _MAKERS)
                    self._todo += ((name, "", _Member(maker)) for name, maker in makers)
        elif kind not in _BUILTIN and _is_script(kind.__module__):
            attributes = _attributes(value)
            self._attributes += ((f"{kind.__name__}.{each[0]}", *each) for each in attributes)
            self.add_class(kind, {name for name, _ in attributes})
        else:
            is_function = value is self._function
            for keyword, part in _parts(value):
                known = keyword if is_function else parameter
                self._todo.append((keyword or name, known, part))

    def _read(self, code: types.CodeType) -> None:
        self.names |= names_read(code)


class _Member(NamedTuple):
    """Member of a class, whose code is searched for names even if workers import it."""

    value: Any


_MAKERS = ("__new__", "__init__", "__post_init__")
"""Methods that workers call only if the code names the class: instances arrive as they are."""

_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property)

_NO_CONTAINERS = (type, types.FunctionType, types.ModuleType)

_BUILTIN = (types.FunctionType, functools.partial, types.MethodType, types.BuiltinMethodType)


def _call_of(function: Any) -> tuple[Sequence[str], set[str], list[types.FunctionType]]:
    """Inspect how arguments are passed to the Python function that a call runs.

    Returns:
        The parameters that positional arguments of a call are passed to, those that
        `functools.partial` passes, and the function with the functions that it wraps.
    """
    number = 0
    given: set[str] = set()
    while True:
        if type(function) is functools.partial:
            number += len(function.args)
            given |= function.keywords.keys()
            function = function.func
        elif type(function) is types.MethodType:
            number += 1
            function = function.__func__
        else:
            break
    if type(function) is not types.FunctionType:
        return (), given, []
    inner = inspect.unwrap(function)
    if type(inner) is not types.FunctionType:
        inner = function
    names = inner.__code__.co_varnames[: inner.__code__.co_argcount]
    return names[number:], given.union(names[:number]), [function, inner]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values that are pickled with a value, with the names of keyword arguments."""
    kind = type(value)
    if kind is functools.partial:
        yield "", value.func
        yield from (("", each) for each in value.args)
        yield from value.keywords.items()
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


def _is_script(module: object) -> bool:
    """Return True if functions and classes of a module are sent by value."""
    cloudpickle = sys.modules.get("cloudpickle")  # `rhapsody run` registers the script there
    by_value = () if cloudpickle is None else cloudpickle.list_registry_pickle_by_value()
    return module == "__main__" or module in by_value
