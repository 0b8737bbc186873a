"""Pickles of results that contain objects with names."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from typing import Any

import pytest

from rhapsody.journal import pickling


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
