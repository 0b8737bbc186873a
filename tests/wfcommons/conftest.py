"""Fixtures that these tests share with those of core."""

from __future__ import annotations

from tests._support.command_line import run

__all__ = ["run"]
