"""Declares the backend to Rhapsody's registry. Imports neither RADICAL-Pilot nor the backend."""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendSpec


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """The backend `radical_pilot`, with what it can do on one machine."""
    from rhapsody_radical.capabilities import RAPTOR

    return BackendSpec(
        name="radical_pilot",
        import_path="rhapsody_radical.backend:RadicalExecutionBackend",
        summary="pilots of RADICAL-Pilot: this machine, or supercomputers by their batch systems",
        requires=("radical.pilot>=1.103.2,<1.104", "cloudpickle>=3.0", "psutil>=5.9"),
        capabilities=RAPTOR,
        install_hint="pip install rhapsody-radical",
    )
