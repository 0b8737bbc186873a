"""Arguments that a task changes in place: retries start from the values before."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, RetryPolicy, current_task, literal
from tests._support.engine_fixtures import engine, local_processes, local_threads

pytestmark = pytest.mark.asyncio


def local_executor() -> LocalExecutionBackend:
    return LocalExecutionBackend(ThreadPoolExecutor(1))


backends = pytest.mark.parametrize("backend", [local_threads, local_executor, local_processes])


class Samples:
    def __init__(self, values: Any = (1, 2, 3)) -> None:
        self.values = list(values) if isinstance(values, tuple) else values


class Caching:
    @functools.cached_property
    def size(self) -> list[int]:
        """Compute a value that does not change the object."""
        return [1, 2]


def total(values: Any, failures: int = 1) -> Any:
    """Change the argument in place, and fail."""
    if isinstance(values, Samples):
        values = values.values
    if isinstance(values, dict):
        values[len(values)] = 100
        found = sum(values.values())
    elif isinstance(values, set):
        values.add(100)
        found = sum(values)
    elif isinstance(values, list | bytearray):
        values.append(100)
        found = sum(values)
    else:
        values += 1
        found = values.sum()
    context = current_task()
    assert context is not None
    if context.attempt <= failures:
        raise OSError("busy")
    return found


async def total_async(values: Any) -> Any:
    await asyncio.sleep(0)
    return total(values)


def arrays() -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.array([1.0, 2.0, 100.0])


ARGUMENTS: dict[str, tuple[Any, float]] = {
    "list": (lambda: [1, 2, 3], 106),
    "dict": (lambda: {0: 1, 1: 2}, 103),
    "set": (lambda: {1, 2}, 103),
    "bytearray": (lambda: bytearray([1, 2]), 103),
    "object": (Samples, 106),
    "array": (arrays, 106),
}


@backends
@pytest.mark.parametrize("kind", ARGUMENTS)
async def test_retries_start_from_the_arguments_as_they_were(kind: str, backend: Any) -> None:
    make, right = ARGUMENTS[kind]
    async with engine(backend()) as flow:
        task = flow.function_task(retries=2)(total)
        assert await task(make()) == right
        assert await task(make(), failures=2) == right
        assert await task(values=make()) == right


@backends
async def test_values_of_other_tasks_are_restored_as_well(backend: Any) -> None:
    async with engine(backend(), retries=1) as flow:

        @flow.function_task
        def load() -> list[int]:
            return [1, 2, 3]

        @flow.function_task
        def first(values: dict[str, Any]) -> Any:
            return total(values["some"][0]) + total(values["more"])

        task = flow.function_task(total)
        futures = [
            task(load()),
            flow.function_task(total_async)(load()),
            task(literal([1, 2])),
            first({"some": (load(), load()), "more": [1]}),
        ]
        assert await asyncio.gather(*futures) == [106, 106, 103, 207]


async def test_arguments_that_are_not_changed_are_passed_to_all_attempts() -> None:
    async with engine(local_threads()) as flow:
        lock, shared, changed = threading.Lock(), [1], [2]
        seen: list[Any] = []

        @flow.function_task(retries=2)
        def task(*given: Any) -> None:
            seen.append(given)
            given[2].append(len(seen))
            if len(seen) < 3:
                raise OSError

        await task(lock, shared, changed)
        assert all(given[0] is lock and given[1] is shared for given in seen)
        assert [given[2] is changed for given in seen] == [True, False, False]
        assert [given[2] for given in seen] == [[2, 1], [2, 2], [2, 3]]


async def test_a_change_before_a_retry_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with engine(local_threads()) as flow:
        task = flow.function_task(retries=1)(total)
        await asyncio.gather(task([1]), task([2]))
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "'values'" in record.getMessage()
    assert "'total'" in record.getMessage()


async def test_a_cached_property_is_no_change(caplog: pytest.LogCaptureFixture) -> None:
    async with engine(local_threads()) as flow:
        seen: list[Any] = []

        @flow.function_task(retries=1)
        def task(one: Caching, inside: list[Caching]) -> None:
            seen.append((one, one.size, inside[0].size))
            if len(seen) == 1:
                raise OSError

        await task(Caching(), [Caching()])
        assert seen[0][0] is seen[1][0]
        assert not [each for each in caplog.records if each.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "make",
    [lambda values: values, lambda values: [values], lambda values: {"values": values}, Samples],
)
async def test_a_task_whose_iterator_may_be_consumed_is_not_retried(make: Any) -> None:
    async with engine(local_threads()) as flow:
        attempts = []

        @flow.function_task(retries=RetryPolicy(3))
        def mean(values: Any) -> None:
            attempts.append(1)
            if isinstance(values, Samples):
                values = values.values
            elif isinstance(values, list | dict):
                (values,) = values.values() if isinstance(values, dict) else values
            raise ZeroDivisionError(sum(values))

        with pytest.raises(ZeroDivisionError) as caught:
            await mean(make(x for x in range(3)))
        assert len(attempts) == 1
        assert any("'values'" in note for note in caught.value.__notes__)


async def test_a_task_with_a_file_for_writing_is_retried(tmp_path: Path) -> None:
    async with engine(local_threads()) as flow:

        @flow.function_task(retries=1)
        def write(file: list[Any]) -> int:
            context = current_task()
            assert context is not None
            file[0].write("line")
            if context.attempt == 1:
                raise OSError
            return context.attempt

        with (tmp_path / "log").open("w") as file:
            assert await write([file]) == 2


@pytest.mark.parametrize("backend", [local_threads, local_executor])
async def test_what_concurrent_calls_add_to_a_shared_argument_is_not_lost(
    backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(backend()) as flow:
        done: list[str] = []

        @flow.function_task(retries=1)
        def add(name: str, done: list[str]) -> None:
            context = current_task()
            assert context is not None
            if name == "a" and context.attempt == 1:
                raise OSError
            done.append(name)

        await asyncio.gather(*(add(name, done) for name in "abcd"))
        assert sorted(done) == ["a", "b", "c", "d"]
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) <= 1  # none if the second attempt began before the other calls
        assert not any("attempt 1 changed" in each.getMessage() for each in warnings)


async def test_a_change_of_a_shared_argument_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with engine(local_threads()) as flow:
        shared: list[int] = []

        @flow.function_task(retries=1)
        async def add(number: int, shared: list[int]) -> None:
            context = current_task()
            assert context is not None
            shared.append(number)
            if number == 0 and context.attempt == 1:
                raise OSError

        await asyncio.gather(add(0, shared), add(1, shared))
        assert sorted(shared) == [0, 0, 1]
        (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert "'shared'" in record.getMessage()


async def test_an_argument_that_an_earlier_call_has_received_is_restored() -> None:
    async with engine(local_threads()) as flow:
        task, values = flow.function_task(retries=2)(total), [1, 2, 3]
        assert await task(values, failures=0) == 106
        assert await task(values) == 206


async def test_arguments_of_tasks_without_retries_are_not_copied() -> None:
    async with engine(local_threads()) as flow:

        class Watched:
            def __reduce__(self) -> Any:
                raise AssertionError("it was copied")

        @flow.function_task
        def task(value: Any) -> Any:
            return value

        watched = Watched()
        assert await task(watched) is watched
