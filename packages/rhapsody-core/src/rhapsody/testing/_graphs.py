"""Checks of the backend behind an engine: graphs, several engines, values between tasks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.states import TasksMainStates
from rhapsody.testing._executables import text_of
from rhapsody.testing._rules import (
    ASYNC,
    EXECUTABLES,
    FUNCTIONS,
    RUNNING,
    SERVICES,
    SHARED,
    SYNC,
    cancels,
)
from rhapsody.testing._running import check
from rhapsody.testing._tasks import until
from rhapsody.testing._trial import Trial, state_of

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine


def adder(trial: Trial, flow: WorkflowEngine) -> Any:
    """A task that adds 1 to the sum of its arguments, of whatever kind the backend runs."""
    if trial.capabilities.sync_functions:

        @flow.function_task
        def plus(*numbers: Any) -> Any:
            return _plus(numbers)

        return plus
    if trial.capabilities.functions:

        @flow.function_task
        async def plus_async(*numbers: Any) -> Any:
            return _plus(numbers)

        return plus_async

    @flow.executable_task
    async def plus_command(*numbers: Any) -> str:
        return f"echo {_plus(numbers)}"

    return plus_command


def _plus(numbers: tuple[Any, ...]) -> int:
    """The sum and 1; a dry backend's dummies count for nothing."""
    return 1 + sum(int(number) for number in numbers if str(number).strip().isdigit())


def value(result: Any) -> int:
    """The number a task gave, of whatever kind it is."""
    return int(result)


class Graphs:
    """Tasks that wait for each other, on the real engine."""

    @check("a wide fan runs, each task once", dry=True, times=2)
    async def test_a_fan_runs(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        count = trial.kit.fan
        trial.doing(f"waiting for a fan of {count} tasks")
        results = await trial.gather([plus(number) for number in range(count)])
        if not trial.kit.dry:
            wrong = [n for n, result in enumerate(results) if value(result) != n + 1]
            trial.require(not wrong, lambda: f"{len(wrong)} of {count} results are wrong")
        total = plus(*(plus(1) for _ in range(20)))
        result = await total
        if not trial.kit.dry:
            trial.require(value(result) == 41, f"a task on twenty others gave {result!r}, not 41")

    @check("a diamond runs, with values and with the same future twice", dry=True)
    async def test_a_diamond_runs(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        top = plus(0)
        left, right = plus(top), plus(top, top)
        result = await plus(left, right, left)
        if not trial.kit.dry:
            trial.require(value(result) == 8, f"it gave {result!r}, not 8")

    @check("a chain runs in order", dry=True)
    async def test_a_chain_runs(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        links = 50
        trial.doing(f"waiting for a chain of {links} tasks")
        future = plus(0)
        for _ in range(links - 1):
            future = plus(future)
        result = await future
        if not trial.kit.dry:
            trial.require(value(result) == links, f"it gave {result!r}, not {links}")

    @check("values are found in keywords and in containers", FUNCTIONS)
    async def test_values_are_found_in_containers(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)

        def pick(numbers: Any, *, more: Any) -> int:
            return int(numbers["a"][0] + more[1])

        picked = flow.function_task(trial.form(pick))
        result = await picked({"a": [plus(1)]}, more=(0, plus(2)))
        trial.require(result == 5, f"it gave {result!r}, not 5")

    @check("a container around a future is passed as it was at the call", FUNCTIONS)
    async def test_containers_are_as_they_were_called(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)
        given: list[Any] = [plus(1)]
        by_name: dict[str, Any] = {"a": plus(2)}

        def both(numbers: Any, named: Any) -> tuple[Any, Any]:
            return numbers, named

        future = flow.function_task(trial.form(both))(given, by_name)
        given.append(plus(3))
        by_name["b"] = plus(4)
        result = await future
        trial.require(
            result == ([2], {"a": 3}),
            f"called with lists of one future that grew after the call, it got {result!r}",
        )

    @check("functions and executables use each other's values", SYNC, EXECUTABLES)
    async def test_kinds_of_task_can_be_mixed(self, trial: Trial) -> None:
        flow = await trial.engine()

        @flow.executable_task
        async def say(number: Any) -> str:
            return f"echo {number}"

        @flow.function_task
        def double(text: Any) -> int:
            return 2 * int(text)

        result = await say(double(say(double(3))))
        trial.require(result == "12\n", f"it gave {result!r}, not '12\\n'")

    @check("a list and a string command return their output as the result", EXECUTABLES)
    async def test_executables_give_their_output(self, trial: Trial) -> None:
        flow = await trial.engine()

        @flow.executable_task
        async def shell() -> str:
            return "echo 'a  b' | tr a c"

        @flow.executable_task
        async def program(text: Any) -> list[str]:
            return ["printf", "%s|", text, "$HOME"]

        first = shell()
        result = await first
        trial.require(result == "c  b\n", f"the string gave {result!r}")
        trial.require(
            first.stdout == "c  b\n" and first.exit_code == 0,
            f"its future says stdout={first.stdout!r}, exit_code={first.exit_code!r}",
        )
        second = await program(first)
        trial.require(second == "c  b\n|$HOME|", f"the list gave {second!r}")

    @check(
        "a future says since when a program runs, and what it has printed",
        EXECUTABLES,
        RUNNING,
        SHARED,
    )
    async def test_a_running_program_can_be_watched(self, trial: Trial) -> None:
        flow = await trial.engine()
        begun, gate = trial.work_dir / "begun", trial.work_dir / "going"
        gate.touch()

        @flow.executable_task
        async def talk() -> list[str]:
            wait = 'echo first; : > "$1"; while [ -e "$2" ]; do sleep 0.05; done; echo last'
            return ["sh", "-c", wait, "talk", str(begun), str(gate)]

        future = talk()
        try:
            trial.doing("waiting for a program to begin, and for RUNNING")
            await until(lambda: begun.exists() and future.state is TasksMainStates.RUNNING)
            since, path = future.started_at, future.stdout_path
            if trial.capabilities.sandboxes:
                trial.doing(f"waiting for 'first' in `stdout_path`, {path!r}")
                await until(lambda: path is not None and text_of(Path(path)) == "first\n")
        finally:
            gate.unlink()
        await future
        trial.require(since is not None, "while it runs `started_at` is None")

    @check("current_task() returns the running task", SYNC)
    async def test_a_function_knows_its_task(self, trial: Trial) -> None:
        await _require_context(trial, sync=True)

    @check("current_task() returns the running coroutine task", ASYNC)
    async def test_a_coroutine_knows_its_task(self, trial: Trial) -> None:
        await _require_context(trial, sync=False)

    @check("a block calls tasks and waits for them", FUNCTIONS)
    async def test_a_block_runs_tasks(self, trial: Trial) -> None:
        flow = await trial.engine()
        plus = adder(trial, flow)

        @flow.block
        async def repeat(start: int) -> int:
            number = start
            while number < 5:
                number = value(await plus(number))
            return number

        result = await plus(repeat(0))
        trial.require(value(result) == 6, f"it gave {result!r}, not 6")

    @check("several engines use one backend, one after the other", dry=True)
    async def test_several_engines_use_it_in_turn(self, trial: Trial) -> None:
        backend = await trial.backend()
        for number in range(3):
            flow = await trial.engine(backend)
            plus = adder(trial, flow)
            trial.doing(f"waiting for engine {number + 1} on the same backend")
            result = await plus(plus(number))
            if not trial.kit.dry:
                trial.require(value(result) == number + 2, f"engine {number + 1}: {result!r}")
            await flow.shutdown(skip_execution_backend=True)
            state = await state_of(backend)
            trial.require(state == "running", f"after engine {number + 1} it is {state!r}")

    @check("two engines use one backend at once and do not mix", dry=True)
    async def test_two_engines_use_it_at_once(self, trial: Trial) -> None:
        backend = await trial.backend()
        flows = [await trial.engine(backend), await trial.engine(backend)]
        adders = [adder(trial, flow) for flow in flows]
        futures = [plus(100 * n + i) for i in range(20) for n, plus in enumerate(adders)]
        results = await asyncio.gather(*futures)
        if trial.kit.dry:
            return
        expected = [100 * n + i + 1 for i in range(20) for n in range(2)]
        trial.require([value(r) for r in results] == expected, "they got each other's results")

    @check(
        "a service is used while it serves",
        SERVICES,
        EXECUTABLES,
        cancels("service", "running"),
    )
    async def test_a_service_serves_a_task(self, trial: Trial) -> None:
        flow = await trial.engine()

        @flow.executable_task(service=True, ready=r"stdout:port (\d+)")
        async def serve() -> str:
            return "echo port 4711; sleep 600"

        @flow.executable_task
        async def use(port: Any) -> str:
            return f"echo {port}"

        service = serve()
        trial.doing("waiting for a service and the task that uses it")
        result = await use(service)
        trial.require(result == "4711\n", f"the task that uses it gave {result!r}")
        trial.require(service.cancel() is True, "cancel() of a service that serves is not True")
        trial.doing("waiting for a cancelled service to end")
        await service.ended()
        trial.require(await service == "4711", "its readiness result is gone")

    @check(
        "a service that ends by itself is started again where asked, for who comes later",
        SERVICES,
        EXECUTABLES,
        SHARED,
        cancels("service", "running"),
    )
    async def test_a_service_is_started_again(self, trial: Trial) -> None:
        flow = await trial.engine()
        first, gate = trial.work_dir / "first", trial.work_dir / "gate"

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
        trial.doing("waiting for a service that will end, and the task that uses it")
        before = await use(service)
        gate.touch()
        trial.doing("waiting for a service to be started again")
        await until(lambda: service.attempt == 2)
        after = await use(service)
        trial.require((before, after) == ("1\n", "2\n"), f"they gave {before!r} and {after!r}")
        service.cancel()
        await service.ended()


Context = tuple[str, str, int, bool, float]


async def _require_context(trial: Trial, *, sync: bool) -> None:
    from rhapsody import current_task

    flow = await trial.engine()

    def look() -> Context:
        context = current_task()
        left = 0.0 if context.deadline is None else context.deadline - time.time()
        return context.uid, context.name, context.attempt, context.cancelled, left

    if sync:

        @flow.function_task(name="the task", timeout=1000)
        def who() -> Context:
            return look()

        future = who()
    else:

        @flow.function_task(name="the task", timeout=1000)
        async def who_async() -> Context:
            await asyncio.sleep(0)
            return look()

        future = who_async()
    uid, name, attempt, cancelled, left = await future
    trial.require(
        future.uid in uid and name == "the task" and attempt == 1 and cancelled is False,
        f"in {future.uid} it says {(uid, name, attempt, cancelled)}",
    )
    trial.require(
        900 < left <= 1000, f"with a time-out of 1000 s its deadline is {left:.0f} s ahead"
    )
