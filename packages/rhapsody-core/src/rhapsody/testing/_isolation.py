"""Checks that a task gets what it was called with, whatever others do to it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from rhapsody.testing._machine import memory_in_use
from rhapsody.testing._rules import COPIES, SYNC, skip
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import Collector, collect, process_and_memory, put_first

_CALLS = 4


class Isolation:
    """Functions and arguments are copies, big ones too, and none of them pile up."""

    @check("a function's own state is as it was when the function was called", SYNC, COPIES)
    async def test_tasks_do_not_share_a_functions_state(self, trial: Trial) -> None:
        """Calls functions that hold data, and change it, several times one after the other.

        What an earlier task did to a closure, a default argument, a bound argument, an
        object's attribute or a global variable of a function that no module has is not
        seen by a later one; what the program did to it between the calls is. Functions
        that are imported by name are their module's, and not looked at.
        """
        driver = await trial.driver()
        for what, function, data in _stateful():
            for number in range(_CALLS):
                if number == 2:
                    data.append("program")
                expected = [*data, number]
                end = await driver.run_one(driver.call(function, number))
                trial.require(
                    end.value == expected,
                    f"call {number + 1} of a function with {what} gave {end.value!r}, "
                    f"not {expected!r}: {end}",
                )

    @check("an argument is as it was in the program, whatever other tasks did", SYNC, COPIES)
    async def test_tasks_do_not_share_arguments(self, trial: Trial) -> None:
        driver = await trial.driver()
        small: list[Any] = ["program"]
        big = bytearray(min(trial.kit.big_bytes, 5_000_000))
        for number in range(_CALLS):
            end = await driver.run_one(driver.call(collect, number, small))
            trial.require(
                end.value == ["program", number], f"call {number + 1} with one list gave {end}"
            )
            end = await driver.run_one(driver.call(put_first, big))
            trial.require(
                end.state is DONE and end.value == 0,
                f"call {number + 1} with one bytearray of {len(big)} bytes saw {end}",
            )
        trial.require(small == ["program"] and big[0] == 0, "the program's own were changed")

    @check("big closures, one after the other, use bounded memory", SYNC, times=4)
    async def test_big_closures_do_not_pile_up(self, trial: Trial) -> None:
        """Runs `closures` functions that hold `closure_bytes` each, and looks at the processes.

        Neither the program nor a process that ran them may grow by more than eight of them.
        """
        flow = await trial.engine()
        kit, data = trial.kit, bytes(trial.kit.closure_bytes)
        limit = 8 * kit.closure_bytes
        first: dict[int, int] = {}
        here = 0
        for number in range(kit.closures):
            trial.doing(f"at closure {number + 1} of {kit.closures}")
            held = flow.function_task(_holding(data, number))
            size, process, memory = await held()
            trial.require(size == len(data) + number, f"its data came as {size} bytes")
            grown = memory - first.setdefault(process, memory)
            here = here or memory_in_use()
            held_by = {f"process {process}": grown, "the program": memory_in_use() - here}
            for whose, more in held_by.items():
                trial.require(
                    more <= limit,
                    f"after {number + 1} closures of {len(data)} bytes {whose} holds {more} bytes "
                    "more than after the first",
                )

    @check("a function may use the library behind the backend inside a task", SYNC)
    async def test_a_task_may_use_the_backends_library(self, trial: Trial) -> None:
        """Runs more at once than there is room for: each may need a place of its own."""
        function = trial.kit.library_function()
        if function is NotImplemented:
            skip("the class has no library_function")
        _require_a_call(trial, function)
        driver = await trial.driver()
        count = 2 * (trial.kit.cores or 2)
        trial.doing(f"waiting for {count} tasks that use the backend's library")
        for end in await driver.run(*(driver.call(function) for _ in range(count))):
            trial.require(
                end.state is DONE and end.value,
                f"the function of `library_function` must return something true: it gave {end}",
            )


def _require_a_call(trial: Trial, function: Any) -> None:
    """Raise unless `library_function` returned a function that takes no arguments."""
    problem = ""
    if not callable(function):
        problem = "which cannot be called"
    else:
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            problem = f"which cannot be called without arguments: {error}"
        except ValueError:  # a built-in without a signature
            pass
    trial.require(
        not problem,
        f"`library_function` must return a function that takes no arguments, which the kit runs "
        f"in tasks, or NotImplemented; it returned {function!r}, {problem}",
    )


def _holding(data: bytes, number: int) -> Callable[[], tuple[int, int, int]]:
    own = bytes(number)

    def held() -> tuple[int, int, int]:
        return len(data) + len(own), *process_and_memory()

    return held


def _stateful() -> list[tuple[str, Callable[[int], Any], list[Any]]]:
    """Functions that add their argument to what they hold and give it, with what they hold."""
    closure: list[Any] = []
    default: list[Any] = []
    bound: list[Any] = []
    attribute: list[Any] = []
    variable: list[Any] = []

    def with_closure(number: int) -> list[Any]:
        closure.append(number)
        return list(closure)

    def with_default(number: int, held: list[Any] = default) -> list[Any]:
        held.append(number)
        return list(held)

    def from_globals(number: int) -> list[Any]:
        own.append(number)  # type: ignore[name-defined]  # noqa: F821
        return list(own)  # type: ignore[name-defined]  # noqa: F821

    # As in a program's `__main__`, or a notebook: its globals travel with it.
    with_global = types.FunctionType(
        from_globals.__code__, {"own": variable, "__builtins__": __builtins__}
    )
    return [
        ("a closure", with_closure, closure),
        ("a default argument", with_default, default),
        ("a bound argument", functools.partial(collect, held=bound), bound),
        ("an object", Collector(attribute), attribute),
        ("a global variable", with_global, variable),
    ]
