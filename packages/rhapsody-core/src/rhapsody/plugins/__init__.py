"""Plugins: hooks that declare backends, observe workflows and decide about tasks.

This is a public package for plugin authors. The hooks themselves are specified in
`rhapsody.plugins.specs`; a plugin implements them with functions marked by `hookimpl`.
"""

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
