"""Choice of a pilot for each task, and states of pilots, without RADICAL-Pilot."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.task import TaskDescription
from rhapsody_radical.functions import completed
from rhapsody_radical.pilots import Pilot, Pilots

NOW = 1000.0
"""The time, which stands still."""


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody_radical.pilots.time", SimpleNamespace(time=lambda: NOW))


def pilots(*names: str) -> tuple[Pilots, list[Pilot]]:
    """Pilots on resources of these names, and the list of those that ended."""
    ended: list[Pilot] = []
    settings = [{"resource": name, "cores": 4} for name in names]
    return Pilots(settings, ended.append), ended


def test_states_of_pilots_are_logged_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    made, ended = pilots("local.one")
    states = ["PMGR_LAUNCHING", "PMGR_ACTIVE", "DONE", "FAILED"]
    with caplog.at_level("INFO", "rhapsody.radical"):
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


@pytest.mark.parametrize(
    ("manager", "cores", "levels"),
    [("SLURM", 9, ["WARNING"]), ("SLURM", 16, []), ("FORK", 9, ["INFO"])],
)
def test_rounding_up_to_whole_nodes_is_logged(
    manager: str, cores: int, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = Pilots([{"resource": "a.b", "cores": cores}], lambda pilot: None)
    with caplog.at_level("INFO", "rhapsody.radical"):
        made.pilots[0].configure({"cores_per_node": 8, "resource_manager": manager})
    assert [each.levelname for each in caplog.records] == levels
    if levels:
        assert "has 16 cores instead of 9, because its nodes have 8" in caplog.text


def test_utilization_counts_only_the_time_while_the_pilot_was_active() -> None:
    made, _ = pilots("local.one", "local.two")
    pilot = made.pilots[0]
    pilot.times = {"PMGR_LAUNCHING": 50.0, "PMGR_ACTIVE": 100.0, "DONE": 110.0}
    pilot.core_seconds = 10.0
    made.close()
    assert [each["utilization"] for each in made.account()] == [0.25, None]


def description(**specific: Any) -> TaskDescription:
    """Return the description of a task with settings that select a pilot."""
    return completed("task", {"executable": "true"}, specific)


def activated(made: Pilots, *numbers: int, seconds: float = 10.0) -> None:
    """Let pilots be active for some seconds."""
    for number in numbers:
        made.note(made.pilots[number], "PMGR_ACTIVE", NOW - seconds)


def spread(made: Pilots, count: int = 1, work: Any = (), **specific: Any) -> list[int | None]:
    """The numbers of the pilots for some tasks of one core, `None` for those that wait."""
    load, chosen = Counter(work), []
    for _ in range(count):
        pilot = made.choose(description(**specific), lambda pilot: True, load)
        chosen.append(None if pilot is None else pilot.number)
        load.update([] if pilot is None else [pilot.number])
    return chosen


def test_tasks_are_sent_to_the_pilot_with_the_least_load_per_core() -> None:
    made, _ = pilots("local.one", "local.two", "local.three")
    made.pilots[1].settings["cores"] = 8
    activated(made, 0, 1, 2)
    assert Counter(spread(made, 8, work={0: 1})) == {1: 4, 2: 2, 0: 2}
    made.ended(made.pilots[2], "ended")
    assert Counter(spread(made, 12)) == {1: 8, 0: 4}
    assert spread(made, pilot="pilot.0002") == [2]


def test_tasks_wait_while_only_queued_pilots_have_room() -> None:
    made, _ = pilots("local.one", "local.two")
    assert spread(made, 2) == [None, None]
    activated(made, 0)
    assert Counter(spread(made, 20)) == {0: 8, None: 12}
    assert spread(made, pilot="pilot.0001") == [1]
    made.pilots[0].cores_done = 100  # in ten seconds
    assert Counter(spread(made, 200))[0] == 100
    activated(made, 1)
    assert Counter(spread(made, 20)) == {0: 10, 1: 10}


def test_tasks_do_not_wait_for_a_single_or_ended_pilot() -> None:
    assert spread(pilots("local.one")[0]) == [0]
    made, _ = pilots("local.one", "local.two")
    activated(made, 0)
    made.ended(made.pilots[1], "ended")
    assert spread(made, 20) == [0] * 20
    made.ended(made.pilots[0], "ended")
    assert spread(made) == [0]


def test_a_task_waits_for_the_pilot_that_it_fits_on() -> None:
    made, _ = pilots("local.one", "local.two")
    activated(made, 0)

    def second(pilot: Pilot) -> bool:
        return pilot.number == 1

    assert made.choose(description(), second, Counter()) is None
    activated(made, 1)
    assert made.choose(description(), second, Counter({1: 50})) is made.pilots[1]
    assert made.choose(description(), lambda pilot: False, Counter()) is made.pilots[0]
