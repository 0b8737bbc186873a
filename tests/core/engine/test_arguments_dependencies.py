"""Dependencies: futures among the arguments, wherever they are."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import enum
import io
import time
import typing
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from rhapsody import (
    DependencyFailureError,
    LocalExecutionBackend,
    WorkflowEngine,
    literal,
)
from tests._support.engine_fixtures import Machine, engine, tools
from tests._support.machine import not_under_coverage
from tests._support.scripted import Scripted, outcome, until

pytestmark = pytest.mark.asyncio


class Point(typing.NamedTuple):
    x: Any
    y: Any = 0


Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any = 0
    derived: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self.derived = ("derived from", self.x)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: Any
    inner: Any = None


# Where futures are found.


async def test_an_iterator_that_a_task_returns_is_given_to_one_task_only() -> None:
    def numbers() -> typing.Iterator[int]:
        yield from (1, 2)

    def lines() -> typing.Any:
        return io.StringIO("a\nb\n")

    async with WorkflowEngine.create() as flow:
        read: Any = flow.function_task(list)
        for make in (numbers, lines):
            future = flow.function_task(make)()
            assert len(await read(future)) == 2
            with pytest.raises(TypeError, match=r"task\.\d+ has received .* return a list"):
                await read(future)
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        task = flow.function_task(map)(abs, [1, 2])
        both = [flow.function_task(sum)(task) for _ in range(2)]
        assert await asyncio.gather(*both) == [3, 3]


async def test_positional_and_keyword() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        assert await take(give(1), 2, give(3), key=give(4), other=5) == (
            (1, 2, 3),
            {"key": 4, "other": 5},
        )


async def test_in_containers_of_every_kind_and_nested() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        assert await take([give(1), [give(2), 3]]) == [1, [2, 3]]
        assert await take((give(1), (give(2),))) == (1, (2,))
        assert await take({"a": give(1), "b": {"c": give(2)}}) == {"a": 1, "b": {"c": 2}}
        assert await take({give("x"), "y"}) == {"x", "y"}
        assert await take({"a": [({"b": give(1)},)]}, deep={"x": [give(2)]}) == (
            ({"a": [({"b": 1},)]},),
            {"deep": {"x": [2]}},
        )


async def test_in_namedtuples_which_keep_their_type() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        value = await take(Point(give(1), [give(2)]))
        assert type(value) is Point
        assert value == Point(1, [2])
        old = await take(Pair(give(1), 2))
        assert type(old) is Pair
        assert old == Pair(1, 2)


async def test_in_dataclasses_by_their_init_fields() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        value = await take(Plain(give(1), [give(2)]))
        assert type(value) is Plain
        assert (value.x, value.y) == (1, [2])
        assert value.derived == ("derived from", 1)  # made again from the values
        frozen = await take(Frozen(x=give(1), inner=Frozen(x=(give(2),))))
        assert frozen == Frozen(x=1, inner=Frozen(x=(2,)))


async def test_the_callers_own_containers_are_left_alone() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        future = give(1)
        mine = {"a": [future, 2]}
        point = Plain(future)
        await take(mine, point)
        assert mine == {"a": [future, 2]}
        assert mine["a"][0] is future
        assert point.x is future


async def test_containers_on_the_way_to_a_future_are_taken_as_they_are_at_the_call() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        gate: asyncio.Future[int] = flow.loop.create_future()
        inner = [gate]
        mine: dict[str, Any] = {"a": inner, "b": (gate, inner)}
        point = Plain(inner)
        future = take(mine, point)
        inner.append(give(10))
        mine["c"] = flow.loop.create_future()  # no task waits for it
        point.x = None
        gate.set_result(1)
        assert await future == ({"a": [1], "b": (1, [1])}, Plain([1]))


async def test_what_holds_no_future_is_handed_on_as_the_same_object() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def job(x: Any, y: Any) -> Any: ...

        untouched, future = [object(), {"a": 1}], job(1, 2)
        job(future, [untouched, untouched])
        backend.done(await backend.given("job"), "v")
        await until(lambda: len(backend.tasks) == 2)
        args = backend.tasks[1]["args"]
        assert args[0] == "v"
        assert args[1][0] is untouched


async def test_a_future_in_a_container_that_is_not_searched_is_refused() -> None:
    class OwnList(list[Any]):
        pass

    class OwnDict(dict[str, Any]):
        pass

    @dataclasses.dataclass
    class Class:
        field: Any = 1

    async with engine(Machine()) as flow:
        give, take = tools(flow)
        future = give(1)

        def containers(value: Any) -> list[Any]:
            return [
                OwnList([value]),
                OwnDict(a=value),
                collections.deque([value]),
                collections.OrderedDict(a=value),
                frozenset([value]),
            ]

        for thing in containers(future):
            with pytest.raises(TypeError, match=f"of type {type(thing).__name__}: .*literal"):
                take(thing)
            assert await take(literal(thing)) is thing
        for thing in (
            *containers(1),
            MappingProxyType({"a": future}),
            Class,
        ):
            assert await take(thing) is thing
        assert await future == 1


async def test_a_literal_is_not_searched_and_arrives_without_its_wrapping() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        future = give(1)
        held = [future]
        assert await take(literal(held)) is held
        assert await take([literal(held), future]) == [held, 1]
        assert await take(x=literal(held)) == ((), {"x": held})
        big = literal({"a": [1, 2]})
        assert await take(big, future) == ({"a": [1, 2]}, 1)
        assert await take(literal(future)) is future


async def test_a_literal_of_something_that_waits_makes_no_dependency() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def first() -> Any: ...

        @flow.function_task
        def second(x: Any) -> Any: ...

        one = first()
        second(literal([one]))
        await backend.given("second")
        assert flow.dependencies["task.000002"] == ()


async def test_plain_values_of_all_kinds_pass_untouched() -> None:
    class Color(enum.Enum):
        RED = 1

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError("not to be compared")

        def __bool__(self) -> bool:
            raise TypeError("not to be asked")

        __hash__ = None  # type: ignore[assignment]

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return self

    async with engine(Machine()) as flow:
        give, take = tools(flow)
        odd = Odd()
        values = [None, ..., 1.5, "text", b"bytes", Color.RED, Odd, odd, range(3), frozenset({1})]
        back = await take(values, give(1))
        assert all(left is right for left, right in zip(back[0], values, strict=True))


# The same future twice, many futures.


async def test_the_same_future_twice_is_one_dependency() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def first() -> Any: ...

        @flow.function_task
        def second(*args: Any, **kwargs: Any) -> Any: ...

        one = first()
        last = second(one, [one, one], key={"x": one})
        assert [each["uid"] for each in flow.dependencies[last.uid]] == ["task.000001"]
        backend.done(await backend.given("first"), 7)
        task = await backend.given("second")
        assert task["args"] == (7, [7, 7])
        assert task["kwargs"] == {"key": {"x": 7}}
        backend.done(task, "done")
        assert await last == "done"


async def test_the_same_failed_future_twice_is_named_once() -> None:
    async with engine(Machine()) as flow:
        _, take = tools(flow)

        @flow.function_task
        def fail() -> None:
            raise KeyError("x")

        future = fail()
        error = await outcome(take(future, [future]))
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ["fail"]


async def test_a_list_in_two_places_is_searched_in_both_and_is_no_cycle() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        shared = [give(1)]
        assert await take(shared, {"again": shared}, [shared, shared]) == (
            [1],
            {"again": [1]},
            [[1], [1]],
        )


async def test_thousands_of_futures_in_one_list() -> None:
    async with engine() as flow:

        @flow.function_task
        def give(x: int) -> Any: ...

        @flow.function_task
        def take(x: list[Any]) -> Any: ...

        assert await take(flow.map(give, range(5000))) == "Dummy Output"


async def test_a_finished_dependency_is_no_wait() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        future = give(5)
        await future
        assert await take([future]) == [5]


# Structures that cannot be searched.


def self_containing() -> list[Any]:
    inside_list: list[Any] = [1]
    inside_list.append(inside_list)
    inside_dict: dict[str, Any] = {}
    inside_dict["a"] = {"b": [inside_dict]}
    looped = Plain(1)
    looped.x = [looped]
    return [inside_list, inside_dict, looped]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("with_future", [False, True])
async def test_a_structure_that_contains_itself_is_refused(index: int, with_future: bool) -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        thing = self_containing()[index]
        more = [give(1)] if with_future else []
        with pytest.raises(ValueError, match="itself"):
            take(thing, more)
        assert await take(literal(thing)) is thing


def nested(depth: int, leaf: Any, kind: type[list[Any]] | type[tuple[Any, ...]] = list) -> Any:
    for _ in range(depth):
        leaf = kind([leaf])
    return leaf


async def test_a_hundred_levels_are_searched_and_more_are_refused() -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        value = await take(nested(99, give(1)))
        for _ in range(99):
            (value,) = value
        assert value == 1
        with pytest.raises(ValueError, match="100"):
            take(nested(200, give(1)))
        with pytest.raises(ValueError, match="100"):
            take(nested(100_000, 1, tuple))
        assert await take(literal(nested(200, 1))) == nested(200, 1)


@pytest.mark.parametrize("kind", ["key", "in a tuple", "of an asyncio future"])
async def test_a_future_in_the_keys_of_a_dict_is_refused(kind: str) -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        future = flow.loop.create_future() if kind == "of an asyncio future" else give(1)
        key = (0, future) if kind == "in a tuple" else future
        with pytest.raises(TypeError, match=r"future in a key.*rhapsody\.literal"):
            take([{"inner": {key: "label"}}])
        arrived = await take(literal({key: "label"}))
        assert list(arrived) == [key]
        assert flow.components == {}


async def test_a_call_that_was_refused_leaves_nothing_behind() -> None:
    async with engine() as flow:
        _, take = tools(flow)
        for thing in (self_containing()[0], nested(200, 1)):
            with pytest.raises(ValueError, match="literal"):
                take(thing)
        assert flow.components == {}
        assert flow.stats.tasks == 0


@not_under_coverage
async def test_big_plain_data_costs_less_than_copying_it() -> None:
    data = {"rows": [[float(i), str(i)] for i in range(100_000)]}
    async with engine(Scripted()) as flow:

        @flow.function_task
        def job(x: Any) -> Any: ...

        def seconds(call: Any, times: int = 3) -> float:
            best = 1e9
            for _ in range(times):
                begin = time.perf_counter()
                call()
                best = min(best, time.perf_counter() - begin)
            return best

        assert seconds(lambda: job(data)) < seconds(lambda: copy.deepcopy(data))
        numbers = list(range(300_000))
        each = seconds(lambda: list(map(type, numbers)), 10)
        assert seconds(lambda: job(numbers), 10) < 20 * each
        text, array = "x" * 10**7, bytearray(10**7)
        assert seconds(lambda: job([text, array]), 20) < seconds(lambda: bytes(array), 20)


class OwnPoint(NamedTuple("OwnPoint", [("x", Any), ("y", Any)])):
    """A named tuple that is made in its own way."""

    def __new__(cls, x: Any) -> OwnPoint:
        return super().__new__(cls, x, "y")


async def test_dataclasses_and_named_tuples_arrive_as_they_were() -> None:
    made = []

    @dataclasses.dataclass
    class Data:
        value: Any
        start: dataclasses.InitVar[int]
        hidden: int = dataclasses.field(init=False, default=1)

        def __post_init__(self, start: int) -> None:
            made.append(self)

    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def one() -> int:
            return 1

        @flow.function_task
        def look(x: Any) -> Any:
            return x

        data = Data(one(), 5)
        data.hidden = 7
        data.more = "more"  # type: ignore[attr-defined]
        seen = await look(data)
        assert (seen.value, seen.hidden, seen.more, len(made)) == (1, 7, "more", 1)
        assert asyncio.isfuture(data.value)
        assert tuple(await look(OwnPoint(one()))) == (1, "y")
