"""Backends, which run the engine's tasks: their interface, base classes and registry.

This is a public package for plugin authors. Its names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody._exports import lazy
from rhapsody.known import CLASSES

if TYPE_CHECKING:
    from rhapsody.backends.base import (
        BackendState,
        BaseBackend,
        BaseExecutionBackend,
        CancelLevel,
        Capabilities,
        CompletedExecutable,
        ManagedBackend,
        ReferenceLostError,
        Session,
        TaskCallback,
    )
    from rhapsody.backends.commands import CommandBackend, run_command
    from rhapsody.backends.discovery import (
        BackendDescription,
        BackendRegistry,
        backend_from_options,
        discover_backends,
        get_backend,
    )
    from rhapsody.backends.environment_calls import EnvironmentCall
    from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend
    from rhapsody.backends.execution.dragon import (
        DragonExecutionBackend,
        DragonExecutionBackendV3,
    )
    from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
    from rhapsody.backends.local import ConcurrentExecutionBackend, LocalExecutionBackend
    from rhapsody.backends.noop import NoopExecutionBackend
    from rhapsody.backends.programs import LocalPrograms, SharedSandboxes
    from rhapsody.environments import in_environment
    from rhapsody.masking import looks_secret
    from rhapsody.plugins.options import BackendOption
    from rhapsody.plugins.specs import BackendSpec
    from rhapsody.states import StateMapper, TasksMainStates
    from rhapsody.task import HeldValue

    __all__ = [
        "BackendDescription", "BackendOption", "BackendRegistry", "BackendSpec", "BackendState",
        "BaseBackend", "BaseExecutionBackend", "CancelLevel", "Capabilities",
        "CommandBackend", "CompletedExecutable", "ConcurrentExecutionBackend",
        "DaskExecutionBackend", "DragonExecutionBackend", "DragonExecutionBackendV3",
        "EnvironmentCall", "HeldValue", "LocalExecutionBackend", "LocalPrograms", "ManagedBackend",
        "NoopExecutionBackend", "RadicalExecutionBackend", "ReferenceLostError", "Session",
        "SharedSandboxes", "StateMapper", "TaskCallback", "TasksMainStates",
        "backend_from_options", "discover_backends", "get_backend", "in_environment",
        "looks_secret", "run_command",
    ]  # fmt: skip
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "rhapsody.backends.base": (
                "BackendState BaseBackend BaseExecutionBackend CancelLevel Capabilities "
                "CompletedExecutable ManagedBackend ReferenceLostError Session TaskCallback"
            ),
            "rhapsody.backends.commands": "CommandBackend run_command",
            "rhapsody.backends.discovery": (
                "BackendDescription BackendRegistry backend_from_options discover_backends "
                "get_backend"
            ),
            "rhapsody.backends.environment_calls": "EnvironmentCall",
            **CLASSES,
            "rhapsody.backends.local": "ConcurrentExecutionBackend LocalExecutionBackend",
            "rhapsody.backends.noop": "NoopExecutionBackend",
            "rhapsody.backends.programs": "LocalPrograms SharedSandboxes",
            "rhapsody.environments": "in_environment",
            "rhapsody.masking": "looks_secret",
            "rhapsody.task": "HeldValue",
            "rhapsody.plugins.options": "BackendOption",
            "rhapsody.plugins.specs": "BackendSpec",
            "rhapsody.states": "StateMapper TasksMainStates",
        },
    )
