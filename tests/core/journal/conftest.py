"""Fixtures of the journal's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.builtin.journal.keys import Keys
from tests._support.journal_keys import keys_in


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of a program in the test's directory."""
    return keys_in(tmp_path)
