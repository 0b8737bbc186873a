"""Bytes from strangers: they lead to our own errors, and to no hang."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody import LocalExecutionBackend, TaskLostError, WorkflowEngine
from rhapsody.backends.local import packing, worker
from rhapsody.errors import BackendError
from rhapsody.sdk.calls import pack, unpack
from rhapsody.sdk.runner import CallResult, ProtocolVersionError, Runner
from rhapsody.sdk.threads import Mailbox
from tests._support.local import job_of
from tests._support.nonsense import little_memory, nonsense
from tests._support.scripted import within

pytestmark = pytest.mark.timeout(60)

TASK: Any = {"uid": "task.1", "name": "one", "function": abs, "args": (-1,), "kwargs": {}}
CALL = pack(TASK)
OUTCOME = Runner().run(CALL)
FRAME = bytes(packing.Specs().frame(job_of(TASK, call=packing.pack_call(TASK)[0])))


@given(nonsense(OUTCOME))
@settings(max_examples=50)
def test_an_outcome_that_is_none(packed: bytes) -> None:
    with little_memory():
        try:
            found = unpack(packed)
        except (BackendError, ProtocolVersionError):
            return
    assert isinstance(found, CallResult)


@given(nonsense(CALL))
@settings(max_examples=50)
def test_a_call_that_is_none_has_an_outcome(packed: bytes) -> None:
    with little_memory():
        outcome = unpack(Runner().run(packed))
    assert not outcome.done or packed == CALL


@given(st.integers(0, len(FRAME) - 1))
@settings(max_examples=50)
def test_an_order_that_was_cut_off_is_the_end(length: int) -> None:
    stream = io.BytesIO(FRAME + FRAME[:length])
    first = worker.received(stream)
    assert first is not None
    assert first[2] is not None
    assert first[2].uid == "task.1"
    assert worker.received(stream) is None


def test_a_connection_closed_with_unread_replies_is_the_end() -> None:
    program, own = socket.socketpair()
    with own, open(own.fileno(), "rb", closefd=False) as stream:
        own.sendall(b"a reply")
        program.close()
        assert worker.received(stream) is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "written",
    [b"a line of text that a library prints\n", worker.LENGTHS.pack(5, 0) + b"\x80\x05abc"],
)
async def test_a_task_that_writes_to_its_workers_connection_is_lost(written: bytes) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process"), lost_retries=0) as flow:

        @flow.function_task
        def careless(data: bytes) -> None:
            for name in os.listdir("/proc/self/fd"):
                link = Path("/proc/self/fd", name)
                if link.is_symlink() and os.readlink(link).startswith("socket:"):
                    os.write(int(name), data)

        @flow.function_task
        def fine(value: int) -> int:
            return value

        with pytest.raises(TaskLostError):
            await within(careless(written))
        assert await within(fine(3)) == 3


@given(st.lists(st.booleans(), max_size=20))
@settings(max_examples=50)
def test_items_that_cannot_be_delivered_keep_no_other_from_it(items: list[bool]) -> None:
    delivered: list[int] = []
    told: list[Any] = []

    def deliver(item: tuple[int, bool]) -> None:
        if not item[1]:
            raise ValueError(item)
        delivered.append(item[0])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        box = Mailbox[tuple[int, bool]](loop, deliver)
        for item in enumerate(items):
            box.put(item)
        box.drain()

    asyncio.run(main())
    assert delivered == [number for number, good in enumerate(items) if good]
    assert len(told) == items.count(False)
