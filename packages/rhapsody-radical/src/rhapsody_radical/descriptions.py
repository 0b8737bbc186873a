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

PilotSettings = Mapping[str, Any]


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
    check_keys("resources", settings, rp.PilotDescription._schema, "a pilot description")
    settings.setdefault("resource", LOCAL)
    resource = settings["resource"]
    if not isinstance(resource, str) or "." not in resource:
        raise ValueError(
            f"resources: 'resource' must be a site and a machine such as {LOCAL!r}, got "
            f"{resource!r}; `rhapsody doctor` lists those that there are"
        )
    if not settings.get("cores") and not settings.get("nodes"):
        if resource.startswith("local."):
            settings["cores"] = os.cpu_count() or 1
        else:
            settings["nodes"] = 1
    settings.setdefault("runtime", RUNTIME)
    if not isinstance(settings["runtime"], int) or settings["runtime"] <= 0:
        raise ValueError(
            "resources: 'runtime' must be a number of minutes, 1 or more, got "
            f"{settings['runtime']!r}"
        )
    # Otherwise a failed pilot sends SIGTERM to the user's program.
    settings.setdefault("exit_on_error", False)
    return settings


def task_settings(specific: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings in RADICAL-Pilot's own words, checked.

    Raises:
        TypeError: A setting that RADICAL-Pilot does not have.
    """
    if specific:
        check_keys("task_description", specific, rp.TaskDescription._schema, "a task description")
    return dict(specific)


def check_keys(
    argument: str, given: Mapping[str, Any], known: Mapping[str, Any], what: str
) -> None:
    """Raises for a key that RADICAL-Pilot does not know, with the closest one.

    Raises:
        TypeError: There is one.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{argument}: {what} has no {key!r}; {hint}")
