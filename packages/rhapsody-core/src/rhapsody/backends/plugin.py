"""Declaration of the backends that come with core, made like that of any plugin."""

from __future__ import annotations

from rhapsody.plugins.specs import BackendSpec, hookimpl


@hookimpl
def rhapsody_backends() -> list[BackendSpec]:
    """Declare the backends of core; `local` with the capabilities of its default, threads."""
    from rhapsody.backends.local.backend import THREADS
    from rhapsody.backends.noop import NoopExecutionBackend

    return [
        BackendSpec(
            name="noop",
            import_path="rhapsody.backends.noop:NoopExecutionBackend",
            summary="completes each task at once without running it, for dry runs",
            capabilities=NoopExecutionBackend.capabilities,
        ),
        BackendSpec(
            name="local",
            import_path="rhapsody.backends.local:LocalExecutionBackend",
            summary="threads, processes and executables on this machine",
            requires=("cloudpickle>=3.0",),
            capabilities=THREADS,
        ),
    ]
