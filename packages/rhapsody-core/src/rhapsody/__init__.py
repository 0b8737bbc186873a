"""Workflows of functions, executables and services, on whichever backend there is.

The names listed here are the public interface; each is imported when it is first
used, so that `import rhapsody` is quick and imports no backend's library. What
they are is documented where they live.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rhapsody._exports import DASK, RADICAL, lazy

if sys.platform.startswith("win"):
    from rhapsody_guard import UNSUPPORTED

    raise ImportError(UNSUPPORTED)

if TYPE_CHECKING:
    from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
    from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend
    from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
    from rhapsody.backends.local import ConcurrentExecutionBackend, LocalExecutionBackend
    from rhapsody.backends.noop import NoopExecutionBackend
    from rhapsody.context import current_task
    from rhapsody.data import InputFile, InputFiles, OutputDir, OutputFile
    from rhapsody.engine import WorkflowEngine, literal, run, wait
    from rhapsody.engine.settings import TaskSettings
    from rhapsody.errors import (
        BackendError,
        BackendUnavailableError,
        CapabilityError,
        DataError,
        DependencyFailureError,
        InsufficientWalltimeError,
        JournalError,
        OutOfMemoryError,
        PluginError,
        RhapsodyError,
        SubmissionError,
        TaskFailedError,
        TaskLostError,
        TaskTimeoutError,
    )
    from rhapsody.plugins.specs import hookimpl
    from rhapsody.resources import Resources
    from rhapsody.retries import RetryPolicy
    from rhapsody.states import StateMapper, TasksMainStates
    from rhapsody.task import TaskDescription, TaskFuture

    __version__: str
    __all__ = [
        "BackendError",
        "BackendRegistry",
        "BackendUnavailableError",
        "CapabilityError",
        "ConcurrentExecutionBackend",
        "DaskExecutionBackend",
        "DataError",
        "DependencyFailureError",
        "InputFile",
        "InputFiles",
        "InsufficientWalltimeError",
        "JournalError",
        "LocalExecutionBackend",
        "NoopExecutionBackend",
        "OutOfMemoryError",
        "OutputDir",
        "OutputFile",
        "PluginError",
        "RadicalExecutionBackend",
        "Resources",
        "RetryPolicy",
        "RhapsodyError",
        "StateMapper",
        "SubmissionError",
        "TaskDescription",
        "TaskFailedError",
        "TaskFuture",
        "TaskLostError",
        "TaskSettings",
        "TaskTimeoutError",
        "TasksMainStates",
        "WorkflowEngine",
        "__version__",
        "current_task",
        "discover_backends",
        "get_backend",
        "hookimpl",
        "literal",
        "run",
        "wait",
    ]
else:
    _ERRORS = (
        "BackendError",
        "BackendUnavailableError",
        "CapabilityError",
        "DataError",
        "DependencyFailureError",
        "JournalError",
        "OutOfMemoryError",
        "PluginError",
        "RhapsodyError",
        "SubmissionError",
        "TaskFailedError",
        "InsufficientWalltimeError",
        "TaskLostError",
        "TaskTimeoutError",
    )
    __getattr__, __dir__ = lazy(
        __name__,
        {
            **dict.fromkeys(_ERRORS, "rhapsody.errors"),
            "BackendRegistry": "rhapsody.backends.discovery",
            "ConcurrentExecutionBackend": "rhapsody.backends.local",
            "DaskExecutionBackend": DASK,
            "InputFile": "rhapsody.data",
            "InputFiles": "rhapsody.data",
            "LocalExecutionBackend": "rhapsody.backends.local",
            "NoopExecutionBackend": "rhapsody.backends.noop",
            "OutputDir": "rhapsody.data",
            "OutputFile": "rhapsody.data",
            "RadicalExecutionBackend": RADICAL,
            "Resources": "rhapsody.resources",
            "RetryPolicy": "rhapsody.retries",
            "StateMapper": "rhapsody.states",
            "TaskDescription": "rhapsody.task",
            "TaskFuture": "rhapsody.task",
            "TaskSettings": "rhapsody.engine.settings",
            "TasksMainStates": "rhapsody.states",
            "WorkflowEngine": "rhapsody.engine",
            "__version__": "rhapsody._version",
            "current_task": "rhapsody.context",
            "discover_backends": "rhapsody.backends.discovery",
            "get_backend": "rhapsody.backends.discovery",
            "hookimpl": "rhapsody.plugins.specs",
            "literal": "rhapsody.engine",
            "run": "rhapsody.engine",
            "wait": "rhapsody.engine",
        },
    )
