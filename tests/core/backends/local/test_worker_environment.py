"""Environment variables of calls in one worker process."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.backends.local.worker import CallVariables
from rhapsody.sdk.runner import Environment
from rhapsody_testing import Driver

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest_asyncio.fixture
async def driver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
    """A driver of a backend with one worker process, which makes all calls."""
    monkeypatch.setenv("THEIRS", "of the program")
    size = {"workers": 1}
    async with (
        LocalExecutionBackend("process", resources=size) as backend,
        Driver(backend) as driver,
    ):
        yield driver


def look(*change: Callable[[], object]) -> tuple[str | None, ...]:
    found = tuple(map(os.environ.get, ("MINE", "THEIRS", "OMP_NUM_THREADS")))
    for function in change:
        function()
    return found


def changed() -> None:
    os.environ.pop("MINE", None)
    os.environ.update(THEIRS="changed", OMP_NUM_THREADS="7")


def replaced() -> None:
    os.environ = os.environ.copy()  # type: ignore[assignment]  # noqa: B003 - it is the fault


def environment_of_programs() -> tuple[str | None, ...]:
    lines = subprocess.check_output(["env"], text=True).splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return tuple(map(found.get, ("MINE", "THEIRS", "OMP_NUM_THREADS")))


async def values(driver: Driver, *calls: tuple[dict[str, str], Any]) -> list[Any]:
    """Return the values of calls with some variables, made one after the other."""
    tasks = []
    for variables, (function, *arguments) in calls:
        tasks.append(driver.call(function, *arguments))
        if variables:
            tasks[-1]["environment"] = variables
    return [end.value for end in await driver.run(*tasks)]


OWN = {"MINE": "x", "THEIRS": "y"}


@pytest.mark.parametrize("change", [changed, replaced])
async def test_a_call_sees_no_variables_of_the_call_before(
    driver: Driver, change: Callable[[], object]
) -> None:
    with_own, without = ("x", "y", "1"), (None, "of the program", "1")
    found = await values(
        driver, (OWN, (look, change)), (OWN, (look, change)), ({}, (look,)), ({}, (look,)),
        (OWN, (look, change)), ({"MINE": "z"}, (look,)), ({}, (look,)),
    )  # fmt: skip
    other = ("z", "of the program", "1")
    assert found == [with_own, with_own, without, without, with_own, other, without]


async def test_programs_see_no_variables_of_the_call_before(driver: Driver) -> None:
    def change() -> None:  # as code in C does
        os.putenv("MINE", "changed")
        os.unsetenv("OMP_NUM_THREADS")

    found = await values(
        driver, (OWN, (look, change)), (OWN, (environment_of_programs,)), (OWN, (look, change)),
        ({}, (environment_of_programs,)),
    )  # fmt: skip
    assert found[1::2] == [("x", "y", "1"), (None, "of the program", "1")]


async def test_other_variables_that_a_call_sets_persist(driver: Driver) -> None:
    def change() -> None:
        os.environ["MINE"] = "kept"

    found = await values(driver, ({}, (look, change)), ({}, (look,)), (OWN, (look,)), ({}, (look,)))
    assert [mine for mine, *_ in found] == [None, "kept", "x", "kept"]


async def test_variables_that_cannot_be_set_fail_only_their_call(driver: Driver) -> None:
    tasks = [driver.call(look) for _ in range(4)]
    tasks[1]["environment"] = {"MINE": "x", "WRONG=NAME": "y"}
    ends = await driver.run(*tasks)
    assert [end.state for end in ends] == ["DONE", "FAILED", "DONE", "DONE"]
    assert {ends[index].value for index in (0, 2, 3)} == {(None, "of the program", "1")}


async def test_random_calls_see_the_variables_that_they_would_see_without_other_calls() -> None:
    names = ("RHAPSODY_A", "RHAPSODY_B", "RHAPSODY_C")

    def seen(seed: int, enter: Callable[[Mapping[str, str]], AbstractContextManager[Any]]) -> Any:
        draw, views, real = random.Random(seed), [], os.environ
        try:
            for _ in range(60):
                with enter({name: draw.choice("12") for name in names if draw.random() < 0.5}):
                    views.append([os.environ.get(name) for name in names])
                    for name in names:
                        if draw.random() < 0.3:
                            os.environ[name] = draw.choice("34")
                        elif draw.random() < 0.3:
                            os.environ.pop(name, None)
                    if draw.random() < 0.05:
                        replaced()
        finally:
            os.environ = real  # noqa: B003 - undoes `replaced`
            for name in names:
                os.environ.pop(name, None)
        return views

    for seed in range(200):
        variables = CallVariables()

        def kept(
            given: Mapping[str, str], variables: CallVariables = variables
        ) -> AbstractContextManager[Any]:
            variables.set(given)
            return nullcontext()

        assert seen(seed, kept) == seen(seed, Environment)
