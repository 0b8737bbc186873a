"""What a task needs of a backend, and what of that the backend does not offer."""

from __future__ import annotations

from typing import Any

from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.record import TaskRecord
from rhapsody.resources import Resources

_KINDS: dict[str, str] = {
    "function": "to run ordinary functions",
    "async_function": "to run coroutine functions",
    "executable": "to run executables",
    "service": "to run services",
    "function_service": "to run functions as services",
}

_DEFAULTS: Resources = Resources()


def unknown_settings(record: TaskRecord, backend: BackendHandle) -> list[Any]:
    """The keys of a task's settings in the backend's own words that the backend does not know."""
    given = record.description["task_backend_specific_kwargs"]
    return backend.capabilities.unknown_settings(given) if given else []


def lacking(record: TaskRecord, backend: BackendHandle) -> str | None:
    """What a task needs and a backend does not offer, in words."""
    task, description = record.task, record.description
    if not backend.capabilities.runs(task.task_kind):
        return _KINDS[task.task_kind]
    if "cwd" in description and not backend.capabilities.cwd:
        return f"cwd={description['cwd']!r}"
    resources = description.get("resources")
    if resources is None:
        return None
    for name in ("cores", "gpus", "memory", "ranks"):
        value = getattr(resources, name)
        if value != getattr(_DEFAULTS, name) and name not in backend.capabilities.resources:
            return f"{name}={value!r}"
    whole = not isinstance(resources.cores, float)
    if not whole and "fractional_cores" not in backend.capabilities.resources:
        return f"cores={resources.cores!r}, which is not a whole number"
    return None
