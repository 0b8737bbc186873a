"""Reasons why pilots wait or have ended, without RADICAL-Pilot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import BatchJob
from rhapsody_radical.client.session import PilotSession


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, ", queue debug"),
        ([], ", queue debug, no job in the queue"),
        ([BatchJob("7", "PENDING", "Priority", "long", "pilot.0001")], ", no job in the queue"),
        (
            [BatchJob("7", "PENDING", "Priority", "long", "pilot.0000")],
            "long, job 7 is PENDING (Priori",
        ),
        (
            [BatchJob("7", "RUNNING", "None", "long", "pilot.0000")],
            "RUNNING, and RADICAL-Pilot's agent is sta",
        ),
    ],
)
def test_the_reason_why_a_pilot_waits_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[BatchJob] | None, said: str
) -> None:
    monkeypatch.setattr(cleanup, "find_jobs", lambda uid, _: found if uid == "mine" else None)
    settings = {"resource": "local.localhost", "queue": "debug"}
    session = PilotSession("mine", str(tmp_path), str(tmp_path), [settings])
    assert session.place_in_queue(session.pilots[0]) == ", queue debug"
    session.managers = ["SLURM"]
    assert said in session.place_in_queue(session.pilots[0])


def test_slurms_reason_is_reported_for_jobs_that_cannot_start_or_timed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = [
        BatchJob("7", "PENDING", "PartitionTimeLimit", "debug", "pilot.0000"),
        BatchJob("8", "PENDING", "Priority", "debug", "pilot.0001"),
    ]
    jobs = {
        cleanup.ACTIVE: pending,
        cleanup.ENDED_STATES: [BatchJob("9", "TIMEOUT", "TimeLimit", "debug", "pilot.0001")],
    }
    monkeypatch.setattr(cleanup, "find_jobs", lambda uid, states: jobs[states])
    settings = {"resource": "local.localhost"}
    session = PilotSession("mine", str(tmp_path), str(tmp_path), [settings] * 3)
    session.managers = ["SLURM"]
    first, second, third = session.pilots
    assert "job 7 in queue debug" in str(session.why_never(first))
    assert str(session.why_never(first)).endswith("(PartitionTimeLimit)")
    assert session.why_never(second) is None
    down = [BatchJob(job.id, "PENDING", "PartitionDown", "debug", job.pilot) for job in pending]
    jobs[cleanup.ACTIVE] = [
        *down,
        BatchJob("10", "PENDING", "PartitionDown", "debug", "pilot.0002"),
    ]
    assert session.why_never(second) is None  # it has waited for its turn before
    assert str(session.why_never(third)).endswith("limits (PartitionDown)")
    assert session.why(second) == "the batch system ended its job 9: TIMEOUT"


def test_a_full_disk_is_reported_if_the_logs_contain_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PilotSession("mine", str(tmp_path), str(tmp_path), [{"resource": "local.localhost"}])
    session.objects.session = SimpleNamespace(path=str(tmp_path))
    (pilot,) = session.pilots
    pilot.sandbox = str(tmp_path / "pilot")
    assert str(tmp_path) in session.why(pilot)
    monkeypatch.setattr("rhapsody_radical.client.session.MIN_FREE_BYTES", 1 << 62)
    assert session.why(pilot) == f"no space left in {tmp_path}"
    (tmp_path / "pmgr_launching.0000.log").write_text("all well\nIt was denied\n")
    assert session.why(pilot) == "It was denied"
