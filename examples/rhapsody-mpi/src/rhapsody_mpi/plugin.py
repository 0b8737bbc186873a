"""Declaration of the backend. It imports none of the libraries that the backend uses."""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities

CAPABILITIES = Capabilities(
    # A worker can stop its coroutine or program, but not an ordinary function.
    cancel_functions="queued",
    cancel_async_functions="running",
    cancel_executables="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset(),
    captures_output=True,
    reports_running=True,
)


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Declare the backend."""
    return BackendSpec(
        name="mpi",
        import_path="rhapsody_mpi.backend:MPIBackend",
        summary="functions and executables on the processes of an MPI job",
        api_version=1,
        requires=("mpi4py>=4.0",),
        capabilities=CAPABILITIES,
        install_hint="pip install rhapsody-mpi mpich",
        options=(
            BackendOption("workers", int, help="Number of processes to start."),
            BackendOption("name", str, "mpi", "Name of the backend in an engine."),
        ),
    )
