"""RADICAL-Pilot's current and former names, for programs that also use it directly.

Current names refer to RADICAL-Pilot's own objects. Former names refer to their successors, or raise
an error that explains the replacement.

Only this module imports RADICAL-Pilot into the program, and only when one of the names is first
used. The import creates an empty directory, `.radical/utils` in `RADICAL_BASE` or the home
directory, and lets RADICAL-Pilot adjust `logging` and `os.fork`. RADICAL-Pilot is untyped, so the
names have the type `Any`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from rhapsody import BackendError, BackendUnavailableError

MODULES = {"rp": "radical.pilot", "ru": "radical.utils"}
"""RADICAL-Pilot's modules, by their names in this module."""

FORMER = {
    "ComputePilotDescription": "PilotDescription",
    "ComputePilot": "Pilot",
    "UnitManager": "TaskManager",
    "ComputeUnitDescription": "TaskDescription",
    "ComputeUnit": "Task",
}
"""Names of the former API, with the names of their successors."""

CURRENT = (
    *("Pilot", "PilotDescription", "PilotManager", "PythonTask", "RaptorMaster", "RaptorWorker"),
    *("Session", "Task", "TaskDescription", "TaskManager", "pythontask"),
)
"""Names of the current API."""

DEFINED_HERE = ("Context", "DatabaseError", "PilotException")
"""Names that RADICAL-Pilot no longer offers and that this module therefore defines."""


class PilotException(BackendUnavailableError):  # noqa: N818 - the name that programs catch
    """A pilot or its session cannot be started, or has ended."""


class DatabaseError(BackendError):
    """Error of the former API for an unreachable database.

    RADICAL-Pilot no longer has a database, so this is never raised. Programs that catch it still
    work.
    """


class Context:
    """Former security context; creating one raises an error that explains the replacement.

    Raises:
        NotImplementedError: Always; the message contains the replacement.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "RADICAL-Pilot no longer supports security contexts. Configure the connection in "
            "~/.ssh/config ('Host cluster.example.org', 'User me', 'IdentityFile "
            "~/.ssh/id_cluster'), and run the program on the cluster, because "
            "RadicalExecutionBackend submits to the machine that it runs on"
        )


__all__ = [*CURRENT, *FORMER, *DEFINED_HERE]


def __getattr__(name: str) -> Any:
    if name in CURRENT or name in FORMER:
        return getattr(__getattr__("rp"), FORMER.get(name, name))
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # RADICAL-Pilot warns if `logging` was imported first. Its fix for `fork` is not needed,
        # because no process that this package forks writes logs.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        return import_module(MODULES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
