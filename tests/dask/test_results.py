"""Fetching of replies, without a cluster."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_dask.results import ClusterResults
from rhapsody_dask.task import ClusterTask
from rhapsody_dask.worker.messages import DONE, Reply, pack

pytestmark = pytest.mark.asyncio


class WeakReply(Reply):
    """A reply that can be referred to weakly."""


def _call(uid: str, name: str) -> ClusterTask:
    task: Any = {"uid": uid, "name": name, "function": print, "is_service": False}
    return ClusterTask(task, "session")


def _put_ends(queue: asyncio.Queue[str]) -> Callable[..., None]:
    def notify(task: Any, state: Any) -> None:
        if state != "executing":
            queue.put_nowait(f"{task['uid']} {state}")

    return notify


def _results(
    client: Any, calls: dict[str, ClusterTask], notify: Callable[..., None]
) -> ClusterResults:
    shared: Any = None
    tasks = {call.uid: call for call in calls.values()}
    results = ClusterResults(client, tasks, shared, notify, lambda call: None, lambda: None, True)
    results.calls.update(calls)
    return results


async def test_a_hanging_worker_does_not_delay_replies_of_other_workers() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            if "stuck-session-1" in futures:
                await asyncio.Event().wait()
            payload, buffers = pack(1)
            return {key: Reply(DONE, payload, buffers) for key in futures}

    calls = {"stuck-session-1": _call("1", "stuck"), "well-session-2": _call("2", "well")}
    results = _results(Client(), calls, _put_ends(ended))
    try:
        results.fetch("stuck-session-1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first batch is under way
        results.fetch("well-session-2")
        async with asyncio.timeout(10):
            assert await ended.get() == "2 finished"
    finally:
        results.close()


async def test_a_reply_that_dask_recomputes_does_not_delay_others() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    made = asyncio.Event()

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            if "lost-session-1" in futures:
                await made.wait()
            payload, buffers = pack(1)
            return {key: Reply(DONE, payload, buffers) for key in futures}

    calls = {"lost-session-1": _call("1", "lost"), "well-session-2": _call("2", "well")}
    results = _results(Client(), calls, _put_ends(ended))
    try:
        results.fetch("lost-session-1")
        results.fetch("well-session-2")
        for _ in range(5):
            await asyncio.sleep(0)  # the batch is under way
        results.refetch_others("lost-session-1")
        async with asyncio.timeout(10):
            assert await ended.get() == "2 finished"
            made.set()
            assert await ended.get() == "1 finished"
    finally:
        results.close()


async def test_the_error_of_a_task_does_not_keep_other_results_alive() -> None:
    payload, _ = pack(1)
    errors: list[BaseException] = []
    replies = {
        "bad-session-1": Reply(DONE, b"no pickle"),
        "well-session-2": WeakReply(DONE, payload),
    }
    result = weakref.ref(replies["well-session-2"])

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            return {key: replies.pop(key) for key in reversed([*futures])}

    calls = {"bad-session-1": _call("1", "bad"), "well-session-2": _call("2", "well")}
    ended = asyncio.Event()

    def notify(task: Any, state: str) -> None:
        if "exception" in task:
            errors.append(task["exception"])
        if not results.calls:
            ended.set()

    results = _results(Client(), calls, notify)
    gc.disable()
    try:
        results.fetch("bad-session-1")
        results.fetch("well-session-2")
        async with asyncio.timeout(5):
            await ended.wait()
            while result() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert errors
    finally:
        gc.enable()
        results.close()


async def test_the_future_of_an_ended_task_is_released_explicitly() -> None:
    released = []
    future = SimpleNamespace(release=lambda: released.append(True))
    call = _call("1", "one")
    call.future = future
    results = _results(None, {call.key: call}, lambda *report: None)
    results.settle(call, DONE)
    assert released


@pytest.mark.parametrize("answered", [True, False], ids=["before its answer", "before the request"])
async def test_a_task_may_end_while_its_error_is_requested(answered: bool) -> None:
    requested, answer = asyncio.Event(), asyncio.Event()
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: wrong.append(what))

    async def exception() -> ValueError:
        requested.set()
        await answer.wait()
        return ValueError()

    call = _call("1", "one")
    call.future = SimpleNamespace(exception=exception, release=lambda: None, status="error")
    results = _results(None, {call.key: call}, lambda *report: None)
    results.erred(call)
    if answered:
        async with asyncio.timeout(5):
            await requested.wait()
    results.settle(call, DONE)
    answer.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)
    gc.collect()
    assert not wrong
