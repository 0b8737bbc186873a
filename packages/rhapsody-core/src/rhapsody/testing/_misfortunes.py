"""Checks of failure, retries, time-outs and cancellation through the engine."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import TYPE_CHECKING, Any

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.data import RESERVED
from rhapsody.errors import DependencyFailureError, TaskFailedError, TaskTimeoutError
from rhapsody.task import TaskDescription
from rhapsody.testing._graphs import adder, value
from rhapsody.testing._rules import (
    ASYNC,
    EXECUTABLES,
    FUNCTIONS,
    ISOLATED,
    SANDBOXES,
    SHARED,
    SYNC,
    cancels,
)
from rhapsody.testing._running import check
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import KitError, kill_own_process, tick_command

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine


class _Failing(ManagedBackend):
    """Fails every task.

    Args:
        capabilities: What it says that it can do.
    """

    name = "failing"
    canonical_states = True

    def __init__(self, capabilities: Capabilities) -> None:
        super().__init__()
        self.capabilities = capabilities

    async def run_task(self, task: TaskDescription) -> Any:
        """Fails it."""
        raise KitError("elsewhere")


class Misfortunes:
    """What a user sees when something goes wrong."""

    @check("a failure reaches only its dependents", FUNCTIONS)
    async def test_a_failure_reaches_its_dependents(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        bad = _broken(trial, flow)()
        dependent = plus(plus(bad))
        good = plus(plus(1))
        try:
            await dependent
        except DependencyFailureError as error:
            trial.require(
                isinstance(error.root_cause, KitError) and error.root_cause.code == 7,
                f"the root cause is {error.root_cause!r}, not the KitError with code 7",
            )
        else:
            raise trial.check.error("the dependent of a failed task did not fail")
        try:
            await bad
        except KitError as error:
            trial.require(error.args == ("on purpose", 7), f"the failed task raised {error!r}")
        else:
            raise trial.check.error("the failed task raised nothing")
        trial.require(value(await good) == 3, "an independent branch did not go on")

    @check("an exception names the call that raised it, the place, and the last output", FUNCTIONS)
    async def test_an_exception_says_which_call_raised_it(self, trial: Trial) -> None:
        flow = await trial.engine()
        bad = _broken(trial, flow)("a word")
        await asyncio.wait([bad])
        parts = [
            f"raised in {bad.name}('a word')\n",
            f"{bad.uid}, attempt 1, on {flow.backend.name!r}",
        ]
        if trial.capabilities.captures_output:
            parts.append("standard output ended with:\n    printed: a word")
        _require_note(trial, bad, parts)

    @check("a failed executable is a TaskFailedError with code and stderr", EXECUTABLES)
    async def test_a_failed_executable_says_why(self, trial: Trial) -> None:
        flow = await trial.engine()
        future = _failing(flow)("a word")
        try:
            given = await future
        except TaskFailedError as error:
            trial.require(error.exit_code == 3, f"its exit code is {error.exit_code!r}")
            trial.require("the reason" in error.stderr, f"its stderr is {error.stderr!r}")
            trial.require(error.stdout == "a word\n", f"its stdout is {error.stdout!r}")
        else:
            raise trial.check.error(f"it gave {given!r}")
        parts = ["raised in failing('a word')\n", "standard output ended with:\n    a word"]
        _require_note(trial, future, parts)

    @check(
        "a failed executable can be run again in its sandbox",
        EXECUTABLES,
        SANDBOXES,
        SHARED,
    )
    async def test_a_failed_executable_can_be_run_again(self, trial: Trial) -> None:
        flow = await trial.engine()
        future = _failing(flow)("a word")
        await asyncio.wait([future])
        script = f"{future.sandbox}/{RESERVED}again"
        _require_note(trial, future, [f"  sandbox: {future.sandbox}\n", "to run it again: sh "])
        again = await asyncio.to_thread(
            subprocess.run, ["sh", script], capture_output=True, text=True, check=False
        )
        trial.require(
            (again.returncode, again.stdout) == (3, "a word\n"),
            f"run again, it ended with {again.returncode} and printed {again.stdout!r}",
        )

    @check("a failed task is tried again, each attempt anew", SYNC, SHARED)
    async def test_a_failed_function_is_tried_again(self, trial: Trial) -> None:
        flow = await trial.engine()
        traces = trial.work_dir / "attempts"

        @flow.function_task(retries=2)
        def third_time() -> int:
            from rhapsody.context import current_task

            with open(traces, "a") as file:
                file.write(f"{current_task().attempt}\n")
            if current_task().attempt < 3:
                raise KitError("not yet")
            return current_task().attempt

        future = third_time()
        result = await future
        seen = traces.read_text().split()
        trial.require(
            result == 3 and future.attempt == 3 and seen == ["1", "2", "3"],
            f"it gave {result!r} in attempt {future.attempt}; the attempts that ran: {seen}",
        )

    @check("a failed executable is tried again in a fresh sandbox", EXECUTABLES, SHARED)
    async def test_a_failed_executable_is_tried_again(self, trial: Trial) -> None:
        flow = await trial.engine()
        traces = trial.work_dir / "attempts"

        @flow.executable_task(retries=2)
        async def third_time() -> str:
            return (
                f"echo x >> '{traces}'; test $(wc -l < '{traces}') -ge 3 || "
                "{ touch left-over; exit 1; }; test ! -e left-over && echo fine"
            )

        result = await third_time()
        trial.require(result == "fine\n", f"it gave {result!r}")

    @check("a task that failed on another backend continues here", SYNC)
    async def test_what_another_backend_has_failed_goes_on_here(self, trial: Trial) -> None:
        backend = await trial.backend()
        flow = await trial.engine([_Failing(trial.capabilities), backend])

        @flow.function_task(retries=1, other_backends=(backend.name,))
        def attempt() -> int:
            from rhapsody.context import current_task

            return current_task().attempt

        future = attempt()
        result = await future
        trial.require(
            (result, future.backend) == (3, backend.name),
            f"its third attempt gave {result!r} on {future.backend!r}",
        )

    @check("a task whose worker was lost is tried again", SYNC, ISOLATED, SHARED)
    async def test_a_lost_task_is_tried_again(self, trial: Trial) -> None:
        flow = await trial.engine()
        trace = trial.work_dir / "trace"

        @flow.function_task
        def die_once() -> str:
            if not trace.exists():
                trace.touch()
                kill_own_process()
            return "alive"

        trial.doing("waiting for a task whose worker was killed in its first attempt")
        result = await die_once()
        trial.require(result == "alive", f"it gave {result!r}")

    @check(
        "a time-out ends the attempt and stops its work",
        cancels("executable", "running"),
        SHARED,
    )
    async def test_a_timeout_stops_an_executable(self, trial: Trial) -> None:
        flow = await trial.engine()
        ticks = trial.work_dir / "ticks"

        @flow.executable_task(timeout=0.5)
        async def long() -> list[str]:
            return tick_command(str(ticks), str(trial.work_dir), 60)

        future = long()
        trial.doing("waiting for the time-out of an executable")
        await _require_timeout(trial, future)
        await future.ended()
        size = ticks.stat().st_size if ticks.exists() else 0
        await trial.clock.elapse(0.3)
        after = ticks.stat().st_size if ticks.exists() else 0
        trial.require(after == size, "its work goes on")

    @check("a timeout ends a coroutine's attempt", cancels("async_function", "running"))
    async def test_a_timeout_stops_a_coroutine(self, trial: Trial) -> None:
        flow = await trial.engine()

        @flow.function_task(timeout=0.3)
        async def long() -> str:
            await asyncio.sleep(60)
            return "ended by itself"

        future = long()
        trial.doing("waiting for the time-out of a coroutine")
        await _require_timeout(trial, future)
        await future.ended()

    @check("a timeout fails a function immediately, even if it cannot be stopped", SYNC)
    async def test_a_timeout_fails_a_function(self, trial: Trial) -> None:
        flow = await trial.engine()

        @flow.function_task(timeout=0.3)
        def long() -> str:
            time.sleep(1.5)
            return "ended by itself"

        future = long()
        began = trial.clock.now()
        trial.doing("waiting for the time-out of a function")
        await _require_timeout(trial, future)
        if trial.capabilities.cancel_functions != "running":
            # It was started before it can time out; only the wait for it can be judged.
            trial.require(
                trial.clock.now() - began < 1.5, "it was not failed before its work ended"
            )
        await future.ended()

    @check("cancel() of a running task stops the work", FUNCTIONS)
    async def test_a_running_task_is_cancelled(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        long = _long(trial, flow)()
        dependent = plus(long)
        await _until_running(long)
        trial.require(long.cancel() is True, "cancel() of a running task is not True")
        trial.require(long.cancelled(), "the future is not cancelled at once")
        for future in (long, dependent):
            try:
                await future
            except asyncio.CancelledError:
                continue
            raise trial.check.error(f"{future!r} was not cancelled")
        trial.doing("waiting for the work of a cancelled task to end")
        await long.ended()
        after = value(await plus(1))
        trial.require(after == 2, f"a task afterwards gave {after}")

    @check("cancel() of a finished task is False and its result stays", dry=True)
    async def test_a_finished_task_is_not_cancelled(self, trial: Trial) -> None:
        flow = await trial.engine()
        future = adder(trial, flow)(1)
        result = await future
        trial.require(future.cancel() is False, "cancel() of a finished task is not False")
        trial.require(await future == result, "its result did not stay")

    @check("asyncio.timeout around a task returns in time", ASYNC)
    async def test_a_wait_with_a_timeout_returns_in_time(self, trial: Trial) -> None:
        flow = await trial.engine()
        long = _long(trial, flow)()
        began = trial.clock.now()
        try:
            async with asyncio.timeout(0.2):
                await long
        except TimeoutError:
            took = trial.clock.now() - began
            trial.require(took < 1.0, f"it returned after {took:.1f} s, not 0.2 s")
        else:
            raise trial.check.error("it did not time out")
        await long.ended()

    @check("shutdown cancels what is unfinished, and leaves no task waiting", FUNCTIONS)
    async def test_an_engines_shutdown_cancels_what_is_unfinished(self, trial: Trial) -> None:
        backend = await trial.own(last=True)
        flow = await trial.engine(backend)
        plus = adder(trial, flow)
        long = _long(trial, flow)
        running = [long() for _ in range(2)]
        waiting = [plus(future) for future in running]
        await _until_running(running[0])
        trial.doing("waiting for the engine's shutdown with work in flight")
        await flow.shutdown()
        left = [future for future in (*running, *waiting) if not future.cancelled()]
        trial.require(not left, f"after shutdown there are {left}")


def _broken(trial: Trial, flow: WorkflowEngine) -> Any:
    if trial.capabilities.sync_functions:

        @flow.function_task
        def broken(word: str = "") -> None:
            print("printed:", word)  # noqa: T201 - a check looks for it
            raise KitError("on purpose", 7)

        return broken

    @flow.function_task
    async def broken_async(word: str = "") -> None:
        print("printed:", word)  # noqa: T201 - a check looks for it
        raise KitError("on purpose", 7)

    return broken_async


def _failing(flow: WorkflowEngine) -> Any:
    @flow.executable_task
    async def failing(word: str) -> str:
        return f"echo {word}; echo the reason >&2; exit 3"

    return failing


def _require_note(trial: Trial, future: Any, parts: list[str]) -> None:
    """Requires that one note on the exception of a failed future has all of these in it."""
    notes = [str(each) for each in getattr(future.exception(), "__notes__", [])]
    told = [note for note in notes if "raised in " in note]
    trial.require(len(told) == 1, f"its notes are {notes}")
    for part in parts:
        trial.require(part in told[0], f"there is no {part!r} in {told[0]!r}")


def _long(trial: Trial, flow: WorkflowEngine) -> Any:
    """A task that takes long where it can be stopped, and two seconds where not."""
    if trial.capabilities.functions:
        seconds = 60.0 if trial.capabilities.cancel_async_functions == "running" else 2.0

        @flow.function_task
        async def long_async() -> str:
            await asyncio.sleep(seconds)
            return "ended by itself"

        return long_async
    seconds = 60.0 if trial.capabilities.cancel_functions == "running" else 2.0

    @flow.function_task
    def long() -> str:
        time.sleep(seconds)
        return "ended by itself"

    return long


async def _until_running(future: Any) -> None:
    for _ in range(100):
        if future.state == "RUNNING" or future.done():
            return
        await asyncio.sleep(0.01)


async def _require_timeout(trial: Trial, future: Any) -> None:
    try:
        given = await future
    except TaskTimeoutError:
        return
    raise trial.check.error(f"it gave {given!r}")
