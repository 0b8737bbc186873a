"""Signal handlers while engines open and close."""

from __future__ import annotations

import asyncio
import signal
import threading

from rhapsody import WorkflowEngine
from tests._support.programs import PATIENCE
from tests._support.scripted import Inline

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


async def engines_come_and_go() -> None:
    found = handlers()
    async with WorkflowEngine.create(Inline()):
        first = handlers()
        assert all(now != before for now, before in zip(first, found, strict=True))
        second = await WorkflowEngine.create(Inline())
        await second.shutdown()
        assert handlers() == first
    assert handlers() == found
    async with WorkflowEngine.create(Inline(), handle_signals=False):
        assert handlers() == found
    assert handlers() == found


def test_the_last_engine_restores_the_handlers_that_the_first_one_found() -> None:
    before = handlers()
    asyncio.run(engines_come_and_go())
    assert handlers() == before


def test_an_engine_on_another_thread_leaves_the_handlers_alone() -> None:
    found = handlers()
    seen: list[object] = []

    async def main() -> None:
        async with WorkflowEngine.create(Inline()) as flow:

            @flow.function_task
            def plus(x: int) -> int:
                return x + 1

            seen.extend([handlers() == found, await plus(1)])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(PATIENCE)
    assert seen == [True, 2]


def test_an_engine_of_an_ended_loop_does_not_keep_the_handlers() -> None:
    found = handlers()[1:]  # asyncio sets handlers of SIGINT as well

    async def forget() -> WorkflowEngine:
        return await WorkflowEngine.create(Inline())

    async def next_one() -> None:
        async with WorkflowEngine.create(Inline()):
            assert handlers()[1:] != found

    forgotten = asyncio.run(forget())
    asyncio.run(next_one())
    assert handlers()[1:] == found
    del forgotten
