"""Dry runs: nothing is run, and the graph is reported."""

# ruff: noqa: ASYNC240 - looking at a file takes no time here

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, NoopExecutionBackend, OutputFile
from tests._support.engine_fixtures import Machine, create
from tests._support.scripted import outcome

pytestmark = pytest.mark.asyncio

NOWHERE = "https://nowhere.invalid/data.bin"


async def test_a_dry_run_is_on_the_noop_backend_and_runs_nothing() -> None:
    ran = []
    async with create(dry_run=True) as flow:
        assert flow.dry_run is True
        assert isinstance(flow.backend, NoopExecutionBackend)

        @flow.function_task
        async def function(x: Any) -> str:
            ran.append(x)
            return "real"

        @flow.executable_task
        def executable(x: Any) -> str:
            return f"touch {x}"

        assert await function(1) == "Dummy Output"
        assert await executable("nothing") == "Dummy Output"
    assert ran == []
    assert not os.path.exists("nothing")


@pytest.mark.parametrize("noop", ["noop", NoopExecutionBackend])
async def test_a_dry_run_takes_the_noop_backend(noop: Any) -> None:
    async with create(noop if noop == "noop" else noop(), dry_run=True) as flow:
        assert isinstance(flow.backend, NoopExecutionBackend)


@pytest.mark.parametrize(
    "given",
    [
        {"backend": Machine},
        {"backend": [NoopExecutionBackend, Machine]},
        {"backends": {"mine": Machine}},
    ],
)
async def test_a_dry_run_on_another_backend_is_an_error(given: dict[str, Any]) -> None:
    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: made(kind) for name, kind in value.items()}
        return [made(kind) for kind in value] if isinstance(value, list) else value()

    with pytest.raises(RuntimeError, match="dry"):
        await create(**{name: made(value) for name, value in given.items()}, dry_run=True)


async def test_a_dry_run_reports_its_graph() -> None:
    async with create(dry_run=True) as flow:

        @flow.function_task
        async def source() -> int:
            return 1

        @flow.function_task
        def join(left: int, right: int) -> int:
            return left + right

        @flow.executable_task
        async def report(value: int) -> str:
            return f"echo {value}"

        @flow.block
        async def part(value: int) -> int:
            return await join(value, source())

        left = source()
        await report(join(left, source()))
        await part(left)
    assert flow.summary is not None
    graph = {uid: (name, needs) for uid, name, needs in flow.summary.graph}
    assert graph == {
        "task.000001": ("source", ()),
        "task.000002": ("source", ()),
        "task.000003": ("join", ("task.000001", "task.000002")),
        "task.000004": ("report", ("task.000003",)),
        "block.000001": ("part", ("task.000001",)),
        "task.000005": ("source", ()),
        "task.000006": ("join", ("task.000005",)),
    }


async def test_a_dry_run_that_stops_early_reports_the_graph_as_far_as_it_came() -> None:
    async with create(dry_run=True) as flow:

        @flow.function_task
        async def first() -> int:
            return 1

        @flow.function_task
        async def never(x: int) -> int:
            return x

        async def program() -> None:
            never(await first() + 1)

        assert isinstance(await outcome(program()), TypeError)
    assert flow.summary is not None
    assert [name for _, name, _ in flow.summary.graph] == ["first"]


async def test_a_real_run_keeps_no_graph() -> None:
    async with create(NoopExecutionBackend()) as flow:

        @flow.function_task
        async def job() -> Any: ...

        await job()
    assert flow.summary is not None
    assert flow.summary.graph == ()


@pytest.mark.parametrize("settings", [{"dry_run": True}, {"backend": "noop"}])
async def test_files_are_neither_demanded_nor_fetched_where_nothing_runs(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    async with create(**settings, work_dir=tmp_path / "work") as flow:

        @flow.executable_task
        def write(target: OutputFile) -> str:
            return f"echo > {target}"

        @flow.function_task
        def read(*files: Any) -> Any:
            return len(files)

        written = write(OutputFile("o.txt"))
        assert await written == "Dummy Output"
        needed = InputFile("o.txt"), InputFile("nobody/writes.it"), InputFile(NOWHERE)
        assert await read(*needed, OutputFile("p.txt"), written) == "Dummy Output"
    assert not (tmp_path / "work").exists()
