"""Finding and canceling of a session's batch jobs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import BatchJob, cancel_jobs, find_jobs
from tests._support.slurm import slurm, until_no_jobs, why_not


def install(directory: Path, script: str, name: str = "squeue") -> None:
    """Create a command that replaces Slurm's."""
    directory.mkdir(exist_ok=True)
    command = directory / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of commands that comes first."""
    directory = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def test_no_jobs_are_found_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_jobs("mine") is None
    assert not cancel_jobs([BatchJob("1", "RUNNING", "", "", "")])
    assert cancel_jobs([])


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no controller >&2; exit 1", "no controller"), ("exec sleep 600", "")],
)
def test_a_failing_or_hanging_slurm_is_reported_once(
    tmp_path: Path,
    commands: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    said: str,
) -> None:
    monkeypatch.setattr(cleanup, "COMMAND_TIMEOUT", 0.3)
    install(commands, script)
    assert find_jobs("mine") is None
    (first,) = caplog.messages
    assert first.startswith("squeue")
    assert said in first


def test_jobs_are_identified_by_the_sessions_directory(tmp_path: Path, commands: Path) -> None:
    jobs = [BatchJob(n, "RUNNING", "None", "debug", f"pilot.000{n}") for n in ("1", "2")]
    places = [
        "/data/mine/radical.pilot.sandbox/mine/pilot.0001/",
        "/else/a b|c\nd/radical.pilot.sandbox/mine/pilot.0002",
        "/data/mine",
        "/data/mine/radical.pilot.sandbox/other/pilot.0000",
        "/data/mine/radical.pilot.sandbox/mine/pilot.0000/task",
        "/data/radical.pilot.sandbox/mine",
    ]
    (tmp_path / "said").write_text(
        "".join(
            "\x1f".join([str(number), "RUNNING", "None", "debug", place]) + "\x1e\n"
            for number, place in enumerate(places, 1)
        )
    )
    install(commands, f"cat '{tmp_path}/said'")
    assert find_jobs("mine") == jobs


def test_the_users_variables_for_slurm_have_no_effect(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    install(commands, f'echo "$@/$SCANCEL_INTERACTIVE" > {tmp_path}/called', "scancel")
    assert cancel_jobs([BatchJob(number, "RUNNING", "", "", "") for number in ("1", "2")])
    assert (tmp_path / "called").read_text() == "1 2/\n"


@pytest.fixture
def batch_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that runs as long as the test."""
    with slurm(tmp_path_factory.mktemp("slurm")):
        yield


def submit(directory: Path, cores: int = 1) -> str:
    """Submit a job that works in a directory."""
    directory.mkdir(parents=True)
    words = ["sbatch", "--parsable", f"--ntasks={cores}", "--chdir", str(directory)]
    done = subprocess.run(
        [*words, "--wrap", "sleep 600"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.timeout(200)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.usefixtures("batch_system")
def test_only_jobs_of_the_session_are_canceled(tmp_path: Path) -> None:
    sessions = tmp_path / "my directory" / "radical.pilot.sandbox"
    elsewhere = submit(sessions / "other" / "pilot.0000")
    running = submit(sessions / "mine" / "pilot.0000")
    queued = submit(sessions / "mine" / "pilot.0001", cores=2)
    until = time.monotonic() + 60
    while [job.state for job in find_jobs("mine") or ()] != ["PENDING", "RUNNING"]:
        assert time.monotonic() < until, find_jobs("mine")
        time.sleep(0.2)
    found = find_jobs("mine") or []
    assert {job.id for job in found} == {running, queued}
    assert {job.queue for job in found} == {"debug"}
    assert found[0].reason in ("Resources", "Priority")
    assert cancel_jobs(found)
    assert find_jobs("mine") == []
    [other] = find_jobs("other") or []
    assert (other.id, other.state) == (elsewhere, "RUNNING")
    assert cancel_jobs([other])
    until_no_jobs()
