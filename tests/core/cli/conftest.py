"""Fixtures of the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests._support.resumed import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory with a program that is run again and again."""
    return Place(tmp_path)
