"""Remaining walltime of pilots, which limits the tasks that they receive."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import pytest

from rhapsody.resources import Resources
from rhapsody.task import TaskDescription
from rhapsody_radical.pilots import Pilots
from tests.radical.pilots import backend, resources

NOW = 1000.0


def pilots(*runtimes: int | None) -> Pilots:
    """Return pilots with these runtimes in minutes."""
    return Pilots([resources(runtime=each) for each in runtimes], lambda pilot: None)


def task(walltime: float | None = None, **settings: Any) -> TaskDescription:
    """Return a description with a walltime and settings of RADICAL-Pilot."""
    made: Any = {"uid": "a", "name": "a", "task_backend_specific_kwargs": settings}
    if walltime is not None:
        made["resources"] = Resources(walltime=walltime)
    found: TaskDescription = made
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock, outside of batch jobs."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.mark.usefixtures("clock")
def test_the_runtime_of_a_pilot_starts_when_it_is_active() -> None:
    made = pilots(10)
    assert made.seconds_left(None) == 600  # queued: tasks begin with it
    made.note(made.pilots[0], "PMGR_ACTIVE", NOW - 200)
    assert made.seconds_left(None) == 400
    assert pilots(None).seconds_left(task()) == math.inf


@pytest.mark.usefixtures("clock")
def test_the_longest_remaining_pilot_or_the_named_one_counts() -> None:
    made = pilots(10, 20)
    for pilot in made.pilots:
        made.note(pilot, "PMGR_ACTIVE", NOW - 500)
    assert made.seconds_left(task()) == 700
    assert made.seconds_left(task(pilot="pilot.0000")) == 100
    made.ended(made.pilots[1], "ended")
    assert made.seconds_left(task()) == 100
    made.ended(made.pilots[0], "ended")
    assert made.seconds_left(task()) == math.inf  # the error follows when it is submitted


@pytest.mark.usefixtures("clock")
def test_a_task_is_sent_to_a_pilot_with_enough_time() -> None:
    made = pilots(10, 20)
    first, second = made.pilots
    for pilot in made.pilots:
        made.note(pilot, "PMGR_ACTIVE", NOW)
    busy = Counter({1: 8})
    found = [
        made.choose(each, lambda _: True, busy)
        for each in (task(), task(600), task(700), task(5000))
    ]
    assert found == [first, first, second, first]


@pytest.mark.usefixtures("clock")
def test_no_pilot_outlasts_the_batch_job_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1300")
    assert (backend(resources(runtime=2)).seconds_left() or 0) == 120
    assert 0 < (backend(resources(runtime=10)).seconds_left() or 0) <= 300
