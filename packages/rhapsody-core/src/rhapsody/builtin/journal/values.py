"""Digests of values. A value's digest is the same in every run and on every machine.

Digests are not computed from pickles: a comment above a function of `__main__` changes its pickle,
and the order of a set changes with the hash seed. Instead, an object's digest is computed from the
parts from which pickle would rebuild the object. A digest depends neither on the order of a `dict`,
unless it contains functions or classes, nor on whether two parts of a value are the same object.
Two kinds of values have a different digest
in each run: sets of functions with the same name, such as lambdas, and objects that contain the
address of another object.
"""

from __future__ import annotations

import asyncio
import copyreg
import enum
import functools
import hashlib
import io
import itertools
import logging
import os
import pickle
import random
import re
import struct
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import Context, ContextVar
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.data import File, InputFiles
from rhapsody.errors import without_ours
from rhapsody.sdk.introspect import MISSING, in_slot, mangled, slots_of
from rhapsody.sdk.value_handles import WorkerValue

DIGEST_SIZE = 16
"""Size of a digest in bytes. A collision of 16 bytes becomes likely only among 2^64 values."""

LARGE_VALUE = 10_000
"""Size, as in `Values.size`, from which a value is digested only once per run, except arguments,
their default values, and values that can be compared by their pickles (see `unchanged`)."""

MAX_PATH_LENGTH = 4096
"""Maximum number of characters in a path (Linux's `PATH_MAX`)."""

MAX_OBJECTS = 5_000_000
"""Maximum number of objects in a value that has a digest. An object is counted each time that it
is reached, or hashed as a part of a graph."""

MAX_DEPTH = 100
"""Number of objects inside each other from which a value is digested as a graph."""

_WINDOWS = (2_000, 6_000), (16_000, 48_000), (128_000, 384_000), (MAX_OBJECTS, sys.maxsize)
"""Parts of the walk through a value in which objects are noted. If three of ten objects in a part
were reached before, the value is digested as a graph, because the number of paths through it may
grow exponentially. All objects of a part stay alive until its end, so parts are few."""

_ROUNDS = 12
"""Number of references that are followed to put the parts of sets and dicts of a graph in order."""

_SHARED = types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type
"""Types of objects to which many others refer, but which refer to no others when digested."""

_TEXTS = frozenset((str, bytes, bytearray, memoryview))

Feed = Callable[[Any], object]
"""Function that adds bytes or a buffer to a digest."""

_random = random.seed.__self__  # type: ignore[attr-defined]

_MACHINERY = (
    "rhapsody.engine.engine", "rhapsody.engine.functions.task_function", "rhapsody.backends.",
)  # fmt: skip
"""Prefixes of the names of core's modules that define engines, backends and tasks."""

_LOCKS = frozenset((
    "_thread", "threading", "asyncio.locks", "multiprocessing.synchronize",
    "concurrent.futures.thread", "concurrent.futures.process",
))  # fmt: skip
"""Modules whose objects schedule or synchronize work and do not affect results."""

_MESSAGE_MODULES = frozenset((
    "loguru", "structlog", "tqdm", "rich.console", "rich.live", "rich.logging", "rich.progress",
    "rich.status",
))  # fmt: skip
"""Packages and modules whose objects only write messages."""

_LOGGING = logging.Logger, logging.Handler, logging.LoggerAdapter

_EVENTS = threading.Event | asyncio.Event

_DESCRIPTORS = (
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip

_CACHED = type(functools.lru_cache(len))

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")


class UnhashableError(TypeError):
    """A value has no digest, because its state cannot be read completely."""


class _GraphError(Exception):
    """A value must be digested as a graph."""


class _Graph:
    """The objects of a value, each with its own data and references to others.

    Attributes:
        numbers: The number of each object, by id.
        objects: The objects by number. They stay alive, so that their ids are unique.
        parts: The parts of the object that is being read: data, the number of another object, or
            the numbers of several objects whose order does not matter.
    """

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.objects: list[object] = []
        self.parts: list[Any] = []

    def number(self, value: object) -> int:
        """Return the number of an object, which is read later if it is new."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def digest(self, nodes: list[list[Any]]) -> bytes:
        """Return a digest of the objects and of their references to each other.

        The objects are numbered in the order in which they are reached. The order of parts of sets
        and dicts is that of hashes of these parts and of what they refer to (color refinement).

        Args:
            nodes: The parts of each object.
        """
        hashes = [b""] * len(nodes)
        for _ in range(_ROUNDS):
            hashes = [_hash_of(node, hashes) for node in nodes]
        numbers = {0: 0}
        reached = [0]
        made = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for node in reached:  # grows
            for part in nodes[node]:
                if type(part) is bytes:
                    made.update(b"b" + part)
                    continue
                others = [part]
                if type(part) is tuple:
                    others = sorted(
                        part, key=lambda each: (hashes[each], numbers.get(each, len(nodes)))
                    )
                for each in others:
                    if each not in numbers:
                        numbers[each] = len(numbers)
                        reached.append(each)
                made.update(b"o%d:" % len(others))
                made.update(b"".join([b"%d," % numbers[each] for each in others]))
            made.update(b".")
        return made.digest()


def _hash_of(node: Iterable[Any], hashes: Sequence[bytes]) -> bytes:
    made = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in node:
        if type(part) is int:
            made.update(b"o" + hashes[part])
        elif type(part) is tuple:
            made.update(b"s%d:" % len(part) + b"".join(sorted([hashes[each] for each in part])))
        else:
            made.update(b"b" + part)
    return made.digest()


def _shortened(parts: Iterable[Any]) -> list[Any]:
    """Return the parts of an object with the digests of its data instead of the data."""
    found: list[Any] = []
    for is_data, group in itertools.groupby(parts, lambda part: type(part) not in (int, tuple)):
        if not is_data:
            found += group
            continue
        made = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for part in group:
            made.update(part)
        found.append(made.digest())
    return found


class Collector(Protocol):
    """Collector of the code and the files to which values refer.

    Implemented by `rhapsody.builtin.journal.code.CodeFingerprint`, whose module imports this one.
    """

    def code(self, thing: Any) -> str:
        """Collect a function, class or module, and return a unique name for it."""

    def own(self, kind: type) -> bool:
        """Return True if a class belongs to the program and not to a library."""

    def caches(self, value: object, state: Mapping[str, Any]) -> Collection[str]:
        """Return the names of an object's attributes that do not count, because they are caches."""

    def path(self, text: str) -> str | None:
        """Collect a string that may name a file, and return its portable form or `None`."""

    def input_name(self, path: object, name: str) -> str:
        """Return the unique name of a task's input file, given its path and its base name."""

    def worker_value(self, handle: WorkerValue[Any]) -> None:
        """Note a handle of a worker value."""

    def memoized(self, function: Any) -> None:
        """Note a function with a cache of `functools.lru_cache`."""


class Values:
    """Hasher of values, one at a time.

    Args:
        collector: The object that collects the functions, classes and paths in values.

    Attributes:
        size: Size of the value that was last passed to `digest`: the number of containers and other
            objects with parts in it, plus one for each 128 bytes of data.
    """

    __slots__ = (
        "_again", "_collector", "_entries", "_graph", "_look_from", "_met", "_open", "_whole",
        "_window", "size",
    )  # fmt: skip

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._open: dict[int, int] = {}  # by id: the depth of each object that is being read
        self._met: dict[int, object] = {}  # by id: objects that were reached before
        self._again: int = 0
        self._window: int = 0  # the number of the next or current one in `_WINDOWS`
        self._look_from: int = _WINDOWS[0][0]
        self._graph: _Graph | None = None
        self._whole: bool = True
        self._entries: int = 0
        self.size: int = 0

    def shown(self, value: object) -> str:
        """Return a value's digest in hexadecimal.

        For speed, return a value's encoding instead if it is shorter than a digest, as that of a
        small number is.

        Raises:
            UnhashableError: The value has no digest.
        """
        if type(value) is str:
            text = self._text(value)
            return _digits(text) if len(text) < 100 else _digits.__wrapped__(text)
        known = _PLAIN.get(type(value))
        if known is not None:
            plain = known(value)
            if len(plain) < DIGEST_SIZE:
                return plain.decode("latin-1")
        return self.digest(value).hex()

    def digest(self, value: object, *, whole: bool = True) -> bytes:
        """Return a value's digest.

        Args:
            value: The value.
            whole: True if every part must have a digest. Otherwise objects that do not affect
                results, such as loggers and locks, are represented by their class alone.

        Raises:
            UnhashableError: The value has no digest.
        """
        self._whole, self._entries, self.size, self._again = whole, 0, 0, 0
        self._window, self._look_from = 0, _WINDOWS[0][0]
        try:
            try:
                return self._inner(value)
            except _GraphError:
                return self._of_graph(value)
        except UnhashableError:
            raise
        except RecursionError:
            raise UnhashableError("a value is nested too deeply") from None
        except Exception as error:  # any error raised by an object that is inspected
            raise UnhashableError(f"{type(error).__name__}: {error}") from error
        finally:
            self._open.clear()
            self._met.clear()
            self._graph = None
            self.size += self._entries

    def _of_graph(self, value: object) -> bytes:
        """Return the digest of a value that contains many references to the same objects."""
        self._open.clear()
        self._met.clear()
        self._entries = 0
        graph = self._graph = _Graph()
        graph.number(value)
        nodes: list[list[Any]] = []
        for each in graph.objects:  # grows
            if len(graph.objects) > MAX_OBJECTS:
                raise UnhashableError(f"a value contains more than {MAX_OBJECTS:,} objects")
            graph.parts = []
            if type(each) in _PLAIN or type(each) in _TEXTS:
                self._feed(each, graph.parts.append)
            else:
                self._entries += 1
                self._composed(each, graph.parts.append)
            nodes.append(_shortened(graph.parts))
        return graph.digest(nodes)

    def _look_at(self, value: object, address: int) -> None:
        """Note an object, and count it if it was reached before."""
        first, stop = _WINDOWS[self._window]
        if self._entries > MAX_OBJECTS:
            raise UnhashableError(f"a value contains more than {MAX_OBJECTS:,} objects")
        if self._entries >= stop:
            self._met.clear()
            self._again = 0
            self._window += 1
            self._look_from = _WINDOWS[self._window][0]
        elif not isinstance(value, _SHARED):
            if address not in self._met:
                self._met[address] = value  # stays alive, so that no other object has this address
                return
            self._again += 1
            if self._again > (stop - first) * 3 // 10:
                raise _GraphError

    def _inner(self, value: object) -> bytes:
        made = hashlib.blake2b(digest_size=DIGEST_SIZE)
        self._feed(value, made.update)
        return made.digest()

    def _feed(self, value: Any, feed: Feed) -> None:
        kind = type(value)
        known = _PLAIN.get(kind)
        if known is not None:
            if kind is int and (
                value in self._open or (self._graph is not None and value in self._graph.numbers)
            ):
                raise UnhashableError("an object contains its own memory address")
            feed(known(value))
        elif kind is str:
            feed(self._text(value))
        elif kind is bytes or kind is bytearray:
            feed(b"%b%d:" % (b"b" if kind is bytes else b"B", len(value)))
            feed(value)  # not a copy: copying big data would block all threads
            self.size += len(value) >> 7
            if len(value) <= MAX_PATH_LENGTH and (b"/" in value or b"." in value):
                self._collector.path(os.fsdecode(bytes(value)))
        elif kind is memoryview:
            feed(_framed(b"M", repr((value.format, value.shape))))
            feed(value)
            self.size += value.nbytes >> 7
        else:
            self._entered(value, feed)

    def _text(self, value: str) -> bytes:
        if " at 0x" in value and _ADDRESS.search(value):
            raise UnhashableError("a string contains the memory address of an object")
        place = self._collector.path(value)
        if place is not None:
            return _framed(b"p", place)
        if value.isascii():
            return f"s{len(value)}:{value}".encode()
        return _framed(b"s", value)

    def _entered(self, value: Any, feed: Feed) -> None:
        """Add a value that may contain itself to a digest."""
        if self._graph is not None:
            self._graph.parts.append(self._graph.number(value))
            return
        self._entries = entries = self._entries + 1
        address = id(value)  # called once, because audit hooks make it slow
        if entries >= self._look_from:
            self._look_at(value, address)
        depth = len(self._open)
        if depth >= MAX_DEPTH:
            raise _GraphError
        if address in self._open:
            feed(b"^%d;" % (depth - self._open[address]))
            return
        self._open[address] = depth
        try:
            self._composed(value, feed)
        finally:
            self._open.pop(address, None)

    def _composed(self, value: Any, feed: Feed) -> None:
        kind = type(value)
        if kind is tuple or kind is list:
            self._items(b"t" if kind is tuple else b"l", value, feed)
        elif kind is dict and _contains_steps(value.values()):
            self._items(b"D", value.items(), feed)
        elif kind is dict:
            self._sorted(b"d", value.items(), feed)
        elif kind is set or kind is frozenset:
            self._sorted(b"S" if kind is set else b"Z", value, feed)
        elif kind is types.MappingProxyType:
            self._sorted(b"X", value.items(), feed)
        elif isinstance(value, types.FunctionType) and not issubclass(kind, types.FunctionType):
            # A proxy that pretends to be the function, as decorators of `wrapt` do.
            held = attribute_of(value, "__wrapped__"), attribute_of(value, "_self_wrapper")
            self._items(b"Y", (f"{kind.__module__}.{kind.__qualname__}", *held), feed)
        elif isinstance(value, types.FunctionType | types.ModuleType | type) or _is_free(value):
            feed(_framed(b"c", self._collector.code(value)))
        elif isinstance(value, types.MethodType):
            self._items(b"m", (value.__func__, value.__self__), feed)
        elif isinstance(value, types.BuiltinMethodType):
            feed(_framed(b"M", value.__name__))
            self._feed(value.__self__, feed)
        elif kind is property:
            self._items(b"m", (kind, value.fget, value.fset, value.fdel), feed)
        elif kind is staticmethod or kind is classmethod:
            self._items(b"m", (kind, value.__func__), feed)
        elif kind is functools.cached_property:
            self._items(b"m", (kind, value.func), feed)
        elif isinstance(value, _DESCRIPTORS):
            self._items(b"m", (kind, value.__objclass__, value.__name__), feed)
        elif kind is struct.Struct:
            self._items(b"m", (kind, value.format), feed)
        elif value is os.environ or value is os.environb:
            self._sorted(b"E", [each for each in os.environ.items() if counts(each[0])], feed)
        elif kind is ContextVar:
            self._items(b"m", (kind, value.name, Context().run(_content, value)), feed)
        elif isinstance(value, partial):
            more = (vars(value),) if getattr(value, "__dict__", None) else ()
            self._items(b"P", (kind, value.func, value.args, value.keywords, *more), feed)
        elif isinstance(value, InputFiles):
            # The content of input files is digested separately.
            names = [self._collector.input_name(path, path.name) for path in value]
            name = self._collector.input_name(value.file.filepath, value.file.filename)
            feed(_framed(b"F", repr((name, value.directory, names))))
        elif isinstance(value, File):
            name = self._collector.input_name(value.filepath, value.filename)
            feed(_framed(b"f", f"{kind.__name__} {name}"))
        elif isinstance(value, WorkerValue):
            self._collector.worker_value(value)
            self._items(b"W", (value.definition.factory, value.args, value.kwargs), feed)
        elif isinstance(value, PurePath):
            self._items(b"/", (kind, str(value)), feed)
            if attributes := attributes_left_out(value, None, self._collector.own):
                self._items(b"l", (attributes,), feed)
        else:
            self._object(value, feed)

    def _items(self, tag: bytes, items: Iterable[Any], feed: Feed) -> None:
        feed(tag)
        for item in items:
            feed(b",")
            self._feed(item, feed)
        feed(b".")

    def _sorted(self, tag: bytes, items: Iterable[Any], feed: Feed) -> None:
        if self._graph is not None:
            feed(tag)
            self._graph.parts.append(tuple([self._graph.number(item) for item in items]))
            return
        digests = sorted([self._inner(item) for item in items])
        feed(b"%b%d:" % (tag, len(digests)) + b"".join(digests))

    def _object(self, value: Any, feed: Feed) -> None:
        if _is_machinery(value):
            self._roughly(value, feed)
        elif self._whole or self._collector.own(type(value)):
            self._apart(value, feed)
        elif _is_mute(value):
            self._roughly(value, feed)
        elif isinstance(value, _EVENTS):
            self._items(b"E", (type(value), value.is_set()), feed)
        else:
            self._apart(value, feed)

    def _roughly(self, value: Any, feed: Feed) -> None:
        """Add an object's class, and the function that it wraps, to a digest."""
        kind = type(value)
        wrapped = attribute_of(value, "__wrapped__")
        feed(_framed(b"k", f"{kind.__module__}.{kind.__qualname__}"))
        self._items(b"l", [wrapped] if isinstance(wrapped, types.FunctionType) else [], feed)

    def _apart(self, value: Any, feed: Feed) -> None:
        kind = type(value)
        parts = _parts_of_array(value)
        if parts is not None:
            feed(_framed(b"A", kind.__qualname__))
            self._items(b"A", parts, feed)
        elif (compiled := _compiled(value)) is not None:
            self._items(b"J", compiled, feed)
        elif (content := _shared_memory(value)) is not None:
            self._items(b"m", (kind, content), feed)
        elif isinstance(value, AbstractSet):  # the order of sets changes with the hash seed
            self._feed(kind, feed)
            self._sorted(b"S", value, feed)
            self._feed(value.__getstate__(), feed)
        else:
            self._reduced(value, feed)

    def _reduced(self, value: Any, feed: Feed) -> None:
        """Add the parts from which pickle would rebuild an object to a digest."""
        kind = type(value)
        ctypes = sys.modules.get("ctypes")
        if ctypes is not None and isinstance(value, ctypes.CDLL):  # it contains an address
            text = f"the functions of the library {value._name!r} cannot be inspected"
            raise UnhashableError(text)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            if reduce is None and isinstance(value, logging.Logger) and self._collector.own(kind):
                reduce = _logger_apart
            made: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
            if isinstance(made, str) and attribute_of(value, "__wrapped__") is None:
                pickle.dumps(value)  # raises an error if the object does not have this name
        except Exception as error:  # any error raised by the object
            if self._whole or not is_plain_python(kind):
                text = f"an object of type {kind.__qualname__} cannot be inspected: {error}"
                raise UnhashableError(text) from error
            made = kind, (), (getattr(value, "__dict__", None), _slots(value))
        if kind is _CACHED:
            self._collector.memoized(value)
        if isinstance(made, str):
            feed(_framed(b"g", f"{self._collector.code(kind)} {made}"))
            self._feed(attribute_of(value, "__wrapped__"), feed)
            if self._collector.own(kind):
                self._items(b"l", (getattr(value, "__dict__", None), _slots(value)), feed)
            return
        function, arguments, state, items, pairs = (*made, None, None, None)[:5]
        left_out = attributes_left_out(value, state, self._collector.own)
        if type(state) is dict or state is None or left_out or is_generated(kind):
            stored = state if type(state) is dict else {}
            caches = self._collector.caches(value, stored | left_out)
            left_out = {name: each for name, each in left_out.items() if name not in caches}
        if type(state) is dict or state is None:
            if kind is functools.singledispatchmethod:
                caches = ("_method_cache",)  # Python 3.13 fills or removes it at any access
            if state and caches:  # pickle stores `None` for an object without attributes
                state = {name: each for name, each in state.items() if name not in caches} or None
        if _LIBRARY_CACHES.get(kind.__module__.partition(".")[0]):
            state = _without_caches_of_library(kind, state)
        if isinstance(value, BaseException) and type(state) is dict:
            state = without_ours(state) or None
        if isinstance(value, BaseException) and value.__cause__ is not None:
            state = state, value.__cause__  # pickle omits the cause
        elif _omits_attributes(value) and getattr(value, "__dict__", None):
            state = state, vars(value)
        elif isinstance(value, enum.Enum):  # pickle stores only the value, not other attributes
            more = getattr(value, "__dict__", {}).items()
            state = state, {name: each for name, each in more if not name[0] == name[-1] == "_"}
        elif left_out:
            state = state, left_out
        elif state is None and (wrapped := _wrapped_in(value)):
            state = wrapped
        self._items(b"r", (function, arguments, state), feed)
        self._items(b"l", items or (), feed)
        if isinstance(value, OrderedDict):
            self._items(b"O", pairs or (), feed)
        else:
            self._sorted(b"d", pairs or (), feed)


_LIBRARY_CACHES: Mapping[str, frozenset[str]] = {
    "xarray": frozenset({"_attrs", "_encoding"}),  # an empty dict is created at the first access
    "sklearn": frozenset({"_stop_words_id"}),  # an address
}
"""Attributes, by library, that change although the object does not, and that do not count if they
are empty, or an address."""


def _without_caches_of_library(kind: type, state: Any) -> Any:
    """Return the state of a library's object, without attributes that change when they are read."""
    if type(state) is tuple:  # the attributes, and the slots
        return tuple(_without_caches_of_library(kind, each) for each in state)
    if type(state) is not dict:
        return state
    names = _LIBRARY_CACHES[kind.__module__.partition(".")[0]]
    return {
        name: value
        for name, value in state.items()
        if name not in names or (value and not isinstance(value, int))
    }


def attribute_of(value: object, name: str) -> Any:
    """Return an attribute, or `None` if there is none; `__getattr__` may raise any error."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _compiled(value: object) -> tuple[object, ...] | None:
    """Return the function that Numba compiles, with its options; `None` for other objects.

    The pickle of the compiled function contains an id that differs from run to run.
    """
    kind = type(value)
    if kind.__module__.partition(".")[0] != "numba":
        return None
    function, options = attribute_of(value, "py_func"), attribute_of(value, "targetoptions")
    if not isinstance(function, types.FunctionType):
        return None
    declared: list[str] | None = None
    if attribute_of(value, "_can_compile") is False:  # the program declares the signatures
        declared = [str(each) for each in attribute_of(value, "nopython_signatures") or ()]
    return f"{kind.__module__}.{kind.__qualname__}", function, options, declared


def _wrapped_in(value: object) -> list[object]:
    """Return the functions that an object holds, of which pickle may store only the names.

    An example is an object of `toolz.curry`, or its variant in Cython, which has no `__dict__`.
    """
    attributes: object = attribute_of(value, "__dict__")
    held = [*attributes.values()] if type(attributes) is dict else []
    held.append(attribute_of(value, "func"))
    return [each for each in held if isinstance(each, types.FunctionType | partial)]


def is_large(value: Any) -> bool:
    """Return True for a container with many items, and for arrays and tables with much data."""
    if isinstance(value, dict | list | tuple | set | frozenset | str | bytes | bytearray):
        return len(value) > LARGE_VALUE
    size = attribute_of(value, "nbytes")
    return isinstance(size, int) and size > 100 * LARGE_VALUE


@functools.lru_cache(maxsize=1024)
def _digits(text: bytes) -> str:
    """Return the digest of encoded text. Cached because many tasks have the same short texts."""
    return hashlib.blake2b(text, digest_size=DIGEST_SIZE).hexdigest()


def _framed(tag: bytes, data: bytes | str) -> bytes:
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (tag, len(data), data)


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    type(...): lambda _: b"...",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value if value >= 0 else b"i-%x;" % -value,
    float: lambda value: b"e" + struct.pack("<d", value),
    complex: lambda value: b"j" + struct.pack("<dd", value.real, value.imag),
}


_WITHOUT_STEPS = _PLAIN.keys() | {str, bytes}

_PLACES = frozenset((
    "HOME", "HOSTNAME", "PATH", "PYTHONPATH", "PWD", "OLDPWD", "TMPDIR", "USER", "LOGNAME",
    "DISPLAY", "TERM", "SHLVL", "_", "CUDA_VISIBLE_DEVICES",
))  # fmt: skip

_PLACES_BEGIN = (
    "SLURM_", "PBS_", "LSB_", "SGE_", "FLUX_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "XDG_",
    "SSH_", "DBUS_",
)  # fmt: skip

_INDEXES = frozenset(("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "LSB_JOBINDEX", "SGE_TASK_ID"))
"""Environment variables by which the jobs of a job array choose their work."""


def counts(variable: str) -> bool:
    """Return True if the key of a task that uses an environment variable includes the variable.

    Variables that depend only on where a program runs are not part of keys.
    """
    if variable in _INDEXES:
        return True
    return variable not in _PLACES and not variable.startswith(_PLACES_BEGIN)


def _is_free(value: object) -> bool:
    """Return True if a value is a function written in C and not a method."""
    return isinstance(value, types.BuiltinFunctionType) and (
        value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    )


def _content(variable: ContextVar[Any]) -> list[Any]:
    """Return a list with a context variable's value, or an empty list if the variable is unset."""
    try:
        return [variable.get()]
    except LookupError:
        return []


def _logger_apart(logger: logging.Logger) -> tuple[Any, ...]:
    """Reduce a logger of a user-defined class to its class, name and attributes.

    Pickle itself stores only a logger's name.

    Returns:
        The class, the arguments of its constructor and the state, as `__reduce__` returns them.
    """
    state = {name: each for name, each in vars(logger).items() if name not in vars(logging.root)}
    return type(logger), (logger.name,), state


_PICKLING = frozenset((
    "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__",
))  # fmt: skip
"""Methods that say what pickle stores."""

OF_PANDAS: frozenset[str] = frozenset((
    "_attrs", "_cache", "_cacher", "_data", "_flags", "_id", "_index", "_is_copy", "_item_cache",
    "_mgr", "_name", "_references",
))  # fmt: skip
"""Attributes of the tables of pandas itself."""


_GENERATORS = frozenset(("attr._make", "dataclasses"))
"""Modules that add a `__getstate__` to classes with slots. It keeps only the fields."""


def is_generated(kind: type) -> bool:
    """Return True if the objects of a class are pickled by a generated `__getstate__`."""
    return getattr(getattr(kind, "__getstate__", None), "__module__", None) in _GENERATORS


def _pickles_itself(cls: type) -> bool:
    """Return True if a class defines, itself, how its objects are pickled."""
    methods = [vars(cls)[name] for name in _PICKLING.intersection(vars(cls))]
    return any(getattr(each, "__module__", None) not in _GENERATORS for each in methods)


def _slots(value: object) -> dict[str, object]:
    """Return the attributes that an object keeps in slots."""
    kind: Any = type(value)
    pairs = ((name, in_slot(value, name)) for name in slots_of(kind))
    return {name: each for name, each in pairs if each is not MISSING}


def attributes_left_out(
    value: object, state: object, own: Callable[[type], bool]
) -> dict[str, object]:
    """Return the attributes of an object of the program that a library's methods do not pickle.

    Examples are those of subclasses of `Counter`, `Decimal`, `datetime` and `Path`, and those that
    are no fields of a class with slots. If a method of the program pickles the object, return an
    empty dict.

    Args:
        value: The object.
        state: The state with which pickle would rebuild it.
        own: Function that returns True for the classes of the program.
    """
    kind = type(value)
    if not own(kind):
        return {}
    classes = [cls for cls in kind.__mro__ if own(cls)]
    attributes: dict[str, object] = dict(getattr(value, "__dict__", None) or ())
    for cls in classes:
        given = vars(cls).get("__slots__", ())
        for name in (given,) if isinstance(given, str) else given:
            found = in_slot(value, mangled(name, cls.__name__))
            if found is not MISSING and name not in ("__dict__", "__weakref__"):
                attributes[mangled(name, cls.__name__)] = found
    for part in state if type(state) is tuple else (state,):
        if type(part) is dict:
            attributes = {name: each for name, each in attributes.items() if name not in part}
        elif type(part) is list and is_generated(kind):  # the fields of a frozen dataclass
            fields = getattr(kind, "__dataclass_fields__", {})
            attributes = {name: each for name, each in attributes.items() if name not in fields}
    attributes.pop("_attrs_cached_hash", None)  # differs from run to run
    if not attributes or any(map(_pickles_itself, classes)):
        return {}
    if any(cls.__module__.startswith("pandas.") for cls in kind.__mro__):
        return {name: each for name, each in attributes.items() if name not in OF_PANDAS}
    return attributes


def _contains_steps(values: Collection[object]) -> bool:
    """Return True if values are, or contain in pairs, what can be called: steps of a pipeline.

    The order of a dict with such values is compared.
    """
    kinds = set(map(type, values))
    if kinds <= _WITHOUT_STEPS:
        return False
    pairs = (each for each in values if type(each) is tuple or type(each) is list)
    return any(map(callable, values)) or any(any(map(callable, each)) for each in pairs)


def is_plain_python(kind: type) -> bool:
    """Return True if instances of a class keep all their state in `__dict__` and in slots."""
    size = object.__basicsize__ + 8 * len(slots_of(kind))
    size += 8 * ((kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0))
    return kind.__basicsize__ <= size


def _is_machinery(value: object) -> bool:
    """Return True if an object's state does not affect results, even if the object is an argument.

    This holds for engines, backends, task functions, and the random number generators that
    module-level functions such as `random.random` use.
    """
    return (
        type(value).__module__.startswith(_MACHINERY)
        or isinstance(value, BaseExecutionBackend)
        or is_global_generator(value)
    )


def is_global_generator(value: object) -> bool:
    """Return True for the generators that functions such as `random.random` use."""
    numpy = sys.modules.get("numpy.random.mtrand")
    return value is _random or (numpy is not None and value is numpy.random_sample.__self__)


def _is_mute(value: object) -> bool:
    """Return True if an object's state does not affect results.

    This holds for loggers, locks, caches with weak keys, and files that are open only for writing.
    """
    if isinstance(value, logging.Logger | logging.Handler):
        return True
    if type(value) is WeakKeyDictionary:  # a cache, such as the one of `functools.singledispatch`
        return True
    if isinstance(value, io.IOBase):
        return not value.closed and value.writable() and not value.readable()
    module = type(value).__module__
    return (
        module in _LOCKS and not isinstance(value, _EVENTS | threading.Thread)
    ) or not _MESSAGE_MODULES.isdisjoint((module, module.partition(".")[0]))


def _parts_of_array(value: Any) -> tuple[Any, ...] | None:
    """Return the parts from which the digest of a NumPy or pandas object is computed.

    Return `None` if its digest is computed like those of other objects.
    """
    library = str(type(value).__module__).partition(".")[0]
    if library == "pandas":
        return _parts_of_table(value)
    return _parts_of_numpy(value) if library == "numpy" else None


def _shared_memory(value: Any) -> object:
    """Return the content of shared memory, which pickle represents by its name, or `None`.

    Raises:
        UnhashableError: The shared memory was closed, so its content cannot be read.
    """
    module = sys.modules.get("multiprocessing.shared_memory")
    if module is None:
        return None
    if isinstance(value, module.ShareableList):
        return list(value)
    if not isinstance(value, module.SharedMemory):
        return None
    if value.buf is None:
        raise UnhashableError("an object of type SharedMemory was closed")
    return value.buf


def _omits_attributes(value: object) -> bool:
    """Return True if a value's class, or a base class, leaves attributes out when it is pickled.

    These are the arrays of NumPy and the random number generators of Python.
    """
    numpy = sys.modules.get("numpy")
    is_array = numpy is not None and isinstance(value, numpy.ndarray)
    return is_array or isinstance(value, random.Random)


def _parts_of_numpy(value: Any) -> tuple[Any, ...] | None:
    numpy: Any = sys.modules["numpy"]
    if type(value) is not numpy.ndarray and not isinstance(value, numpy.generic):
        return None
    array = numpy.asarray(value)
    turned = array.flags.fnc  # in Fortran order, on which the result of `ravel("K")` depends
    metadata = dict(array.dtype.metadata or {}) or None
    about: Any = repr((array.dtype.str, array.dtype.names, array.shape, turned)).encode()
    if metadata is not None:
        about = about, metadata
    if array.dtype.names is not None:  # the bytes between the fields are undefined
        offsets = [array.dtype.fields[name][1] for name in array.dtype.names]
        return about, offsets, [array[name] for name in array.dtype.names]
    if array.dtype.hasobject or array.dtype.kind in "SU":  # texts may name files
        return about, array.ravel().tolist()
    if array.dtype.char in "gG":  # some bytes of long doubles are undefined
        return about, repr(array.astype(str).tolist()).encode()
    if not array.nbytes:
        return (about,)
    return about, numpy.ascontiguousarray(array).reshape(-1).view("u1").data


def _parts_of_table(value: Any) -> tuple[Any, ...] | None:
    pandas: Any = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        columns = [value.iloc[:, number].array for number in range(value.shape[1])]
        return value.columns, value.index, columns, value.attrs, repr(value.flags)
    if isinstance(value, pandas.Series):
        return value.name, value.index, value.array, value.attrs, repr(value.flags)
    if isinstance(value, pandas.MultiIndex):
        return list(value.names), list(value.levels), list(value.codes)
    if isinstance(value, pandas.RangeIndex):
        return value.name, value.start, value.stop, value.step
    if isinstance(value, pandas.Index):
        return value.name, value.array, getattr(value, "freqstr", None)
    if isinstance(value, pandas.Categorical):
        return value.categories, value.codes, value.ordered
    if not isinstance(value, pandas.api.extensions.ExtensionArray):
        return None
    about = str(value.dtype).encode()
    if isinstance(value, pandas.arrays.NumpyExtensionArray):
        return about, value.to_numpy()
    if value.dtype.kind in "OSU":  # texts may name files
        return about, value.to_numpy(object)
    if value.dtype.kind == "f" and hasattr(value.dtype, "numpy_dtype"):  # zeros have signs
        return about, value.to_numpy(value.dtype.numpy_dtype, na_value=0), value.isna()
    return about, pandas.util.hash_array(value).data
