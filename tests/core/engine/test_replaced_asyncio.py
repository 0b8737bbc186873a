"""Programs that replace asyncio's futures and tasks after the import, as `nest_asyncio` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._support.programs import Program

REPLACED = """
asyncio.Task = asyncio.tasks._CTask = asyncio.tasks.Task = asyncio.tasks._PyTask
asyncio.Future = asyncio.futures._CFuture = asyncio.futures.Future = asyncio.futures._PyFuture

from rhapsody import LocalExecutionBackend

async def main():
    async with WorkflowEngine.create(LocalExecutionBackend({executor!r})) as flow:
        @flow.function_task
        async def add(x):
            return x + 1

        @flow.function_task
        async def long():
            await asyncio.sleep(100)

        @flow.block
        def part():
            return rhapsody.wait(add(2))

        assert await add(part()) == 4
        future, dependent = long(), add(long())
        assert future.cancel() and dependent.cancel()
        await asyncio.wait([future, dependent])
        await future.ended()
        say("cancelled", future.cancelled(), dependent.cancelled())
        unfinished = long()
        await flow.shutdown()
    say("closed", unfinished.cancelled())
    async with WorkflowEngine.create(LocalExecutionBackend({executor!r})) as flow:
        future = flow.function_task(asyncio.sleep)(100)
        while not flow.running:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await future

asyncio.run(main())
"""


@pytest.fixture(params=["thread", "process"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "program.py", REPLACED.format(executor=request.param))
    yield program
    program.close()


def test_cancellation_and_signals_work(program: Program) -> None:
    code, lines, errors = program.end()
    assert lines == ["cancelled True True", "closed True"], errors
    assert code == 143, errors
    assert "Traceback" not in errors
