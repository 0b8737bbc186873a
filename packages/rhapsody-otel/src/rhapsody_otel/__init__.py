"""Traces, metrics and logs of Rhapsody workflows for OpenTelemetry.

The plugin adds an observer to each engine if OpenTelemetry is configured; see `configure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard
from rhapsody_otel._version import __version__

if TYPE_CHECKING:
    from rhapsody_otel.configuration import configure
    from rhapsody_otel.observer import OpenTelemetryObserver

rhapsody_guard.check()

__all__ = ["OpenTelemetryObserver", "__version__", "configure"]


def __getattr__(name: str) -> Any:
    # Importing OpenTelemetry takes a tenth of a second, which every command would pay.
    if name == "configure":
        from rhapsody_otel.configuration import configure

        return configure
    if name == "OpenTelemetryObserver":
        from rhapsody_otel.observer import OpenTelemetryObserver

        return OpenTelemetryObserver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
