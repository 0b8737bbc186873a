"""Tests of the groups in which a run's failures are reported."""

from __future__ import annotations

from rhapsody.errors import FailureKey
from rhapsody.failures import FailureGroups, failure_from


def fail(groups: FailureGroups, name: str, uid: str) -> FailureKey:
    """Add a failure that differs from others only in the name of its task."""
    return groups.add(failure_from(ValueError(f"the error of {name}"), name, uid, 1))


def test_the_latest_groups_are_in_the_order_of_their_last_failures() -> None:
    groups = FailureGroups()
    for uid, name in enumerate(["a", "b", "a"]):
        fail(groups, name, f"task.{uid}")
    assert [group.name for group in groups.latest] == ["b", "a"]
    errors = [line.partition(" in ")[0] for line in groups.lines() if "; the first" in line]
    assert errors == ["2 \N{MULTIPLICATION SIGN} ValueError: the error of a"]


def test_a_group_without_failures_is_not_among_the_latest() -> None:
    groups = FailureGroups()
    fail(groups, "a", "task.1")
    groups.discard(fail(groups, "b", "task.2"), "task.2")
    assert [group.name for group in groups.latest] == ["a"]
