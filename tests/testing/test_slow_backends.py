"""The conformance kit on backends that need long to start a task."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import pytest

from rhapsody.task import TaskDescription
from tests._support.kits import Hurried, Patient, kit_on, run
from tests._support.small_backend import SmallBackend

pytestmark = pytest.mark.long


class Counting(SmallBackend):
    """Counts the tasks that it starts."""

    started: ClassVar[Counter[str]] = Counter()

    async def run_task(self, task: TaskDescription) -> Any:
        self.started[task["name"].partition(" ")[0]] += 1
        return await super().run_task(task)


class Stuck(SmallBackend):
    """Takes so long to start a task that no check ends in time."""

    async def run_task(self, task: TaskDescription) -> Any:
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counting.started.clear()


@pytest.mark.parametrize("kind", ["async_function", "executable"])
def test_tasks_that_wait_are_canceled_instead_of_run(kind: str) -> None:
    outcome = run(kit_on(Counting, Patient), f"test_a_waiting_task_is_canceled[{kind}]")
    assert outcome.word == "passed", outcome.text
    assert Counting.started.total() == 4  # as many as run at once


@pytest.mark.parametrize(
    ("check", "most"),
    [
        ("test_a_fan_runs", 10 + 21),
        ("test_each_call_is_executed_exactly_once", 10),
        ("test_results_belong_to_their_tasks[function]", 10),
        ("test_results_belong_to_their_tasks[executable]", 10),
        ("test_finished_tasks_are_released", 7 * 2),
        ("test_several_engines_use_one_backend", 2 * 2 + 1),
    ],
)
def test_a_smaller_fan_lowers_the_number_of_tasks(check: str, most: int) -> None:
    class Small(Patient):
        fan = 10
        growth_per_task = 1_000_000  # other allocations of this process count a lot for few tasks

    outcome = run(kit_on(Counting, Small), check)
    assert outcome.word == "passed", outcome.text
    assert Counting.started.total() == most


def test_a_check_with_many_tasks_that_does_not_end_in_time_names_the_fan() -> None:
    outcome = run(kit_on(Stuck, Hurried), "test_each_call_is_executed_exactly_once")
    assert "0 of 300 submitted tasks have ended" in outcome.text
    assert "raise `time_limit` (now 0.6), or lower `fan` (now 300)" in outcome.text


def test_a_check_that_does_not_end_in_time_counts_the_tasks_of_the_engine() -> None:
    outcome = run(kit_on(Stuck, Hurried), "test_a_fan_runs")
    assert ": 0 done, 300 canceled" in outcome.text
