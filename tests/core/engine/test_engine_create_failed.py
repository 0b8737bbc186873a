"""Engines that cannot be made leave nothing running, and nothing of others' changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests._support.scripted import Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


class Broken(Scripted):
    """Starts, and then fails in one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__("broken")
        setattr(self, method, self.fail)

    def fail(self, *args: Any) -> Any:
        raise LookupError("no table of states")


class Slow(Scripted):
    """A backend that starts when the test lets it."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.may_start = asyncio.Event()

    async def start(self) -> None:
        await self.may_start.wait()


class Stubborn(Scripted):
    """Stops, and says that it cannot."""

    async def stop(self) -> None:
        raise OSError("the socket is closed")


def engine_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("mine ")]


async def create(*backends: Any, **settings: Any) -> WorkflowEngine:
    settings.setdefault("handle_signals", False)
    return await WorkflowEngine.create(list(backends), uid="mine", **settings)


@pytest.mark.parametrize("method", ["get_task_states_map", "register_callback"])
async def test_a_backend_that_cannot_be_attached_leaves_none_running(method: str) -> None:
    good, broken, late = Scripted("good"), Broken(method), Scripted("late")
    with pytest.raises(LookupError, match="no table of states"):
        await create(good, broken, late)
    assert [one.state() for one in (good, broken, late)] == ["shutdown"] * 3
    assert engine_tasks() == []


@pytest.mark.parametrize("method", ["get_task_states_map", "register_callback"])
async def test_backends_that_ran_before_go_on_and_are_let_go_of(method: str) -> None:
    taken, broken = await Scripted("taken"), await Broken(method)
    with pytest.raises(LookupError):
        await create(taken, broken)
    assert [one.state() for one in (taken, broken)] == ["running"] * 2
    assert taken._reports == broken._reports == []
    await taken.shutdown()
    await broken.shutdown()


async def test_giving_up_when_the_backend_has_just_started_leaves_nothing_running() -> None:
    slow = Slow()
    starting = asyncio.ensure_future(create(slow, handle_signals=True))
    await turns()
    slow.may_start.set()
    await until(lambda: slow.state() == "running")
    starting.cancel()
    await within(asyncio.wait([starting]))
    assert starting.cancelled()
    assert slow.state() == "shutdown"


async def test_a_backend_that_fails_to_stop_keeps_no_other_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, stubborn, twin = Scripted("good"), Stubborn("stubborn"), Stubborn("twin")
    with pytest.raises(LookupError, match="no table of states"):
        await create(stubborn, good, twin, Broken("register_callback"))
    assert [one.state() for one in (good, stubborn, twin)] == ["shutdown"] * 3
    assert "backend 'stubborn' failed to shut down: OSError: the socket is closed" in caplog.text
