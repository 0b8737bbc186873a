"""`DragonExecutionBackend`, which comes with `rhapsody-dragon`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from rhapsody_dragon import (  # type: ignore[import-not-found,unused-ignore]
        DragonExecutionBackend,
    )
except ImportError as _error:
    from rhapsody.plugins.manager import missing_plugin

    raise missing_plugin("DragonExecutionBackend", "rhapsody-dragon", _error) from _error

if TYPE_CHECKING:
    DragonExecutionBackendV3 = DragonExecutionBackend

__all__ = ["DragonExecutionBackend", "DragonExecutionBackendV3"]


def __getattr__(name: str) -> Any:
    if name == "DragonExecutionBackendV3":  # the name in programs of rhapsody-py
        # They call `multiprocessing.set_start_method("dragon")`, and rely on this import.
        __import__("dragon")
        return DragonExecutionBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
