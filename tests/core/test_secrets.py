"""Tests that values of tasks' variables are in nothing that a run leaves or shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.masking import looks_secret, mask, secrets_of, values_of
from rhapsody.plugins.specs import TaskCall
from tests._support.marker import check_no_secrets


def test_a_run_on_threads(here: Path) -> None:
    check_no_secrets(here, functions=False)


def test_a_run_in_processes(here: Path) -> None:
    check_no_secrets(here, "-o", "executor=process")


@pytest.mark.parametrize(
    ("name", "secret"),
    {
        "API_TOKEN": True,
        "github_token": True,
        "TOKENS": True,
        "AWS_SECRET_ACCESS_KEY": True,
        "AWS_ACCESS_KEY_ID": True,
        "PGPASSWORD": True,
        "DB_PASS": True,
        "GOOGLE_APPLICATION_CREDENTIALS": True,
        "TOKENIZERS_PARALLELISM": False,
        "KEYBOARD": False,
        "PASSES": False,
        "PATH": False,
    }.items(),
)
def test_names_tell_what_is_secret(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


def test_a_secret_that_begins_with_another_one_is_masked_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-secret-value")
    environment = {"MODE": "a-secret-value-and-more", "PLACE": "a-secret"}
    call = TaskCall("task.000001", "f", "function", "f()", 0.0, secrets=values_of(environment))
    text = "a-secret-value, a-secret, a-secret-value-and-more"
    for found in (call.masked(text), mask(text, secrets_of(environment))):
        assert found == "<API_TOKEN>, <PLACE>, <MODE>"


def test_both_values_of_a_variable_that_a_task_changes_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "of-the-process")
    found = mask("of-the-process, of-the-task", secrets_of({"API_TOKEN": "of-the-task"}))
    assert found == "<API_TOKEN>, <API_TOKEN>"
