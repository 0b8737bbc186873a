"""Function tasks: all kinds of callables, and `current_task()` inside them."""

from __future__ import annotations

import asyncio
import functools
import operator
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, current_task
from rhapsody.context import TaskContext
from tests._support.engine_fixtures import (
    Machine,
    engine,
    local_processes,
    local_threads,
    on_machines,
)
from tests._support.scripted import outcome

pytestmark = pytest.mark.asyncio


def double(x: int) -> int:
    return 2 * x


async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


class Doubler:
    factor = 2

    def method(self, x: int) -> int:
        return self.factor * x

    async def method_async(self, x: int) -> int:
        return self.factor * x

    @classmethod
    def of_class(cls, x: int) -> int:
        return cls.factor * x

    @staticmethod
    def static(x: int) -> int:
        return 2 * x

    def __call__(self, x: int) -> int:
        return self.factor * x


class AsyncDoubler:
    async def __call__(self, x: int) -> int:
        return 2 * x


def closure(factor: int) -> Callable[[int], int]:
    return lambda x: factor * x


def closure_async(factor: int) -> Callable[[int], Any]:
    async def times(x: int) -> int:
        return factor * x

    return times


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sync": double,
    "async": double_async,
    "lambda": lambda x: 2 * x,
    "closure": closure(2),
    "async closure": closure_async(2),
    "method": Doubler().method,
    "async method": Doubler().method_async,
    "class method": Doubler.of_class,
    "static method": Doubler.static,
    "callable object": Doubler(),
    "async callable object": AsyncDoubler(),
    "partial": functools.partial(operator.mul, 2),
    "partial of async": functools.partial(double_async),
    "partial of a partial of a method": functools.partial(functools.partial(Doubler().method)),
    "builtin": (2).__mul__,
}


@on_machines
@pytest.mark.parametrize("kind", FUNCTIONS)
async def test_whatever_can_be_called_is_a_task(machine: Any, kind: str) -> None:
    async with engine(machine()) as flow:
        task = flow.function_task(FUNCTIONS[kind])
        assert await task(task(5)) == 20


async def test_functions_run_in_processes_as_well() -> None:
    async with engine(local_processes()) as flow:
        tasks = [flow.function_task(function) for function in FUNCTIONS.values()]
        futures = [task(task(5)) for task in tasks]
        assert await asyncio.gather(*futures) == [20] * len(tasks)


@pytest.mark.parametrize("make", [local_threads, local_processes])
async def test_a_plain_wrapper_around_a_coroutine_function_is_awaited(make: Any) -> None:
    @functools.wraps(double_async)
    def wrapped(x: int) -> Any:
        return double_async(x)

    async with engine(make()) as flow:
        assert await flow.function_task(wrapped)(4) == 8


@on_machines
async def test_a_result_may_be_none_or_an_exception_object(machine: Any) -> None:
    async with engine(machine()) as flow:
        nothing: Any = flow.function_task(lambda: None)
        error = flow.function_task(lambda: ValueError("just a value"))
        assert await nothing() is None
        assert isinstance(await error(), ValueError)


@on_machines
async def test_the_functions_own_exception_is_raised(machine: Any) -> None:
    class OwnError(Exception):
        pass

    def fail(x: int) -> None:
        raise OwnError("mine", x)

    async def fail_async(x: int) -> None:
        raise OwnError("mine", x)

    async with engine(machine()) as flow:
        for function in (fail, fail_async):
            error = await outcome(flow.function_task(function)(3))
            assert type(error) is OwnError
            assert error.args == ("mine", 3)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@on_machines
async def test_a_task_that_leaves_does_not_take_the_program_with_it(
    machine: Any, error: BaseException
) -> None:
    def leave() -> None:
        raise error

    async with engine(machine()) as flow:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - of whatever type
            await flow.function_task(leave)()
        assert not isinstance(caught.value, asyncio.TimeoutError)
        assert await flow.function_task(double)(1) == 2


@on_machines
async def test_a_sync_function_does_not_hold_the_loop(machine: Any) -> None:
    gate, entered = threading.Event(), threading.Event()

    def hold() -> int:
        entered.set()
        assert gate.wait(20)
        return threading.get_ident()

    async with engine(machine()) as flow:
        future = flow.function_task(hold)()
        await asyncio.to_thread(entered.wait, 20)
        assert not future.done()
        gate.set()
        assert await future != threading.get_ident()


# `current_task()`.


@on_machines
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_task_knows_which_it_is(machine: Any, asynchronous: bool) -> None:
    def look() -> TaskContext:
        return current_task()

    async def look_async() -> TaskContext:
        await asyncio.sleep(0)
        return current_task()

    async with engine(machine(), uid="mine") as flow:
        either: Any = look_async if asynchronous else look
        task = flow.function_task(name="looker")(either)
        here = await task()
        assert here.uid == "mine.task.000001.1"
        assert here.name == "looker"
        assert here.attempt == 1
        assert here.deadline is None
        assert here.cancelled is False
        assert (await task()).uid == "mine.task.000002.1"


@on_machines
async def test_tasks_that_run_at_once_know_themselves(machine: Any) -> None:
    inside = []

    async def look(number: int) -> tuple[int, str]:
        inside.append(number)
        while len(inside) < 2:  # noqa: ASYNC110 - the two may be on loops of their own
            await asyncio.sleep(0.001)
        return number, current_task().uid

    async with engine(machine(), uid="mine") as flow:
        task = flow.function_task(resources={"cores": 0})(look)
        found = list(await asyncio.gather(task(1), task(2)))
    assert found == [(1, "mine.task.000001.1"), (2, "mine.task.000002.1")]


@on_machines
async def test_each_attempt_knows_its_number(machine: Any) -> None:
    seen: list[tuple[int, str]] = []

    def look() -> None:
        here = current_task()
        seen.append((here.attempt, here.uid))
        if here.attempt == 1:
            raise OSError("once more")

    async with engine(machine(), uid="mine", retries=1) as flow:
        await flow.function_task(look)()
    assert seen == [(1, "mine.task.000001.1"), (2, "mine.task.000001.2")]


@on_machines
async def test_a_task_with_a_timeout_knows_its_deadline(machine: Any) -> None:
    def look() -> tuple[float | None, float]:
        return current_task().deadline, time.time()

    async with engine(machine()) as flow:
        deadline, now = await flow.function_task(timeout=1000)(look)()
        assert deadline is not None
        assert now < deadline <= now + 1000


async def test_a_cancelled_function_can_see_it_and_stop() -> None:
    entered = threading.Event()
    left = []

    def work() -> None:
        entered.set()
        end = time.monotonic() + 20
        while not current_task().cancelled and time.monotonic() < end:
            time.sleep(0.001)
        left.append(current_task().cancelled)

    async with engine(local_threads()) as flow:
        future = flow.function_task(work)()
        await asyncio.to_thread(entered.wait, 20)
        future.cancel()
        await future.ended()
        assert left == [True]


async def test_outside_a_task_there_is_none() -> None:
    with pytest.raises(RuntimeError, match=r"current_task\(\) was called outside a task"):
        current_task()


async def test_a_block_and_a_command_builder_are_no_tasks_on_a_backend() -> None:
    async with engine() as flow:

        @flow.block
        async def part() -> None:
            current_task()

        assert isinstance(await outcome(part()), RuntimeError)


@on_machines
async def test_a_task_that_writes_files_knows_its_sandbox(machine: Any) -> None:
    def look(_: InputFile) -> str | None:
        return current_task().sandbox

    def write(file: OutputFile) -> str | None:
        Path(str(file)).write_text("x")
        return current_task().sandbox

    Path("data.txt").write_text("x")  # noqa: ASYNC240 - it is a small one
    async with engine(machine(), work_dir="work") as flow:
        assert await flow.function_task(look)(InputFile("data.txt")) is None
        future = flow.function_task(write)(OutputFile("out.txt"))
        sandbox = await future
        assert sandbox is not None
        assert os.path.isabs(sandbox)
        assert os.path.dirname(sandbox) == os.path.abspath("work")  # noqa: ASYNC240
        assert sandbox == future.sandbox


# What it prints.


@pytest.mark.parametrize("make", [local_threads, local_processes])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_function_prints_is_kept_with_it(make: Any, asynchronous: bool) -> None:
    import sys

    def talk(word: str) -> str:
        print("out", word)
        print("err", word, file=sys.stderr)
        return word

    async def talk_async(word: str) -> str:
        await asyncio.sleep(0)
        return talk(word)

    backend = make()
    if not backend.capabilities.captures_output:
        pytest.skip(f"{make.__name__} does not capture output, and says so")
    async with engine(backend) as flow:
        task = flow.function_task(talk_async if asynchronous else talk)
        futures = flow.map(task, ["a", "b", "c"])
        assert await asyncio.gather(*futures) == ["a", "b", "c"]
        assert [future.stdout for future in futures] == ["out a\n", "out b\n", "out c\n"]
        assert [future.stderr for future in futures] == ["err a\n", "err b\n", "err c\n"]


@pytest.mark.parametrize("make", [local_threads, local_processes])
async def test_what_a_function_prints_can_go_to_files_in_its_sandbox(make: Any) -> None:
    def talk() -> str:
        print("to the file")
        return "result"

    async with engine(make(), work_dir="work") as flow:
        future = flow.function_task(capture="files")(talk)()
        assert await future == "result"
        assert future.sandbox is not None
        assert os.path.dirname(str(future.stdout)) == future.sandbox
        assert Path(str(future.stdout)).read_text() == "to the file\n"  # noqa: ASYNC240
    assert set(os.listdir(".")) <= {"work"}


@pytest.mark.parametrize("make", [local_threads, local_processes])
async def test_of_what_a_function_prints_nothing_is_lost_where_it_is_much(make: Any) -> None:
    lines = 40

    def talk() -> None:
        for _ in range(lines):
            print("x" * 50_000)

    async with engine(make(), work_dir="work") as flow:
        future = flow.function_task(talk)()
        await future
        assert future.stdout is not None
        kept = [future.stdout]
        if future.sandbox is not None:
            files = Path(future.sandbox).rglob("*stdout*")  # noqa: ASYNC240 - a few
            kept += [path.read_text() for path in files]
        kept_lines = [text.count("\n") for text in kept]
        assert lines in kept_lines


async def test_what_a_failed_function_printed_is_kept_too() -> None:
    def talk() -> None:
        print("before")
        raise ValueError("then")

    async with engine(local_threads()) as flow:
        future = flow.function_task(talk)()
        assert isinstance(await outcome(future), ValueError)
        assert future.stdout == "before\n"


async def test_a_machine_without_capture_says_nothing() -> None:
    async with engine(Machine()) as flow:
        future = flow.function_task(double)(1)
        await future
        assert (future.stdout, future.stderr, future.exit_code) == (None, None, None)
