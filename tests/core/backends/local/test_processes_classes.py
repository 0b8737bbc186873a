"""Classes of the script: each call has its own copy, and results are of the program's classes."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from rhapsody import DependencyFailureError, WorkflowEngine
from rhapsody.backends.local import LocalExecutionBackend
from tests._support.engine_fixtures import engine

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

NAME = "the_script"

Script = Callable[[str], Any]


@pytest.fixture
def script() -> Iterator[Script]:
    """Runs the text of a script, in a module whose classes are sent by value, and returns it."""
    module = sys.modules[NAME] = ModuleType(NAME)
    cloudpickle.register_pickle_by_value(module)

    def run(text: str) -> Any:
        exec(textwrap.dedent(text), vars(module))
        return module

    yield run
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules[NAME]


@pytest_asyncio.fixture
async def flow() -> AsyncIterator[WorkflowEngine]:
    async with engine(LocalExecutionBackend("process", resources={"cores": 1})) as started:
        yield started


CELL = """
    factor = 1
    settings = {"n": 1}

    class Cell:
        scale = 1

        def __init__(self, x):
            self.x = x

        def size(self):
            return self.x * self.scale * factor

        def setting(self):
            return settings["n"]

    class CellError(Exception):
        def __init__(self, code):
            super().__init__(f"code {code}")
            self.code = code

    def grow(x, wait=None):
        if wait:
            open(wait).read()
        return Cell(x)

    def change(x):
        seen, Cell.scale, Cell.extra = getattr(Cell, "extra", Cell.scale), 99, "extra"
        return Cell(x), seen

    def fail(code, wait=None):
        if wait:
            open(wait).read()
        raise CellError(code)

    def size(cell):
        return cell.size(), isinstance(cell, Cell)

    def configured(n):
        settings["n"] = n
        return Cell(0).setting()
"""


async def running(fifo: Path) -> IO[str]:
    """Wait until a call reads a named pipe, which it does until the returned file is closed."""
    return await asyncio.to_thread(fifo.open, "w")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(path := tmp_path / "fifo")
    return path


async def test_a_result_leaves_the_programs_class_as_it_is_now(
    script: Script, flow: WorkflowEngine, fifo: Path
) -> None:
    s = script(CELL)
    mine, future = s.Cell(2), flow.function_task(s.grow)(1, str(fifo))
    with await running(fifo):
        s.Cell.scale, s.factor = 10, 3
        s.Cell.size = size = lambda self: -self.x * self.scale * s.factor
    result = await future
    assert type(result) is s.Cell
    assert (s.Cell.scale, s.Cell.size, mine.size(), result.size()) == (10, size, -60, -30)


async def test_methods_of_a_result_read_the_programs_globals(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    result = await flow.function_task(s.grow)(2)
    s.factor = 5
    assert (result.size(), s.Cell(1).size()) == (10, 5)


async def test_a_result_is_of_the_class_that_was_defined_meanwhile(
    script: Script, flow: WorkflowEngine, fifo: Path
) -> None:
    s = script(CELL)
    for name in ("grow", "fail"):
        future = flow.function_task(getattr(s, name))(1, str(fifo))
        former = s.Cell
        with await running(fifo):
            script(CELL)
        assert s.Cell is not former
        if name == "grow":
            assert type(await future) is s.Cell
        else:
            with pytest.raises(s.CellError):
                await future


async def test_changes_by_a_call_reach_neither_the_program_nor_later_calls(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    change = flow.function_task(s.change)
    for scale in (1, 2):
        s.Cell.scale = scale
        result, seen = await change(1)
        assert (result.scale, seen, hasattr(s.Cell, "extra")) == (scale, scale, False)


async def test_a_call_sees_the_class_as_it_was_at_the_call(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    task = flow.function_task(s.size)
    cell = s.Cell(1)
    assert await task(cell) == (1, True)
    s.Cell.scale, s.factor = 2, 10
    assert await task(cell) == (20, True)
    s.Cell.size = lambda self: "new"
    assert await task(cell) == ("new", True)
    script(CELL)
    assert await task(s.Cell(3)) == (3, True)


async def test_a_function_and_its_classes_share_their_globals(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    configured = flow.function_task(s.configured)
    assert [await configured(n) for n in (5, 6)] == [5, 6]
    assert s.settings == {"n": 1}


async def test_an_exception_is_caught_by_the_programs_class(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    s.CellError.hint = "of the program"
    with pytest.raises(s.CellError) as caught:
        await flow.function_task(s.fail)(7)
    assert (caught.value.code, caught.value.hint) == (7, "of the program")


async def test_an_exception_in_an_error_of_rhapsody_is_of_the_programs_class(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(CELL)
    script("""
        from rhapsody import DependencyFailureError

        def fail_inside(code):
            CellError.hint = "of the worker"
            raise DependencyFailureError("failed", ["task"], CellError(code))
    """)
    with pytest.raises(DependencyFailureError) as caught:
        await flow.function_task(s.fail_inside)(7)
    cause: Any = caught.value.root_cause
    assert type(cause) is s.CellError
    assert (cause.code, hasattr(s.CellError, "hint")) == (7, False)


async def test_instances_that_a_worker_keeps_are_of_the_class_of_later_calls(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script("""
        import sys
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Config:
            depth: int

        def load(config):
            models = vars(sys).setdefault("kept_models", {})
            return models.setdefault(config, len(models))
    """)
    load = flow.function_task(s.load)
    assert [await load(s.Config(depth)) for depth in (1, 2, 1)] == [0, 1, 0]


async def test_what_a_class_keeps_on_a_worker_is_not_sent_back(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script("""
        import threading

        class Model:
            cache = {}

        def load():
            Model.cache["lock"] = threading.Lock()
            return Model()
    """)
    assert type(await flow.function_task(s.load)()) is s.Model
    assert s.Model.cache == {}


SLOTTED = """
    from dataclasses import dataclass
    from enum import Enum
    from typing import Generic, NamedTuple, TypeVar

    T = TypeVar("T")

    @dataclass(slots=True)
    class Point:
        x: int
        y: int = 2

    @dataclass(slots=True, frozen=True)
    class Frozen:
        x: int = 1

    @dataclass(slots=True)
    class Point3(Point):
        z: int = 3

    class Slotted:
        __slots__ = ("a", "__hidden", "__weakref__")

        def __init__(self):
            self.a, self.__hidden = 1, 2

        def hidden(self):
            return self.__hidden

    class Derived(Slotted):
        __slots__ = ()

    class Open(Slotted):
        def __init__(self):
            super().__init__()
            self.more = 3

    class Pair(NamedTuple):
        a: int = 1

    class Box(Generic[T]):
        def __init__(self, item: T = 1):
            self.item = item

    class IntBox(Box[int]):
        pass

    class Color(Enum):
        RED = 1

        @property
        def text(self):
            return self.name.lower()

    class Outer:
        class Inner:
            __slots__ = ()

    def inside():
        class Local:
            __slots__ = ("n",)

            def __init__(self):
                self.n = 1
        return Local

    Local = inside()
    kinds = [Point3, Frozen, Slotted, Derived, Open, Pair, Box, IntBox, Outer.Inner, Local]

    def make():
        return [Point(1), Point3(1), *(kind() for kind in kinds[1:]), Color.RED]

    def same(values, word):
        assert [type(value).__qualname__ for value in values] == [
            type(value).__qualname__ for value in make()
        ], values
        return {word: values}
"""


async def test_objects_of_slotted_and_other_classes_come_through(
    script: Script, flow: WorkflowEngine
) -> None:
    s = script(SLOTTED)
    made = await flow.function_task(s.make)()
    again = (await flow.function_task(s.same)(made, "key"))["key"]
    for values in (made, again):
        assert [*map(type, values)] == [s.Point, *s.kinds, s.Color]
        assert values[:3] == [s.Point(1), s.Point3(1), s.Frozen()]
        assert [value.hidden() for value in values[3:6]] == [2, 2, 2]
        assert [hasattr(value, "__dict__") for value in values[:6]] == 5 * [False] + [True]
        assert (values[5].more, values[6].a, values[8].item, values[10].n) == (3, 1, 1, 1)
        assert values[11] is s.Color.RED
        assert values[11].text == "red"


async def test_structs_of_msgspec_come_through(script: Script, flow: WorkflowEngine) -> None:
    json = pytest.importorskip("msgspec").json
    s = script("""
        import msgspec

        class Item(msgspec.Struct):
            a: int
            b: list = []

        class Child(Item, frozen=True, kw_only=True, tag="child", rename="camel"):
            some_name: int
            other: "Item | None" = None

            def twice(self):
                return 2 * self.some_name

        def make():
            return [Item(1), Child(2, some_name=3, other=Item(4))]

        def use(values):
            return values, values[1].twice(), msgspec.json.encode(values), Item(5).b
    """)
    made = await flow.function_task(s.make)()
    again, twice, text, empty = await flow.function_task(s.use)(made)
    assert again == made == s.make()
    assert [*map(type, again)] == [s.Item, s.Child]
    assert (twice, text, empty) == (6, json.encode(made), [])
