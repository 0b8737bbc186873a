"""Fixtures that these tests share with those of core."""

from __future__ import annotations

from tests.core.conftest import run

__all__ = ["run"]
