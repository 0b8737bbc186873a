"""Report page, live dashboard and RO-Crates of Rhapsody's runs.

The command line imports this package for its commands and options, so importing it must be quick.
The names below are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard

if TYPE_CHECKING:
    from rhapsody_report.pages import page, sections
    from rhapsody_report.provenance import ro_crate

    __version__: str

rhapsody_guard.check()

__all__ = ["__version__", "page", "ro_crate", "sections"]


def __getattr__(name: str) -> Any:
    if name in ("page", "sections"):
        from rhapsody_report import pages

        return getattr(pages, name)
    if name == "ro_crate":
        from rhapsody_report.provenance import ro_crate

        return ro_crate
    if name == "__version__":
        from importlib.metadata import version

        return version("rhapsody-report")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
