"""Local backend: runs functions on threads or in processes, and programs, on this machine."""

from __future__ import annotations

from rhapsody.backends.local.backend import ConcurrentExecutionBackend, LocalExecutionBackend

__all__ = ["ConcurrentExecutionBackend", "LocalExecutionBackend"]
