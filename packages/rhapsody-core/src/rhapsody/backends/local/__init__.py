"""The embedded backend: threads, processes and programs on this machine."""

from __future__ import annotations

from rhapsody.backends.local.backend import ConcurrentExecutionBackend, LocalExecutionBackend

__all__ = ["ConcurrentExecutionBackend", "LocalExecutionBackend"]
