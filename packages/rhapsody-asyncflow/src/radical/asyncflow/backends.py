"""Backends, under their module's name in radical.asyncflow."""

from __future__ import annotations

from rhapsody import LocalExecutionBackend, NoopExecutionBackend

__all__ = ["LocalExecutionBackend", "NoopExecutionBackend"]
