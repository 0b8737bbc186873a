"""Commands `rhapsody submit`, `attach` and `cancel` for runs that are jobs themselves."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhapsody import Resources, SubmissionError, own_runs
from rhapsody.backends import backend_from_options
from rhapsody.plugins import UsageError
from rhapsody.sdk import end_of_file, escaped, mask, seconds, slurm_refusal, slurm_waiting
from rhapsody_psij.detached import LeftJobs
from rhapsody_psij.jobs import JobSettings, job_spec
from rhapsody_psij.submission import (
    DIRECTORY,
    OUTPUT,
    RHAPSODY,
    EndOfRun,
    JobOfRun,
    SubmittedRun,
    cancel_detached,
)

log: logging.Logger = logging.getLogger("rhapsody.psij")

SUBMIT = "run a workflow as a job of a batch system"
ATTACH = "follow a run that was submitted with rhapsody submit"
CANCEL = "cancel a run that was submitted with rhapsody submit"

STOP_BEFORE = 120.0
"""Default number of seconds before the time limit at which the run stops; at most a quarter of the
limit."""

SYSTEMS = {"sbatch": "slurm", "bsub": "lsf", "flux": "flux"}
"""Executors by a command of their batch system. The executors for PBS have the same commands."""

OPTIONS = {
    "account": "--account",
    "attributes": "--attribute",
    "cores": "--cores",
    "memory": "--memory",
    "nodes": "--nodes",
    "queue": "--queue",
    "walltime": "--walltime",
}
"""Options of `rhapsody submit` by the setting of a job."""

NEEDED_TO_CONTINUE = ("journal", "record")
"""Engine options without which a run cannot be continued."""

POLL = 1.0
"""Seconds between two checks of the files of a submitted run."""

QUERY_INTERVAL = 15.0
"""Seconds between two queries of the queue."""

FIRST_REASON = 5.0
"""Seconds to wait for the first reason for which a submitted job waits."""

LAST_LOOK = 5.0
"""Seconds for which the status of a run is shown after its end was noticed in another way."""

MAX_OUTPUT, LAST_LINES = 4000, 10
"""Bytes and lines at the end of the output that are printed if the run has failed."""


def configure_submit(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rhapsody submit`."""
    what = parser.add_mutually_exclusive_group(required=True)
    text = "the script, as for rhapsody run; its own arguments follow after --"
    what.add_argument("script", nargs="?", metavar="SCRIPT[:FUNC]", help=text)
    text = "a module instead of a script"
    what.add_argument("-m", "--module", metavar="MODULE[:FUNC]", help=text)
    parser.add_argument("-w", "--walltime", metavar="TIME", help="time limit of the job: 24h")
    text = "submit further jobs that continue the run until the script has ended"
    parser.add_argument("--until-done", action="store_true", help=text)
    text = "the time before the limit at which the run stops (default: 2 min, at most a quarter)"
    parser.add_argument("--stop-before", metavar="TIME", help=text)
    job = parser.add_argument_group(
        "options of the job", "The defaults are those of a profile for psij."
    )
    text = 'the batch system: slurm, pbs, pbs_classic, lsf, flux, cobalt, or "local" for a process'
    job.add_argument("--executor", metavar="NAME", help=text)
    job.add_argument("--queue", metavar="NAME", help="the queue or partition")
    job.add_argument("--account", metavar="NAME", help="the account that is charged")
    job.add_argument("--nodes", type=int, default=1, metavar="N", help="the number of nodes")
    text = "the number of cores of each node (default: 1)"
    job.add_argument("--cores", type=int, default=1, metavar="N", help=text)
    job.add_argument("--gpus", type=int, default=0, metavar="N", help="the GPUs of each node")
    job.add_argument("--memory", metavar="SIZE", help="the memory of each node: 8GB")
    text = "an option of the batch system, such as slurm.qos=normal or slurm.exclusive; repeatable"
    keys: dict[str, Any] = {"action": "append", "default": []}
    job.add_argument("--attribute", **keys, metavar="NAME[=VALUE]", help=text)
    run = parser.add_argument_group("options of rhapsody run")
    run.add_argument("--profile", metavar="NAME", help="the profile in rhapsody.toml")
    run.add_argument("-b", "--backend", metavar="NAME", help="the backend")
    keys["metavar"] = "KEY=VALUE"
    run.add_argument("-o", "--option", **keys, help="a setting of the backend; may be repeated")
    run.add_argument("-e", "--engine", **keys, help="an option of the engine; may be repeated")
    text = "cancel all other tasks when one has failed"
    run.add_argument("--fail-fast", action="store_true", help=text)
    text = "cancel all other tasks when N have failed"
    run.add_argument("--max-failures", metavar="N", help=text)
    text = "run all tasks, instead of resuming a run that failed or was interrupted"
    run.add_argument("--fresh", action="store_true", help=text)


def submit(arguments: argparse.Namespace) -> int:
    """Submit a run, and print its name, its job and the commands to follow and cancel it.

    Returns:
        The exit code.

    Raises:
        UsageError: An argument or a setting of the backend is invalid.
        SubmissionError: The batch system refuses the job, or the same program was submitted before
            and has not ended.
    """
    script = _script_of(arguments)
    profile = _profile(arguments)
    executor = _executor_of(arguments, profile)
    options = profile["options"] if profile["backend"] == "psij" else {}
    try:
        spec, walltime = _spec(arguments, script, options, executor)
        before = seconds("--stop-before", arguments.stop_before or STOP_BEFORE)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    if walltime is not None and arguments.stop_before is None:
        before = min(before, walltime / 4)
    if walltime is not None and before >= walltime:
        raise UsageError(
            f"--stop-before {arguments.stop_before} must be less than the time limit of the job"
        )
    backend_from_options(profile["backend"], profile["options"])  # the job would fail only later
    extra = _extra(arguments, profile, walltime)
    given = _run_arguments(arguments, extra)
    named = str(arguments.module or os.path.abspath(arguments.script))
    program = [named, *arguments.arguments]
    _require_ended(program)
    submission = SubmittedRun.create(
        {
            "script": script,
            "program": program,
            "arguments": [*(["--fresh"] if arguments.fresh else []), *given],
            "continued_arguments": given,
            "cwd": os.getcwd(),
            "executor": executor,
            "spec": spec,
            "walltime": walltime,
            "stop_before": before,
            "until_done": arguments.until_done,
        }
    )
    try:
        _require_ended(program, without=submission)  # one that was submitted at the same moment
        try:
            job = submission.submit()
        except SubmissionError as error:
            raise SubmissionError(f"the job was refused: {error}{_cure(str(error))}") from None
    except BaseException:
        shutil.rmtree(submission.root)
        raise
    never = _cannot_start(submission, job) if executor == "slurm" else None
    if never is not None:
        submission.remove_from_queue(job)
        shutil.rmtree(submission.root)
        raise SubmissionError(f"{_job_text(submission, job)} was canceled: {never}")
    digits = submission.root.name[-4:]
    _say(f"run {submission.root.name}: {_job_text(submission, job)} submitted")
    _say(f"output: {os.path.relpath(submission.root / OUTPUT)}")
    _say(f"to follow it: rhapsody attach {digits}; to end it: rhapsody cancel {digits}")
    return 0


def _cannot_start(submission: SubmittedRun, job: JobOfRun) -> str | None:
    """Wait a moment for the first reason why a job waits.

    Returns:
        The reason, and the option to change, if the reason is permanent; otherwise `None`.
    """
    end = time.monotonic() + FIRST_REASON
    try:
        while (status := submission.status(job)) in ("", "None") and time.monotonic() < end:
            time.sleep(POLL)
    except SubmissionError:  # the queue cannot be queried now
        return None
    return _never(status or "")


def _require_ended(program: list[str], without: SubmittedRun | None = None) -> None:
    """Require that all submitted runs of a program, with the same arguments, have ended.

    Args:
        program: The program and its arguments.
        without: The submission that is exempt.

    Raises:
        SubmissionError: One of them has not ended.
    """
    for submission in _own():
        if submission.description.get("program") != program or submission.end is not None:
            continue
        if without is not None and submission.root == without.root:
            continue
        if not submission.jobs:  # its `rhapsody submit` is about to submit the first one, or died
            raise SubmissionError(
                f"run {submission.root.name} of the same program and arguments is being submitted; "
                f"if its rhapsody submit was killed, remove {os.path.relpath(submission.root)}"
            )
        queue, job = _Queue(submission), submission.jobs[-1]
        end = queue.check(job)
        if queue.missing is not None:
            time.sleep(2 * POLL)
            end = queue.check(job)
        if submission.end is not None:
            continue
        if end is not None:
            submission.finish(end)
            continue
        name = submission.root.name
        raise SubmissionError(
            f"run {name} of the same program and arguments has not ended "
            f"({_job_text(submission, job)}). To follow it, use rhapsody attach {name[-4:]}; to "
            f"submit the program again, first use rhapsody cancel {name[-4:]}"
        )


def _say(text: str) -> None:
    print(escaped(mask(text)), flush=True)  # noqa: T201 - the command's output


def _script_of(arguments: argparse.Namespace) -> str:
    """Return the path of the script without its function, or the module as a path.

    Raises:
        UsageError: The script does not exist.
    """
    given = str(arguments.module or arguments.script)
    script, _, function = given.rpartition(":")
    if not (script and function.isidentifier()):
        script = given
    if arguments.module:
        return script.replace(".", "/")
    if not os.path.exists(script):
        raise UsageError(f"script {script!r} does not exist (looked in {os.getcwd()})")
    return script


def _profile(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the backend of the run, its options, and the needed engine options that are off.

    Raises:
        UsageError: `rhapsody config` failed, and has printed the reason.
    """
    command = [*RHAPSODY, "config", "--json"]
    if arguments.profile is not None:
        command += ["--profile", arguments.profile]
    said = subprocess.run(command, stdout=subprocess.PIPE)
    if said.returncode != 0:
        raise UsageError("the profile cannot be used; see the message above")
    settings = {entry["name"]: entry for entry in json.loads(said.stdout)["settings"]}
    backend = settings["backend"]["value"]
    if isinstance(backend, list) and arguments.backend is None:
        raise UsageError(
            f"the profile sets several backends ({', '.join(backend)}); select one with -b NAME"
        )
    options: dict[str, Any] = {}
    if arguments.backend in (None, backend):
        options = {
            name.removeprefix("options."): entry["value"]
            for name, entry in settings.items()
            if name.startswith("options.") and entry["source"] != "default"
        }
    options |= _parsed(arguments.option)
    engine = {
        name: entry["value"]
        for name in NEEDED_TO_CONTINUE
        if not (entry := settings[f"engine.{name}"])["source"].startswith("default")
    }
    engine |= _parsed(arguments.engine)
    off = [name for name in NEEDED_TO_CONTINUE if engine.get(name) is False]
    return {"backend": arguments.backend or backend, "options": options, "off": off}


def _parsed(options: list[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` options; `rhapsody run` reports mistakes in them."""
    found: dict[str, Any] = {}
    for option in options:
        key, _, text = option.partition("=")
        try:
            found[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = text
    return found


def _executor_of(arguments: argparse.Namespace, profile: Mapping[str, Any]) -> str:
    if arguments.executor is not None:
        return str(arguments.executor)
    if profile["backend"] == "psij":
        return str(profile["options"].get("executor", "local"))
    for command, executor in SYSTEMS.items():
        if shutil.which(command):
            return executor
    raise UsageError(
        "no batch system was found (looked for the commands sbatch, bsub and flux); pass "
        "--executor, such as --executor pbs, or --executor local for a process of this machine"
    )


def _spec(
    arguments: argparse.Namespace, script: str, options: Mapping[str, Any], executor: str
) -> tuple[dict[str, Any], float | None]:
    """Return the specification of the jobs, and their time limit in seconds if it is known."""
    attributes = dict(options.get("attributes") or {})
    for text in arguments.attribute:
        name, equals, value = text.partition("=")
        attributes[name] = value if equals else True
    settings = JobSettings(
        queue=arguments.queue or options.get("queue"),
        account=arguments.account or options.get("account"),
        nodes=arguments.nodes,
        attributes=attributes,
    )
    walltime = arguments.walltime or attributes.get("duration")
    limit = None if walltime is None else seconds("--walltime", walltime)
    resources = Resources(
        ranks=arguments.nodes,
        cores=arguments.cores,
        gpus=arguments.gpus,
        memory=arguments.memory,
        walltime=limit,
    )
    task: Any = {"name": Path(script).stem, "function": None, "resources": resources}
    return job_spec(task, settings, executor), limit


def _extra(
    arguments: argparse.Namespace, profile: Mapping[str, Any], walltime: float | None
) -> list[str]:
    """Return the arguments of `rhapsody run` that `--until-done` adds.

    Raises:
        UsageError: The run cannot be continued.
    """
    if not arguments.until_done:
        return []
    if walltime is None:
        raise UsageError(
            "--until-done needs the time limit of the job: pass --walltime, or set duration in the "
            "attributes of the profile"
        )
    for name in profile["off"]:
        raise UsageError(
            "--until-done continues a run with its journal and its record, but the engine's option "
            f"{name} is false: remove it from the profile or from -e"
        )
    options = {"executor": "local", **profile["options"]}
    if profile["backend"] == "psij" and options["executor"] != "local" and "detach" not in options:
        return ["--option=detach=true"]
    return []


def _run_arguments(arguments: argparse.Namespace, extra: list[str]) -> list[str]:
    """Return the arguments of `rhapsody run`."""
    given = list(extra)
    for flag, value in (
        ("--profile", arguments.profile),
        ("--backend", arguments.backend),
        ("--max-failures", arguments.max_failures),
        ("--module", arguments.module),
    ):
        if value is not None:
            given.append(f"{flag}={value}")
    given += [f"--option={each}" for each in arguments.option]
    given += [f"--engine={each}" for each in arguments.engine]
    if arguments.fail_fast:
        given.append("--fail-fast")
    if arguments.script is not None:
        given.append(arguments.script)
    return [*given, "--", *arguments.arguments]


def _cure(message: str) -> str:
    """Return a hint that names the option to change after a refusal by Slurm."""
    meaning = slurm_refusal(message)
    if meaning.passes:
        return ". This can pass: submit it again later"
    option = OPTIONS.get(meaning.setting)
    return "" if option is None else f". To change it, use {option}"


def _never(reason: str) -> str | None:
    """Return which option to change if a job waits for a permanent reason, else `None`."""
    meaning = slurm_waiting(reason, first="")  # a partition that is down may come back
    if meaning is None or meaning.passes:
        return None
    option = OPTIONS.get(meaning.setting, "set of options")
    if reason.startswith("PartitionConfig"):  # which does not say what exceeds a limit
        option += ", or less --cores, --nodes, --memory or --gpus"
    elif reason.startswith("Partition") and meaning.setting != "queue":
        option += f" or {OPTIONS['queue']}"
    return f"{reason}. This reason is permanent: submit the run with another {option}"


def _job_text(submission: SubmittedRun, job: JobOfRun) -> str:
    if job.job is None:
        return f"job {job.number}, which is not submitted"
    if submission.executor == "local":
        return f"process {job.job} of this machine"
    return f"job {job.job} of {submission.executor}"


# Following and canceling.


def configure_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument of `rhapsody attach` and `rhapsody cancel`."""
    text = (
        "the name that rhapsody submit has printed, or the name of a run that continued it; also "
        "the beginning or the last four digits of a name (default: your newest submitted run)"
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help=text)


def _own() -> list[SubmittedRun]:
    """Return the user's submitted runs in this directory, the newest first.

    Raises:
        DataError: Other users could replace the runs in this directory.
    """
    found: list[SubmittedRun] = []
    for root in reversed(own_runs(Path(os.path.abspath(".rhapsody")))):
        place = root / DIRECTORY
        if not os.path.lexists(place / "description.json"):
            continue
        if not (_only_user_writes(root) and _only_user_writes(place)):
            log.warning("ignoring %s: other users could write to it", escaped(str(place)))
            continue
        try:
            submission = SubmittedRun(root)
            _ = submission.jobs
        except (OSError, ValueError, TypeError, SubmissionError) as error:
            log.warning("ignoring %s: %s", escaped(str(place)), escaped(str(error)))
        else:
            found.append(submission)
    return found


def _only_user_writes(directory: Path) -> bool:
    status = os.lstat(directory)
    mine = status.st_uid == os.geteuid()
    return mine and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022


def _selected(text: str | None) -> SubmittedRun:
    """Return the submitted run that the user's text selects.

    Raises:
        UsageError: The text selects no submitted run, or several.
    """
    names = {job.run: one for one in _own() for job in one.jobs}
    for matches in (str.__eq__, str.startswith, lambda name, end: name.endswith(f"-{end}")):
        found = {id(one): one for name, one in names.items() if matches(name, text or "")}
        if len(found) == 1 or (text is None and found):
            return next(iter(found.values()))
        if found:
            listed = ", ".join(one.root.name for one in found.values())
            raise UsageError(f"{text!r} selects several submitted runs; name one of them: {listed}")
    which = "no submitted run" if text is None else f"no submitted run {text!r}"
    base = os.path.abspath(".rhapsody")
    raise UsageError(f"{which} in {base}; `rhapsody submit` submits runs")


class _Queue:
    """Batch queue, queried about one submitted run at most once per `QUERY_INTERVAL`.

    Attributes:
        missing: The job that the last query did not find; `None` if there is none.
        never: The text about the job if it waits for a permanent reason, otherwise `None`.
    """

    def __init__(self, submission: SubmittedRun) -> None:
        self._submission = submission
        self._next = 0.0
        self._last = ""
        self.missing: JobOfRun | None = None
        self.never: str | None = None

    def soon(self) -> None:
        """Query the queue in the next check."""
        self._next = 0.0

    def check(self, job: JobOfRun) -> EndOfRun | None:
        """Print why a job waits, if the reason has changed.

        Returns:
            The end of the run if the job has ended without writing the end.
        """
        submission = self._submission
        if job.job is None and job.number > 1:  # the previous job submits it, or was killed
            job = submission.jobs[job.number - 2]
        if job.job is None or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + QUERY_INTERVAL
        text = _job_text(submission, job)
        try:
            status = submission.status(job)
        except SubmissionError as error:
            self._print(str(error))
            return None
        if status is not None:
            never = _never(status)
            cancel = f"rhapsody cancel {submission.root.name[-4:]}"
            self.never = never and f"{text} waits: {never}; to cancel it, use {cancel}"
            if status != "running" and never is None:
                self._print(f"{text} waits{f': {status}' if status not in ('', 'None') else ''}")
            self.missing = None
            return None
        if self.missing != job:  # its last files may not be visible on this host yet
            self.missing, self._next = job, time.monotonic() + 2 * POLL
            return None
        output = submission.job_output
        why = f": {output}" if output else ""
        if submission.host(job) is None:
            return EndOfRun(f"{text} ended without starting the run{why}")
        return EndOfRun(
            f"{text} was killed, or its node failed{why}; submit the run again to continue it"
        )

    def _print(self, text: str) -> None:
        if text != self._last:
            self._last = text
            _say(text)


def attach(arguments: argparse.Namespace) -> int:
    """Follow a submitted run until its end. After Ctrl-C, the run continues.

    Returns:
        The exit code of the script.

    Raises:
        SubmissionError: The job of the run waits for a permanent reason.
    """
    submission = _selected(arguments.run)
    name = submission.root.name
    try:
        end = _followed(submission)
    except KeyboardInterrupt:
        _say(f"\nrun {name} continues; to follow it again: rhapsody attach {name[-4:]}")
        return 0
    code = 1 if end.exit_code is None else end.exit_code
    _say(f"run {name}: {end.reason}; exit code {code}")
    output = submission.root / OUTPUT
    if output.exists():
        _say(f"output: {os.path.relpath(output)}")
        lines = end_of_file(str(output), MAX_OUTPUT).splitlines() if code else []
        for line in lines[-LAST_LINES:]:
            _say(f"  {line}")
    return code


def _followed(submission: SubmittedRun) -> EndOfRun:
    """Show the status of each job's run until the submitted run ends.

    Returns:
        The end of the submitted run.

    Raises:
        SubmissionError: The job of the run waits for a permanent reason.
    """
    queue, shown = _Queue(submission), ""
    while True:
        end, job = submission.end, submission.jobs[-1]
        if job.run != shown and (submission.root.with_name(job.run) / "run.jsonl").exists():
            shown = job.run
            if job.number > 1:
                _say(f"job {job.number} of this run: run {job.run}")
            _watch(submission, job, queue)
        elif end is not None:
            return end
        elif (end := queue.check(job)) is not None and submission.end is None:
            submission.finish(end)
        elif queue.never is not None:
            raise SubmissionError(queue.never)
        else:
            time.sleep(POLL)


def _watch(submission: SubmittedRun, job: JobOfRun, queue: _Queue) -> None:
    """Show the status of the run of a job until its end.

    A record of another host does not show that its program was killed, so the end of the submitted
    run, its next job and the queue are checked as well.
    """
    signals = iter((signal.SIGINT, signal.SIGTERM))
    with subprocess.Popen([*RHAPSODY, "status", "--watch", job.run]) as status:
        try:
            while status.poll() is None:
                last, end = submission.jobs[-1], submission.end
                if end is None and last.job is not None and (end := queue.check(last)) is not None:
                    submission.finish(end)
                ended = end is not None or last.number > job.number
                try:
                    status.wait(LAST_LOOK if ended else POLL)
                except subprocess.TimeoutExpired:
                    if ended:
                        status.send_signal(next(signals, signal.SIGKILL))
        except KeyboardInterrupt:  # the terminal has interrupted both processes
            try:
                status.wait(1)
            except subprocess.TimeoutExpired:
                status.terminate()
            raise


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a submitted run, wait until it has ended, and cancel its detached jobs.

    Returns:
        The exit code.

    Raises:
        SubmissionError: The batch system does not cancel a job.
    """
    submission = _selected(arguments.run)
    name, end = submission.root.name, submission.end
    if end is not None:
        _say(f"run {name} has already ended: {end.reason}")
    else:
        _cancel(submission)
    _cancel_detached(submission)
    return 0


def _cancel_detached(submission: SubmittedRun) -> None:
    """Cancel the detached jobs of a run, and of the earlier runs of the program that it resumes."""
    program = submission.description.get("program")
    runs = [
        submission.root.with_name(job.run)
        for one in _own()
        if one.root == submission.root
        or (one.description.get("program") == program and one.root.name < submission.root.name)
        for job in one.jobs
    ]
    patterns = [os.path.join(glob.escape(str(run)), "*", "psij-*") for run in runs]
    left = LeftJobs.take_over(*patterns)
    try:
        count = cancel_detached(left)
    finally:
        left.close()
    if count:
        _say(f"canceled {count} detached {'job' if count == 1 else 'jobs'} of tasks")


def _cancel(submission: SubmittedRun) -> None:
    name = submission.root.name
    submission.request_cancellation()
    queue, removed = _Queue(submission), 0
    _say(f"canceling run {name}; waiting for its end (Ctrl-C does not stop the cancellation)")
    while (end := submission.end) is None:
        job = submission.jobs[-1]
        if job.job is not None and job.number > removed and submission.host(job) is None:
            removed = job.number
            submission.remove_from_queue(job)
            queue.soon()
        elif job.number == 1 and job.job is None:  # `rhapsody submit` was killed
            submission.finish(EndOfRun("canceled before it was submitted"))
        elif queue.check(job) is not None and submission.end is None:
            submission.finish(EndOfRun("canceled"))
        else:
            time.sleep(POLL)
    _say(f"run {name}: {end.reason}")
