"""Dragon backend for Rhapsody.

The registry of backends imports this package to read the plugin's declaration, so importing this
package must be quick. The backend's class is imported when `DragonExecutionBackend` is first
accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard

if TYPE_CHECKING:
    from rhapsody_dragon.backend import DragonExecutionBackend

    __version__: str

rhapsody_guard.check()

__all__ = ["DragonExecutionBackend", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "DragonExecutionBackend":
        from rhapsody_dragon.backend import DragonExecutionBackend

        return DragonExecutionBackend
    if name == "__version__":
        from importlib.metadata import version

        return version("rhapsody-dragon")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
