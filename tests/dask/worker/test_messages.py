"""Values and exceptions in the messages between the backend and its workers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


class OddError(Exception):
    def __init__(self, first: int, *, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.first = first
        self.second = second


async def test_an_exception_keeps_its_text_although_dask_pickles_it_without_its_init(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def bad() -> str:
        return b"a\xff".decode()

    with pytest.raises(UnicodeDecodeError, match="invalid start byte") as error:
        await bad()
    assert (error.value.object, error.value.start) == (b"a\xff", 1)


async def test_an_exception_keeps_its_type_attributes_and_traceback(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def bad() -> None:
        raise OddError(1, second="two")

    with pytest.raises(OddError) as caught:
        await bad()
    assert (caught.value.first, caught.value.second) == (1, "two")
    remote = str(caught.value.__cause__)
    assert f'File "{__file__}", line ' in remote
    assert "in bad" in remote
    assert "rhapsody_dask" not in remote


async def test_an_exception_without_writable_attributes_fails_only_its_task(
    flow: WorkflowEngine,
) -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        number: int

    @flow.function_task
    def bad() -> None:
        raise FrozenError(3)

    with pytest.raises(FrozenError) as caught:
        await asyncio.wait_for(bad(), 20)
    assert caught.value.number == 3
    assert "in bad" in str(caught.value.__cause__)


async def test_system_exit_keeps_its_code(flow: WorkflowEngine) -> None:
    """Dask pickles exceptions with tblib, which loses the code."""

    @flow.function_task
    def leave() -> None:
        raise SystemExit(3)

    future = leave()
    await asyncio.wait([future])
    error = future.exception()
    assert isinstance(error, SystemExit)
    assert error.code == 3


async def test_values_that_cannot_be_pickled_are_named_in_the_error(flow: WorkflowEngine) -> None:
    @flow.function_task
    def take(x: Any) -> Any:
        return threading.Lock() if x is None else x

    with pytest.raises(TypeError, match=r"positional argument 0 .lock. cannot be pickled"):
        await take(threading.Lock())
    with pytest.raises(TypeError, match=r"its result .lock. cannot be pickled by"):
        await take(None)
    assert await take(1) == 1


async def test_retries_of_dask_log_the_users_error(
    backend: DaskExecutionBackend, flow: WorkflowEngine, raw: Any
) -> None:
    def bad(who: str) -> None:
        raise KeyError(f"always {who}")

    with pytest.raises(KeyError):
        await raw.submit(bad, "alone", retries=1)
    with pytest.raises(KeyError):
        await flow.function_task(bad)("ours", task_description={"retries": 1})
    logs = await backend.client.get_worker_logs()
    text = "".join(line for lines in logs.values() for _, line in lines)
    assert "KeyError('always alone')" in text
    assert "TaskRaised(\"KeyError: 'always ours'\")" in text.replace("\\", "")
