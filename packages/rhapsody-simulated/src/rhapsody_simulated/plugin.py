"""Declaration of the simulated backend for Rhapsody's registry, without its class."""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities

CAPABILITIES = Capabilities(
    services=True,
    function_services=True,
    function_environments=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    cwd=True,
    files=True,
    shared_file_system=True,
    mpi_functions=True,
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    reports_running=True,
)

OPTIONS = (
    BackendOption("nodes", int, 1, "Number of nodes."),
    BackendOption("cores", int, 1, "Number of cores of each node."),
    BackendOption("gpus", int, 0, "Number of GPUs of each node."),
    BackendOption(
        "duration", float | str | dict, 1.0, "Duration of each task, or a table by task name."
    ),
    BackendOption("startup", float | str, 0.0, "Time that is added to each duration."),
    BackendOption("failure_rate", float, 0.0, "Probability that an attempt is lost."),
    BackendOption("seed", int, 0, "Number that selects the attempts that are lost."),
    BackendOption("queue_time", float | str, 0.0, "Time for which each batch job is queued."),
    BackendOption("walltime", float | str, help="Walltime of each batch job. Default: no limit."),
    BackendOption("engine_time", bool, False, "Add the processor time of the engine."),
    BackendOption("name", str, "simulated", "Name of the backend in an engine."),
)
"""The options that can be set in files and on the command line."""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Return the declaration of the backend `simulated`."""
    return BackendSpec(
        name="simulated",
        import_path="rhapsody_simulated.backend:SimulatedExecutionBackend",
        summary="simulates a cluster in virtual time, without running tasks",
        capabilities=CAPABILITIES,
        options=OPTIONS,
    )
