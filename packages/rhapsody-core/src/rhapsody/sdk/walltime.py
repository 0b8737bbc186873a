"""Time that a task needs, and time that is left of the batch job of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from rhapsody.resources import Resources

__all__ = ["seconds_of_job", "time_needed"]


def time_needed(task: Mapping[str, Any]) -> float | None:
    """Return the seconds that a task needs at most: its `walltime`, otherwise its timeout.

    Returns:
        `None` if it has neither.
    """
    resources = Resources.of(task.get("resources"))
    hint = None if resources is None else resources.walltime
    return task.get("timeout") if hint is None else float(hint)  # stored as seconds


def seconds_of_job() -> float | None:
    """Return the seconds that the batch job of this process has left at most.

    Slurm sets the end of a job (`SLURM_JOB_END_TIME`, since 23.02); an end in the past means that
    the job was extended. Torque sets the duration of a job (`PBS_WALLTIME`) but not its start, so
    the duration counts from now. Other systems set neither.

    Returns:
        `None` if this is no batch job, or its end is unknown.
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
