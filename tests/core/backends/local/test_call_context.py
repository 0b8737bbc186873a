"""Settings of the program at a call: context variables, decimal contexts, filters of warnings."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def read() -> tuple[str, str]:
    return variable.get(), third()


def third() -> str:
    value = str(decimal.Decimal(1) / 3)
    decimal.getcontext().prec = 3  # of this call only
    variable.set("changed")
    return value


async def read_later() -> tuple[str, str]:
    await asyncio.sleep(0)
    return read()


@pytest.mark.parametrize("executor", ["thread", ThreadPoolExecutor])
async def test_functions_in_this_process_have_the_context_of_their_call(executor: Any) -> None:
    pool = executor if isinstance(executor, str) else executor(2)
    async with WorkflowEngine.create(LocalExecutionBackend(pool)) as flow:
        tasks: list[Any] = [
            flow.function_task(read),
            flow.function_task(read_later),
            flow.function_task(resources={"cores": 0})(read_later),
        ]
        gate = asyncio.get_running_loop().create_future()
        variable.set("at the call")
        with decimal.localcontext(prec=6):
            calls = [task.options(after=[gate])() for task in tasks for _ in range(2)]
        variable.set("later")
        gate.set_result(None)
        values = [await within(call) for call in calls]
        assert values == [("at the call", "0.333333")] * 6
        assert (variable.get(), decimal.getcontext().prec) == ("later", 28)
        block = flow.block(lambda: tasks[0]())
        assert (await within(block()))[0] == "later"
    if not isinstance(pool, str):
        pool.shutdown()


async def test_a_retry_has_the_context_of_the_call() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend(), retries=1) as flow:
        seen: list[str] = []

        @flow.function_task
        def fails_once() -> str:
            seen.append(variable.get())
            variable.set("changed")
            if len(seen) == 1:
                raise LookupError
            return str(decimal.Decimal(1) / 3)

        variable.set("at the call")
        with decimal.localcontext(prec=4):
            assert await within(fails_once()) == "0.3333"
        assert seen == ["at the call"] * 2


@pytest.mark.parametrize("executor", ["process", ProcessPoolExecutor])
async def test_workers_use_the_precision_of_decimals_at_the_call(executor: Any) -> None:
    pool = executor if isinstance(executor, str) else executor(1)
    async with WorkflowEngine.create(LocalExecutionBackend(pool, resources={"workers": 1})) as flow:

        def divide() -> tuple[str, bool]:
            value = str(decimal.Decimal(1) / 3)
            decimal.getcontext().prec = 3
            return value, decimal.getcontext().traps[decimal.Inexact]

        task = flow.function_task(divide)
        with decimal.localcontext(prec=6):
            precise = [task(), task()]
        plain = task()
        with decimal.localcontext() as context:
            context.prec = 50
            long = task()
        for call in precise:
            assert await within(call) == ("0.333333", False)
        assert await within(plain) == ("0." + "3" * 28, False)
        assert await within(long) == ("0." + "3" * 50, False)
    if not isinstance(pool, str):
        pool.shutdown()


async def test_workers_use_the_filters_of_warnings() -> None:
    async with WorkflowEngine.create(
        LocalExecutionBackend("process", resources={"workers": 1})
    ) as flow:

        @flow.function_task
        def warn() -> str:
            try:
                warnings.warn("did not converge", RuntimeWarning, stacklevel=1)
            except RuntimeWarning:
                return "raised"
            return "passed"

        def outcome(future: Any) -> tuple[str, bool]:
            return future.result(), "did not converge" in future.stderr

        with warnings.catch_warnings():
            for action, expected in (
                ("ignore", ("passed", False)),
                ("error", ("raised", False)),
                ("always", ("passed", True)),
                ("ignore", ("passed", False)),
            ):
                warnings.filterwarnings(action, "did not", RuntimeWarning)  # type: ignore[arg-type]
                future = warn()
                await within(future)
                assert outcome(future) == expected
