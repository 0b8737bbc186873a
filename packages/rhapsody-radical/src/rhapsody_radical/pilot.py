"""RADICAL-Pilot's current and former names, for programs that also use it directly.

Current names refer to RADICAL-Pilot's own objects. Former names refer to their successors, or raise
an error that explains the replacement.

Only this module imports RADICAL-Pilot into the program, and only when one of the names is first
used. The import creates an empty directory, `.radical/utils` in `RADICAL_BASE` or the home
directory, and lets RADICAL-Pilot adjust `logging` and `os.fork`. RADICAL-Pilot is untyped, so the
names have the type `Any`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
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


def described(kind: str, words: Mapping[str, Any], what: str, hints: Iterable[str] = ()) -> Any:
    """Return one of RADICAL-Pilot's descriptions, verified by RADICAL-Pilot.

    Args:
        kind: The name of the description's class.
        words: The description as plain data, see `translate`.
        what: The name of the description in error messages.
        hints: Further keys that the user may have meant.

    Raises:
        TypeError: RADICAL-Pilot has no such key, or a value has the wrong type; the message names
            the key.
        ValueError: RADICAL-Pilot rejects the description; the message contains the reason.
    """
    rp, ru = __getattr__("rp"), __getattr__("ru")
    known = getattr(rp, kind)._schema
    for key in words:
        if key not in known:
            close = difflib.get_close_matches(str(key), [*hints, *known], 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise TypeError(f"{what} has no {key!r}; {hint}")
    key = "description"
    try:
        for key, value in words.items():  # noqa: B007 - used in the message
            ru.to_msgpack(value)  # as RADICAL-Pilot does, whose components would fail later
        key = "description"
        description = getattr(rp, kind)(dict(words))
        description.verify()
        if words.get("input_staging") or words.get("output_staging"):
            rp.staging_directives.expand_description(description)
    except Exception as error:  # RADICAL-Pilot raises exceptions of any type
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(f"{what}: {key}: {error}") from error
    return description


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
