"""Packs the calls of functions for worker processes.

Packing runs code of the objects themselves, which may take for ever, and so has a thread of
its own. What holds nothing but values of Python's own types runs none, and is packed at once:
most arguments of short calls are such, and a function is once what it refers to is.
"""

from __future__ import annotations

import dis
import pickle
import sys
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from rhapsody.backends.local.worker import CALL, THREADS, Call
from rhapsody.sdk import calls
from rhapsody.sdk.runner import PLAIN, Order, dumps
from rhapsody.task import TaskDescription

SMALL: int = 1 << 16
"""Bytes that are packed and unpacked on the loop."""

DEPTH = 8
"""How deep containers may be inside each other for the same."""

KEPT = 128
"""How many packed functions are kept."""

SCALARS = PLAIN - {str, bytes}
SEQUENCES = frozenset({tuple, list, set, frozenset})
NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
GENERIC = (types.GenericAlias, types.UnionType)
MISSING: Any = object()

STORES = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "STORE_DEREF"}
"""What can change a function, or what it refers to."""

REFLECTION = {"globals", "vars", "setattr", "delattr", "exec", "eval"}
"""Names by which the same can be had."""


def pack_call(task: TaskDescription) -> bytes:
    """The function and its arguments as bytes, whatever they are.

    Raises:
        TypeError: It names the argument that cannot be pickled.
    """
    cure = f"pass data that can be, {THREADS}"
    return calls.pack_call(task, worker="a worker process", cure=cure)


def frame(order: Order, call: Call) -> bytes:
    """A call as it is sent to a worker, but for its number."""
    function, arguments, reusable = call
    packed = pickle.dumps(tuple(order), 5)
    lengths = CALL.pack(reusable, len(packed), len(function), len(arguments))
    return b"".join((lengths, packed, function, arguments))


def is_small(values: Iterable[Any], left: int = SMALL, depth: int = DEPTH) -> int:
    """Whether values are few, small and of Python's own types; the bytes that are left if so."""
    for value in values:
        kind = type(value)
        if kind in SCALARS:
            left -= 8
        elif kind is str or kind is bytes:
            left -= len(value)
        elif depth and kind in SEQUENCES:
            left = is_small(tuple(value), left - 8, depth - 1)
        elif depth and kind is dict:
            left = is_small((*value, *value.values()), left - 8, depth - 1)
        else:
            return 0
        if left <= 0:
            return 0
    return left


class Functions:
    """Packed functions, kept for as long as packing them again would give the same."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], Packed | None]] = {}

    def pack(self, task: TaskDescription) -> Call | None:
        """A task's call, if it is small; `None` where packing it may run code of others."""
        args, kwargs = task["args"], task["kwargs"]
        if not is_small(args) or (kwargs and not is_small((kwargs,))):
            return None
        function = self._packed(task["function"])
        if function is None:
            return None
        return Call(function.data, pickle.dumps((args, kwargs), 5), function.reusable)

    def _packed(self, function: Any) -> Packed | None:
        if type(function) not in NAMED:
            return None
        of, known = self._known.get(id(function), (None, None))
        if of is not None and of() is function and (known is None or known.is_current()):
            return known
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        known = _pack(function)
        self._known[id(function)] = weakref.ref(function), known
        return known


class Packed:
    """A packed function with what it refers to.

    Attributes:
        data: The function as bytes.
        reusable: Calls of it cannot change it.
    """

    def __init__(self, function: Any) -> None:
        self.data: bytes = b""
        self.reusable: bool = False
        self._named: list[tuple[Mapping[str, Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, types.CodeType, Any]] = []
        self.is_fixed: bool = self._refer(function)

    def is_current(self) -> bool:
        """Whether all that the function refers to is what it was."""
        for names, name, value in self._named:
            if names.get(name, MISSING) is not value:
                return False
        for cell, value in self._cells:
            if _content(cell) is not value:
                return False
        for each, code, defaults in self._functions:
            if each.__code__ is not code or each.__defaults__ is not defaults or not _is_bare(each):
                return False
        return True

    def codes(self) -> list[types.CodeType]:
        """The code of the functions that travel by value."""
        return [code for _, code, _ in self._functions]

    def _refer(self, value: Any, depth: int = DEPTH) -> bool:
        """Notes what a value refers to; whether nothing of it can change in place."""
        kind = type(value)
        if kind in PLAIN:
            return is_small((value,)) > 0
        if kind is tuple or kind is frozenset:
            few = depth > 0 and len(value) <= KEPT
            return few and all(self._refer(each, depth - 1) for each in value)
        if kind is types.ModuleType:
            return sys.modules.get(value.__name__) is value
        return kind in NAMED and (self._by_reference(value) or self._by_value(value))

    def _by_reference(self, value: Any) -> bool:
        module, name = value.__module__, value.__qualname__
        if type(module) is not str or module == "__main__":
            return False
        names = getattr(sys.modules.get(module), "__dict__", {})
        if names.get(name) is not value:
            return False
        self._named.append((names, name, value))
        return True

    def _by_value(self, function: Any) -> bool:
        if type(function) is not types.FunctionType or not _is_bare(function):
            return False
        if any(function is each for each, _, _ in self._functions):
            return True
        code, names = function.__code__, function.__globals__
        self._functions.append((function, code, function.__defaults__))
        cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        named = [(names, name, names.get(name, MISSING)) for name in _names(code)]
        self._cells += cells
        self._named += named
        values = [*(value for _, value in cells), *(value for _, _, value in named)]
        return (
            all(value is MISSING or self._refer(value) for value in values)
            and self._refer(function.__defaults__ or ())
            and all(map(self._is_type, function.__annotations__.values()))
        )

    def _is_type(self, annotation: Any) -> bool:
        """Whether an annotation runs no code of others when it is packed."""
        if type(annotation) in GENERIC or type(annotation).__module__ == "typing":
            return all(map(self._is_type, getattr(annotation, "__args__", ())))
        return annotation is ... or self._refer(annotation)


def _pack(function: Any) -> Packed | None:
    import cloudpickle  # type: ignore[import-untyped,unused-ignore]

    if cloudpickle.list_registry_pickle_by_value():
        return None
    try:
        found = Packed(function)
        if not found.is_fixed:
            return None
        found.data = dumps(function)
    except Exception:  # it is told by whoever packs the whole call
        return None
    found.reusable = len(found.data) <= SMALL and not any(map(_can_change, found.codes()))
    return found


def _is_bare(function: types.FunctionType) -> bool:
    return not function.__dict__ and not function.__kwdefaults__


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return MISSING


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@lru_cache(256)
def _names(code: types.CodeType) -> frozenset[str]:
    """The names of globals that code may use, and of attributes."""
    return frozenset(name for each in _codes(code) for name in each.co_names)


@lru_cache(256)
def _can_change(code: types.CodeType) -> bool:
    """Whether code may change the function that it is of, or one that this refers to."""
    if any(name in REFLECTION or name.startswith("__") for name in _names(code)):
        return True
    return any(
        found.opname in STORES for each in _codes(code) for found in dis.get_instructions(each)
    )
