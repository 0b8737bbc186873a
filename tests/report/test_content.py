"""Content of a report: groups of failures, utilization and critical path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhapsody.history import RunHistory, read_run
from rhapsody_report.content import EXAMPLES, MAX_TEXT, contents, failure_groups, tail
from tests._support.histories import Records, call, end, finish

NAME = "20260101T000000-align-00a1"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def written(records: Records, *lines: Any) -> RunHistory:
    return read_run(records.write(NAME, *lines))


def failed(number: int, kind: str = "OSError", text: str = "full", **more: Any) -> dict[str, Any]:
    error = {"type": kind, "message": text}
    return end(number, 0, 0, 1, state="FAILED", error=error, **more)


def test_failures_with_the_same_name_and_error_are_one_group(records: Records) -> None:
    groups = failure_groups(
        written(
            records,
            *(call(number, "part") for number in range(1, 8)),
            call(8, "other"),
            *(failed(number) for number in range(1, 6)),
            failed(6, "ValueError", "line 6"),
            failed(7, "ValueError", "line 7"),
            failed(8),
        )
    )
    assert [(each.name, each.kind, each.text, len(each.tasks)) for each in groups] == [
        ("part", "OSError", "full", 5),
        ("part", "ValueError", None, 2),
        ("other", "OSError", "full", 1),
    ]
    assert len(groups[0].examples) == EXAMPLES
    assert groups[0].others == ["task.000004", "task.000005"]


def test_failures_that_kept_the_most_tasks_from_running_are_first(records: Records) -> None:
    skipped: dict[str, Any] = {"state": "FAILED", "skipped": True}
    error = {"type": "DependencyFailureError", "message": "x", "caused_by": ["task.000003"]}
    groups = failure_groups(
        written(
            records,
            *(call(number, name) for number, name in enumerate(["a", "a", "b", "c", "d"], 1)),
            failed(1),
            failed(2),
            failed(3, exit_code=2),
            end(4, None, None, 2, error=error, **skipped),
            end(5, None, None, 2, error={**error, "caused_by": ["task.000099"]}, **skipped),
        )
    )
    assert [(each.name, each.kind, each.skipped) for each in groups] == [
        ("b", "exit code 2", 1),
        ("a", "OSError", 0),
    ]


def test_the_cause_of_a_skipped_task_is_in_its_own_engine(records: Records) -> None:
    other: dict[str, Any] = {"engine": "engine.2"}
    error = {"type": "DependencyFailureError", "message": "x", "caused_by": ["task.000001"]}
    groups = failure_groups(
        written(
            records,
            call(1, "a"),
            failed(1),
            {"event": "engine", "uid": "engine.2", "time": 1.0, "backends": []},
            call(1, "b", **other),
            call(2, "c", **other),
            failed(1, **other),
            end(2, None, None, 2, state="FAILED", skipped=True, error=error, **other),
        )
    )
    assert [(each.name, each.skipped) for each in groups] == [("b", 1), ("a", 0)]


def test_an_attempt_that_was_retried_is_no_failure(records: Records) -> None:
    history = written(records, call(1, "a"), failed(1, retried=True), end(1, 1, 1, 2, attempt=2))
    assert failure_groups(history) == []


def test_a_long_output_is_shown_from_its_end() -> None:
    assert tail("a\n") == "a"
    assert tail("x" * MAX_TEXT + "end") == f"...{'x' * (MAX_TEXT - 3)}end"


def test_figures_of_utilization_and_critical_path(records: Records) -> None:
    history = written(
        records,
        call(1, "a"),
        call(2, "b"),
        call(3, "c", dependencies=["task.000001"]),
        end(1, 0, 0, 5, worker="worker-1"),
        end(2, 0, 0, 8, worker="worker-2"),
        end(3, 5, 6, 10, worker="worker-1"),
        *finish(10, tasks=3, done=3),
    )
    found = contents(history, None)
    assert found["utilization"]["mean"] == pytest.approx(1.7)
    assert found["utilization"]["max"] == pytest.approx(2)
    assert found["utilization"]["share"] == pytest.approx(0.85)
    assert found["path"]["total"] == pytest.approx(10)
    assert found["path"]["waited"] == pytest.approx(1)
    assert found["path"]["share"] == pytest.approx(1)
    assert found["seconds"] == pytest.approx(10)


def test_failures_that_the_fallback_replaced_are_groups_of_their_own(records: Records) -> None:
    error = {"type": "OSError", "message": "full"}
    groups = failure_groups(
        written(
            records,
            *(call(number, "part") for number in range(1, 4)),
            failed(1),
            end(2, 0, 0, 1, error=error, fallback=True),
            end(3, 0, 0, 1, error=error, fallback=True),
        )
    )
    assert [(each.kind, len(each.tasks), each.fallback) for each in groups] == [
        ("OSError", 2, True),
        ("OSError", 1, False),
    ]
