"""An engine that has nothing to do does nothing: the loop is not woken."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, RetryPolicy, StateMapper, WorkflowEngine
from tests._support.scripted import Scripted, in_thread, turns, until, within

IDLE = 2.0
"""Seconds without anything to do."""

Measure = Callable[[], Awaitable[int]]


class CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop comes back from waiting."""

    wakes = 0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(timeout)
        self.wakes += 1
        return events


def run(main: Callable[[Measure], Awaitable[None]]) -> None:
    """Runs a coroutine on a loop that counts its wake-ups; gives it `measure`."""
    selector = CountingSelector()

    async def measure() -> int:
        """Return how often the loop wakes in two seconds, without the final time."""
        loop = asyncio.get_running_loop()
        await turns(50)  # what was going to happen at once has happened
        end = loop.create_future()
        loop.call_later(IDLE, end.set_result, None)
        before = selector.wakes
        await end
        # One return from waiting for the first time round, one for the timer; where the clock
        # is coarser than the timer, one more.
        return max(0, selector.wakes - before - 2)

    async def guarded() -> None:
        async with asyncio.timeout(60):
            await main(measure)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(guarded())


def test_the_measure_sees_a_wake_up() -> None:
    async def main(measure: Measure) -> None:
        assert await measure() <= 1
        loop = asyncio.get_running_loop()

        def tick(left: int) -> None:
            if left:  # one after the other: however late they are, none shares a wake-up
                loop.call_later(IDLE / 1000, tick, left - 1)

        tick(19)
        assert await measure() >= 15

    run(main)


def test_an_idle_engine_with_a_thousand_waiting_tasks_on_a_gate_is_not_woken() -> None:
    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create() as flow:

            @flow.function_task
            def part(gate: int, x: int) -> int:
                return gate + x

            gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            futures = [part(gate, x) for x in range(1000)]
            assert await measure() <= 1
            gate.set_result(1000)
            assert sum(await asyncio.gather(*futures)) == 1000 * 1000 + sum(range(1000))

    run(main)


def test_a_thousand_submitted_tasks_cause_no_wakeups() -> None:
    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create(backend := Scripted(), max_pending=500) as flow:

            @flow.function_task
            def part(x: int) -> Any: ...

            @flow.block
            async def block() -> Any:
                return await part(-1)

            @flow.executable_task(service=True)
            async def server() -> str:
                return "serve"

            futures = [*flow.map(part, range(1000)), block()]
            service = server()
            for _ in range(501):
                task = await backend.next()
                if task["is_service"]:
                    backend.ready(task, "address")
                else:
                    backend.runs(task)
            await within(service)
            assert await measure() <= 1
            assert len(flow.running) == 502
            await flow.shutdown()
            assert all(future.cancelled() for future in futures)

    run(main)


def test_distant_deadlines_cause_no_early_wakeups() -> None:
    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create(backend := Scripted(), timeout=3600) as flow:

            @flow.function_task(retries=RetryPolicy(attempts=1, wait=3600))
            def part(x: int) -> Any: ...

            flow.map(part, range(1000))
            for number in range(1000):
                task = await backend.next()
                if number % 2:
                    backend.runs(task)
                else:
                    backend.failed(task, OSError())
            assert await measure() <= 1
            await flow.shutdown()

    run(main)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_the_local_backend_is_idle_too(executor: Any) -> None:
    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create(LocalExecutionBackend(executor)) as flow:

            @flow.function_task
            def plus(x: int) -> int:
                return x + 1

            @flow.executable_task
            async def tool() -> str:
                return "echo out"

            started: list[asyncio.Future[Any]] = [plus(1), tool()]
            assert await within(asyncio.gather(*started)) == [2, "out\n"]
            await asyncio.sleep(0.2)  # the end of the process that was just reaped may still arrive
            assert await measure() <= 1
            assert await within(plus(2)) == 3

    run(main)


def test_running_work_causes_no_wakeups() -> None:
    leave, entered = threading.Event(), threading.Barrier(3)

    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create(
            LocalExecutionBackend(resources={"workers": 2, "cores": 3})
        ) as flow:

            @flow.function_task
            def blocking() -> int:
                entered.wait(20)
                leave.wait(30)
                return 1

            @flow.executable_task
            async def sleeper() -> str:
                return "exec sleep 1000"

            @flow.function_task(resources={"cores": 0})
            async def waiting() -> None:
                await asyncio.Event().wait()

            futures = [blocking(), blocking()]
            await within(asyncio.to_thread(entered.wait, 20))
            others: list[Any] = [sleeper(), waiting()]
            await until(lambda: all(other.state == "RUNNING" for other in others))
            try:
                assert await measure() <= 1
            finally:
                leave.set()
            assert await within(asyncio.gather(*futures)) == [1, 1]
            for other in others:
                other.cancel()

    run(main)


def test_an_engine_that_was_shut_down_leaves_nothing_to_wake_the_loop() -> None:
    async def main(measure: Measure) -> None:
        async with WorkflowEngine.create() as flow:

            @flow.function_task
            def plus(x: int) -> int:
                return x + 1

            assert await within(plus(1)) == 2
        assert await measure() <= 1

    run(main)


@pytest.mark.asyncio
async def test_a_thread_wakes_the_loop_for_states_that_change_something_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Scripted("many-words")
    StateMapper.register_backend_tasks_states(
        "many-words",
        done_state="FINISHED",
        failed_state="ERROR",
        canceled_state="REMOVED",
        running_state=["ACTIVE", "STAGING_OUT"],
        submitted=["QUEUED", "ALLOCATED"],
    )
    async with WorkflowEngine.create(backend) as flow:
        wakes: list[str] = []
        threadsafe = flow.loop.call_soon_threadsafe

        @flow.function_task
        def part() -> Any: ...

        async def told(state: str) -> list[str]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                wakes.append(state)
                return threadsafe(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(flow.loop, "call_soon_threadsafe", counted)
                in_thread(backend.report, task, state)
            await turns()
            return wakes

        future = part()
        task = await backend.next()
        task["return_value"] = 7
        for state in ("QUEUED", "ALLOCATED", "QUEUED"):
            assert await told(state) == []
        for state in ("ACTIVE", "ACTIVE", "STAGING_OUT", "QUEUED"):
            assert await told(state) == ["ACTIVE"]
        assert future.state == "RUNNING"
        assert await told("FINISHED") == ["ACTIVE", "FINISHED"]
        assert await within(future) == 7
        assert flow.stats.late == flow.stats.unknown == 0
        assert await told("ACTIVE") == ["ACTIVE", "FINISHED", "ACTIVE"]
        assert flow.stats.late == 1
