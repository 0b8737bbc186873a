"""Results of tasks: output, exit codes and errors, from RADICAL-Pilot's reports and files.

RADICAL-Pilot truncates output, reports timeouts as cancellations, and reports some failures as
successes. This module corrects these errors.
"""

from __future__ import annotations

import ast
import json
import os
import re
from typing import Any

from rhapsody import (
    CapabilityError,
    DataError,
    Resources,
    TaskDescription,
    TaskFailedError,
    TaskLostError,
    TaskTimeoutError,
)
from rhapsody.sdk import output_of, too_early
from rhapsody_radical import functions
from rhapsody_radical.pilots import PilotTask
from rhapsody_radical.translate import missing_outputs, output_names

DONE, FAILED, CANCELED = "DONE", "FAILED", "CANCELED"

OF_LAUNCHER = re.compile(
    r"(srun: (error: \S+: tasks? [\d,-]+: |(Force )?Terminat(ing|ed) )"
    r"|/\S+\.exec\.sh: line \d+: +\d+ [A-Z]).*\n?"
)
"""Pattern of the lines that `srun` and RADICAL-Pilot's script print about a failed program."""


def of(job: PilotTask, state: str) -> tuple[str, BaseException | None]:
    """Collect a job's output, and determine the state and the error to report.

    Args:
        job: The job.
        state: RADICAL-Pilot's final state, or `"LOST"`.

    Returns:
        The state and the error to report.
    """
    if state == "LOST" or not job.sent:
        if job.cancelled:
            return CANCELED, None
        reason = job.lost or job.pilot.reason
        return FAILED, TaskLostError(f"task {job.task['name']!r} was lost: {reason}")
    if job.is_function:
        if job.program:
            collect_output(job)
            job.task.pop("exit_code", None)
        return function_outcome(job, state)
    collect_output(job)
    if job.on_raptor and job.ended.value is not None:
        reply = json.loads(job.ended.value)
        job.task["worker"] = reply.get("host", job.task.get("worker"))
        if reply.get("usage"):
            job.task["usage"] = reply["usage"]
    if job.awaited and not job.cancelled and job.info is None:
        return FAILED, too_early(job.task, job.task.get("exit_code"))
    return outcome(job, state)


def output_paths(job: PilotTask) -> tuple[str, str]:
    """Return the paths of the files with the output of an executable."""
    sandbox, (out, err) = job.task.get("sandbox", ""), output_names(job.task)
    return os.path.join(sandbox, out), os.path.join(sandbox, err)


def collect_output(job: PilotTask) -> None:
    """Write the output and the exit code of an executable into its description."""
    task, ended = job.task, job.ended
    code = ended.exit_code
    if code is not None:
        task["exit_code"] = int(code)
    capture = task.get("capture", True)
    if capture is False:
        task["stdout"] = task["stderr"] = ""
        return
    paths = output_paths(job)
    if capture == "files":
        task["stdout"], task["stderr"] = paths
        return
    task["stdout"], errors = map(output_of, paths)
    while OF_LAUNCHER.fullmatch(errors, last := errors.rfind("\n", 0, -1) + 1):
        errors = errors[:last]
    task["stderr"] = errors


def outcome(job: PilotTask, state: str) -> tuple[str, BaseException | None]:
    """Return the state and the error to report for an executable whose output was collected.

    Returns:
        The state and the error. The error is `None` if the task did not fail, or if the exit code
        alone describes the failure.
    """
    if job.cancelled:
        return CANCELED, None
    if state == CANCELED:
        return FAILED, unrequested_cancellation(job)
    if state == DONE:
        missing = missing_outputs(job.task, job.task.get("sandbox", ""))
        if missing:
            return FAILED, DataError(
                f"task {job.task['name']!r} succeeded, but did not write {', '.join(missing)} "
                "(listed in its output_staging)"
            )
        return DONE, None
    ended = job.ended
    if ended.exit_code and not _infrastructure(ended.exception):
        return FAILED, None
    return FAILED, error_of(job.task, ended.exception, ended.detail)


def function_outcome(job: PilotTask, state: str) -> tuple[str, BaseException | None]:
    """Return the state and the error to report for a function."""
    if job.cancelled:
        return CANCELED, None
    if state == CANCELED:
        return FAILED, unrequested_cancellation(job)
    ended = job.ended
    if reply := _reply(job) if job.program else ended.value:
        error = functions.unpack(reply, job.task)
        return (DONE, None) if error is None else (FAILED, error)
    status = int(ended.exit_code or 0)
    if ended.exception and not (status and job.program):
        return FAILED, error_of(job.task, ended.exception, ended.detail)
    tail = (job.task.get("stderr") or "").strip()[-1500:]
    code = f", exit code {status}" if status else ""
    text = f"task {job.task['name']!r} ended without a result ({state}{code}). {tail}".rstrip()
    ranks = (job.task.get("resources") or Resources()).ranks
    if job.program and (status > 128 or ranks > 1):  # a signal; launchers return any code for it
        return FAILED, TaskLostError(text)
    return FAILED, TaskFailedError(text, exit_code=status or None)


def _reply(job: PilotTask) -> bytes | None:
    path = os.path.join(job.task.get("sandbox", ""), f"{job.uid}.reply")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def unrequested_cancellation(job: PilotTask) -> BaseException:
    """Return the error for a job that RADICAL-Pilot canceled without a request."""
    name = job.task["name"]
    if job.timeout or job.startup_timeout:
        limits = {"timeout": job.timeout, "startup_timeout": job.startup_timeout}
        own = " or ".join(f"its {key} of {value:g} s" for key, value in limits.items() if value)
        return TaskTimeoutError(f"task {name!r} exceeded {own}")
    reason = job.pilot.reason
    if reason:
        return TaskLostError(f"task {name!r} was lost: {reason}")
    return TaskLostError(
        f"task {name!r} was canceled by RADICAL-Pilot on pilot {job.pilot.uid}, not by this program"
    )


def _infrastructure(exception: str | None) -> bool:
    return "pilot died" in (exception or "")


KNOWN: tuple[tuple[str, type[BaseException], str], ...] = (
    ("ChildProcessError", TaskLostError, " was lost"),
    ("AssertionError", CapabilityError, " does not fit on its pilot"),
    ("ValueError.*does not fit", CapabilityError, " does not fit on its pilot"),
    ("FileNotFoundError", DataError, ": a file to stage does not exist"),
    ("TimeoutError", TaskTimeoutError, ""),
)
"""Patterns of RADICAL-Pilot's exceptions, each with the type and the text of the reported error."""


def error_of(task: TaskDescription, exception: str | None, detail: str | None) -> BaseException:
    """Return the exception for a failure that RADICAL-Pilot describes in text."""
    name = task["name"]
    text = _message(exception)
    if _infrastructure(exception):
        return TaskLostError(f"task {name!r} was lost: {text} ({detail})")
    for pattern, kind, words in KNOWN:
        if re.match(pattern, exception or "", re.DOTALL):
            return kind(f"task {name!r}{words}: {text}")
    if isinstance(stderr := task.get("stderr"), str) and task.get("capture") != "files":
        task["stderr"] = "\n".join(filter(None, [stderr.rstrip("\n"), exception]))
    tail = (detail or "").strip()[-1500:]
    more = f"\n{tail}" if tail and tail != text else ""
    return TaskFailedError(
        f"task {name!r} failed in RADICAL-Pilot: {text}{more}", stderr=task.get("stderr", "")
    )


def _message(exception: str | None) -> str:
    """Return the text between the parentheses of an exception's `repr`."""
    if not exception:
        return "RADICAL-Pilot did not report the reason"
    start, end = exception.find("("), exception.rfind(")")
    inner = exception[start + 1 : end] if 0 <= start < end else exception
    try:
        value: Any = ast.literal_eval(inner)
    except (ValueError, SyntaxError):
        return exception
    return str(value)
