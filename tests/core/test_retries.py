"""Retry policies: the failures after which a task is tried again."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody.task import RetryPolicy, as_policies


def test_a_number_of_retries_is_a_policy_that_waits_for_nothing() -> None:
    policy = RetryPolicy(attempts=3, wait=0.0, on=Exception)
    assert as_policies(3) == (policy,)
    assert policy.delay(1) == 0.0


def test_the_wait_may_be_text() -> None:
    assert RetryPolicy(wait="3 min") == RetryPolicy(wait=180)
    assert RetryPolicy(wait=lambda attempt: f"{attempt} min").delay(2) == 120.0


def test_several_policies_stay_in_their_order() -> None:
    policies = [RetryPolicy(3, on=MemoryError), RetryPolicy(1)]
    assert as_policies(policies) == tuple(policies)
    assert as_policies(policies[0]) == (policies[0],)
    assert as_policies(()) == as_policies(0)
    assert as_policies(None) is None


@pytest.mark.parametrize("given", [[2], [RetryPolicy(), "one"], [[RetryPolicy()]]])
def test_what_is_no_policy_among_several_is_an_error_that_shows_how_it_is_written(
    given: Any,
) -> None:
    with pytest.raises(TypeError, match=r"retries must be .* such as \[RetryPolicy\(3, on=Mem"):
        as_policies(given)


def test_the_wait_may_be_a_callable_from_the_attempt_to_seconds() -> None:
    policy = RetryPolicy(attempts=5, wait=lambda attempt: 2**attempt)
    assert [policy.delay(attempt) for attempt in (1, 2, 3)] == [2.0, 4.0, 8.0]
    with pytest.raises(ValueError, match="wait must be a finite, non-negative number"):
        RetryPolicy(wait=lambda attempt: -1.0).delay(1)
    with pytest.raises(ValueError, match="wait must be a number of seconds or text"):
        RetryPolicy(wait=lambda attempt: "soon").delay(1)


@pytest.mark.parametrize(
    ("values", "error", "complaint"),
    [
        ({"attempts": -1}, ValueError, "retries must be 0 or more, got -1"),
        ({"attempts": 1.5}, TypeError, "retries must be a whole number, got 1.5"),
        ({"attempts": True}, TypeError, "retries must be a whole number"),
        ({"attempts": "2"}, TypeError, "retries must be a whole number"),
        ({"wait": -0.5}, ValueError, "wait must be a finite, non-negative number"),
        ({"wait": [1]}, TypeError, "wait must be a number"),
        ({"wait": "soon"}, ValueError, "wait must be a number of seconds or text"),
        (
            {"on": "ValueError"},
            TypeError,
            "on must be an exception type or a list of these, got 'ValueError'",
        ),
        (
            {"on": (ValueError, 3)},
            TypeError,
            "on must be an exception type or a list of these, got 3",
        ),
        ({"on": int}, TypeError, "on must be an exception type or a list of these"),
    ],
)
def test_a_policy_that_cannot_be_is_an_error_that_names_what_was_given(
    values: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        RetryPolicy(**values)


@pytest.mark.parametrize("collection", [list, set, tuple, iter])
def test_a_policy_takes_exception_types_in_whatever_collection(collection: Any) -> None:
    policy = RetryPolicy(on=collection([ValueError, KeyError]))
    assert policy.covers(ValueError())
    assert policy.covers(KeyError())
    assert not policy.covers(TypeError())


def test_a_number_of_retries_may_be_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    (policy,) = as_policies(numpy.int64(2)) or ()
    assert (policy.attempts, type(policy.attempts)) == (2, int)
    with pytest.raises(TypeError, match="whole number"):
        as_policies(numpy.float32(1.5))
