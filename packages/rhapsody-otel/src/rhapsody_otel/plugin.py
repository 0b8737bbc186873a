"""Entry point of the plugin: adds an observer to each engine if OpenTelemetry is configured."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from rhapsody import hookimpl

log: logging.Logger = logging.getLogger("rhapsody.otel")


@hookimpl
def rhapsody_observers(observers: Sequence[object]) -> Sequence[object]:
    """Return an observer if OpenTelemetry is configured and the engine has no such observer."""
    if not ("opentelemetry" in sys.modules or any(name.startswith("OTEL_") for name in os.environ)):
        return ()
    try:
        from rhapsody_otel.configuration import configure
        from rhapsody_otel.observer import OpenTelemetryObserver

        if any(isinstance(each, OpenTelemetryObserver) for each in observers) or not configure():
            return ()
    except (ImportError, ValueError) as error:
        log.error("no traces, metrics and logs are sent: %s", error)
        return ()
    return [OpenTelemetryObserver()]
