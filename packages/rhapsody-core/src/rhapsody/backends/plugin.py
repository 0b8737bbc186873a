"""Declaration of core's own backends, in the same form as in any other plugin.

Listing backends imports this module, so it is separate from the modules of the backends.
"""

from __future__ import annotations

from rhapsody.plugins.specs import BackendSpec, hookimpl


@hookimpl
def rhapsody_backends() -> list[BackendSpec]:
    """Declare core's backends, `local` with the capabilities of its thread executor."""
    from rhapsody.backends.local.backend import OPTIONS, THREADS
    from rhapsody.backends.noop import NoopExecutionBackend

    return [
        BackendSpec(
            name="noop",
            import_path="rhapsody.backends.noop:NoopExecutionBackend",
            summary="completes each task immediately without running it, for dry runs",
            capabilities=NoopExecutionBackend.capabilities,
        ),
        BackendSpec(
            name="local",
            import_path="rhapsody.backends.local:LocalExecutionBackend",
            summary="threads, processes and executables on this machine",
            capabilities=THREADS,
            options=OPTIONS,
        ),
    ]
