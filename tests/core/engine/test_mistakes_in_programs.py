"""Tests of newcomers' mistakes: cycles through tasks, odd exceptions, unhelpful errors."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

from rhapsody import DataError, LocalExecutionBackend, OutputFile, WorkflowEngine

LIMIT = 30


def odd_text() -> None:
    class NoText(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError("no text")

    raise NoText


def odd_group() -> None:
    class Odd(Exception):  # noqa: N818
        def __init__(self, a: int, b: int) -> None:
            super().__init__("odd")

    raise ExceptionGroup("several", [ValueError(1), Odd(1, 2)])


@pytest.mark.asyncio
async def test_exceptions_of_processes_keep_their_type_however_odd() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        async with asyncio.timeout(30):
            failed = flow.function_task(odd_text)()
            await asyncio.wait([failed])
            assert type(failed.exception()).__name__ == "NoText"
            with pytest.raises(ExceptionGroup) as group:
                await flow.function_task(odd_group)()
    assert [type(one).__name__ for one in group.value.exceptions] == ["ValueError", "Odd"]
    assert "odd_group" in "".join(traceback.format_exception(group.value))


@pytest.mark.parametrize("name", [".rhapsody.stdout", ".rhapsody.stderr"])
def test_the_names_of_captured_output_are_no_output_files(name: str) -> None:
    """C8."""
    with pytest.raises(DataError, match=re.escape(name)):
        OutputFile(name)


@pytest.mark.asyncio
async def test_bad_arguments_are_named(tmp_path: Path) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
        with pytest.raises(ValueError, match=r"environment.*'A=\.\.\.'"):
            flow.function_task(abs, environment={"A=B": "1"})  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="decorated"):
            flow.map(len, [[1]])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="decorated"):
            async for _ in flow.imap(len, [[1]]):  # type: ignore[arg-type]
                pass
        with pytest.raises(ValueError, match="name"):
            flow.function_task(abs, name="")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"clock.*3"):
        await WorkflowEngine.create(clock=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uid"):
        await WorkflowEngine.create(uid="")


def test_an_engine_of_a_closed_loop_reports_it() -> None:
    program = """
        import asyncio, rhapsody
        from rhapsody import WorkflowEngine

        async def one():
            global flow, task
            flow = await WorkflowEngine.create()
            task = flow.function_task(lambda: 1)
            await task()

        async def two():
            for attempt in (lambda: task(), lambda: asyncio.ensure_future(flow.shutdown())):
                try:
                    await attempt()
                except RuntimeError as error:
                    print(error)

        asyncio.run(one())
        asyncio.run(two())
        try:
            WorkflowEngine()
        except RuntimeError as error:
            print(error)
    """
    end = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    first, second, _ = end.stdout.splitlines()
    assert "different event loop" in first
    assert "different event loop" in second
    assert end.stderr == ""
