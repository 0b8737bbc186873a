"""Tests of the attributes of an engine: read-only views of unfinished tasks."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rhapsody import NoopExecutionBackend, StateMapper, WorkflowEngine
from tests._support.engine_fixtures import engine
from tests._support.scripted import Scripted, turns, until

pytestmark = pytest.mark.asyncio

NAMES = [
    *("loop", "backend", "dry_run", "work_dir", "log", "prof", "components", "dependencies"),
    *("resolved", "running", "queue", "task_states_map", "implicit_data_mode"),
    *("uid", "backends", "stats", "clock"),
]


def two_tasks(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task and one that depends on it."""

    @flow.function_task
    async def first() -> Any: ...

    @flow.function_task
    async def second(x: Any) -> Any: ...

    one = first()
    return one, second(one)


async def test_each_attribute_is_what_its_name_says() -> None:
    backend = NoopExecutionBackend()
    async with engine(backend, work_dir="here", uid="mine") as flow:
        assert flow.loop is asyncio.get_running_loop()
        assert flow.backend is backend
        assert flow.backends == {"noop": backend}
        assert flow.dry_run is False
        assert flow.work_dir == Path.cwd() / "here"
        assert isinstance(flow.log, logging.Logger | logging.LoggerAdapter)
        assert flow.prof.enabled is False
        assert flow.implicit_data_mode is True
        assert isinstance(flow.task_states_map, StateMapper)
        assert flow.task_states_map.terminal_states == ("DONE", "FAILED", "CANCELED")
        assert flow.uid == "mine"
        assert flow.clock.monotonic() <= flow.clock.monotonic()
        assert flow.stats.tasks == 0
    async with engine(implicit_data=False) as flow:
        assert flow.implicit_data_mode is False


@pytest.mark.parametrize("name", NAMES)
async def test_an_attribute_cannot_be_assigned(name: str) -> None:
    async with engine() as flow:
        before = getattr(flow, name)
        with pytest.raises(AttributeError):
            setattr(flow, name, None)
        assert type(getattr(flow, name)) is type(before)


@pytest.mark.parametrize("name", ["components", "dependencies", "backends"])
async def test_a_mapping_cannot_be_changed(name: str) -> None:
    async with engine(Scripted()) as flow:
        two_tasks(flow)
        view = getattr(flow, name)
        assert isinstance(view, Mapping)
        key = next(iter(view))
        with pytest.raises((TypeError, AttributeError)):
            view[key] = None  # type: ignore[index]
        with pytest.raises((TypeError, AttributeError)):
            del view[key]  # type: ignore[attr-defined]
        with pytest.raises((TypeError, AttributeError)):
            view.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["resolved", "running", "queue"])
async def test_a_collection_cannot_be_changed(name: str) -> None:
    async with engine(Scripted()) as flow:
        two_tasks(flow)
        view = getattr(flow, name)
        for method in ("append", "add", "remove", "clear", "pop", "discard"):
            assert not hasattr(view, method)
        with pytest.raises(TypeError):
            view[0] = "task.000009"


async def test_components_hold_the_unfinished_tasks_and_blocks() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        one, two = two_tasks(flow)

        @flow.block
        async def part(x: Any) -> Any:
            return x

        block = part(two)
        assert set(flow.components) == {"task.000001", "task.000002", "block.000001"}
        entry = flow.components["task.000001"]
        assert entry["type"] == "task"
        assert entry["future"] is one
        assert entry["description"]["name"] == "first"
        assert flow.components["block.000001"]["type"] == "block"
        backend.done(await backend.given("first"), 1)
        await one
        assert set(flow.components) == {"task.000002", "block.000001"}
        backend.done(await backend.given("second"), 2)
        assert await block == 2
        assert flow.components == {}


async def test_dependencies_are_by_uid_and_of_what_is_unfinished() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        one, two = two_tasks(flow)
        assert flow.dependencies["task.000001"] == ()
        assert flow.dependencies["task.000002"] == ({"uid": "task.000001", "name": "first"},)
        backend.done(await backend.given("first"), 1)
        await one
        assert set(flow.dependencies) == {"task.000002"}
        backend.done(await backend.given("second"), 2)
        await two
        assert flow.dependencies == {}


async def test_resolved_are_those_that_wait_for_nothing() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        one, _ = two_tasks(flow)
        assert set(flow.resolved) == {"task.000001"}
        backend.done(await backend.given("first"), 1)
        await one
        assert set(flow.resolved) == {"task.000002"}


async def test_running_are_those_that_a_backend_started() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        one, _ = two_tasks(flow)
        task = await backend.given("first")
        assert list(flow.running) == []
        backend.runs(task)
        assert list(flow.running) == ["task.000001"]
        backend.done(task, 1)
        await one
        assert list(flow.running) == []


async def test_running_has_the_blocks_and_services_too() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.executable_task(service=True)
        def server() -> str:
            return "serve"

        @flow.block
        async def part() -> None:
            await asyncio.Event().wait()

        part()
        service = server()
        backend.runs(await backend.given("server"))
        await service
        assert set(flow.running) == {"task.000001", "block.000001"}


async def test_queue_is_what_is_ready_and_not_yet_handed_over() -> None:
    backend = Scripted()
    async with engine(backend, max_pending=1) as flow:

        @flow.function_task
        async def job(x: int) -> Any: ...

        flow.map(job, range(3))
        await until(lambda: backend.tasks)
        await turns()
        assert list(flow.queue) == ["task.000002", "task.000003"]
        assert len(backend.tasks) == 1
        backend.done(backend.tasks[0])
        await until(lambda: len(backend.tasks) == 2)
        assert list(flow.queue) == ["task.000003"]


async def test_stats_count_what_happened() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job(x: int) -> Any: ...

        futures = flow.map(job, range(3))
        await until(lambda: len(backend.tasks) == 3)
        backend.done(backend.tasks[0])
        backend.failed(backend.tasks[1], OSError())
        futures[2].cancel()
        await asyncio.wait(futures)
        stats = flow.stats
        assert (stats.tasks, stats.done, stats.failed, stats.cancelled) == (3, 1, 1, 1)
        assert futures[1].exception() is not None


async def test_nothing_keeps_a_finished_tasks_arguments_or_a_dropped_future() -> None:
    class Big:
        pass

    async with engine() as flow:

        @flow.function_task
        async def job(x: Big) -> Any: ...

        big = Big()
        future = job(big)
        await future
        kept, held = weakref.ref(big), weakref.ref(future)
        del big, future
        await turns()
        gc.collect()
        assert kept() is None
        assert held() is None
