"""Checks of cancellation: before, while and after a task runs, for each kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from rhapsody.context import current_task
from rhapsody.task import TaskDescription, TaskKind
from rhapsody.testing._driver import Driver
from rhapsody.testing._machine import alive
from rhapsody.testing._rules import SHARED, Need, cancels, cannot_stop, skip
from rhapsody.testing._running import check
from rhapsody.testing._tasks import CANCELED, DONE, Ticking, quick, until
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import touch, touch_async

MOST_AT_ONCE = 64

DYING = 2.0
"""Seconds that a process which was killed may take to be gone, on a machine that is busy."""

COOPERATIVE = Need(
    "cancel_functions",
    "the backend stops running functions, or cancels none",
    lambda capabilities, _: (
        capabilities.sync_functions and capabilities.cancel_functions == "queued"
    ),
)


class Cancellation:
    """What `cancel_task` returns, what it stops, and what is reported."""

    @check("cancel_task of an unknown uid is False", dry=True)
    async def test_an_unknown_uid_is_not_cancelled(self, trial: Trial) -> None:
        driver = await trial.driver()
        given = await driver.cancel("no.such.task.000001.1")
        trial.require(given is False, f"it gave {given!r}")

    @check("cancel_task of a task that has ended is False, and changes nothing", dry=True)
    async def test_an_ended_task_is_not_cancelled(self, trial: Trial) -> None:
        driver = await trial.driver()
        for kind in trial.kinds():
            task = quick(driver, kind)
            await driver.run_one(task)
            given = await driver.cancel(task)
            trial.require(given is False, f"for a {kind} it gave {given!r}")
            await trial.clock.elapse(trial.kit.settle)
            states = driver.history(task)
            trial.require(states[-1] is DONE, f"a {kind} was reported {[*map(str, states)]}")

    @check("a queued function can be cancelled", cancels("function", "queued"), SHARED)
    async def test_a_waiting_function_is_cancelled(self, trial: Trial) -> None:
        await _cancel_waiting(trial, "function")

    @check("a queued coroutine can be cancelled", cancels("async_function", "queued"), SHARED)
    async def test_a_waiting_coroutine_is_cancelled(self, trial: Trial) -> None:
        await _cancel_waiting(trial, "async_function")

    @check("a queued executable can be cancelled", cancels("executable", "queued"), SHARED)
    async def test_a_waiting_executable_is_cancelled(self, trial: Trial) -> None:
        await _cancel_waiting(trial, "executable")

    @check("a running function is really stopped", cancels("function", "running"), SHARED)
    async def test_a_running_function_is_stopped(self, trial: Trial) -> None:
        await _cancel_running(trial, "function")

    @check("a running coroutine is really stopped", cancels("async_function", "running"), SHARED)
    async def test_a_running_coroutine_is_stopped(self, trial: Trial) -> None:
        await _cancel_running(trial, "async_function")

    @check("a running executable is really stopped", cancels("executable", "running"), SHARED)
    async def test_a_running_executable_is_stopped(self, trial: Trial) -> None:
        await _cancel_running(trial, "executable")

    @check(
        "an executable is stopped with all processes it started, also such as ignore SIGTERM",
        cancels("executable", "running"),
        SHARED,
    )
    async def test_an_executable_is_stopped_as_a_group(self, trial: Trial) -> None:
        driver = await trial.driver()
        note = trial.work_dir / "pids"
        command = (
            f"trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & "
            f"echo $$ $! > '{note}.part'; mv '{note}.part' '{note}'; "
            "while :; do sleep 0.1; done"
        )
        task = driver.command(command)
        await driver.submit(task)
        await until(note.exists)
        pids = [int(word) for word in note.read_text().split()]
        await _require_canceled(trial, driver, task, "executable")
        with suppress(TimeoutError):
            async with asyncio.timeout(DYING):
                await until(lambda: not any(map(alive, pids)))
        left = [pid for pid in pids if alive(pid)]
        trial.require(not left, f"of the processes {pids} there are still {left}")

    @check(
        "a function that cannot be stopped is reported when it ends",
        cannot_stop("function"),
        SHARED,
    )
    async def test_an_unstoppable_function_is_reported_when_it_ends(self, trial: Trial) -> None:
        await _cancel_unstoppable(trial, "function")

    @check(
        "a coroutine that cannot be stopped is reported when it ends",
        cannot_stop("async_function"),
        SHARED,
    )
    async def test_an_unstoppable_coroutine_is_reported_when_it_ends(self, trial: Trial) -> None:
        await _cancel_unstoppable(trial, "async_function")

    @check(
        "an executable that cannot be stopped is reported when it ends",
        cannot_stop("executable"),
        SHARED,
    )
    async def test_an_unstoppable_executable_is_reported_when_it_ends(self, trial: Trial) -> None:
        await _cancel_unstoppable(trial, "executable")

    @check("a function can check for its cancellation and stop", COOPERATIVE)
    async def test_a_function_can_see_that_it_was_cancelled(self, trial: Trial) -> None:
        driver = await trial.driver()
        seconds = trial.kit.time_limit

        def look() -> str:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if current_task().cancelled:
                    return "saw it"
                time.sleep(0.01)
            return "saw nothing"

        task = driver.call(look)
        await driver.submit(task)
        if not trial.capabilities.reports_running:
            await trial.clock.elapse(trial.kit.settle)
        else:
            await driver.running(task)
        await driver.cancel(task)
        trial.doing("waiting for a function that looks at current_task().cancelled")
        await driver.finished(task)

    @check("cancelling twice is one cancellation", SHARED)
    async def test_cancelling_twice_is_one_cancellation(self, trial: Trial) -> None:
        kinds = _stoppable(trial)
        driver = await trial.driver()
        for kind in kinds:
            ticking = Ticking(trial, driver, kind)
            await driver.submit(ticking.task)
            await ticking.began()
            await asyncio.gather(driver.cancel(ticking.task), driver.cancel(ticking.task))
            end = await driver.finished(ticking.task)
            trial.require(end.state is CANCELED, f"a {kind}: {end}")
        await trial.clock.elapse(trial.kit.settle)

    @check("cancelling one task leaves its neighbours alone", SHARED)
    async def test_a_cancellation_leaves_neighbours_alone(self, trial: Trial) -> None:
        kinds = _stoppable(trial)
        driver = await trial.driver()
        for kind in kinds:
            stopped, other = Ticking(trial, driver, kind), Ticking(trial, driver, kind)
            await driver.submit(stopped.task, other.task)
            await stopped.began()
            await _require_canceled(trial, driver, stopped.task, kind)
            trial.doing(f"waiting for the neighbour of a cancelled {kind}")
            await other.began()
            other.release()
            end = await driver.finished(other.task)
            trial.require(end.state is DONE, f"the neighbour of a cancelled {kind}: {end}")
            after = await driver.run_one(quick(driver, kind))
            trial.require(after.state is DONE, f"after a cancelled {kind}: {after}")

    @check("a cancellation in the same loop iteration as the submission is not lost", SHARED)
    async def test_a_cancellation_at_once_is_not_lost(self, trial: Trial) -> None:
        kinds = _stoppable(trial)
        driver = await trial.driver()
        for kind in kinds:
            tasks = [Ticking(trial, driver, kind) for _ in range(3)]
            await driver.submit(*(each.task for each in tasks))
            for each in tasks:
                await _require_canceled(trial, driver, each.task, kind)
            still = [await each.is_still(0.1) for each in tasks]
            trial.require(all(still), f"a {kind} goes on after its terminal state")


async def _cancel_waiting(trial: Trial, kind: TaskKind) -> None:
    """Fills the backend, then cancels what waits behind."""
    driver = await trial.driver()
    blockers = [Ticking(trial, driver, kind) for _ in range(MOST_AT_ONCE)]
    traces = [trial.work_dir / f"trace.{number}" for number in range(3)]
    victims = [_tracing(driver, kind, str(trace)) for trace in traces]
    await driver.submit(*(blocker.task for blocker in blockers), *victims)
    await blockers[0].began()
    before, begun = -1, 0
    while begun > before:  # a busy machine starts them slowly
        await trial.clock.elapse(trial.kit.settle)
        before, begun = begun, sum(blocker.has_begun() for blocker in blockers)
    try:
        if begun == MOST_AT_ONCE or any(trace.exists() for trace in traces):
            skip(f"nothing waits: the backend starts {MOST_AT_ONCE} tasks of this kind at once")
        # All at once: a backend that is slow to start what it has goes on with that meanwhile.
        cancelling = (_require_canceled(trial, driver, victim, kind) for victim in victims)
        await asyncio.gather(*cancelling)
    finally:
        for blocker in blockers:
            blocker.release()
    for blocker in blockers:
        end = await driver.finished(blocker.task)
        trial.require(end.state is DONE, f"a task that was not cancelled: {end}")
    ran = [trace.name for trace in traces if trace.exists()]
    trial.require(not ran, f"{len(ran)} of 3 cancelled tasks ran all the same")


async def _cancel_running(trial: Trial, kind: TaskKind) -> None:
    driver = await trial.driver()
    ticking = Ticking(trial, driver, kind)
    await driver.submit(ticking.task)
    trial.doing(f"waiting for a {kind} to begin")
    await ticking.began()
    await _require_canceled(trial, driver, ticking.task, kind)
    trial.require(
        await ticking.is_still(), f"a {kind} was reported CANCELED while its work goes on"
    )


async def _cancel_unstoppable(trial: Trial, kind: TaskKind) -> None:
    driver = await trial.driver()
    ticking = Ticking(trial, driver, kind)
    await driver.submit(ticking.task)
    await ticking.began()
    given = await driver.cancel(ticking.task)
    trial.require(isinstance(given, bool), f"cancel_task gave {given!r}")
    await trial.clock.elapse(trial.kit.settle)
    early = [state for state in driver.history(ticking.task) if state in (DONE, CANCELED)]
    going_on = not await ticking.is_still(0.1)
    trial.require(not (early and going_on), f"a {kind} was reported {early} while it goes on")
    ticking.release()
    trial.doing(f"waiting for a {kind} that was asked to stop and released")
    await driver.finished(ticking.task)


async def _require_canceled(
    trial: Trial, driver: Driver, task: TaskDescription, kind: TaskKind
) -> None:
    trial.doing(f"waiting for a cancelled {kind} to end")
    given = await driver.cancel(task)
    trial.require(given is True, f"cancel_task of a {kind} gave {given!r}")
    end = await driver.finished(task)
    trial.require(end.state is CANCELED, f"a cancelled {kind}: {end}")


def _tracing(driver: Driver, kind: TaskKind, path: str) -> TaskDescription:
    if kind == "executable":
        return driver.command(["touch", path])
    function: Callable[..., object] = touch_async if kind == "async_function" else touch
    return driver.call(function, path)


def _stoppable(trial: Trial) -> list[TaskKind]:
    kinds: list[TaskKind]
    kinds = [k for k in trial.kinds() if trial.capabilities.cancellation(k) == "running"]
    if not kinds:
        skip("the backend does not declare that it cancels anything that runs")
    return kinds
