"""Tests of the comparison of values that can change in place."""

from __future__ import annotations

import collections
import datetime
import enum
import fractions
import random
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsody.builtin.journal import unchanged
from rhapsody.builtin.journal.code import CodeFingerprint
from rhapsody.builtin.journal.unchanged import Unchanged
from rhapsody.builtin.journal.values import Values
from tests._support.journal_keys import key_of, keys_in, loaded, write


class Kind(enum.Enum):
    PREY = 1
    PREDATOR = 2


@dataclass
class Agent:
    x: float
    kind: Kind = Kind.PREY
    friends: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Cell:
    alive: int
    born: datetime.date = datetime.date(2020, 1, 1)


class Slotted:
    __slots__ = ("__dict__", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight


def agents() -> Any:
    made = [Agent(float(number)) for number in range(300)]
    for each in made:
        each.friends = made[:3]
    return made


def set_kind(made: Any) -> None:
    made[7].kind = Kind.PREDATOR


def set_date(made: Any) -> None:
    made[1, 1].born = datetime.date(2020, 1, 2)


def set_item(made: Any) -> None:
    made["a"][5] = 1


QUICK = [
    pytest.param(agents, set_kind, id="enum of an object"),
    pytest.param(agents, lambda made: made[2].friends.append(made[0]), id="list of an object"),
    pytest.param(
        lambda: {(i, j): Cell(0) for i in range(20) for j in range(20)}, set_date, id="date"
    ),
    pytest.param(
        lambda: [Slotted(1.0) for _ in range(300)],
        lambda made: setattr(made[9], "weight", 2.0),
        id="slot",
    ),
    pytest.param(lambda: {"a": np.zeros(100_000)}, set_item, id="array"),
    pytest.param(
        lambda: collections.OrderedDict((str(n), fractions.Fraction(n, 7)) for n in range(300)),
        lambda made: made.__setitem__("9", fractions.Fraction(1, 7)),
        id="fractions",
    ),
]


def compared(value: Any, fingerprint: CodeFingerprint) -> tuple[Unchanged, Values]:
    values = Values(fingerprint)
    return Unchanged(value, values.digest(value, whole=False), values.size), values


@pytest.fixture
def fingerprint(tmp_path: Path) -> CodeFingerprint:
    return CodeFingerprint(keys_in(tmp_path).program)


@pytest.mark.parametrize(("make", "change"), QUICK)
def test_a_change_in_place_is_seen(make: Any, change: Any, fingerprint: CodeFingerprint) -> None:
    value = make()
    former, values = compared(value, fingerprint)
    assert former.is_quick
    assert former.is_true(values)
    change(value)
    assert not former.is_true(values)


def test_an_object_of_a_class_of_the_same_name_is_a_change(fingerprint: CodeFingerprint) -> None:
    def made(factor: int) -> list[Any]:
        kind = type("Walker", (), {"factor": factor, "__module__": __name__})
        monkeypatch.setattr(module, "Walker", kind, raising=False)
        return [kind() for _ in range(200)]

    module = sys.modules[__name__]
    with pytest.MonkeyPatch.context() as monkeypatch:
        value = made(1)
        former, values = compared(value, fingerprint)
        assert former.is_quick
        value[:] = made(2)
        assert not former.is_true(values)


def test_unchanged_values_are_compared_without_their_digests(
    fingerprint: CodeFingerprint, monkeypatch: Any
) -> None:
    value = agents()
    former, values = compared(value, fingerprint)
    monkeypatch.setattr(Values, "digest", None)
    assert former.is_true(values)


class Component:
    def configure(self, **options: Any) -> Any:
        object.__setattr__(self, "options", options)
        return self


@dataclass(frozen=True, slots=True)
class Frozen(Component):
    width: int


def defined() -> Any:
    class Defined(Component):
        width: int

        @cached_property
        def area(self) -> int:
            return self.width**2

    return pytest.importorskip("attrs").define(Defined)


@pytest.mark.parametrize("get", [lambda: Frozen, defined], ids=["dataclass", "attrs"])
def test_attributes_that_are_no_fields_are_compared(get: Any, fingerprint: CodeFingerprint) -> None:
    kind = get()
    value = [kind(3).configure(gain=2), *range(300)]
    former, values = compared(value, fingerprint)
    assert former.is_true(values)
    other = [kind(3).configure(gain=4), *range(300)]
    assert values.digest(other, whole=False) != values.digest(value, whole=False)
    value[0].options["gain"] = 4
    assert not former.is_true(values)


def test_a_cached_property_in_a_slot_is_compared_if_it_was_known_before(
    fingerprint: CodeFingerprint,
) -> None:
    kind = defined()
    value, known = kind(3), kind(3)
    former, values = compared(value, fingerprint)
    assert value.area == 9
    assert former.is_true(values)
    assert known.area == 9
    known.width = 5
    assert values.digest(known, whole=False) != values.digest(kind(5), whole=False)


def test_what_pickles_leave_out_is_compared_by_digests(fingerprint: CodeFingerprint) -> None:
    class Custom:
        def __init__(self, state: Any) -> None:
            self.state = state

        def __reduce__(self) -> Any:
            return dict, ()

    for value in ([Custom([1])] * 300, [random.Random(1), *range(300)], [Path, lambda: 1]):
        assert not compared(value, fingerprint)[0].is_quick
    Kind.PREY.note = []  # type: ignore[attr-defined]
    try:
        assert not compared(agents(), fingerprint)[0].is_quick
    finally:
        del Kind.PREY.note  # type: ignore[attr-defined]


def test_a_large_global_that_changes_in_place_counts(tmp_path: Path, monkeypatch: Any) -> None:
    text = """
class Agent:
    def __init__(self, number):
        self.number, self.opinion, self.history = number, number % 2, []
AGENTS = [Agent(number) for number in range(2000)]
def f():
    return sum(agent.opinion for agent in AGENTS)
"""
    write(tmp_path, {"main.py": text})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        before = key_of(keys, main.f).digest
        main.AGENTS[1000].opinion = 5
        keys.begin()
        assert key_of(keys, main.f).digest != before
        monkeypatch.setattr(unchanged, "MAX_SIZE", 10_000)  # then the value is large
        limited = keys_in(tmp_path)
        before = key_of(limited, main.f).digest
        main.AGENTS[1000].opinion = 6
        limited.begin()
        assert key_of(limited, main.f).digest == before
