"""Failures as data in the events of failed attempts and of tasks that did not run."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import LocalExecutionBackend, OutputFile, TaskFailedError, TaskFuture, WorkflowEngine
from rhapsody.failures import lines_of
from rhapsody.history import failure_key, read_run
from rhapsody.plugins import Failure
from rhapsody_testing import EventRecorder
from tests._support.scripted import turns, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.fixture
def events() -> EventRecorder:
    return EventRecorder()


@pytest_asyncio.fixture
async def flow(events: EventRecorder, tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    backend = LocalExecutionBackend("thread")
    async with WorkflowEngine.create(
        backend, work_dir=tmp_path, observers=[events], record=True
    ) as engine:
        yield engine


async def failures(events: EventRecorder, future: TaskFuture[Any]) -> list[Failure]:
    """Return the failures of a task's attempts."""
    await turns()
    return [event.failure for event in events.of(future) if event.failure is not None]


async def failed(future: TaskFuture[Any]) -> BaseException:
    """Return the exception of a task."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any type
        await within(future)
    return caught.value


async def test_each_failed_attempt_of_a_function(flow: WorkflowEngine, events: Any) -> None:
    @flow.function_task(retries=1)
    def divide(n: int) -> float:
        print("dividing")
        return 1 / n

    future = divide(0)
    error = await failed(future)
    first, second = await failures(events, future)
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.task == "divide"
    assert second.call == "divide(0) (task.000001)"
    assert (second.kind, second.message) == ("ZeroDivisionError", "division by zero")
    assert second.place is not None
    assert second.place.startswith("test_failures.py:")
    assert second.key == first.key
    assert (second.backend, second.stdout, second.exit_code) == ("local", "dividing", None)
    assert isinstance(pickle.loads(pickle.dumps(error)), ZeroDivisionError)


async def test_a_command_that_lacks_a_file(
    flow: WorkflowEngine, events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow.executable_task(environment={"TOKEN": "hunter2-hunter2"})
    def tool(out: OutputFile) -> str:
        return f"echo hunter2-hunter2 >&2; cat table.csv > {out}"

    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").touch()
    future = tool(OutputFile("copy.csv"))
    error = await failed(future)
    (failure,) = await failures(events, future)
    assert isinstance(error, TaskFailedError)
    assert failure.exit_code == error.exit_code == 1
    assert failure.message.startswith("ended with exit code 1: echo <TOKEN> >&2; cat table.csv")
    assert failure.stderr.splitlines()[0] == "<TOKEN>"
    assert [hint.partition(":")[0] for hint in failure.hints] == [
        "the sandbox of the command does not contain 'table.csv'"
    ]
    assert f"hint: {failure.hints[0]}" in str(error)
    assert failure.sandbox == error.sandbox
    assert failure.rerun is not None
    assert os.path.dirname(failure.rerun) == failure.sandbox
    summary = "\n".join(lines_of(failure))
    assert summary.count("table.csv: No such file") == 1
    assert "<TOKEN>" in summary
    assert "hunter2" not in f"{summary}{failure!r}"


async def test_tasks_that_did_not_run(flow: WorkflowEngine, events: Any) -> None:
    @flow.function_task
    def fails(n: int) -> int:
        raise KeyError(n)

    @flow.function_task
    def adds(*numbers: int) -> int:
        return sum(numbers)

    one, two = fails(1), fails(2)
    direct = adds(one, two)
    indirect = adds(direct)
    await failed(indirect)
    for future in (direct, indirect):
        (failure,) = await failures(events, future)
        assert failure.causes == (one.uid, two.uid)
        assert failure.kind == "DependencyFailureError"
        assert failure.call == f"fails(1) ({one.uid})"
        assert failure.message.startswith("did not run because ")
    for future in (one, two, direct):
        await failed(future)


async def test_a_block_fails_because_of_the_call_in_it(flow: WorkflowEngine, events: Any) -> None:
    @flow.function_task
    def fails(n: int) -> int:
        raise KeyError(n)

    @flow.block
    async def block() -> int:
        return await fails(1)

    future = block()
    await failed(future)
    (failure,) = await failures(events, future)
    assert (failure.task, failure.uid) == ("block", future.uid)
    assert failure.call == "fails(1) (task.000001)"


async def test_one_exception_of_two_tasks(flow: WorkflowEngine, events: Any) -> None:
    error = ValueError("shared")

    @flow.function_task
    def fails(n: int) -> int:
        raise error

    @flow.function_task
    def passes(n: int) -> int:
        return n

    one, two = fails(1), fails(2)
    await failed(one)
    await failed(two)
    assert [(await failures(events, each))[0].call for each in (one, two)] == [
        "fails(1) (task.000001)",
        "fails(2) (task.000002)",
    ]
    dependent = passes(one)
    await failed(dependent)
    assert (await failures(events, dependent))[0].call == "fails(1) (task.000001)"


async def test_a_failure_that_a_fallback_replaces(flow: WorkflowEngine, events: Any) -> None:
    @flow.function_task(fallback=0)
    def fails() -> int:
        raise KeyError("missing")

    future = fails()
    assert await within(future) == 0
    (failure,) = await failures(events, future)
    assert failure.message == "'missing'"


async def test_the_record_groups_failures_as_the_summary_does(events: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    flow = await WorkflowEngine.create(
        LocalExecutionBackend("thread"), work_dir=tmp_path, observers=[events], record=path
    )
    async with flow:

        @flow.function_task
        def fails(n: int) -> int:
            if n == 2:
                raise KeyError(n)
            raise KeyError(str(n))

        @flow.executable_task
        def tool(n: int) -> str:
            return f"echo {n} >&2; exit {n}"

        futures: list[TaskFuture[Any]] = [fails(1), fails(2), fails(3), tool(1), tool(2)]
        for future in futures:
            await failed(future)
    tasks = read_run(path).tasks
    for future in futures:
        assert failure_key(tasks[future.uid]) == (await failures(events, future))[0].key
    assert len({failure_key(tasks[future.uid]) for future in futures}) == 4


async def test_a_task_whose_other_future_failed_is_recorded_as_skipped(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    async with WorkflowEngine.create(
        LocalExecutionBackend("thread"), work_dir=tmp_path, record=path
    ) as flow:

        @flow.function_task
        def passes(n: int) -> int:
            return n

        other = asyncio.get_running_loop().create_future()
        other.set_exception(KeyError("other"))
        future = passes(other)
        await failed(future)
    assert read_run(path).tasks[future.uid].skipped
