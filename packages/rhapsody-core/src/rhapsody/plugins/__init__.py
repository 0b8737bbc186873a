"""Plugins: what they can declare, observe and decide (`specs`), and how they are run (`manager`).

The names listed here are for authors of plugins; each is imported when it is first used.
Backend classes are no business of this package; see `rhapsody.backends`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody._exports import lazy

if TYPE_CHECKING:
    from rhapsody.plugins.specs import (
        API_VERSION,
        BackendSpec,
        CommandLine,
        LookupTask,
        ObservedEngine,
        Record,
        Recorded,
        Stats,
        Summary,
        TaskEvent,
        TaskFiles,
        UsageError,
        hookimpl,
    )

    __all__ = [
        "API_VERSION",
        "BackendSpec",
        "CommandLine",
        "LookupTask",
        "ObservedEngine",
        "Record",
        "Recorded",
        "Stats",
        "Summary",
        "TaskEvent",
        "TaskFiles",
        "UsageError",
        "hookimpl",
    ]
else:
    _NAMES = (
        "API_VERSION",
        "BackendSpec",
        "CommandLine",
        "LookupTask",
        "ObservedEngine",
        "Record",
        "Recorded",
        "Stats",
        "Summary",
        "TaskEvent",
        "TaskFiles",
        "UsageError",
        "hookimpl",
    )
    __getattr__, __dir__ = lazy(__name__, dict.fromkeys(_NAMES, "rhapsody.plugins.specs"))
