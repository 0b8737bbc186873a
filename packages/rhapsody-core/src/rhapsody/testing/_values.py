"""Checks of what goes in and comes out of functions: size, pickling, ownership."""

from __future__ import annotations

import copy
import threading
from typing import Any

from rhapsody.testing._rules import ASYNC, FUNCTIONS, SYNC
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE, FAILED
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import (
    add,
    add_async,
    digest,
    echo,
    fail_oddly,
    make_lock,
    pattern,
)


class Values:
    """Arguments and results, big, nested, and such as cannot travel."""

    @check("a big argument and a big result come through whole", SYNC, times=2)
    async def test_big_arguments_and_results_come_through(self, trial: Trial) -> None:
        driver = await trial.driver()
        size = trial.kit.big_bytes
        data = pattern(size)
        end = await driver.run_one(driver.call(digest, data))
        trial.require(end.value == digest(data), f"an argument of {size} bytes: {end}")
        end = await driver.run_one(driver.call(pattern, size))
        trial.require(
            isinstance(end.value, bytes) and digest(end.value) == digest(data),
            lambda: f"a result of {size} bytes came back as {end}",
        )

    @check("nested and unusual values come through equal", SYNC)
    async def test_nested_values_come_through(self, trial: Trial) -> None:
        driver = await trial.driver()
        values: list[Any] = [
            {"text": "naïve ☃ \N{MUSICAL SYMBOL G CLEF}", "bytes": b"\x00\xff", "none": None},
            [(1, 2.5, 1j), {3}, frozenset({4}), range(3), [[[[]]]]],
            float("inf"),
            10**40,
        ]
        for value in values:
            end = await driver.run_one(driver.call(echo, value))
            trial.require(end.state is DONE and end.value == value, f"{value!r}: {end}")

    @check("arguments are not changed by the backend", FUNCTIONS)
    async def test_arguments_are_left_as_they_were(self, trial: Trial) -> None:
        driver = await trial.driver()
        sync = trial.capabilities.sync_functions

        async def look_async(*args: Any, **kwargs: Any) -> str:
            return repr((args, kwargs))

        def look(*args: Any, **kwargs: Any) -> str:
            return repr((args, kwargs))

        args: tuple[Any, ...] = ([3, 1, 2], {"b": [2], "a": 1})
        kwargs: dict[str, Any] = {"option": ["x", {"y": 1}], "other": {"z": None}}
        before = copy.deepcopy((args, kwargs))
        task = driver.call(look if sync else look_async, *args, **kwargs)
        end = await driver.run_one(task)
        trial.require(
            (args, kwargs) == before,
            f"the caller's arguments were {before} and are {(args, kwargs)}",
        )
        trial.require(end.value == repr(before), f"the function saw {end.value}, not {before}")

    @check("a function that changes its argument gets the whole of it", SYNC)
    async def test_a_function_may_change_its_own_arguments(self, trial: Trial) -> None:
        driver = await trial.driver()

        def empty(numbers: list[int]) -> int:
            total = 0
            while numbers:
                total += numbers.pop()
            return total

        ends = await driver.run(*(driver.call(empty, [1, 2, 3]) for _ in range(5)))
        trial.require(all(end.value == 6 for end in ends), f"{[*map(str, ends)]}")

    @check("an argument that cannot be pickled works, or fails only its task", SYNC)
    async def test_an_unpicklable_argument_fails_alone(self, trial: Trial) -> None:
        driver = await trial.driver()
        bad = driver.call(lambda lock: type(lock).__name__, threading.Lock())
        first, second, third = await driver.run(driver.call(add, 1), bad, driver.call(add, 2))
        trial.require(first.value == 2 and third.value == 3, f"neighbours: {first}; {third}")
        trial.require(
            second.state is DONE or second.error is not None,
            f"it did not run and has no exception: {second}",
        )

    @check("a coroutine's unpicklable argument works, or fails only its task", ASYNC)
    async def test_an_asynchronous_unpicklable_argument_fails_alone(self, trial: Trial) -> None:
        driver = await trial.driver()

        async def name(lock: Any) -> str:
            return type(lock).__name__

        bad = driver.call(name, threading.Lock())
        first, second, third = await driver.run(
            driver.call(add_async, 1), bad, driver.call(add_async, 2)
        )
        trial.require(first.value == 2 and third.value == 3, f"neighbours: {first}; {third}")
        trial.require(second.state is DONE or second.error is not None, f"{second}")

    @check("a result that cannot be pickled works, or fails only its task", SYNC)
    async def test_an_unpicklable_result_fails_alone(self, trial: Trial) -> None:
        driver = await trial.driver()
        tasks = [driver.call(add, 1), driver.call(make_lock), driver.call(add, 2)]
        first, second, third = await driver.run(*tasks)
        trial.require(first.value == 2 and third.value == 3, f"neighbours: {first}; {third}")
        trial.require(
            second.value is not None if second.state is DONE else second.error is not None,
            f"neither the result nor an exception: {second}",
        )

    @check("an exception that cannot be unpickled still fails its task, with the reason", SYNC)
    async def test_an_unpicklable_exception_still_says_why(self, trial: Trial) -> None:
        driver = await trial.driver()
        trial.doing("waiting for a task whose exception cannot be pickled")
        odd, good = await driver.run(driver.call(fail_oddly, "the odd reason"), driver.call(add, 1))
        trial.require(odd.state is FAILED, f"{odd}")
        said = f"{odd.error!r} {odd.error} {odd.stderr or ''}"
        trial.require("the odd reason" in said, f"the message is lost: {odd}")
        trial.require(good.value == 2, f"its neighbour: {good}")
