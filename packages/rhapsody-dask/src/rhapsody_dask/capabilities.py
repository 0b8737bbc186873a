"""What the Dask backend can do. Imports nothing heavy."""

from __future__ import annotations

from rhapsody.backends import Capabilities

ANNOTATIONS = frozenset({"priority", "retries", "workers", "allow_other_workers", "resources"})
"""The keys of `task_description` that are handed on to Dask."""

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
"""Where the workers see the same files. Functions run on threads of Dask's workers, so
a function that runs cannot be stopped; coroutines, executables and services can."""
