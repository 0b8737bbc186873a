"""A program that does other work while it uses two backends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody_radical.connection import scripts
from tests._support.machine import working_in

LIMIT = 500.0
"""Seconds for the program on a machine that does much else."""

pytestmark = [pytest.mark.timeout(LIMIT + 30), pytest.mark.long]

PROGRAM = Path(__file__).with_name("other_work.py")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the output of the program."""
    place = tmp_path_factory.mktemp("beside")
    (place / "home").mkdir()
    own = {  # needed by a program that uses RADICAL-Pilot directly
        "PATH": f"{scripts()}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "RADICAL_BASE": str(place / "base"),
        "RADICAL_REPORT": "FALSE",
        "HOME": str(place / "home"),
    }
    words = [sys.executable, "-W", "ignore", str(PROGRAM)]
    env = {**os.environ, **own}
    try:
        done = subprocess.run(
            words, cwd=place, env=env, capture_output=True, text=True, timeout=LIMIT
        )
    finally:  # a program that was stopped has left its pilots
        for process in working_in(place):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_programs_own_session_works_next_to_the_backend(seen: Any) -> None:
    theirs = ["theirs"] * 2
    assert seen["native alone"] == theirs
    assert seen["both"] == [["ours", "42"], theirs]
    assert seen["native after our close"] == theirs
    assert seen["native during our start"] == theirs
    assert seen["ours after their close"] == ["ours"]
    assert len(set(seen["sessions"])) == 3
    assert len(set(seen["native uids"])) == len(seen["native uids"]) == 8


def test_the_start_does_not_change_the_program(seen: Any) -> None:
    assert seen["changed by the start"] == []


def test_variables_set_during_the_start_are_kept(seen: Any) -> None:
    assert (seen["first is starting"], seen["second is starting"]) == (True, True)
    assert seen["own variables"]["VIRTUAL_ENV"] == "/mine"
    assert seen["own variables"]["RADICAL_MINE"] == "mine"
    assert seen["own variables"]["RADICAL_BASE"].endswith("/later")
    assert seen["path"] == "/mine"


def test_processes_started_during_the_start_are_not_ended(seen: Any) -> None:
    assert seen["bystanders"] == [None] * 3
    assert seen["marked"] == []


def test_sockets_forks_pools_and_threads_of_the_program_keep_working(seen: Any) -> None:
    assert seen["messages' error"] == ""
    assert seen["messages"] > 1000
    assert seen["fork"] == "well"
    assert seen["pool"] == seen["pool at the end"] == [0, 2, 4]


def test_files_below_a_sessions_directory_stay_open(seen: Any) -> None:
    assert seen["written"] == "still open"


def test_nothing_is_left_after_shutdown(seen: Any) -> None:
    assert (seen["left of the first"], seen["left of the second"]) == ([], [])
    assert seen["threads"] == []
