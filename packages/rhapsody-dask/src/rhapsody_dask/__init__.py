"""Rhapsody's backend for Dask. Its names are imported when they are first used.

The registry of backends imports this module to read the plugin's declaration, so it must not import
Dask; that happens when the backend's class is used.
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
