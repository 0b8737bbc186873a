"""Signal handlers while engines open and close."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests._support.programs import PATIENCE
from tests._support.scripted import Inline

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def wait_for_signal(ready: Connection) -> None:
    ready.send(None)
    signal.pause()


def end_child(number: signal.Signals) -> int | None:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=wait_for_signal, args=(writer,))
    child.start()
    assert reader.poll(PATIENCE)
    os.kill(child.pid or 0, number)
    child.join(PATIENCE)
    exit_code = child.exitcode
    child.kill()
    child.join()
    return exit_code


def engine_of_child(ready: Connection) -> None:
    async def main() -> None:
        found = handlers()
        async with WorkflowEngine.create(Inline()):
            ready.send([now != before for now, before in zip(handlers(), found, strict=True)])

    asyncio.run(main())


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


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("raised", [None, LookupError("of the handler")])
def test_the_programs_handler_is_called_after_the_shutdown(
    number: signal.Signals, raised: Exception | None
) -> None:
    seen: list[object] = []

    async def main() -> None:
        try:
            async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
                never = flow.block(asyncio.Event().wait)()
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
                await never
        finally:
            seen.append("main")

    def handler(received: int, _: object) -> None:
        seen.append(received)
        if raised is not None:
            raise raised

    former = signal.signal(number, handler)
    try:
        expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
        with pytest.raises(type(raised) if raised else expected):
            asyncio.run(main())
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, former)
    assert seen == [number, "main"]


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


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
# Not SIGINT: Python 3.13 may not call handlers in a child that was forked on a thread.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_child_that_a_function_on_a_thread_has_forked(
    number: signal.Signals,
) -> None:
    async def main() -> int | None:
        async with WorkflowEngine.create(LocalExecutionBackend("thread")) as flow:
            return await flow.function_task(end_child)(number)

    assert asyncio.run(main()) == -number


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_keeps_the_handlers_of_the_program() -> None:
    received: list[int] = []

    def child(ready: Connection) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ready.send(received)

    def fork() -> list[int]:
        context = multiprocessing.get_context("fork")
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(writer,))
        process.start()
        assert reader.poll(PATIENCE)
        seen: list[int] = reader.recv()
        process.join()
        return seen

    async def main() -> list[int]:
        async with WorkflowEngine.create(Inline()):
            seen = fork()
        os.kill(os.getpid(), signal.SIGTERM)
        return seen

    former = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        assert asyncio.run(main()) == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM]  # the parent's handler is still called


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_can_open_an_engine_that_handles_signals() -> None:
    async def main() -> list[bool]:
        async with WorkflowEngine.create(Inline()):
            context = multiprocessing.get_context("fork")
            reader, writer = context.Pipe(duplex=False)
            # A new thread of this process has no running loop, and neither has its child.
            process = context.Process(target=engine_of_child, args=(writer,))
            await asyncio.to_thread(process.start)
            assert await asyncio.to_thread(reader.poll, PATIENCE)
            seen: list[bool] = reader.recv()
            await asyncio.to_thread(process.join)
            return seen

    assert asyncio.run(main()) == [True, True, True]
