"""What users may say about pilots and tasks in RADICAL-Pilot's own words, checked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody_radical.library import rp

LOCAL = "local.localhost"

RUNTIME = 60
"""Minutes that a pilot lives where nothing else is said."""

COUNTS = {
    "cores": "a number of cores",
    "nodes": "a number of nodes",
    "memory": "a number of megabytes",
    "runtime": "a number of minutes",
}

BACKEND = (
    *("raptor_config", "functions", "raptor", "function_cores"),
    *("work_dir", "keep_session", "verbose"),
)
"""The backend's own parameters, which are easily put among those of a pilot."""

OURS = ("uid", "executable", "arguments", "function", "args", "kwargs", "code", "command")
"""What says which task it is, and what it runs: the engine's to say."""


def pilot_descriptions(resources: Any) -> list[dict[str, Any]]:
    """The pilots that `resources` ask for, with defaults filled in.

    Args:
        resources: Parameters of a pilot description, a list of them, or `None`.

    Raises:
        TypeError: Neither, or a parameter that RADICAL-Pilot does not have.
        ValueError: A value cannot be meant.
    """
    given = [{}] if resources is None else resources
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise TypeError(
            "resources must be a dict of a pilot's parameters such as {'resource': "
            f"'{LOCAL}', 'cores': 4}}, or a list of such, got {resources!r}"
        )
    return [_pilot(each) for each in given]


def _pilot(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"resources: a pilot's parameters must be a dict, got {given!r}")
    settings = dict(given)
    check_keys(
        "resources", settings, rp.PilotDescription._schema, "a pilot description", hints=BACKEND
    )
    if "uid" in settings:
        raise TypeError("resources: 'uid' is given by the backend: pilot.0000, pilot.0001, ...")
    check_types("resources", settings, rp.PilotDescription._schema)
    settings.setdefault("resource", LOCAL)
    resource = settings["resource"]
    if not isinstance(resource, str) or "." not in resource:
        raise ValueError(
            f"resources: 'resource' must be a site and a machine such as {LOCAL!r}, got "
            f"{resource!r}; `rhapsody doctor` lists those that there are"
        )
    if settings.get("cores") is None and settings.get("nodes") is None:
        if resource.startswith("local."):
            settings["cores"] = os.cpu_count() or 1
        else:
            settings["nodes"] = 1
    settings.setdefault("runtime", RUNTIME)
    for key, what in COUNTS.items():
        value = settings.get(key)
        if value is not None and (value < 1 or value != int(value)):
            raise ValueError(f"resources: {key!r} must be {what}, 1 or more, got {value!r}")
    # Otherwise a failed pilot sends SIGTERM to the user's program.
    settings.setdefault("exit_on_error", False)
    return settings


def check_flags(**flags: Any) -> None:
    """Raises for a parameter that is neither `True` nor `False`.

    Raises:
        TypeError: It names the parameter.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def directory(work_dir: Any) -> str | None:
    """The absolute path of a directory that a user gave.

    Raises:
        TypeError: It is no path.
    """
    if work_dir is None:
        return None
    if not isinstance(work_dir, str | os.PathLike):
        raise TypeError(f"work_dir must be a path, got {work_dir!r}")
    return os.path.abspath(work_dir)


def task_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings in RADICAL-Pilot's own words, checked.

    Raises:
        TypeError: A setting that RADICAL-Pilot does not have, of another type, or that is not the
            user's to give.
    """
    specific = task["task_backend_specific_kwargs"]
    if specific:
        schema = rp.TaskDescription._schema
        check_keys("task_description", specific, schema, "a task description")
        check_types("task_description", specific, schema)
        for key, value in specific.items():
            if schema[key] is int and isinstance(value, float) and not value.is_integer():
                raise TypeError(f"task_description: {key!r} must be a whole number, got {value!r}")
        for key in (*OURS, "mode"):
            if key in specific and not (key == "mode" and specific[key] in _modes(task)):
                raise TypeError(
                    f"task_description: {key!r} is not yours to give, the task itself says it; "
                    "the decorated function returns the command"
                )
    return {key: value for key, value in specific.items() if key != "mode"}


def _modes(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of RADICAL-Pilot that say no more than the task itself."""
    if task["function"] is not None:
        return (rp.TASK_FUNCTION,)
    return (rp.TASK_EXECUTABLE, rp.TASK_SERVICE) if task["is_service"] else (rp.TASK_EXECUTABLE,)


WORDS: Mapping[type[object], str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
}


def as_list(value: Any) -> list[Any]:
    """What RADICAL-Pilot takes for a list: one entry may be given by itself."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else list(value)


def check_types(argument: str, given: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises for a value that is of another type than RADICAL-Pilot's schema says.

    Raises:
        TypeError: There is one.
    """
    for key, value in given.items():
        kind = schema[key]
        if value is None or not isinstance(kind, type) or kind not in WORDS:
            continue
        accepted = (int, float) if kind in (int, float) else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{argument}: {key!r} must be {WORDS[kind]}, got {value!r}")


def check_keys(
    argument: str,
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    what: str,
    *,
    hints: Sequence[str] = (),
) -> None:
    """Raises for a key that RADICAL-Pilot does not know, with the closest one.

    Args:
        argument: The argument's name, for the error.
        given: What was given.
        known: What there is.
        what: What has these keys, in words.
        hints: More words that may have been meant.

    Raises:
        TypeError: There is one.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), [*hints, *known], 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{argument}: {what} has no {key!r}; {hint}")
