"""Tests of what `ManagedBackend` does for a backend that only implements `run_task`."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import Any

import pytest

from rhapsody import TasksMainStates, WorkflowEngine
from rhapsody.backends.base import (
    BaseExecutionBackend,
    CancelLevel,
    Capabilities,
    ManagedBackend,
)
from rhapsody.backends.programs import LocalPrograms, SharedSandboxes
from rhapsody.sdk import Runner, finish, pack, unpack
from rhapsody.task import TaskDescription
from rhapsody_testing import Driver
from tests._support.scripted import ManualClock, turns, until, within

pytestmark = pytest.mark.asyncio

RUNNING, CANCELED = TasksMainStates.RUNNING, TasksMainStates.CANCELED


class Gated(ManagedBackend):
    """Its tasks end when their gate, a future, is opened.

    Attributes:
        began: The names of the tasks whose work began, in order.
    """

    name = "gated"

    def __init__(self, max_running: int | None = None, **capabilities: Any) -> None:
        super().__init__(max_running=max_running)
        self.capabilities = dataclasses.replace(
            Capabilities(services=True, reports_running=True), **capabilities
        )
        self.began: list[str] = []
        self.gates: dict[str, asyncio.Future[Any]] = {}

    async def run_task(self, task: TaskDescription) -> Any:
        name = task["name"]
        self.began.append(name)
        self.gates[name] = asyncio.get_running_loop().create_future()
        return await self.gates[name]


def tasks(driver: Driver, names: str, **keys: Any) -> list[TaskDescription]:
    return [driver.describe(name, executable="true", **keys) for name in names]


async def test_tasks_wait_for_a_slot_and_are_running_when_they_have_it() -> None:
    async with Gated(2) as backend, Driver(backend) as driver:
        batch = tasks(driver, "abcd")
        await driver.submit(*batch)
        await turns()
        assert backend.began == ["a", "b"]
        assert [RUNNING in driver.history(task) for task in batch] == [True, True, False, False]
        backend.gates["b"].set_result(1)
        await within(driver.finished(batch[1]))
        assert await within(driver.running(batch[2]))
        assert backend.began == ["a", "b", "c"]
        assert driver.history(batch[3]) == []


async def test_a_time_out_does_not_count_while_a_task_waits_for_a_slot() -> None:
    clock = ManualClock()
    backend = Gated(1, cancel_executables="running")
    async with WorkflowEngine.create(backend, clock=clock, handle_signals=False) as flow:

        @flow.executable_task
        async def tool() -> str:
            return "true"

        first = tool.options(name="first")()
        second = tool.options(name="second", timeout=5)()
        await until(lambda: backend.began)
        await clock.advance(60)
        assert not second.done()
        backend.gates["first"].set_result(None)
        await within(first)
        await until(lambda: backend.began == ["first", "second"])
        await clock.advance(60)
        with pytest.raises(TimeoutError):
            await within(second)


@pytest.mark.parametrize(
    ("level", "answers"),
    [("none", (False, False)), ("queued", (False, True)), ("running", (True, True))],
)
async def test_a_task_that_waits_for_a_slot_is_cancelled_where_that_is_declared(
    level: CancelLevel, answers: tuple[bool, bool]
) -> None:
    async with Gated(1, cancel_executables=level) as backend, Driver(backend) as driver:
        runs, waits, last = batch = tasks(driver, "rwl")
        await driver.submit(*batch)
        await within(driver.running(runs))
        assert (await driver.cancel(runs), await driver.cancel(waits)) == answers
        if answers[1]:
            assert (await within(driver.finished(waits))).state is CANCELED
            assert RUNNING not in driver.history(waits)
        if not answers[0]:
            backend.gates["r"].set_result(1)
        await within(driver.running(last if answers[1] else waits))


async def test_a_backend_whose_tasks_wait_says_itself_when_one_runs() -> None:
    backend = Gated(cancel_executables="running")
    backend.running_when_called = False
    async with backend, Driver(backend) as driver:
        (task,) = tasks(driver, "a")
        await driver.submit(task)
        await until(lambda: backend.began)
        assert driver.history(task) == []
        backend.task_state_cb(task, RUNNING)
        backend.gates["a"].set_result(1)
        await within(driver.finished(task))
        assert driver.history(task) == [RUNNING, TasksMainStates.DONE]


async def test_services_need_no_slot() -> None:
    async with Gated(1) as backend, Driver(backend) as driver:
        service, task = *tasks(driver, "s", is_service=True), *tasks(driver, "t")
        await driver.submit(service, task)
        assert await within(driver.running(task))
        assert backend.began == ["s", "t"]


async def test_shutdown_cancels_what_waits_for_a_slot() -> None:
    backend = await Gated(1)
    async with Driver(backend) as driver:
        batch = tasks(driver, "abc")
        await driver.submit(*batch)
        await within(driver.running(batch[0]))
        await within(backend.shutdown())
        assert [(await driver.finished(task)).state for task in batch] == [CANCELED] * 3
        assert backend.began == ["a"]


async def test_no_running_state_comes_where_none_is_declared() -> None:
    async with Gated(reports_running=False) as backend, Driver(backend) as driver:
        (task,) = tasks(driver, "a")
        await driver.submit(task)
        await until(lambda: backend.began)
        backend.gates["a"].set_result(7)
        assert (await within(driver.finished(task))).value == 7
        assert driver.history(task) == [TasksMainStates.DONE]


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)],
)
async def test_an_invalid_number_of_slots_is_refused(number: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"max_running must be .* got {number!r}"):
        Gated(number)


async def test_a_remote_error_has_no_frames_of_the_backend() -> None:
    class Remote(ManagedBackend):
        async def run_task(self, task: TaskDescription) -> Any:
            error = finish(task, unpack(Runner().run(pack(task))))
            assert error is not None
            raise error

    def fail() -> None:
        raise KeyError("x")

    async with WorkflowEngine.create(Remote()) as flow:
        with pytest.raises(KeyError) as caught:
            await within(flow.function_task(fail)())
    assert "run_task" not in [entry.name for entry in caught.traceback]
    assert 'raise KeyError("x")' in str(caught.value.__cause__)


class OwnNames(LocalPrograms, ManagedBackend):
    """Backend whose own attributes have names that its base classes could use."""

    name = "own-names"
    capabilities = Capabilities(
        cancel_executables="running",
        reports_running=True,
        sandboxes=True,
        files=True,
        shared_file_system=True,
    )

    def __init__(self) -> None:
        self._set()
        super().__init__(max_running=2)
        self._set()

    def _set(self) -> None:
        names = "started callbacks reaper lifecycle open own_session room run runs session state"
        for name in [*names.split(), "states", "tasks"]:
            setattr(self, f"_{name}", "my own")
        self.open_tasks: Any = "my own"

    def _started(self) -> str:
        return "my own"

    _run_now = _run_ended = _report = _tell = _tidy = _started

    async def run_task(self, task: TaskDescription) -> Any:
        return await self.run_program(task)


async def test_a_subclass_may_have_attributes_of_any_private_name() -> None:
    async with OwnNames() as backend, Driver(backend) as driver:
        done, slow = driver.command("echo out"), driver.command("sleep 60")
        await driver.submit(done, slow)
        assert (await within(driver.finished(done))).stdout == "out\n"
        assert await within(driver.running(slow))
        assert await driver.cancel(slow)
        assert (await within(driver.finished(slow))).state is CANCELED
        assert backend.state() == "running"
    assert backend.state() == "shutdown"


async def test_base_classes_have_no_name_of_one_underscore() -> None:
    bases = (BaseExecutionBackend, ManagedBackend, SharedSandboxes, LocalPrograms)
    found = {*vars(Gated()), *(name for base in bases for name in vars(base))}
    mangled = tuple(f"_{base.__name__}__" for base in bases)
    single = {name for name in found if re.match("_[a-zA-Z]", name)}
    assert {name for name in single if not name.startswith((*mangled, "_abc_"))} == set()
