"""Identities of calls and attempts, and their texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.identity import attempt_text, call_text, label, split_label, without_engine
from rhapsody.plugins import AttemptId, TaskId

numbers = st.integers(min_value=1, max_value=10**9)


@given(st.text(min_size=1), numbers, numbers)
def test_an_identity_is_read_from_its_text_whatever_the_engine_is_called(
    engine: str, number: int, attempt: int
) -> None:
    identity = AttemptId(TaskId(engine, number), attempt)
    assert AttemptId.of(str(identity)) == identity
    assert str(identity) == attempt_text(engine, number, attempt)
    assert str(identity) == f"{identity.task}.{attempt}"
    assert str(identity.task) == f"{engine}.{identity.task.label}"


def test_the_texts_are_those_that_users_know() -> None:
    assert attempt_text("main", 1, 2) == "main.task.000001.2"
    assert label(12, "block") == "block.000012"
    assert label("7") == "task.000007"
    assert split_label("block.000012") == ("block", "000012")
    assert without_engine("main.task.000001") == without_engine("task.000001") == "task.000001"


@pytest.mark.parametrize("text", ["", "main", "main.loop", "main.block.000001.1", "a.task.x.1"])
def test_a_text_that_is_not_the_uid_of_an_attempt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a uid such as"):
        AttemptId.of(text)


def test_the_text_of_a_call_is_that_of_its_attempts() -> None:
    uid = "main.loop.task.000012.3"
    assert call_text(uid) == str(AttemptId.of(uid).task) == "main.loop.task.000012"
