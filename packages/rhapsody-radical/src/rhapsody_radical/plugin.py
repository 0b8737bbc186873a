"""Declaration of the backend for Rhapsody's registry, and its capabilities.

The capabilities depend on how functions run. This module imports neither RADICAL-Pilot nor the
backend.
"""

from __future__ import annotations

from dataclasses import replace

from rhapsody import hookimpl
from rhapsody.backends import BackendSpec, Capabilities
from rhapsody_radical import schema

RAPTOR = Capabilities(
    services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset(schema.TASK),
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    binds=frozenset({"cores"}),
    captures_output=True,
    reports_running=True,
)
"""Capabilities if functions run on Rhapsody's RAPTOR workers, which can kill a call's process."""

EXECUTABLES = RAPTOR
"""Capabilities if functions run as separate programs."""

OTHER_WORKERS = replace(RAPTOR, cancel_functions="none", cancel_async_functions="none")
"""Capabilities with RAPTOR workers of other classes, which cannot cancel a running call."""

NO_FUNCTIONS = replace(RAPTOR, functions=False, sync_functions=False)
"""Capabilities if RAPTOR is disabled: functions cannot run."""


def capabilities_of(functions: str, *, enabled: bool, other_workers: bool) -> Capabilities:
    """Return the capabilities of a backend with these settings."""
    if functions == "executable":
        return EXECUTABLES
    if not enabled:
        return NO_FUNCTIONS
    return OTHER_WORKERS if other_workers else RAPTOR


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Declare the backend `radical_pilot`, with its capabilities on one machine."""
    return BackendSpec(
        name="radical_pilot",
        import_path="rhapsody_radical.backend:RadicalExecutionBackend",
        summary="RADICAL-Pilot's pilots, on this machine or in batch jobs on a supercomputer",
        requires=("radical.pilot>=1.103.2,<1.104", "cloudpickle>=3.0", "psutil>=5.9"),
        capabilities=RAPTOR,
        install_hint="pip install rhapsody-radical",
    )
