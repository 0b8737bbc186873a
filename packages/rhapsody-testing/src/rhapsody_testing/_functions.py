"""Checks of function tasks: forms of calls, arguments, results, exceptions and isolation."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import importlib
import itertools
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    Resources,
    TaskDescription,
    TaskLostError,
    WorkerValue,
    WorkflowEngine,
    current_task,
)
from rhapsody.sdk import TaskKind
from rhapsody_testing import _work
from rhapsody_testing._suite import (
    COPIES,
    DONE,
    FAILED,
    FUNCTIONS,
    ISOLATED,
    Suite,
    call,
    check,
    each_function_kind,
    each_kind,
)
from rhapsody_testing._system import NEIGHBOR
from rhapsody_testing._tools import Driver, Finished, python_environment
from rhapsody_testing._work import KitError, collect, process_and_memory, put_first

_VARIABLE = "RHAPSODY_KIT_ROUTE"
_CALLS = 300


class FunctionChecks(Suite):
    """Checks of functions: every form of call must run, and outcomes must arrive unchanged."""

    @check("functions", FUNCTIONS)
    async def test_every_route_passes_arguments(self, driver: Driver) -> None:
        routes = self.routes
        tasks = [route.call(driver, "words", route.name, right="keyword") for route in routes]
        for route, end in zip(routes, await driver.run(*tasks), strict=True):
            assert end.value == [route.name, "keyword"], f"{route.name}: {end}"

    @check("functions")
    @each_function_kind
    async def test_functions_of_any_origin_run(self, driver: Driver, kind: TaskKind) -> None:
        base = 10

        def closure(number: int) -> int:
            return base + number

        async def closure_async(number: int) -> int:
            return base + number

        neighbor = importlib.import_module(NEIGHBOR)  # next to the script
        cases: dict[Any, tuple[Any, Any]] = {
            _work.add_async: (1, 2),
            closure_async: (2, 12),
            neighbor.triple_async: (2, 6),
        }
        if kind == "function":
            cases = {
                _work.add: (1, 2),
                closure: (2, 12),
                lambda number: base * number: (2, 20),
                math.factorial: (5, 120),
                neighbor.triple: (2, 6),
            }
        tasks = [driver.call(function, argument) for function, (argument, _) in cases.items()]
        ends = await driver.run(*tasks)
        for end, (function, (_, expected)) in zip(ends, cases.items(), strict=True):
            assert end.state is DONE and end.value == expected, f"{function}: {end}"

    @check("functions", FUNCTIONS)
    async def test_every_route_has_its_environment(self, driver: Driver) -> None:
        routes = self.routes
        tasks = [
            route.call(driver, "variable", _VARIABLE) | {"environment": {_VARIABLE: route.name}}
            for route in routes
        ]
        for route, end in zip(routes, await driver.run(*tasks), strict=True):
            assert isinstance(end.error, CapabilityError) or end.value == route.name, (
                f"{route.name} must see its environment or fail with a CapabilityError: {end}"
            )
        tasks = [
            route.call(driver, "trace_header") | {"trace_context": {"traceparent": route.name}}
            for route in routes
        ]
        for route, end in zip(routes, await driver.run(*tasks), strict=True):
            assert end.value == route.name, f"{route.name} must see its trace context: {end}"

    @check("output", FUNCTIONS, "captures_output")
    async def test_every_route_keeps_its_output(self, driver: Driver) -> None:
        routes = self.routes
        tasks = [route.call(driver, "say", f"grüße {route.name}") for route in routes]
        for route, end in zip(routes, await driver.run(*tasks), strict=True):
            expected = f"grüße {route.name}\n", f"grüße {route.name} aside\n"
            assert (end.stdout, end.stderr) == expected, f"{route.name} printed {expected}: {end}"

    @check("exceptions", FUNCTIONS)
    async def test_every_route_keeps_failures_whole(self, driver: Driver) -> None:
        routes = self.routes
        tasks = [route.call(driver, "fail", f"grüße {route.name}") for route in routes]
        for route, end in zip(routes, await driver.run(*tasks), strict=True):
            error = end.error
            assert end.state is FAILED, f"{route.name}: {end}"
            assert type(error) is KitError, (
                f"{route.name} raised a KitError, but the backend reported {error!r}"
            )
            assert error.args == (f"grüße {route.name}", 7) and error.code == 7, str(end)
            shown = "".join(traceback.format_exception(error))
            for text in ("LookupError: the reason for failure", _work.__file__, "in fail"):
                assert text in shown, f"the traceback of {route.name} does not show {text!r}"

    @check("exceptions", FUNCTIONS)
    async def test_builtin_exceptions_keep_their_arguments(self, driver: Driver) -> None:
        def missing() -> None:
            raise FileNotFoundError(2, "No such file", "données.txt")

        end = await driver.run_one(driver.call(self.form(missing)))
        assert isinstance(end.error, FileNotFoundError), str(end)
        assert (end.error.errno, end.error.filename) == (2, "données.txt")

    @check("submission", FUNCTIONS, "shared_file_system", times=2, fan=True)
    async def test_each_call_is_executed_exactly_once(self, driver: Driver) -> None:
        marks = [self.place / f"run.{number}" for number in range(min(_CALLS, self.fan))]
        calls = zip(itertools.cycle(self.routes), marks, strict=False)
        await driver.run(*(route.call(driver, "note_run", str(mark)) for route, mark in calls))
        await asyncio.sleep(self.settle)  # a second execution may follow
        counts = [mark.stat().st_size if mark.exists() else 0 for mark in marks]
        wrong = {number: count for number, count in enumerate(counts) if count != 1}
        assert not wrong, (
            f"{len(wrong)} of {len(marks)} calls were not executed exactly once; "
            f"executions per call: {wrong}"
        )

    @check("submission", times=2, fan=True)
    @each_kind
    async def test_results_belong_to_their_tasks(self, driver: Driver, kind: TaskKind) -> None:
        if kind == "executable":
            numbers = range(min(50, self.fan))
            tasks = [driver.command(["echo", str(number)]) for number in numbers]
            assert [end.stdout for end in await driver.run(*tasks)] == [f"{n}\n" for n in numbers]
        else:
            numbers = range(min(100, self.fan))
            tasks = [call(driver, kind, "add", number) for number in numbers]
            assert [end.value for end in await driver.run(*tasks)] == [n + 1 for n in numbers]

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
        assert taken.value == _work.digest(data), (
            f"an argument of {self.big_bytes} bytes did not reach the function unchanged"
        )
        whole = isinstance(made.value, bytes) and _work.digest(made.value) == taken.value
        assert whole, (
            f"a result of {self.big_bytes} bytes did not reach the program unchanged: {made}"
        )

    @check("values", FUNCTIONS)
    async def test_arguments_belong_to_the_caller(self, driver: Driver) -> None:
        args: tuple[Any, ...] = ([3, 1, 2], {"b": [2], "a": 1})
        kwargs: dict[str, Any] = {"option": ["x", {"y": 1}], "other": {"z": None}}
        before = copy.deepcopy((args, kwargs))

        def look(*args: Any, **kwargs: Any) -> str:
            return repr((args, kwargs))

        end = await driver.run_one(driver.call(self.form(look), *args, **kwargs))
        assert (args, kwargs) == before, "the backend changed the caller's arguments"
        assert end.value == repr(before), "the function received other arguments"

    @check("values")
    @each_function_kind
    async def test_unpicklable_objects_do_not_affect_other_tasks(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        argument, result, error, neighbor = await driver.run(
            call(driver, kind, "name_of_type", threading.Lock()),
            call(driver, kind, "make_lock"),
            call(driver, kind, "fail_oddly", "the odd reason"),
            call(driver, kind, "add", 1),
        )
        for end in (argument, result):
            works = end.state is DONE and end.value is not None
            assert works or (end.state is FAILED and end.error is not None), str(end)
        assert error.state is FAILED and error.error is not None, str(error)
        assert "the odd reason" in f"{error.error!r} {error.error} {error.stderr or ''}"
        assert neighbor.value == 2, f"another task of the batch must not be affected: {neighbor}"

    @check("exceptions")
    @each_function_kind
    async def test_system_exit_fails_only_its_task(self, driver: Driver, kind: TaskKind) -> None:
        for _ in range(2):
            left, good = await driver.run(
                call(driver, kind, "leave", 3), call(driver, kind, "add", 3)
            )
            assert left.state is FAILED and left.error is not None, str(left)
            assert good.state is DONE, f"another task of the batch must not be affected: {good}"

    @check("functions", FUNCTIONS, "function_environments", "shared_file_system", times=2)
    async def test_functions_run_in_a_virtual_environment(self, flow: WorkflowEngine) -> None:
        path = await asyncio.to_thread(python_environment, self.place / "environment")

        def look(number: int) -> tuple[str, str, str, int]:
            only_here = importlib.import_module("rhapsody_kit_only_here")
            sys.stdout.write("printed\n")
            return sys.prefix, only_here.PLACE, current_task().name, number + 1

        async def look_async(number: int) -> tuple[str, str, str, int]:
            return look(number)

        def fail() -> None:
            raise KitError("in the environment", 3)

        kinds: dict[Any, Any] = {"function": look, "async_function": look_async}
        for function in (kinds[kind] for kind in self.kinds if kind in kinds):
            future = flow.function_task(name="the task", venv=path)(function)(1)
            prefix, place, *others = await future
            assert prefix == str(path), f"the function ran in {prefix}, not in venv={str(path)!r}"
            assert place.startswith(str(path))
            assert others == ["the task", 2]
            if self.capabilities.captures_output:
                assert future.stdout == "printed\n"
        if self.capabilities.sync_functions:
            with pytest.raises(KitError, match="in the environment") as caught:
                await flow.function_task(venv=path)(fail)()
            assert caught.value.code == 3

    @check("functions", FUNCTIONS)
    async def test_a_worker_value_is_built_once_in_each_process(self, flow: WorkflowEngine) -> None:
        def value(number: int) -> tuple[int, int, bytes]:
            return number, os.getpid(), os.urandom(8)

        def look(found: Any, more: list[Any]) -> tuple[int, Any, bool]:
            return os.getpid(), found, more[0] is found

        async def look_async(found: Any, more: list[Any]) -> tuple[int, Any, bool]:
            return look(found, more)

        handle = flow.worker_value(value)(3)
        kinds: dict[Any, Any] = {"function": look, "async_function": look_async}
        for function in (kinds[kind] for kind in self.kinds if kind in kinds):
            task = flow.function_task(function)
            futures = [task(handle, [handle]) for _ in range(self.few(10))]
            results = [await future for future in futures]
            for process, found, same in results:
                assert not isinstance(found, WorkerValue), (
                    "the function received the handle of a worker value instead of the value: "
                    "declare `shares_memory`, or unpickle calls with `rhapsody.sdk.Runner`"
                )
                assert found[:2] == (3, process), f"{found} was not built in process {process}"
                assert same, "two handles of one value in the arguments were replaced differently"
            assert len({found for _, found, _ in results}) == len({each for each, *_ in results})

    @check("exceptions", FUNCTIONS)
    async def test_the_error_of_a_worker_value_fails_its_calls(self, flow: WorkflowEngine) -> None:
        def fail(path: str) -> None:
            raise KitError(f"no weights in {path}", 5)

        async def look_async(found: Any) -> Any:
            return found

        handle = flow.worker_value(fail)("/nowhere")
        kinds: dict[Any, Any] = {"function": lambda found: found, "async_function": look_async}
        for function in (kinds[kind] for kind in self.kinds if kind in kinds):
            with pytest.raises(KitError, match="no weights in /nowhere") as caught:
                await flow.function_task(function)(handle)
            assert caught.value.code == 5
            notes = "".join(getattr(caught.value, "__notes__", ()))
            assert "while worker value 'fail' was built" in notes, f"the notes are {notes!r}"

    @check("exceptions", "sync_functions", ISOLATED)
    async def test_a_worker_value_is_built_again_and_closed(self, flow: WorkflowEngine) -> None:
        log, variable = self.place / "closed", "ZE_AFFINITY_MASK"

        def value() -> Any:
            yield os.getpid(), os.environ.get(variable)
            with log.open("a") as file:
                file.write("closed")

        def look(found: Any) -> bool:
            return bool(found == (os.getpid(), os.environ.get(variable)))

        handle = flow.worker_value(value)()
        task = flow.function_task(look)
        assert await task(handle), "the value was not built in the process of the call"
        with contextlib.suppress(CapabilityError):  # functions share their environment
            other = task.options(environment={variable: "7"})
            assert await other(handle), "calls with other GPUs received the same value"
        kill = flow.function_task(lost_retries=0)(_work.kill_own_process)
        with pytest.raises(TaskLostError):
            await kill(str(self.place / "killed"))
        assert await task(handle), "the value was not built again after its worker was lost"
        log.unlink(missing_ok=True)  # written by processes that ended after their calls
        (backend,) = flow.backends.values()
        if hasattr(backend, "close_worker_value"):
            await handle.close()
            async with asyncio.timeout(20):
                while not log.exists():
                    assert await task(0) is False

    @check("functions", "sync_functions", "worker_values", times=2)
    async def test_building_does_not_count_toward_the_timeout(self, flow: WorkflowEngine) -> None:
        def value() -> int:
            time.sleep(1.5)
            return 3

        task = flow.function_task(timeout=1)(_work.add)
        future = task(flow.worker_value(value)(), 1)
        assert await future == 4, "the time for building was counted"
        built = (future.usage or {}).get("build_seconds", 0)
        assert built > 1, f"usage['build_seconds'] is {built}, expected more than 1"

    @check("exceptions", "sync_functions", ISOLATED)
    async def test_a_killed_worker_fails_only_its_task(self, driver: Driver) -> None:
        good = [driver.call(_work.add, number) for number in range(10)]
        log = self.place / "kills"
        killer = driver.call(_work.kill_own_process, str(log))
        ends = await driver.run(*good[:5], killer, *good[5:])
        lost = ends.pop(5)
        assert lost.state is FAILED and isinstance(lost.error, TaskLostError), str(lost)
        others = [end for end in ends if isinstance(end.error, TaskLostError)]
        # A library may start a lost task again, which then kills another worker.
        killed = len(log.read_bytes()) if log.exists() else 1
        assert len(others) <= killed, (
            "a killed worker may only lose its task, and the task before it if the result had not "
            f"been sent; with {killed} killed, also lost: {', '.join(map(str, others))}"
        )
        assert all(
            end in others or end.value == number for number, end in enumerate(ends, start=1)
        ), "other tasks of the batch returned wrong results"
        later = await driver.run_one(driver.call(_work.add, 1))
        assert later.state is DONE, f"a task submitted after the loss did not complete: {later}"
        assert later.value == 2, (
            f"a task submitted after the loss returned {later.value!r}, expected 2"
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
            assert end.value == ["program", number], (
                f"call {number + 1} with the same list saw a change by an earlier call: {end}"
            )
            end = await driver.run_one(driver.call(put_first, big))
            assert end.value == 0, (
                f"call {number + 1} with the same bytearray saw a change by an earlier call: {end}"
            )
        assert small == ["program"] and big[0] == 0, "the program's own objects were changed"

    @check("isolation", "sync_functions", COPIES)
    async def test_tasks_do_not_share_classes(self, driver: Driver) -> None:
        cell, cell_error, grow, fail = _classes()
        program = cell(1)
        for scale in range(2):
            cell.scale = scale
            end = await driver.run_one(driver.call(grow, program))
            assert end.state is DONE, str(end)
            grown, seen = end.value
            assert type(grown) is cell, f"the result is not of the program's class: {grown!r}"
            assert grown.number == 2
            assert seen == scale, f"the class did not have the attributes of the program: {end}"
            assert cell.scale == scale, "the result changed the program's class"
        end = await driver.run_one(driver.call(fail, program))
        assert type(end.error) is cell_error, f"not the program's exception class: {end.error!r}"
        assert end.error.args == (1,)

    @check("functions-on-several-ranks", "mpi_functions")
    async def test_a_function_runs_on_every_rank(self, driver: Driver) -> None:
        end = await self._on_two_ranks(driver, driver.call(_work.rank_size_and_sum, 10))
        assert end.value == [(0, 2, 21), (1, 2, 21)], str(end)

    @check("functions-on-several-ranks", "mpi_functions")
    async def test_an_exception_on_one_rank_ends_all(self, driver: Driver) -> None:
        end = await self._on_two_ranks(driver, driver.call(_work.fail_on_last_rank))
        assert end.state is FAILED and type(end.error) is KitError, str(end)
        assert "rank 1" in str(getattr(end.error, "__notes__", "")), "a note must name the rank"

    async def _on_two_ranks(self, driver: Driver, task: TaskDescription) -> Finished:
        end = await driver.run_one(task | {"resources": Resources(ranks=2)})
        if isinstance(end.error, CapabilityError):
            pytest.skip(f"no MPI here: {end.error}")
        return end

    @check("memory", "sync_functions", times=4)
    async def test_big_closures_do_not_pile_up(self, flow: WorkflowEngine) -> None:
        data, limit = bytes(self.closure_bytes), 8 * self.closure_bytes
        first: dict[int, int] = {}
        here = 0
        for number in range(self.closures):
            size, process, memory = await flow.function_task(_holding(data, number))()
            assert size == len(data) + number
            here = here or process_and_memory()[1]
            grown = {
                f"process {process}": memory - first.setdefault(process, memory),
                "the program": process_and_memory()[1] - here,
            }
            for whose, more in grown.items():
                assert more <= limit, (
                    f"after {number + 1} closures of {len(data)} bytes, {whose} holds {more} more "
                    "bytes"
                )

    @check("functions", "sync_functions")
    async def test_a_task_may_use_the_backends_library(self, driver: Driver) -> None:
        function = self.library_function()
        if function is NotImplemented:
            pytest.skip("the class does not define library_function")
        # More tasks than can run at once: the library's work in them must not wait for free slots.
        tasks = [driver.call(function) for _ in range(2 * (self.cores or 2))]
        for end in await driver.run(*tasks):
            assert end.state is DONE and end.value, (
                "`library_function` must return a function that takes no arguments and returns "
                f"a true value, or NotImplemented: {end}"
            )


def _holding(data: bytes, number: int) -> Callable[[], tuple[int, int, int]]:
    own = bytes(number)

    def held() -> tuple[int, int, int]:
        return len(data) + len(own), *process_and_memory()

    return held


def _stateful() -> list[tuple[str, Callable[[int], Any], list[Any]]]:
    """Return functions that append their argument to a list, as tuples of name, function, list."""
    held: list[list[Any]] = [[] for _ in range(4)]
    closure, default, bound, variable = held

    def with_default(number: int, held: list[Any] = default) -> list[Any]:
        return collect(number, held)

    # As in a program's `__main__` or a notebook, globals are pickled with the function.
    names = {"own": variable, "collect": collect}
    with_global = eval("lambda number: collect(number, own)", names)  # noqa: S307
    return [
        ("a closure", lambda number: collect(number, closure), closure),
        ("a default argument", with_default, default),
        ("a bound argument", functools.partial(collect, held=bound), bound),
        ("a global variable", with_global, variable),
    ]


def _classes() -> tuple[Any, type[Exception], Callable[[Any], Any], Callable[[Any], Any]]:
    """Return a class, an exception class, and functions that create objects of the classes."""

    class Cell:
        __slots__ = ("number",)
        scale = 0

        def __init__(self, number: int) -> None:
            self.number = number

    class CellError(Exception):
        pass

    def grow(cell: Cell) -> tuple[Cell, int]:
        seen, Cell.scale = Cell.scale, 99
        return Cell(cell.number + 1), seen

    def fail(cell: Cell) -> None:
        raise CellError(cell.number)

    return Cell, CellError, grow, fail
