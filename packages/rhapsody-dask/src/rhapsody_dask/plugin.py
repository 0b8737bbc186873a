"""Declares the backend to Rhapsody's registry. Imports neither Dask nor the backend."""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.backends import BackendSpec


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """The backend `dask`, with what it can do on a cluster that it starts itself."""
    from rhapsody_dask.capabilities import CLUSTER

    return BackendSpec(
        name="dask",
        import_path="rhapsody_dask.backend:DaskExecutionBackend",
        summary="a Dask cluster: its own on this machine, or one that is there",
        requires=("distributed>=2025.5.0,<2026.9", "cryptography>=42.0", "cloudpickle>=3.0"),
        capabilities=CLUSTER,
        install_hint="pip install rhapsody-dask",
    )
