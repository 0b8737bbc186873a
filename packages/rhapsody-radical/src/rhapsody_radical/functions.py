"""Function tasks: through RAPTOR, or as programs of their own."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rhapsody import CapabilityError, TaskDescription
from rhapsody.sdk import make_sandbox
from rhapsody_radical import calls, raptor_config, schema, translate
from rhapsody_radical.descriptions import as_list, task_settings
from rhapsody_radical.fleet import Pilot
from rhapsody_radical.jobs import Job


class ServiceFunctionError(CapabilityError):
    """Error for a function as a service, which RADICAL-Pilot does not support."""


def completed(
    uid: str, task_desc: Mapping[str, Any], specific: Mapping[str, Any] | None
) -> TaskDescription:
    """Return a description with all required keys, from one that may lack some."""
    task: dict[str, Any] = {
        "name": uid,
        "function": None,
        "executable": None,
        "args": (),
        "kwargs": {},
        "is_service": False,
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        **task_desc,
    }
    task["uid"] = uid
    own = task.get("task_backend_specific_kwargs") or {}
    task["task_backend_specific_kwargs"] = dict(own if specific is None else specific)
    return cast("TaskDescription", task)


def default_raptor(pilot: Pilot, cores: int | None) -> dict[str, Any]:
    """Return RAPTOR's configuration where a user gave none, with this many cores or its share.

    Raises:
        CapabilityError: The pilot is too small for it.
    """
    per_node = pilot.has("cores") or pilot.cores
    if cores is None:
        cores = max(1, min(per_node, (pilot.cores + 1) // 2 - (pilot.cores > 2)))
    if cores > per_node or cores + 1 > pilot.cores:
        raise CapabilityError(
            f"pilot {pilot.uid} has {pilot.cores} cores: too few for RAPTOR, whose master "
            f"takes one and whose worker would take {cores}; ask for more cores, or run "
            "functions as programs: RadicalExecutionBackend(functions='executable')"
        )
    return raptor_config.default(cores)


def describe_call(job: Job, batch: calls.Batch) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return RADICAL-Pilot's words for a call on RAPTOR, and its order, with its sandbox made.

    Args:
        job: The task.
        batch: What those that are submitted with it share.

    Raises:
        TypeError: The call cannot be pickled.
        CapabilityError: It is too large, or asks for ranks.
    """
    task = job.task
    job.on_raptor = True
    if task.get("sandbox"):
        task["sandbox"] = make_sandbox(task["sandbox"])
        below = os.path.join(job.pilot.sandbox, task["uid"])
        if task["sandbox"] != below:
            os.symlink(task["sandbox"], below)
    words, order = call_words(task, job.pilot.sandbox, batch)
    if task.get("sandbox"):
        words["sandbox"] = task["sandbox"]
    return words, order


def call_words(
    task: TaskDescription,
    directory: str | None = None,
    batch: calls.Batch | None = None,
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return RADICAL-Pilot's description of a function task on RAPTOR, and its packed call.

    Args:
        task: The task.
        directory: The directory for large values; `None`: none.
        batch: Data that is shared by tasks that are submitted together.
    """
    settings = task_settings(task)
    capture = task.get("capture", True)
    order = calls.pack(task, settings, capture=capture, directory=directory, batch=batch)
    left_out = ("environment", "pre_exec", "named_env")
    words = {key: value for key, value in settings.items() if key not in left_out}
    words |= {"mode": schema.TASK_FUNCTION, "uid": task["uid"]}
    resources = task.get("resources")
    if resources is not None:
        if resources.ranks > 1:
            raise CapabilityError(
                f"task {task['name']!r} asks for {resources.ranks} ranks: functions have one; "
                "use an executable for MPI"
            )
        words["cores_per_rank"] = resources.cores
    return words, order


def describe_program(job: Job) -> dict[str, Any]:
    """Turn a call into a program of its own, which RADICAL-Pilot's agent schedules."""
    task = job.task
    job.program = True
    resources = task.get("resources")
    if resources is not None and resources.ranks > 1:
        raise CapabilityError(
            f"task {task['name']!r} asks for {resources.ranks} ranks: functions have one"
        )
    settings = task_settings(task)
    program = cast("TaskDescription", dict(task))
    order, reply = f"{task['uid']}.call", f"{task['uid']}.reply"
    program["executable"] = sys.executable
    program["arguments"] = ["-m", "rhapsody_radical.call", order, reply]
    program.pop("stdin", None)
    words = translate.describe_executable(program, job.pilot)
    translate.check_fits(task["name"], words, job.pilot)
    job.own_sandbox = translate.place(task, words, job.pilot)
    settings = {**settings, "pre_exec": ()}
    packed = calls.pack(task, settings, capture=False, directory=task["sandbox"])
    Path(task["sandbox"], order).write_bytes(pickle.dumps(packed, 5))
    return words


def tidy(job: Job, state: str) -> None:
    """Remove files that were created only for the call."""
    sandbox = job.task.get("sandbox")
    if not job.program:
        if state != schema.DONE:  # else who read them has removed them
            calls.forget(job.pilot.sandbox, job.uid)
    elif sandbox and job.own_sandbox and state == schema.DONE:
        shutil.rmtree(sandbox, ignore_errors=True)
        del job.task["sandbox"]
    elif sandbox:
        calls.forget(sandbox, job.uid)


ON_RAPTOR = {
    *("environment", "pre_exec", "timeout", "cores_per_rank", "input_staging", "output_staging"),
    *("stage_on_error", "metadata", "tags", "name", "pilot", "priority", "raptor_id", "cleanup"),
    *("mode", "pre_exec_sync", "restartable"),
}
"""What RAPTOR, or we for it, honours of a task's settings in RADICAL-Pilot's own words."""


def needs_more(task: TaskDescription, cores: int) -> bool:
    """Return whether a call needs something that RAPTOR does not offer.

    Examples are GPUs, memory, more cores than RAPTOR has, and settings of programs.
    """
    specific = task["task_backend_specific_kwargs"]
    if any(value is not None for key, value in specific.items() if key not in ON_RAPTOR):
        return True
    if not all(isinstance(each, str) for each in as_list(specific.get("pre_exec"))):
        return True  # commands for single ranks
    resources = task.get("resources")
    return int(specific.get("cores_per_rank") or 1) > cores or (
        resources is not None
        and bool(resources.gpus or resources.memory or resources.cores > cores)
    )
