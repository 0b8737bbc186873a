"""Checks that every form of call works the same on every route through a backend.

A backend may run an ordinary function, a coroutine function, a partial, a bound method and
a callable object in different ways, and each of them in another way when it is called with
`cores=0`. Each check here sends one batch with all of these forms.
"""

from __future__ import annotations

import asyncio
import functools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rhapsody.errors import CapabilityError
from rhapsody.task import Resources, TaskDescription, TaskKind
from rhapsody.testing._driver import Driver
from rhapsody.testing._rules import FUNCTIONS, OUTPUT, SHARED, skip
from rhapsody.testing._running import check
from rhapsody.testing._tasks import CANCELED, DONE, FAILED, Ticking
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import (
    Holder,
    KitError,
    fail_because,
    fail_because_async,
    note_run,
    note_run_async,
    say_both,
    say_both_async,
    variable,
    variable_async,
    words,
    words_async,
)

ONCE = 300
_VARIABLE = "RHAPSODY_KIT_ROUTE"


@dataclass(frozen=True, slots=True)
class Route:
    """One form of call with one request for cores.

    Attributes:
        name: The name for messages.
        kind: The kind of task.
        wrap: Bring a function into this form.
        resources: The request, `None` for none.
    """

    name: str
    kind: TaskKind
    wrap: Callable[[Any], Any]
    resources: Resources | None

    def call(
        self, driver: Driver, function: Any, coroutine: Any, *args: Any, **kwargs: Any
    ) -> TaskDescription:
        """Return the description of a call of one of two equivalent functions."""
        return self.take(driver.call(self.pick(function, coroutine), *args, **kwargs))

    def pick(self, function: Any, coroutine: Any) -> Any:
        """Return the function that is of this route's kind."""
        return coroutine if self.kind == "async_function" else function

    def take(self, task: TaskDescription) -> TaskDescription:
        """Bring the function of a description into this form, and add the request."""
        task["function"] = self.wrap(task["function"])
        if self.resources is not None:
            task["resources"] = self.resources
        return task


class Routes:
    """Keywords, environment, output, failures and cancellation, for each form of call."""

    @check("every form of call receives its arguments and keywords, on every route", FUNCTIONS)
    async def test_every_route_passes_arguments_and_keywords(self, trial: Trial) -> None:
        driver = await trial.driver()
        routes = routes_of(trial)
        tasks = [
            route.call(driver, words, words_async, f"left {number}", right=f"right {number}")
            for number, route in enumerate(routes)
        ]
        for number, (route, end) in enumerate(zip(routes, await driver.run(*tasks), strict=True)):
            expected = [f"left {number}", f"right {number}"]
            trial.require(
                end.state is DONE and end.value == expected,
                f"{route.name} was called with an argument and a keyword and must return "
                f"{expected}: {end}",
            )

    @check("every form of call sees its `environment`, or is refused", FUNCTIONS)
    async def test_every_route_has_its_environment(self, trial: Trial) -> None:
        driver = await trial.driver()
        routes = routes_of(trial)
        tasks = [route.call(driver, variable, variable_async, _VARIABLE) for route in routes]
        for number, task in enumerate(tasks):
            task["environment"] = {_VARIABLE: f"value {number}"}
        for number, (route, end) in enumerate(zip(routes, await driver.run(*tasks), strict=True)):
            refused = end.state is FAILED and isinstance(end.error, CapabilityError)
            trial.require(
                refused or (end.state is DONE and end.value == f"value {number}"),
                f"{route.name} with environment={{'{_VARIABLE}': 'value {number}'}} must see the "
                f"variable, or fail with a CapabilityError where functions share the "
                f"program's environment: {end}",
            )

    @check("printed output is kept for every form of call", FUNCTIONS, OUTPUT)
    async def test_every_route_keeps_what_is_printed(self, trial: Trial) -> None:
        driver = await trial.driver()
        routes = routes_of(trial)
        tasks = [
            route.call(driver, say_both, say_both_async, f"words {number}")
            for number, route in enumerate(routes)
        ]
        for number, (route, end) in enumerate(zip(routes, await driver.run(*tasks), strict=True)):
            trial.require(end.state is DONE, f"{route.name}: {end}")
            kept = end.stdout, end.stderr
            expected = f"words {number}\n", f"words {number} aside\n"
            trial.require(
                kept == expected,
                f"{route.name} printed {expected}; stdout and stderr are {kept}, though the "
                "capability captures_output is declared",
            )

    @check("a failure keeps its type, arguments, cause and place on every route", FUNCTIONS)
    async def test_every_route_keeps_failures_whole(self, trial: Trial) -> None:
        driver = await trial.driver()
        routes = routes_of(trial)
        tasks = [
            route.call(driver, fail_because, fail_because_async, f"failure {number}")
            for number, route in enumerate(routes)
        ]
        for number, (route, end) in enumerate(zip(routes, await driver.run(*tasks), strict=True)):
            error = end.error
            trial.require(
                end.state is FAILED
                and type(error) is KitError
                and error.args == (f"failure {number}", 7)
                and getattr(error, "code", None) == 7,
                f"{route.name} raised KitError('failure {number}', 7): {end}",
            )
            assert error is not None
            shown = "".join(traceback.format_exception(error))
            function = route.pick(fail_because, fail_because_async)
            for what, text in {
                "its cause": "LookupError: the reason for failure",
                "the file that raised it": function.__code__.co_filename,
                "the function that raised it": f"in {function.__name__}",
            }.items():
                trial.require(
                    text in shown,
                    f"the failure of {route.name} does not show {what}, {text!r}, in its traceback "
                    f"or in that of its `__cause__`: {shown[-1500:]}",
                )

    @check("every form of call is stopped while it runs, on every route", FUNCTIONS, SHARED)
    async def test_every_route_can_be_cancelled(self, trial: Trial) -> None:
        stops = trial.capabilities.cancellation
        routes = [route for route in routes_of(trial) if stops(route.kind) == "running"]
        if not routes:
            skip("the backend does not declare that it cancels a running function or coroutine")
        driver = await trial.driver()
        tickings = [Ticking(trial, driver, route.kind) for route in routes]
        tasks = [route.take(ticking.task) for route, ticking in zip(routes, tickings, strict=True)]
        open_names = {route.name for route in routes}

        async def cancel(route: Route, ticking: Ticking, task: TaskDescription) -> None:
            await ticking.began()
            given = await driver.cancel(task)
            trial.require(
                given is True,
                f"cancel_task of {route.name}, which runs, must return True; it returned {given!r}",
            )
            end = await driver.finished(task)
            trial.require(end.state is CANCELED, f"{route.name} was cancelled while it ran: {end}")
            open_names.discard(route.name)
            trial.doing(f"waiting for the end of {', '.join(sorted(open_names))}, cancelled")

        trial.doing(f"waiting for the end of {', '.join(sorted(open_names))}, cancelled")
        await driver.submit(*tasks)
        try:
            await asyncio.gather(*map(cancel, routes, tickings, tasks))
            still = await asyncio.gather(*(ticking.is_still() for ticking in tickings))
        finally:
            for ticking in tickings:
                ticking.release()
        going = [route.name for route, ended in zip(routes, still, strict=True) if not ended]
        trial.require(not going, f"{', '.join(going)}: reported CANCELED while the work goes on")

    @check("each of several hundred calls is executed exactly once", FUNCTIONS, SHARED, times=2)
    async def test_each_call_is_executed_exactly_once(self, trial: Trial) -> None:
        driver = await trial.driver()
        routes = routes_of(trial)
        places = [trial.work_dir / f"run.{number}" for number in range(min(ONCE, trial.kit.fan))]
        tasks = [
            routes[number % len(routes)].call(driver, note_run, note_run_async, str(place))
            for number, place in enumerate(places)
        ]
        trial.doing(f"waiting for {len(tasks)} calls that each leave a mark")
        await driver.run(*tasks)
        await trial.clock.elapse(trial.kit.settle)  # a second execution may follow
        marks = [place.stat().st_size if place.exists() else 0 for place in places]
        wrong = [number for number, count in enumerate(marks) if count != 1]
        trial.require(
            not wrong,
            lambda: (
                f"{len(wrong)} of {len(marks)} calls were not, such as {_name(routes, wrong[0])}, "
                f"executed {marks[wrong[0]]} times"
            ),
        )


def routes_of(trial: Trial) -> list[Route]:
    """Return every form of call that the backend runs, with and without cores."""
    requests: list[tuple[str, Resources | None]] = [("", None)]
    if "cores" in trial.capabilities.resources:
        requests.append((" with cores=0", Resources(cores=0)))
    forms: list[tuple[str, TaskKind, Callable[[Any], Any]]] = [
        ("a function", "function", lambda function: function),
        ("a partial", "function", functools.partial),
        ("a method", "function", lambda function: Holder(function).call),
        ("a callable object", "function", Holder),
        ("a coroutine function", "async_function", lambda function: function),
        ("a partial of a coroutine function", "async_function", functools.partial),
        ("a coroutine method", "async_function", lambda function: Holder(function).call_async),
    ]
    kinds = trial.kinds()
    return [
        Route(name + suffix, kind, wrap, request)
        for suffix, request in requests
        for name, kind, wrap in forms
        if kind in kinds
    ]


def _name(routes: list[Route], number: int) -> str:
    return f"call {number}, of {routes[number % len(routes)].name}"
