"""Resources that depend on the number of the attempt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, Resources, WorkflowEngine, current_task
from rhapsody.errors import CapabilityError
from tests._support.scripted import RUNS_ALL, Inline, Scripted, outcome, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.mark.parametrize("kind", [dict, Resources])
async def test_each_attempt_gets_what_the_callable_says_for_it(kind: Any) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=2)
        def part() -> Any: ...

        future = part.options(resources=lambda attempt: kind(memory=f"{2**attempt} GiB"))()
        asked = []
        for _ in range(3):
            task = await backend.next()
            asked.append(task["resources"])
            if len(asked) < 3:
                backend.failed(task, MemoryError())
        backend.done(task, 42)
        assert await within(future) == 42
    assert asked == [Resources(memory=size * 2**30) for size in (2, 4, 8)]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (None, TypeError, r"expected a Resources or a dict such as .*, got None"),
        ("much", TypeError, r"resources must be a Resources or a dict .*, got 'much'"),
        ({"mem": 1}, TypeError, r"unknown name 'mem'; valid names: .*; did you mean 'memory'\?"),
        ({"memory": "lots"}, ValueError, r"memory must look like '500 MB' .*, got 'lots'"),
        ({"cores": -1}, ValueError, r"cores must be at least 0, got -1"),
    ],
)
async def test_an_answer_that_is_none_names_the_task_and_what_is_accepted(
    answer: Any, kind: type[Exception], said: str
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        given: dict[str, Any] = {"resources": lambda attempt: {} if attempt == 1 else answer}
        future = flow.function_task(retries=5, name="part", **given)(lambda: None)()
        backend.failed(await backend.next(), MemoryError())
        whose = r"the resources of task 'part' \(task.000001\) for attempt 2: .*"
        with pytest.raises(kind, match=whose + said):
            await within(future)
        assert len(backend.tasks) == 1


async def test_a_callable_that_raises_fails_its_task_alone() -> None:
    def ask(attempt: int) -> Resources:
        raise LookupError("no idea")

    async with WorkflowEngine.create(Inline()) as flow:
        task = flow.function_task(name="part")(lambda: 1)
        other = task()
        error = await outcome(task.options(resources=ask, retries=3)())
        assert isinstance(error, LookupError)
        assert "raised by the resources of task 'part' (task.000002) for att" in error.__notes__[0]
        assert await within(task.options(resources=ask, fallback=2)()) == 2
        assert await within(other) == 1


async def test_what_an_attempt_asks_for_is_held_against_the_backend_each_time() -> None:
    plain = dataclasses.replace(RUNS_ALL, resources=frozenset({"cores"}))
    async with WorkflowEngine.create(backend := Scripted(capabilities=plain)) as flow:

        def ask(attempt: int) -> dict[str, Any]:
            return {"cores": 2} if attempt == 1 else {"gpus": 1}

        future = flow.function_task(retries=5, name="part", resources=ask)(lambda: None)()
        backend.failed(await backend.next(), OSError())
        with pytest.raises(CapabilityError, match="does not support gpus=1"):
            await within(future)


async def test_a_fraction_of_a_core_is_refused_where_the_backend_hands_out_whole_cores() -> None:
    whole = dataclasses.replace(RUNS_ALL, resources=frozenset({"cores"}))
    async with WorkflowEngine.create(backend := Scripted(capabilities=whole)) as flow:
        task = flow.function_task(name="part")(int)
        with pytest.raises(
            CapabilityError, match=r"does not support fractional cores \(cores=1\.5\)"
        ):
            await within(task.options(resources={"cores": 1.5})())
        two = task.options(resources={"cores": 2.0})()
        backend.done(await backend.next(), 2)
        assert await within(two) == 2


async def test_a_request_above_the_backends_limit_is_refused() -> None:
    backend = LocalExecutionBackend(resources={"memory": "3 GiB"})
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task(retries=1, resources=lambda attempt: {"memory": f"{2**attempt} GiB"})
        def part() -> None:
            raise MemoryError

        future = part()
        with pytest.raises(CapabilityError, match="task 'part' does not fit on this machine"):
            await within(future)
        assert future.attempt == 2


async def test_what_is_neither_is_refused_where_it_is_written() -> None:
    async def ask(attempt: int) -> Resources:
        return Resources()

    async with WorkflowEngine.create(Inline()) as flow:
        for wrong, said in (
            (ask, "a synchronous function that returns either"),
            (Resources, "got <cl"),
        ):
            given: dict[str, Any] = {"resources": wrong}
            with pytest.raises(TypeError, match=said):
                flow.function_task(**given)(lambda: None)


async def test_a_result_is_found_again_whatever_resources_its_attempts_had(here: Path) -> None:
    async def run(memory: int) -> tuple[int, int]:
        options: Any = {"journal": "run.sqlite", "resume": True}
        async with WorkflowEngine.create(**options) as flow:

            @flow.function_task(retries=2, resources=lambda n: {"memory": f"{n * memory} MB"})
            def part(path: str) -> int:
                number = current_task().attempt
                with open(f"{path}/ran", "a") as log:
                    log.write("x")
                if number < 2:
                    raise MemoryError
                return number

            return await within(part(str(here))), flow.stats.recorded

    assert await run(10) == (2, 0)
    assert await run(20) == (2, 1)
    assert (here / "ran").read_text() == "xx"
