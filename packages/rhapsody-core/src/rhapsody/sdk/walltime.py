"""How long a task needs, and how long the batch job that this process runs in goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from rhapsody.resources import Resources

__all__ = ["seconds_of_job", "time_needed"]


def time_needed(task: Mapping[str, Any]) -> float | None:
    """Seconds that a described task needs at most, as far as anybody said.

    That is its hint `walltime`, else its time-out; a hint is nearer to what is meant.
    """
    resources = Resources.of(task.get("resources"))
    hint = None if resources is None else resources.walltime
    return task.get("timeout") if hint is None else float(hint)  # text is held as seconds


def seconds_of_job() -> float | None:
    """How many seconds the batch job of this process goes on, at most.

    Slurm says when a job ends (`SLURM_JOB_END_TIME`, from 23.02 on); a time that is over says
    that the job was extended, which it does not tell. Torque says for how long a job runs
    (`PBS_WALLTIME`) but not since when, so that this counts from now. Others say nothing.

    Returns:
        `None` where this is no batch job, or its end is not known.
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
