"""Pilots that share the work, without RADICAL-Pilot."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody.task import TaskDescription
from rhapsody_radical.functions import completed
from rhapsody_radical.pilots import Pilot, Pilots


def pilots(*names: str) -> tuple[Pilots, list[Pilot]]:
    """Pilots on resources of these names, and the list of those that ended."""
    ended: list[Pilot] = []
    settings = [{"resource": name, "cores": 4} for name in names]
    return Pilots(settings, ended.append), ended


def test_states_of_pilots_are_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    made, ended = pilots("local.one")
    states = ["PMGR_LAUNCHING", "PMGR_ACTIVE", "DONE", "FAILED"]
    with caplog.at_level("INFO", "rhapsody_radical"):
        for when, state in enumerate(states):
            made.note(made.pilots[0], state, when)
    for how in ("ended: its walltime has expired, or it was canceled", "FAILED"):
        made.ended(made.pilots[0], how)
    records = [record for record in caplog.records if record.levelname == "INFO"]
    assert [vars(record)["state"] for record in records] == states
    assert ended == made.pilots
    assert made.pilots[0].reason == (
        "pilot pilot.0000 on local.one ended: its walltime has expired, or it was canceled"
    )
    (account,) = made.account()
    assert list(account["states"]) == states


def test_utilization_is_the_share_of_cores_while_the_pilot_was_active() -> None:
    made, _ = pilots("local.one", "local.two")
    pilot = made.pilots[0]
    pilot.times = {"PMGR_LAUNCHING": 50.0, "PMGR_ACTIVE": 100.0, "DONE": 110.0}
    pilot.core_seconds = 10.0
    made.close()
    assert [each["utilization"] for each in made.account()] == [0.25, None]


def description(**specific: Any) -> TaskDescription:
    """The part of a task's description that says where it goes."""
    return completed("task", {"executable": "true"}, specific)


def test_tasks_go_where_there_is_the_least_to_do_for_the_cores() -> None:
    made, _ = pilots("local.one", "local.two", "local.three")
    first, second, third = made.pilots
    second.settings["cores"] = 8
    named = description(pilot=first.uid)
    assert made.spread([description() for _ in range(8)], [first]).count(second) == 4
    third.reason = "ended"
    given = made.spread([named, description(), description(), description()], [])
    assert given == [first, second, second, first]
