"""A RADICAL-Pilot resource on the tests' Slurm, and the jobs in its queue."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/how-to/machines.md"


def configured(directory: Path, **changes: Any) -> str:
    """Write the documented resource configuration; return `RADICAL_CONFIG_USER_DIR` for it.

    The resource `tests.srun` is the same, but starts all programs with `srun`. `changes` replace
    values such as `cores_per_node`.
    """
    documented = re.search(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert documented is not None
    config = directory / "config/.radical/pilot/configs/resource_tests.json"
    config.parent.mkdir(parents=True)
    resource = {**json.loads(documented[1])["cpu"], "gpus_per_node": 0, **changes}
    srun = {"launch_methods": {"order": ["SRUN"], "SRUN": {}}}
    config.write_text(json.dumps({"cluster": resource, "srun": {**resource, **srun}}))
    return str(directory / "config")


def settings(**more: Any) -> dict[str, Any]:
    """The parameters of a pilot that takes the cluster's only node."""
    return {"resource": "tests.cluster", "cores": 2, "runtime": 10, "queue": "debug", **more}


@contextmanager
def held() -> Iterator[None]:
    """Run another job on the whole node, so that later jobs wait."""
    words = ["sbatch", "--parsable", "--exclusive", "--output=/dev/null"]
    words += ["--chdir=/", "--wrap=sleep 600"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    try:
        until = time.monotonic() + 30
        while not _squeue(f"--jobs={job}", "--states=RUNNING", "--format=%A"):
            assert time.monotonic() < until, f"job {job} does not start"
            time.sleep(0.1)
        yield
    finally:
        subprocess.run(["scancel", job], check=True)


@contextmanager
def limited(minutes: int) -> Iterator[None]:
    """A limit for jobs of the partition, which queues those that ask for more."""
    change = ["scontrol", "update", "partition=debug"]
    subprocess.run([*change, f"MaxTime={minutes}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*change, "MaxTime=INFINITE"], check=True)


def jobs(directory: Path, *states: str) -> list[str]:
    """Return the ids of the jobs that work below a directory, optionally only of some states."""
    lines = _squeue("--format=%A %T %Z")
    found = [line.split(" ", 2) for line in lines]
    return [
        number
        for number, state, place in found
        if f"{place}/".startswith(f"{directory}/") and (not states or state in states)
    ]


def until_no_jobs_of(directory: Path, within: float = 30.0) -> None:
    """Wait until no job works below a directory."""
    until = time.monotonic() + within
    while left := jobs(directory):
        assert time.monotonic() < until, f"jobs {left} go on"
        time.sleep(0.1)


def _squeue(*words: str) -> list[str]:
    done = subprocess.run(["squeue", "--noheader", *words], capture_output=True, text=True)
    return done.stdout.splitlines()
