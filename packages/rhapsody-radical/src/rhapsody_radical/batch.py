"""Batch jobs of a session: finding and canceling them with the batch system's own commands.

This is implemented for Slurm. For other systems, a message names the commands for the user.
RADICAL-Pilot is not needed, so this works for a session whose client has ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

log: logging.Logger = logging.getLogger(__name__)

SECONDS = 30.0
"""How long a command may take."""

TOO_MUCH = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
"""Slurm's reasons for a job that waits because no node, or none of its partition, is enough."""

ACTIVE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
"""The states of jobs that have not ended, nor are about to."""

SANDBOX = "radical.pilot.sandbox"
"""RADICAL-Pilot's directory for sessions, wherever a pilot has it."""

FIELD, RECORD = "\x1f", "\x1e"
"""What separates fields and jobs: paths may have blanks, bars or line ends."""

COMMANDS = {
    "SLURM": ("squeue --me --Format=JobID,State,WorkDir:255", "scancel"),
    "PBSPRO": ('qstat -f -u "$USER"', "qdel"),
    "TORQUE": ('qstat -f -u "$USER"', "qdel"),
    "COBALT": ('qstat -f -u "$USER"', "qdel"),
    "LSF": ("bjobs -l", "bkill"),
}
"""By RADICAL-Pilot's name of a batch system: what shows one's jobs, and what cancels one."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job that has not ended, as the batch system describes it, and its pilot's uid."""

    id: str
    state: str
    reason: str
    queue: str
    pilot: str


def jobs_of(session: str) -> list[BatchJob]:
    """Return the Slurm jobs of a session; none where Slurm does not answer."""
    return look(session) or []


def look(session: str) -> list[BatchJob] | None:
    """Return the Slurm jobs of a session, `None` where Slurm does not answer.

    They are known by where RADICAL-Pilot has them work: in a directory for each pilot, below one
    that bears the session's uid.
    """
    form = FIELD.join(("%A", "%T", "%r", "%P", "%Z")) + RECORD
    said = _run("squeue", "--all", "--noheader", f"--user={os.getuid()}", f"--states={ACTIVE}",
                f"--format={form}")  # fmt: skip
    if said is None:
        return None
    records = [record.removeprefix("\n").split(FIELD) for record in said.split(RECORD)]
    found = []
    for fields in records:
        parts = os.path.normpath(fields[-1]).split(os.sep)
        if len(fields) == 5 and parts[-3:-1] == [SANDBOX, session]:
            fields[-1] = parts[-1]
            found.append(BatchJob(*fields))
    return found


def cancel(jobs: Iterable[BatchJob]) -> bool:
    """Cancel Slurm jobs, and return whether Slurm took the order."""
    ids = [job.id for job in jobs]
    return not ids or _run("scancel", *ids) is not None


def hint(session: str, resource_manager: str) -> str:
    """Return the commands with which a person finds and cancels the jobs of a session.

    Args:
        session: Its uid.
        resource_manager: RADICAL-Pilot's name of the batch system.

    Returns:
        One sentence, empty where there is no batch system.
    """
    if resource_manager not in COMMANDS:
        return ""
    show, end = COMMANDS[resource_manager]
    return f"`{show}` shows your jobs, `{end} JOBID` cancels those whose directory names {session}"


def _run(*words: str) -> str | None:
    """Return what a command of Slurm prints, `None` where it fails."""
    if shutil.which(words[0]) is None:
        log.debug("%s is not installed here: no batch jobs are looked for", words[0])
        return None
    # What users set to shape their own queries would change the answer.
    shaped = ("SQUEUE_", "SCANCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(shaped)}
    try:
        run = subprocess.run(
            words, env=kept, check=True, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="surrogateescape", timeout=SECONDS,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        log.warning("%s failed: %s", words[0], error.stderr.strip() or error)
    except subprocess.TimeoutExpired:
        log.warning("%s does not answer within %g s", words[0], SECONDS)
    except OSError as error:
        log.warning("%s does not start: %s", words[0], error)
    else:
        return run.stdout
    return None
