"""Which arguments of tasks have the same key, which have not, and which have none."""

from __future__ import annotations

import asyncio
import copy
import copyreg
import functools
import pickle
import random
import threading
import tracemalloc
import types
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import ShareableList, SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rhapsody import WorkflowEngine
from rhapsody.builtin.journal.keys import Keys
from rhapsody.builtin.journal.values import MAX_OBJECTS, UnhashableError
from tests._support.journal_keys import described, key_of, twice, work
from tests._support.journal_values import DIFFERENT, EQUAL, WITHOUT, Kept, Point

OPEN = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@pytest.mark.parametrize("what", EQUAL)
def test_equal_values_have_the_same_key(what: str, keys: Keys) -> None:
    one, other = twice(keys, *EQUAL[what])
    assert one == other


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_values_have_different_keys(what: str, keys: Keys) -> None:
    one, other = twice(keys, *DIFFERENT[what])
    assert one != other
    assert twice(keys, DIFFERENT[what][0], DIFFERENT[what][0]) == (one, one)


@pytest.mark.parametrize("what", WITHOUT)
def test_values_without_a_digest_are_reported(what: str, keys: Keys, monkeypatch: Any) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.values.MAX_OBJECTS", 10_000)
    with pytest.raises(UnhashableError):
        key_of(keys, work, WITHOUT[what])
    with pytest.raises(UnhashableError):
        key_of(keys, functools.partial(work, WITHOUT[what]))


def test_private_attributes_of_a_subclass_of_a_table_count(keys: Keys) -> None:
    pandas = pytest.importorskip("pandas")
    kind = types.new_class("Table", (pandas.DataFrame,), exec_body=lambda body: None)
    kind.__module__ = __name__
    tables = [kind({"a": [1]}) for _ in range(3)]
    for table, unit in zip(tables, ("m", "km", "m"), strict=True):
        table._unit = unit
    digests = [key_of(Keys(keys.program), work, table).digest for table in tables]
    assert digests[0] == digests[2] != digests[1]


class Caching:
    """Class without attributes, except for the value of a cached property."""

    @functools.cached_property
    def size(self) -> int:
        """Compute a value."""
        return 3


def test_a_cached_property_that_a_task_computes_does_not_change_the_key(keys: Keys) -> None:
    filled = Caching()
    first = key_of(keys, work, filled).digest
    assert filled.size == 3
    keys.begin()
    assert key_of(keys, work, filled).digest == first


def test_a_value_that_the_program_assigns_to_a_cached_property_counts(keys: Keys) -> None:
    digests = set()
    for size in (None, 3, 5):
        given = Caching()
        if size is not None:
            vars(given)["size"] = size
        digests.add(key_of(Keys(keys.program), work, given).digest)
    assert len(digests) == 3


def test_pickling_an_instance_does_not_change_the_key_of_its_class(keys: Keys) -> None:
    class Rec:
        pass

    before = key_of(keys, functools.partial(work, Rec))
    copyreg._slotnames(Rec)  # type: ignore[attr-defined]  # called by `pickle.dumps(Rec())`
    assert "__slotnames__" in vars(Rec)
    assert key_of(Keys(keys.program), functools.partial(work, Rec)).digest == before.digest


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_data_is_not_copied(kind: Any, keys: Keys) -> None:
    data = kind(20_000_000)
    tracemalloc.start()
    try:
        key_of(keys, work, data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2_000_000


@pytest.mark.parametrize(
    "make",
    [
        np.str_,
        lambda name: np.array([name, "none"]),
        lambda name: np.array([(1, name)], [("n", "i8"), ("name", "U20")]),
        lambda name: np.array([(1, name)], [("n", "i8"), ("name", "U20")])[0],
    ],
    ids=["scalar", "array", "field", "record"],
)
def test_a_file_that_a_text_of_numpy_names_counts_by_its_content(
    make: Any, keys: Keys, tmp_path: Path
) -> None:
    data = tmp_path / "d.txt"
    data.write_text("one")
    first = key_of(keys, work, make("d.txt")).digest
    assert key_of(keys, work, make("d.txt")).digest == first
    data.write_text("two!")
    assert key_of(keys, work, make("d.txt")).digest != first


@pytest.mark.parametrize("kind", ["memory", "list"])
def test_shared_memory_counts_by_its_content(kind: str, keys: Keys) -> None:
    def make() -> Any:
        if kind == "list":
            return ShareableList([1, "a"])
        return SharedMemory(create=True, size=100)

    one, other = make(), make()
    try:
        first = key_of(keys, work, one).digest
        assert key_of(keys, work, other).digest == first
        task = described(work, one, shares_memory=True)
        key = keys.of(task, {}, {})
        (one.buf if kind == "memory" else one)[0] = 7
        assert key_of(keys, work, one).digest != first
        with pytest.raises(UnhashableError, match="changed in place"):
            keys.require_same_values(task, key)
    finally:
        for each in (one, other):
            memory = each if kind == "memory" else each.shm
            memory.close()
            memory.unlink()
    with pytest.raises(UnhashableError):
        key_of(keys, work, one)


def test_tables_count_by_all_that_is_in_them(keys: Keys) -> None:
    pd = pytest.importorskip("pandas")
    columns = {"a": [1, 2], "b": ["x", None]}

    def frame(**more: Any) -> Any:
        return pd.DataFrame(columns | more, index=["p", "q"])

    noted, named, copied, ordered = frame(), frame(), frame(), frame(b=pd.Categorical(["x", "y"]))
    noted.attrs["unit"] = "m"
    named.index.name = "key"
    copied["c"] = 1
    del copied["c"]
    ordered["b"] = ordered["b"].cat.as_ordered()
    different = [
        frame(),
        noted,
        named,
        ordered,
        frame(a=[1.0, 2.0]),
        frame(a=["1", "2"]),
        frame(a=pd.array([1, 2], "Int64")),
        frame(a=pd.array([1, None], "Int64")),
        frame(a=pd.Series([1, 2], dtype=object, index=["p", "q"])),
        frame(a=pd.Series(["1", 2], dtype=object, index=["p", "q"])),
        frame(a=[[1], [2]]),
        frame(a=[[1], [3]]),
        frame(b=["y", None]),
        frame(b=pd.Categorical(["x", "y"])),
        frame(b=pd.Categorical(["x", "y"], ["x", "y", "z"])),
        frame(b=pd.to_datetime(["2020", "2021"])),
        frame(b=pd.to_datetime(["2020", "2021"], utc=True)),
        frame(b=pd.to_timedelta([1, 2], "s")),
        frame(b=pd.period_range("2020", periods=2, freq="M")),
        frame(b=pd.interval_range(0, 2)),
        frame().set_index(["a", "b"]),
        frame().set_index(["b", "a"]),
        frame()["a"],
        frame()["a"].rename("c"),
        frame().index,
        frame().columns,
        frame(a=pd.array([0.0, None], "Float64")),
        frame(a=pd.array([-0.0, None], "Float64")),
        frame(a=pd.array([0.0, 0.0], "Float64")),
        pd.RangeIndex(2),
        pd.RangeIndex(0, 10, 5),
        pd.RangeIndex(0, 9, 3)[:1],
        pd.RangeIndex(0, 9, 4)[:1],
        pd.date_range("2020", periods=3),
        pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-01-03"]),
        frame().set_flags(allows_duplicate_labels=False),
        pd.MultiIndex.from_tuples([(1, "x"), (2, "y")]),
        pd.MultiIndex.from_tuples([(1, "x"), (2, "y")], names=["a", "b"]),
        pd.MultiIndex([[2, 1], ["x", "y"]], [[1, 0], [0, 1]]),
        pd.MultiIndex([dates := pd.date_range("2020", periods=2)], [[0, 1]]),
        pd.MultiIndex([pd.DatetimeIndex(list(dates))], [[0, 1]]),
        pd.Timestamp("2020"),
        pd.NA,
        frame()["b"].array,
    ]
    digests = [key_of(keys, work, each).digest for each in different]
    assert len(set(digests)) == len(digests)
    again = [key_of(keys, work, pickle.loads(pickle.dumps(each))).digest for each in different]
    assert again == digests
    assert key_of(keys, work, copied).digest == digests[0]
    with pytest.raises(UnhashableError):
        key_of(keys, work, frame(b=[threading.Lock(), 1]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.text() | st.integers())
        | st.builds(Point, st.integers(), inner)
    ),
    max_leaves=8,
)


def _shown(value: Any) -> Any:
    """Return a form in which values are equal if keys treat them alike, with signs of zeros."""
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_shown, value))
    if isinstance(value, dict):
        return "dict", frozenset((_shown(key), _shown(each)) for key, each in value.items())
    if isinstance(value, set):
        return "set", frozenset(map(_shown, value))
    if isinstance(value, Point):
        return "Point", _shown(value.x), _shown(value.y)
    return type(value).__name__, repr(value)


@hypothesis_settings(suppress_health_check=OPEN, deadline=None, max_examples=60)
@given(VALUES, VALUES)
def test_values_have_the_same_key_when_they_are_the_same(keys: Keys, one: Any, other: Any) -> None:
    first, second = twice(keys, one, other)
    assert (first == second) == (_shown(one) == _shown(other))
    assert twice(keys, one, pickle.loads(pickle.dumps(one))) == (first, first)


class Agent:
    def __init__(self, number: int) -> None:
        self.number = number
        self.near: list[Agent] = []
        self.known: set[Agent] = set()
        self.links: dict[str, Agent] = {}


def network(size: int) -> list[Agent]:
    drawn = random.Random(1)
    agents = [Agent(number) for number in range(size)]
    for each in agents:
        each.near = drawn.sample(agents, 3)
        each.known = set(drawn.sample(agents, 2))
        each.links = {f"link {number}": drawn.choice(agents) for number in range(2)}
    return agents


def rewired(agents: list[Agent]) -> None:
    agents[7].near[1] = next(each for each in agents if each not in agents[7].near)


CHANGES: dict[str, Callable[[list[Agent]], object]] = {
    "attribute": lambda agents: setattr(agents[-1], "number", -1),
    "neighbor": rewired,
    "order": lambda agents: agents[3].near.reverse(),
    "set": lambda agents: agents[5].known.pop(),
    "dict": lambda agents: agents[5].links.update(other=agents[0]),
    "root": lambda agents: agents.append(agents[0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [15, 200])
def test_a_network_of_objects_has_a_key(size: int, change: str, keys: Keys) -> None:
    """The number of paths through it is too large to follow all of them."""
    one, other = network(size), network(size)
    assert key_of(keys, work, one).digest == key_of(keys, work, other).digest
    CHANGES[change](other)
    assert key_of(keys, work, one).digest != key_of(keys, work, other).digest


def ring(size: int, times: int = 1) -> list[Agent]:
    beads = [Agent(0) for _ in range(size * times)]
    for number, bead in enumerate(beads):
        first = number // size * size
        bead.near = [beads[first + (number + step) % size] for step in (1, size - 1)]
    return beads


def test_networks_of_equal_objects_differ_by_their_references(keys: Keys) -> None:
    values = [ring(300), ring(400), ring(100, 3), ring(300)[:1], ring(600)[:1]]
    swapped = ring(300)
    swapped[10].near, swapped[30].near = swapped[30].near, swapped[10].near
    digests = [key_of(keys, work, value).digest for value in (*values, swapped)]
    assert len(set(digests)) == len(digests)
    assert key_of(keys, work, ring(300)).digest == digests[0]


def tree(size: int) -> list[Agent]:
    nodes = [Agent(number) for number in range(size)]
    for number in range(1, size):
        nodes[(number - 1) // 2].near.append(nodes[number])
        nodes[number].links["parent"] = nodes[(number - 1) // 2]
    return nodes


def test_a_list_of_the_nodes_of_a_tree_has_a_key(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node leads to the whole tree, in which no object is reached twice in the first part."""
    parts = (200, 600), (1_600, 12_000), (20_000, 20_001), (MAX_OBJECTS, MAX_OBJECTS + 1)
    monkeypatch.setattr("rhapsody.builtin.journal.values._WINDOWS", parts)
    monkeypatch.setattr("rhapsody.builtin.journal.values.MAX_OBJECTS", 20_000)
    one, other = tree(200), tree(200)
    assert key_of(keys, work, one).digest == key_of(keys, work, other).digest
    other[-1].number = -1
    assert key_of(keys, work, one).digest != key_of(keys, work, other).digest


def test_the_order_of_the_sets_of_a_network_does_not_count(keys: Keys) -> None:
    digests = set()
    for seed in range(3):
        agents = network(200)
        padding = [Agent(0) for _ in range(seed * 7)]  # other addresses
        for agent in agents:
            agent.known = set(random.Random(seed).sample([*agent.known], 2))
        digests.add(key_of(keys, work, agents).digest)
        del padding
    assert len(digests) == 1


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: float) -> float:
        return self.factor * x


@pytest.mark.parametrize(
    "steps",
    [(Scale(2), Scale(3)), (functools.partial(max, 2), 1), ((max, 2), (min, 3)), ([1, abs], [1])],
)
def test_the_order_of_a_dict_counts_if_it_contains_what_can_be_called(
    keys: Keys, steps: tuple[Any, Any]
) -> None:
    one, other = steps
    first = key_of(keys, work, {"a": one, "b": other}).digest
    assert key_of(keys, work, {"b": other, "a": one}).digest != first


def test_the_order_of_a_dict_of_data_does_not_count(keys: Keys) -> None:
    first = key_of(keys, work, {"a": [1, (2, "x")], "b": Kept(n=1)}).digest
    assert key_of(keys, work, {"b": Kept(n=1), "a": [1, (2, "x")]}).digest == first


def test_a_deeply_nested_value_has_a_key(keys: Keys) -> None:
    one: list[Any] = []
    other: list[Any] = [1]
    for _ in range(300):
        one, other = [one], [other]
    assert key_of(keys, work, one).digest != key_of(keys, work, other).digest
    assert key_of(keys, work, one).digest == key_of(keys, work, copy.deepcopy(one)).digest


def test_a_place_in_the_arguments_counts(keys: Keys) -> None:
    given = key_of(keys, work, 1, 2).digest
    assert key_of(keys, work, 2, 1).digest != given
    assert key_of(keys, work, (1, 2)).digest != given
    assert key_of(keys, work, 1, kwargs={"b": 2}).digest != given
    odd = {"kwargs": {"1": 3}}
    assert key_of(keys, work, 1, **odd).digest != key_of(keys, work, 2, **odd).digest
    named = key_of(keys, work, kwargs={"a": 1, "b": 2}).digest
    assert key_of(keys, work, kwargs={"b": 2, "a": 1}).digest == named


def test_a_value_that_changes_while_it_is_read_is_reported(keys: Keys) -> None:
    class Growing(dict[str, int]):
        def __reduce_ex__(self, _: Any) -> Any:
            return dict, (), None, None, self.grow()

        def grow(self) -> Iterator[Any]:
            for key in self:
                self[key + "a"] = 1
                yield key, 1

    with pytest.raises(UnhashableError, match="changed size"):
        key_of(keys, work, Growing(a=1))


def test_the_code_of_a_class_counts_where_an_argument_is_of_it(keys: Keys) -> None:
    def made(n: int) -> Any:
        class Local:
            def get(self) -> int:
                return n

        return Local()

    one, other = twice(keys, made(1), made(2))
    assert one != other
    assert twice(keys, made(1), made(1)) == (one, one)


def test_the_state_of_a_method_s_object_counts_each_time(keys: Keys) -> None:
    model = Kept(n=1)
    model.__dict__["run"] = types.MethodType(work, model)

    def digest() -> bytes:
        return key_of(keys, types.MethodType(work, model)).digest

    del model.__dict__["run"]
    first = digest()
    model.__dict__["n"] = 2
    assert digest() != first
    model.__dict__["n"] = 1
    assert digest() == first


@pytest.mark.asyncio
async def test_the_exception_of_a_task_has_the_key_of_an_equal_one(keys: Keys) -> None:
    def fail() -> None:
        raise ValueError(1)

    async with WorkflowEngine.create() as flow:
        (error,) = await asyncio.gather(flow.function_task(fail)(), return_exceptions=True)
    plain = key_of(keys, work, ValueError(1)).digest
    assert key_of(keys, work, error).digest == plain
    assert isinstance(error, ValueError)
    error.add_note("of the user")
    assert key_of(keys, work, error).digest != plain
