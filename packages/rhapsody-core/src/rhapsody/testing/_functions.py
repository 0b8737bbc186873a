"""Checks of function tasks: what can be called, and how exceptions come back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from rhapsody.errors import TaskLostError
from rhapsody.task import Resources
from rhapsody.testing._grounds import grounds
from rhapsody.testing._rules import ASYNC, FUNCTIONS, ISOLATED, OUTPUT, SYNC, honours
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE, FAILED
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import (
    Adder,
    KitError,
    add,
    add_async,
    fail,
    fail_async,
    interval_async,
    kill_own_process,
    leave,
    leave_async,
    say,
    say_async,
)


class Functions:
    """Functions of every form run, and their outcome comes back as it was."""

    @check("a function runs with positional arguments, keywords and defaults", SYNC)
    async def test_it_runs_functions(self, trial: Trial) -> None:
        await _require_values(
            trial, (add, (1,), {}, 2), (add, (1, 2), {"more": 3}, 6), (add, (), {"left": 4}, 5)
        )

    @check("a coroutine function runs with positional arguments and keywords", ASYNC)
    async def test_it_runs_coroutine_functions(self, trial: Trial) -> None:
        await _require_values(trial, (add_async, (1,), {}, 2), (add_async, (1, 2), {"more": 3}, 6))

    @check("lambdas and closures run", SYNC)
    async def test_it_runs_lambdas_and_closures(self, trial: Trial) -> None:
        base = 10

        def closure(number: int) -> int:
            return base + number

        await _require_values(
            trial, (lambda number: base * number, (2,), {}, 20), (closure, (2,), {}, 12)
        )

    @check("nested coroutine functions run", ASYNC)
    async def test_it_runs_nested_coroutine_functions(self, trial: Trial) -> None:
        base = 10

        async def closure(number: int) -> int:
            return base + number

        await _require_values(trial, (closure, (2,), {}, 12))

    @check("partials, methods, callable objects and built-ins run", SYNC)
    async def test_it_runs_partials_methods_and_objects(self, trial: Trial) -> None:
        await _require_values(
            trial,
            (functools.partial(add, 1, more=5), (2,), {}, 8),
            (Adder(3).add, (4,), {}, 7),
            (Adder(3), (5,), {}, 8),
            (math.factorial, (5,), {}, 120),
            (dict, (), {"a": 1}, {"a": 1}),
        )

    @check("partials and methods that are coroutine functions run", ASYNC)
    async def test_it_runs_asynchronous_partials_and_methods(self, trial: Trial) -> None:
        await _require_values(
            trial,
            (functools.partial(add_async, 1, more=5), (2,), {}, 8),
            (Adder(3).add_async, (4,), {}, 7),
        )

    @check("`None` and falsy values are results like any other", FUNCTIONS)
    async def test_none_and_falsy_results_come_back(self, trial: Trial) -> None:
        function = trial.form(lambda value: value)
        values: tuple[Any, ...] = (None, 0, "", [], False)
        await _require_values(trial, *((function, (value,), {}, value) for value in values))

    @check("an exception keeps its type, message and attributes", SYNC)
    async def test_an_exception_keeps_type_and_message(self, trial: Trial) -> None:
        await _require_error(trial, fail)

    @check("a coroutine function's exception keeps type, message and attributes", ASYNC)
    async def test_an_asynchronous_exception_keeps_type_and_message(self, trial: Trial) -> None:
        await _require_error(trial, fail_async)

    @check("built-in exceptions keep type and arguments", FUNCTIONS)
    async def test_builtin_exceptions_keep_type_and_arguments(self, trial: Trial) -> None:
        driver = await trial.driver()

        def missing() -> None:
            raise FileNotFoundError(2, "No such file", "données.txt")

        def divide() -> None:
            raise ZeroDivisionError("division by 0")

        ends = await driver.run(*(driver.call(trial.form(f)) for f in (missing, divide)))
        first, second = (end.error for end in ends)
        trial.require(
            isinstance(first, FileNotFoundError)
            and first.errno == 2
            and first.filename == "données.txt",
            f"FileNotFoundError(2, ..., 'données.txt') came back as {first!r}",
        )
        trial.require(
            type(second) is ZeroDivisionError and second.args == ("division by 0",),
            f"ZeroDivisionError('division by 0') came back as {second!r}",
        )

    @check("a function that raises SystemExit fails its task and nothing else", FUNCTIONS)
    async def test_system_exit_fails_its_task_alone(self, trial: Trial) -> None:
        driver = await trial.driver()
        if trial.capabilities.sync_functions:
            functions: tuple[Callable[..., Any], ...] = (leave, add)
        else:
            functions = (leave_async, add_async)
        for round_ in range(2):
            left, good = await driver.run(*(driver.call(function, 3) for function in functions))
            trial.require(left.state is FAILED, f"round {round_ + 1}: {left}")
            trial.require(left.error is not None, f"it has no exception: {left}")
            trial.require(good.state is DONE, f"its neighbour in round {round_ + 1}: {good}")

    @check("a worker that is killed fails its task alone", SYNC, ISOLATED)
    async def test_a_killed_worker_fails_its_task_alone(self, trial: Trial) -> None:
        driver = await trial.driver()
        good = [driver.call(add, number) for number in range(10)]
        batch = [*good[:5], driver.call(kill_own_process), *good[5:]]
        trial.doing("waiting for the task whose worker was killed and ten others")
        await driver.submit(*batch)
        lost = await driver.finished(batch[5])
        trial.require(
            lost.state is FAILED and isinstance(lost.error, TaskLostError),
            f"the task, with a TaskLostError: {lost}",
        )
        for number, task in enumerate(good):
            end = await driver.finished(task)
            trial.require(end.value == number + 1, f"a neighbour: {end}")
        after = await driver.run_one(driver.call(add, 1))
        trial.require(after.value == 2, f"a task afterwards: {after}")

    @check("the output of a function is kept with its task", SYNC, OUTPUT)
    async def test_what_a_function_prints_is_kept(self, trial: Trial) -> None:
        await _require_output(trial, say)

    @check("the output of a coroutine is kept with its task", ASYNC, OUTPUT)
    async def test_what_a_coroutine_prints_is_kept(self, trial: Trial) -> None:
        await _require_output(trial, say_async)

    @check("coroutine functions without cores share a loop", ASYNC, honours("cores"))
    async def test_waiting_coroutines_do_not_hold_slots(self, trial: Trial) -> None:
        driver = await trial.driver()
        count = 50
        tasks = [driver.call(interval_async, 0.2) for _ in range(count)]
        for task in tasks:
            task["resources"] = Resources(cores=0)
        ends = await driver.run(*tasks)
        times = [end.value for end in ends]
        trial.require(all(times), f"{ends[0]}")
        most = most_at_once(times)
        cores = trial.kit.cores or 1
        trial.require(most > cores, f"of {count} that wait, {most} did so at once")

    @check("modules next to the program's script are imported where functions run", FUNCTIONS)
    async def test_modules_next_to_the_script_are_imported(self, trial: Trial) -> None:
        """Calls a function of a module that only the program's `sys.path` leads to.

        Its directory is on `sys.path` before the backend is made.
        """
        driver = await trial.driver()
        neighbor = grounds.neighbor()
        functions = {"function": neighbor.triple, "async_function": neighbor.triple_async}
        for kind in trial.kinds(of=("function", "async_function")):
            end = await driver.run_one(driver.call(functions[kind], 2))
            trial.require(
                end.state is DONE and end.value == 6,
                f"a {kind} of a module in a directory of the program's sys.path must run and "
                f"return 6; workers need the program's sys.path, or the module itself: {end}",
            )

    @check("a batch of functions runs whatever the order in which they end", FUNCTIONS)
    async def test_results_belong_to_their_tasks(self, trial: Trial) -> None:
        driver = await trial.driver()
        function = add if trial.capabilities.sync_functions else add_async
        ends = await driver.run(*(driver.call(function, number) for number in range(100)))
        wrong = [end for number, end in enumerate(ends) if end.value != number + 1]
        trial.require(not wrong, lambda: f"{len(wrong)} of 100 are not theirs, such as {wrong[0]}")


def most_at_once(intervals: list[tuple[float, float]]) -> int:
    """How many of the intervals overlap at most."""
    steps = sorted(step for began, ended in intervals for step in ((began, 1), (ended, -1)))
    most = now = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


async def _require_values(
    trial: Trial, *calls: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]
) -> None:
    driver = await trial.driver()
    tasks = [driver.call(function, *args, **kwargs) for function, args, kwargs, _ in calls]
    for end, (_, args, kwargs, expected) in zip(await driver.run(*tasks), calls, strict=True):
        trial.require(
            end.state is DONE and end.value == expected and type(end.value) is type(expected),
            f"called with {args} and {kwargs}, expected {expected!r}: {end}",
        )


async def _require_output(trial: Trial, function: Callable[..., Any]) -> None:
    driver = await trial.driver()
    texts = [f"grüße {number}" for number in range(4)]
    ends = await driver.run(*(driver.call(function, text) for text in texts))
    for text, end in zip(texts, ends, strict=True):
        trial.require(end.value == text, f"the result: {end}")
        trial.require(end.stdout == f"{text}\n", f"stdout, and not {text!r} alone: {end}")
        trial.require(end.stderr == f"{text} aside\n", f"stderr: {end}")


async def _require_error(trial: Trial, function: Callable[..., Any]) -> None:
    driver = await trial.driver()
    end = await driver.run_one(driver.call(function, "grüße, on purpose"))
    error = end.error
    trial.require(end.state is FAILED, f"{end}")
    trial.require(type(error) is KitError, f"a KitError came back as {error!r}")
    assert isinstance(error, KitError)
    trial.require(
        error.args == ("grüße, on purpose", 7) and error.code == 7,
        f"KitError('grüße, on purpose', 7) came back as {error!r} with code {error.code}",
    )
