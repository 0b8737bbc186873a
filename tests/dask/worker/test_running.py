"""Function tasks on worker processes."""

from __future__ import annotations

import asyncio
import functools
import os

import pytest

from rhapsody import WorkflowEngine, current_task

pytestmark = pytest.mark.asyncio


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, x: int) -> int:
        return self.start + x


def _tell(x: int, y: int = 0) -> tuple[int, int]:
    return x, y


async def test_closures_lambdas_methods_and_partials_run(flow: WorkflowEngine) -> None:
    base = 40

    def closure(x: int) -> int:
        return base + x

    calls = [closure, lambda x: base + x, Counter(40).add]
    assert await asyncio.gather(*(flow.function_task(call)(2) for call in calls)) == [42] * 3
    partial = flow.function_task(functools.partial(_tell, y=5))
    assert await partial(1) == (1, 5)


async def test_a_module_missing_on_a_worker_is_named_in_the_error(
    flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("def twice(x): return 2 * x", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(ModuleNotFoundError, match="needs the module 'only_here', which worker"):
        await flow.function_task(module.twice)(1)


async def test_current_task_and_output_are_available(flow: WorkflowEngine) -> None:
    @flow.function_task
    def name() -> tuple[str, int]:
        print("to the user")
        return current_task().name, current_task().attempt

    future = name()
    assert await future == ("name", 1)
    assert future.stdout == "to the user\n"


async def test_variables_are_set_on_workers_with_one_thread(flow: WorkflowEngine) -> None:
    @flow.function_task(environment={"MINE": "yes"})
    def read() -> str | None:

        return os.environ.get("MINE")

    assert await read() == "yes"
