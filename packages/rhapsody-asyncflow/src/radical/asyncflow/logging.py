"""Logging, under its module's name in radical.asyncflow."""

from __future__ import annotations

from rhapsody_asyncflow.logs import init_default_logger

__all__ = ["init_default_logger"]
