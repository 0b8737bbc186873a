"""Closures of decorated functions, as they were at a call.

A function reads the variables of its closure when it runs, which may be long after the call. In a
loop, the variables then have the values of the last iteration. So each call uses a copy of the
function: its cells contain the values at the call. The values themselves are not copied. Python
functions in the closure are copied too if they have closures, and so are decorated functions,
`functools.partial` objects and bound methods.

Some cells are shared with the original function instead:

- cells that are empty at the call, because their variable is assigned later, and
- cells of variables that one of the functions assigns with `nonlocal`. In a copy, the assignment
  would be lost.

Functions that a module contains under their own name are not copied, because workers import them.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from rhapsody.sdk.introspect import MISSING, content_of, is_in_its_module, names_stored


def has_closure(value: object) -> bool:
    """Return True if a call of a callable object must use a copy of it (see `ClosureCopy`)."""
    while type(value) in (functools.partial, types.MethodType):
        value = value.func if type(value) is functools.partial else value.__func__  # type: ignore[attr-defined]
    return type(value) is types.FunctionType and _has_cells(value)


def _has_cells(function: types.FunctionType) -> bool:
    return bool(function.__closure__) and not is_in_its_module(function)


class ClosureCopy:
    """Copy of a function with the present values of its closure.

    Args:
        function: The function, which may be decorated.
        decorated: The class of decorated functions, `TaskFunction`.

    Attributes:
        function: The copy.
    """

    __slots__ = ("_cells", "_functions", "function")

    def __init__(self, function: Any, decorated: type) -> None:
        copying = _Copying(decorated)
        copying.read(function)
        self._cells: tuple[tuple[types.CellType, object], ...] = copying.compared()
        self._functions = [(each, _made_of(each)) for each in copying.functions]
        self.function: Any = copying.copy(function)

    def is_current(self) -> bool:
        """Return True if the variables and the defaults of the functions are the same as before."""
        return all(content_of(cell) is content for cell, content in self._cells) and all(
            _made_of(function) == parts for function, parts in self._functions
        )


def copier_of_closures(decorated: type) -> Callable[[Any], Any]:
    """Return a function that copies a function with the present values of its closure.

    The last copy is reused until a variable of the closure is assigned. Functions without a closure
    are returned themselves.

    Args:
        decorated: See `ClosureCopy`.
    """
    last: tuple[Any, ClosureCopy] | None = None

    def copied(function: Any) -> Any:
        nonlocal last
        if not has_closure(function):
            return function
        if last is None or last[0] is not function or not last[1].is_current():
            last = function, ClosureCopy(function, decorated)
        return last[1].function

    return copied


class _Copying:
    """Copier of a decorated function and of the functions in its closure.

    Args:
        decorated: The class of decorated functions.

    Attributes:
        functions: The functions that are copied.
    """

    def __init__(self, decorated: type) -> None:
        self._decorated = decorated
        self.functions: list[types.FunctionType] = []
        self._contents: dict[int, tuple[types.CellType, object]] = {}  # by the ids of the cells
        self._shared: set[int] = set()  # ids of the cells that are not copied
        self._read: set[int] = set()
        self._copies: dict[int, Any] = {}

    def read(self, value: Any) -> None:
        """Read the cells of a function and of the functions in them."""
        kind = type(value)  # unlike `isinstance`, this runs no code of the value's class
        if kind is functools.partial:
            self.read(value.func)
        elif kind is types.MethodType:
            self.read(value.__func__)
        elif kind is self._decorated:
            if value.has_closure:
                self.read(value.function)
        elif kind is types.FunctionType and id(value) not in self._read:
            self._read.add(id(value))
            if not _has_cells(value):
                return
            self.functions.append(value)
            code = value.__code__
            written = names_stored(code, "DEREF")
            for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
                if name in written:
                    self._shared.add(id(cell))
                if id(cell) not in self._contents:
                    content = content_of(cell)
                    self._contents[id(cell)] = cell, content
                    self.read(content)

    def compared(self) -> tuple[tuple[types.CellType, object], ...]:
        """Return the cells that were read, with their contents, except those of `nonlocal`."""
        cells = self._contents.items()
        return tuple(pair for key, pair in cells if key not in self._shared)

    def copy(self, value: Any) -> Any:
        """Return a copy of a function, or the value itself if it has no closure."""
        kind = type(value)
        if kind is functools.partial:
            function = self.copy(value.func)
            if function is not value.func:
                return functools.partial(function, *value.args, **value.keywords)
        elif kind is types.MethodType:
            function = self.copy(value.__func__)
            if function is not value.__func__:
                return types.MethodType(function, value.__self__)
        elif kind is self._decorated:
            return self._decorated_copy(value)
        elif kind is types.FunctionType and _has_cells(value):
            return self._copies.get(id(value)) or self._function(value)
        return value

    def _decorated_copy(self, task: Any) -> Any:
        if not task.has_closure:
            return task
        function = self.copy(task.function)
        # The closure may contain the decorated function itself, which is copied by now.
        known = self._copies.get(id(task))
        if known is None:
            known = self._copies[id(task)] = task.with_function(function)
        return known

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells, new = [], []
        for cell in function.__closure__ or ():
            key = id(cell)
            content = self._contents[key][1]
            if key in self._shared or content is MISSING:
                cells.append(cell)
                continue
            if key not in self._copies:
                self._copies[key] = types.CellType()
                new.append((self._copies[key], content))
            cells.append(self._copies[key])
        copied = self._copies[id(function)] = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(cells),
        )
        copied.__kwdefaults__ = function.__kwdefaults__
        functools.update_wrapper(copied, function, updated=())
        # Last, because the closure may contain the function itself.
        for cell, content in new:
            cell.cell_contents = self.copy(content)
        attributes = function.__dict__
        wrapped = self._copies.get(id(attributes.get("__wrapped__")))
        if wrapped is not None:
            attributes = {**attributes, "__wrapped__": wrapped}
        copied.__dict__ = attributes  # shared, because functions may assign their attributes
        return copied


def _made_of(function: types.FunctionType) -> tuple[object, ...]:
    """Return what a program can replace in a function; the ids of objects represent them."""
    return (
        id(function.__code__),
        id(function.__defaults__),
        *map(id, (function.__kwdefaults__ or {}).values()),
    )
