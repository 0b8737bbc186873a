"""Tests of suggestions for misspelled names."""

from __future__ import annotations

from rhapsody.spelling import similar, suggestion

NAMES = ("cores", "gpus", "memory")


def test_the_closest_name_is_suggested() -> None:
    assert suggestion("coers", iter(NAMES), "keys") == "; did you mean 'cores'?"


def test_all_names_are_listed_if_none_is_close() -> None:
    assert suggestion("x", iter(NAMES), "keys") == "; the keys are cores, gpus, memory"
    assert suggestion("x", NAMES) == ""


def test_names_of_any_type_are_compared() -> None:
    assert suggestion(7, NAMES) == ""
    assert similar("memry", NAMES, 2) == ["memory"]
