"""Validation of users' descriptions of pilots, tasks and RAPTOR, with RADICAL-Pilot's keys."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rhapsody.sdk import suggestion
from rhapsody_radical import pilot
from rhapsody_radical.plugin import BATCH_WORDS, PILOT_DEFAULTS
from rhapsody_radical.wire import is_plain

RESERVED = ("uid", "executable", "arguments", "function", "args", "kwargs", "code", "command")
"""Keys that the engine sets, because they determine a task's identity and program."""

EXECUTABLE, SERVICE, FUNCTION = "task.executable", "task.service", "task.function"
"""Values of `mode`."""

FORMER = {
    "cpu_processes": "ranks",
    "cpu_threads": "cores_per_rank",
    "cpu_thread_type": "threading_type",
    "gpu_processes": "gpus_per_rank",
    "gpu_process_type": "gpu_type",
    "lfs_per_process": "lfs_per_rank",
    "mem_per_process": "mem_per_rank",
    "scheduler": "raptor_id",
    "worker_file": "raptor_file",
    "worker_class": "raptor_class",
}
"""Former keys of a task's description, each with the current key."""


def pilot_descriptions(resources: Any) -> list[dict[str, Any]]:
    """Return the descriptions of the pilots, with defaults filled in.

    Args:
        resources: The backend's argument. Either a dict of pilot parameters (its key `pilots` may
            contain a list of dicts, one for each pilot), a list of complete dicts, or `None`.

    Raises:
        TypeError: The type is wrong, or a value is not plain data.
        ValueError: A value is invalid.
    """
    pilots: Any = {} if resources is None else resources
    common: dict[str, Any] = {}
    if isinstance(pilots, Mapping):
        common = {key: value for key, value in pilots.items() if key != "pilots"}
        pilots = pilots.get("pilots", [{}])
    valid = isinstance(pilots, list | tuple) and all(isinstance(one, Mapping) for one in pilots)
    if not valid or not pilots:
        raise TypeError(
            "resources must be a dict such as {'resource': 'local.localhost', 'cores': 4}, or, for "
            "several pilots, a list of such dicts or a dict with a list of dicts as 'pilots'; got "
            f"{resources!r}"
        )
    return [_pilot({**PILOT_DEFAULTS, **common, **one}) for one in pilots]


def _pilot(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings:
        if key in BATCH_WORDS:
            raise TypeError(f"resources: a pilot description has no {key!r}; {BATCH_WORDS[key]}")
    if "uid" in settings:
        raise TypeError(
            "resources: 'uid' cannot be set: the backend names pilots pilot.0000, pilot.0001, ..."
        )
    require_plain("resources", settings)
    resource = settings["resource"]
    if not isinstance(resource, str) or "." not in resource:
        raise ValueError(
            "resources: 'resource' must have the form SITE.MACHINE, such as "
            f"'local.localhost', got {resource!r}; `rhapsody doctor` lists the known resources"
        )
    if settings.get("cores") is None and settings.get("nodes") is None:
        if resource.startswith("local."):
            settings["cores"] = os.cpu_count() or 1
        else:
            settings["nodes"] = 1
    for key in ("cores", "nodes", "memory", "runtime"):
        value = number(settings, key)
        if settings.get(key) is not None and (value < 1 or value != int(value)):
            raise ValueError(f"resources: {key!r} must be an integer of at least 1, got {value!r}")
    return settings


def check_flags(**flags: Any) -> None:
    """Raise if a parameter is neither `True` nor `False`.

    Raises:
        TypeError: A parameter is not a bool; the message names it.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_commands(pre_exec: Any) -> list[str]:
    """Return the commands that every task runs first, as a list; a single string is accepted.

    Raises:
        TypeError: A command is not a string.
    """
    commands = [pre_exec] if isinstance(pre_exec, str) else list(pre_exec)
    if not all(isinstance(command, str) for command in commands):
        raise TypeError(f"pre_exec must be a list of shell commands, got {pre_exec!r}")
    return commands


def directory(work_dir: Any) -> str | None:
    """Return the absolute path of the user's `work_dir`, or `None` if it is not set.

    Raises:
        TypeError: `work_dir` is not a path.
    """
    if work_dir is None:
        return None
    if not isinstance(work_dir, str | os.PathLike):
        raise TypeError(f"work_dir must be a path, got {work_dir!r}")
    return os.path.abspath(work_dir)


def can_work_in(path: str | Path) -> bool:
    """Return True if RADICAL-Pilot's scripts, which do not quote paths, work in a directory."""
    where, name = os.path.split(path)
    real = _real(where) + name
    return real.isprintable() and not set(real) & set(" '\"$`\\*?[&;()<>|")


@lru_cache(maxsize=16)  # sandboxes are in one directory
def _real(directory: str) -> str:
    return os.path.realpath(directory)


def task_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's validated settings, with RADICAL-Pilot's current keys.

    Raises:
        TypeError: The settings contain a key that users may not set.
    """
    specific = task["task_backend_specific_kwargs"]
    for key in (*RESERVED, "mode"):
        if key in specific and not (key == "mode" and specific[key] in _modes(task)):
            raise TypeError(
                f"task_description: {key!r} cannot be set here, because the decorated function "
                "determines it"
            )
    return with_current_keys({key: value for key, value in specific.items() if key != "mode"})


def with_current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with former keys renamed to the current ones.

    If both are set, the value of the former key is used, as in RADICAL-Pilot.
    """
    found = {key: value for key, value in settings.items() if key not in FORMER}
    return found | {key: settings[former] for former, key in FORMER.items() if settings.get(former)}


def _modes(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of `mode` that agree with the kind of a task."""
    if task["function"] is not None:
        return (FUNCTION,)
    if task["is_service"]:
        return (EXECUTABLE, SERVICE)
    return (EXECUTABLE,)


def as_list(value: Any) -> list[Any]:
    """Return a setting as a list: a single entry becomes a list of one, as in RADICAL-Pilot."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else list(value)


def require_plain(argument: str, settings: Mapping[Any, Any]) -> None:
    """Raise if a value is not plain data, which can be sent to another process unchanged.

    Raises:
        TypeError: A value is not plain data; the message names its key.
    """
    for key, value in settings.items():
        if not is_plain(value):
            raise TypeError(
                f"{argument}: {key!r} must be plain data (strings, numbers, True, False, None, or "
                f"lists and dicts of them), got {value!r}; convert it first"
            )


def number(settings: Mapping[str, Any], key: str) -> float:
    """Return a number in a description, or 0 if it is not set.

    Raises:
        TypeError: The value is not a number.
    """
    value: Any = settings.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        unit = {"runtime": " of minutes", "memory": " of megabytes"}.get(key, "")
        raise TypeError(f"{key!r} must be a number{unit}, got {value!r}")
    return value


# RAPTOR's configuration.

MASTER_CLASS, OWN_CLASS = "RhapsodyMaster", "RhapsodyWorker"
DEFAULT_CLASS = "DefaultWorker"

CLASS_KEYS = ("raptor_class", "raptor_file", "executable")
"""Settings that replace the default class of a master or worker."""

RAPTOR_FORM = "raptor_config must be {'masters': [{'workers': [{'cores_per_rank': 2}]}]}"


def is_own(worker: Mapping[str, Any]) -> bool:
    """Return True if a worker has Rhapsody's class, which replaces RAPTOR's default class."""
    kind = worker.get("worker_type", DEFAULT_CLASS)
    return kind in (OWN_CLASS, DEFAULT_CLASS) and not any(worker.get(key) for key in CLASS_KEYS)


def has_other_workers(config: Mapping[str, Any] | None) -> bool:
    """Return True if a validated configuration has workers whose class is not Rhapsody's."""
    masters = config["masters"] if config is not None else ()
    return not all(is_own(worker) for master in masters for worker in master["workers"])


def checked_raptor(config: Any) -> dict[str, Any]:
    """Validate a RAPTOR configuration.

    Returns:
        The configuration with RADICAL-Pilot's current keys.

    Raises:
        TypeError: The configuration does not have the documented form, or contains a value that is
            not plain data.
        ValueError: There is no master, or a master has no worker.
    """
    masters: Any = (
        config.get("masters") if isinstance(config, Mapping) and len(config) == 1 else None
    )
    if not _are_dicts(masters) or not all(_are_dicts(each.get("workers", [])) for each in masters):
        raise TypeError(f"{RAPTOR_FORM}, got {config!r}")
    if not masters or not all(master.get("workers") for master in masters):
        raise ValueError(f"raptor_config needs a master, and a worker for each, got {config!r}")
    require_plain("raptor_config", config)
    checked = [with_current_keys(master) for master in masters]
    for master in checked:
        master["workers"] = [with_current_keys(worker) for worker in master["workers"]]
    return {"masters": checked}


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def require_own_workers(commands: str, config: Mapping[str, Any]) -> None:
    """Raise an error if commands would run on workers of another class, which cannot start them.

    Raises:
        ValueError: A master or worker of the validated configuration has another class.
    """
    others = any(master.get(key) for master in config["masters"] for key in CLASS_KEYS)
    if commands == "raptor" and (others or has_other_workers(config)):
        raise ValueError(
            "commands='raptor' needs the backend's own masters and workers; omit worker_type, "
            f"{', '.join(CLASS_KEYS)} in raptor_config, or use commands='task'"
        )


def checked_settings(
    functions: Any, commands: Any, config: Mapping[str, Any] | None, cores: Any, enabled: bool
) -> dict[str, Any] | None:
    """Validate the backend's parameters for functions and commands.

    Args:
        functions: The parameter `functions`.
        commands: The parameter `commands`.
        config: The parameter `raptor_config`.
        cores: The parameter `function_cores`.
        enabled: The parameter `raptor`.

    Returns:
        The configuration of RAPTOR, or `None` if the user did not set it.

    Raises:
        TypeError: The configuration is malformed.
        ValueError: A value is invalid.
    """
    if functions not in ("raptor", "executable"):
        raise ValueError(f"functions must be 'raptor' or 'executable', got {functions!r}")
    if commands not in ("task", "raptor"):
        raise ValueError(f"commands must be 'task' or 'raptor', got {commands!r}")
    if commands == "raptor" and (functions != "raptor" or not enabled):
        other = "raptor=False" if functions == "raptor" else "functions='executable'"
        raise ValueError(f"commands='raptor' cannot be combined with {other}; omit one of them")
    if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int) or cores < 1):
        raise ValueError(f"function_cores must be an integer of at least 1, got {cores!r}")
    if config is None or config == {}:
        return None
    if not enabled:
        raise ValueError("raptor=False cannot be combined with raptor_config; omit one of them")
    if functions == "executable":
        raise ValueError(
            "functions='executable' cannot be combined with raptor_config; omit one of them"
        )
    checked = checked_raptor(config)
    require_own_workers(commands, checked)
    return checked


def cores_per_call(config: Mapping[str, Any]) -> int:
    """Return the largest number of cores that a call can use on every worker of a configuration."""
    return min(
        int(number(worker, "cores_per_rank") or 1)
        for master in config["masters"]
        for worker in master["workers"]
    )


def cores_taken(settings: Mapping[str, Any]) -> int:
    """Return the number of cores that a master, worker or program uses."""
    return int(number(settings, "ranks") or 1) * int(number(settings, "cores_per_rank") or 1)


def total_cores(config: Mapping[str, Any]) -> int:
    """Return the number of cores of all masters and workers in a validated configuration."""
    return sum(
        cores_taken(master) + sum(map(cores_taken, master["workers"]))
        for master in config["masters"]
    )


# RADICAL-Pilot's own descriptions.

# Without this, each step of a job that has GPUs takes all of its nodes, so that steps which need
# only cores run one after another: https://slurm.schedmd.com/srun.html#OPT_gres
_WITHOUT_GPUS = (
    "unset SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_GPUS_PER_SOCKET",
    "export SLURM_GRES=none",
)


def leave_gpus(words: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Keep the `srun` of a task without GPUs from taking the GPUs of its nodes.

    Args:
        words: The description of the task as plain data, which is changed.
        config: The configuration of the pilot's resource.
    """
    if config.get("resource_manager") != "SLURM":
        return
    slots = words.get("slots") or ()
    if not words.get("gpus_per_rank") and not any(slot["gpus"] for slot in slots):
        words["pre_launch"] = [*_WITHOUT_GPUS, *as_list(words.get("pre_launch"))]


def described(kind: str, words: Mapping[str, Any], what: str, hints: Iterable[str] = ()) -> Any:
    """Return one of RADICAL-Pilot's descriptions, verified by RADICAL-Pilot.

    Args:
        kind: The name of the description's class.
        words: The description as plain data; see `translate`.
        what: The name of the description in error messages.
        hints: Further keys that the user may have meant.

    Raises:
        TypeError: RADICAL-Pilot has no such key, or a value has the wrong type; the message names
            the key.
        ValueError: RADICAL-Pilot rejects the description; the message contains the reason.
    """
    rp, ru = pilot.rp, pilot.ru
    known = getattr(rp, kind)._schema
    for key in words:
        if key not in known:
            hint = suggestion(key, [*hints, *known]) or f"; it has {', '.join(known)}"
            raise TypeError(f"{what} has no {key!r}{hint}")
    key = "description"
    try:
        for key, value in words.items():  # noqa: B007 - used in the message
            ru.to_msgpack(value)  # as RADICAL-Pilot does, whose components would fail later
        key = "description"
        description = getattr(rp, kind)(dict(words))
        description.verify()
        if kind == "TaskDescription" and (words.keys() & {"input_staging", "output_staging"}):
            rp.staging_directives.expand_description(description)
    except Exception as error:  # RADICAL-Pilot raises exceptions of any type
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(f"{what}: {key}: {error}") from error
    return description
