"""Fixtures that these tests share with those of core, and marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests._support.accounts import accounts
from tests._support.command_line import run

__all__ = ["accounts", "run"]

HERE = Path(__file__).parent

MINIMUMS = {"test_pages", "test_provenance", "dashboard/test_server"}
"""Modules that test the code that uses Bokeh, Jinja, rocrate, Starlette or uvicorn."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those modules' tests."""
    for item in items:
        if item.path.is_relative_to(HERE):
            module = item.path.relative_to(HERE).with_suffix("").as_posix()
            if module in MINIMUMS:
                item.add_marker(pytest.mark.minimums)
