"""Tests of fetching replies, without a cluster."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.results import Outcomes, Reports
from rhapsody_dask.task import Call
from rhapsody_dask.worker.messages import DONE, Reply, pack

pytestmark = pytest.mark.asyncio


class WeakReply(Reply):
    """A reply that can be referred to weakly."""


def _call(uid: str) -> Call:
    task: Any = {"uid": uid, "name": uid, "function": print, "is_service": False}
    return Call(task, "session")


async def test_a_worker_that_does_not_answer_holds_up_its_own_replies_only() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            if "stuck-1" in futures:
                await asyncio.Event().wait()
            payload, buffers = pack(1)
            return {key: Reply(DONE, payload, buffers) for key in futures}

    calls = {"stuck-1": _call("1"), "well-2": _call("2")}
    outcomes = Outcomes(
        Client(),
        calls,
        lambda call, state: ended.put_nowait(f"{call.uid} {state}"),
        lambda call, error: ended.put_nowait(f"{call.uid} lost"),
        direct=True,
    )
    try:
        outcomes.finished("stuck-1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first batch is under way
        outcomes.finished("well-2")
        async with asyncio.timeout(10):
            assert await ended.get() == "2 done"
    finally:
        outcomes.close()


async def test_a_reply_that_dask_makes_again_holds_up_no_others() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    made = asyncio.Event()

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            if "lost-1" in futures:
                await made.wait()
            payload, buffers = pack(1)
            return {key: Reply(DONE, payload, buffers) for key in futures}

    calls = {"lost-1": _call("1"), "well-2": _call("2")}

    def settle(call: Call, state: str) -> None:
        calls.pop(next(key for key, one in calls.items() if one is call))
        ended.put_nowait(f"{call.uid} {state}")

    outcomes = Outcomes(Client(), calls, settle, lambda call, error: None, direct=True)
    try:
        outcomes.finished("lost-1")
        outcomes.finished("well-2")
        for _ in range(5):
            await asyncio.sleep(0)  # the batch is under way
        outcomes.lost("lost-1")
        async with asyncio.timeout(10):
            assert await ended.get() == "2 done"
            made.set()
            assert await ended.get() == "1 done"
    finally:
        outcomes.close()


async def test_the_error_of_one_task_does_not_keep_the_results_of_others() -> None:
    payload, _ = pack(1)
    errors: list[BaseException] = []
    replies = {"bad-1": Reply(DONE, b"no pickle"), "well-2": WeakReply(DONE, payload)}
    result = weakref.ref(replies["well-2"])

    class Client:
        async def gather(self, futures: dict[str, Any], **options: Any) -> dict[str, Reply]:
            return {key: replies.pop(key) for key in reversed([*futures])}

    calls = {"bad-1": _call("1"), "well-2": _call("2")}
    ended = asyncio.Event()

    def settle(call: Call, state: str) -> None:
        calls.pop(next(key for key, one in calls.items() if one is call))
        if call.error is not None:
            errors.append(call.error)
        if not calls:
            ended.set()

    outcomes = Outcomes(Client(), calls, settle, lambda call, error: None, direct=True)
    gc.disable()
    try:
        outcomes.finished("bad-1")
        outcomes.finished("well-2")
        async with asyncio.timeout(5):
            await ended.wait()
            while result() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert errors
    finally:
        gc.enable()
        outcomes.close()


async def test_an_ended_task_is_released_though_something_else_refers_to_its_future() -> None:
    released = []
    future = SimpleNamespace(release=lambda: released.append(True))
    call = _call("1")
    call.future = future
    reports = Reports(
        {"1": call},
        {call.key: call},
        DaskExecutionBackend().get_task_states_map(),
        lambda *report: None,
        lambda call: None,
        lambda call: None,
    )
    reports.settle(call, "done")
    assert released
