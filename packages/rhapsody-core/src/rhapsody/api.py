"""Tasks and sessions of rhapsody-py, which come with `rhapsody-asyncflow`."""

try:
    from rhapsody_asyncflow import (  # type: ignore[import-not-found,unused-ignore]
        AITask,
        BaseTask,
        ComputeTask,
        ResourceError,
        Session,
        SessionError,
        TaskExecutionError,
        TaskValidationError,
        enable_logging,
    )
except ImportError as _error:
    from rhapsody.plugins.manager import missing_plugin

    raise missing_plugin("rhapsody.api", "rhapsody-asyncflow", _error) from _error

from rhapsody.errors import BackendError, RhapsodyError

__all__ = [
    "AITask",
    "BackendError",
    "BaseTask",
    "ComputeTask",
    "ResourceError",
    "RhapsodyError",
    "Session",
    "SessionError",
    "TaskExecutionError",
    "TaskValidationError",
    "enable_logging",
]
