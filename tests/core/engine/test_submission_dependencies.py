"""Dependencies on foreign futures, `after`, and the calls that a backend receives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import DependencyFailureError, InputFile
from tests._support.engine_fixtures import Machine, engine, tools
from tests._support.scripted import Scripted, outcome, turns

pytestmark = pytest.mark.asyncio


# Other futures.


async def test_a_plain_asyncio_future_is_waited_for() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def job(x: Any) -> Any: ...

        plain: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future = job([plain])
        await turns()
        assert backend.tasks == []
        plain.set_result("value")
        task = await backend.given("job")
        assert task["args"] == (["value"],)
        backend.done(task, "end")
        assert await future == "end"


async def test_an_asyncio_task_is_waited_for_and_so_is_a_gathering() -> None:
    async def compute(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async with engine(Machine()) as flow:
        give, take = tools(flow)
        task = asyncio.create_task(compute(1))
        both = asyncio.gather(compute(2), give(5))
        assert await take(task, both) == (2, [3, 5])


async def test_what_a_plain_future_failed_with_is_the_root_cause() -> None:
    async def fail() -> None:
        raise KeyError("outside")

    async with engine(Machine()) as flow:
        _, take = tools(flow)
        error = await outcome(take(asyncio.create_task(fail(), name="my outside task")))
        assert isinstance(error, DependencyFailureError)
        assert isinstance(error.root_cause, KeyError)
        assert error.__cause__ is error.root_cause
        assert len(error.failed_dependencies) == 1


async def test_a_cancelled_plain_future_cancels_its_dependents() -> None:
    async with engine(Machine()) as flow:
        _, take = tools(flow)
        plain: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future = take(plain)
        plain.cancel()
        await asyncio.wait([future])
        assert future.cancelled()
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        done.cancel()
        late = take(done)
        await asyncio.wait([late])
        assert late.cancelled()


async def test_cancelling_a_task_leaves_the_plain_future_it_waited_for_alone() -> None:
    async with engine(Machine()) as flow:
        _, take = tools(flow)
        plain: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future = take(plain)
        future.cancel()
        await asyncio.wait([future])
        assert not plain.done()
        plain.set_result("mine")
        await turns()


async def test_another_engines_future_is_a_dependency() -> None:
    backend = Scripted("one")
    async with engine(backend) as one, engine(Machine()) as two:

        @one.function_task
        def first() -> Any: ...

        give, take = tools(two)
        future = take(first(), give(2))
        await turns()
        assert not future.done()
        backend.done(await backend.given("first"), 1)
        assert await future == (1, 2)


async def test_another_engines_failure_is_reported_with_its_name() -> None:
    async with engine(Machine()) as one, engine(Machine()) as two:

        @one.function_task(name="theirs")
        def first() -> None:
            raise KeyError("x")

        _, take = tools(two)
        error = await outcome(take(first()))
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ["theirs"]


async def test_a_future_of_another_loop_is_an_error_at_the_call() -> None:
    def make() -> tuple[asyncio.AbstractEventLoop, asyncio.Future[int]]:
        loop = asyncio.new_event_loop()
        return loop, loop.create_future()

    loop, foreign = make()
    async with engine() as flow:
        _, take = tools(flow)
        for arguments in ((foreign,), ([{"a": foreign}],)):
            with pytest.raises((ValueError, RuntimeError), match="loop"):
                take(*arguments)
        with pytest.raises((ValueError, RuntimeError), match="loop"):
            take.options(after=[foreign])(1)
        assert flow.components == {}
    loop.close()


async def test_a_finished_future_of_another_loop_is_an_error_too() -> None:
    loop = asyncio.new_event_loop()
    foreign = loop.create_future()
    foreign.set_result(1)
    async with engine() as flow:
        _, take = tools(flow)
        with pytest.raises((ValueError, RuntimeError), match="loop"):
            take(foreign)
    loop.close()


# after.


async def test_after_orders_without_passing_a_value() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def first() -> Any: ...

        @flow.function_task
        def second(x: int) -> Any: ...

        plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        one = first()
        last = second.options(after=[one, plain])(3)
        assert flow.dependencies[last.uid][0]["uid"] == "task.000001"
        backend.done(await backend.given("first"), "unused")
        await one
        await turns()
        assert backend.names() == ["first"]
        plain.set_result(0)
        assert (await backend.given("second"))["args"] == (3,)


@pytest.mark.parametrize("make", [list, tuple, set, iter])
async def test_after_takes_any_iterable_of_futures(make: Any) -> None:
    async with engine(Machine()) as flow:
        give, take = tools(flow)
        later = take.options(after=make([give(1), give(2)]))
        assert await later(3) == 3
        assert await later(4) == 4


async def test_a_failure_before_is_a_failed_dependency() -> None:
    async with engine(Machine()) as flow:
        _, take = tools(flow)

        @flow.function_task
        def fail() -> None:
            raise KeyError("x")

        error = await outcome(take.options(after=[fail()])(1))
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ["fail"]


# The calls that a backend receives.


async def test_the_backend_receives_the_dependencies_of_the_task() -> None:
    backend = Scripted()
    async with engine(backend, uid="mine") as flow:

        @flow.function_task
        def first() -> Any: ...

        @flow.function_task(retries=1)
        def flaky() -> Any: ...

        @flow.function_task
        def last(*args: Any) -> Any: ...

        last(first(), [flaky()])
        backend.done(await backend.given("first"), 1)
        backend.failed(await backend.given("flaky"), OSError())
        backend.done(await backend.given("flaky", attempt=2), 2)
        task = await backend.given("last")
        assert task["metadata"]["dependencies"] == ["mine.task.000001.1", "mine.task.000002.2"]
        assert task["args"] == (1, [2])


async def test_a_name_alone_makes_no_dependency() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def job(x: Any) -> Any: ...

        future = job(InputFile("nobody-makes-this.txt"))
        assert flow.dependencies[future.uid] == ()
        future.cancel()
