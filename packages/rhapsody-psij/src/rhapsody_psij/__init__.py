"""PSI/J backend for Rhapsody.

The registry of backends imports this package to read the plugin's declaration, so this package must
not import PSI/J. The backend's class is imported when `PsijExecutionBackend` is first accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard

if TYPE_CHECKING:
    from rhapsody_psij.backend import PsijExecutionBackend

    __version__: str

rhapsody_guard.check()

__all__ = ["PsijExecutionBackend", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "PsijExecutionBackend":
        from rhapsody_psij.backend import PsijExecutionBackend

        return PsijExecutionBackend
    if name == "__version__":
        from importlib.metadata import version

        return version("rhapsody-psij")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
