"""Tests of the statistics of a run: by task name, and the critical path."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.history.reader import RunHistory, read_run
from rhapsody.history.statistics import (
    Durations,
    by_name,
    critical_path,
    most_unused_memory,
    time_shares,
)
from tests._support.histories import BEGIN, Records, call, end, start

NAME = "20260101T000000-align-00a1"
MB = 10**6


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def history(records: Records, *lines: dict[str, Any]) -> RunHistory:
    return read_run(records.write(NAME, *lines))


def after(*numbers: int) -> dict[str, Any]:
    return {"dependencies": [f"task.{number:06d}" for number in numbers]}


def names(found: RunHistory, now: float | None = None) -> list[str]:
    return [step.task.name for step in critical_path(found, now)]


def test_durations_are_interpolated() -> None:
    found = Durations.of([4.0, 1.0, 2.0, 3.0])
    assert found is not None
    assert (found.count, found.median, found.max, found.total) == (4, 2.5, 4.0, 10.0)
    assert found.p95 == pytest.approx(3.85)
    assert Durations.of([]) is None


def test_tasks_are_counted_by_name_and_outcome(records: Records) -> None:
    found = by_name(
        history(
            records,
            *(call(number, "part") for number in range(1, 7)),
            call(7, "join", **after(1)),
            end(1, 0, 1, 3),
            end(2, 0, 1, 2, state="FAILED", retried=True),
            end(2, 2, 2, 4, attempt=2),
            end(3, 0, 1, 5, state="FAILED"),
            end(4, 0, None, 1, state="FAILED", skipped=True),
            end(5, 0, None, 1, state="CANCELED"),
            end(6, 0, None, 0, reused=True),
        )
    )
    part, join = found
    assert (part.count, part.done, part.failed, part.skipped) == (6, 3, 1, 1)
    assert (part.canceled, part.reused, part.retried) == (1, 1, 1)
    assert part.durations is not None
    assert part.durations.total == 2 + 1 + 2 + 4
    assert (join.count, join.done, join.durations) == (1, 0, None)


def test_used_resources_are_compared_with_requested_ones(records: Records) -> None:
    asked: dict[str, Any] = {"resources": {"memory": 300 * MB, "cores": 2, "ranks": 2}}
    found = by_name(
        history(
            records,
            call(1, "mesh", **asked),
            call(2, "mesh", **asked),
            call(3, "plot"),
            end(1, 0, 0, 10, usage={"cpu_seconds": 20.0, "peak_memory": 200 * MB}),
            end(2, 0, 0, 10, usage={"peak_memory": 100 * MB}),
            end(3, 0, 0, 1, resources={"memory": 50 * MB}),
        )
    )
    mesh, plot = found
    assert mesh.cpu_efficiency == 0.5
    assert (mesh.peak_memory, mesh.requested_memory) == (200 * MB, 600 * MB)
    assert mesh.unused_memory == 400 * MB
    assert (plot.requested_memory, plot.unused_memory) == (50 * MB, None)
    assert most_unused_memory(found) == mesh
    assert most_unused_memory([plot]) is None


def test_a_task_without_cores_has_no_efficiency(records: Records) -> None:
    lines = call(1, "wait", resources={"cores": 0}), end(1, 0, 0, 1, usage={"cpu_seconds": 0.1})
    (found,) = by_name(history(records, *lines))
    assert found.cpu_seconds == 0.1
    assert found.cpu_efficiency is None


def test_short_attempts_have_no_efficiency(records: Records) -> None:
    short = call(1, "step"), end(1, 0, 0, 0.001, usage={"cpu_seconds": 0.0025})
    (found,) = by_name(history(records, *short))
    assert (found.cpu_seconds, found.cpu_efficiency) == (0.0025, None)
    long = call(2, "step"), end(2, 0, 0, 1, usage={"cpu_seconds": 0.5})
    (found,) = by_name(history(records, *short, *long))
    assert found.cpu_seconds == 0.5025
    assert found.cpu_efficiency == pytest.approx(0.5)


def test_the_critical_path_is_the_longest_chain(records: Records) -> None:
    found = history(
        records,
        call(1, "short"),
        call(2, "long"),
        call(3, "join", **after(1, 2)),
        call(4, "alone"),
        end(1, 0, 0, 1),
        end(2, 0, 1, 4),
        end(3, 4, 6, 7),
        end(4, 0, 0, 5),
    )
    assert names(found) == ["long", "join"]
    assert [(step.waited, step.ran) for step in critical_path(found)] == [(1, 3), (2, 1)]


def test_skipped_tasks_are_not_on_the_critical_path(records: Records) -> None:
    found = history(
        records,
        call(1, "part"),
        call(2, "join", **after(1)),
        end(1, 0, 0, 3, state="FAILED"),
        end(2, None, None, 3.001, state="FAILED", skipped=True),
    )
    assert names(found) == ["part"]


def test_the_time_before_a_call_is_not_waiting(records: Records) -> None:
    found = history(records, call(1, "late", after=5), end(1, 5, 6, 7))
    assert [(step.waited, step.ran) for step in critical_path(found)] == [(1, 1)]


def test_all_attempts_count_as_running(records: Records) -> None:
    found = history(
        records,
        call(1, "part"),
        end(1, 0, 0, 2, state="FAILED", retried=True),
        end(1, 3, 4, 6, attempt=2),
    )
    assert [(step.waited, step.ran) for step in critical_path(found)] == [(2, 4)]


def test_running_tasks_count_until_now(records: Records) -> None:
    found = history(
        records, call(1, "first"), call(2, "next", **after(1)), end(1, 0, 0, 1), start(2, 2)
    )
    assert names(found) == ["first"]
    assert names(found, BEGIN + 4) == ["first", "next"]
    assert critical_path(found, BEGIN + 4)[-1].ran == 2


def test_a_block_depends_on_its_tasks_and_they_on_its_dependencies(records: Records) -> None:
    block: dict[str, Any] = {"uid": "block.000001", "kind": "block"}
    found = history(
        records,
        call(1, "before"),
        call(1, "block", **block, **after(1)),
        call(2, "last", dependencies=["block.000001"]),
        call(3, "inside", after=1, block="block.000001"),
        end(1, 0, 0, 1),
        end(3, 1, 1, 3),
        {**end(1, 1, 1, 3), "uid": "block.000001"},
        end(2, 3, 3, 4),
    )
    assert names(found) == ["before", "inside", "block", "last"]
    assert sum(step.seconds for step in critical_path(found)) == 4


def test_services_are_not_on_the_critical_path_but_what_they_depend_on_is(
    records: Records,
) -> None:
    service: dict[str, Any] = {"settings": {"service": True}}
    found = history(
        records,
        call(1, "train"),
        call(2, "server", **after(1), **service),
        call(3, "predict", **after(2)),
        call(4, "other", **service),
        end(1, 0, 0, 3),
        end(3, 4, 4, 5),
        end(2, 3, 3, 100),
        end(4, 0, 0, 100),
    )
    assert names(found) == ["train", "predict"]
    steps = critical_path(found)
    assert [(step.waited, step.ran) for step in steps] == [(0, 3), (1, 1)]


def test_cycles_and_missing_dependencies_of_a_damaged_record_are_ignored(records: Records) -> None:
    found = history(
        records,
        call(1, "one", **after(2)),
        call(2, "two", **after(1)),
        call(3, "self", **after(3)),
        call(4, "whole", **after(99)),
        *(end(number, 0, 0, 1) for number in range(1, 5)),
    )
    assert names(found) == ["whole"]


def test_a_run_without_ended_tasks_has_no_path(records: Records) -> None:
    assert critical_path(history(records, call(1, "part"))) == []
    assert critical_path(history(records)) == []


@pytest.mark.long
def test_the_longest_chain_without_waiting_is_that_of_run_times(records: Records) -> None:
    found = history(
        records,
        call(1, "long"),
        call(2, "short"),
        call(3, "next", **after(2)),
        end(1, 0, 0, 5),
        end(2, 0, 0, 1),
        end(3, 1, 9, 10),
    )
    assert names(found) == ["short", "next"]
    assert [step.task.name for step in critical_path(found, waiting=False)] == ["long"]


def test_the_time_of_a_run_is_divided_by_what_the_last_task_waited_for(records: Records) -> None:
    found = history(
        records,
        call(1, "first", after=1, resources={"cores": 2}),
        call(2, "other", after=1),
        call(3, "next", after=1, **after(1)),
        call(4, "last", after=10),
        end(1, 1, 3, 5),  # waited 2 for a core
        end(2, 1, 1, 2),
        end(3, 6, 6, 8),  # held for 1 before the submission
        end(4, 10, 11, 12),  # the program did nothing for 2
    )
    shares = time_shares(found)
    assert shares is not None
    assert (shares.ran, shares.queued, shares.held, shares.program) == (2 + 2 + 1, 2 + 1, 1, 1 + 2)
    assert shares.total == 12
    assert shares.chain == 4
    assert shares.core_seconds == 2 * 2 + 1 + 2 + 1


def test_the_time_of_a_run_with_blocks_services_and_retries_is_divided_without_rest(
    records: Records,
) -> None:
    block: dict[str, Any] = {"uid": "block.000001", "kind": "block"}
    found = history(
        records,
        call(1, "serve", settings={"service": True}),
        call(1, "block", **block, **after(1)),
        call(2, "inside", after=1, block="block.000001"),
        start(1, 0),
        end(2, 1, 1, 2, state="FAILED", retried=True),
        end(2, 4, 5, 6, attempt=2),
        {**end(1, 1, 1, 7), "uid": "block.000001"},
    )
    shares = time_shares(found)
    assert shares is not None
    assert shares.ran + shares.queued + shares.held + shares.program == shares.total == 7
    assert shares.ran == 5


def test_a_run_without_ended_tasks_has_no_shares(records: Records) -> None:
    assert time_shares(history(records, call(1, "part"))) is None


def test_a_hundred_thousand_tasks_take_little_time(records: Records) -> None:
    lines = []
    for number in range(1, 100_001):
        lines += [call(number, f"step{number % 20}", **after(*range(max(1, number - 2), number)))]
        lines += [end(number, number, number, number + 1)]
    found = history(records, *lines)
    began = time.process_time()
    assert len(critical_path(found)) == 100_000
    assert len(by_name(found)) == 20
    assert time.process_time() - began < 10  # measured: 1 s
