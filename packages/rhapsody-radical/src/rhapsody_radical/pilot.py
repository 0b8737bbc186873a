"""The names of RADICAL-Pilot's present and former API, each as what it is now.

For programs that drive RADICAL-Pilot themselves beside Rhapsody. Names of today are
RADICAL-Pilot's own objects; names of the former API are today's successors, or
explain what took their place. The backend does not need this module.
"""

from __future__ import annotations

from typing import Any

from rhapsody import BackendError, BackendUnavailableError

FORMER = {
    "ComputePilotDescription": "PilotDescription",
    "ComputePilot": "Pilot",
    "UnitManager": "TaskManager",
    "ComputeUnitDescription": "TaskDescription",
    "ComputeUnit": "Task",
}
"""Names of the former API, and the names of what took their place."""

CURRENT = (
    "Pilot",
    "PilotDescription",
    "PilotManager",
    "PythonTask",
    "RaptorMaster",
    "RaptorWorker",
    "Session",
    "Task",
    "TaskDescription",
    "TaskManager",
    "pythontask",
)
"""Names of today's API."""

OURS = ("Context", "DatabaseError", "PilotException")
"""Names for which RADICAL-Pilot offers nothing any more."""


class PilotException(BackendUnavailableError):  # noqa: N818 - the name that programs catch
    """A pilot or its session cannot be started, or has ended."""


class DatabaseError(BackendError):
    """The former API raised it where its database was not reached.

    RADICAL-Pilot has no database any more: nothing raises this. Programs that catch
    it go on to work.
    """


class Context:
    """Explains what took the place of security contexts.

    Raises:
        NotImplementedError: Always; it says what to do.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "RADICAL-Pilot has no security contexts any more: it calls the ssh program. Put user "
            "name, key and host into ~/.ssh/config ('Host cluster.example.org', 'User me', "
            "'IdentityFile ~/.ssh/id_cluster'), check that `ssh cluster.example.org` works "
            "without a question, and run the program there: RadicalExecutionBackend submits to "
            "the machine that it runs on"
        )


__all__ = [*CURRENT, *FORMER, *OURS]


def __getattr__(name: str) -> Any:
    if name in CURRENT or name in FORMER:
        from rhapsody_radical.library import rp

        return getattr(rp, FORMER.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
