"""Tests that values of tasks' variables are in nothing that a run leaves or shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.masking import looks_secret
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
