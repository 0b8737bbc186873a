"""How replies are fetched, without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody_dask.calls import Call
from rhapsody_dask.outcome import Outcomes
from rhapsody_dask.worker.messages import DONE, Reply, pack

pytestmark = pytest.mark.asyncio


def _call(uid: str) -> Call:
    task: Any = {"uid": uid, "name": uid, "function": print, "is_service": False}
    return Call(task, "session")


async def test_a_worker_that_does_not_answer_holds_up_its_own_replies_only() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    class Client:
        async def fetch(self, keys: list[str], direct: bool) -> Any:
            if "stuck-1" in keys:
                await asyncio.Event().wait()
            payload, buffers = pack(1)
            return {key: Reply(DONE, payload, buffers) for key in keys}, []

    calls = {"stuck-1": _call("1"), "well-2": _call("2")}
    losses: Any = None
    outcomes = Outcomes(
        Client(),
        calls,
        lambda call, state: ended.put_nowait(f"{call.uid} {state}"),
        lambda call, error: ended.put_nowait(f"{call.uid} lost"),
        losses,
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
