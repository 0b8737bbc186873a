"""A backend on a system of commands: when it asks, what it reports, what it makes of silence."""

# ruff: noqa: ASYNC240 - nothing else is to run on the loop
from __future__ import annotations

import asyncio
import os
import shlex
import signal
import stat
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import TasksMainStates, WorkflowEngine
from rhapsody.backends.commands import CommandBackend, run_command
from rhapsody.backends.programs import write_script
from rhapsody.data import make_sandbox
from rhapsody.errors import BackendError, TaskLostError
from rhapsody.sdk.threads import in_thread
from rhapsody_testing import Driver
from tests._support import slurm
from tests._support.batch_system import documented, install
from tests._support.machine import alive
from tests._support.scripted import until, within

pytestmark = pytest.mark.asyncio

DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest_asyncio.fixture
async def driver(spool: Path) -> AsyncIterator[Driver]:
    backend = documented()
    backend.ask_every = 0.2
    async with backend, Driver(backend) as driver:
        yield driver


class Clock:
    """The time that the backend sees: real, and what a test lets pass at once."""

    passed = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("rhapsody.backends.commands.monotonic", made.monotonic)
    return made


async def job_of(spool: Path) -> int:
    """Wait for the first job in the queue, which is only visible in the spool."""
    return int(await in_thread(partial(look, lambda: sorted(spool.glob("[0-9]*"))[0].name)))


async def asked(spool: Path, times: int) -> None:
    """Waits until the system was asked so often."""

    def enough() -> str:
        return (spool / "asked").read_text().split()[times - 1]

    await in_thread(partial(look, enough))


def look(there: Callable[[], str]) -> str:
    end = time.monotonic() + 20
    while True:
        try:
            return there()
        except (IndexError, FileNotFoundError):
            assert time.monotonic() < end
            time.sleep(0.02)


async def test_a_job_has_its_arguments_variables_input_and_directory(driver: Driver) -> None:
    command = ["sh", "-c", 'cat; echo "$X|$1"; pwd; ls -A; exit 3', "sh", "an 'odd' word"]
    task = driver.command(command, environment={"X": "a b"}, stdin="in\n")
    end = await within(driver.run_one(task))
    assert (end.state, end.exit_code) == (FAILED, 3)
    printed = f"in\na b|an 'odd' word\n{task['sandbox']}\n.rhapsody.stderr\n.rhapsody.stdout\n"
    assert end.stdout == printed


async def test_a_jobs_secrets_are_on_no_command_line(driver: Driver) -> None:
    secret = "it's a s3cr3t"
    task = driver.command("echo $API_TOKEN", environment={"API_TOKEN": secret, "MODE": "fast"})
    task["sandbox"] = make_sandbox(driver.backend.sandbox_of(task))
    script = Path(write_script(task))
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    lines = [line for line in script.read_text().splitlines() if "s3cr3t" in line]
    assert lines == [f"export API_TOKEN={shlex.quote(secret)}"]  # the shell's own command
    end = await within(driver.run_one(driver.command(
        "echo $API_TOKEN $MODE", environment={"API_TOKEN": secret, "MODE": "fast"}
    )))  # fmt: skip
    assert end.stdout == f"{secret} fast\n"


async def test_a_job_runs_in_the_directory_of_the_users(driver: Driver, tmp_path: Path) -> None:
    place = tmp_path / "it's a place"
    place.mkdir()
    for command in ("cat; pwd; exit 3", ["sh", "-c", "cat; pwd; exit 3"]):
        task = driver.command(command, cwd=str(place), stdin="in\n", environment={"X": "a b"})
        end = await within(driver.run_one(task))
        assert (end.state, end.exit_code) == (FAILED, 3)
        assert end.stdout == f"in\n{place}\n"
    assert os.listdir(place) == []
    end = await within(driver.run_one(driver.command("pwd", cwd=str(tmp_path / "none"))))
    assert isinstance(end.error, FileNotFoundError)
    assert "none' does not exist" in str(end.error)


async def test_a_job_in_the_queue_is_not_reported_as_running(driver: Driver, spool: Path) -> None:
    (spool / "waits").touch()
    task = driver.command("sleep 60")
    await driver.submit(task)
    await asked(spool, 2)
    assert driver.history(task) == []


async def test_a_job_that_waits_is_cancelled(driver: Driver, spool: Path) -> None:
    (spool / "waits").touch()
    task = driver.command("sleep 60")
    await driver.submit(task)
    await job_of(spool)
    assert await driver.cancel(task)
    assert (await within(driver.finished(task))).state is CANCELED
    assert driver.history(task) == [CANCELED]


async def test_nothing_is_asked_while_there_are_no_jobs(driver: Driver, spool: Path) -> None:
    await within(driver.run(*(driver.command("true") for _ in range(5))))
    before = (spool / "asked").read_text()
    await asyncio.sleep(0.6)  # longer than several of its intervals
    assert (spool / "asked").read_text() == before


async def test_a_killed_job_is_lost(driver: Driver, spool: Path, clock: Clock) -> None:
    task = driver.command("sleep 60")
    await driver.submit(task)
    await within(driver.running(task))
    job = await job_of(spool)
    os.killpg(job, signal.SIGKILL)
    (spool / str(job)).unlink()
    await asked(spool, times(spool) + 3)
    clock.passed = 2 * driver.backend.patience
    end = await within(driver.finished(task))
    assert isinstance(end.error, TaskLostError)
    assert f"job {job} of task 'command' was lost: it is no longer listed" in str(end.error)


async def test_an_outage_is_lived_through(
    driver: Driver, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (spool / "down").touch()
    task = driver.command(f"until [ -e {spool / 'go'} ]; do sleep 0.02; done; echo out")
    await driver.submit(task)
    await until(lambda: "cannot query or cancel jobs" in caplog.text)
    (spool / "go").touch()
    (spool / "down").unlink()
    assert (await within(driver.finished(task))).stdout == "out\n"


async def test_a_job_that_is_not_listed_yet_is_cancelled(driver: Driver, spool: Path) -> None:
    (spool / "lags").touch()
    task = driver.command("sleep 60")
    await driver.submit(task)
    job = await job_of(spool)
    assert await driver.cancel(task)
    assert (await within(driver.finished(task))).state is CANCELED
    await until(lambda: not alive(job))


async def test_a_job_that_is_listed_again_is_not_gone(
    driver: Driver, spool: Path, clock: Clock
) -> None:
    task = driver.command(f"until [ -e {spool / 'go'} ]; do sleep 0.02; done; echo out")
    await driver.submit(task)
    await within(driver.running(task))
    for _ in range(2):
        (spool / "lags").touch()
        await asked(spool, times(spool) + 3)
        clock.passed += 0.6 * driver.backend.patience
        await asked(spool, times(spool) + 3)
        (spool / "lags").unlink()
        await asked(spool, times(spool) + 3)
        clock.passed += 0.6 * driver.backend.patience  # both are longer than its patience
    (spool / "go").touch()
    assert (await within(driver.finished(task))).stdout == "out\n"


def times(spool: Path) -> int:
    """Return how often the system was queried so far."""
    return len((spool / "asked").read_text().split())


async def test_tasks_are_lost_where_the_system_never_answers(
    driver: Driver, spool: Path, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    (spool / "down").touch()
    task = driver.command("true")
    await driver.submit(task)
    await until(lambda: "cannot query or cancel jobs" in caplog.text)
    clock.passed = 2 * driver.backend.patience
    end = await within(driver.finished(task))
    assert isinstance(end.error, TaskLostError)
    assert "no controller" in str(end.error)


class Slow(CommandBackend):
    """Its submission takes until a gate is opened."""

    name = "slow-commands"

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.there: dict[str, bool] = {}

    async def submit_job(self, task: Any, script: str) -> str:
        self.entered.set()
        await self.gate.wait()
        self.there["job"] = False
        return "job"

    async def ask_jobs(self, jobs: Sequence[str]) -> Mapping[str, bool]:
        return dict(self.there)

    async def cancel_jobs(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            del self.there[job]


async def test_a_job_that_is_cancelled_while_it_is_submitted_is_cancelled_there() -> None:
    async with Slow() as backend, Driver(backend) as driver:
        task = driver.command("true")
        await driver.submit(task)
        await within(backend.entered.wait())
        assert await driver.cancel(task)
        assert backend.there == {}
        backend.gate.set()
        assert (await within(driver.finished(task))).state is CANCELED
        assert backend.there == {}


async def test_a_command_that_fails_says_what_it_said() -> None:
    assert await run_command("echo", "a  b") == "a  b\n"
    with pytest.raises(BackendError, match=r"ls /nowhere failed with exit code 2: .*No such file"):
        await run_command("ls", "/nowhere")
    with pytest.raises(BackendError, match="'no-such-command' cannot be started"):
        await run_command("no-such-command")


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))
async def test_the_documented_backend_runs_a_workflow_on_slurm(tmp_path: Path) -> None:
    directory = tmp_path / "slurm"
    directory.mkdir()
    with slurm.slurm(directory):
        backend = documented({"partition": "debug"})
        async with WorkflowEngine.create(backend, work_dir=tmp_path / "work") as flow:

            @flow.executable_task
            async def job(text: str) -> str:
                return f'echo "$SLURM_JOB_ID:{text}"'

            @flow.executable_task(resources={"memory": "900 GB"})
            async def big() -> str:
                return "true"

            @flow.executable_task
            async def long() -> str:
                return "sleep 600"

            running = long()
            first = await asyncio.wait_for(job("first"), 60)
            second = await asyncio.wait_for(job(first.partition(":")[2].strip()), 60)
            assert second.partition(":")[2] == "first\n"
            assert first.partition(":")[0].isdigit()
            with pytest.raises(Exception, match="more memory than any node has"):
                await asyncio.wait_for(big(), 60)
            assert running.cancel()
            await asyncio.wait_for(running.ended(), 60)
        slurm.until_no_jobs()
