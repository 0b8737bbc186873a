"""Inspection of functions, classes and code objects.

Byte code is inspected only for the names that it reads or sets.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Container, Iterator
from typing import Any

MISSING: Any = object()
"""Placeholder for the value of a variable that is not set."""

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")

_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


def content_of(cell: types.CellType) -> Any:
    """Return the content of a closure's cell, or `MISSING` if the cell is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def is_in_its_module(thing: types.FunctionType | type) -> bool:
    """Return True if a function or class is found under its own name in its module."""
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


@functools.lru_cache(1024)
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes that the instances of a class keep in slots."""
    names: list[str] = []
    for cls in kind.__mro__:
        given = cls.__dict__.get("__slots__", ())
        for name in (given,) if isinstance(given, str) else given:
            if name not in ("__dict__", "__weakref__"):
                names.append(mangled(name, cls.__name__))
    return tuple(names)


def in_slot(value: object, name: str) -> Any:
    """Return the value of a slot, or `MISSING`; calls no `__getattr__`, which could compute it."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return MISSING


def mangled(name: str, cls: str) -> str:
    """Return the form that Python gives a name in the body of a class: `_A__x` for `__x`."""
    owner = cls.lstrip("_")
    private = name.startswith("__") and not name.endswith("__")
    return f"_{owner}{name}" if owner and private else name


@functools.lru_cache(1024)
def cached_properties(kind: type) -> frozenset[str]:
    """Return the names of a class's cached properties, whose values depend on other attributes."""
    found = ((name, each) for base in kind.__mro__ for name, each in vars(base).items())
    names = {name for name, each in found if type(each) is functools.cached_property}
    for base in kind.__mro__:  # `attrs` keeps their values in slots, beside those of its fields
        if "__attrs_attrs__" in vars(base):
            fields = {each.name for each in vars(base)["__attrs_attrs__"]}
            names.update(set(vars(base).get("__slots__", ())) - fields - {"__weakref__"})
    return frozenset(names)


def with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all code objects nested in it, in source order."""
    todo = [code]
    while todo:
        one = todo.pop()
        yield one
        todo += [each for each in reversed(one.co_consts) if isinstance(each, types.CodeType)]


def variables(function: types.FunctionType) -> Iterator[tuple[str, bool, Any]]:
    """Yield the variables of a function: names, True for defaults, and values."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name, False, content_of(cell)
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    for name, value in (
        *zip(names, defaults, strict=False),
        *(function.__kwdefaults__ or {}).items(),
    ):
        yield name, True, value
    for name in names_read(code, attributes=False):
        yield name, False, function.__globals__.get(name, MISSING)


@functools.lru_cache(512)
def names_read(code: types.CodeType, *, attributes: bool = True) -> frozenset[str]:
    """Return the names of the globals that code and the code in it read.

    Args:
        code: The code.
        attributes: True to include the names of attributes.
    """
    names = _GLOBALS + _ATTRIBUTES if attributes else _GLOBALS
    return _names(code, names)


@functools.lru_cache(512)
def names_stored(code: types.CodeType, *kinds: str) -> frozenset[str]:
    """Return the names of variables that code and the code in it set or delete.

    Args:
        code: The code.
        kinds: `GLOBAL` for globals, `DEREF` for variables that functions share with functions in
            them, `ATTR` for attributes.
    """
    return _names(code, [f"{verb}_{kind}" for verb in ("STORE", "DELETE") for kind in kinds])


def _names(code: types.CodeType, instructions: Container[str]) -> frozenset[str]:
    steps = (each for inner in with_inner(code) for each in dis.get_instructions(inner))
    return frozenset(each.argval for each in steps if each.opname in instructions)
