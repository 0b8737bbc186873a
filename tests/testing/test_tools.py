"""The driver, the event recorder and the capability table, as tests of others use them."""

from __future__ import annotations

import asyncio
import fnmatch
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import NoopExecutionBackend, WorkflowEngine
from rhapsody.backends.base import Capabilities
from rhapsody.states import TasksMainStates
from rhapsody_testing import Driver, EventRecorder, capability_table
from rhapsody_testing.__main__ import main as write_table
from rhapsody_testing._suite import until
from rhapsody_testing._system import Heartbeat, RunningClock, listed
from rhapsody_testing._work import tick
from tests._support.faulty_backends import CallsBackTwice, ReportsTasksNobodySubmitted
from tests._support.small_backend import SmallBackend

DONE, FAILED, RUNNING = (
    TasksMainStates.DONE,
    TasksMainStates.FAILED,
    TasksMainStates.RUNNING,
)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("file socket:[184229]", "file socket:*"),
        ("file /dev/shm/psm_[1]", "file /dev/shm/psm_*"),
        ("thread ThreadPoolExecutor-3_0", "thread ThreadPoolExecutor-*_*"),
        ("temporary tmp_k3x9_ab", "temporary tmp*"),
        ("temporary what?", "temporary what[?]"),
        (
            "task Task-7 (<coroutine object Queue.get at 0x7f3a5c>)",
            "task Task-* (<coroutine object Queue.get at *>)",
        ),
        (
            "process /usr/bin/python3.11 -c spawn_main(tracker_fd=12, pipe_handle=14)",
            "process /usr/bin/python3.11 -c spawn_main(tracker_fd=*, pipe_handle=*)",
        ),
    ],
)
def test_the_pattern_for_a_leftover_matches_in_the_next_run(text: str, pattern: str) -> None:
    assert f"leaves_behind = ({pattern!r},)" in listed({("file", 1): text})
    assert fnmatch.fnmatchcase(text, pattern)


@pytest.mark.asyncio
async def test_a_driver_starts_the_backend_and_leaves_it_running() -> None:
    backend = SmallBackend()
    async with asyncio.timeout(20), Driver(backend) as driver:
        end = await driver.run_one(driver.call(divmod, 7, 3))
        assert (end.state, end.value, end.error) == (DONE, (2, 1), None)
    assert backend.state() == "running"
    reported = len(driver.reports)
    backend.report_state({"uid": "later"}, RUNNING)
    assert len(driver.reports) == reported
    assert not driver.work_dir.exists()
    await backend.shutdown()


@pytest.mark.asyncio
async def test_a_driver_keeps_what_was_reported_in_order() -> None:
    async with asyncio.timeout(20), SmallBackend() as backend, Driver(backend) as driver:
        good, bad = driver.command("echo out; echo err >&2"), driver.command(["false"])
        first, second = await driver.run(good, bad)
        assert (first.stdout, first.stderr, first.exit_code) == ("out\n", "err\n", 0)
        assert (second.state, second.exit_code) == (FAILED, 1)
        assert driver.history(good) == [RUNNING, DONE]
        assert [report.thread for report in driver.of(good)] == [threading.get_ident()] * 2
        assert [report.state for report in driver.reports if report.uid == bad["uid"]] == [
            RUNNING,
            FAILED,
        ]
        assert driver.faults == []
        assert driver.unfinished() == []
        assert "ended FAILED with exit_code=1" in str(second)


@pytest.mark.asyncio
async def test_a_driver_notes_what_the_contract_forbids() -> None:
    async with asyncio.timeout(20), CallsBackTwice() as backend, Driver(backend) as driver:
        await driver.run_one(driver.call(divmod, 7, 3))
        assert [fault.rule for fault in driver.faults] == ["exactly one terminal callback per task"]
        assert "['DONE', 'DONE']" in driver.faults[0].detail
    async with (
        asyncio.timeout(20),
        ReportsTasksNobodySubmitted() as other,
        Driver(other) as driver,
    ):
        await driver.run_one(driver.call(divmod, 7, 3))
        assert set(driver.strangers) == {"another"}


@pytest.mark.asyncio
async def test_a_driver_takes_reports_as_objects() -> None:
    class Reported:
        def __init__(self, task: dict[str, Any]) -> None:
            self._task = task

        def as_dict(self) -> dict[str, Any]:
            return self._task

    class ReportsObjects(SmallBackend):
        def register_callback(self, func: Any) -> None:
            super().register_callback(lambda task, state: func(Reported(task), state))

    async with asyncio.timeout(20), ReportsObjects() as backend, Driver(backend) as driver:
        assert (await driver.run_one(driver.call(divmod, 7, 3))).value == (2, 1)


@pytest.mark.asyncio
async def test_a_driver_says_when_a_task_ended_before_it_ran() -> None:
    async with asyncio.timeout(20), SmallBackend() as backend, Driver(backend) as driver:
        task = driver.command(["sleep", "60"])
        await driver.submit(task)
        assert await driver.cancel(task) is True
        assert await driver.running(task) is False
        assert (await driver.finished(task)).state is TasksMainStates.CANCELED


@pytest.mark.asyncio
async def test_a_recorder_keeps_the_events_of_a_run() -> None:
    recorder = EventRecorder()
    async with (
        asyncio.timeout(20),
        await WorkflowEngine.create(SmallBackend(), observers=[recorder]) as flow,
    ):

        @flow.function_task
        async def first() -> int:
            return 1

        @flow.function_task
        async def second(number: Any) -> int:
            raise ValueError(number)

        future = second(first())
        with pytest.raises(ValueError, match="1"):
            await future
        assert recorder.started == [flow]
    assert recorder.finished[0][0] is flow
    assert recorder.states("first")[-1] is DONE
    assert recorder.states(future)[-1] is FAILED
    assert isinstance(recorder.of(future)[-1].error, ValueError)
    assert [event for batch in recorder.batches for event in batch] == recorder.events


@pytest.mark.asyncio
async def test_what_goes_on_ends_with_the_directory_of_its_check(tmp_path: Path) -> None:
    gate, ticks = tmp_path / "gate", tmp_path / "ticks"
    gate.touch()
    ticking = asyncio.ensure_future(asyncio.to_thread(tick, str(ticks), str(gate), 60))
    async with asyncio.timeout(20):
        await until(ticks.exists)
        for path in (gate, ticks):  # as rmtree does, file by file
            path.unlink()
        await ticking


@pytest.mark.asyncio
async def test_a_heartbeat_measures_how_long_the_loop_was_held_up() -> None:
    with RunningClock() as clock, Heartbeat(clock) as held:
        await asyncio.sleep(0.01)
        threading.Event().wait(0.4)
        await asyncio.sleep(0.01)
    assert held.worst.seen >= 0.39
    assert held.worst.counted > 0  # not while other programs had the processor


@pytest.mark.asyncio
async def test_a_capability_table_is_markdown_with_every_capability() -> None:
    table = capability_table(Capabilities(resources=frozenset({"gpus", "cores"}))).splitlines()
    assert table[0] == "| capability | meaning | declared |"
    assert "| `sync_functions` | ordinary functions | yes |" in table
    assert "| `resources` | supported resources | cores, gpus |" in table
    assert "| `binds` | enforced resources | none |" in table
    assert "| `cancel_functions` | cancels ordinary functions | none |" in table
    assert len(table) == 2 + len(Capabilities().as_dict())
    assert all(line.count("|") == 4 and "|  |" not in line for line in table)
    assert capability_table(SmallBackend) == capability_table(SmallBackend())


@pytest.mark.asyncio
async def test_a_command_writes_the_table_into_a_readme(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    before, after = "# Backend\n\n", "\n\nText | with a bar\n"
    readme.write_text(f"{before}| capability | meaning | declared |\n| --- |\n| old |{after}")
    for _ in range(2):
        assert write_table(["noop", str(readme)]) == 0
        assert readme.read_text() == f"{before}{capability_table(NoopExecutionBackend)}{after}"
    for name, file, said in (
        ("nop", readme, "Did you mean 'noop'?"),
        ("noop", tmp_path / "none.md", "No such file"),
        ("noop", Path(__file__).with_name("test_rules.py"), "does not contain the first line"),
    ):
        with pytest.raises(SystemExit) as ended:
            write_table([name, str(file)])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.asyncio
async def test_a_capability_table_of_something_else_is_an_error() -> None:
    with pytest.raises(TypeError, match="must have `capabilities`, got 'local'"):
        capability_table("local")
