"""Values of all kinds, alike and not, as arguments of tasks."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import logging
import math
import operator
import random
import re
import sys
import threading
import types
import weakref
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tests._support.journal_keys import work


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Flag(enum.Flag):
    A = 1
    B = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: int
    y: Any = None


class Bytes(bytes):
    pass


class Text(str):
    pass


class Words(set[str]):
    __slots__ = ("kept",)
    kept: int


class Counted:
    """An object with a `__getstate__` of its own."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Kept:
    def __init__(self, **more: Any) -> None:
        self.__dict__.update(more)


class ByFunction:
    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        return ByFunction, (self.n,), None


class Hostile:
    """An object that raises in every operation except pickling."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("no")

    def __hash__(self) -> int:
        raise ValueError("no")

    def __bool__(self) -> bool:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")

    def __len__(self) -> int:
        raise ValueError("no")


class Cached:
    def __init__(self, n: int = 1) -> None:
        self.n = n

    @functools.cached_property
    def value(self) -> Any:
        return object.__repr__(self)


def noted(n: int) -> Any:
    made = functools.partial(work, 1)
    vars(made)["n"] = n
    return made


class Unit(np.ndarray[Any, Any]):
    unit: str


def measured(unit: str) -> Unit:
    made = np.ones(2).view(Unit)
    made.unit = unit
    return made


def caused(n: int) -> Exception:
    made = ValueError("a")
    made.__cause__ = KeyError(n)
    return made


class NoAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


class OddMeta(type):
    def __getattr__(cls, name: str) -> Any:
        raise ValueError(name)


class Odd(metaclass=OddMeta):
    @property
    def shown(self) -> int:
        raise ValueError("no")


class OwnAddress:
    def __init__(self) -> None:
        self.key = id(self)


class ByAddress:
    def __reduce__(self) -> Any:
        return ByAddress, (id(self),)


class OwnName:
    def __init__(self) -> None:
        self.name = object.__repr__(self)


def cyclic() -> list[Any]:
    found: list[Any] = [1]
    found.append({"again": found})
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


def ordered(*keys: str) -> Any:
    return collections.OrderedDict.fromkeys(keys)


def masked(hidden: float) -> Any:
    return np.ma.masked_array([1.0, hidden], mask=[False, True])


def padded() -> Any:
    kind = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    made = np.frombuffer(random.randbytes(3 * kind.itemsize), kind).copy()
    made["a"], made["b"] = [1, 2, 3], [4, 5, 6]
    return made


def objects() -> Any:
    made = np.empty(2, object)
    made[:] = [[1, {2}], "a"]
    return made


# NumPy 1 has no texts of variable length.
TEXTS = np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else np.dtype(str)


class Weighted(collections.Counter[str]):
    unit = ""


class Money(decimal.Decimal):
    unit = ""


class Amount(decimal.Decimal):
    __slots__ = ("unit",)
    unit: str


class Moment(datetime.datetime):
    unit = ""


def weighted(unit: str) -> Weighted:
    made = Weighted("aab")
    made.unit = unit
    return made


class Place(type(Path())):  # type: ignore[misc]
    unit: str


def place(unit: str) -> Place:
    made = Place("data/a.txt")
    made.unit = unit
    return made


def amount(unit: str) -> Amount:
    made = Amount("3.5")
    made.unit = unit
    return made


def money(unit: str) -> Money:
    made = Money("3.5")
    made.unit = unit
    return made


def moment(unit: str) -> Moment:
    made = Moment(2020, 1, 1)
    made.unit = unit
    return made


EQUAL: dict[str, tuple[Any, Any]] = {
    "dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "set": ({"a", "b", 3}, {3, "b", "a"}),
    "frozenset": (frozenset({"a", "b"}), frozenset({"b", "a"})),
    "set of one's own": (Words("abc"), Words("cba")),
    "keys": ({"a": 1, "b": 2}.keys(), {"b": 2, "a": 1}.keys()),
    "counter": (collections.Counter("abca"), collections.Counter("caab")),
    "defaultdict": (collections.defaultdict(list, a=[1]), collections.defaultdict(list, a=[1])),
    "dataclass": (Point(1, {2}), Point(1, {2})),
    "dataclass with slots": (Slotted(1, [2]), Slotted(1, [2])),
    "cycle": (cyclic(), cyclic()),
    "generator of numbers": (np.random.default_rng(3), np.random.default_rng(3)),
    "random": (random.Random(3), random.Random(3)),
    "nan": (math.nan, float("nan")),
    "part of an array": (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
    "padded array": (padded(), padded()),
    "array of objects": (objects(), objects()),
    "long doubles": (np.array([1, 3], np.longdouble) / 3, np.array([1, 3], np.longdouble) / 3),
    "masked array": (masked(3.0), masked(3.0)),
    "no array": (np.empty((0, 3)), np.empty((0, 3))),
    "array of texts": (np.array(["a", ""]), np.array(["a", ""])),
    "array of variable texts": (
        np.array(["a", "b" * 99], TEXTS),
        np.array(["a", "b" * 99], TEXTS),
    ),
    "object": (object(), object()),
    "logger": (logging.getLogger("a"), logging.getLogger("a")),
    "pattern": (re.compile("a+"), re.compile("a+")),
    "bytes in memory": (memoryview(b"abc"), memoryview(bytearray(b"abc"))),
    "module": (math, math),
    "partial": (functools.partial(work, 1, a=2), functools.partial(work, 1, a=2)),
    "method": (Point(1).__eq__, Point(1).__eq__),
    "C": (operator.itemgetter(1), operator.itemgetter(1)),
    "ufunc": (np.add, np.add),
    "NumPy's function": (np.sum, np.sum),
    "stream": (io.BytesIO(b"ab"), io.BytesIO(b"ab")),
    "surrogate": ("\ud800", "\ud800"),
    "hostile": (Hostile(), Hostile()),
    "type": (list[int], list[int]),
    "error": (ValueError("a", 1), ValueError("a", 1)),
    "mapping": (types.MappingProxyType({"a": 1, "b": 2}), types.MappingProxyType({"b": 2, "a": 1})),
}

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "Fortran's order": (np.ones((2, 3)), np.ones((2, 3), order="F")),
    "metadata of a dtype": (
        np.ones(2, np.dtype("f8", metadata={"unit": "m"})),
        np.ones(2, np.dtype("f8", metadata={"unit": "s"})),
    ),
    "attribute of a partial": (noted(1), noted(2)),
    "attribute of an array of one's own": (measured("m"), measured("s")),
    "attribute of a subclass of Counter": (weighted("m"), weighted("s")),
    "attribute of a subclass of Decimal": (money("EUR"), money("USD")),
    "attribute of a subclass of Path": (place("m"), place("s")),
    "slot of a subclass of Decimal": (amount("EUR"), amount("USD")),
    "attribute of a subclass of datetime": (moment("UTC"), moment("TAI")),
    "cause of an error": (caused(1), caused(2)),
    "cached property that was set": (Cached(), Cached(2)),
    "int and float": (1, 1.0),
    "int and bool": (1, True),
    "int and text": (1, "1"),
    "text and bytes": ("a", b"a"),
    "negative zero": (0.0, -0.0),
    "huge": (10**6000, 10**6000 + 1),
    "sign": (1, -1),
    "list and tuple": ([1, 2], (1, 2)),
    "set and frozenset": ({1}, frozenset({1})),
    "how lists are nested": ([[1], 2], [[1, 2]]),
    "where lists end": ([[], []], [[[]]]),
    "where texts end": (["ab", "c"], ["a", "bc"]),
    "an end and dots": ((1, ...), (1,)),
    "dict and items": ({"a": 1}, [("a", 1)]),
    "depth of a cycle": (cyclic(), [1, {"again": [1, {"again": [1]}]}]),
    "order of an OrderedDict": (ordered("a", "b"), ordered("b", "a")),
    "text and one's own": ("a", Text("a")),
    "bytes and one's own": (b"a", Bytes(b"a")),
    "enum": (Color.RED, Color.BLUE),
    "flag": (Flag.A, Flag.A | Flag.B),
    "int enum": (Level.LOW, 1),
    "dataclass": (Point(1, 2), Point(1, 3)),
    "dataclasses": (Point(1, 2), Slotted(1, 2)),
    "slots": (Slotted(1, 2), Slotted(1, 3)),
    "state of one's own": (Counted(1), Counted(2)),
    "state that is false": (Counted(0), Counted("")),
    "by a function": (ByFunction(1), ByFunction(2)),
    "path and text": (Path("a"), "a"),
    "kinds of paths": (Path("a"), PurePosixPath("a")),
    "array and list": (np.array([1, 2]), [1, 2]),
    "array and scalar": (np.array(1.0), np.float64(1.0)),
    "scalar and float": (np.float64(1.0), 1.0),
    "kinds of scalars": (np.float32(1.0), np.float64(1.0)),
    "kinds of arrays": (np.zeros(2, "i8"), np.zeros(2, "f8")),
    "shapes": (np.zeros((2, 3)), np.zeros((3, 2))),
    "dates": (np.array(["2020"], "M8[s]"), np.array(["2020"], "M8[ms]")),
    "no date": (np.array(["NaT"], "M8[s]"), np.array(["2020"], "M8[s]")),
    "fields": (np.zeros(1, [("a", "f8")]), np.zeros(1, [("b", "f8")])),
    "offset of a field": (
        np.zeros(1, {"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": 4}),
        np.zeros(1, {"names": ["a"], "formats": ["u1"], "offsets": [1], "itemsize": 4}),
    ),
    "value in a field": (np.ones(1, [("a", "f8")]), np.zeros(1, [("a", "f8")])),
    "array of objects": (np.array([1, "a"], object), np.array(["1", "a"], object)),
    "mask": (masked(3.0), np.ma.masked_array([1.0, 3.0], mask=[True, False])),
    "matrix": (np.array([[1]]), np.array([[1]]).view(np.matrix)),
    "dtype": (np.dtype("f4"), np.dtype("f8")),
    "generators of numbers": (np.random.default_rng(3), np.random.default_rng(4)),
    "ufunc": (np.add, np.subtract),
    "NumPy's function": (np.sum, np.prod),
    "partial": (functools.partial(work, 1), functools.partial(work, 2)),
    "lambda": (lambda: 1, lambda: 2),
    "order of lambdas": ([(f := lambda: 1), (g := lambda: 2)], [g, f]),
    "method": ([1].append, [2].append),
    "C": (operator.itemgetter(1), operator.itemgetter(2)),
    "class": (Point, Slotted),
    "built-in": (len, sum),
    "module": (math, re),
    "date": (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)),
    "decimal": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "range": (range(3), range(4)),
    "slice": (slice(1), slice(2)),
    "machine's array": (array.array("i", [1]), array.array("l", [1])),
    "memory": (memoryview(b"ab"), memoryview(b"ac")),
    "type": (list[int], list[str]),
    "error": (ValueError("a"), TypeError("a")),
    "mapping": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "deque": (collections.deque([1], 2), collections.deque([1], 3)),
}

WITHOUT: dict[str, Any] = {
    "generator": (n for n in range(3)),
    "lock": threading.Lock(),
    "thread": threading.current_thread(),
    "weak": weakref.ref(Color),
    "weak set": weakref.WeakSet([Color]),
    "object with a lock": Kept(lock=threading.Lock()),
    "frame": sys._getframe(),
    "file": sys.__stdout__,
    "own address": OwnAddress(),
    "by address": ByAddress(),
    "own name": OwnName(),
    "text with an address": repr(object()),
    "deep": deep(),
    "no attributes": NoAttributes(),
    "ufunc of one's own": np.frompyfunc(lambda x: x, 1, 1),
    "array of objects": np.array([threading.Lock()], object),
}
