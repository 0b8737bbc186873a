"""Checks of the users' descriptions of pilots, tasks and RAPTOR with RADICAL-Pilot's keys."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rhapsody_radical import schema

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
    *("raptor_config", "functions", "raptor", "function_cores", "pre_exec"),
    *("work_dir", "keep_session", "verbose"),
)
"""The backend's own parameters, which are easily put among those of a pilot."""

BATCH_WORDS = {
    "partition": "RADICAL-Pilot calls it 'queue'",
    "account": "RADICAL-Pilot calls it 'project'",
    **dict.fromkeys(("walltime", "time"), "RADICAL-Pilot calls it 'runtime', in minutes"),
    **{
        word: f"on Slurm, set the variable SBATCH_{word.upper()}"
        for word in ("constraint", "qos", "reservation")
    },
}
"""Words of batch systems, and how to say the same to RADICAL-Pilot."""

OURS = ("uid", "executable", "arguments", "function", "args", "kwargs", "code", "command")
"""Keys for the task's identity and for its program, which the engine sets."""


def pilot_descriptions(resources: Any) -> list[dict[str, Any]]:
    """Return the descriptions of the pilots, with defaults filled in.

    Args:
        resources: Parameters of a pilot description, in which `pilots` is a list of further
            parameters of single pilots; a list of such parameters; or `None`.

    Raises:
        TypeError: Neither, a parameter that RADICAL-Pilot does not have, or none of plain data.
        ValueError: A value is invalid.
    """
    given: Any = {} if resources is None else resources
    common: dict[str, Any] = {}
    if isinstance(given, Mapping):
        common = {key: value for key, value in given.items() if key != "pilots"}
        given = given.get("pilots", [{}])
    pilots = isinstance(given, list | tuple) and all(isinstance(one, Mapping) for one in given)
    if not pilots or not given:
        raise TypeError(
            "resources must be a dict of a pilot's parameters such as {'resource': "
            f"'{LOCAL}', 'cores': 4}}, with a list of dicts as 'pilots' for several pilots, or a "
            f"list of such dicts, got {resources!r}"
        )
    return [_pilot({**common, **one}) for one in given]


def _pilot(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings:
        if key in BATCH_WORDS:
            raise TypeError(f"resources: a pilot description has no {key!r}; {BATCH_WORDS[key]}")
    check_keys(
        "resources", settings, schema.PILOT, "a pilot description", hints=[*BACKEND, "pilots"]
    )
    if "uid" in settings:
        raise TypeError("resources: 'uid' is given by the backend: pilot.0000, pilot.0001, ...")
    check_plain("resources", settings)
    check_types("resources", settings, schema.PILOT)
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
    """Raise for a parameter that is neither `True` nor `False`.

    Raises:
        TypeError: It names the parameter.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_commands(pre_exec: Any) -> list[str]:
    """Return the commands that every task runs first; a single text stands for a list of one.

    Raises:
        TypeError: They are not texts.
    """
    commands = [pre_exec] if isinstance(pre_exec, str) else list(pre_exec)
    if not all(isinstance(command, str) for command in commands):
        raise TypeError(f"pre_exec must be a list of shell commands, got {pre_exec!r}")
    return commands


def directory(work_dir: Any) -> str | None:
    """Return the absolute path of a directory that a user gave.

    Raises:
        TypeError: It is no path.
    """
    if work_dir is None:
        return None
    if not isinstance(work_dir, str | os.PathLike):
        raise TypeError(f"work_dir must be a path, got {work_dir!r}")
    return os.path.abspath(work_dir)


def can_work_in(path: str | Path) -> bool:
    """Return whether RADICAL-Pilot's scripts, which do not quote paths, work in a directory."""
    where, name = os.path.split(path)
    real = _real(where) + name
    return encodable(real) and not set(real) & set(" \t\n'\"$`\\*?[&;()<>|")


@lru_cache(maxsize=16)  # sandboxes are in one directory
def _real(directory: str) -> str:
    return os.path.realpath(directory)


def task_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's settings in RADICAL-Pilot's own words of today, checked.

    Raises:
        TypeError: A setting that RADICAL-Pilot does not have, of another type, that is not plain
            data, or that is not the user's to give.
    """
    specific = task["task_backend_specific_kwargs"]
    if not specific:
        return {}
    check_keys("task_description", specific, schema.TASK, "a task description")
    check_plain("task_description", specific)
    check_types("task_description", specific, schema.TASK)
    for key, value in specific.items():
        if schema.TASK[key] is int and isinstance(value, float) and not value.is_integer():
            raise TypeError(f"task_description: {key!r} must be a whole number, got {value!r}")
    for key in (*OURS, "mode"):
        if key in specific and not (key == "mode" and specific[key] in _modes(task)):
            raise TypeError(
                f"task_description: {key!r} cannot be set here, because the task determines it; "
                "the decorated function returns the command"
            )
    return todays({key: value for key, value in specific.items() if key != "mode"})


def todays(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with current keys instead of former ones, which win as in RADICAL-Pilot."""
    found = {key: value for key, value in settings.items() if key not in schema.FORMER}
    for former, key in schema.FORMER.items():
        if value := settings.get(former):
            found[key] = schema.TASK[key](value)
    return found


def _modes(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modes of RADICAL-Pilot that say no more than the task itself."""
    if task["function"] is not None:
        return (schema.TASK_FUNCTION,)
    if task["is_service"]:
        return (schema.TASK_EXECUTABLE, schema.TASK_SERVICE)
    return (schema.TASK_EXECUTABLE,)


WORDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    list: "a list",
    dict: "a dict",
}

ACCEPTED: Mapping[type, tuple[type, ...]] = {
    int: (int, float),
    float: (int, float),
    list: (list, tuple, str, dict),  # a single entry stands for a list
}
"""Types that are accepted for a type, if not only the type itself."""

SCALARS = (str, int, float, bool, bytes, type(None))


def as_list(value: Any) -> list[Any]:
    """Return a list as RADICAL-Pilot accepts it: a single entry stands for a list of one."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else list(value)


def check_plain(argument: str, given: Mapping[Any, Any]) -> None:
    """Raise for a value that is not plain data: it has to reach another process as it is.

    Raises:
        TypeError: There is one; the text names its key.
    """
    for key, value in given.items():
        try:
            _check_plain(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{argument}: {key!r} {error}") from None


def _check_plain(value: Any) -> None:
    kind = type(value)
    if kind in (list, tuple):
        for each in value:
            _check_plain(each)
    elif kind is dict:
        for name, each in value.items():
            if type(name) not in SCALARS:
                raise TypeError(f"has {name!r} for a key of a dict: give it as text")
            _check_plain(name)
            _check_plain(each)
    elif kind not in SCALARS:
        raise TypeError(
            "must be plain data (text, numbers, True, False, None, or lists and dicts of them), "
            f"got {value!r}, a {kind.__module__}.{kind.__qualname__}; convert it first"
        )
    elif kind is str and not encodable(value):
        raise ValueError(f"must be text that UTF-8 can hold, got {value!r}")
    elif kind is int and not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"must be a number of 64 bits at most, got {value!r}")


def encodable(text: str) -> bool:
    """Return whether UTF-8 can hold a text: a file's name may have bytes that it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_types(argument: str, given: Mapping[str, Any], known: Mapping[str, type]) -> None:
    """Raise for a value that is of another type than RADICAL-Pilot's schema says.

    Raises:
        TypeError: There is one.
    """
    for key, value in given.items():
        kind = known[key]
        if value is None:
            continue
        is_kind = isinstance(value, ACCEPTED.get(kind, kind))
        if not is_kind or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{argument}: {key!r} must be {WORDS[kind]}, got {value!r}")


def check_keys(
    argument: str,
    given: Mapping[str, Any],
    known: Mapping[str, type],
    what: str,
    *,
    hints: Sequence[str] = (),
) -> None:
    """Raise for a key that RADICAL-Pilot does not know, with the closest one.

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


# RAPTOR's configuration.

MASTER_CLASS, OWN_CLASS = "RhapsodyMaster", "RhapsodyWorker"
DEFAULT_CLASS = "DefaultWorker"

THEIRS = ("raptor_class", "raptor_file", "executable")
"""Settings that make a master or a worker another than the default."""

WORKER: Mapping[str, type] = {**schema.TASK, "worker_type": str}
"""The keys of a worker's settings, and the type of each value."""

RAPTOR_FORM = "raptor_config must be {'masters': [{'workers': [{'cores_per_rank': 2}]}]}"


def is_own(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker's settings mean our own worker, which replaces RAPTOR's default."""
    kind = worker.get("worker_type", DEFAULT_CLASS)
    return kind in (OWN_CLASS, DEFAULT_CLASS) and not any(worker.get(key) for key in THEIRS)


def has_other_workers(config: Mapping[str, Any] | None) -> bool:
    """Return whether a checked configuration has workers that are not our own."""
    masters = config["masters"] if config is not None else ()
    return not all(is_own(worker) for master in masters for worker in master["workers"])


def checked_raptor(config: Any) -> dict[str, Any]:
    """Return a RAPTOR configuration, checked, with today's keys.

    Raises:
        TypeError: It is not of the documented form, has an unknown key, or holds what is not
            plain data.
        ValueError: It has no master, or a master has no worker.
    """
    wrong = f"{RAPTOR_FORM}, got {config!r}"
    if not isinstance(config, Mapping) or set(config) != {"masters"}:
        raise TypeError(wrong)
    masters = config["masters"]
    if not isinstance(masters, list) or not all(isinstance(each, dict) for each in masters):
        raise TypeError(wrong)
    if not masters or not all(master.get("workers") for master in masters):
        raise ValueError(f"raptor_config needs a master, and a worker for each: {wrong}")
    return {"masters": [_raptor_master(master) for master in masters]}


def _raptor_master(given: dict[str, Any]) -> dict[str, Any]:
    workers = given["workers"]
    if not isinstance(workers, list):
        raise TypeError(f"raptor_config: 'workers' must be a list of dicts, got {workers!r}")
    own = {key: value for key, value in given.items() if key != "workers"}
    master = _raptor_settings("a master", own, schema.TASK, "workers")
    master["workers"] = [
        _raptor_settings("a worker", each, WORKER, "worker_type") for each in workers
    ]
    return master


def _raptor_settings(what: str, given: Any, known: Mapping[str, type], hint: str) -> dict[str, Any]:
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
    """Check how functions are to run.

    Args:
        functions: `"raptor"` or `"executable"`.
        config: RAPTOR's configuration.
        cores: Cores for RAPTOR's worker.
        enabled: Whether RAPTOR may be used.

    Returns:
        The configuration, `None` if the user gave none.

    Raises:
        TypeError: The configuration is malformed.
        ValueError: A value is invalid.
    """
    if functions not in ("raptor", "executable"):
        raise ValueError(f"functions must be 'raptor' or 'executable', got {functions!r}")
    if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int) or cores < 1):
        raise ValueError(f"function_cores must be 1 or more, got {cores!r}")
    if config is None or config == {}:
        return None
    if not enabled:
        raise ValueError("raptor=False contradicts raptor_config: give only one of them")
    if functions == "executable":
        raise ValueError(
            "functions='executable' does not use RAPTOR, which raptor_config configures: give only "
            "one of them"
        )
    return checked_raptor(config)


def cores_per_call(config: Mapping[str, Any]) -> int:
    """Return how many cores one call can have at most, with a checked configuration."""
    return min(
        max(1, int(worker.get("cores_per_rank") or 1))
        for master in config["masters"]
        for worker in master["workers"]
    )


def default_raptor_config(cores: int) -> dict[str, Any]:
    """Return the default configuration: one pair, with a worker of our own."""
    return {"masters": [{"workers": [{"ranks": 1, "cores_per_rank": cores}]}]}


def cores_taken(settings: Mapping[str, Any]) -> int:
    """Return how many cores one master or worker takes."""
    return int(settings.get("ranks") or 1) * max(1, int(settings.get("cores_per_rank") or 1))


def total_cores(config: Mapping[str, Any]) -> int:
    """Return how many cores all masters and workers of a checked configuration take."""
    return sum(
        cores_taken(master) + sum(map(cores_taken, master["workers"]))
        for master in config["masters"]
    )
