"""Tests of the utilization that a timeline shows; its lanes are tested with `rhapsody trace`."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.history.reader import read_run
from rhapsody.history.timeline import lanes, utilization
from tests._support.histories import Records, call, end

NAME = "20260101T000000-align-00a1"


def test_utilization_is_the_mean_in_each_part(tmp_path: Path) -> None:
    path = Records(tmp_path).write(
        NAME,
        call(1, "a"),
        call(2, "b", resources={"cores": 4, "ranks": 2}),
        end(1, 0, 0, 6),
        end(2, 0, 3, 4, worker="worker-2"),
    )
    found = utilization(lanes(read_run(path)), 8e6, 4)
    assert [(each.start / 1e6, each.end / 1e6) for each in found] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 8),
    ]
    assert [each.attempts for each in found] == pytest.approx([1, 1.5, 1, 0])
    assert [each.cores for each in found] == pytest.approx([1, 5, 1, 0])


def test_an_attempt_at_the_end_of_the_last_part_counts(tmp_path: Path) -> None:
    path = Records(tmp_path).write(NAME, call(1, "a"), end(1, 0, 0, 3))
    found = utilization(lanes(read_run(path)), 3e6, 7)
    assert [each.attempts for each in found] == pytest.approx([1] * 7)
    assert utilization([], 0.0, 2)[1].attempts == 0


def test_services_are_not_counted(tmp_path: Path) -> None:
    path = Records(tmp_path).write(
        NAME,
        call(1, "a"),
        call(2, "server", settings={"service": True}),
        end(1, 0, 0, 1),
        end(2, 0, 0, 2, worker="worker-2"),
    )
    found = utilization(lanes(read_run(path)), 2e6, 2)
    assert [each.cores for each in found] == pytest.approx([1, 0])
