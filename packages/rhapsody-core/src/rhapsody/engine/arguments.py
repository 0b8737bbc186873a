"""Futures and files in a call's arguments: found when it is made, replaced when it runs.

Looks into exact lists, tuples, dicts and sets, named tuples and the `init` fields
of dataclasses, and nowhere else. Knows nothing of tasks or backends.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from inspect import signature
from itertools import islice
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from rhapsody.data import File, InputFile, Output
from rhapsody.task import TaskFuture

T = TypeVar("T")

MAX_DEPTH = 100
"""Number of levels of containers that are searched."""

PLAIN = frozenset({int, float, bool, str, bytes, type(None), complex, bytearray, range})
"""Types that contain no futures or files."""


EXACT = (list, tuple, dict, set)

UNSEARCHED: tuple[type, ...] = (list, tuple, dict, set, frozenset, deque, type({}.values()))
"""Containers in whose subclasses (and in the last three types) futures cannot be replaced."""

LOOKED_AT = 1000
"""Number of containers inside an unsearched one that are checked, so that big data is cheap."""

_NO_PRODUCERS: Mapping[int, TaskFuture[Any]] = MappingProxyType({})


class literal(Generic[T]):  # noqa: N801 - reads as a function: f(literal(x))
    """Marks an argument that is not searched for futures and files.

    The task receives `value` itself. Useful for large data structures, and for futures that are
    passed as objects.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value: T = value


class ArgumentScan:
    """Futures and files found in a call's arguments.

    Attributes:
        futures: Each future once, in the order of the arguments.
        inputs: The declared input files.
        outputs: The declared output files and directories.
        inexact: True if a future is in another container than an exact list, tuple, dict or set.
        producers: The futures of the calls that make the inputs, by the `id` of each input.
    """

    __slots__ = ("_touched", "futures", "inexact", "inputs", "outputs", "producers")

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[Any]] = []
        self.inputs: list[InputFile] = []
        self.outputs: list[Output] = []
        self.inexact: bool = False
        self.producers: Mapping[int, TaskFuture[Any]] = _NO_PRODUCERS
        self._touched: set[int] = set()

    def _touch(self, path: Sequence[int], odd: Set[int]) -> None:
        """Note the containers around a future or file, and whether one of them is inexact."""
        self._touched.update(path)
        if not odd.isdisjoint(path):
            self.inexact = True

    def copy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Return the arguments with copies of the containers on the way to a future or file.

        Afterwards `fill` works on the copies.
        """
        if not self._touched:
            return args, kwargs
        made: dict[int, Any] = {}
        copied = _Rebuild(self._touched, made, lambda value: value, _changed)
        args = tuple(map(copied, args))
        kwargs = {key: copied(value) for key, value in kwargs.items()}
        self._touched = set(map(id, made.values()))
        return args, kwargs

    def fill(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], replace: Callable[[Any], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with each future and file replaced and `literal` marks removed.

        Containers without any are passed on unchanged; others are copied.
        """

        def leaf(value: Any) -> Any:
            if type(value) is literal:
                return value.value
            if asyncio.isfuture(value) or isinstance(value, File):
                return replace(value)
            return value

        filled = _Rebuild(self._touched, {}, leaf, _replaced) if self._touched else leaf
        return tuple(map(filled, args)), {key: filled(value) for key, value in kwargs.items()}


def search(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> ArgumentScan | None:
    """Find futures and files in a call's arguments; return None if there are none.

    Raises:
        TypeError: A future is a key of a dict, or in a container that is not searched.
        ValueError: A container holds itself, or they are nested too deeply.
    """
    for value in args:
        if type(value) not in PLAIN:
            break
    else:
        if not kwargs or PLAIN.issuperset(map(type, kwargs.values())):
            return None
    roots: tuple[Any, ...] = (*args, *kwargs.values()) if kwargs else args
    found = ArgumentScan()
    seen: set[int] = set()  # futures and files found, containers done
    for root in roots:
        if not (type(root) in PLAIN or _leaf(root, found, seen)):
            _walk(root, found, seen)
    if not (found.futures or found.inputs or found.outputs or _LITERAL_SEEN in seen):
        return None
    return found


def _walk(root: Any, found: ArgumentScan, seen: set[int]) -> None:
    """Search a container and those in it."""
    odd: set[int] = set()  # ids of named tuples and dataclasses
    path: list[int] = []  # ids of the containers we are in
    walk: list[Iterator[Any]] = [iter((root,))]
    while walk:
        for value in walk[-1]:
            if type(value) in PLAIN:
                continue
            if _leaf(value, found, seen):
                found._touch(path, odd)
                continue
            children = _children(value)
            if children is None:
                continue
            key = id(value)
            if key in path or len(path) >= MAX_DEPTH:
                raise ValueError(
                    f"an argument of type {type(value).__name__} contains itself or is nested "
                    f"more than {MAX_DEPTH} levels deep; wrap it in rhapsody.literal(...) "
                    "if no futures or files in it are meant"
                )
            if key in seen:
                if key in found._touched:
                    found._touch(path, odd)
                continue
            path.append(key)
            if type(value) not in EXACT:
                odd.add(key)
            walk.append(iter(children))
            break
        else:
            walk.pop()
            if path:
                seen.add(path.pop())


_LITERAL_SEEN = -1  # no object has this id


def _leaf(value: Any, found: ArgumentScan, seen: set[int]) -> bool:
    kind = type(value)
    if kind in (list, tuple, dict, set):
        return False
    if asyncio.isfuture(value):
        into: list[Any] = found.futures
    elif isinstance(value, File):
        into = found.inputs if isinstance(value, InputFile) else found.outputs
    elif kind is literal:
        seen.add(_LITERAL_SEEN)
        return True
    else:
        return False
    if id(value) not in seen:
        seen.add(id(value))
        into.append(value)
    return True


def _children(value: Any) -> Any:
    """Return the values to search in a container, or None for anything else."""
    kind = type(value)
    if kind is list or kind is tuple or kind is set:
        children = value
    elif kind is dict:
        if not PLAIN.issuperset(map(type, value)):
            _check_keys(value)
        children = value.values()
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        children = value
    elif hasattr(kind, "__dataclass_fields__") and not isinstance(value, type):
        children = [getattr(value, f.name) for f in dataclasses.fields(value) if f.init]
    else:
        if isinstance(value, UNSEARCHED):
            _require_no_future(value, value)
        return None
    # Big plain data is passed over at the speed of C.
    return None if PLAIN.issuperset(map(type, children)) else children


def _require_no_future(value: Any, outer: Any) -> None:
    """Raise if a future is in a container that is not searched, or one level below.

    Types are checked first, at the speed of C, and objects only if that is not enough.
    """
    kinds = set(map(type, _items(value)))
    if PLAIN.issuperset(kinds):
        return
    if any(hasattr(kind, "_asyncio_future_blocking") for kind in kinds):
        for item in _items(value):
            if asyncio.isfuture(item):
                name = type(outer).__name__
                raise TypeError(
                    f"an argument holds a future in a {name}, {item!r}: futures are waited for in "
                    "lists, tuples, dicts and sets (not in their subclasses), named tuples and "
                    f"dataclasses; pass one of these, or wrap the {name} in "
                    "rhapsody.literal(...) if the future itself is meant"
                )
    if value is outer and any(issubclass(kind, UNSEARCHED) for kind in kinds):
        inner = (item for item in _items(value) if isinstance(item, UNSEARCHED))
        for item in islice(inner, LOOKED_AT):
            _require_no_future(item, outer)


def _items(value: Any) -> Iterator[Any]:
    """Iterate over a container as its built-in base class does."""
    if isinstance(value, dict):
        return iter(dict.values(value))
    kind: Any = next(kind for kind in UNSEARCHED if isinstance(value, kind))
    items: Iterator[Any] = kind.__iter__(value)
    return items


def _check_keys(value: dict[Any, Any]) -> None:
    """Raise if a future is a key of a dict, or in a tuple that is one."""
    for key in value:
        for part in key if type(key) is tuple else (key,):
            if asyncio.isfuture(part):
                raise TypeError(
                    f"an argument holds a dict with a future in its keys, {part!r}: only its "
                    "values are waited for; wrap the dict in rhapsody.literal(...) if the future "
                    "itself is meant"
                )


_anew: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Results of `_made_anew`, the slowest function here."""


def _made_anew(kind: type) -> bool:
    """Return True if a dataclass has a `__post_init__` and takes no arguments but its fields."""
    if not hasattr(kind, "__post_init__"):
        return False
    answer = _anew.get(kind)
    if answer is None:
        fields = {field.name for field in dataclasses.fields(kind) if field.init}
        answer = _anew[kind] = signature(kind).parameters.keys() <= fields
    return answer


def _replaced(value: Any, changes: dict[str, Any]) -> Any:
    """Return a dataclass with other values in its `init` fields."""
    if _made_anew(type(value)):
        return dataclasses.replace(value, **changes)
    return _changed(value, changes)


def _changed(value: Any, changes: dict[str, Any]) -> Any:
    """Return a copy of a dataclass with other values, without calling its `__init__`."""
    new = copy.copy(value)  # with what `__init__` does not know
    for name, change in changes.items():
        object.__setattr__(new, name, change)  # frozen ones too
    return new


class _Rebuild:
    """Rebuilds the containers in a value that are on the way to futures and files.

    Args:
        touched: The ids of these containers.
        made: Their copies, by the same ids, because one may be in several values.
        leaf: Returns the replacement of any other value.
        dataclass: Returns a dataclass with other values in its `init` fields.
    """

    def __init__(
        self,
        touched: set[int],
        made: dict[int, Any],
        leaf: Callable[[Any], Any],
        dataclass: Callable[[Any, dict[str, Any]], Any],
    ) -> None:
        self._touched = touched
        self._made = made
        self._leaf = leaf
        self._dataclass = dataclass

    def __call__(self, value: Any) -> Any:
        key = id(value)
        if key not in self._touched:
            return self._leaf(value)
        if key in self._made:
            return self._made[key]
        kind = type(value)
        new: Any
        if kind is dict:
            new = {k: self(v) for k, v in value.items()}
        elif kind is list or kind is set or kind is tuple:
            new = kind(map(self, value))
        elif isinstance(value, tuple):
            new = kind._make(map(self, value))
        else:
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            new = self._dataclass(value, {name: self(getattr(value, name)) for name in fields})
        self._made[key] = new
        return new


def texts_in(value: object, *, numbers: bool = False) -> tuple[str, ...]:
    """Return the strings and paths in a value, and in lists, tuples, dicts and sets in it.

    Args:
        value: The value.
        numbers: Also return integers, as text.
    """
    found: dict[str, None] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str | PurePath) or (numbers and type(one) is int):
            found[str(one)] = None
        elif type(one) in (list, tuple, set, frozenset):
            waiting.extend(cast("Iterable[object]", one))
        elif type(one) is dict:
            waiting.extend(one.values())
    return tuple(found)
