"""Functions that return the command of an executable task: when they run, what may go wrong."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend
from tests._support.engine_fixtures import Machine, engine, on_machines
from tests._support.scripted import Scripted, outcome, until

pytestmark = pytest.mark.asyncio


async def built(command: Any) -> Any:
    return command


@on_machines
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_builder_gets_the_values_of_its_dependencies(
    machine: Any, asynchronous: bool
) -> None:
    async with engine(machine()) as flow:

        @flow.function_task
        def number() -> int:
            return 4

        def build(x: int, *, label: str) -> list[str]:
            assert type(x) is int
            return ["echo", label, str(x + 1)]

        async def build_async(x: int, *, label: str) -> list[str]:
            await asyncio.sleep(0)
            return build(x, label=label)

        echo = flow.executable_task(build_async if asynchronous else build)
        assert await echo(number(), label="n") == "n 5\n"


async def test_the_builder_runs_on_the_engines_loop_once_its_dependencies_are_there() -> None:
    backend = Scripted()
    seen: list[Any] = []
    async with engine(backend) as flow:

        @flow.function_task
        async def first() -> Any: ...

        @flow.executable_task
        async def command(x: Any) -> str:
            seen.append((x, asyncio.get_running_loop(), threading.get_ident()))
            return "true"

        @flow.executable_task
        def plain(x: Any) -> str:
            seen.append((x, asyncio.get_running_loop(), threading.get_ident()))
            return "true"

        one = first()
        command(one)
        plain(one)
        given = await backend.given("first")
        assert seen == []
        backend.done(given, "value")
        await backend.given("command")
        await backend.given("plain")
        assert seen == [("value", flow.loop, threading.get_ident())] * 2


async def test_a_slow_builder_delays_no_other_task() -> None:
    gate = asyncio.Event()
    async with engine(Machine()) as flow:

        @flow.executable_task
        async def slow() -> str:
            await gate.wait()
            return "echo slow"

        @flow.executable_task
        def quick() -> str:
            return "echo quick"

        late = slow()
        assert await quick() == "quick\n"
        assert not late.done()
        gate.set()
        assert await late == "slow\n"


async def test_cancelling_a_task_stops_its_builder() -> None:
    stopped = asyncio.Event()
    entered = asyncio.Event()
    async with engine(Machine()) as flow:

        @flow.executable_task
        async def slow() -> str:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return "true"

        future = slow()
        await entered.wait()
        assert future.cancel()
        await stopped.wait()
        await future.ended()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "wrong", [None, "", [], {}, {"cmd": "ls"}, 42, b"ls", ["ls", 1], [None], [""], {"ls"}, object()]
)
async def test_a_builder_that_returns_no_command_fails_its_task(
    wrong: Any, asynchronous: bool
) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        builder: Any = (lambda: built(wrong)) if asynchronous else (lambda: wrong)
        task = flow.executable_task(name="nonsense")(builder)
        error = await outcome(task())
        assert isinstance(error, ValueError)
        assert "nonsense" in str(error)
        assert repr(wrong) in str(error)
        assert backend.tasks == []


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", [KeyError, OSError, SystemExit, asyncio.TimeoutError])
async def test_what_a_builder_raises_is_on_the_future(
    kind: type[BaseException], asynchronous: bool
) -> None:
    raised = kind("mine")
    backend = Scripted()

    def build() -> str:
        raise raised

    async def build_async() -> str:
        await asyncio.sleep(0)
        raise raised

    async with engine(backend) as flow:
        future = flow.executable_task(build_async if asynchronous else build)()
        await asyncio.wait([future])
        assert future.exception() is raised
        assert backend.tasks == []
        await until(lambda: not flow.components)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_builder_that_looks_at_something_cancelled_leaves_no_future_pending(
    asynchronous: bool,
) -> None:
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    gone.cancel()

    async def build_async() -> str:
        return await gone

    async with engine(Machine()) as flow:
        future = flow.executable_task(build_async if asynchronous else gone.result)()
        await asyncio.wait([future])
        assert future.cancelled() or future.exception() is not None
        assert await flow.executable_task(lambda: "echo on")() == "on\n"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_builder_starts_before_its_caller_continues_after_a_wait(
    asynchronous: bool,
) -> None:
    state, seen = {"step": 1}, []

    def build(state: dict[str, int]) -> str:
        seen.append(state["step"])
        return f"echo {state['step']}"

    async def build_async(state: dict[str, int]) -> str:
        async with asyncio.timeout(30):
            command = build(state)
            await asyncio.sleep(0)
        return command

    async def change() -> None:
        await asyncio.sleep(0)
        state["step"] = 2

    async with engine(Machine()) as flow:
        echo = flow.executable_task(build_async if asynchronous else build)
        futures = [echo(state), echo(state)]
        await change()
        assert [await future for future in futures] == ["1\n", "1\n"]
        assert seen == [1, 1]


async def test_one_bad_builder_leaves_the_others_alone() -> None:
    async with engine(Machine()) as flow:

        @flow.executable_task
        def command(number: int) -> str:
            if number == 1:
                raise KeyError(number)
            return f"echo {number}"

        results = await asyncio.gather(*flow.map(command, range(3)), return_exceptions=True)
        assert results[0] == "0\n"
        assert isinstance(results[1], KeyError)
        assert results[2] == "2\n"


async def test_a_builder_runs_again_for_each_attempt_or_keeps_its_command() -> None:
    calls = []
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.executable_task(retries=1)
        def command() -> str:
            calls.append(1)
            return "work"

        future = command()
        backend.failed(await backend.given("command"), OSError("once"))
        second = await backend.given("command", attempt=2)
        assert second["arguments"][-1].endswith("work")
        backend.done(second, "done\n")
        assert await future == "done\n"
        assert len(calls) in (1, 2)


async def test_a_coroutine_that_gave_a_command_leaves_nothing_to_the_collector() -> None:
    async with engine(LocalExecutionBackend()) as flow:

        @flow.executable_task
        async def command() -> str:
            return "true"

        gc.disable()
        try:
            future = command()
            await future
            await future.ended()
            gone = weakref.ref(future)
            del future
            await until(lambda: gone() is None)
        finally:
            gc.enable()
