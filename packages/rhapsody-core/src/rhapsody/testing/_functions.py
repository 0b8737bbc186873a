"""Checks of function tasks: every form of call, arguments, results, exceptions, isolation."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import math
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.errors import CapabilityError, TaskLostError
from rhapsody.task import Resources, TaskKind
from rhapsody.testing import _work
from rhapsody.testing._suite import (
    COPIES,
    FUNCTIONS,
    ISOLATED,
    Suite,
    check,
    each_function_kind,
    honors,
)
from rhapsody.testing._system import NEIGHBOR, memory_in_use
from rhapsody.testing._tasks import DONE, FAILED, Route, call, function_kinds, routes_of
from rhapsody.testing._work import Collector, KitError, collect, process_and_memory, put_first

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine
    from rhapsody.backends.base import Capabilities
    from rhapsody.testing._driver import Driver, Finished

_VARIABLE = "RHAPSODY_KIT_ROUTE"
_CALLS = 300


class Functions(Suite):
    """Functions of every form run, on every route, and their outcome comes back unchanged."""

    @check("functions", FUNCTIONS)
    async def test_every_route_passes_arguments(self, driver: Driver) -> None:
        def task(route: Route, number: int) -> Any:
            return route.call(driver, "words", f"left {number}", right=f"right {number}")

        for route, number, end in await _on_every_route(driver, self.capabilities, task):
            expected = [f"left {number}", f"right {number}"]
            assert end.state is DONE and end.value == expected, f"{route.name}: {end}"

    @check("functions")
    @each_function_kind
    async def test_functions_of_any_origin_run(self, driver: Driver, kind: TaskKind) -> None:
        base = 10

        def closure(number: int) -> int:
            return base + number

        async def closure_async(number: int) -> int:
            return base + number

        cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = [
            (_work.add, (1, 2), {"more": 3}, 6),
            (_work.add, (), {"left": 4}, 5),
            (closure, (2,), {}, 12),
            (lambda number: base * number, (2,), {}, 20),
            (functools.partial(_work.add, 1, more=5), (2,), {}, 8),
            (math.factorial, (5,), {}, 120),
            (dict, (), {"a": 1}, {"a": 1}),
        ]
        if kind == "async_function":
            cases = [
                (_work.add_async, (1, 2), {"more": 3}, 6),
                (closure_async, (2,), {}, 12),
                (functools.partial(_work.add_async, 1, more=5), (2,), {}, 8),
            ]
        tasks = [driver.call(function, *args, **kwargs) for function, args, kwargs, _ in cases]
        for end, (_, args, kwargs, expected) in zip(await driver.run(*tasks), cases, strict=True):
            assert end.state is DONE, f"called with {args} and {kwargs}: {end}"
            assert end.value == expected

    @check("functions", FUNCTIONS)
    async def test_every_route_has_its_environment(self, driver: Driver) -> None:
        def task(route: Route, number: int) -> Any:
            description = route.call(driver, "variable", _VARIABLE)
            description["environment"] = {_VARIABLE: f"value {number}"}
            return description

        for route, number, end in await _on_every_route(driver, self.capabilities, task):
            if end.state is FAILED and isinstance(end.error, CapabilityError):
                continue
            assert end.state is DONE and end.value == f"value {number}", (
                f"{route.name} with environment={{'{_VARIABLE}': 'value {number}'}} must see the "
                f"variable, or fail with a CapabilityError if functions share the program's "
                f"environment: {end}"
            )

    @check("output", FUNCTIONS, "captures_output")
    async def test_every_route_keeps_its_output(self, driver: Driver) -> None:
        def task(route: Route, number: int) -> Any:
            return route.call(driver, "say", f"grüße {number}")

        for route, number, end in await _on_every_route(driver, self.capabilities, task):
            assert end.state is DONE, f"{route.name}: {end}"
            expected = f"grüße {number}\n", f"grüße {number} aside\n"
            assert (end.stdout, end.stderr) == expected, f"{route.name} printed {expected}"

    @check("exceptions", FUNCTIONS)
    async def test_every_route_keeps_failures_whole(self, driver: Driver) -> None:
        def task(route: Route, number: int) -> Any:
            return route.call(driver, "fail", f"grüße {number}")

        for route, number, end in await _on_every_route(driver, self.capabilities, task):
            error = end.error
            assert end.state is FAILED, f"{route.name}: {end}"
            assert type(error) is KitError, f"a KitError of {route.name} came back as {error!r}"
            assert error.args == (f"grüße {number}", 7) and error.code == 7, f"{route.name}: {end}"
            shown = "".join(traceback.format_exception(error))
            for what, text in {
                "its cause": "LookupError: the reason for failure",
                "the file that raised it": _work.__file__,
                "the function that raised it": "in fail",
            }.items():
                assert text in shown, (
                    f"the failure of {route.name} does not show {what}, {text!r}, in its traceback "
                    "or in that of its `__cause__`"
                )

    @check("exceptions", FUNCTIONS)
    async def test_builtin_exceptions_keep_their_arguments(self, driver: Driver) -> None:
        def missing() -> None:
            raise FileNotFoundError(2, "No such file", "données.txt")

        def divide() -> None:
            raise ZeroDivisionError("division by 0")

        ends = await driver.run(
            *(driver.call(form(self.capabilities, f)) for f in (missing, divide))
        )
        first, second = (end.error for end in ends)
        assert isinstance(first, FileNotFoundError)
        assert (first.errno, first.filename) == (2, "données.txt")
        assert type(second) is ZeroDivisionError
        assert second.args == ("division by 0",)

    @check("submission", FUNCTIONS, "shared_file_system", times=2)
    async def test_each_call_is_executed_exactly_once(self, driver: Driver) -> None:
        routes = routes_of(self.capabilities)
        marks = [self.place / f"run.{number}" for number in range(min(_CALLS, self.fan))]
        await driver.run(
            *(
                routes[number % len(routes)].call(driver, "note_run", str(mark))
                for number, mark in enumerate(marks)
            )
        )
        await asyncio.sleep(self.settle)  # a second execution may follow
        counts = [mark.stat().st_size if mark.exists() else 0 for mark in marks]
        wrong = {number: count for number, count in enumerate(counts) if count != 1}
        assert not wrong, f"{len(wrong)} of {len(marks)} calls, with their executions: {wrong}"

    @check("submission", FUNCTIONS)
    async def test_results_belong_to_their_tasks(self, driver: Driver) -> None:
        kind = function_kinds(self.capabilities)[0]
        ends = await driver.run(*(call(driver, kind, "add", number) for number in range(100)))
        assert [end.value for end in ends] == list(range(1, 101))

    @check("values")
    @each_function_kind
    async def test_values_come_through_equal(self, driver: Driver, kind: TaskKind) -> None:
        values: list[Any] = [
            {"text": "naïve ☃ \N{MUSICAL SYMBOL G CLEF}", "bytes": b"\x00\xff", "none": None},
            [(1, 2.5, 1j), {3}, frozenset({4}), range(3), [[[[]]]]],
            float("inf"),
            10**40,
            *(None, 0, "", [], False),
        ]
        ends = await driver.run(*(call(driver, kind, "echo", value) for value in values))
        for end, value in zip(ends, values, strict=True):
            assert end.state is DONE, str(end)
            assert end.value == value and type(end.value) is type(value)

    @check("values", "sync_functions", times=2)
    async def test_big_values_come_through_whole(self, driver: Driver) -> None:
        data = _work.pattern(self.big_bytes)
        taken, made = await driver.run(
            driver.call(_work.digest, data), driver.call(_work.pattern, self.big_bytes)
        )
        assert taken.value == _work.digest(data), f"an argument of {self.big_bytes} bytes"
        whole = isinstance(made.value, bytes) and _work.digest(made.value) == taken.value
        assert whole, f"a result of {self.big_bytes} bytes: {made}"

    @check("values", FUNCTIONS)
    async def test_arguments_belong_to_the_caller(self, driver: Driver) -> None:
        args: tuple[Any, ...] = ([3, 1, 2], {"b": [2], "a": 1})
        kwargs: dict[str, Any] = {"option": ["x", {"y": 1}], "other": {"z": None}}
        before = copy.deepcopy((args, kwargs))

        def look(*args: Any, **kwargs: Any) -> str:
            return repr((args, kwargs))

        end = await driver.run_one(driver.call(form(self.capabilities, look), *args, **kwargs))
        assert (args, kwargs) == before, "the backend changed the caller's arguments"
        assert end.value == repr(before), "the function received something else"

    @check("values")
    @each_function_kind
    @pytest.mark.parametrize("what", ["argument", "result", "exception"])
    async def test_what_cannot_be_pickled_fails_alone(
        self, driver: Driver, kind: TaskKind, what: str
    ) -> None:
        odd = {
            "argument": lambda: call(driver, kind, "name_of_type", threading.Lock()),
            "result": lambda: call(driver, kind, "make_lock"),
            "exception": lambda: call(driver, kind, "fail_oddly", "the odd reason"),
        }[what]()
        neighbors = [call(driver, kind, "add", number) for number in (1, 2)]
        first, end, second = await driver.run(neighbors[0], odd, neighbors[1])
        assert (first.value, second.value) == (2, 3), f"neighbors: {first}; {second}"
        if end.state is DONE and what != "exception":
            assert end.value is not None
            return
        assert end.state is FAILED and end.error is not None, str(end)
        if what == "exception":
            assert "the odd reason" in f"{end.error!r} {end.error} {end.stderr or ''}"

    @check("exceptions")
    @each_function_kind
    async def test_system_exit_fails_its_task_alone(self, driver: Driver, kind: TaskKind) -> None:
        for _ in range(2):
            left, good = await driver.run(
                call(driver, kind, "leave", 3), call(driver, kind, "add", 3)
            )
            assert left.state is FAILED and left.error is not None, str(left)
            assert good.state is DONE, f"its neighbor: {good}"

    @check("exceptions", "sync_functions", ISOLATED)
    async def test_a_killed_worker_fails_its_task_alone(self, driver: Driver) -> None:
        good = [driver.call(_work.add, number) for number in range(10)]
        ends = await driver.run(*good[:5], driver.call(_work.kill_own_process), *good[5:])
        lost = ends.pop(5)
        assert lost.state is FAILED and isinstance(lost.error, TaskLostError), str(lost)
        assert [end.value for end in ends] == list(range(1, 11)), "its neighbors"
        assert (await driver.run_one(driver.call(_work.add, 1))).value == 2, "a task afterwards"

    @check("tasks-without-cores", "functions", honors("cores"))
    async def test_coroutines_without_cores_wait_together(self, driver: Driver) -> None:
        tasks = [driver.call(_work.interval_async, 0.2) for _ in range(50)]
        for task in tasks:
            task["resources"] = Resources(cores=0)
        most = most_at_once([end.value for end in await driver.run(*tasks)])
        assert most > (self.cores or 1), f"of 50 that wait, {most} did so at once"

    @check("functions")
    @each_function_kind
    async def test_modules_next_to_the_script_are_imported(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        neighbor = importlib.import_module(NEIGHBOR)
        function = neighbor.triple_async if kind == "async_function" else neighbor.triple
        end = await driver.run_one(driver.call(function, 2))
        assert end.state is DONE and end.value == 6, (
            f"workers need the program's sys.path, or the modules in it themselves: {end}"
        )

    @check("isolation", "sync_functions", COPIES)
    async def test_tasks_do_not_share_a_functions_state(self, driver: Driver) -> None:
        for what, function, data in _stateful():
            for number in range(4):
                if number == 2:
                    data.append("program")
                end = await driver.run_one(driver.call(function, number))
                assert end.value == [*data, number], f"call {number + 1} with {what}: {end}"

    @check("isolation", "sync_functions", COPIES)
    async def test_tasks_do_not_share_arguments(self, driver: Driver) -> None:
        small: list[Any] = ["program"]
        big = bytearray(min(self.big_bytes, 5_000_000))
        for number in range(4):
            end = await driver.run_one(driver.call(collect, number, small))
            assert end.value == ["program", number], f"call {number + 1} with one list: {end}"
            end = await driver.run_one(driver.call(put_first, big))
            assert end.value == 0, f"call {number + 1} with one bytearray: {end}"
        assert small == ["program"] and big[0] == 0, "the program's own were changed"

    @check("memory", "sync_functions", times=4)
    async def test_big_closures_do_not_pile_up(self, flow: WorkflowEngine) -> None:
        data, limit = bytes(self.closure_bytes), 8 * self.closure_bytes
        first: dict[int, int] = {}
        here = 0
        for number in range(self.closures):
            size, process, memory = await flow.function_task(_holding(data, number))()
            assert size == len(data) + number
            here = here or memory_in_use()
            grown = {
                f"process {process}": memory - first.setdefault(process, memory),
                "the program": memory_in_use() - here,
            }
            for whose, more in grown.items():
                assert more <= limit, (
                    f"after {number + 1} closures of {len(data)} bytes {whose} holds {more} bytes "
                    "more than after the first"
                )

    @check("functions", "sync_functions")
    async def test_a_task_may_use_the_backends_library(self, driver: Driver) -> None:
        function = self.library_function()
        if function is NotImplemented:
            pytest.skip("the class has no library_function")
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            pytest.fail(
                "`library_function` must return a function that takes no arguments, or "
                f"NotImplemented; it returned {function!r}: {error}"
            )
        # More at once than the backend has room for: each may need a place of its own.
        tasks = [driver.call(function) for _ in range(2 * (self.cores or 2))]
        for end in await driver.run(*tasks):
            assert end.state is DONE and end.value, (
                f"the function of `library_function` must return a true value: {end}"
            )


async def _on_every_route(
    driver: Driver, capabilities: Capabilities, make: Callable[[Route, int], Any]
) -> list[tuple[Route, int, Finished]]:
    """Run a task on every route in one batch."""
    routes = routes_of(capabilities)
    ends = await driver.run(*(make(route, number) for number, route in enumerate(routes)))
    return list(zip(routes, range(len(routes)), ends, strict=True))


def form(capabilities: Capabilities, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, or the same as a coroutine function if only those run."""
    if capabilities.sync_functions:
        return function

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    return coroutine


def most_at_once(intervals: list[tuple[float, float]]) -> int:
    """Return the largest number of intervals that overlap."""
    steps = sorted(step for began, ended in intervals for step in ((began, 1), (ended, -1)))
    most = now = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


def _holding(data: bytes, number: int) -> Callable[[], tuple[int, int, int]]:
    own = bytes(number)

    def held() -> tuple[int, int, int]:
        return len(data) + len(own), *process_and_memory()

    return held


def _stateful() -> list[tuple[str, Callable[[int], Any], list[Any]]]:
    """Return functions that append their argument to data they hold, each with its data."""
    closure, default, bound, attribute, variable = ([] for _ in range(5))  # type: ignore[var-annotated]

    def with_default(number: int, held: list[Any] = default) -> list[Any]:
        return collect(number, held)

    # As in a program's `__main__`, or a notebook: its globals travel with it.
    names = {"own": variable, "collect": collect}
    with_global = eval("lambda number: collect(number, own)", names)  # noqa: S307
    return [
        ("a closure", lambda number: collect(number, closure), closure),
        ("a default argument", with_default, default),
        ("a bound argument", functools.partial(collect, held=bound), bound),
        ("an object", Collector(attribute), attribute),
        ("a global variable", with_global, variable),
    ]
