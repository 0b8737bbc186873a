"""One budget for each kind of failure, and one for losses of infrastructure."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody import RetryPolicy, TaskLostError, WorkflowEngine
from tests._support.scripted import ManualClock, Scripted, outcome, within

pytestmark = pytest.mark.asyncio

SEVERAL = [RetryPolicy(3, on=MemoryError), RetryPolicy(1, on=OSError)]


@pytest.mark.parametrize("of_the_engine", [True, False])
async def test_each_kind_of_failure_has_a_budget_of_its_own(of_the_engine: bool) -> None:
    retries = SEVERAL if of_the_engine else None
    async with WorkflowEngine.create(backend := Scripted(), retries=retries) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = (part if of_the_engine else part.options(retries=SEVERAL))()
        for error in (MemoryError(), OSError(), MemoryError(), MemoryError()):
            backend.failed(await backend.next(), error)
        last = await backend.next()
        assert last["attempt"] == 5
        backend.failed(last, OSError("the second"))
        assert str(await outcome(future)) == "the second"
        assert flow.stats.retried == 4


async def test_a_failure_that_no_policy_covers_is_the_last() -> None:
    async with WorkflowEngine.create(backend := Scripted(), retries=5) as flow:
        future = flow.function_task(retries=SEVERAL)(lambda: None)()
        backend.failed(await backend.next(), MemoryError())
        backend.failed(await backend.next(), KeyError("own"))
        assert isinstance(await outcome(future), KeyError)


async def test_no_policy_is_no_further_attempt_whatever_the_engine_says() -> None:
    async with WorkflowEngine.create(backend := Scripted(), retries=5) as flow:
        future = flow.function_task(retries=[])(lambda: None)()
        backend.failed(await backend.next(), OSError("only"))
        assert isinstance(await outcome(future), OSError)


async def test_the_first_policy_that_covers_a_failure_counts_it() -> None:
    clock = ManualClock()
    retries = (RetryPolicy(0, on=FileNotFoundError), RetryPolicy(2, wait=10, on=OSError))
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, retries=retries) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), ConnectionError())
        await clock.advance(9.9)
        assert len(backend.tasks) == 1
        await clock.advance(0.2)
        backend.failed(await backend.next(), FileNotFoundError("none here"))
        assert isinstance(await outcome(future), FileNotFoundError)


@pytest.mark.parametrize("last", [None, TaskLostError("the third"), OSError("the second")])
async def test_losses_and_failures_do_not_count_against_each_other(last: Any) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=SEVERAL, lost_retries=2)
        def part() -> Any: ...

        lost, future = TaskLostError("the worker went away"), part()
        for error in (lost, MemoryError(), OSError(), lost, MemoryError(), MemoryError()):
            backend.failed(await backend.next(), error)
        if last is None:
            backend.done(await backend.next(), 42)
            assert await within(future) == 42
        else:
            backend.failed(await backend.next(), last)
            assert await outcome(future) is last
        assert future.attempt == 7
