"""Recording of Rhapsody runs as WfCommons instances, and replay of instances.

An instance contains the tasks of a workflow with their dependencies, durations and files. The
format is WfFormat (https://github.com/wfcommons/WfFormat).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import rhapsody_guard
from rhapsody_wfcommons._version import __version__

if TYPE_CHECKING:
    from rhapsody_wfcommons.instance import (
        Instance,
        RecordedFile,
        RecordedMachine,
        RecordedTask,
        parents_first,
    )
    from rhapsody_wfcommons.reading import loads, read
    from rhapsody_wfcommons.recorder import WfCommonsRecorder
    from rhapsody_wfcommons.schedules import bottom_levels, critical_path, list_schedule
    from rhapsody_wfcommons.values import InstanceError
    from rhapsody_wfcommons.writing import dumps, write

rhapsody_guard.check()

__all__ = [
    "Instance",
    "InstanceError",
    "RecordedFile",
    "RecordedMachine",
    "RecordedTask",
    "WfCommonsRecorder",
    "__version__",
    "bottom_levels",
    "critical_path",
    "dumps",
    "list_schedule",
    "loads",
    "parents_first",
    "read",
    "write",
]


# Imported on first use: every engine imports this package for the module `plugin`.
_MODULES = {
    name: module
    for module, names in {
        "instance": "Instance RecordedFile RecordedMachine RecordedTask parents_first",
        "reading": "loads read",
        "recorder": "WfCommonsRecorder",
        "schedules": "bottom_levels critical_path list_schedule",
        "values": "InstanceError",
        "writing": "dumps write",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
