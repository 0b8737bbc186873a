"""Declaration of the Dragon backend for Rhapsody's registry.

This module imports neither Dragon nor the class of the backend.
"""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities

CAPABILITIES = Capabilities(
    services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset({"process_template", "process_templates"}),
    resources=frozenset({"cores", "fractional_cores", "gpus", "memory", "walltime"}),
    binds=frozenset({"cores", "gpus"}),
    captures_output=True,
    reports_running=True,
    worker_values=True,
)
"""Environment variables bind tasks to their cores and GPUs."""

OPTIONS = (
    BackendOption(
        "cores",
        int,
        help="Number of cores of each node for tasks. Default: the cores that Dragon may use.",
    ),
    BackendOption(
        "gpus",
        int | list,
        help="Number of GPUs of each node, or a list of devices as in CUDA_VISIBLE_DEVICES. "
        "Default: the GPUs that Dragon finds.",
    ),
    BackendOption(
        "grace",
        float | str,
        5.0,
        "Time between SIGTERM and SIGKILL when a task is stopped, in seconds or as text.",
    ),
    BackendOption(
        "start_timeout",
        float | str,
        120.0,
        "Time within which Dragon must be running on all nodes, in seconds or as text.",
    ),
    BackendOption(
        "batch_kwargs",
        dict,
        help="Options of Dragon's Batch, which other projects accept; they have no effect.",
    ),
    BackendOption("name", str, "dragon", "Name of the backend in an engine."),
)
"""The options that can be set in files and on the command line."""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Return the declaration of the backend `dragon`."""
    return BackendSpec(
        name="dragon",
        import_path="rhapsody_dragon.backend:DragonExecutionBackend",
        summary="the nodes of an allocation, through the Dragon runtime",
        requires=("dragonhpc>=0.15,<0.16",),
        capabilities=CAPABILITIES,
        install_hint="pip install rhapsody-dragon",
        options=OPTIONS,
    )
