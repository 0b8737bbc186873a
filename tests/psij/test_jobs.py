"""Specifications of jobs for tasks."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, Resources, TaskDescription
from rhapsody_psij.job import read_log, read_outcome
from rhapsody_psij.jobs import JobSettings, job_spec, launch_ranks, script_of


def task(**more: Any) -> TaskDescription:
    """Return the description of an executable task."""
    given = {"name": "a task/with a long name", "function": None, "executable": "./a b"}
    return {**given, "task_backend_specific_kwargs": {}, **more}  # type: ignore[typeddict-item]


def test_resources_are_those_of_each_process() -> None:
    resources = Resources(cores=4, gpus=1, memory="1 GiB", ranks=6, walltime="90 s")
    spec = job_spec(task(resources=resources), JobSettings(nodes=2), "slurm")
    assert spec["name"] == "a_task_with_a_l"
    assert spec["attributes"]["duration"] == 90
    assert spec["resources"] == {
        "process_count": 6,
        "cpu_cores_per_process": 4,
        "gpu_cores_per_process": 1,
        "node_count": 2,
        "memory": 3 * 2**30,
    }


@pytest.mark.parametrize("executor", ["pbs", "pbs_classic", "lsf"])
def test_cores_are_requested_as_processes_where_psij_counts_those(executor: str) -> None:
    spec = job_spec(task(resources=Resources(cores=4)), JobSettings(), executor)
    assert spec["resources"] == {"process_count": 4, "cpu_cores_per_process": 1}
    assert spec["launcher"] == "single"


@pytest.mark.parametrize(
    ("executor", "nodes", "resources", "reason"),
    [
        ("slurm", 2, {"ranks": 3}, "3 ranks are not divisible by 2 nodes"),
        ("pbs", 1, {"ranks": 2, "cores": 2}, "cannot request 2 cores per rank from 'pbs'"),
        ("lsf", 1, {"gpus": 1, "cores": 2}, "cannot request 2 cores per rank from 'lsf'"),
        ("local", 1, {"ranks": 100_000}, "this machine has"),
    ],
    ids=["nodes", "cores of ranks", "cores and GPUs", "local ranks"],
)
def test_what_psij_cannot_express_is_refused(
    executor: str, nodes: int, resources: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CapabilityError, match=reason):
        job_spec(task(resources=Resources(**resources)), JobSettings(nodes=nodes), executor)


def test_functions_with_one_rank_run_on_one_node() -> None:
    with pytest.raises(CapabilityError, match="one rank and runs on one node, not on 2"):
        job_spec(task(function=print), JobSettings(nodes=2), "slurm")


def test_local_ranks_need_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    ranks = task(resources=Resources(ranks=2), sandbox="/tmp")
    with pytest.raises(CapabilityError, match=r"no mpirun .*pip install mpich"):
        launch_ranks(job_spec(ranks, JobSettings(), "local"), ranks, JobSettings(), "local")


@pytest.mark.parametrize(
    ("more", "duration"),
    [
        ({"resources": Resources(walltime=30), "timeout": 5.0}, 30),
        ({"timeout": 5.0}, 65),
        ({}, 600),
    ],
    ids=["walltime", "timeout", "default"],
)
def test_the_time_limit_is_that_of_the_task(more: dict[str, Any], duration: int) -> None:
    settings = JobSettings(attributes={"duration": "10 min"})
    assert job_spec(task(**more), settings, "slurm")["attributes"]["duration"] == duration


def test_settings_of_a_task_take_precedence() -> None:
    settings = JobSettings("debug", "A", attributes={"slurm.qos": "low", "slurm.constraint": "cpu"})
    own = {"queue": "long", "attributes": {"slurm.qos": "high", "reservation_id": "r"}}
    attributes = job_spec(task(), settings.of(task(task_backend_specific_kwargs=own)), "slurm")
    assert attributes["attributes"] == {
        "duration": None,
        "queue_name": "long",
        "account": "A",
        "reservation_id": "r",
        "custom_attributes": {"slurm.qos": "high", "slurm.constraint": "cpu"},
    }


def test_a_mistyped_prefix_of_an_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown prefix in 'slrum\.qos'; did you mean 'slurm\.'"):
        JobSettings(attributes={"slrum.qos": "low"})
    JobSettings(attributes={"mysite.qos": "low", "pbs_classic.q": "x"})


@pytest.mark.parametrize(
    ("executor", "name", "options"),
    [
        ("slurm", "slurm.exclusive", ["--no-requeue", "--exclusive"]),
        ("pbs_classic", "pbs.h", ["-r", "n", "-h"]),
        ("lsf", "lsf.x", ["-rn", "-x"]),
        ("slurm", "pbs.h", ["--no-requeue"]),
        ("local", "slurm.exclusive", []),
    ],
    ids=["Slurm", "PBS", "LSF", "other system", "local"],
)
def test_attributes_without_a_value_are_options_of_the_command(
    executor: str, name: str, options: list[str]
) -> None:
    settings = JobSettings(attributes={name: True, "slurm.hold": False, "slurm.nice": 1})
    spec = job_spec(task(), settings, executor)
    assert spec["options"] == options
    assert spec["attributes"]["custom_attributes"] == {"slurm.nice": 1}


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({"queue": 1}, TypeError, "queue must be a string"),
        ({"nodes": 0}, ValueError, "nodes must be at least 1"),
        ({"nodes": 1.5}, TypeError, "nodes must be a whole number"),
        ({"attributes": "qos"}, TypeError, "attributes must be a dict"),
        ({"attributes": {"qos": "a"}}, ValueError, "such as 'slurm.qos', got 'qos'"),
        ({"attributes": {"duration": "soon"}}, ValueError, "duration must be"),
        ({"attributes": {"slurm.requeue": True}}, ValueError, "'slurm.requeue' .* lost_retries"),
        ({"attributes": {"slurm.exclusive": ""}}, ValueError, "'slurm.exclusive': True"),
        ({"attributes": {"slurm.nice": [1]}}, TypeError, r"string, a number, .* got \[1\]"),
    ],
    ids=[
        "queue",
        "no nodes",
        "nodes",
        "attributes",
        "attribute",
        "duration",
        "requeue",
        "empty",
        "list",
    ],
)
def test_invalid_settings_are_refused(
    given: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        JobSettings(**given)


@pytest.mark.parametrize(
    ("sandbox", "environment", "reason"),
    [
        ("/a b", {}, "cannot use the path '/a b'"),
        ("/a", {"a.b": "1"}, "environment variable 'a.b'"),
    ],
    ids=["path", "variable"],
)
def test_ranks_need_paths_and_variables_that_scripts_can_contain(
    sandbox: str, environment: dict[str, str], reason: str
) -> None:
    ranks = task(resources=Resources(ranks=2), sandbox=sandbox, environment=environment)
    with pytest.raises(CapabilityError, match=reason):
        launch_ranks(job_spec(ranks, JobSettings(), "slurm"), ranks, JobSettings(), "slurm")


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (
            {
                "executable": 'echo "$A"; cat; echo; pwd; umask; exit 3',
                "environment": {"A": "a 'b' $x"},
                "stdin": "text",
                "cwd": "/",
            },
            {"exit_code": 3, "stdout": "a 'b' $x\ntext\n/\n0022\n"},
        ),
        ({"executable": "printf", "arguments": ["%s|", "a b", "$x", "'"]}, {"stdout": "a b|$x|'|"}),
        ({"executable": "kill -9 $$"}, {"exit_code": -9}),
        ({"executable": "sleep 300 & exit 150"}, {"exit_code": -22, "out_of_memory": False}),
        ({"executable": "kill $PPID; sleep 0.1"}, {"job": 143}),
        ({"executable": "nonexistent", "arguments": []}, {"job": 9}),
        ({"executable": "true", "cwd": "/nonexistent"}, {"job": 9}),
    ],
    ids=["shell", "words", "signal", "children", "end of the job", "program", "directory"],
)
def test_a_script_runs_an_executable(
    given: dict[str, Any], outcome: dict[str, Any], tmp_path: Path
) -> None:
    reports, sandbox = tmp_path / "reports", tmp_path / "sandbox"
    reports.mkdir()
    sandbox.mkdir()
    description = task(uid="a", sandbox=str(sandbox), **given)
    without_program = [sys.executable, "-c", "import sys; sys.exit(9)"]
    script = script_of(description, str(reports), without_program, b"order")
    assert script is not None
    words = ["bash", "-c", f"umask 022; {''.join(script)}"]
    job = subprocess.run(words, capture_output=True, timeout=60)
    log, host = reports / f"{socket.gethostname()}.log", socket.gethostname().encode()
    (started, *ended), _ = read_log(log)
    assert started == ("a", "started", host)
    found = {"job": job.returncode, "stdout": (sandbox / ".rhapsody.stdout").read_text()}
    if ended:
        ((_, kind, values),) = ended
        found |= read_outcome(kind, values)
    assert outcome.items() <= found.items()
    size = log.stat().st_size
    subprocess.run(words, check=True, capture_output=True, timeout=60)  # the system starts it again
    assert log.stat().st_size == size


@pytest.mark.parametrize(
    "more",
    [{"container": {}}, {"environment": {"a.b": "1"}}, {"environment": {"UID": "1"}}],
    ids=["container", "name", "variable of bash"],
)
def test_a_script_cannot_run_all_executables(more: dict[str, Any], tmp_path: Path) -> None:
    assert script_of(task(uid="a", sandbox=str(tmp_path), **more), "/", [], b"") is None
