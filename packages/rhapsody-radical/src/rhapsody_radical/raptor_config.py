"""RAPTOR's configuration for functions, as the user sets it: checks and numbers of cores.

This is plain data; `raptor` contains what runs on a pilot.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from rhapsody_radical import schema
from rhapsody_radical.descriptions import check_keys, check_plain, check_types, todays

MASTER_CLASS, OWN_CLASS = "RhapsodyMaster", "RhapsodyWorker"
DEFAULT_CLASS = "DefaultWorker"

THEIRS = ("raptor_class", "raptor_file", "executable")
"""Settings that make a master or a worker another than the default."""

WORKER: Mapping[str, type] = {**schema.TASK, "worker_type": str}
"""The keys of a worker's settings, and the type of each value."""

FORM = "raptor_config must be {'masters': [{'workers': [{'cores_per_rank': 2}]}]}"


def is_own(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker's settings mean our own, which stands in for RAPTOR's default one."""
    kind = worker.get("worker_type", DEFAULT_CLASS)
    return kind in (OWN_CLASS, DEFAULT_CLASS) and not any(worker.get(key) for key in THEIRS)


def has_other_workers(config: Mapping[str, Any] | None) -> bool:
    """Return whether a checked configuration has workers that are not our own."""
    masters = config["masters"] if config is not None else ()
    return not all(is_own(worker) for master in masters for worker in master["workers"])


def checked(config: Any) -> dict[str, Any]:
    """Return a RAPTOR configuration, checked, with today's keys.

    Raises:
        TypeError: It is not of the documented form, has an unknown key, or holds what is not
            plain data.
        ValueError: It has no master, or a master has no worker.
    """
    wrong = f"{FORM}, got {config!r}"
    if not isinstance(config, Mapping) or set(config) != {"masters"}:
        raise TypeError(wrong)
    masters = config["masters"]
    if not isinstance(masters, list) or not all(isinstance(each, dict) for each in masters):
        raise TypeError(wrong)
    if not masters or not all(master.get("workers") for master in masters):
        raise ValueError(f"raptor_config needs a master, and a worker for each: {wrong}")
    return {"masters": [_master(master) for master in masters]}


def _master(given: dict[str, Any]) -> dict[str, Any]:
    workers = given["workers"]
    if not isinstance(workers, list):
        raise TypeError(f"raptor_config: 'workers' must be a list of dicts, got {workers!r}")
    own = {key: value for key, value in given.items() if key != "workers"}
    master = _settings("a master", own, schema.TASK, "workers")
    master["workers"] = [_settings("a worker", each, WORKER, "worker_type") for each in workers]
    return master


def _settings(what: str, given: Any, known: Mapping[str, type], hint: str) -> dict[str, Any]:
    """Return the settings of a master or worker, checked."""
    if not isinstance(given, Mapping):
        raise TypeError(f"raptor_config: {what} must be a dict, got {given!r}")
    check_keys("raptor_config", given, known, what, hints=[hint])
    check_plain("raptor_config", given)
    check_types("raptor_config", given, known)
    return todays(copy.deepcopy(dict(given)))


def checked_settings(
    functions: Any, config: Mapping[str, Any] | None, cores: Any, enabled: bool
) -> dict[str, Any] | None:
    """Check how functions are to run; return the configuration where a user gave one.

    Args:
        functions: `"raptor"` or `"executable"`.
        config: RAPTOR's configuration.
        cores: Cores for RAPTOR's worker.
        enabled: Whether RAPTOR may be used.

    Raises:
        TypeError: The configuration is malformed.
        ValueError: A value cannot be meant.
    """
    if functions not in ("raptor", "executable"):
        raise ValueError(f"functions must be 'raptor' or 'executable', got {functions!r}")
    if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int) or cores < 1):
        raise ValueError(f"function_cores must be 1 or more, got {cores!r}")
    if config is None or config == {}:
        return None
    if not enabled:
        raise ValueError("raptor=False switches off what raptor_config asks for: leave one out")
    if functions == "executable":
        raise ValueError(
            "functions='executable' does without the RAPTOR that raptor_config asks for: leave "
            "one out"
        )
    return checked(config)


def cores_per_call(config: Mapping[str, Any]) -> int:
    """Return how many cores one call can have at most, with a checked configuration."""
    return min(
        max(1, int(worker.get("cores_per_rank") or 1))
        for master in config["masters"]
        for worker in master["workers"]
    )


def default(cores: int) -> dict[str, Any]:
    """Return the configuration where a user gave none: one pair, with a worker of our own."""
    return {"masters": [{"workers": [{"ranks": 1, "cores_per_rank": cores}]}]}


def cores(settings: Mapping[str, Any]) -> int:
    """Return how many cores one master or worker takes."""
    return int(settings.get("ranks") or 1) * max(1, int(settings.get("cores_per_rank") or 1))


def total_cores(config: Mapping[str, Any]) -> int:
    """Return how many cores all masters and workers of a checked configuration take."""
    return sum(cores(master) + sum(map(cores, master["workers"])) for master in config["masters"])
