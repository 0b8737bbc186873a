"""Commands that RAPTOR's worker starts, on a real pilot."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import InputFile, OutputFile, TaskLostError, WorkflowEngine
from rhapsody.resources import Resources
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_testing import Driver
from tests._support.machine import alive, exists
from tests.radical.busy import BUSY, six

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]

CALL = ["AGENT_EXECUTING", "DONE"]
"""The native states of calls and commands on RAPTOR; tasks of RADICAL-Pilot have more."""

OF_A_TASK = ("RP_", "SLURM_", "_", "SHLVL", "PWD", "OLDPWD", "RHAPSODY_PROGRAM")


@pytest.fixture(autouse=True)
def _on_raptor(made: RadicalExecutionBackend) -> Iterator[None]:
    made.commands = "raptor"
    yield
    made.commands = "task"


def variables(text: Any) -> dict[str, str]:
    pairs = (line.partition("=") for line in str(text).split("\0") if line)
    return {name: value for name, _, value in pairs if not name.startswith(OF_A_TASK)}


async def test_commands_have_the_results_of_tasks(
    made: RadicalExecutionBackend, driver: Driver, tmp_path: Path
) -> None:
    """Output, exit codes, variables and directories are the same; only the native states differ."""

    def commands() -> list[Any]:
        given = driver.command("pwd; cat; echo wrong >&2; exit 3", cwd=str(tmp_path))
        given["stdin"] = "given\n"
        return [
            given,
            driver.command("kill -9 $$"),
            driver.command("no-such-command-at-all 2> /dev/null"),
            driver.command("env -0", environment={"OWN": '$a `b` "c"'}),
        ]

    calls = commands()
    new = await driver.run(*calls)
    made.commands = "task"
    old = await driver.run(*commands())
    assert [end.state for end in new] == [end.state for end in old]
    assert [end.exit_code for end in new] == [end.exit_code for end in old] == [3, 137, 127, 0]
    assert (new[0].stdout, new[0].stderr) == (old[0].stdout, old[0].stderr)
    assert variables(new[3].stdout) == variables(old[3].stdout)
    assert [report.native for report in driver.of(calls[3])] == CALL
    assert calls[3]["usage"]["cpu_seconds"] >= 0


async def test_files_are_linked_and_saved(flow: WorkflowEngine, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("from outside\n")

    @flow.executable_task
    def copy(source: InputFile, target: OutputFile) -> list[Any]:
        return ["cp", source, target]

    await copy(InputFile(tmp_path / "in.txt"), OutputFile("out.txt", save=f"{tmp_path}/"))
    assert (tmp_path / "out.txt").read_text() == "from outside\n"


async def test_other_tasks_run_as_tasks_of_radical_pilot(driver: Driver) -> None:
    plain, with_setting, with_memory = (driver.command("echo $AT_FIRST") for _ in range(3))
    with_setting["task_backend_specific_kwargs"] = {"pre_exec": ["export AT_FIRST=own"]}
    with_memory["resources"] = Resources(cores=1, memory="100 MB")
    ends = await driver.run(plain, with_setting, with_memory)
    assert [end.stdout for end in ends] == ["done\n", "own\n", "done\n"]
    natives = [[report.native for report in driver.of(task)] for task in (plain, with_setting)]
    assert natives == [CALL, ["AGENT_STAGING_INPUT_PENDING", *CALL]]
    assert len(driver.of(with_memory)) == 3


async def test_all_processes_of_a_canceled_command_end(driver: Driver, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = driver.command(BUSY.format(pids=pids))
    await driver.submit(task)
    members = await six(pids)
    await driver.cancel(task)
    assert (await driver.finished(task)).state == "CANCELED"
    assert [pid for pid in members if alive(pid)] == []


async def test_a_killed_process_loses_only_its_commands(driver: Driver, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    task = driver.command(f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 600")
    await driver.submit(task)
    await exists(mark)
    parent = psutil.Process(int(mark.read_text())).ppid()
    os.kill(parent, signal.SIGKILL)
    assert isinstance((await driver.finished(task)).error, TaskLostError)
    assert (await driver.run_one(driver.command("echo again"))).stdout == "again\n"
