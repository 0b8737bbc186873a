"""The meaning of Slurm's refusals and of the reasons for which its jobs wait."""

from __future__ import annotations

import pytest

from rhapsody.sdk import slurm_refusal, slurm_waiting


@pytest.mark.parametrize("reason", ["None", "Resources", "(Priority)", "Dependency", "Licenses"])
def test_jobs_that_wait_for_their_turn_need_no_words(reason: str) -> None:
    assert slurm_waiting(reason) is None


@pytest.mark.parametrize(
    ("reason", "setting"),
    [
        ("PartitionTimeLimit", "walltime"),
        ("QOSMaxWallDurationPerJobLimit", "walltime"),
        ("PartitionNodeLimit", "nodes"),
        ("QOSMaxCpuPerJobLimit", "cores"),
        ("DependencyNeverSatisfied", "attributes"),
        ("InvalidAccount", "account"),
        ("PartitionDown", "queue"),
    ],
)
def test_reasons_that_cannot_pass_name_a_setting(reason: str, setting: str) -> None:
    assert slurm_waiting(reason) == (setting, False)


@pytest.mark.parametrize(
    "reason",
    [
        "AssocMaxJobsLimit",
        "ReqNodeNotAvail, UnavailableNodes:n1",
        "JobHeldUser",
        "QOSGrpCpuLimit",
        "AssocGrpCPURunMinutesLimit",
    ],
)
def test_other_reasons_can_pass(reason: str) -> None:
    assert slurm_waiting(reason) == ("", True)


def test_a_partition_that_goes_down_while_a_job_waits_can_come_back() -> None:
    assert slurm_waiting("PartitionDown", "Priority") == ("queue", True)
    assert slurm_waiting("PartitionDown", "PartitionDown") == ("queue", False)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("Invalid account or account/partition combination specified", ("account", False)),
        ("Invalid partition name specified", ("queue", False)),
        ("Required partition not available (inactive or drain)", ("queue", False)),
        ("Requested time limit is invalid (missing or exceeds some limit)", ("walltime", False)),
        ("Requested node configuration is not available", ("cores", False)),
        ("sbatch: unrecognized option '--foo=bar'", ("attributes", False)),
        ("sbatch: option '--ex=n1' is ambiguous; possibilities: ...", ("attributes", False)),
        ("AssocMaxSubmitJobLimit; Job violates accounting/QOS policy", ("", True)),
        ("Unable to contact slurm controller (connect failure)", ("", True)),
        ("Unspecified error", ("", False)),
    ],
)
def test_refusals_name_a_setting_or_can_pass(message: str, meaning: tuple[str, bool]) -> None:
    assert slurm_refusal(message) == meaning
