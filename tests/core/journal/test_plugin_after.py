"""Results of tasks that come after others: they run again if these have run again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests._support.recorded import LOG, broken_off, engine, note, ran

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()


def step_task(flow: WorkflowEngine, **settings: Any) -> Any:
    @flow.function_task(**settings)
    def step(name: str, version: int = 1) -> None:
        note(name)

    return step


async def of_task(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)
    first = step("first", version)
    await step.options(after=[first])("last")


async def of_command(flow: WorkflowEngine, version: int) -> None:
    @flow.executable_task(cwd=".")
    def command(name: str, version: int = 1) -> str:
        return f"echo {name} >> {LOG}; : {version}"

    first = command("first", version)
    await command.options(after=[first])("last")


async def of_chain(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)
    second = step.options(after=[step("first", version)])("second")
    await step.options(after=[second])("last")


async def of_one_of_several(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)
    first = [step("other"), step("first", version), step("another")]
    await step.options(after=first)("last")


async def of_block(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.block
    async def inner() -> None:
        await step("first", version)
        await step("other")

    @flow.block
    async def outer() -> None:
        await inner()

    await step.options(after=[outer()])("last")


async def of_task_in_a_block(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.block
    async def inner() -> None:
        await step("last")

    @flow.block
    async def outer() -> None:
        await inner()

    await outer.options(after=[step("first", version)])()


async def of_blocks_that_call_no_task(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.block
    async def write() -> None:
        await step("first", version)

    @flow.block
    async def barrier(number: int) -> None: ...

    second = barrier.options(after=[write()])(1)
    third = [barrier.options(after=[second])(number) for number in range(2)]
    await step.options(after=third)("last")


async def of_block_that_receives_a_future(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.block
    def barrier(value: object) -> None: ...

    @flow.block
    async def outer(value: object) -> None:
        await step("other")

    @flow.block
    async def last() -> None:
        await step("last")

    second = barrier(outer(step("first", version)))
    await last.options(after=[second])()


async def of_block_in_a_block(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)
    first = step("first", version)

    @flow.block
    async def barrier() -> None: ...

    @flow.block
    async def outer() -> None:
        await barrier.options(after=[first])()

    await step.options(after=[outer()])("last")


async def of_service(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.executable_task(service=True, ready="stdout:(listening)")
    def serve() -> str:
        return "echo listening; exec sleep 60"

    @flow.function_task
    def ask(host: str) -> None:
        note("last")

    await ask(serve.options(after=[step("first", version)])())


WAYS = [
    of_task, of_command, of_chain, of_one_of_several, of_block, of_task_in_a_block,
    of_blocks_that_call_no_task, of_block_that_receives_a_future, of_block_in_a_block, of_service,
]  # fmt: skip


async def of_gathered_tasks(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)
    both = asyncio.gather(step("other"), step("first", version))
    await step.options(after=[both])("last")


async def of_coroutine(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    async def prepare() -> None:
        await step("first", version)

    await step.options(after=[asyncio.create_task(prepare())])("last")


async def of_block_after_gathered_tasks(flow: WorkflowEngine, version: int) -> None:
    step = step_task(flow)

    @flow.block
    async def barrier() -> None: ...

    both = asyncio.gather(step("other"), step("first", version))
    await step.options(after=[barrier.options(after=[both])()])("last")


FUTURES = [of_gathered_tasks, of_coroutine, of_block_after_gathered_tasks]


@pytest.mark.parametrize("program", FUTURES)
async def test_a_task_after_a_future_of_asyncio_runs_in_each_run(
    program: Callable[[WorkflowEngine, int], Awaitable[None]],
) -> None:
    for version, first, last in ((1, 1, 1), (2, 2, 2), (2, 2, 3)):
        async with engine(resume=True) as flow:
            await program(flow, version)
        assert (ran()["first"], ran()["last"]) == (first, last)


@pytest.mark.parametrize("program", WAYS)
async def test_a_task_runs_again_after_one_that_ran_again(
    program: Callable[[WorkflowEngine, int], Awaitable[None]],
) -> None:
    for version, times in ((1, 1), (1, 1), (2, 2), (2, 2)):
        async with engine(resume=True) as flow:
            await program(flow, version)
        assert (ran()["first"], ran()["last"]) == (times, times)


async def test_it_runs_in_a_later_run_if_the_run_in_between_broke_off() -> None:
    async with engine() as flow:
        await of_task(flow, 1)

    async def first_only(flow: WorkflowEngine) -> None:
        await step_task(flow)("first", 2)

    await broken_off(first_only, resume=True)
    async with engine(resume=True) as flow:
        await of_task(flow, 2)
    assert (ran()["first"], ran()["last"]) == (2, 2)


async def test_it_runs_again_although_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    correct = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: correct() + 3600)
        async with engine() as flow:
            await of_block(flow, 1)

    async def first_only(flow: WorkflowEngine) -> None:
        await step_task(flow)("first", 2)

    await broken_off(first_only, resume=True)
    async with engine(resume=True) as flow:
        await of_block(flow, 2)
    assert (ran()["first"], ran()["last"]) == (2, 2)


async def test_a_run_that_broke_off_before_it_does_not_matter() -> None:
    async def first_only(flow: WorkflowEngine) -> None:
        await step_task(flow)("first", 1)

    await broken_off(first_only)
    for _ in range(2):
        async with engine(resume=True) as flow:
            await of_task(flow, 1)
    assert (ran()["first"], ran()["last"]) == (1, 1)


async def test_it_runs_in_each_run_after_a_task_that_is_not_recorded() -> None:
    for times in (1, 2):
        async with engine(resume=True) as flow:
            first = step_task(flow, cache=False)("first")
            await step_task(flow, after=[first])("last")
        assert ran()["last"] == times


async def test_equal_calls_keep_their_results_if_one_of_them_runs_again(
    here: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = f"{tmp_path}{os.sep}elsewhere"  # not watched

    async def results(*values: int) -> list[str]:
        async with engine(resume=True) as flow:

            @flow.function_task
            def write(value: int) -> None:
                (Path(place) / "conf").write_text(f"{value}")

            @flow.executable_task
            async def simulate() -> str:
                return f"cat {place}/c*"

            return [await simulate.options(after=[write(value)])() for value in values]

    for values in ((1, 2, 4), (3, 2, 4), (3, 2, 4), (3, 5, 4), (6, 5, 4)):
        assert await results(*values) == list(map(str, values))


@pytest.mark.parametrize("first_is_recorded", [True, False])
async def test_equal_calls_with_services_that_start_after_different_tasks_keep_their_results(
    here: Path, tmp_path: Path, first_is_recorded: bool
) -> None:
    place = tmp_path / "elsewhere"  # not watched
    place.mkdir()

    async def results(*values: int) -> list[str]:
        found = []
        async with engine(resume=True) as flow:

            @flow.function_task
            def write(value: int) -> None:
                (place / "conf").write_text(f"{value}")

            @flow.executable_task(service=True, ready=r"stdout:(listening-\d+)")
            def serve() -> str:
                return "echo listening-$$; exec sleep 60"

            @flow.executable_task
            async def ask(host: object) -> str:
                return f": {host}; cat {place}/c*"

            for number, value in enumerate(values):
                written = write.options(cache=first_is_recorded or number > 0)(value)
                service = serve.options(after=[written])()
                found.append(await ask(service))
                service.cancel()
        return found

    for values in ((1, 2, 4), (1, 2, 4), (3, 2, 4), (3, 5, 4), (3, 5, 4)):
        assert await results(*values) == list(map(str, values))
