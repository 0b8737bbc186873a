"""Tasks that go on to another backend when the attempts on one are used up."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import (
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    RetryPolicy,
    TaskLostError,
    TasksMainStates,
    WorkflowEngine,
    current_task,
    hookimpl,
)
from rhapsody.errors import BackendUnavailableError, CapabilityError
from rhapsody.plugins.specs import TaskEvent
from tests._support.scripted import RUNS_ALL, ManualClock, Scripted, outcome, turns, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

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
        ("dusk", ValueError, r"no backend 'dusk' is attached to this engine; there are: 'one',"),
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
        ({"resources": {"gpus": 1}}, "task 'part' needs gpus=1, which backend 'poor', as it is"),
        ({"task_description": {"queue": 1}}, "backend 'poor' knows no 'queue' in task_descr"),
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
