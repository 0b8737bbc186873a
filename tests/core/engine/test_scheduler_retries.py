"""Retries of failed and lost attempts: budgets, waits, and other backends."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import (
    BackendUnavailableError,
    InputFile,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputFile,
    RetryPolicy,
    TaskFailedError,
    TaskLostError,
    TasksMainStates,
    WorkflowEngine,
    current_task,
    hookimpl,
)
from rhapsody.errors import CapabilityError
from rhapsody.plugins.specs import TaskEvent
from rhapsody.task import TaskDescription
from tests._support.scripted import RUNS_ALL, Inline, ManualClock, Scripted, outcome, turns, within

pytestmark = pytest.mark.asyncio


async def test_a_failed_task_is_tried_again_under_another_uid() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=2)
        def part(x: Any = None) -> Any: ...

        future = part("given")
        dependent = part(future)
        attempts = []
        for number in (1, 2):
            attempts.append(await backend.next())
            assert future.attempt == number
            backend.failed(attempts[-1], OSError(f"attempt {number}"))
        attempts.append(await backend.next())
        assert not future.done()
        assert not dependent.done()
        backend.done(attempts[-1], 42)
        assert await within(future) == 42
        assert future.attempt == 3
        assert [task["attempt"] for task in attempts] == [1, 2, 3]
        assert [task["uid"] for task in attempts] == [
            f"{flow.uid}.task.000001.{number}" for number in (1, 2, 3)
        ]
        assert all(task["args"] == ("given",) for task in attempts)
        assert all("exception" not in task for task in attempts[2:])
        backend.done(await backend.next(), 1)
        await within(dependent)
        assert flow.stats.retried == 2
        assert flow.stats.failed == 0


async def test_when_all_attempts_have_failed_the_last_exception_is_raised() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        calls = []

        @flow.function_task(retries=2)
        def part() -> int:
            calls.append(1)
            raise OSError(f"attempt {len(calls)}")

        future = part()
        with pytest.raises(OSError, match="attempt 3"):
            await within(future)
        assert len(calls) == 3
        assert future.attempt == 3


async def test_the_engines_retries_hold_where_a_task_names_none() -> None:
    async with WorkflowEngine.create(Inline(), retries=1) as flow:
        calls: list[str] = []

        @flow.function_task
        def part(label: str) -> int:
            calls.append(label)
            raise OSError

        futures = [part("engine"), part.options(retries=0)("none"), part.options(retries=3)("own")]
        await within(asyncio.wait(futures))
        assert [calls.count(label) for label in ("engine", "none", "own")] == [2, 1, 4]
        assert all(isinstance(future.exception(), OSError) for future in futures)


async def test_executables_are_tried_again_after_a_non_zero_exit() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        commands = []

        @flow.executable_task(retries=1)
        async def tool() -> str:
            commands.append("tool")
            return "tool"

        future = tool()
        task = await backend.next()
        task["exit_code"], task["stderr"] = 1, "busy"
        backend.report(task, TasksMainStates.FAILED)
        task = await backend.next()
        assert "exit_code" not in task
        assert "stderr" not in task
        task["exit_code"], task["stdout"], task["stderr"] = 0, "fine\n", ""
        backend.report(task, TasksMainStates.DONE)
        assert await within(future) == "fine\n"
        assert (future.exit_code, future.stderr) == (0, "")


async def test_the_next_attempt_waits_as_long_as_the_policy_says() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=2, wait=10))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError())
        await clock.advance(9.9)
        assert len(backend.tasks) == 1
        await clock.advance(0.2)
        assert len(backend.tasks) == 2
        backend.failed(await backend.next(), OSError())
        await clock.advance(9.9)
        assert len(backend.tasks) == 2
        await clock.advance(0.2)
        backend.done(await backend.next(), 1)
        assert await within(future) == 1


async def test_the_wait_is_any_callable_from_attempt_to_seconds() -> None:
    clock = ManualClock()
    asked = []

    def wait(attempt: int) -> float:
        asked.append(attempt)
        return 10.0**attempt

    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=5, wait=wait))
        def part() -> Any: ...

        future = part()
        for number in (1, 2):
            backend.failed(await backend.next(), OSError())
            await clock.advance(10.0**number - 1)
            assert len(backend.tasks) == number
            await clock.advance(2)
            assert len(backend.tasks) == number + 1
        backend.done(await backend.next(), 1)
        assert await within(future) == 1
        assert asked == [1, 2]


@pytest.mark.parametrize("nonsense", [-1, "soon", None, float("nan")])
async def test_a_wait_that_is_no_number_of_seconds_fails_the_task(nonsense: Any) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, wait=lambda attempt: nonsense))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError("the reason"))
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, ValueError | TypeError)
        assert "of task 'part' (task.000001)" in error.__notes__[0]


async def test_a_wait_that_raises_fails_the_task() -> None:
    def wait(attempt: int) -> float:
        raise LookupError("no idea")

    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, wait=wait))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), reason := OSError("the reason"))
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, LookupError)
        assert error.__cause__ is reason
        assert "`wait` in the retries of task 'part' (task.000001)" in error.__notes__[0]


async def test_only_the_named_exceptions_are_worth_another_attempt() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        calls: list[str] = []

        @flow.function_task(retries=RetryPolicy(attempts=3, on=(ConnectionError, KeyError)))
        def part(error: type[Exception]) -> int:
            calls.append(error.__name__)
            raise error

        for error in (ConnectionResetError, KeyError, ValueError):
            with pytest.raises(error):
                await within(part(error))
        assert [calls.count(name) for name in ("ConnectionResetError", "KeyError")] == [4, 4]
        assert calls.count("ValueError") == 1


async def test_by_default_what_is_no_exception_is_not_tried_again() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=3)
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), SystemExit(3))
        await within(asyncio.wait([future]))
        assert isinstance(future.exception(), SystemExit)
        assert len(backend.tasks) == 1


async def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=2, wait=10))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError())
        await turns()
        assert future.cancel() is True
        await within(future.ended())
        await clock.advance(100)
        assert len(backend.tasks) == 1
        assert backend.stops == []
        assert clock.waiting == 0


async def test_losses_have_a_budget_of_their_own() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=1)
        def part() -> Any: ...

        future = part()
        lost = TaskLostError("the worker went away")
        for error in (lost, OSError("own"), lost, lost):
            backend.failed(await backend.next(), error)
        backend.done(await backend.next(), 42)
        assert await within(future) == 42
        assert flow.stats.lost == 3


async def test_the_fourth_loss_fails_the_task() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        for number in range(1, 5):
            backend.failed(await backend.next(), TaskLostError(f"loss {number}"))
        with pytest.raises(TaskLostError, match="loss 4"):
            await within(future)
        await turns()
        assert len(backend.tasks) == 4


async def test_the_budget_of_losses_is_set_for_an_engine_and_for_a_task() -> None:
    async with WorkflowEngine.create(backend := Scripted(), lost_retries=0) as flow:

        @flow.function_task
        def part() -> Any: ...

        strict, tolerant = part(), part.options(lost_retries=1)()
        for _ in range(2):
            backend.failed(await backend.next(), TaskLostError("gone"))
        backend.done(await backend.next(), 42)
        assert await within(tolerant) == 42
        with pytest.raises(TaskLostError):
            await within(strict)


async def test_a_loss_is_tried_again_whatever_exceptions_a_policy_names() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, on=KeyError))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), TaskLostError("gone"))
        backend.failed(await backend.next(), KeyError("own"))
        backend.done(await backend.next(), 1)
        assert await within(future) == 1


@pytest.mark.parametrize(
    ("setting", "value", "kind"),
    [
        ("retries", -1, ValueError),
        ("retries", "two", TypeError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("lost_retries", -1, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", [10], TypeError),
        ("timeout", float("nan"), ValueError),
        ("timeout", float("inf"), ValueError),
    ],
)
async def test_wrong_numbers_are_refused_where_they_are_written(
    setting: str, value: Any, kind: type[Exception]
) -> None:
    given: dict[str, Any] = {setting: value}
    with pytest.raises(kind, match=setting):
        await WorkflowEngine.create(Inline(), **given)
    async with WorkflowEngine.create(Inline()) as flow:

        def part() -> None: ...

        with pytest.raises(kind, match=setting):
            flow.function_task(**given)(part)
        with pytest.raises(kind, match=setting):
            flow.function_task(part).options(**given)


async def test_a_retried_executables_error_is_of_its_last_attempt() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task(retries=1)
        async def tool() -> str:
            return "tool"

        future = tool()
        for code in (1, 2):
            task = await backend.next()
            task["exit_code"], task["stderr"] = code, f"error {code}"
            backend.report(task, TasksMainStates.FAILED)
        with pytest.raises(TaskFailedError, match="error 2") as caught:
            await within(future)
        assert caught.value.exit_code == 2


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


LOST = TaskLostError("the worker went away")


class Events:
    """Keeps the attempts, the backends and the states of events."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str | None, TasksMainStates]] = []

    @hookimpl
    def rhapsody_task_events(self, events: tuple[TaskEvent, ...]) -> None:
        self.seen += [(event.attempt, event.backend, event.state) for event in events]

    def of(self, state: TasksMainStates) -> list[tuple[int, str | None]]:
        """The attempts that entered a state, and where."""
        return [(attempt, backend) for attempt, backend, entered in self.seen if entered is state]


class Three:
    """An engine with three backends that do what a test tells them."""

    def __init__(self, flow: WorkflowEngine, *backends: Scripted) -> None:
        self.flow = flow
        self.one, self.two, self.three = backends


@pytest_asyncio.fixture
async def on() -> AsyncIterator[Three]:
    backends = [Scripted(name) for name in ("one", "two", "three")]
    async with WorkflowEngine.create(backends, lost_retries=1, clock=ManualClock()) as flow:
        yield Three(flow, *backends)


def part() -> Any: ...


async def test_each_backend_gets_all_the_attempts_and_the_note_says_which_had_how_many(
    on: Three,
) -> None:
    future = on.flow.function_task(retries=1, other_backends=("two", "three"))(part)()
    errors: dict[Scripted, list[Exception]] = {
        on.one: [OSError(), OSError()],
        on.two: [OSError(), LOST, OSError()],
        on.three: [LOST, OSError(), LOST],
    }
    attempts = [(backend, error) for backend, several in errors.items() for error in several]
    for number, (backend, error) in enumerate(attempts, 1):
        task = await backend.next()
        assert (future.attempt, future.backend) == (number, backend.name)
        assert task["uid"].endswith(f"task.000001.{number}")
        backend.failed(task, error)
    last = await outcome(future)
    assert last is LOST
    assert "  task.000001, attempt 8, on 'three'\n" in last.__notes__[0]
    assert "  attempts: 2 on 'one', 3 on 'two', 3 on 'three'" in last.__notes__[0]
    assert on.flow.stats.retried == 7


async def test_without_retries_one_failure_is_enough_to_go_on(on: Three) -> None:
    future = on.flow.function_task(backend="two", other_backends="one")(part)()
    on.two.failed(await on.two.next(), OSError())
    on.one.done(await on.one.next(), 42)
    assert await within(future) == 42
    assert future.backend == "one"


async def test_a_failure_that_is_not_worth_another_attempt_is_the_last(on: Three) -> None:
    policy = RetryPolicy(1, on=OSError)
    future = on.flow.function_task(retries=policy, other_backends=("two",))(part)()
    on.one.failed(await on.one.next(), OSError())
    on.one.failed(await on.one.next(), KeyError())
    error = await outcome(future)
    assert isinstance(error, KeyError)
    assert "attempts:" not in error.__notes__[0]
    assert on.two.tasks == []


async def test_an_unavailable_backend_is_left_at_once(on: Three) -> None:
    future = on.flow.function_task(other_backends=("two", "three"), retries=5)(part)()
    on.one.failed(await on.one.next(), BackendUnavailableError("the connection is closed"))
    await on.two.shutdown()
    on.three.done(await on.three.next(), 42)
    assert await within(future) == 42
    assert future.attempt == 3


async def test_a_backend_is_not_tried_twice(on: Three) -> None:
    task = on.flow.function_task(other_backends=("one", "one", "two", "one"))(part)
    future = task()
    on.one.failed(await on.one.next(), OSError("first"))
    on.two.failed(await on.two.next(), OSError("second"))
    assert str(await outcome(future)) == "second"


async def test_the_fallback_is_for_when_all_backends_have_failed(on: Three) -> None:
    future = on.flow.function_task(other_backends=("two",), fallback=7)(part)()
    on.one.failed(await on.one.next(), OSError())
    assert not future.done()
    on.two.failed(await on.two.next(), OSError())
    assert await within(future) == 7


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("dusk", ValueError, r"no backend 'dusk' is attached to this engine .attached: 'one',"),
        (["two", "dusk"], ValueError, r"no backend 'dusk' is attached"),
        (3, TypeError, r"other_backends must be names of attached backends such as .*, got 3"),
        (["two", 3], TypeError, r"other_backends must be names .*, got \['two', 3\]"),
    ],
)
async def test_wrong_names_are_refused_where_they_are_written(
    on: Three, given: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        on.flow.function_task(other_backends=given)(part)
    with pytest.raises(kind, match=said):
        on.flow.function_task(part).options(other_backends=given)


async def test_names_are_compared_as_those_of_the_first_backend_are(on: Three) -> None:
    future = on.flow.function_task(part).options(other_backends=["TWO"])()
    on.one.failed(await on.one.next(), OSError())
    on.two.done(await on.two.next(), 1)
    await within(future)
    assert future.backend == "two"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resources": {"gpus": 1}}, "backend 'poor'.* does not support gpus=1"),
        ({"task_description": {"queue": 1}}, "backend 'poor' does not support the key 'queue'"),
    ],
)
async def test_missing_capabilities_of_another_backend_are_reported_before_the_first_attempt(
    settings: dict[str, Any], said: str
) -> None:
    poor = dataclasses.replace(RUNS_ALL, resources=frozenset(), task_settings=frozenset())
    backends = [Scripted("rich"), Scripted("poor", poor)]
    async with WorkflowEngine.create(backends) as flow:
        task = flow.function_task(**settings)(part)
        with pytest.raises(CapabilityError, match=said):
            await within(task.options(other_backends=("poor",))())
        assert backends[0].tasks == []
        plain = task()
        backends[0].done(await backends[0].next(), 1)
        await within(plain)


async def test_files_unreachable_for_another_backend_are_reported_before_the_first_attempt(
    here: Path,
) -> None:
    (here / "in.txt").touch()
    async with WorkflowEngine.create([LocalExecutionBackend(), Scripted()]) as flow:

        @flow.function_task(other_backends=("scripted",))
        def read(path: Any) -> None:
            (here / "ran").touch()

        with pytest.raises(CapabilityError, match="backend 'scripted' cannot link files"):
            await within(read(InputFile("in.txt")))
        assert not (here / "ran").exists()


async def test_events_say_where_each_attempt_ran() -> None:
    backends, events = [Scripted("one"), Scripted("two")], Events()
    async with WorkflowEngine.create(backends, observers=[events]) as flow:
        future = flow.function_task(retries=1, other_backends=("two",))(part)()
        for _ in range(2):
            backends[0].failed(await backends[0].next(), OSError())
        backends[1].done(await backends[1].next())
        await within(future)
    ran = [(1, "one"), (2, "one"), (3, "two")]
    assert events.of(TasksMainStates.SUBMITTED) == ran
    assert events.of(TasksMainStates.FAILED) == ran[:2]
    assert events.of(TasksMainStates.DONE) == ran[2:]


async def test_a_plugin_does_not_send_a_task_back_to_the_backend_that_it_has_left() -> None:
    class First:
        @hookimpl
        def rhapsody_select_backend(self, candidates: tuple[str, ...]) -> str:
            return candidates[1]

    backends = [Scripted(name) for name in ("default", "chosen", "other")]
    async with WorkflowEngine.create(backends, observers=[First()]) as flow:
        future = flow.function_task(other_backends=("other",))(part)()
        backends[1].failed(await backends[1].next(), OSError())
        backends[2].done(await backends[2].next(), 42)
        assert await within(future) == 42


async def test_limits_time_outs_and_cancellation_go_on_working_elsewhere() -> None:
    clock, one, two = ManualClock(), Scripted("one"), Scripted("two")
    async with WorkflowEngine.create([one, two], clock=clock, max_pending=1) as flow:
        limited = flow.function_task(limit="license:1", timeout=10, other_backends=("two",))(part)
        first, second = limited(), limited()
        task = await one.next()
        one.runs(task)
        await clock.advance(11)  # it is stopped, and goes on elsewhere after the one that waits
        assert one.stops == [task["uid"]]
        one.done(await one.next(), "second")
        assert await within(second) == "second"
        task = await two.next()
        two.runs(task)
        await clock.advance(5)
        assert first.cancel()
        await within(first.ended())
        assert two.stops == [task["uid"]]
        third = limited()
        one.done(await one.next(), "third")
        assert await within(third) == "third"
        assert clock.waiting == 0


async def test_a_task_that_waits_between_its_backends_can_be_cancelled() -> None:
    clock, one, two = ManualClock(), Scripted("one"), Scripted("two")
    async with WorkflowEngine.create([one, two], clock=clock) as flow:
        retries = RetryPolicy(1, wait=10)
        future = flow.function_task(retries=retries, other_backends=("two",))(part)()
        one.failed(await one.next(), OSError())
        one_more = await _after(clock, one)
        one.failed(one_more, OSError())
        two.failed(await two.next(), OSError())
        await turns()
        assert future.cancel()
        await within(future.ended())
        await clock.advance(100)
        assert (len(one.tasks), len(two.tasks)) == (2, 1)


async def _after(clock: ManualClock, backend: Scripted) -> Any:
    await clock.advance(11)
    return await backend.next()


async def test_a_function_that_ends_its_worker_process_goes_on_in_a_thread(here: Path) -> None:
    backends = {
        "processes": LocalExecutionBackend("process", resources={"workers": 1}),
        "threads": LocalExecutionBackend(),
    }
    async with WorkflowEngine.create(backends=backends, lost_retries=1) as flow:
        home = os.getpid()

        @flow.executable_task
        def write(out: Any) -> str:
            return f"echo data > {out}"

        @flow.function_task(other_backends=("threads",))
        def deadly(path: Any, made_by: Any) -> tuple[int, str]:
            with open(here / "ran", "a") as log:
                log.write(f"{current_task().attempt}\n")
            if os.getpid() != home:
                os.kill(os.getpid(), signal.SIGKILL)
            return current_task().attempt, Path(path).read_text()

        @flow.function_task(backend="processes")
        def after(value: Any) -> Any:
            return value

        future = deadly(InputFile("x.txt"), write(OutputFile("x.txt")))
        assert await within(after(future)) == (3, "data\n")
        assert future.backend == "threads"
        assert flow.stats.lost == 2
    assert (here / "ran").read_text().split() == ["1", "2", "3"]


async def test_a_program_has_a_fresh_sandbox_and_the_error_of_its_last_backend(here: Path) -> None:
    backends = {"one": LocalExecutionBackend(), "two": LocalExecutionBackend("process")}
    async with WorkflowEngine.create(backends=backends, keep_sandboxes="all") as flow:

        @flow.executable_task(other_backends=("two",))
        def program(out: Any) -> str:
            return f"ls; echo 1 > {out}; echo 2 > other; echo $PWD >> {here}/ran; exit 3"

        future = program(OutputFile("results/out.txt"))
        error = await outcome(future)
        note = error.__notes__[0]
        assert "attempt 2, on 'two'" in note
        assert "attempts: 1 on 'one', 1 on 'two'" in note
        assert future.stdout == ""
    first, second = (here / "ran").read_text().split()
    assert first != second
    assert f"sandbox: {second}" in note


async def test_a_failure_reported_by_hand_leaves_retries_to_the_engine() -> None:
    submitted = asyncio.Event()

    class Waits(NoopExecutionBackend):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            submitted.set()
            if tasks[0]["attempt"] == 2:
                await super().submit_tasks(tasks)

    async with WorkflowEngine.create(Waits()) as flow:
        future = flow.function_task(retries=1)(int)()
        await asyncio.wait_for(submitted.wait(), 20)
        flow.handle_task_failure(future.task, future, "by hand")
        assert not future.done()
        await asyncio.wait_for(future, 20)
        assert future.attempt == 2
