"""Tools for tests of backends and workflows: conformance checks, a driver, an event recorder.

`BackendConformance` is imported on first use, because only this class needs pytest, pytest-asyncio,
pytest-timeout and psutil, which the extra `rhapsody-core[testing]` installs. Worker processes
import the functions that the checks run, but need none of these packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.testing._tools import (
    Driver,
    EventRecorder,
    Fault,
    Finished,
    Report,
    capability_table,
)

if TYPE_CHECKING:
    from rhapsody.testing._conformance import BackendConformance

__all__ = [
    "BackendConformance",
    "Driver",
    "EventRecorder",
    "Fault",
    "Finished",
    "Report",
    "capability_table",
]


def __getattr__(name: str) -> Any:
    """Import the conformance kit on first use."""
    if name == "BackendConformance":
        from rhapsody.testing._conformance import BackendConformance

        return BackendConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
