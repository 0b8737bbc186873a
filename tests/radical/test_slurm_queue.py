"""Pilots that wait in the queue of a real Slurm, or cannot enter it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import TaskLostError
from rhapsody_radical.pilot import PilotException
from rhapsody_testing import Driver
from tests._support.slurm import why_not
from tests.radical import cluster, kills
from tests.radical.pilots import backend

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.usefixtures("batch_system"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def speak_soon(_: Any) -> None:
    """Shorten the time until a queued pilot is reported; called in the client."""
    from rhapsody_radical.client import main

    main.FIRST_WORD = 0.0


@pytest.mark.asyncio
async def test_a_queued_pilot_is_reported_and_leaves_the_queue_at_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "of-the-user")
    monkeypatch.setattr("sys.argv", ["/some/where/my analysis.py"])
    with cluster.held():
        made = await backend(cluster.settings(), work_dir=tmp_path / "work")
        try:
            await made.run_in_client(speak_soon)
            (job,) = cluster.jobs(tmp_path, "PENDING")
            words = ["squeue", "--noheader", f"--jobs={job}", "--format=%j %a"]
            shown = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True)
            assert shown.stdout == "rhapsody-my-analysis of-the-user\n"
            async with asyncio.timeout(20):
                while ": not active after" not in caplog.text:  # noqa: ASYNC110 - the client's
                    await asyncio.sleep(0.1)
        finally:
            await made.shutdown()
        assert cluster.jobs(tmp_path) == []
    (said,) = (each for each in caplog.records if ": not active after" in each.getMessage())
    assert said.levelname == "WARNING"
    found = (
        f"PMGR_ACTIVE_PENDING, queue debug, job {job} is PENDING (Resources); its tasks are waiting"
    )
    assert said.getMessage().endswith(found), said.getMessage()


@pytest.mark.asyncio
async def test_a_pilot_with_too_long_a_runtime_fails_with_slurms_reason(
    tmp_path: Path,
) -> None:
    with cluster.limited(minutes=5):
        made = backend(cluster.settings(), work_dir=tmp_path / "work", functions="executable")
        async with Driver(made, work_dir=tmp_path) as driver:
            try:
                await made.run_in_client(speak_soon)
                async with asyncio.timeout(40):
                    end = await driver.run_one(driver.command("true"))
                assert isinstance(end.error, TaskLostError), str(end)
                assert "(PartitionTimeLimit)" in str(end.error)
            finally:
                await made.shutdown()
    cluster.until_no_jobs_of(tmp_path)


def test_a_queued_pilot_leaves_the_queue_at_ctrl_c(tmp_path: Path) -> None:
    with (
        cluster.held(),
        kills.program(tmp_path, "launched", pilot=cluster.settings()) as found,
    ):
        assert cluster.jobs(tmp_path, "PENDING")
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(60) in (130, -signal.SIGINT)
        assert found.left([]) == []


@pytest.mark.parametrize("moment", ["submitting", "launched"])
def test_a_queued_pilot_of_a_killed_program_leaves_the_queue(tmp_path: Path, moment: str) -> None:
    with cluster.held():
        kills.kill(tmp_path, moment, fork=True, pilot=cluster.settings())


@pytest.mark.asyncio
async def test_the_next_start_cancels_jobs_of_killed_programs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        killed = []
        for moment, state in ("active", "RUNNING"), ("launched", "PENDING"):  # the first has it all
            one = stack.enter_context(kills.program(tmp_path, moment, pilot=cluster.settings()))
            assert len(cluster.jobs(one.session, state)) == 1
            killed.append(one)
        for one, client in [(one, one.client()) for one in killed]:
            one.process.kill()  # and at once, before either can act on the other's end:
            client.kill()
        for one in killed:
            one.process.wait()
            assert cluster.jobs(one.session)
        made = await backend(work_dir=tmp_path / "work")  # on this machine
        try:
            assert cluster.jobs(tmp_path, "RUNNING", "PENDING") == []
        finally:
            await made.shutdown()
        for one in killed:
            one.gone([], files=False)
            (said,) = (text for text in caplog.messages if one.session.name in text)
            assert "its client ended without closing the session" in said
            assert "batch jobs canceled: 1)" in said


@pytest.mark.asyncio
async def test_the_error_of_an_unknown_partition_contains_slurms_message(tmp_path: Path) -> None:
    made = backend(cluster.settings(queue="nowhere"), work_dir=tmp_path / "work")
    try:
        with pytest.raises(PilotException) as error:
            await made
    finally:
        await made.shutdown()
    assert "nvalid partition" in str(error.value)
    assert str(tmp_path) not in str(error.value)  # that directory has been removed
