"""Closures of decorated functions: calls use the values that variables have at the call."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests._support.engine_fixtures import engine, local_processes, local_threads
from tests._support.recorded import broken_off, note, ran

pytestmark = pytest.mark.asyncio

SAMPLES = ["s1", "s2", "s3"]

on_threads_and_processes = pytest.mark.parametrize("backend", [local_threads, local_processes])


def plain() -> None:
    """A function without a closure."""


async def of_functions(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.function_task
        def name() -> str:
            return sample  # noqa: B023 - the loop's variable is the subject

        calls.append(name())
    return await asyncio.gather(*calls)


async def of_coroutines(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.function_task
        async def name() -> str:
            await asyncio.sleep(0)
            return sample  # noqa: B023

        calls.append(name())
    return await asyncio.gather(*calls)


async def of_lambdas(flow: WorkflowEngine) -> Any:
    calls = [flow.function_task(lambda: sample)() for sample in SAMPLES]  # noqa: B023
    return await asyncio.gather(*calls)


async def of_one_function_called_in_a_loop(flow: WorkflowEngine) -> Any:
    @flow.function_task
    def name() -> str:
        return sample

    calls = []
    for sample in SAMPLES:  # noqa: B007 - the function reads it
        calls += [name(), name()]
    return (await asyncio.gather(*calls))[::2]


async def of_helpers(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        def innermost() -> str:
            return sample  # noqa: B023

        def helper() -> str:
            return innermost()

        @flow.function_task
        def name() -> str:
            return helper()

        calls.append(name())
    return await asyncio.gather(*calls)


async def of_partials(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        def joined(end: str) -> str:
            return sample + end  # noqa: B023

        calls.append(flow.function_task(functools.partial(joined, ""))())
    return await asyncio.gather(*calls)


async def of_methods(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        class Sample:
            def name(self) -> str:
                return sample  # noqa: B023

        calls.append(flow.function_task(Sample().name)())
    return await asyncio.gather(*calls)


async def of_commands(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.executable_task
        def name() -> str:
            return f"printf %s {sample}"  # noqa: B023

        calls.append(name())
    return await asyncio.gather(*calls)


async def of_commands_from_coroutines(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.executable_task
        async def name() -> list[str]:
            await asyncio.sleep(0)
            return ["printf", "%s", sample]  # noqa: B023

        calls.append(name())
    return await asyncio.gather(*calls)


async def of_blocks(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.block
        async def name() -> str:
            await asyncio.sleep(0)
            return sample  # noqa: B023

        @flow.block
        def again() -> str:
            return sample  # noqa: B023

        calls += [name(), again()]
    found = await asyncio.gather(*calls)
    assert found[::2] == found[1::2]
    return found[::2]


async def of_tasks_that_blocks_call(flow: WorkflowEngine) -> Any:
    calls = []
    for sample in SAMPLES:

        @flow.function_task
        def task() -> str:
            return sample  # noqa: B023

        @flow.block
        async def name() -> str:
            return await task()

        calls.append(name())
    return await asyncio.gather(*calls)


@on_threads_and_processes
@pytest.mark.parametrize(
    "names",
    [
        of_functions,
        of_coroutines,
        of_lambdas,
        of_one_function_called_in_a_loop,
        of_helpers,
        of_partials,
        of_methods,
        of_commands,
        of_commands_from_coroutines,
        of_blocks,
        of_tasks_that_blocks_call,
    ],
)
async def test_each_call_in_a_loop_uses_its_own_variables(names: Any, backend: Any) -> None:
    async with engine(backend()) as flow:
        assert await names(flow) == SAMPLES


async def test_a_call_that_waits_for_another_task_uses_the_values_at_the_call() -> None:
    async with engine(local_threads()) as flow:
        after = asyncio.get_running_loop().create_future()
        unit = "m"

        @flow.function_task
        def shown(value: Any) -> str:
            return f"{value} {unit}"

        call = shown(after)
        unit = "km"
        after.set_result(3)
        assert await call == "3 m"
        assert await shown(4) == "4 km"


async def test_retries_use_the_values_at_the_call() -> None:
    async with engine(local_threads()) as flow:
        seen: list[str] = []
        failed = asyncio.get_running_loop().create_future()
        word = "first"

        @flow.function_task(retries=1)
        async def attempt() -> str:
            seen.append(word)
            if len(seen) == 1:
                failed.get_loop().call_soon_threadsafe(failed.set_result, None)
                raise ValueError(word)
            return word

        call = attempt()
        await failed
        word = "second"
        assert await call == "first"
        assert seen == ["first", "first"]


async def test_variables_that_functions_assign_are_shared() -> None:
    async with engine(local_threads()) as flow:
        count = total = 0

        def add(number: int) -> None:
            nonlocal total
            total += number

        for number in (1, 2, 3):

            @flow.function_task
            def task() -> None:
                nonlocal count
                count += 1
                add(number)  # noqa: B023

            await task()
        assert (count, total) == (3, 6)


async def test_attributes_that_helpers_assign_are_shared() -> None:
    async with engine(local_threads()) as flow:
        step = 2

        def helper() -> None:
            helper.calls += step  # type: ignore[attr-defined]

        helper.calls = 0  # type: ignore[attr-defined]

        @flow.function_task
        def task() -> None:
            helper()

        await task()
        step = 3
        await task()
        assert helper.calls == 5  # type: ignore[attr-defined]


async def test_recursive_helpers_and_blocks() -> None:
    async with engine(local_threads()) as flow:
        step = 1

        def factorial(n: int) -> int:
            return 1 if n < step else n * factorial(n - step)

        @flow.function_task
        def task(n: int) -> int:
            return factorial(n)

        @flow.block
        async def fibonacci(n: int) -> int:
            if n < 2:
                return n
            return sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))

        assert await task(5) == 120
        assert await fibonacci(7) == 13


async def test_variables_that_are_assigned_after_the_call() -> None:
    async with engine(local_threads()) as flow:

        @flow.block
        async def even(n: int) -> bool:
            return n == 0 or await odd(n - 1)

        call = even(5)

        @flow.block
        async def odd(n: int) -> bool:
            return n != 0 and await even(n - 1)

        assert await call is False
        assert await even(4) is True


async def test_objects_in_the_closure_are_not_copied() -> None:
    async with engine(local_threads()) as flow:
        found: list[int] = []

        @flow.function_task
        def task(x: int) -> None:
            found.append(x)

        await asyncio.gather(task(1), task(2))
        assert sorted(found) == [1, 2]


async def test_functions_without_closure_are_not_copied() -> None:
    async with engine(local_threads()) as flow:
        given = 1

        def around() -> int:
            return given

        assert not flow.function_task(plain).has_closure
        task = flow.function_task(around)
        assert task.has_closure
        first = task.at_call()
        assert task.at_call() is first  # as long as nothing was assigned
        given = 2
        assert task.at_call() is not first


@pytest.mark.usefixtures("here")
async def test_a_run_that_resumes_finds_the_results_of_a_loop() -> None:
    async def program(flow: WorkflowEngine) -> Any:
        cache: dict[str, str] = {}
        calls = []
        for sample in SAMPLES:

            def helper(sample: str = sample) -> str:
                return sample

            @flow.function_task
            def name() -> str:
                note(sample)  # noqa: B023
                if sample not in cache:  # noqa: B023
                    cache[sample] = helper()  # noqa: B023
                return sample  # noqa: B023

            calls.append(name())
            if sample == "s1":
                await calls[0]  # the next functions find the cache filled
        return await asyncio.gather(*calls)

    assert await broken_off(program) == SAMPLES
    assert await broken_off(program) == SAMPLES
    assert ran() == dict.fromkeys(SAMPLES, 1)
