"""Resources that a task requests, and the time left in this process's batch job.

Memory sizes and durations are accepted as users write them, such as `"2 GiB"` and `"3 min"`.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from rhapsody.spelling import similar

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)

_NUMBER = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_DURATION = re.compile(rf"\s*(?:{_PART.pattern}\s*)+", re.IGNORECASE)
_UNITS: dict[str, float] = {
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
}


def builtin_number(value: object) -> object:
    """Return a number of another library, such as `numpy.int64`, as `int` or `float`.

    Other values are returned unchanged.
    """
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def memory_in_bytes(memory: int | str, argument: str = "memory") -> int:
    """Return the number of bytes, rounded up, in a size such as `2048`, `"500 MB"` or `"2 GiB"`.

    `kB`, `MB`, ... are powers of 1000; `KiB`, `MiB`, ... are powers of 1024 (IEC 80000-13).

    Args:
        memory: The size.
        argument: The argument's name, for the error.

    Raises:
        ValueError: The text is not a size, or the size is negative.
        TypeError: The size is neither an integer nor a string.
    """
    memory = cast("int | str", builtin_number(memory))
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise TypeError(
            f"{argument} must be a number of bytes or text such as '2 GiB', got {memory!r}"
        )
    if isinstance(memory, int):
        if memory < 0:
            raise ValueError(f"{argument} must not be negative, got {memory}")
        return memory
    match = _MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"{argument} must look like '500 MB' or '2 GiB', got {memory!r}")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    power: int = " kmgtp".index(prefix.lower() or " ")
    return math.ceil(float(number) * float(base) ** power)


def seconds(argument: str, value: object, *, zero: bool = False) -> float:
    """Return the number of seconds in a duration such as `90`, `"90"`, `"3 min"` or `"1h30m"`.

    The units are `w`, `d`, `h`, `min` or `m`, `s` and `ms`; their names may also be written out, as
    in `"2 weeks"`. Larger units must precede smaller ones.

    Args:
        argument: The argument's name, for the error.
        value: The duration.
        zero: True if 0 is accepted.

    Raises:
        TypeError: The duration is neither a number nor a string.
        ValueError: The text is not a duration, or the number is negative or not finite, or it is 0
            and `zero` is False.
    """
    value = builtin_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(
            f"{argument} must be a number of seconds or text such as '3 min', got {value!r}"
        )
    number = _seconds_in(argument, value) if isinstance(value, str) else value
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        accepted = "non-negative" if zero else "positive"
        raise ValueError(
            f"{argument} must be a finite, {accepted} number of seconds, got {value!r}"
        )
    return float(number)


def _seconds_in(argument: str, text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    total, last = 0.0, math.inf
    if _DURATION.fullmatch(text):
        for number, word in _PART.findall(text):
            unit = _UNITS.get(word.lower(), math.inf)
            if unit >= last:  # unknown, given twice, or not in order
                break
            total, last = total + float(number) * unit, unit
        else:
            return total
    raise ValueError(
        f"{argument} must be a number of seconds or text such as '90 s', '3 min' or '1h30m' "
        f"(units: w, d, h, min, s, ms), got {text!r}"
    )


def size_text(size: float) -> str:
    """Return a size in bytes as readable text, in powers of 1000."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.{0 if units[0] == 'B' else 1}f} {units[0]}"


def duration_text(seconds: float) -> str:
    """Format a duration: in seconds if it is below a minute, otherwise as `h:mm:ss`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one task while it runs, with the same meaning on every backend.

    Args:
        cores: Processor cores per rank. Backends that only count cores accept fractions such as
            0.5, in steps of 0.001. Use 0 for tasks that only wait: an asynchronous function
            without cores shares a loop with others instead of holding a slot.
        gpus: GPUs per rank.
        memory: Main memory per rank, in bytes or as text such as `"2 GiB"`;
            `None` requests no specific amount. Stored as bytes.
        ranks: Number of processes (MPI ranks) of an executable.
        walltime: Maximum time that the task is expected to need, in seconds or as text such as
            `"1h30m"`; `None` if unknown. It is a hint for schedulers. A backend that ends sooner
            does not run the task. Stored as seconds.

    Raises:
        ValueError: A number is negative, or `ranks` is less than 1.
        TypeError: A value is of the wrong type.
    """

    cores: float = 1
    gpus: int = 0
    memory: int | str | None = None
    ranks: int = 1
    walltime: float | str | None = None

    def __post_init__(self) -> None:
        for name in ("cores", "gpus", "ranks"):
            given = getattr(self, name)
            if not isinstance(given, int | float):
                object.__setattr__(self, name, builtin_number(given))
        if isinstance(self.cores, float):
            object.__setattr__(self, "cores", _cores(self.cores))
        for name, least in (("cores", 0), ("gpus", 0), ("ranks", 1)):
            value = getattr(self, name)
            kind, what = (int | float, "a") if name == "cores" else (int, "a whole")
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"resources: {name} must be {what} number, got {value!r}")
            if value < least:
                raise ValueError(f"resources: {name} must be at least {least}, got {value}")
        if self.memory is not None:
            object.__setattr__(self, "memory", memory_in_bytes(self.memory))
        if self.walltime is not None:
            object.__setattr__(self, "walltime", seconds("walltime", self.walltime))

    @classmethod
    def of(cls, value: Resources | Mapping[str, Any] | None) -> Resources | None:
        """Convert a mapping to a `Resources`.

        Returns:
            The `Resources`; an argument that is a `Resources` or `None` is returned unchanged.

        Raises:
            TypeError: The argument is of another type, or the mapping contains an unknown name or
                a value of the wrong type.
            ValueError: A value in the mapping is invalid.
        """
        if value is None or isinstance(value, Resources):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"resources must be a Resources or a dict such as {{'cores': 2}}, got {value!r}"
            )
        unknown = [key for key in value if key not in cls.__dataclass_fields__]
        if unknown:
            close = similar(str(unknown[0]).lower(), ALIASES)
            hint = f"; did you mean {ALIASES[close[0]]!r}?" if close else ""
            known = ", ".join(cls.__dataclass_fields__)
            raise TypeError(f"resources: unknown name {unknown[0]!r}; valid names: {known}{hint}")
        return cls(**value)


def changed_fields(resources: Resources) -> dict[str, Any]:
    """Return the fields that differ from their defaults, by name."""
    return {
        each.name: value
        for each in fields(Resources)
        if (value := getattr(resources, each.name)) != each.default
    }


def _cores(given: float) -> float:
    """Round a number of cores to 0.001, and return an `int` if the result is whole."""
    if not math.isfinite(given):
        raise ValueError(f"resources: cores must be a finite number, got {given}")
    rounded = round(given, 3)
    if given > 0 and not rounded:
        raise ValueError(f"resources: cores must be 0 or at least 0.001, got {given}")
    return int(rounded) if rounded.is_integer() else rounded


ALIASES = dict(zip(Resources.__dataclass_fields__, Resources.__dataclass_fields__, strict=True)) | {
    **dict.fromkeys(("cpu", "cpus", "ncpus", "num_cpus", "threads", "nthreads", "slots"), "cores"),
    **dict.fromkeys(("gpu", "ngpus", "num_gpus"), "gpus"),
    **dict.fromkeys(("mem", "ram", "memory_limit"), "memory"),
    **dict.fromkeys(("ntasks", "nprocs", "processes", "mpi_ranks"), "ranks"),
    **dict.fromkeys(("time", "time_limit", "wall_time"), "walltime"),
}
"""Rhapsody's name for each resource, keyed by the names that Rhapsody and other libraries use."""


def time_needed(task: Mapping[str, Any]) -> float | None:
    """Return the maximum time that a task needs: its `walltime` or, if it has none, its timeout.

    Returns:
        The time in seconds; `None` if the task's description contains neither.
    """
    resources = Resources.of(task.get("resources"))
    hint = None if resources is None else resources.walltime
    return task.get("timeout") if hint is None else float(hint)  # stored as seconds


def seconds_of_job() -> float | None:
    """Return the maximum time left in this process's batch job, in seconds.

    Slurm exports the time at which a job ends (`SLURM_JOB_END_TIME`, since 23.02); a time in the
    past means that the job was extended. Torque exports the maximum duration of a job
    (`PBS_WALLTIME`) but not its start, so the full duration is returned. Other systems export
    neither the end nor the duration.

    Returns:
        The time in seconds; `None` if this process is not part of a batch job, or if the end of the
        job is unknown.
    """
    environment = os.environ
    end = environment.get("SLURM_JOB_END_TIME", "")
    if environment.get("SLURM_JOB_ID") and end.isdecimal():
        left = int(end) - time.time()
        return left if left > 0 else None
    walltime = environment.get("PBS_WALLTIME", "")
    if environment.get("PBS_JOBID") and walltime.isdecimal():
        return float(walltime) or None
    return None


def hosts_of_job() -> list[str]:
    """Return the hosts in the node file of this process's batch job (PBS, Torque, LSF).

    Returns:
        The names of the hosts, without repetitions; none if there is no node file.
    """
    path = os.environ.get("PBS_NODEFILE") or os.environ.get("LSB_DJOB_HOSTFILE")
    try:
        text = Path(path).read_text(encoding="utf-8") if path else ""
    except OSError:  # the file is on the first node only
        text = ""
    return list(dict.fromkeys(text.split()))


def nodes_of_job() -> int:
    """Return the number of nodes of this process's batch job; 1 if it is not part of a job."""
    count = os.environ.get("SLURM_JOB_NUM_NODES", "")
    if os.environ.get("SLURM_JOB_ID") and count.isdecimal():
        return int(count)
    return len(hosts_of_job()) or 1
