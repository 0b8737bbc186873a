"""Pickles of results, in which objects that the program holds by name are replaced by their names.

A sentinel such as `MISSING = object()` is compared with `is`, so a copy of it would be useless. If
a result contains an object that compares by identity, and that the code of the task reads from a
variable of a module, the pickle contains the name of the variable. Its value is part of the task's
key, so a later run that reuses the result has an equal object under this name. The same applies to
an object without attributes that is in a variable of the module that defines its class, such as
`dataclasses.MISSING`.

pickle refuses a `memoryview` and an open file. cloudpickle, which stores what pickle refuses,
replaces them by `bytes` and by an `io.StringIO`, so results that contain one are not recorded.
"""

from __future__ import annotations

import builtins
import datetime
import enum
import io
import mmap
import pickle
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache, cached_property
from typing import Any

from rhapsody.builtin.journal.values import (
    OF_PANDAS,
    UnhashableError,
    attributes_left_out,
    is_global_generator,
    is_plain_python,
)
from rhapsody.sdk.introspect import cached_properties, names_stored, slots_of
from rhapsody.sdk.runner import pickler

_PAIRS: dict[str, int] = {}
_VIEWS = type(_PAIRS.keys()), type(_PAIRS.values()), type(_PAIRS.items())

_REDUCING = "__reduce__", "__reduce_ex__", "__getstate__"

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes))

_BY_REFERENCE = type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType
"""Types of objects that pickle itself stores by name."""

_REFERENCES = 3
"""References to the attributes of an object, or the memory of an array, that nothing else holds:
from the object, a variable and the argument of `getrefcount`."""

_BYTES_IO = type(io.BytesIO(b" ").getbuffer().obj)

MAX_COMPARED = 10_000
"""Maximum number of pairs of arrays in a result that are tested for shared memory. A result that
contains more pairs whose bounds overlap is not recorded."""

Read = Iterable[tuple[Mapping[str, Any], str, object]]
"""Variables that code reads. See `CodeFingerprint.read`."""


def packed(content: tuple[object, ...], read: Read, own: Callable[[type], bool]) -> bytes:
    """Return the pickle of a result.

    Args:
        content: The value, followed by what else is stored with it.
        read: The variables that the task's code reads.
        own: Function that returns True for the classes of the program.

    Raises:
        UnhashableError: The value contains an instance of `object` that has no name, or an object
            that would be replaced by one of another kind.
        Exception: The value cannot be pickled.
    """
    if type(content[0]) in _PLAIN and len(content) == 4:
        return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    stream, parts = io.BytesIO(), _Parts(read, own)
    try:
        _Pickler(stream, parts).dump(content)
        by_name = True
    except UnhashableError:
        raise
    except Exception:  # it contains objects that pickle cannot find by name
        by_name = False  # the exception and the first pickler, which holds attributes, are gone
    if not by_name:
        stream, parts = io.BytesIO(), _Parts(read, own)
        _by_value(pickler())(stream, parts).dump(content)
    parts.require_own_memory()
    return stream.getvalue()


def _require_same_kind(value: Any) -> None:
    """Raise `UnhashableError` if cloudpickle would replace an object by one of another kind."""
    kind = type(value)
    if kind is memoryview:
        raise UnhashableError(
            "its result contains a memoryview, which would be bytes in a reused result; return "
            "view.tobytes() or an array"
        )
    if kind in _VIEWS:
        raise UnhashableError(
            f"its result contains a view of a dict ({kind.__name__}), and a reused result would "
            "contain a copy that does not follow the dict; return a list"
        )
    if kind in weakref.ProxyTypes:
        raise UnhashableError(
            "its result contains a weakref.proxy, and a reused result would contain a copy of the "
            "object instead; return the object, or define __getstate__ without the proxy"
        )
    if kind.__module__ == "uncertainties.core":
        raise UnhashableError(
            "its result contains a number of uncertainties, whose correlations with other numbers "
            "depend on its identity, and a reused result would contain a copy; return its "
            "nominal_value and std_dev"
        )
    if kind is io.TextIOWrapper and value not in (sys.stdout, sys.stderr):
        raise UnhashableError(
            "its result contains an open file, and a reused result would contain an io.StringIO; "
            "return the path or the text of the file"
        )


def _omitted(value: Any) -> str | None:
    """Return the name of an attribute that pickle omits, as far as known; `None` if there is none.

    Such objects are instances of classes of the program that derive from these, and tables of
    pandas to which the program has added attributes.
    """
    attributes = getattr(value, "__dict__", None)
    if type(attributes) is not dict or not attributes:
        return None
    kind: Any = type(value)
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series)):
        kept = {*kind._metadata, "attrs", "flags", *OF_PANDAS}
        return next((each for each in attributes if each not in kept), None)
    if kind.__module__.partition(".")[0] == "numpy":
        return None
    omitting: list[Any] = [
        random.Random, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, Decimal,
    ]  # fmt: skip
    omitting += [] if numpy is None else [numpy.ndarray]
    for base in omitting:
        if isinstance(value, base):
            own = kind.__reduce__ is base.__reduce__ and kind.__reduce_ex__ is base.__reduce_ex__
            return next((each for each in attributes if own and each != "gauss_next"), None)
    return None


def _owner(array: Any) -> Any:
    """Return the object that owns the memory of an array: itself, or the base of its bases."""
    while (base := getattr(array, "base", None)) is not None or type(array) is memoryview:
        array = array.obj if base is None else base
    return array


def _bounds(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and of the byte after the last one."""
    about = getattr(array, "__array_interface__", None)
    if about is None:
        return array.buffer_info()[0], array.buffer_info()[0] + len(array) * array.itemsize
    low = high = about["data"][0]
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride > 0:
            high += (size - 1) * stride
        else:
            low += (size - 1) * stride
    return (low, high + array.itemsize) if array.size else (low, low)


def _share_memory(one: Any, other: Any) -> bool:
    """Return True if a change of one array may change another one whose bounds overlap."""
    numpy: Any = sys.modules["numpy"]
    if not (isinstance(one, numpy.ndarray) and isinstance(other, numpy.ndarray)):
        return True
    if not (one.flags.writeable or other.flags.writeable):
        return False
    try:
        return bool(numpy.shares_memory(one, other, max_work=1000))
    except Exception:  # it takes too long to find out
        return True


def named(module: str, name: str) -> object:
    """Return the value of a variable of a module. Called when a pickle is loaded."""
    return vars(sys.modules[module])[name]


def held(kind: type, name: str) -> object:
    """Return the object without attributes in a variable of the module of its class.

    If the variable has another value, a copy of the object is returned. Called when a pickle is
    loaded.
    """
    value = vars(sys.modules[kind.__module__]).get(name)
    return value if type(value) is kind else object.__new__(kind)


class _Parts:
    """Check of the parts of a result, and the names of those that are stored by name.

    Args:
        read: The variables that the task's code reads.
        own: Function that returns True for the classes of the program.
    """

    def __init__(self, read: Read, own: Callable[[type], bool]) -> None:
        self._read = read
        self._own = own
        self._tensors: dict[int, Any] = {}  # of PyTorch, by the addresses of their memory
        self._cells: dict[int, dict[int, bool]] = {}  # by the ids of cells and of their functions
        self._arrays: dict[int, list[Any]] = {}  # by the id of the array that owns the memory

    @cached_property
    def _names(self) -> dict[int, tuple[str, str]]:
        """The module and the name of each object that code reads from a variable of a module."""
        found: dict[int, tuple[str, str]] = {}
        for variables, name, value in self._read:
            module = variables.get("__name__")
            if isinstance(module, str) and vars(sys.modules.get(module, types)) is variables:
                found[id(value)] = module, name
        return found

    def _require_own_cells(self, function: types.FunctionType) -> None:
        """Check that a function shares no variable with another one that assigns to it."""
        stored = names_stored(function.__code__, "DEREF")
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            others = self._cells.setdefault(id(cell), {})
            others[id(function)] = name in stored
            if len(others) > 1 and any(others.values()):
                raise UnhashableError(
                    f"its result contains functions that share the variable {name!r}, which one of "
                    "them assigns, and in a reused result each would have a variable of its own; "
                    "return an object with these functions as methods"
                )

    def _note_memory(self, array: Any) -> None:
        """Note an array of NumPy, a row of a structured array, or an array of `array`.

        Raises:
            UnhashableError: The array is in a memory map, in shared memory, or in the memory of
                another object.
        """
        owner = _owner(array)
        if isinstance(owner, mmap.mmap) and array.flags.writeable:
            raise UnhashableError(
                "its result contains an array in a writable memory map or in shared memory, and a "
                "reused result would contain an array that is not connected to this memory; return "
                "the path of the file, or a copy"
            )
        is_shared = type(owner) is bytearray and sys.getrefcount(owner) > _REFERENCES
        if is_shared or isinstance(owner, _BYTES_IO):
            raise UnhashableError(
                "its result contains an array in the memory of a bytearray or io.BytesIO, and in a "
                "reused result the two would be separate copies; return only one of them"
            )
        self._arrays.setdefault(id(owner), []).append(array)

    def _note_tensor(self, tensor: Any) -> None:
        """Check that no other tensor in the result has the memory of a tensor of PyTorch.

        Raises:
            UnhashableError: Another one has.
        """
        storage = tensor.untyped_storage().data_ptr()
        if storage and self._tensors.setdefault(storage, tensor) is not tensor:
            raise UnhashableError(
                "its result contains tensors that share memory, as t[1:] and t do, and in a reused "
                "result they would be separate copies; return clones, or create the views again"
            )

    def require_own_memory(self) -> None:
        """Check that no two arrays in the result share memory.

        Raises:
            UnhashableError: Two arrays do, or there are too many to find out.
        """
        compared = 0
        for arrays in self._arrays.values():
            before: list[tuple[int, Any]] = []  # the ends of arrays, and these
            ordered = sorted(((*_bounds(each), each) for each in arrays), key=lambda each: each[:2])
            for low, high, array in ordered:
                before = [(end, each) for end, each in before if end > low]
                compared += len(before)
                if compared > MAX_COMPARED or any(_share_memory(array, each) for _, each in before):
                    raise UnhashableError(
                        "its result contains arrays that share memory, as a[1:] and a do, and in a "
                        "reused result they would be separate copies; return copies, or create the "
                        "views again"
                    )
                if high > low:
                    before.append((high, array))

    def _left_out(self, value: Any) -> str | None:
        """Return the name of an attribute that a library's method leaves out, if there is one."""
        kind: Any = type(value)
        if all(getattr(kind, each, None) is getattr(object, each) for each in _REDUCING):
            return None  # they keep all attributes
        if isinstance(value, type | enum.Enum) or not self._own(kind):
            return None
        made = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        state = made[2] if type(made) is tuple and len(made) > 2 else None
        names = attributes_left_out(value, state, self._own)
        cached: frozenset[str] = cached_properties(kind)  # these can be computed again
        return next((name for name in names if name not in cached), None)

    def reduced(self, value: Any) -> Any:
        """Return how to pickle a part of the result, as `pickle.Pickler.reducer_override` does.

        Raises:
            UnhashableError: The part would lose something.
        """
        kind: Any = type(value)
        _require_same_kind(value)
        if (omitted := _omitted(value) or self._left_out(value)) is not None:
            raise UnhashableError(
                f"its result contains a {kind.__qualname__} with the attribute {omitted!r}, which "
                "a pickle omits; return the attribute separately, or define __reduce__"
            )
        if isinstance(value, types.FunctionType) and value.__closure__:
            self._require_own_cells(value)
        if is_global_generator(value):
            raise UnhashableError(
                "its result contains the global random number generator, and a reused result would "
                "contain a copy of it; use a generator of your own, such as random.Random(seed)"
            )
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, dict) and attributes is value:
            raise UnhashableError(
                f"its result contains a {kind.__qualname__}, whose attributes are its items, and "
                "in a reused result they would be separate; return a plain dict, or define "
                "__getattr__"
            )
        if (
            type(attributes) is dict
            and sys.getrefcount(attributes) > _REFERENCES
            and not isinstance(value, (*_BY_REFERENCE, enum.Enum))
        ):
            raise UnhashableError(
                f"its result contains a {kind.__qualname__} whose attributes are also held as a "
                "dict, such as vars(args), and in a reused result this dict would be a copy; use "
                "dict(vars(args))"
            )
        if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
            self._note_tensor(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and (
            isinstance(value, numpy.ndarray | numpy.void) or kind.__module__ == "array"
        ):
            if isinstance(value, numpy.ma.MaskedArray) and value.mask is not numpy.ma.nomask:
                self._note_memory(value.mask)
            self._note_memory(value)
        if kind.__eq__ is not object.__eq__ or isinstance(value, _BY_REFERENCE):
            return NotImplemented
        if id(value) in self._names:
            return named, self._names[id(value)]
        if kind is object:
            raise UnhashableError(
                "its result contains an object(), and a reused result would contain a copy that "
                "is not equal to it; assign it to a variable of a module that the function reads, "
                "or use a member of an enum.Enum"
            )
        if not (getattr(value, "__dict__", None) or slots_of(kind)):
            module = sys.modules.get(kind.__module__)
            if module not in (None, builtins) and is_plain_python(kind):  # not `...`
                for name, each in list(vars(module).items()):
                    if each is value:
                        return held, (kind, name)
        return NotImplemented


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, parts: _Parts) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self._parts = parts

    def reducer_override(self, value: Any) -> Any:
        return self._parts.reduced(value)


@cache
def _by_value(kind: Any) -> Any:
    """Return a subclass of cloudpickle's pickler that checks and names the parts as well."""

    class ByValue(kind):  # type: ignore[misc]
        def __init__(self, stream: io.BytesIO, parts: _Parts) -> None:
            super().__init__(stream)
            self._parts = parts

        def reducer_override(self, value: Any) -> Any:
            made = self._parts.reduced(value)
            return super().reducer_override(value) if made is NotImplemented else made

    return ByValue
