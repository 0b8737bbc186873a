"""Declaration of the Dask backend for Rhapsody's registry.

This module imports neither Dask nor the class of the backend.
"""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendSpec, Capabilities

ANNOTATIONS = frozenset({"priority", "retries", "workers", "allow_other_workers", "resources"})
"""Keys of `task_description` that are passed to Dask."""

CLUSTER = Capabilities(
    services=True,
    cancel_functions="queued",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    copies_files_out=True,
    task_settings=ANNOTATIONS,
    resources=frozenset({"cores", "fractional_cores", "gpus", "memory", "walltime"}),
    captures_output=True,
    reports_running=True,
    unfinished_dependencies=True,
)
"""Capabilities of a cluster whose workers see the engine's files. Functions run on threads of
Dask's workers, so a running function cannot be stopped. Coroutines, executables and services can be
stopped.
"""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Return the declaration of the backend `dask`, with its capabilities on a LocalCluster."""
    return BackendSpec(
        name="dask",
        import_path="rhapsody_dask.backend:DaskExecutionBackend",
        summary="a Dask cluster: an existing one, or one that the backend starts on this machine",
        requires=("distributed>=2026.3.0,<2026.9", "cryptography>=42.0", "cloudpickle>=3.0"),
        capabilities=CLUSTER,
        install_hint="pip install rhapsody-dask",
    )
