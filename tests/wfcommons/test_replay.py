"""`rhapsody replay`, and the schedules that it compares with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody import (
    LocalExecutionBackend,
    RhapsodyError,
    TasksMainStates,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.cli import main
from rhapsody.plugins import TaskEvent
from rhapsody_wfcommons import RecordedFile, RecordedTask
from rhapsody_wfcommons.replay import Replay
from rhapsody_wfcommons.schedules import bottom_levels, critical_path, list_schedule, work
from tests.wfcommons.instances import LARGE, large, older, recent, save

needs_simulated = pytest.mark.skipif(
    find_spec("rhapsody_simulated") is None, reason="rhapsody-simulated is not installed"
)


def task(name: str, runtime: float, *parents: str, cores: float = 1) -> RecordedTask:
    return RecordedTask(name, name, parents, runtime, cores)


# Schedules.

TWO_CHAINS = [task("b1", 2), task("b2", 2), task("a", 2), task("c", 2, "a")]


def test_the_list_schedule_of_a_chain_is_its_critical_path() -> None:
    chain = [task("c", 3, "b"), task("a", 1), task("b", 2, "a")]
    assert critical_path(chain) == list_schedule(chain, 4) == work(chain) == 6
    assert bottom_levels(chain) == {"a": 6, "b": 5, "c": 3}


def test_what_is_ready_first_goes_first_unless_something_else_is_urgent() -> None:
    assert list_schedule(TWO_CHAINS, 2) == 6
    assert list_schedule(TWO_CHAINS, 2, bottom_levels(TWO_CHAINS)) == 4
    assert list_schedule(TWO_CHAINS, 3) == 4


def test_a_task_of_several_cores_waits_for_as_many_slots_and_holds_up_the_others() -> None:
    tasks = [task("a", 1), task("wide", 1, cores=2), task("b", 1)]
    assert list_schedule(tasks, 2) == 3
    assert list_schedule(tasks, 3) == 2
    assert work(tasks) == 4


@given(st.data(), st.integers(1, 4))
def test_a_list_schedule_is_within_grahams_bound(data: st.DataObject, slots: int) -> None:
    tasks: list[RecordedTask] = []
    for number in range(data.draw(st.integers(1, 12))):
        parents = data.draw(st.sets(st.sampled_from([each.id for each in tasks]))) if tasks else ()
        tasks.append(task(f"t{number}", data.draw(st.integers(0, 9)), *parents))
    longest, share = critical_path(tasks), work(tasks) / slots
    for urgency in (None, bottom_levels(tasks)):
        makespan = list_schedule(tasks, slots, urgency)
        assert max(longest, share) - 1e-9 <= makespan
        assert makespan <= share + longest * (1 - 1 / slots) + 1e-9


# The command.


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the output of `rhapsody replay --json`."""
    assert main(["replay", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("content", "bound", "work"),
    [(recent(), 0.03, 0.035), (older(), 0.035, 0.045)],  # one task of the older has two cores
    ids=["recent", "older"],
)
def test_a_workflow_is_replayed_at_a_scale(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: dict[str, Any],
    bound: float,
    work: float,
) -> None:
    path = save(tmp_path / "diamond.json", content)
    report = replayed(capsys, str(path), "--scale", "0.01")
    assert report["critical_path"] == pytest.approx(0.03)
    assert report["list_schedule"] == pytest.approx(bound)
    assert report["makespan"] >= bound
    assert report["ratio"] == pytest.approx(report["makespan"] / bound)
    assert report["work_per_slot"] * 2 == pytest.approx(work)
    told = {name: report[name] for name in ("name", "tasks", "backend", "slots", "order", "scale")}
    assert told == {
        "name": "diamond", "tasks": 4, "backend": "local", "slots": 2, "order": "ready",
        "scale": 0.01,
    }  # fmt: skip


def test_the_scale_may_be_set_by_the_shortest_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "diamond.json", recent())
    report = replayed(capsys, str(path), "--shortest", "0.005", "--slots", "1")
    assert report["scale"] == 0.01  # the shortest takes no time, the next one 0.5 s
    assert report["list_schedule"] == pytest.approx(0.035)
    assert report["makespan"] >= 0.035


def test_the_report_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "diamond.json", recent())
    assert main(["replay", str(path), "--scale", "0.001", "--slots", "1"]) == 0
    shown, notes = capsys.readouterr()
    assert notes == "rhapsody: 4 tasks on 1 slot: about 0.004 s\n"
    lines = shown.splitlines()
    assert lines[0] == "diamond: 4 tasks on 1 slot of local, recorded times x 0.001"
    assert [line[:16].strip() for line in lines[1:]] == [
        "makespan", "critical path", "work / slots", "list schedule", "ratio",
    ]  # fmt: skip
    assert lines[2].split()[-2:] == ["0.003", "s"]


def test_a_name_moves_nothing_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "diamond.json", recent() | {"name": "\x1b[2J\nÄ"})
    assert main(["replay", str(path), "--scale", "0.001", "--slots", "1"]) == 0
    assert capsys.readouterr().out.startswith("\\x1b[2J\\nÄ: 4 tasks on 1 slot")


@needs_simulated
@pytest.mark.parametrize("order", ["ready", "critical-path"])
def test_a_simulation_takes_as_long_as_real_tasks_on_two_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    path = save(tmp_path / "mosaic.json", large("1.5"))
    length = ("--scale", "0.1", "--order", order)
    simulated = replayed(capsys, str(path), *length, "--simulate", "--cores", "2")
    assert simulated["backend"] == "simulated"
    assert simulated["slots"] == 2
    assert simulated["makespan"] == pytest.approx(simulated["list_schedule"])
    for attempt in range(3):  # another program may have needed the processors
        real = replayed(capsys, str(path), *length, "--slots", "2")
        if real["makespan"] <= 1.05 * simulated["makespan"] or attempt == 2:
            break
    assert 0.95 <= real["makespan"] / simulated["makespan"] <= 1.5


@needs_simulated
def test_copies_of_a_workflow_are_simulated_on_several_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(tmp_path / "diamond.json", recent()))
    one = replayed(capsys, path, "--simulate", "--cores", "2")
    assert (one["tasks"], one["makespan"]) == (4, 3.0)
    size = ("--simulate", "--nodes", "1000", "--cores", "2", "--copies", "1000")
    many = replayed(capsys, path, *size)
    assert (many["tasks"], many["slots"], many["makespan"]) == (4000, 2000, 3.0)
    slow = replayed(capsys, path, *size, "-o", "queue_time=60", "-o", "startup=1")
    assert slow["makespan"] == 60 + 3 + 3  # three tasks depend on each other


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (
            {"runtimeInSeconds": -1},
            (),
            "{file}: workflow.execution.tasks[1].runtimeInSeconds: must be a ",
        ),
        ({"coreCount": 4}, (), "task 'b' needs 4 cores, but there are 2 slots: use --slots 4 or"),
        (
            {"coreCount": 1e30},
            (),
            "{file}: workflow.execution.tasks[1].coreCount: must be a number from 1 to 1000000, "
            "got 1e+30",
        ),
        ({}, ("-b", "nowhere"), "Backend 'nowhere' not found"),
        ({}, ("-o", "colour=red"), "backend 'local' has no option 'colour'"),
        (
            {},
            ("--scale", "1e308"),
            "the longest task would take inf s: choose --scale or",
        ),
        ({}, ("--scale", "1e-320"), "the longest task would take 2e-320 s: choose --scale or"),
        (
            {"runtimeInSeconds": 1e300},
            (),
            "the longest task would take 1e+297 s: choose",
        ),
        ({"runtimeInSeconds": 5e-324}, ("--shortest", "1"), "the longest task would take inf s: "),
        ({}, ("-o", "grace=x"), "backend 'local': "),
        (
            {},
            ("-o", "cores=3"),
            "-o cores: use --slots N, which sets the cores and ",
        ),
        (
            {},
            ("-o", "resources={workers=1}", "--slots", "2"),
            "-o resources: use --slots N, which sets the cores and workers of the local backend",
        ),
        ({}, ("--files", "1e308"), "--files 1e+308 needs inf bytes, but "),
        ({}, ("--nodes", "2"), "to simulate the replay, add --simulate"),
        ({}, ("-b", "simulated"), "to simulate the replay, add --simulate"),
        ({}, ("--simulate", "-b", "dask"), "--simulate uses the backend simulated: omit -b dask"),
        ({}, ("--simulate", "--slots", "2"), "--simulate: use --nodes and --cores instead of"),
        ({}, ("--simulate", "--files", "1"), "--simulate reads and writes no files: omit --files"),
        ({}, ("--simulate", "-o", "nodes=2"), "-o nodes: use --nodes and --cores; durations are"),
        pytest.param(
            {"coreCount": 4},
            ("--simulate", "--nodes", "4"),
            "task 'b' needs 4 cores, but each node has 1: use --cores 4 or more",
            marks=needs_simulated,
        ),
        ({}, ("-b", "noop"), "backend 'noop' does not run tasks, so there is nothing to measure"),
    ],
)
def test_what_cannot_be_replayed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    arguments: Sequence[str],
    said: str,
) -> None:
    content = recent()
    content["workflow"]["execution"]["tasks"][1].update(change)
    path = save(tmp_path / "diamond.json", content)
    scale = () if {"--scale", "--shortest"} & {*arguments} else ("--scale", "0.001")
    assert main(["replay", str(path), *scale, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rhapsody: {said.format(file=path)}"), error


def test_a_workflow_without_times_and_one_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = recent()
    del content["workflow"]["execution"]
    path = save(tmp_path / "diamond.json", content)
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"rhapsody: {path}: task 'a' has no recorded duration, so it cannot be replayed; add "
        "`runtimeInSeconds` in `workflow.execution.tasks`\n"
    )
    assert main(["replay", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.endswith(
        "/none.json cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--scale", "0", "a number above 0"),
        ("--scale", "abc", "a number above 0"),
        ("--scale", "1e999", "a number above 0"),
        ("--shortest", "nan", "a number above 0"),
        ("--files", "", "a number above 0"),
        ("--slots", "0", "an integer of at least 1"),
        ("--slots", "2.5", "an integer of at least 1"),
    ],
)
def test_numbers_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, accepted: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["replay", str(tmp_path / "any.json"), option, value])
    assert end.value.code == 2
    said = f"argument {option}: must be {accepted}, got {value!r}\n"
    assert capsys.readouterr().err.endswith(said)


# What is run.


class Begun:
    """Observes which tasks begin, by their numbers."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """Notes those that run."""
        running = (each for each in events if each.state is TasksMainStates.RUNNING)
        self.numbers += [int(each.uid.rpartition(".")[2]) for each in running]


@pytest.mark.asyncio
@pytest.mark.parametrize("urgent", [False, True])
async def test_the_order_is_that_of_readiness_or_of_urgency(urgent: bool) -> None:
    begun = Begun()
    tasks = [task("b", 0.001), task("a", 0.002), task("c", 0.002, "a"), task("d", 0.001)]
    replay = Replay(tasks, urgency=bottom_levels(tasks) if urgent else None)
    backend = LocalExecutionBackend(resources={"cores": 1, "workers": 1})
    async with WorkflowEngine.create(backend, max_pending=1, observers=[begun]) as flow:
        assert await replay.run(flow, 1) >= 0.006
    order = "".join("badc"[number - 3] for number in begun.numbers[2:])  # two are for warming up
    assert order == ("acbd" if urgent else "badc")


RAW, MADE, LAST = RecordedFile("in/raw", 4000), RecordedFile("a b", 2000), RecordedFile("c", 9)


@pytest.mark.parametrize(
    ("second", "sizes"),
    [
        (((MADE, RAW), (LAST,)), [4, 1000, 2000]),
        (((MADE,), (MADE, LAST)), [4, 1000, 1000, 2000]),  # it reads and writes the same file
        (((LAST,), (MADE,)), [4, 1000, 1000, 2000]),  # two parents of the third write it
    ],
)
def test_files_have_their_sizes_and_go_from_task_to_task(
    tmp_path: Path, second: Any, sizes: list[int]
) -> None:
    tasks = [
        RecordedTask("one", "one", runtime=0.001, inputs=(RAW,), outputs=(MADE,)),
        RecordedTask("two", "two", ("one",), 0.001, 1, *second),
        RecordedTask("three", "three", ("one", "two"), 0.001, inputs=(MADE,)),
    ]

    async def replay() -> None:
        settings: Any = {"work_dir": tmp_path, "keep_sandboxes": "all"}
        async with WorkflowEngine.create(LocalExecutionBackend(), **settings) as flow:
            await Replay(tasks, files=0.5, directory=tmp_path).run(flow, 2)

    asyncio.run(replay())
    files = [file for file in tmp_path.rglob("replayed-*") if not file.is_symlink()]
    assert sorted(file.stat().st_size for file in files) == sizes


@pytest.mark.asyncio
async def test_files_that_cannot_be_created_are_reported(tmp_path: Path) -> None:
    replay = Replay([RecordedTask("a", "a", inputs=(RAW,))], files=1, directory=tmp_path / "none")
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
        with pytest.raises(RhapsodyError, match=r"^cannot create an input file: .*none/replayed-"):
            await replay.run(flow, 1)


def test_an_error_of_the_engine_is_not_reported_as_one_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise TimeoutError("own")

    monkeypatch.setattr(WorkflowEngine, "__aexit__", broken)
    path = save(tmp_path / "diamond.json", recent())
    with pytest.raises(TimeoutError, match="own"):
        main(["replay", str(path), "--scale", "0.001"])


@pytest.mark.parametrize("version", LARGE)
def test_large_instances_of_all_versions_are_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, version: str
) -> None:
    path = save(tmp_path / "mosaic.json", large(version))
    report = replayed(capsys, str(path), "--shortest", "0.0001", "--slots", "16")
    assert report["makespan"] >= max(report["critical_path"], report["work_per_slot"])
