"""Comparison of a value that can change in place with its former state.

Digests are computed in Python, which takes microseconds for each object in a value. Most values
have not changed when they are compared, so their pickles, which C code creates, are compared first.
If the pickles are equal, nothing has changed. If they differ, which may also be due to another
order or to objects that were replaced by equal ones, the digests are compared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import io
import operator
import pickle
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from rhapsody.builtin.journal.values import DIGEST_SIZE, LARGE_VALUE, Values

MIN_SIZE = 100
"""Size, as in `Values.size`, from which values are compared by their pickles."""

MAX_SIZE = 20 * LARGE_VALUE
"""Size from which a value is not compared, even if it can be pickled."""

_LIBRARIES = frozenset(
    ("collections", "datetime", "decimal", "fractions", "ipaddress", "numpy", "pathlib", "uuid")
)
"""Modules whose objects have pickles that contain everything in their digests."""


class Unchanged:
    """Value that can change in place, with its digest from an earlier time.

    Args:
        value: The value.
        digest: The digest of the value, with `whole=False`; see `Values.digest`.
        size: The size of the value; see `Values.size`.
    """

    __slots__ = ("_digest", "_pickled", "_value")

    def __init__(self, value: object, digest: bytes, size: int) -> None:
        self._value = value
        self._digest = digest
        self._pickled = _pickled(value) if MIN_SIZE <= size < MAX_SIZE else None

    @property
    def is_quick(self) -> bool:
        """True if the value is compared by its pickle first."""
        return self._pickled is not None

    def is_true(self, values: Values) -> bool:
        """Return True if the value has not changed.

        Raises:
            UnhashableError: The value no longer has a digest.
        """
        if self._pickled is None:
            return values.digest(self._value, whole=False) == self._digest
        pickled = _pickled(self._value)
        if pickled is None or not pickled.is_same(self._pickled):
            if values.digest(self._value, whole=False) != self._digest:
                return False
            self._pickled = pickled
        return True


def _pickled(value: object) -> _ComparedPickle | None:
    """Return what identifies a value's pickle, or `None` if the pickle may be incomplete."""
    stream = _Hash()
    pickler = _StatePickler(stream, 5)
    try:
        pickler.dump(value)
    except Exception:  # an object that is refused or cannot be pickled
        return None
    return _ComparedPickle(stream.made.digest(), tuple(pickler.named))


class _ComparedPickle:
    """Digest of a value's pickle, with the classes and functions that the pickle only names.

    A cell of a notebook that is run again replaces them with others of the same names.
    """

    __slots__ = ("_digest", "_named")

    def __init__(self, digest: bytes, named: tuple[object, ...]) -> None:
        self._digest = digest
        self._named = named

    def is_same(self, other: _ComparedPickle) -> bool:
        same = self._digest == other._digest and len(self._named) == len(other._named)
        return same and all(map(operator.is_, self._named, other._named))


class _Hash(io.RawIOBase):
    """Writable file that keeps only the digest of its content."""

    def __init__(self) -> None:
        self.made = hashlib.blake2b(digest_size=DIGEST_SIZE)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.made.update(data)
        return memoryview(data).nbytes


class _StatePickler(pickle.Pickler):
    """Pickler that refuses objects whose pickles may lack something that their digests contain.

    Attributes:
        named: The classes and functions that the pickle names.
    """

    def __init__(self, stream: _Hash, protocol: int) -> None:
        super().__init__(stream, protocol)
        self.named: list[object] = []

    def reducer_override(self, value: Any) -> Any:
        kind: Any = type(value)
        if isinstance(value, type | FunctionType):
            self.named.append(value)
        if kind is BuiltinFunctionType and isinstance(value.__self__, ModuleType):
            return NotImplemented  # it is pickled by its name
        if not _is_complete(kind) or (isinstance(value, enum.Enum) and _has_state(value)):
            raise TypeError(f"{kind.__qualname__} is not compared by its pickle")
        return NotImplemented


@functools.lru_cache(1024)
def _is_complete(kind: type) -> bool:
    if kind.__module__.partition(".")[0] in _LIBRARIES or issubclass(kind, enum.Enum):
        return True
    get_state: Any = getattr(kind, "__getstate__", None)
    plain = get_state is getattr(object, "__getstate__", None)
    generated = getattr(get_state, "__module__", "") == dataclasses.__name__  # keeps the fields
    plain = plain or (generated and not kind.__dictoffset__)
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return plain and usual and not issubclass(kind, BaseException)


def _has_state(member: enum.Enum) -> bool:
    """Return True if a member of an enum has attributes, which its pickle does not contain."""
    return any(not name.startswith("_") for name in getattr(member, "__dict__", ()))
