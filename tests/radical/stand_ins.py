"""Stand-ins for tasks and pilots, for tests without RADICAL-Pilot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast


class Whole(int):
    """Integer of another type, such as those of numeric libraries."""


def task(settings: dict[str, Any] | None = None, **more: Any) -> Any:
    """A task as the engine completes it."""
    given: dict[str, Any] = {
        "uid": "task.000001",
        "name": "t",
        "executable": "true",
        "function": None,
    }
    given |= {"is_service": False, "task_backend_specific_kwargs": settings or {}}
    return cast("Any", {**given, **more})


def pilot(**more: Any) -> Any:
    """A pilot of 8 cores on this machine."""
    given = {"uid": "pilot.0000", "number": 0, "settings": {"resource": "local.localhost"}}
    given |= {"here": True, "cores": 8, "nodes": 1, "raptor_cores": 0, "sandbox": "/none"}
    given |= {"has": {"cores": 8, "gpus": 0, "mem": 0}.__getitem__}
    return SimpleNamespace(**(given | more))
