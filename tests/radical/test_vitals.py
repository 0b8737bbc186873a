"""Processes that are seen to end, and pilots that share the work, without RADICAL-Pilot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.task import TaskDescription
from rhapsody_radical import leftovers, processes
from rhapsody_radical.fleet import Fleet
from rhapsody_radical.functions import completed
from rhapsody_radical.jobs import Job
from rhapsody_radical.library import ru
from rhapsody_radical.session import Client, Pilot, _at_exit, _open
from rhapsody_radical.upkeep import release
from rhapsody_radical.vitals import CONFIRMED, PATIENCE, Vitals, titles


def look_alike(place: Path) -> subprocess.Popen[bytes]:
    """A process that looks like one of RADICAL-Pilot's components."""
    process = subprocess.Popen(["bash", "-c", "exec -a rp.agent_x sleep 600"], cwd=place)
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"rp.agent_x"):
        assert process.poll() is None
    return process


def look(vitals: Vitals) -> str | None:
    """What the watch does once a second."""
    return vitals.note(titles([vitals.directory])[vitals.directory])


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
    assert [look(vitals) for _ in range(CONFIRMED)] == [None] * CONFIRMED
    component.kill()
    component.wait()
    said = [look(vitals) for _ in range(PATIENCE)]
    assert said == [None] * (PATIENCE - 1) + ["rp.agent_x"]


def test_what_a_component_forked_may_end(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals, forked = Vitals(str(tmp_path)), look_alike(tmp_path)
    assert [look(vitals) for _ in range(CONFIRMED)] == [None] * CONFIRMED
    forked.kill()
    forked.wait()
    assert not any(look(vitals) for _ in range(2 * PATIENCE))


def test_what_is_there_for_a_moment_is_no_component(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals = Vitals(str(tmp_path))
    assert [look(vitals) for _ in range(CONFIRMED - 1)] == [None] * (CONFIRMED - 1)
    component.kill()
    component.wait()
    assert not any(look(vitals) for _ in range(2 * PATIENCE))


def test_components_elsewhere_do_not_count(
    component: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vitals = Vitals(str(tmp_path.parent))
    for _ in range(CONFIRMED):
        look(vitals)
    component.kill()
    component.wait()
    assert not any(look(vitals) for _ in range(2 * PATIENCE))


def test_somebodys_terminal_is_no_process_of_a_session(tmp_path: Path) -> None:
    psutil.Process().terminal()  # looks once which terminals there are, and never again
    there = ["sh", "-c", f"cd '{tmp_path}' && exec sleep 600"]
    # What opens the terminal is elsewhere, as a terminal's window is.
    window = subprocess.Popen(
        [sys.executable, "-c", f"import pty; pty.spawn({there!r})"],
        cwd=tmp_path.parent,
        stdin=subprocess.PIPE,
    )
    task = subprocess.Popen(["sleep", "600"], cwd=tmp_path, start_new_session=True)
    shells: list[psutil.Process] = []
    try:
        patience = time.monotonic() + 30
        while not any(each.cwd() == str(tmp_path) for each in shells):
            assert time.monotonic() < patience
            shells = psutil.Process(window.pid).children()
        found = {process.pid for process in processes.of_session(tmp_path, "none")}
        assert task.pid in found
        assert shells[0].pid not in found
        processes.wait_gone(str(tmp_path), patience=0.0)
        task.wait(10)
        assert shells[0].is_running()
    finally:
        processes.kill(shells)
        window.kill()
        task.kill()
        window.communicate()
        task.wait()


def test_a_change_of_the_clock_makes_no_process_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pid, began = os.getpid(), psutil.Process().create_time()
    noted = leftovers._started(pid)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: began + 3600)
    assert leftovers._alive(pid, noted)
    assert not leftovers._alive(pid, f"{noted}0")


def test_logs_of_a_session_that_was_closed_are_not_held(tmp_path: Path) -> None:
    """RADICAL-Pilot opens one when a pilot ends twice, and never closes it."""
    logger = ru.Logger("held", path=str(tmp_path / "mine"), targets=["held.log"])
    others = ru.Logger("others", path=str(tmp_path / "theirs"), targets=["others.log"])
    for each in (logger, others):
        each.error("said")
    release([], frozenset(), tmp_path / "mine")
    held = [file.path for file in psutil.Process().open_files() if str(tmp_path) in file.path]
    assert [Path(path).name for path in held] == ["others.log"]
    release([], frozenset(), tmp_path / "theirs")


@pytest.mark.parametrize("keep", [True, False])
def test_a_program_that_ends_without_a_shutdown_keeps_its_session_where_asked(
    tmp_path: Path, *, keep: bool
) -> None:
    client = Client("mine", str(tmp_path), [], verbose=False, keep=keep)
    client.directory.mkdir()
    _open.add(client)
    _at_exit()
    assert client.directory.exists() is keep


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


def description(**specific: Any) -> TaskDescription:
    """The part of a task's description that says where it goes."""
    return completed("task", {"executable": "true"}, specific)


def test_tasks_go_where_there_is_the_least_to_do_for_the_cores() -> None:
    made, _ = fleet("local.one", "local.two", "local.three")
    first, second, third = made.pilots
    second.settings["cores"] = 8
    open_job = Job(description(), first)
    named = description(pilot=first.uid)
    assert made.spread([description() for _ in range(8)], [open_job]).count(second) == 4
    third.reason = "ended"
    given = made.spread([named, description(), description(), description()], [])
    assert given == [first, second, second, first]
