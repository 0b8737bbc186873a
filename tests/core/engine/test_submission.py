"""Calling a task: which arguments it takes, and the future it gives."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    TasksMainStates,
    WorkflowEngine,
)
from tests._support.engine_fixtures import engine
from tests._support.scripted import Scripted, Stubborn, outcome, turns, until, within

pytestmark = pytest.mark.asyncio


def nothing() -> str:
    return ""


def one(x: Any) -> str:
    return ""


def two(x: Any, y: Any) -> str:
    return ""


def three(x: Any, y: Any, z: Any) -> str:
    return ""


def defaulted(x: Any, y: Any = 1) -> str:
    return ""


def positional(x: Any, /, y: Any) -> str:
    return ""


def keyword(*, key: Any, other: Any = None) -> str:
    return ""


def two_keywords(*, key: Any, other: Any) -> str:
    return ""


def everything(x: Any, *rest: Any, key: Any = 1, **more: Any) -> str:
    return ""


async def coroutine(x: Any) -> str:
    return ""


class Owner:
    def method(self, x: Any) -> str:
        return ""

    @classmethod
    def of_class(cls, x: Any) -> str:
        return ""

    @staticmethod
    def static(x: Any) -> str:
        return ""

    def __call__(self, x: Any) -> str:
        return ""


WRONG_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (nothing, (1,), {}),
    (nothing, (), {"x": 1}),
    (one, (), {}),
    (one, (1, 2), {}),
    (one, (1,), {"x": 2}),
    (one, (), {"y": 2}),
    (one, (1,), {"options": 2}),
    (two, (), {}),
    (two, (1,), {}),
    (two, (), {"y": 1}),
    (two, (1, 2, 3), {}),
    (three, (), {}),
    (defaulted, (), {}),
    (defaulted, (1, 2, 3), {}),
    (positional, (), {"x": 1, "y": 2}),
    (positional, (1,), {}),
    (keyword, (), {}),
    (keyword, (1,), {}),
    (keyword, (1,), {"key": 1}),
    (two_keywords, (), {}),
    (everything, (), {}),
    (everything, (1,), {"x": 1}),
    (coroutine, (), {}),
    (coroutine, (1, 2), {}),
    (lambda x: x, (), {}),
    (Owner().method, (), {}),
    (Owner().method, (1, 2), {}),
    (Owner.of_class, (1, 2), {}),
    (Owner.static, (1, 2), {}),
    (Owner(), (), {}),
    (Owner(), (1, 2), {}),
    (functools.partial(two, 1), (), {}),
    (functools.partial(two, 1), (2, 3), {}),
    (functools.partial(two, y=1), (1, 2), {}),
    (functools.partial(Owner().method), (), {}),
]


def words(call: Callable[[], Any]) -> str:
    """Return Python's error for a call with wrong arguments."""
    with pytest.raises(TypeError) as caught:
        call()
    return str(caught.value)


# Wrong arguments.


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
@pytest.mark.parametrize(("function", "args", "kwargs"), WRONG_CALLS)
async def test_wrong_arguments_raise_pythons_error_at_the_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kind: str
) -> None:
    async with engine() as flow:
        task = getattr(flow, kind)(function)
        said = words(lambda: task(*args, **kwargs))
        assert said == words(lambda: function(*args, **kwargs))
        assert words(lambda: task.options(name="x")(*args, **kwargs)) == said


async def test_a_wrong_call_makes_no_task() -> None:
    async with engine() as flow:
        task = flow.function_task(one)
        with pytest.raises(TypeError):
            task(1, 2)
        assert flow.components == {}
        assert flow.stats.tasks == 0
        assert task(1).uid == "task.000001"


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (nothing, (), {}),
        (one, (1,), {}),
        (one, (), {"x": 1}),
        (defaulted, (1,), {}),
        (positional, (1,), {"y": 2}),
        (keyword, (), {"key": 1}),
        (everything, (1, 2, 3), {"key": 1, "self": 2, "function": 3, "args": 4, "kwargs": 5}),
        (Owner().method, (1,), {}),
        (Owner.of_class, (1,), {}),
        (Owner.static, (), {"x": 1}),
        (Owner(), (1,), {}),
        (functools.partial(two, 1), (2,), {}),
        (functools.partial(two, y=1), (2,), {"y": 3}),
        (len, ([],), {}),
        (max, (1, 2), {}),
        (print, ("x",), {"end": ""}),
        (dict, (), {"a": 1}),
    ],
)
async def test_right_arguments_are_taken_and_reach_the_function(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        flow.function_task(name="job")(function)(*args, **kwargs)
        task = await backend.given("job")
        assert (task["args"], task["kwargs"]) == (args, kwargs)


async def test_what_counts_are_the_parameters_of_a_wrapper_and_not_of_what_it_wraps() -> None:
    @functools.wraps(two)
    def with_connection(x: Any) -> str:
        return two(x, "connection")

    backend = Scripted()
    async with engine(backend) as flow:
        task = flow.function_task(with_connection)
        task(1)
        assert (await backend.given("two"))["args"] == (1,)
        with pytest.raises(TypeError):
            task(1, 2)


async def test_arguments_without_futures_are_handed_over_as_they_are() -> None:
    backend = Scripted()
    big = [object()]
    async with engine(backend) as flow:
        flow.function_task(one)(big)
        assert (await backend.given("one"))["args"][0] is big


# The future.


async def test_a_call_gives_a_pending_future_at_once() -> None:
    async with engine(Scripted()) as flow:
        future = flow.function_task(one)(1)
        assert asyncio.isfuture(future)
        assert isinstance(future, asyncio.Future)
        assert not future.done()
        assert future.get_loop() is flow.loop


async def test_a_call_is_registered_before_it_returns() -> None:
    async with engine(Scripted()) as flow:
        future = flow.function_task(one)(1)
        assert flow.components[future.uid]["future"] is future
        assert flow.stats.tasks == 1


async def test_uids_are_counted_for_each_engine() -> None:
    async with engine() as flow, engine() as other:
        function, executable = flow.function_task(one), flow.executable_task(nothing)
        block = flow.block(one)
        futures = [function(1), executable(), function(2), block(3), block(4)]
        assert [future.uid for future in futures] == [
            "task.000001",
            "task.000002",
            "task.000003",
            "block.000001",
            "block.000002",
        ]
        assert [future.id for future in futures][:3] == ["000001", "000002", "000003"]
        assert other.function_task(one)(1).uid == "task.000001"


async def test_a_future_knows_its_name_backend_and_attempt() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(retries=1)(one)(1)
        assert future.name == "one"
        assert future.backend is None
        first = await backend.given("one")
        assert future.backend == "scripted"
        assert future.attempt == 1
        backend.failed(first, OSError())
        second = await backend.given("one", attempt=2)
        assert future.attempt == 2
        assert first["uid"] != second["uid"]
        backend.done(second)
        await future
        assert [future.attempt, future.backend, future.name] == [2, "scripted", "one"]


async def test_the_state_follows_the_work() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        waiting = flow.function_task(two)(future, 1)
        states = [future.state]
        task = await backend.given("one")
        await turns()
        states.append(future.state)
        backend.runs(task)
        states.append(future.state)
        backend.done(task)
        await future
        states.append(future.state)
        assert states == ["PENDING", "SUBMITTED", "RUNNING", "DONE"]
        assert all(isinstance(state, TasksMainStates) for state in states)
        assert waiting.state in ("PENDING", "SUBMITTED")
        backend.failed(await backend.given("two"), OSError())
        assert isinstance(await outcome(waiting), OSError)
        assert waiting.state is TasksMainStates.FAILED


async def test_a_cancelled_task_says_so_at_once() -> None:
    backend = Stubborn()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        task = await backend.given("one")
        backend.runs(task)
        assert future.cancel() is True
        assert future.cancelled()
        assert future.state is TasksMainStates.CANCELED
        backend.stopped(task)


async def test_a_block_has_the_states_too() -> None:
    gate = asyncio.Event()
    async with engine() as flow:

        @flow.block
        async def part() -> None:
            await gate.wait()

        future = part()
        await turns()
        assert future.state == "RUNNING"
        gate.set()
        await future
        assert future.state == "DONE"


async def test_a_task_describes_itself_while_it_is_alive() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        assert future.task is not None
        assert future.task["name"] == "one"
        assert future.block is None
        given = await backend.given("one")
        assert future.task["uid"] == given["uid"]
        assert future.task["args"] == (1,)
        backend.done(given)
        await future
        await future.ended()
        assert future.task is None


async def test_a_description_is_there_to_be_read_only() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        await backend.given("one")
        description: Any = future.task
        with pytest.raises(TypeError):
            description["name"] = "mine"
        with pytest.raises((TypeError, AttributeError)):
            description.clear()
        description = flow.components[future.uid]["description"]
        with pytest.raises(TypeError):
            description["name"] = "mine"


async def test_a_block_describes_itself_while_it_is_alive() -> None:
    gate = asyncio.Event()
    async with engine() as flow:

        @flow.block
        async def part(x: int) -> None:
            await gate.wait()

        future = part(1)
        assert future.task is None
        assert future.block is not None
        assert future.block["name"] == "part"
        await turns()
        assert future.block is not None
        gate.set()
        await future
        await future.ended()
        assert future.block is None


async def test_ended_waits_for_the_work_and_not_for_the_future() -> None:
    backend = Stubborn()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        task = await backend.given("one")
        backend.runs(task)
        future.cancel()
        ended = [asyncio.ensure_future(future.ended()) for _ in range(2)]
        await until(lambda: backend.stops)
        await turns()
        assert [waiter.done() for waiter in ended] == [False, False]
        backend.stopped(task)
        await asyncio.gather(*ended)
        await future.ended()  # again, at once


@pytest.mark.parametrize("way", ["finish", "fail", "cancel"])
async def test_ended_of_a_task_raises_nothing_of_its_fate(way: str) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        task = await backend.given("one")
        if way == "finish":
            backend.done(task)
        elif way == "fail":
            backend.failed(task, OSError("its fate"))
        else:
            future.cancel()
        await future.ended()
        assert future.done()
        if way == "fail":
            assert isinstance(future.exception(), OSError)


async def test_cancelling_who_waits_for_the_end_leaves_the_task_alone() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(one)(1)
        waiter = asyncio.ensure_future(future.ended())
        await turns()
        waiter.cancel()
        backend.done(await backend.given("one"), "result")
        assert await future == "result"


# Where a task can be called.


async def test_a_call_after_the_end_is_an_error_at_once() -> None:
    async with engine() as flow:
        tasks = [flow.function_task(one), flow.executable_task(one), flow.block(one)]
    for task in tasks:
        with pytest.raises(RuntimeError, match="shut down"):
            task(1)


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
async def test_a_call_outside_the_loop_is_an_error_that_says_where(kind: str) -> None:
    async with engine() as flow:
        task = getattr(flow, kind)(one)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="loop"):
                task(1)

        async def other_loop() -> None:
            elsewhere()

        await asyncio.to_thread(elsewhere)
        await asyncio.to_thread(asyncio.run, other_loop())
        assert flow.stats.tasks == 0


async def test_a_call_after_the_loop_was_closed_is_an_error() -> None:
    def elsewhere() -> None:
        async def main() -> Any:
            async with WorkflowEngine.create("noop", handle_signals=False) as flow:
                return flow.function_task(one)

        task = asyncio.run(main())
        with pytest.raises(RuntimeError):
            task(1)

    await asyncio.to_thread(elsewhere)


async def test_a_decorated_method_is_called_with_its_object() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        class Model:
            @flow.function_task
            def fit(self, x: int) -> Any:
                """Fits it."""

        model = Model()
        model.fit(3)
        assert (await backend.given("fit"))["args"] == (model, 3)
        special = model.fit.options(name="special")
        assert special(4).name == "special"
        assert (await backend.given("special"))["args"] == (model, 4)
        assert words(lambda: model.fit()) == (
            f"{Model.__qualname__}.fit() missing 1 required positional argument: 'x'"
        )
        assert model.fit.__name__ == "fit"
        assert model.fit.__doc__ == "Fits it."
        assert list(inspect.signature(model.fit).parameters) == ["x"]
        assert len(flow.map(model.fit, range(3))) == 3
        Model.fit(model, 5)


async def test_two_engines_on_one_backend_do_not_mix_their_uids() -> None:
    async with (
        Scripted() as backend,
        WorkflowEngine.create(backend) as one,
        WorkflowEngine.create(backend) as two,
    ):
        futures = []
        for flow, label in ((one, "one"), (two, "two")):

            @flow.function_task
            def part(label: str, number: int) -> Any: ...

            futures += [part(label, number) for number in range(20)]
        tasks = [await backend.next() for _ in futures]
        assert len({task["uid"] for task in tasks}) == 40
        for task in reversed(tasks):
            backend.done(task, "{} {}".format(*task["args"]))
        expected = [f"{label} {number}" for label in ("one", "two") for number in range(20)]
        assert await within(asyncio.gather(*futures)) == expected
        assert (futures[0].uid, futures[20].uid) == ("task.000001", "task.000001")
        assert (one.stats.unknown, two.stats.unknown) == (0, 0)
        await one.shutdown(skip_execution_backend=True)


async def test_a_call_has_all_keys_of_a_description_from_the_beginning(tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path) as flow:
        gate: asyncio.Future[str] = flow.loop.create_future()
        future = flow.executable_task(lambda text: f"echo {text}")(gate)
        assert future.task is not None
        assert future.task["executable"] is None
        assert not future.task["metadata"]["dependencies"]
        gate.set_result("x")
        assert await future == "x\n"
