"""Backends: what runs the tasks. This package's names, imported when they are first used.

The interface is in `base`, the registry in `discovery`; `noop` and `local` come
with core, others are plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody._exports import DASK, RADICAL, lazy

if TYPE_CHECKING:
    from rhapsody.backends.base import (
        BaseBackend,
        BaseExecutionBackend,
        Capabilities,
        CompletedExecutable,
        ManagedBackend,
        Session,
    )
    from rhapsody.backends.discovery import (
        BackendDescription,
        BackendRegistry,
        discover_backends,
        get_backend,
    )
    from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend
    from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
    from rhapsody.backends.local import ConcurrentExecutionBackend, LocalExecutionBackend
    from rhapsody.backends.noop import NoopExecutionBackend
    from rhapsody.backends.options import backend_from_options
    from rhapsody.plugins.specs import BackendSpec
    from rhapsody.states import StateMapper, TasksMainStates

    __all__ = [
        "BackendDescription",
        "BackendRegistry",
        "BackendSpec",
        "BaseBackend",
        "BaseExecutionBackend",
        "Capabilities",
        "CompletedExecutable",
        "ConcurrentExecutionBackend",
        "DaskExecutionBackend",
        "LocalExecutionBackend",
        "ManagedBackend",
        "NoopExecutionBackend",
        "RadicalExecutionBackend",
        "Session",
        "StateMapper",
        "TasksMainStates",
        "backend_from_options",
        "discover_backends",
        "get_backend",
    ]
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "BackendDescription": "rhapsody.backends.discovery",
            "BackendRegistry": "rhapsody.backends.discovery",
            "BackendSpec": "rhapsody.plugins.specs",
            "BaseBackend": "rhapsody.backends.base",
            "BaseExecutionBackend": "rhapsody.backends.base",
            "Capabilities": "rhapsody.backends.base",
            "CompletedExecutable": "rhapsody.backends.base",
            "ConcurrentExecutionBackend": "rhapsody.backends.local",
            "DaskExecutionBackend": DASK,
            "LocalExecutionBackend": "rhapsody.backends.local",
            "ManagedBackend": "rhapsody.backends.base",
            "NoopExecutionBackend": "rhapsody.backends.noop",
            "RadicalExecutionBackend": RADICAL,
            "Session": "rhapsody.backends.base",
            "StateMapper": "rhapsody.states",
            "TasksMainStates": "rhapsody.states",
            "backend_from_options": "rhapsody.backends.options",
            "discover_backends": "rhapsody.backends.discovery",
            "get_backend": "rhapsody.backends.discovery",
        },
    )
