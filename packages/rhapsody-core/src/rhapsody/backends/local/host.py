"""What this machine has to offer, found out or as the user says.

Reads the process's own limits (processor affinity, control groups, visible
GPUs). It hands nothing out: that is `rhapsody.backends.local.slots`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsody.quantities import memory_in_bytes, seconds

DEVICES = Path("/dev")
KEYS = ("cores", "gpus", "memory", "workers", "walltime")


@dataclass(frozen=True, slots=True)
class HostResources:
    """What tasks can be given at once.

    Attributes:
        cores: Processor cores.
        gpus: The GPUs, in the words of `CUDA_VISIBLE_DEVICES`.
        memory: Main memory in bytes, `None` where it is unknown: then it is not counted.
        workers: Function tasks at once.
        walltime: Seconds that it has, from the backend's start; `None` where nobody said so.
    """

    cores: int
    gpus: tuple[str, ...]
    memory: int | None
    workers: int
    walltime: float | None = None


def host_resources(
    resources: Mapping[str, Any] | None, *, workers: int | None = None
) -> HostResources:
    """The machine as the user describes it, and as it is where the user says nothing.

    Args:
        resources: Values for `cores`, `gpus` (a number, or a list of devices),
            `memory`, `workers` and `walltime` (seconds).
        workers: How many workers there are where the user does not say.

    Raises:
        TypeError: Not a mapping, an unknown key, or a value of the wrong type.
        ValueError: A value that is too small.
    """
    if resources is None:
        resources = {}
    if not isinstance(resources, Mapping):
        raise TypeError(
            f"resources must be a dict such as {{'cores': 4}}, got {resources!r}; "
            f"there are {', '.join(KEYS)}"
        )
    for key in resources:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise TypeError(
                f"resources: the local backend has no {key!r}{hint} (there are {', '.join(KEYS)})"
            )
    given = {key: value for key, value in resources.items() if value is not None}
    if "workers" in given:
        workers = _number("workers", given["workers"], least=1)
    # Who names no more than the workers wants as many tasks at once.
    cores = given.get("cores", max(available_cores(), workers or 1))
    cores = _number("cores", cores, least=1)
    memory = given.get("memory")
    return HostResources(
        cores=cores,
        gpus=_gpus(given.get("gpus")),
        memory=available_memory() if memory is None else memory_in_bytes(memory),
        workers=workers or cores,
        walltime=seconds("walltime", given["walltime"]) if "walltime" in given else None,
    )


def available_cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """The machine's main memory or the control group's limit, whichever is smaller."""
    limits = _control_group_limits()
    with suppress(ValueError, OSError):  # this system does not tell
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit > 0), default=None)


def available_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use: `CUDA_VISIBLE_DEVICES`, else NVIDIA's devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        # CUDA itself ignores what follows an invalid entry, such as -1.
        invalid = next((i for i, device in enumerate(devices) if device in ("", "-1")), None)
        return tuple(devices[:invalid])
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in DEVICES.glob("nvidia*"))
    return tuple(str(number) for number in sorted(int(match[1]) for match in numbers if match))


def _control_group_limits() -> list[int]:
    """Memory limits of this process's control group and of those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, or no limit: "max"
                limits.append(int((directory / name).read_text()))
            if directory == root:
                break
    return limits


def _gpus(value: Any) -> tuple[str, ...]:
    if value is None:
        return available_gpus()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(str(device) for device in value)
    number = _number("gpus", value, least=0)
    visible = available_gpus()
    return visible[:number] if number <= len(visible) else tuple(map(str, range(number)))


def _number(key: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"resources: {key} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"resources: {key} must be at least {least}, got {value}")
    return value
