"""Recording of Rhapsody runs as WfCommons instances, and replay of instances.

An instance contains the tasks of a workflow with their dependencies, durations and files. The
format is WfFormat (https://github.com/wfcommons/WfFormat).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rhapsody_guard
from rhapsody_wfcommons._version import __version__
from rhapsody_wfcommons.instance import (
    Instance,
    RecordedFile,
    RecordedMachine,
    RecordedTask,
    parents_first,
)
from rhapsody_wfcommons.reading import loads, read
from rhapsody_wfcommons.schedules import bottom_levels, critical_path, list_schedule
from rhapsody_wfcommons.values import InstanceError
from rhapsody_wfcommons.writing import dumps, write

if TYPE_CHECKING:
    from rhapsody_wfcommons.recorder import WfCommonsRecorder

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


def __getattr__(name: str) -> Any:
    # The recorder imports the local backend, which would make every command slower.
    if name == "WfCommonsRecorder":
        from rhapsody_wfcommons.recorder import WfCommonsRecorder

        return WfCommonsRecorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
