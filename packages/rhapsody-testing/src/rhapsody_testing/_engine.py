"""Checks of a backend that an engine uses: graphs, failures, timeouts and cancellation."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    TaskFailedError,
    TaskTimeoutError,
    WorkflowEngine,
    current_task,
)
from rhapsody.sdk import TaskKind
from rhapsody_testing._suite import (
    FUNCTIONS,
    RUNNING,
    NewEngine,
    Suite,
    Ticking,
    cancels,
    check,
    each_function_kind,
    each_kind,
    state_of,
    text_of,
    until,
)
from rhapsody_testing._tools import Driver
from rhapsody_testing._work import KitError


class Engine(Suite):
    """Checks of graphs of tasks, and of the errors that users see when a task fails."""

    @check("workflows", dry=True, times=2, fan=True)
    async def test_a_fan_runs(self, flow: WorkflowEngine) -> None:
        plus = self.adder(flow)
        results = await asyncio.gather(*(plus(number) for number in range(self.fan)))
        total = await plus(*(plus(1) for _ in range(20)))
        if not self.dry:
            assert [int(result) for result in results] == list(range(1, self.fan + 1))
            assert int(total) == 41, "a task with twenty dependencies returned a wrong result"

    @check("workflows", dry=True, times=2)
    async def test_chains_and_diamonds_run(self, flow: WorkflowEngine) -> None:
        plus = self.adder(flow)
        top = plus(0)
        left, right = plus(top), plus(top, top)
        diamond = plus(left, right, left)
        chain = plus(0)
        for _ in range(29):
            chain = plus(chain)
        results = await asyncio.gather(diamond, chain)
        if not self.dry:
            assert [int(result) for result in results] == [8, 30]

    @check("workflows", "executables")
    async def test_kinds_of_tasks_pass_values(self, flow: WorkflowEngine) -> None:
        plus = self.adder(flow)

        @flow.executable_task
        async def say(number: Any) -> str:
            return f"echo {number}"

        future = say(plus(say(plus(3))))
        assert (await future, future.stdout, future.exit_code) == ("5\n", "5\n", 0)

    @check("workflows", "executables", "reports_running", "shared_file_system")
    async def test_a_running_program_can_be_watched(self, flow: WorkflowEngine) -> None:
        started, gate = self.place / "started", self.place / "going"
        gate.touch()

        @flow.executable_task
        async def talk() -> list[str]:
            wait = 'echo first; : > "$1"; while [ -e "$2" ]; do sleep 0.05; done; echo last'
            return ["sh", "-c", wait, "talk", str(started), str(gate)]

        future = talk()
        try:
            await until(lambda: started.exists() and future.state is RUNNING)
            since, path = future.started_at, future.stdout_path
            if self.capabilities.sandboxes:
                await until(lambda: path is not None and text_of(Path(path)) == "first\n")
        finally:
            gate.unlink()
        await future
        assert since is not None, "`started_at` was None while the task was running"

    @check("functions")
    @each_function_kind
    async def test_a_function_knows_its_task(self, flow: WorkflowEngine, kind: TaskKind) -> None:
        def look() -> tuple[str, str, int, bool, float]:
            context = current_task()
            left = 0.0 if context.deadline is None else context.deadline - time.time()
            return context.uid, context.name, context.attempt, context.cancelled, left

        async def look_async() -> tuple[str, str, int, bool, float]:
            await asyncio.sleep(0)
            return look()

        function: Any = look_async if kind == "async_function" else look
        future = flow.function_task(name="the task", timeout=1000)(function)()
        uid, *others, left = await future
        assert future.uid in uid
        assert others == ["the task", 1, False]
        assert 900 < left <= 1000, f"timeout=1000, but the deadline is in {left:.0f} s"

    @check("workflows", dry=True, fan=True)
    async def test_several_engines_use_one_backend(
        self, new_engine: NewEngine, backend: Any
    ) -> None:
        first, second = [self.adder(await new_engine(backend)) for _ in range(2)]
        numbers = range(self.few(20))
        results = await asyncio.gather(*(plus(n) for n in numbers for plus in (first, second)))
        if not self.dry:
            assert [int(result) for result in results] == [n + 1 for n in numbers for _ in range(2)]
        third = await new_engine(backend)
        await third.shutdown(skip_execution_backend=True)
        assert await state_of(backend) == "running"
        assert self.dry or int(await second(1)) == 2, (
            "tasks must run after another engine of the same backend has shut down"
        )

    @check(
        "services", "services", "executables", "shared_file_system", cancels("running", "service")
    )
    async def test_a_service_serves_and_is_started_again(self, flow: WorkflowEngine) -> None:
        first, gate = self.place / "first", self.place / "gate"

        @flow.executable_task(service=True, ready=r"stdout:port (\d)\n", restarts=1)
        async def serve() -> str:
            return (
                f"if mkdir '{first}'; then echo port 1; "
                f"while [ ! -e '{gate}' ]; do sleep 0.05; done; exit 3; fi; "
                "test ! -e left && touch left && echo port 2; sleep 600"
            )

        @flow.executable_task
        async def use(port: Any) -> str:
            return f"echo {port}"

        service = serve()
        before = await use(service)
        gate.touch()
        await until(lambda: service.attempt == 2)
        assert (before, await use(service)) == ("1\n", "2\n")
        assert service.cancel() is True
        await service.ended()
        assert await service == "1", "the first readiness value must stay the result of the service"

    @check("workflows", FUNCTIONS)
    async def test_a_failure_reaches_its_dependents(self, flow: WorkflowEngine) -> None:
        def broken(word: str) -> None:
            print("printed:", word)  # noqa: T201 - a check looks for it
            raise KitError("on purpose", 7)

        plus = self.adder(flow)
        bad = flow.function_task(self.form(broken))("a word")
        dependent, good = plus(plus(bad)), plus(plus(1))
        with pytest.raises(DependencyFailureError) as failed:
            await dependent
        cause = failed.value.root_cause
        assert isinstance(cause, KitError) and cause.code == 7
        with pytest.raises(KitError) as raised:
            await bad
        assert raised.value.args == ("on purpose", 7)
        assert int(await good) == 3, (
            "a task that does not depend on the failed one returned a wrong result"
        )
        parts = [
            f"raised in {bad.name}('a word')\n",
            f"{bad.uid}, attempt 1, on {flow.backend.name!r}",
        ]
        if self.capabilities.captures_output:
            parts.append("standard output ended with:\n    printed: a word")
        _require_note(bad, parts)

    @check("workflows", "executables")
    async def test_a_failed_executable_says_why(self, flow: WorkflowEngine) -> None:
        @flow.executable_task
        async def failing(word: str) -> str:
            return f"echo {word}; echo the reason >&2; exit 3"

        future = failing("a word")
        with pytest.raises(TaskFailedError) as raised:
            await future
        error = raised.value
        assert (error.exit_code, error.stdout) == (3, "a word\n")
        assert "the reason" in error.stderr
        parts = ["raised in failing('a word')\n", "standard output ended with:\n    a word"]
        _require_note(future, parts)

    @check("timeouts", "shared_file_system")
    @each_kind
    async def test_a_timeout_ends_an_attempt(
        self, flow: WorkflowEngine, driver: Driver, kind: TaskKind
    ) -> None:
        stops = self.capabilities.cancellation(kind) == "running"
        if not stops and kind == "async_function":
            pytest.skip("the backend does not declare that it can cancel a running async_function")
        ticking = Ticking(driver, kind)
        future = _task(flow, ticking, timeout=0.5)()
        with pytest.raises(TaskTimeoutError):
            await future
        if not stops:  # the attempt has failed although its work goes on
            ticking.release()
        await future.ended()
        assert await ticking.is_still(), "the work continues after the timeout"

    @check("cancellation", FUNCTIONS, "shared_file_system")
    @each_function_kind
    async def test_a_running_task_is_canceled(
        self, flow: WorkflowEngine, driver: Driver, kind: TaskKind
    ) -> None:
        ticking = Ticking(driver, kind)
        future = _task(flow, ticking)()
        dependent = self.adder(flow)(future)
        await ticking.began()
        assert future.cancel() is True
        assert future.cancelled(), "cancelled() must return True as soon as cancel() has returned"
        for each in (future, dependent):
            with pytest.raises(asyncio.CancelledError):
                await each
        if self.capabilities.cancellation(kind) != "running":
            ticking.release()
        await future.ended()
        assert await ticking.is_still(), "the work continues after the cancellation"
        assert int(await self.adder(flow)(1)) == 2, (
            "a task called after the cancellation returned a wrong result"
        )


def _task(flow: WorkflowEngine, ticking: Ticking, **settings: Any) -> Any:
    """Return a function without parameters that runs the work of a `Ticking` on an engine."""
    description = ticking.task
    if ticking.kind == "executable":

        @flow.executable_task(**settings)
        async def command() -> list[str]:
            return [description["executable"] or "", *description["arguments"]]

        return command
    function: Any = description["function"]
    args = description["args"]
    task = flow.function_task(**settings)(function)
    return lambda: task(*args)


def _require_note(future: Any, parts: list[str]) -> None:
    """Require that exactly one note on a failed future's exception contains all parts."""
    notes = [str(each) for each in getattr(future.exception(), "__notes__", [])]
    (note,) = [note for note in notes if "raised in " in note]
    for part in parts:
        assert part in note
