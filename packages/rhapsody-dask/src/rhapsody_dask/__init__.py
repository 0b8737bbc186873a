"""Dask backend for Rhapsody.

The registry of backends imports this package to read the plugin's declaration, so this package must
not import Dask. The backend's class is imported when `DaskExecutionBackend` is first accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard
from rhapsody_dask._version import __version__

if TYPE_CHECKING:
    from rhapsody_dask.backend import DaskExecutionBackend

rhapsody_guard.check()

__all__ = ["DaskExecutionBackend", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "DaskExecutionBackend":
        from rhapsody_dask.backend import DaskExecutionBackend

        return DaskExecutionBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
