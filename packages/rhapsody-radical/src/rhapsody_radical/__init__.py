"""RADICAL-Pilot backend for Rhapsody.

The registry of backends imports this package to read the plugin's declaration, so importing this
package must be quick. The public names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import rhapsody_guard

if TYPE_CHECKING:
    from rhapsody_radical.backend import RadicalExecutionBackend
    from rhapsody_radical.services import service_ready_callback

    __version__: str

rhapsody_guard.check()

__all__ = ["RadicalExecutionBackend", "__version__", "service_ready_callback"]


_MODULES = {"RadicalExecutionBackend": "backend", "service_ready_callback": "services"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rhapsody-radical")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
