"""Errors, under their module's name in radical.asyncflow."""

from __future__ import annotations

from rhapsody import DependencyFailureError

__all__ = ["DependencyFailureError"]
