"""`NoopExecutionBackend` under an import path that existing programs use."""

from rhapsody.backends.noop import NoopExecutionBackend

__all__ = ["NoopExecutionBackend"]
