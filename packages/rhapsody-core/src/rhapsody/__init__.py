"""Workflows of functions, executables and services on interchangeable backends.

The names below are the public interface for users. Each is imported on first use, so that
`import rhapsody` is quick and imports no backend's library. Plugin authors use four more packages:
`rhapsody.backends`, `rhapsody.history`, `rhapsody.plugins` and `rhapsody.sdk`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rhapsody._exports import lazy
from rhapsody.known import CLASSES, SESSION_NAMES

if sys.platform.startswith("win"):
    from rhapsody_guard import UNSUPPORTED

    raise ImportError(UNSUPPORTED)

if TYPE_CHECKING:
    from rhapsody.api import (
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
    from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
    from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend
    from rhapsody.backends.execution.dragon import (
        DragonExecutionBackend,
        DragonExecutionBackendV3,
    )
    from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
    from rhapsody.backends.local import ConcurrentExecutionBackend, LocalExecutionBackend
    from rhapsody.backends.noop import NoopExecutionBackend
    from rhapsody.context import current_task
    from rhapsody.data import InputFile, InputFiles, OutputDir, OutputFile
    from rhapsody.engine import WorkflowEngine, literal, run, wait
    from rhapsody.engine.configuration.settings import TaskSettings
    from rhapsody.errors import (
        BackendError,
        BackendUnavailableError,
        CapabilityError,
        DataError,
        DependencyFailureError,
        InputChangedError,
        InsufficientWalltimeError,
        JournalError,
        OutOfMemoryError,
        PluginError,
        ProfileError,
        RhapsodyError,
        SubmissionError,
        TaskFailedError,
        TaskLostError,
        TaskTimeoutError,
        WorkerValueError,
    )
    from rhapsody.plugins.specs import hookimpl
    from rhapsody.resources import Resources
    from rhapsody.sdk.runs import own_runs, reserve_run
    from rhapsody.sdk.value_handles import WorkerValue
    from rhapsody.states import StateMapper, TasksMainStates
    from rhapsody.task import RetryPolicy, TaskDescription, TaskFuture, Usage

    __version__: str

    __all__ = [
        "AITask", "BackendError", "BackendRegistry", "BackendUnavailableError", "BaseTask",
        "CapabilityError", "ComputeTask", "ConcurrentExecutionBackend", "DaskExecutionBackend",
        "DataError", "DependencyFailureError", "DragonExecutionBackend", "DragonExecutionBackendV3",
        "InputChangedError", "InputFile", "InputFiles",
        "InsufficientWalltimeError", "JournalError", "LocalExecutionBackend",
        "NoopExecutionBackend", "OutOfMemoryError", "OutputDir", "OutputFile", "PluginError",
        "ProfileError", "RadicalExecutionBackend", "ResourceError", "Resources", "RetryPolicy",
        "RhapsodyError", "Session", "SessionError", "StateMapper", "SubmissionError",
        "TaskDescription", "TaskExecutionError", "TaskFailedError", "TaskFuture", "TaskLostError",
        "TaskSettings", "TaskTimeoutError", "TaskValidationError", "TasksMainStates", "Usage",
        "WorkerValue", "WorkerValueError", "WorkflowEngine", "__version__", "current_task",
        "discover_backends", "enable_logging", "get_backend", "hookimpl", "literal", "own_runs",
        "reserve_run", "run", "wait",
    ]  # fmt: skip
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "rhapsody._version": "__version__",
            "rhapsody.backends.discovery": "BackendRegistry discover_backends get_backend",
            **CLASSES,
            **SESSION_NAMES,
            "rhapsody.backends.local": "ConcurrentExecutionBackend LocalExecutionBackend",
            "rhapsody.backends.noop": "NoopExecutionBackend",
            "rhapsody.context": "current_task",
            "rhapsody.data": "InputFile InputFiles OutputDir OutputFile",
            "rhapsody.engine": "WorkflowEngine literal run wait",
            "rhapsody.engine.configuration.settings": "TaskSettings",
            "rhapsody.errors": (
                "BackendError BackendUnavailableError CapabilityError DataError "
                "DependencyFailureError InputChangedError InsufficientWalltimeError JournalError "
                "OutOfMemoryError PluginError ProfileError RhapsodyError SubmissionError "
                "TaskFailedError TaskLostError TaskTimeoutError WorkerValueError"
            ),
            "rhapsody.plugins.specs": "hookimpl",
            "rhapsody.resources": "Resources",
            "rhapsody.sdk.runs": "own_runs reserve_run",
            "rhapsody.states": "StateMapper TasksMainStates",
            "rhapsody.task": "RetryPolicy TaskDescription TaskFuture Usage",
            "rhapsody.sdk.value_handles": "WorkerValue",
        },
    )
