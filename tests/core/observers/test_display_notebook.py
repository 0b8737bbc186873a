"""Tests of the progress in a notebook: the table in the cell, and the output of tasks."""

from __future__ import annotations

import asyncio
import builtins
import io
import re
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console, RenderableType

from rhapsody import WorkflowEngine
from tests._support.scripted import PATIENCE, Inline, within


class Cell:
    """The output of a cell, as IPython gives it.

    Attributes:
        text: What is seen in it.
        updated: Called with each new text.
    """

    def __init__(self) -> None:
        self.text = ""
        self.updated: Callable[[str], object] = lambda text: None

    def display(self, picture: RenderableType, *, display_id: bool) -> Cell:
        assert display_id, "without an id nothing can be updated"
        self.update(picture)
        return self

    def update(self, picture: RenderableType) -> None:
        console = Console(file=io.StringIO(), width=100)
        with console.capture() as capture:
            console.print(picture)
        self.text = capture.get()
        self.updated(self.text)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """The cell of a notebook that runs this process."""
    cell = Cell()
    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    shell = SimpleNamespace(has_trait=lambda name: name == "kernel")
    monkeypatch.setattr(package, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(display, "display", cell.display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    return cell


@pytest.mark.asyncio
async def test_the_picture_in_the_cell_is_updated_and_right_at_the_end(
    cell: Cell, capfd: pytest.CaptureFixture[str]
) -> None:
    running = threading.Event()
    cell.updated = lambda text: running.set() if re.search(r"part +0 +1 +0 +0", text) else None
    async with WorkflowEngine.create(progress=True) as flow:

        @flow.function_task
        def part() -> None:
            assert running.wait(PATIENCE), "the cell never showed that it runs"
            print("from a function")

        @flow.executable_task
        def say(_: None) -> str:
            return "echo from a program; echo and its other stream >&2"

        await within(say(part()))
    assert re.search(r"part +0 +0 +1 +0 *\n", cell.text), cell.text
    assert re.search(r"say +0 +0 +1 +0 *\n", cell.text), cell.text
    assert "2 of 2" in cell.text
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [
        "from a function",
        "say 000002 | from a program",
        "say 000002 | and its other stream",
    ]
    assert re.fullmatch(r"rhapsody: 2 done in .* s\n", printed.err)


def test_a_call_at_a_prompt_without_await_names_the_two_ways_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)

    async def start() -> WorkflowEngine:
        return await WorkflowEngine.create(Inline())

    with asyncio.Runner() as runner:
        flow = runner.run(start())
        task = flow.function_task(abs)
        with pytest.raises(RuntimeError, match=r"`await asyncio\.gather.*`await main\(\)`$"):
            flow.map(task, [1, -2])

        async def cell() -> list[int]:
            return [await future for future in flow.map(task, [1, -2])]

        assert runner.run(cell()) == [1, 2]
        runner.run(flow.shutdown())
