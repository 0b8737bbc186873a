"""Pickles of results that contain objects with names."""

from __future__ import annotations

import dataclasses
import datetime
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from rhapsody.builtin.journal import pickling
from rhapsody.builtin.journal.values import UnhashableError


class Empty:
    value: Any


class Slotted:
    __slots__ = ("value",)


EMPTY, SLOTTED, WITH_STATE = Empty(), Slotted(), Empty()


def test_objects_without_attributes_come_back_as_themselves() -> None:
    WITH_STATE.value = 1
    copied = [SLOTTED, WITH_STATE, Empty()]
    content = pickle.loads(pickling.packed(([dataclasses.MISSING, EMPTY, *copied],), ()))
    (missing, empty, *others), *_ = content
    assert missing is dataclasses.MISSING
    assert empty is EMPTY
    assert not set(others).intersection(copied)
    assert others[1].value == 1


def test_a_variable_that_has_another_value_when_the_pickle_is_loaded_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pickling.packed(([EMPTY, SLOTTED],), ())
    monkeypatch.setattr(sys.modules[__name__], "EMPTY", None)
    monkeypatch.setattr(sys.modules[__name__], "SLOTTED", None)
    (found, slotted), *_ = pickle.loads(packed)
    assert type(found) is Empty
    assert type(slotted) is Slotted


def test_objects_that_a_pickle_would_replace_by_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("text")
    view = memoryview(b"bytes")
    with path.open() as file:
        for value in (view, [view], (len, view), (lambda: None, view), file, [lambda: None, file]):
            with pytest.raises(UnhashableError):
                pickling.packed((value,), ())


def test_functions_and_standard_streams_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    content = pickle.loads(pickling.packed(([lambda: 3, sys.stderr],), ()))
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


def with_attribute(value: Any) -> Any:
    value.units = "K"
    return value


def test_objects_whose_attributes_a_pickle_would_omit_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    array = numpy.array([1.0, 2.0])
    lost = [array.view(Units), Day(2020, 1, 1), Drawer(1), pandas.DataFrame(), pandas.Series([1])]
    for value in map(with_attribute, lost):
        for result in (value, [value], {"key": value}):
            with pytest.raises(UnhashableError, match="'units'"):
                pickling.packed((result,), ())
    for value in (
        array, numpy.ma.masked_array([1]), pandas.DataFrame(), random.Random(1),
        Day(2020, 1, 1), with_attribute(array.view(Kept)),
    ):  # fmt: skip
        pickling.packed(([value],), ())
    kept = pickle.loads(pickling.packed(([with_attribute(array.view(Kept))],), ()))[0][0]
    assert kept.units == "K"
