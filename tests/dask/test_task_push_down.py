"""Push-down: tasks that are sent to Dask before their dependencies have finished."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody.errors import DependencyFailureError
from rhapsody.task import Reference
from rhapsody_dask import DaskExecutionBackend
from tests._support.scripted import until

pytestmark = pytest.mark.asyncio


class Seen(DaskExecutionBackend):
    """Backend that counts the references in submitted tasks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.references = 0

    async def submit_tasks(self, tasks: Any) -> None:
        self.references += sum(len(task.get("references", ())) for task in tasks)
        await super().submit_tasks(tasks)


@pytest_asyncio.fixture(params=[True, False])
async def pushing(
    cluster: Any, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[WorkflowEngine, Seen]]:
    """An engine with and without push-down, with the same results."""
    async with asyncio.timeout(60):
        backend = await Seen(cluster=cluster)
        async with WorkflowEngine.create(backend=backend, push_down=request.param) as flow:
            yield flow, backend
        assert bool(backend.references) is request.param


def _tasks(flow: WorkflowEngine) -> tuple[Any, Any, Any]:
    @flow.function_task
    def add(*numbers: int) -> int:
        return sum(numbers)

    @flow.function_task
    async def total(numbers: Any) -> Any:
        if isinstance(numbers, dict):
            numbers = numbers["of"]
        return sum(numbers)

    @flow.function_task
    def bad(number: int) -> int:
        raise KeyError(number)

    return add, total, bad


async def test_push_down_computes_chains_trees_and_nested_values(
    pushing: tuple[WorkflowEngine, Seen],
) -> None:
    flow, _ = pushing
    add, total, _ = _tasks(flow)
    chain = add(0)
    for _ in range(60):
        chain = add(chain, 1)
    level = [add(number) for number in range(32)]
    while len(level) > 1:
        level = [add(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    nested = total({"of": [add(1), 2, add(3)]})
    twice = add(*[add(5)] * 2)
    results = await asyncio.gather(chain, level[0], nested, total({add(7)}), twice)
    assert [*results] == [60, sum(range(32)), 6, 7, 10]


async def test_push_down_does_not_change_the_error_of_a_failure(
    pushing: tuple[WorkflowEngine, Seen],
) -> None:
    flow, _ = pushing
    add, total, bad = _tasks(flow)
    first = bad(7)
    futures = [total([add(1), first])]
    futures += [add(futures[0], 1), add(add(2), 1)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[2] == 3
    for result, names in zip(results[:2], (["bad"], ["total"]), strict=True):
        assert isinstance(result, DependencyFailureError)
        assert result.failed_dependencies == names
        assert isinstance(result.root_cause, KeyError)
    with pytest.raises(KeyError):
        await first


async def test_push_down_does_not_change_cancellation(pushing: tuple[WorkflowEngine, Seen]) -> None:
    flow, _ = pushing
    add, _, _ = _tasks(flow)

    @flow.function_task
    async def wait(number: int) -> int:
        await asyncio.sleep(60)
        return number

    first = wait(add(1))
    second = add(first, 1)
    other = add(add(1), 1)
    await flow.submit()
    assert await other == 2
    assert first.cancel()
    assert second.cancelled()
    await first.ended()
    await second.ended()


async def test_tasks_with_retries_or_timeouts_are_not_pushed_down(cluster: Any) -> None:
    backend = await Seen(cluster=cluster)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
        add, _, _ = _tasks(flow)
        retried = add.options(retries=1)
        timed = add.options(timeout=30)
        ones = [retried(add(1)), timed(add(1)), add(retried(1))]
        assert await asyncio.gather(*ones) == [1, 1, 1]
        assert await add(flow.block(_block)()) == 5
    assert backend.references == 0


async def _block() -> int:
    return 5


async def test_dependents_of_a_lost_task_run_after_its_retry(tmp_path: Path) -> None:
    sent, gate = str(tmp_path / "sent"), str(tmp_path / "killed")
    backend = await Seen({"n_workers": 2, "threads": 1})
    async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:
        add, _, _ = _tasks(flow)

        @flow.function_task
        def ill(number: int) -> int:
            import time

            if not os.path.exists(gate):
                while not os.path.exists(sent):
                    time.sleep(0.01)
                with open(gate, "w"):
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        first = ill(1)
        last = add(first, 1)
        last = add(last, 1)
        await until(lambda: backend.references >= 2)
        (tmp_path / "sent").touch()
        assert await last == 3
        assert first.attempt == 2


async def test_a_task_with_an_unknown_reference_fails(backend: DaskExecutionBackend) -> None:
    ends: list[tuple[str, Any]] = []
    backend.register_callback(lambda task, state: ends.append((state, task.get("exception"))))
    task: Any = {
        "uid": "x.task.1.1", "name": "x", "function": len, "executable": None,
        "args": ([Reference("nobody")],), "kwargs": {}, "is_service": False,
        "task_backend_specific_kwargs": {}, "references": ["nobody"],
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
    }  # fmt: skip
    await backend.submit_tasks([task])
    assert [(state, type(error).__name__) for state, error in ends] == [
        ("error", "ReferenceLostError")
    ]
