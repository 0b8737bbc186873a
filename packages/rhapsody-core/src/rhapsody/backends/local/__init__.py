"""Local backend: runs functions on threads or in processes, and executables, on this machine."""

from __future__ import annotations

from rhapsody.backends.local.backend import ConcurrentExecutionBackend, LocalExecutionBackend

__all__ = ["ConcurrentExecutionBackend", "LocalExecutionBackend"]
