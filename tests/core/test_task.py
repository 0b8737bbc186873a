"""The values a task is made of: resources, retries, durations, kinds, context (C5, C7.4, C7.12)."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.context import TaskContext, current_task, task_context
from rhapsody.task import (
    Outcome,
    Resources,
    RetryPolicy,
    is_async,
    memory_in_bytes,
    seconds,
    task_kind,
)

# Memory.


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (0, 0),
        (2048, 2048),
        ("2048", 2048),
        ("1 kB", 1000),
        ("1k", 1000),
        ("1 KiB", 1024),
        ("1Ki", 1024),
        ("500 MB", 500_000_000),
        ("2 GiB", 2 * 1024**3),
        (" 1.5 gib ", 3 * 1024**3 // 2),
        ("0.1 kB", 100),
        ("1 TB", 10**12),
        ("1 PiB", 1024**5),
        ("7 B", 7),
    ],
)
def test_memory_is_bytes_or_text_with_decimal_and_binary_prefixes(
    memory: int | str, expected: int
) -> None:
    assert memory_in_bytes(memory) == expected


@pytest.mark.parametrize("memory", ["", "GiB", "2 GiBs", "-1 MB", "1 e3", "two", "1,5 GB", -1])
def test_a_memory_that_is_no_size_is_a_value_error_that_shows_it(memory: int | str) -> None:
    with pytest.raises(ValueError, match="memory must") as raised:
        memory_in_bytes(memory)
    assert str(memory) in str(raised.value)


@pytest.mark.parametrize("memory", [None, 1.5, True, b"1"])
def test_a_memory_of_the_wrong_type_is_a_type_error_that_shows_it(memory: Any) -> None:
    with pytest.raises(TypeError, match=f"'2 GiB', not {memory!r}"):
        memory_in_bytes(memory)


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["", "k", "M", "G", "T", "P"]))
def test_a_binary_prefix_is_never_less_than_its_decimal_one(number: int, prefix: str) -> None:
    decimal = memory_in_bytes(f"{number} {prefix}B")
    assert memory_in_bytes(f"{number} {prefix}iB") >= decimal >= number


# Resources.


def test_resources_default_to_one_core_and_hold_memory_as_bytes() -> None:
    assert Resources() == Resources(cores=1, gpus=0, memory=None, ranks=1, walltime=None)
    assert Resources(memory="2 GiB").memory == 2 * 1024**3
    assert Resources(memory="1 kB") == Resources(memory=1000)
    assert Resources(cores=0).cores == 0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"cores": -1}, "cores must be at least 0, got -1"),
        ({"gpus": -2}, "gpus must be at least 0, got -2"),
        ({"ranks": 0}, "ranks must be at least 1, got 0"),
        ({"memory": "lots"}, "memory must look like .*'lots'"),
        ({"memory": -1}, "memory must not be negative"),
        ({"walltime": 0}, "walltime must be more than 0"),
        ({"walltime": math.inf}, "walltime must be"),
    ],
)
def test_resources_that_cannot_be_are_a_value_error_that_names_the_field(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Resources(**values)


@pytest.mark.parametrize(
    "values", [{"cores": 1.5}, {"cores": True}, {"gpus": "1"}, {"ranks": None}, {"walltime": "1h"}]
)
def test_resources_of_the_wrong_type_are_a_type_error_that_names_the_field(
    values: dict[str, Any],
) -> None:
    ((name, value),) = values.items()
    with pytest.raises(TypeError, match=f"{name} must be a .*{value!r}"):
        Resources(**values)


def test_resources_are_immutable_hashable_and_picklable_values() -> None:
    resources = Resources(cores=2, memory="1 GiB")
    with pytest.raises(AttributeError):
        resources.cores = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(resources)) == resources
    assert len({resources, Resources(cores=2, memory=1024**3)}) == 1


def test_resources_are_taken_as_themselves_a_mapping_or_nothing() -> None:
    resources = Resources(cores=2)
    assert Resources.of(resources) is resources
    assert Resources.of({"cores": 2}) == resources
    assert Resources.of(None) is None
    with pytest.raises(TypeError, match="unknown name 'core'; there are cores, gpus, memory"):
        Resources.of({"core": 2})
    for wrong in (3, "2 cores", [("cores", 2)]):
        with pytest.raises(TypeError, match="resources must be a Resources or a dict"):
            Resources.of(wrong)  # type: ignore[arg-type]


# Durations and retries.


def test_a_duration_is_a_finite_positive_number_of_seconds() -> None:
    assert seconds("timeout", 2) == 2.0
    assert isinstance(seconds("timeout", 2), float)
    assert seconds("wait", 0, zero=True) == 0.0


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_duration_that_cannot_be_is_a_value_error_that_names_the_argument(value: float) -> None:
    with pytest.raises(ValueError, match=f"timeout must be more than 0 seconds, got {value!r}"):
        seconds("timeout", value)


@pytest.mark.parametrize("value", [None, "3", True, [1]])
def test_a_duration_of_the_wrong_type_is_a_type_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds, got"):
        seconds("timeout", value)


def test_a_number_of_retries_is_a_policy_that_waits_for_nothing() -> None:
    policy = RetryPolicy.of(3)
    assert policy == RetryPolicy(attempts=3, wait=0.0, on=Exception)
    assert policy is not None
    assert policy.delay(1) == 0.0
    assert RetryPolicy.of(policy) is policy
    assert RetryPolicy.of(None) is None


def test_the_wait_may_be_a_callable_from_the_attempt_to_seconds() -> None:
    policy = RetryPolicy(attempts=5, wait=lambda attempt: 2**attempt)
    assert [policy.delay(attempt) for attempt in (1, 2, 3)] == [2.0, 4.0, 8.0]
    with pytest.raises(ValueError, match="wait must be 0 or more"):
        RetryPolicy(wait=lambda attempt: -1.0).delay(1)
    with pytest.raises(TypeError, match="wait must be a number"):
        RetryPolicy(wait=lambda attempt: "soon").delay(1)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("values", "error", "complaint"),
    [
        ({"attempts": -1}, ValueError, "retries must be 0 or more, got -1"),
        ({"attempts": 1.5}, TypeError, "retries must be a whole number, got 1.5"),
        ({"attempts": True}, TypeError, "retries must be a whole number"),
        ({"attempts": "2"}, TypeError, "retries must be a whole number"),
        ({"wait": -0.5}, ValueError, "wait must be 0 or more"),
        ({"wait": "1"}, TypeError, "wait must be a number"),
        ({"on": "ValueError"}, TypeError, "on must be exception types, got 'ValueError'"),
        ({"on": (ValueError, 3)}, TypeError, "on must be exception types, got 3"),
        ({"on": int}, TypeError, "on must be exception types"),
    ],
)
def test_a_policy_that_cannot_be_is_an_error_that_names_what_was_given(
    values: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        RetryPolicy(**values)


@pytest.mark.parametrize("collection", [list, set, tuple, iter])
def test_a_policy_takes_exception_types_in_whatever_collection(collection: Any) -> None:
    policy = RetryPolicy(on=collection([ValueError, KeyError]))
    assert policy.covers(ValueError())
    assert policy.covers(KeyError())
    assert not policy.covers(TypeError())


# Kinds.


async def coroutine(x: int = 0) -> int:
    return x


def plain(x: int = 0) -> int:
    return x


class Callables:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...

    def plain(self) -> None: ...

    @staticmethod
    async def static() -> None: ...


class PlainCallable:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        coroutine,
        functools.partial(coroutine, 1),
        functools.partial(functools.partial(coroutine), x=1),
        Callables(),
        functools.partial(Callables()),
        Callables().method,
        Callables.static,
    ],
)
def test_what_gives_a_coroutine_is_seen_as_asynchronous(function: Callable[..., Any]) -> None:
    assert is_async(function)
    assert task_kind({"function": function, "is_service": False}) == "async_function"


@pytest.mark.parametrize(
    "function",
    [plain, functools.partial(plain, 1), lambda: 1, PlainCallable(), Callables().plain, len, int],
)
def test_what_gives_a_value_is_seen_as_synchronous(function: Callable[..., Any]) -> None:
    assert not is_async(function)
    assert task_kind({"function": function, "is_service": False}) == "function"


def test_services_and_executables_are_told_apart() -> None:
    assert task_kind({"function": None, "executable": "true"}) == "executable"
    assert task_kind({"function": None, "executable": "x", "is_service": True}) == "service"
    assert task_kind({"function": plain, "is_service": True}) == "function_service"
    assert task_kind({"function": coroutine, "is_service": True}) == "function_service"


# The context of a running task.


def test_outside_a_task_there_is_no_current_one() -> None:
    with pytest.raises(RuntimeError, match="inside a function task"):
        current_task()


def test_inside_a_task_it_says_what_the_task_is_and_whether_to_stop() -> None:
    context = TaskContext(uid="e.task.000001.2", name="t", attempt=2, sandbox="/box", deadline=9.5)
    with task_context(context):
        task = current_task()
        assert (task.uid, task.name, task.attempt) == ("e.task.000001.2", "t", 2)
        assert (task.sandbox, task.deadline) == ("/box", 9.5)
        assert task.cancelled is False
        other = threading.Thread(target=task.request_cancel)
        other.start()
        other.join(timeout=10)
        assert task.cancelled is True
        with task_context(TaskContext(uid="inner", name="i")):
            assert current_task().uid == "inner"
        assert current_task() is context
    with pytest.raises(RuntimeError):
        current_task()


def test_the_context_is_left_when_the_task_raises() -> None:
    with pytest.raises(KeyError), task_context(TaskContext(uid="u", name="n")):
        raise KeyError("x")
    with pytest.raises(RuntimeError):
        current_task()


@pytest.mark.asyncio
async def test_tasks_on_one_loop_each_see_themselves() -> None:
    gate = asyncio.Event()

    async def body(uid: str) -> str:
        with task_context(TaskContext(uid=uid, name="n")):
            await gate.wait()
            return current_task().uid

    runs = [asyncio.create_task(body(f"u.{n}")) for n in range(5)]
    gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*runs) == [f"u.{n}" for n in range(5)]


def test_a_thread_sees_the_task_only_in_a_copy_of_its_context() -> None:
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(current_task().uid)
        except RuntimeError:
            seen.append(None)

    with task_context(TaskContext(uid="u", name="n")):
        copied = contextvars.copy_context()
        for target in (look, lambda: copied.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(timeout=10)
    assert seen[-1] == "u"


def test_an_outcome_holds_nothing_but_what_it_was_given() -> None:
    outcome = Outcome(uid="u")
    assert (outcome.stdout, outcome.exit_code, outcome.sandbox, outcome.keeper) == (None,) * 4
    assert outcome.output_files == ()
