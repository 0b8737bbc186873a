"""Malformed replies from workers, each of which fails only its own task."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings

from rhapsody_dask.results import ClusterResults
from rhapsody_dask.task import ClusterTask
from rhapsody_dask.worker.messages import CANCELED, DONE, FAILED, Reply, failure, pack
from tests._support.nonsense import little_memory, nonsense, values

pytestmark = pytest.mark.timeout(60)

GOOD = pack({"a": [1, 2, 3]})[0]
BAD = failure(ValueError("bad")).payload


class Open:
    """Stand-in for an open call."""

    def __init__(self) -> None:
        self.task: Any = {"uid": "task.1", "name": "one", "function": abs}
        self.uid, self.name, self.key = "task.1", "one", "one-session-task.1"
        self.cancelled, self.error = False, None


def settled(reply: Reply) -> tuple[int, Any]:
    """Return how the call of a reply ends, and the call."""
    call, kinds = Open(), list[int]()
    results: Any = ClusterResults.__new__(ClusterResults)
    results.settle = lambda _, kind: kinds.append(kind)
    with little_memory():
        results.receive(cast(ClusterTask, call), reply)
    (kind,) = kinds
    return kind, call


@given(nonsense(GOOD))
@settings(max_examples=50, deadline=None)
def test_a_malformed_value_fails_the_task(payload: bytes) -> None:
    kind, call = settled(Reply(DONE, payload))
    assert (kind == DONE) == ("return_value" in call.task)
    assert (kind == FAILED) == isinstance(call.error, BaseException)


@given(nonsense(BAD))
@settings(max_examples=50, deadline=None)
def test_a_malformed_error_fails_the_task(payload: bytes) -> None:
    kind, call = settled(Reply(FAILED, payload))
    assert kind == FAILED
    assert isinstance(call.error, BaseException) is bool(payload)


@given(values())
@settings(max_examples=50, deadline=None)
def test_an_unknown_kind_of_reply_ends_the_task(kind: Any) -> None:
    assert settled(Reply(kind, GOOD))[0] in (DONE, FAILED, CANCELED)
