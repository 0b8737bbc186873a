"""Tools for tests of backends and workflows: conformance checks, a driver, an event recorder.

`BackendConformance` is imported on first use, because only this class needs pytest, pytest-asyncio,
pytest-timeout and psutil. Worker processes import the functions that the checks run, and their
environment may contain none of these packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody_testing._interface import API_VERSION
from rhapsody_testing._tools import (
    Driver,
    EventRecorder,
    Fault,
    Finished,
    Report,
    capability_table,
)

if TYPE_CHECKING:
    from rhapsody_testing._conformance import BackendConformance

    __version__: str

__all__ = [
    "API_VERSION",
    "BackendConformance",
    "Driver",
    "EventRecorder",
    "Fault",
    "Finished",
    "Report",
    "__version__",
    "capability_table",
]


def __getattr__(name: str) -> Any:
    if name == "BackendConformance":
        from rhapsody_testing._conformance import BackendConformance

        return BackendConformance
    if name == "__version__":
        from importlib.metadata import version

        return version("rhapsody-testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
