"""Comparison of a value that can change in place with its former state.

Digests are computed in Python, which takes microseconds for each object in a value. Most values
have not changed when they are compared, so their pickles are compared first, which C code makes.
Equal pickles mean that nothing has changed; after different ones, which may also come from another
order or from equal objects that were replaced, digests decide.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import io
import pickle
from types import BuiltinFunctionType, ModuleType
from typing import Any

from rhapsody.builtin.journal.values import DIGEST_SIZE, LARGE_VALUE, Values

MIN_SIZE = 100
"""Size, as in `Values.size`, from which a value is pickled."""

MAX_SIZE = 20 * LARGE_VALUE
"""Size from which a value is not compared, although it can be pickled."""

_LIBRARIES = frozenset(
    ("collections", "datetime", "decimal", "fractions", "ipaddress", "numpy", "pathlib", "uuid")
)
"""Modules whose classes pickle all that their digests contain."""


class Unchanged:
    """Value with its digest.

    Args:
        value: The value.
        digest: Its digest, with `whole=False`; see `Values.digest`.
        size: Its size; see `Values.size`.
    """

    __slots__ = ("_digest", "_pickled", "_value")

    def __init__(self, value: object, digest: bytes, size: int) -> None:
        self._value = value
        self._digest = digest
        self._pickled = _pickled(value) if MIN_SIZE <= size < MAX_SIZE else None

    @property
    def is_quick(self) -> bool:
        """True if pickles of the value can be compared."""
        return self._pickled is not None

    def is_true(self, values: Values) -> bool:
        """Return True if the value has not changed.

        Raises:
            UnhashableError: The value has no digest any more.
        """
        if self._pickled is None:
            return values.digest(self._value, whole=False) == self._digest
        pickled = _pickled(self._value)
        if pickled != self._pickled or pickled is None:
            if values.digest(self._value, whole=False) != self._digest:
                return False
            self._pickled = pickled
        return True


def _pickled(value: object) -> bytes | None:
    """Return the digest of a value's pickle, or `None` if it may not contain all of the value."""
    stream = _Hash()
    try:
        _StatePickler(stream, 5).dump(value)
    except Exception:  # an object of a class that is not known, or of which pickling fails
        return None
    return stream.made.digest()


class _Hash(io.RawIOBase):
    """File that keeps only the digest of what is written to it."""

    def __init__(self) -> None:
        self.made = hashlib.blake2b(digest_size=DIGEST_SIZE)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.made.update(data)
        return memoryview(data).nbytes


class _StatePickler(pickle.Pickler):
    """Pickler that refuses objects whose pickle may not contain all that their digest contains."""

    def reducer_override(self, value: Any) -> Any:
        kind: Any = type(value)
        if kind is BuiltinFunctionType and isinstance(value.__self__, ModuleType):
            return NotImplemented  # by its name
        if not _is_complete(kind) or (isinstance(value, enum.Enum) and _has_state(value)):
            raise TypeError(f"{kind.__qualname__} is not compared by its pickle")
        return NotImplemented


@functools.lru_cache(1024)
def _is_complete(kind: type) -> bool:
    if kind.__module__.partition(".")[0] in _LIBRARIES or issubclass(kind, enum.Enum):
        return True
    get_state: Any = getattr(kind, "__getstate__", None)
    plain = get_state is getattr(object, "__getstate__", None)
    plain = plain or getattr(get_state, "__module__", "") == dataclasses.__name__  # with slots
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return plain and usual and not issubclass(kind, BaseException)


def _has_state(member: enum.Enum) -> bool:
    """Return True if a member of an enum has attributes, which its pickle does not contain."""
    return any(not name.startswith("_") for name in getattr(member, "__dict__", ()))
