"""Processes that are seen to end, without RADICAL-Pilot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody_radical.fleet import Fleet
from rhapsody_radical.session import Pilot
from rhapsody_radical.vitals import CONFIRMED, PATIENCE, Vitals


def look_alike(place: Path) -> subprocess.Popen[bytes]:
    """A process that looks like one of RADICAL-Pilot's components."""
    process = subprocess.Popen(["bash", "-c", "exec -a rp.agent_x sleep 600"], cwd=place)
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"rp.agent_x"):
        assert process.poll() is None
    return process


@pytest.fixture
def component(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of them, until the end of the test."""
    process = look_alike(tmp_path)
    yield process
    process.kill()
    process.wait()


def test_a_component_that_ended_is_told_of_after_a_while(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals = Vitals(str(tmp_path))
    assert [vitals.look() for _ in range(CONFIRMED)] == [None] * CONFIRMED
    component.kill()
    component.wait()
    said = [vitals.look() for _ in range(PATIENCE)]
    assert said == [None] * (PATIENCE - 1) + ["rp.agent_x"]


def test_what_a_component_forked_may_end(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals, forked = Vitals(str(tmp_path)), look_alike(tmp_path)
    assert [vitals.look() for _ in range(CONFIRMED)] == [None] * CONFIRMED
    forked.kill()
    forked.wait()
    assert not any(vitals.look() for _ in range(2 * PATIENCE))


def test_what_is_there_for_a_moment_is_no_component(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals = Vitals(str(tmp_path))
    assert [vitals.look() for _ in range(CONFIRMED - 1)] == [None] * (CONFIRMED - 1)
    component.kill()
    component.wait()
    assert not any(vitals.look() for _ in range(2 * PATIENCE))


def test_components_elsewhere_do_not_count(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals = Vitals(str(tmp_path.parent))
    for _ in range(CONFIRMED):
        vitals.look()
    component.kill()
    component.wait()
    assert not any(vitals.look() for _ in range(2 * PATIENCE))


# Pilots.


def fleet(*names: str) -> tuple[Fleet, list[Pilot]]:
    """A fleet of pilots on resources of these names, and its list of those that ended."""
    ended: list[Pilot] = []
    settings = [{"resource": name, "cores": 4} for name in names]
    return Fleet(settings, ended.append), ended


def test_states_of_pilots_are_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    made, ended = fleet("local.one")
    told: list[tuple[str, str]] = []
    made.callbacks += [lambda *state: 1 // 0, lambda *state: told.append(state)]
    with caplog.at_level("INFO", "rhapsody_radical"):
        for state in ("PMGR_LAUNCHING", "PMGR_ACTIVE", "PMGR_ACTIVE", "DONE", "FAILED"):
            made.note(made.pilots[0], state)
    states = ["PMGR_LAUNCHING", "PMGR_ACTIVE", "DONE", "FAILED"]
    assert told == [("pilot.0000", state) for state in states]
    records = [record for record in caplog.records if record.levelname == "INFO"]
    assert [vars(record)["state"] for record in records] == states
    assert ended == made.pilots
    assert made.pilots[0].reason == (
        "pilot pilot.0000 on local.one ended: its walltime is over, or it was cancelled"
    )
    (account,) = made.account()
    assert list(account["states"]) == states


def test_utilisation_is_the_share_of_cores_while_the_pilot_was_active() -> None:
    made, _ = fleet("local.one", "local.two")
    pilot = made.pilots[0]
    pilot.times = {"PMGR_LAUNCHING": 50.0, "PMGR_ACTIVE": 100.0, "DONE": 110.0}
    pilot.core_seconds = 10.0
    made.close()
    assert [each["utilisation"] for each in made.account()] == [0.25, None]
