"""Tests that arguments and results of a task are released when it is done."""

from __future__ import annotations

import asyncio
import os
import sys
import tracemalloc
import weakref
from contextlib import suppress
from typing import Any

import psutil
import pytest

from rhapsody.backends.local import LocalExecutionBackend
from tests._support.engine_fixtures import engine

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

SIZE = 64 << 20


class Data:
    """Something that is large."""


def give(data: Any) -> Any:
    return Data()


async def give_later(data: Any) -> Any:
    return Data()


def fail(data: Any) -> None:
    raise ValueError("on purpose")


async def fail_later(data: Any) -> None:
    raise ValueError("on purpose")


async def become(condition: Any) -> None:
    """Waits until another thread or process has done what it does without a word."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("kind", ["thread", "shared", "block"])
@pytest.mark.parametrize("function", [give, give_later, fail, fail_later])
async def test_an_idle_thread_holds_nothing(kind: str, function: Any) -> None:
    if function is fail_later and kind != "block" and sys.version_info >= (3, 13):
        pytest.skip("what a coroutine raised stays until the worker's next task from 3.13 on")
    async with engine(LocalExecutionBackend()) as flow:
        held: weakref.WeakSet[Data] = weakref.WeakSet()
        task = flow.block(function) if kind == "block" else flow.function_task(function)
        if kind == "shared":
            task = flow.function_task(resources={"cores": 0})(function)

        async def use() -> None:
            data = Data()
            held.add(data)
            with suppress(ValueError):
                held.add(await task(data))

        await use()
        await become(lambda: not held)


async def test_an_idle_worker_process_and_its_engine_hold_nothing() -> None:
    async with engine(LocalExecutionBackend("process", resources={"workers": 1})) as flow:
        pid = flow.function_task(os.getpid)
        length = flow.function_task(len)
        make = flow.function_task(bytes)
        worker = psutil.Process(await pid())
        await make(1)
        used = worker.memory_info().rss
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()

            def released() -> bool:
                here, _ = tracemalloc.get_traced_memory()
                there = worker.memory_info().rss
                return here - before < SIZE // 2 and there - used < SIZE // 2

            assert await length(bytes(SIZE)) == SIZE
            await become(released)
            assert len(await make(SIZE)) == SIZE
            await become(released)
            assert worker.is_running()
        finally:
            tracemalloc.stop()
