"""Tests of newcomers' mistakes: cycles through tasks, odd exceptions, unhelpful errors."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

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
async def test_a_cycle_of_blocks_through_a_task_is_an_error() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
        futures: dict[str, Any] = {}

        @flow.function_task
        def same(x: Any) -> Any:
            return x

        @flow.block
        async def first() -> Any:
            return await futures["second"]

        @flow.block
        async def second() -> Any:
            return await same(futures["first"])

        futures["first"], futures["second"] = first(), second()
        async with asyncio.timeout(LIMIT):
            with pytest.raises(RuntimeError, match="would wait for itself"):
                await futures["first"]


@pytest.mark.asyncio
async def test_exceptions_of_processes_keep_their_type_however_odd() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        async with asyncio.timeout(LIMIT):
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
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["/nonexistent/tool"], FileNotFoundError),
        (["/tmp"], PermissionError),
        ("echo a\0b", ValueError),
    ],
)
async def test_a_command_that_cannot_start_names_its_task(
    command: str | list[str], kind: type[Exception]
) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:

        @flow.executable_task
        def align() -> str | list[str]:
            return command

        async with asyncio.timeout(LIMIT):
            with pytest.raises(kind) as raised:
                await align()
    text = "".join(traceback.format_exception_only(raised.value))
    assert "'align'" in text


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
    assert "another event loop" in first
    assert "another event loop" in second
    assert end.stderr == ""


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup program &` goes on when its terminal is closed."""
    program = """
        import asyncio, os, signal
        from rhapsody import WorkflowEngine

        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

        async def main():
            async with WorkflowEngine.create() as flow:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGINT)
                print(await flow.function_task(pow)(2, 3))
            print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)

        asyncio.run(main())
    """
    end = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "8\nTrue\n", "")
