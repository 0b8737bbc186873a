"""Pickles of results that contain objects with names."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import datetime
import enum
import io
import ipaddress
import pickle
import random
import sys
import types
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest

from rhapsody.builtin.journal import pickling
from rhapsody.builtin.journal.values import UnhashableError


class Empty:
    value: Any


class Slotted:
    __slots__ = ("value",)


class Measured:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Sample(Measured):
    number: int


def own(kind: type) -> bool:
    return kind.__module__ == __name__


EMPTY, SLOTTED, WITH_STATE = Empty(), Slotted(), Empty()


def test_objects_without_attributes_come_back_as_themselves() -> None:
    WITH_STATE.value = 1
    copied = [SLOTTED, WITH_STATE, Empty()]
    content = pickle.loads(pickling.packed(([dataclasses.MISSING, EMPTY, *copied],), (), own))
    (missing, empty, *others), *_ = content
    assert missing is dataclasses.MISSING
    assert empty is EMPTY
    assert not set(others).intersection(copied)
    assert others[1].value == 1


def test_constants_of_python_come_back_as_themselves() -> None:
    constants = [..., NotImplemented, None]
    content, *_ = pickle.loads(pickling.packed((constants,), (), own))
    assert [*map(id, content)] == [*map(id, constants)]


def test_a_variable_that_has_another_value_when_the_pickle_is_loaded_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pickling.packed(([EMPTY, SLOTTED],), (), own)
    monkeypatch.setattr(sys.modules[__name__], "EMPTY", None)
    monkeypatch.setattr(sys.modules[__name__], "SLOTTED", None)
    (found, slotted), *_ = pickle.loads(packed)
    assert type(found) is Empty
    assert type(slotted) is Slotted


def test_objects_that_a_pickle_would_replace_by_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("text")
    view = memoryview(b"bytes")
    pairs = {"a": 1}
    views = pairs.keys(), [pairs.values()], pairs.items()
    with path.open() as file:
        for value in (
            *views,
            view,
            [view],
            (len, view),
            (lambda: None, view),
            file,
            [lambda: None, file],
        ):
            with pytest.raises(UnhashableError):
                pickling.packed((value,), (), own)


def test_functions_and_standard_streams_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    content = pickle.loads(pickling.packed(([lambda: 3, sys.stderr],), (), own))
    (function, stream), *_ = content
    assert function() == 3
    assert stream is sys.stderr


class Units(numpy.ndarray):
    """Array with an attribute, as NumPy's manual describes them."""

    units: str = ""

    def __array_finalize__(self, other: Any) -> None:
        self.units = getattr(other, "units", "C")


class Kept(Units):
    def __reduce__(self) -> Any:
        return rebuilt, (self.tolist(), self.units)


def rebuilt(values: list[float], units: str) -> Kept:
    array = numpy.array(values).view(Kept)
    array.units = units
    return array


class Day(datetime.datetime):
    """Time with attributes."""


class Drawer(random.Random):
    """Generator with attributes."""


class Side(enum.Enum):
    LEFT = 1


class Histogram(collections.Counter[str]):
    """Counter with attributes."""


class Place(ipaddress.IPv4Address):
    """Address with a slot."""

    __slots__ = ("units",)


def with_attribute(value: Any) -> Any:
    value.units = "K"
    return value


def test_arrays_that_share_memory_are_refused() -> None:
    array = numpy.arange(6.0)
    for value in (
        [array, array[1:]],
        {"a": array.reshape(2, 3), "b": array},
        [array[:4], array[2:]],
    ):
        with pytest.raises(UnhashableError, match="share memory"):
            pickling.packed((value,), (), own)
    read_only = numpy.broadcast_to(array, (2, 6))
    for value in ([array[:3], array[3:]], [array, array], [array[::2], array[1::2]], [read_only]):
        pickling.packed((value,), (), own)


def test_rows_masks_and_buffers_share_memory_with_their_arrays() -> None:
    rows = numpy.zeros(3, [("x", "f8")])
    buffer = array.array("d", [1.0, 2.0])
    many = numpy.zeros((300, 2))
    masked: Any = numpy.ma.masked_less(numpy.arange(3.0), 1)
    for value in (
        [rows, rows[0]],
        {"best": rows[1], "all": rows},
        [rows[0], rows[0]],
        [rows.view(numpy.recarray), rows.view(numpy.recarray)[1]],
        [buffer, numpy.asarray(buffer)],
        [numpy.frombuffer(buffer), buffer],
        [masked, masked.mask],
        [*many, many],
        [many, numpy.lib.stride_tricks.sliding_window_view(many, 2, 0)],
    ):
        with pytest.raises(UnhashableError, match="share memory"):
            pickling.packed((value,), (), own)
    for value in ([rows[0], rows[1]], [rows], [masked, masked], [buffer, buffer], rows[0], [*many]):
        pickling.packed((value,), (), own)


class Attributes(dict[str, int]):
    def __init__(self) -> None:
        super().__init__(a=1)
        self.__dict__ = self


def test_functions_that_share_a_variable_which_one_assigns_are_refused() -> None:
    count = 0
    factor = 2

    def add() -> None:
        nonlocal count
        count += factor

    def counted() -> tuple[int, int]:
        return count, factor

    with pytest.raises(UnhashableError, match="share the variable 'count'"):
        pickling.packed(([add, counted],), (), own)
    for value in ([add], [counted, lambda: factor]):
        pickling.packed((value,), (), own)


def test_arrays_in_the_memory_of_other_objects_are_refused() -> None:
    raw, stream = bytearray(16), io.BytesIO(bytes(16))
    for value in ([raw, numpy.frombuffer(raw)], [numpy.frombuffer(stream.getbuffer()), stream]):
        with pytest.raises(UnhashableError, match="in the memory of a bytearray"):
            pickling.packed((value,), (), own)
    del value, raw
    pickling.packed(([numpy.frombuffer(bytearray(16))],), (), own)
    pickling.packed(([numpy.frombuffer(bytes(16))],), (), own)


def test_tensors_that_share_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        def __init__(self, address: int) -> None:
            self.address = address

        def untyped_storage(self) -> Tensor:
            return self

        def data_ptr(self) -> int:
            return self.address

    torch: Any = types.ModuleType("torch")
    torch.Tensor = Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(UnhashableError, match="tensors that share memory"):
        pickling.packed(([Tensor(8), Tensor(8)],), (), own)
    same = Tensor(8)
    pickling.packed(([same, same, Tensor(16), Tensor(0), Tensor(0)],), (), own)


def test_a_network_that_is_too_deep_is_refused_for_this_reason() -> None:
    chain: Any = None
    for _ in range(2000):
        chain = Linked(chain)
    if sys.version_info >= (3, 12):  # it allows more
        assert isinstance(pickle.loads(pickling.packed(([chain],), (), own))[0][0], Linked)
        return
    with pytest.raises(pickle.PicklingError, match="recursion"):
        pickling.packed(([chain],), (), own)


class Linked:
    def __init__(self, other: Any) -> None:
        self.other = other


def test_correlated_numbers_are_refused() -> None:
    number = type("Variable", (), {"__module__": "uncertainties.core"})()
    with pytest.raises(UnhashableError, match="number of uncertainties"):
        pickling.packed(([number],), (), own)


class Shared:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.settings = arguments, vars(arguments)


class Borg:
    state: ClassVar[dict[str, int]] = {"a": 1}

    def __init__(self) -> None:
        self.__dict__ = self.state


def test_objects_that_lose_a_connection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnhashableError, match="whose attributes are its items"):
        pickling.packed(([Attributes()],), (), own)
    written = numpy.memmap(tmp_path / "a.bin", "f8", "w+", shape=3)
    for mapped in (written, numpy.asarray(written), numpy.ma.array(written, copy=False)):
        with pytest.raises(UnhashableError, match="writable memory map"):
            pickling.packed(([mapped],), (), own)
    arguments = argparse.Namespace(rate=1)
    other = Shared(arguments)
    value: Any
    for value in ([arguments, vars(arguments)], [vars(arguments), arguments], other, Borg()):
        with pytest.raises(UnhashableError, match="also held as a dict"):
            pickling.packed((value,), (), own)
    local = array.array("d", [1.0])
    for value in (
        [lambda: 0, Attributes()],
        [lambda: 0, local, numpy.asarray(local)],
        [lambda: 0, other],
    ):
        with pytest.raises(UnhashableError):
            pickling.packed((value,), (), own)
    del other, value
    pickling.packed(([arguments, dict(vars(arguments)), Side.LEFT],), (), own)
    with pytest.raises(UnhashableError, match=r"weakref\.proxy"):
        pickling.packed(([weakref.proxy(arguments)],), (), own)
    pickling.packed(([numpy.memmap(tmp_path / "a.bin", "f8", "r")],), (), own)


def test_the_global_random_number_generator_is_refused() -> None:
    for value in (random.random, numpy.random.normal, [numpy.random.mtrand._rand]):
        with pytest.raises(UnhashableError, match="global random number generator"):
            pickling.packed(([value],), (), own)
    pickling.packed(([random.Random(1), random.Random, random],), (), own)


def test_a_table_with_an_attribute_of_its_own_class_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    table = type("Table", (pandas.DataFrame,), {})({"a": [1]})
    table._unit = "km"
    with pytest.raises(UnhashableError, match="'_unit'"):
        pickling.packed((table,), (), own)


def test_objects_whose_attributes_a_pickle_would_omit_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    array = numpy.array([1.0, 2.0])
    lost: list[Any] = [
        array.view(Units), Day(2020, 1, 1), Drawer(1), pandas.DataFrame(), pandas.Series([1]),
        Histogram("aab"), Place("10.0.0.1"),
    ]  # fmt: skip
    sample = Sample(1)
    object.__setattr__(sample, "units", "m")
    for value in [sample, *map(with_attribute, lost)]:
        for result in (value, [value], {"key": value}):
            with pytest.raises(UnhashableError, match="'units'"):
                pickling.packed((result,), (), own)
    for value in (
        array, numpy.ma.masked_array([1]), pandas.DataFrame(), random.Random(1),
        Day(2020, 1, 1), Histogram("aab"), Side.LEFT, with_attribute(array.view(Kept)), Sample(1),
    ):  # fmt: skip
        pickling.packed(([value],), (), own)
    kept = pickle.loads(pickling.packed(([with_attribute(array.view(Kept))],), (), own))[0][0]
    assert kept.units == "K"
