"""Digests of values that are the same in every run and on every machine.

Never of pickles: a comment above a function of `__main__` changes those, and the order of a set
changes with the seed of hashes.
"""

from __future__ import annotations

import copyreg
import hashlib
import struct
import sys
import types
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

from rhapsody.data import File, InputFiles

SIZE = 16
"""Bytes of a digest: two different values of 2^64 have the same one with even odds."""

Feed = Callable[[Any], object]
"""Takes bytes, or a buffer of them."""


class NoDigestError(TypeError):
    """A value has no digest: what it is cannot be told from what can be read of it."""


class Surroundings(Protocol):
    """What is known of values beside themselves."""

    def code(self, thing: Any) -> str:
        """Notes a function, method or class; returns what it is called."""

    def path(self, text: str) -> tuple[str, bytes] | None:
        """The portable form of a path and its file's digest; `None` where there is no file."""


class Values:
    """Makes digests of values.

    Args:
        surroundings: Where functions, classes and paths are looked for.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        self._open: dict[int, int] = {}  # how deep each container is that is being read

    def digest(self, value: object) -> bytes:
        """Returns a value's digest.

        Raises:
            NoDigestError: It has none.
        """
        made = hashlib.blake2b(digest_size=SIZE)
        try:
            self._feed(value, made.update)
        except RecursionError:
            raise NoDigestError("it is nested too deep") from None
        except RuntimeError as error:  # somebody changes it meanwhile
            raise NoDigestError(str(error)) from None
        finally:
            self._open.clear()
        return made.digest()

    def _inner(self, value: object) -> bytes:
        made = hashlib.blake2b(digest_size=SIZE)
        self._feed(value, made.update)
        return made.digest()

    def _feed(self, value: Any, feed: Feed) -> None:
        known = _PLAIN.get(type(value))
        if known is not None:
            feed(known(value))
        elif type(value) is str:
            self._text(value, feed)
        else:
            self._entered(value, feed)

    def _text(self, value: str, feed: Feed) -> None:
        found = self._around.path(value)
        if found is None:
            feed(_framed(b"s", value.encode("utf-8", "surrogatepass")))
        else:
            feed(_framed(b"p", found[0].encode("utf-8", "surrogatepass")) + found[1])

    def _entered(self, value: Any, feed: Feed) -> None:
        """What may hold itself."""
        if id(value) in self._open:
            feed(b"^%d;" % (len(self._open) - self._open[id(value)]))
            return
        self._open[id(value)] = len(self._open)
        try:
            self._composed(value, feed)
        finally:
            self._open.pop(id(value), None)

    def _composed(self, value: Any, feed: Feed) -> None:
        kind = type(value)
        if kind is tuple or kind is list:
            self._items(b"t" if kind is tuple else b"l", value, feed)
        elif kind is dict:
            self._sorted(b"d", value.items(), feed)
        elif kind is set or kind is frozenset:
            self._sorted(b"S", value, feed)
        elif isinstance(value, set | frozenset):
            self._feed(kind, feed)
            self._sorted(b"S", value, feed)
            self._feed(getattr(value, "__dict__", None), feed)
        elif isinstance(value, types.FunctionType | types.ModuleType | type) or _is_free(value):
            feed(_framed(b"c", self._around.code(value).encode()))
        elif isinstance(value, types.MethodType):
            self._items(b"m", (value.__func__, value.__self__), feed)
        elif isinstance(value, partial):
            self._items(b"P", (value.func, value.args, value.keywords), feed)
        elif isinstance(value, InputFiles):
            names = [path.name for path in value]
            self._items(b"F", (str(value.file), value.directory, names), feed)
        elif isinstance(value, File):
            feed(_framed(b"f", f"{kind.__name__} {value.filename}".encode()))
        elif isinstance(value, PurePath):
            self._text(str(value), feed)
        elif kind.__module__.partition(".")[0] in ("numpy", "pandas"):
            self._array(value, feed)
        else:
            self._reduced(value, feed)

    def _items(self, tag: bytes, items: Iterable[Any], feed: Feed) -> None:
        feed(tag)
        for item in items:
            feed(b",")
            self._feed(item, feed)
        feed(b".")

    def _sorted(self, tag: bytes, items: Iterable[Any], feed: Feed) -> None:
        feed(tag)
        for digest in sorted([self._inner(item) for item in items]):
            feed(digest)
        feed(b".")

    def _array(self, value: Any, feed: Feed) -> None:
        """Arrays and scalars of NumPy, tables and columns of pandas."""
        numpy, pandas = sys.modules["numpy"], sys.modules.get("pandas")
        if pandas is not None and isinstance(
            value, pandas.DataFrame | pandas.Series | pandas.Index
        ):
            try:
                rows = pandas.util.hash_pandas_object(value).to_numpy()
            except TypeError as error:  # of lists in a column, say
                raise NoDigestError(f"a {type(value).__qualname__}: {error}") from error
            if isinstance(value, pandas.DataFrame):
                about = list(value.columns), [str(each) for each in value.dtypes]
            else:
                about = [value.name], [str(value.dtype)]
            self._items(b"T", (*about, rows), feed)
        elif type(value) is numpy.ndarray or isinstance(value, numpy.generic):
            array = numpy.asarray(value)
            self._items(b"a", (str(array.dtype.descr), array.shape), feed)
            if array.dtype.hasobject:
                self._items(b"o", array.ravel().tolist(), feed)
            else:
                feed(numpy.ascontiguousarray(array).reshape(-1).view("u1").data)
        else:
            self._reduced(value, feed)

    def _reduced(self, value: Any, feed: Feed) -> None:
        """Anything else by what it would be made of again."""
        kind = type(value)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            made: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:  # whatever the object raises
            raise NoDigestError(f"a {kind.__qualname__} cannot be taken apart: {error}") from error
        if isinstance(made, str):
            feed(_framed(b"g", f"{self._around.code(kind)} {made}".encode()))
            if hasattr(value, "__wrapped__"):  # of `functools.lru_cache`, say
                self._feed(value.__wrapped__, feed)
            return
        function, arguments, state, items, pairs = (*made, None, None, None)[:5]
        self._items(b"r", (function, arguments, state), feed)
        self._items(b"l", items or (), feed)
        self._sorted(b"d", pairs or (), feed)


def _framed(tag: bytes, data: bytes) -> bytes:
    return b"%b%d:%b" % (tag, len(data), data)


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    type(...): lambda _: b"...",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value if value >= 0 else b"i-%x;" % -value,
    float: lambda value: b"e" + struct.pack("<d", value),
    complex: lambda value: b"j" + struct.pack("<dd", value.real, value.imag),
    bytes: lambda value: _framed(b"b", value),
    bytearray: lambda value: _framed(b"B", bytes(value)),
}


def _is_free(value: object) -> bool:
    """Whether it is a function in C, and no method of an object."""
    return isinstance(value, types.BuiltinFunctionType) and (
        value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    )
