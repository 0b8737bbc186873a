"""Slurm's refusals and waiting reasons: the setting that cures them, and whether they can pass.

The page "Run on Slurm" of the documentation lists the same reasons. Reasons that are not
listed can pass: a job that waits for days for a good reason must not fail.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class SlurmReason(NamedTuple):
    """Meaning of a refusal, or of a reason for which a job waits.

    Attributes:
        setting: The setting of the job to change: `"account"`, `"queue"`, `"walltime"`, `"nodes"`,
            `"memory"`, `"cores"` or `"attributes"`; an empty string if it is unknown.
        passes: True if the reason can pass without a change of the job.
    """

    setting: str
    passes: bool


ORDINARY = (
    r"(None|Resources|Priority|Dependency|BeginTime|Prolog|Cleaning|Licenses|Reservation"
    r"|WaitingForScheduling|JobArrayTaskLimit|NonZeroExitCode|RaisedSignal.*)?"
)
"""Pattern of the reasons of every job that waits for its turn, has started or has ended."""

REFUSALS = (
    ("", True, r"MaxSubmitJob|temporarily|timed out|unable to contact|connection refused"),
    ("account", False, r"invalid account|account or account/partition"),
    ("queue", False, r"invalid partition|partition not available|to use this partition"),
    ("walltime", False, r"time limit is invalid|time limit specification|MaxWall"),
    ("memory", False, r"memory|MaxMem"),
    (
        "attributes",
        False,
        r"unrecognized option|option '.*' (is ambiguous|requires|doesn't allow)|qos spec"
        r"|invalid qos|gres|feature|constraint|reservation|dependency",
    ),
    ("nodes", False, r"node count|MaxNode"),
    ("cores", False, r"node configuration|processors|cpu count|MaxCpu"),
)
"""Setting, whether the refusal can pass, and a pattern of the message of `sbatch`."""

WAITING = (
    ("walltime", r"PartitionTimeLimit|.*MaxWall.*|(QOS|Association)TimeLimit"),
    ("account", r"InvalidAccount|AccountNotAllowed"),
    ("attributes", r"InvalidQOS|QOSNotAllowed|BadConstraints|DependencyNeverSatisfied"),
    ("nodes", r"PartitionNodeLimit|(QOS|Assoc)MaxNodePerJob.*|QOSMinNode.*"),
    ("memory", r"(QOS|Assoc)Max(Memory|Mem)Per(Job|Node).*|QOSMinMemory.*|MaxMemPerLimit"),
    ("queue", r"PartitionConfig"),  # a limit of the partition, before Slurm names it
    ("cores", r"(QOS|Assoc)Max\w+Per(Job|Node).*|QOSMin\w+"),
)
"""Setting and pattern of the permanent reasons."""


def slurm_refusal(message: str) -> SlurmReason:
    """Return the meaning of the message with which `sbatch` has refused a job."""
    for setting, passes, pattern in REFUSALS:
        if re.search(pattern, message, re.IGNORECASE):
            return SlurmReason(setting, passes)
    return SlurmReason("", False)


def slurm_waiting(reason: str, first: str | None = None) -> SlurmReason | None:
    """Return the meaning of the reason for which a job waits.

    A partition can be down for days, or during a maintenance through which queued jobs stay. The
    reason of a job that was submitted while its partition was down is therefore permanent, and that
    of a job that has waited for its turn before is temporary.

    Args:
        reason: The reason as `squeue` prints it, which may be followed by details.
        first: The first reason of the job other than `None`; default: `reason`.

    Returns:
        The meaning; `None` if the job only waits for its turn.
    """
    word = reason.strip(" ()").partition(",")[0].partition(" ")[0]
    if re.fullmatch(ORDINARY, word):
        return None
    for setting, pattern in WAITING:
        if re.fullmatch(pattern, word):
            return SlurmReason(setting, passes=False)
    if word in ("PartitionDown", "PartitionInactive"):
        return SlurmReason("queue", passes=first not in (None, reason))
    return SlurmReason("", passes=True)
