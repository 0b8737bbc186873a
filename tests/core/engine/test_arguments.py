"""Futures in arguments of any shape: found once each, and replaced wherever they are."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.engine.functions.arguments import literal, search


class Row(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Box:
    inside: Any
    label: Any = None


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for a future in a generated shape."""

    number: int


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.builds(Slot, st.integers(0, 4))
)


def containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inside, max_size=4),
        st.lists(inside, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inside, max_size=4),
        st.builds(Row, inside, inside),
        st.builds(Box, inside, inside),
        st.sets(leaves, max_size=4),
    )


shapes = st.recursive(leaves, containers, max_leaves=25)


def changed(value: Any, leaf: Callable[[Slot], Any]) -> Any:
    """The shape with each slot replaced: the plain recursive definition of what is meant."""
    if isinstance(value, Slot):
        return leaf(value)
    if isinstance(value, Row):
        return Row(*(changed(one, leaf) for one in value))
    if isinstance(value, Box):
        return Box(changed(value.inside, leaf), changed(value.label, leaf))
    if isinstance(value, dict):
        return {key: changed(one, leaf) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(changed(one, leaf) for one in value)
    return value


def slots(value: Any) -> list[int]:
    """The numbers in a shape in order, each once."""
    found: dict[int, None] = {}

    def note(slot: Slot) -> int:
        found[slot.number] = None
        return 0

    changed(value, note)
    return list(found)


@given(args=st.lists(shapes, max_size=3), kwargs=st.dictionaries(st.text(max_size=2), shapes))
def test_every_future_is_found_once_and_replaced_everywhere(
    loop: asyncio.AbstractEventLoop, args: list[Any], kwargs: dict[str, Any]
) -> None:
    futures = [loop.create_future() for _ in range(5)]
    for number, future in enumerate(futures):
        future.set_result(("value", number))
    numbers = slots((args, kwargs))
    given_args = tuple(changed(value, lambda slot: futures[slot.number]) for value in args)
    given_kwargs = {k: changed(v, lambda slot: futures[slot.number]) for k, v in kwargs.items()}
    found = search(given_args, given_kwargs)
    if not numbers:
        assert found is None
        return
    assert found is not None
    assert {id(future) for future in found.futures} == {id(futures[n]) for n in numbers}
    assert len(found.futures) == len(numbers)

    def value(slot: Slot) -> tuple[str, int]:
        return "value", slot.number

    values = {id(future): future.result() for future in found.futures}
    filled_args, filled_kwargs = found.fill(given_args, given_kwargs, values)
    assert filled_kwargs.keys() == kwargs.keys()
    for before, after, filled in zip(
        (*args, *kwargs.values()),
        (*given_args, *given_kwargs.values()),
        (*filled_args, *filled_kwargs.values()),
        strict=True,
    ):
        assert filled == changed(before, value)
        assert type(filled) is type(changed(before, value))
        if not slots(before):
            assert filled is after


@given(shape=shapes)
def test_the_order_is_that_of_the_arguments_where_there_is_one(
    loop: asyncio.AbstractEventLoop, shape: Any
) -> None:
    futures = [loop.create_future() for _ in range(5)]
    listed = [shape, [Slot(3)], Slot(1)]
    if any(isinstance(part, set) for part in walk(shape)):
        return  # a set has no order of its own
    found = search((changed(listed, lambda slot: futures[slot.number]),), None)
    assert found is not None
    assert [futures.index(future) for future in found.futures] == slots(listed)


def walk(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        parts: Any = value.values()
    elif isinstance(value, Box):
        parts = (value.inside, value.label)
    else:
        parts = value if isinstance(value, list | tuple | set) else ()
    for part in parts:
        yield from walk(part)


@given(shape=shapes)
def test_in_a_literal_nothing_is_found(loop: asyncio.AbstractEventLoop, shape: Any) -> None:
    future = loop.create_future()
    value = [changed(shape, lambda _: future)]
    args = (literal(value),)
    found = search(args, None)
    assert found is not None
    assert not found.futures
    assert found.fill(args, {}, {})[0][0] is value


@given(depth=st.integers(1, 100))
def test_any_depth_up_to_the_limit_is_searched(loop: asyncio.AbstractEventLoop, depth: int) -> None:
    future = loop.create_future()
    value: Any = future
    for _ in range(depth):
        value = [value]
    found = search((value,), None)
    assert found is not None
    assert list(found.futures) == [future]
    deeper: Any = [[]]
    for _ in range(100):
        deeper = [deeper, value]
    with pytest.raises(ValueError, match="100"):
        search((deeper,), None)


def test_a_class_whose_instances_were_filled_is_not_kept(
    loop: asyncio.AbstractEventLoop,
) -> None:
    @dataclasses.dataclass
    class Doubled:
        value: Any
        twice: Any = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            self.twice = [self.value, self.value]

    for value in (1, 2):
        future = loop.create_future()
        given = Doubled(future)
        found = search((given,), None)
        assert found is not None
        assert found.fill((given,), {}, {id(future): value})[0][0].twice == [value, value]
    kept = weakref.ref(Doubled)
    del Doubled, given, found
    gc.collect()
    assert kept() is None


class Rows(list[Any]):
    """A list of a class of its own, which keeps to itself what is in it."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it was asked")


class Pair(tuple[Any, ...]):
    pass


NOT_SEARCHED: list[Callable[[Any], Any]] = [
    lambda x: deque([1, x]),
    lambda x: OrderedDict(a=1, b=x),
    lambda x: Rows([x]),
    lambda x: Pair([1, x]),
    lambda x: frozenset([x]),
    lambda x: {"a": x}.values(),
    lambda x: deque([Pair([x])]),
    lambda x: [{"a": deque([x])}],
    lambda x: {"a": x}.items(),
    lambda x: zip(["a"], [x], strict=True),
    lambda x: enumerate([x]),
    lambda x: map(str, [x]),
    lambda x: iter((x,)),
    lambda x: SimpleNamespace(a=[x]),
    lambda x: Namespace(a=x),
    lambda x: partial(print, 1, x),
    lambda x: partial(print, end=[x]),
    lambda x: np.array([None, x]),
    lambda x: np.array([[1, x], [2, 3]]),
]


@pytest.mark.parametrize("shape", NOT_SEARCHED)
def test_a_future_in_an_unsearched_place_is_reported(
    loop: asyncio.AbstractEventLoop, shape: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=r"contains a future in a .*rhapsody\.literal"):
        search((shape(loop.create_future()),), None)
    for other in (1, [1], object(), asyncio.Future):
        assert search((shape(other) if other != [1] else deque([[1]]),), None) is None


def test_a_future_in_a_table_is_reported(loop: asyncio.AbstractEventLoop) -> None:
    pd = pytest.importorskip("pandas")
    future = loop.create_future()
    names = ["x"] * 2000
    for table in (
        pd.DataFrame({"name": names, "number": 1.5, "value": [future] * 2000}),
        pd.Series([future]),
    ):
        with pytest.raises(TypeError, match=r"contains a future in a .*rhapsody\.literal"):
            search((table,), None)
        assert search((literal(table),), None) is not None
    assert search((pd.DataFrame({"name": names, "number": 1.5}), pd.Series(names)), None) is None


def test_iterators_and_modules_pass_unchanged() -> None:
    numbers = zip([1, 2], iter([3, 4]), strict=True)
    given = (numbers, (n for n in [1]), np, np.zeros(3), np.float64, list[int], SimpleNamespace())
    assert search(given, None) is None
    assert list(numbers) == [(1, 3), (2, 4)]


def test_a_defaultdict_keeps_its_factory(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    groups: defaultdict[str, list[Any]] = defaultdict(list, a=[future], b=[1])
    found = search((groups,), None)
    assert found is not None
    (filled,) = found.fill((groups,), {}, {id(future): 7})[0]
    assert filled == {"a": [7], "b": [1]}
    assert filled["c"] == []
    assert groups == {"a": [future], "b": [1]}
    assert search((defaultdict(list, a=[1]),), None) is None


def test_big_data_in_a_class_of_its_own_is_not_walked_through() -> None:
    looks = 0

    class Row(list[Any]):
        def __getattribute__(self, name: str) -> Any:
            nonlocal looks
            looks += 1
            return super().__getattribute__(name)

    rows = deque(Row([object()]) for _ in range(10_000))
    rows.append(Row([rows]))
    assert search((rows, OrderedDict(enumerate(rows))), None) is None
    assert looks < 5000


def test_a_list_that_was_seen_before_is_inexact_inside_a_named_tuple(
    loop: asyncio.AbstractEventLoop,
) -> None:
    shared = [loop.create_future()]
    found = search((shared, Row(shared, 0)), None)
    assert found is not None
    assert found.inexact
