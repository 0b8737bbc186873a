"""Client process: the process in which PSI/J runs, started and used by the backend.

PSI/J handles SIGCHLD, blocks while it submits a job, and keeps threads that never end. In a
separate process, none of this affects the user's program. The client also outlives a program that
is killed: its standard input then ends, and it cancels the jobs that have not ended and are not
detached. If the program runs in a job itself, the batch system signals all processes of that job:
the client ignores signals that the engine handles, and so do the commands that it runs.

Messages are lines of JSON. The first line from the program contains the settings. Later ones are
`{"submit": [...]}` with specifications of `rhapsody_psij.jobs`, each with an `id`, `{"cancel":
[...]}` with ids, `{"attach": [...]}` with the ids and the batch system's ids of jobs of an earlier
run, `{"list": [...]}` with lines for the list of detached jobs, and `{"end": [...]}` as the last
one, with the ids of jobs to cancel; the tasks of all others have ended. If that line is missing,
because the program was killed or leaves its jobs, jobs whose specification contains `detach`
continue, and all others are canceled.

The client replies with `{"error": ...}` after a failed start, or `{}`, and then sends lists of
reports, `[id, state, message, exit code]`. All reports that are waiting are sent together. The
states are those of PSI/J, `REFUSED` for a job that could not be submitted, `LEFT` for one that
could not be canceled and may continue, `DELAYED` for one whose submission is tried again, and
`WAITING` for a job in Slurm's queue, with the reason as the message, each time that it has changed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

import psij
import psutil
from psij.executors.batch.batch_scheduler_executor import (
    BatchSchedulerExecutor,
    BatchSchedulerExecutorConfig,
)

from rhapsody.sdk import slurm_refusal
from rhapsody_psij.detached import LIST, locked

log: logging.Logger = logging.getLogger("rhapsody.psij")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the client ignores. It ends when its standard input ends."""

MAX_CANCELLATIONS = 8
"""Maximum number of jobs without a batch system that are canceled at the same time."""

CANCEL_ATTEMPTS = 10
"""Number of times that the cancellation of a job is tried."""

CANCEL_WAIT = 3.0
"""Seconds between these attempts."""

TERM_TIMEOUT = 6.0
"""Seconds to wait for the processes of a local job to end after SIGTERM. Longer than the time that
the job gives its program.
"""

KILL_TIMEOUT = 10.0
"""Seconds to wait for the processes of a local job to end after SIGKILL."""


QUICK = 5.0
"""Seconds from a submission or cancellation to the next query of the queue. The interval then
doubles up to the option `poll_interval`.
"""

SCRIPT_TIMEOUT = 10.0
"""Seconds to wait for the ends of jobs whose tasks have ended."""

NEVER = 10**8
"""Seconds between two queries by PSI/J's own thread, which can neither wake up nor slow down."""

COPIED = frozenset({"slurm", "pbs", "pbs_classic"})
"""Executors whose batch system copies a job's script when the job is submitted."""

MAX_ARRAY = 50
"""Maximum number of jobs in an array, whose script contains the values of all its jobs."""

MAX_OWN = 2**14
"""Maximum length of the values of a job in an array."""

SAME = ("name", "resources", "attributes", "directory")
"""Keys of a specification that determine the options in a job's script."""

ARRAY = """
_r_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
_r_index=$SLURM_ARRAY_TASK_ID
unset "${!SLURM_ARRAY_@}"  # a task would regard them as its own
case $_r_index in
"""
"""First commands in the script of an array. An element's native id is not its `SLURM_JOB_ID`."""

NO_ANSWER = "Failed to poll for job status"
"""Start of the message with which PSI/J fails all jobs if it cannot query the queue. The jobs
continue, and the client attaches them again.
"""

REASON = "SystemFailure"
"""A reason of Slurm's that PSI/J knows."""


class JobClient:
    """Executor of PSI/J and its jobs.

    Args:
        directory: The directory for PSI/J's files.
        settings: The settings from the first line.
        report: Called with each report, from any thread.

    Raises:
        ValueError: PSI/J has no such executor, or cannot load it.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any], report: Callable[[list[Any]], None]
    ) -> None:
        self._directory = directory
        config = BatchSchedulerExecutorConfig(
            work_directory=directory,
            queue_polling_interval=NEVER,  # see `_poll`
            initial_queue_polling_delay=0,
            keep_files=settings["detach"],
        )
        self._executor = psij.JobExecutor.get_instance(settings["executor"], config=config)
        self._executor.set_job_status_callback(self._changed)
        self._slurm = settings["executor"] == "slurm"
        if self._slurm:
            executor: Any = self._executor
            executor.parse_status_output = partial(
                _parse_queue, executor.parse_status_output, waiting=self._waits
            )
            executor.get_status_command = partial(_status_command, executor.get_status_command)
        self._local = settings["executor"] == "local"
        if self._local:  # its jobs are child processes, which must not ignore signals
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)
        self._named = settings["executor"] in ("slurm", "lsf")
        self._report = report
        self._jobs: dict[str, psij.Job] = {}  # by the id of the specification
        self._ids: dict[str, str] = {}  # by PSI/J's id
        self._cancelled: set[str] = set()
        self._reasons: dict[str, str] = {}  # for which jobs wait
        self._change = threading.Condition()  # of `_cancelled` and `_closing`
        self._closing = False
        self._detached: set[str] = set()
        self._list = locked(directory / LIST, wait=True) if settings["detach"] else None
        self._submissions = ThreadPoolExecutor(1)  # one at a time, to keep their order
        self._to_cancel: SimpleQueue[str] = SimpleQueue()
        self._slow: float = settings["poll_interval"]
        self._interval = 4 * self._slow
        self._hurry = threading.Event()
        self._files: str | None = None
        self._batch: BatchSchedulerExecutor | None = None
        if isinstance(self._executor, BatchSchedulerExecutor):
            batch: Any = self._executor
            batch.get_submit_command = partial(_with_options, batch.get_submit_command)
            self._template = batch.generate_submit_script
            batch.generate_submit_script = self._generate
            if settings["executor"] in COPIED:  # not on the file system of the jobs
                self._files = tempfile.mkdtemp(prefix="rhapsody-psij-")
            self._batch = batch
            threading.Thread(target=self._poll, daemon=True).start()
        workers = MAX_CANCELLATIONS if self._batch is None else 1
        self._cancellations = ThreadPoolExecutor(workers)

    def submit(self, specs: Iterable[dict[str, Any]]) -> None:
        """Submit jobs, on Slurm in arrays, after those that already wait for their submission."""
        alike: dict[str, list[str]] = {}
        for spec in specs:
            number, job = spec.pop("id"), self._new_job()
            self._jobs[number], self._ids[job.id] = job, number
            job.marker = spec.pop("marker", None)
            job.listed = spec.pop("detach", None)
            job.script = spec.pop("script", None)
            job.around = spec.pop("around", None)
            job.options = spec.pop("options")
            job.given = spec
            if job.listed is not None:
                self._detached.add(number)
            own, common = job.script or ("", "")
            same = number
            if self._slurm and len(own) <= MAX_OWN:
                same = json.dumps([common, job.options, *(spec.get(name) for name in SAME)])
            alike.setdefault(same, []).append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), MAX_ARRAY):
                self._submissions.submit(self._submit, numbers[start : start + MAX_ARRAY])

    def _new_job(self) -> Any:
        job: Any = psij.Job()
        job.members = []
        if self._files is not None:
            # The path of the script is the job's id below the working directory of the executor.
            job._id = os.path.join(self._files, job.id)
        return job

    def attach(self, number: str, native_id: str) -> None:
        """Watch a detached job of an earlier run."""
        job = psij.Job(psij.JobSpec())
        self._jobs[number], self._ids[job.id] = job, number
        self._detached.add(number)
        self._executor.attach(job, native_id)
        self._hurry.set()

    def cancel(self, number: str) -> None:
        """Cancel a job; if it is not submitted yet, do not submit it.

        Its order file is removed first, or the marker that its script looks for is created: batch
        systems can overlook a process that a starting job creates while its processes are listed,
        and such a process then ends.
        """
        with self._change:
            self._cancelled.add(number)
            self._change.notify_all()
        (self._directory / number).unlink(missing_ok=True)
        job = self._jobs.get(number)
        if job is not None:
            marker = getattr(job, "marker", None)
            if marker is not None:
                with suppress(OSError):  # the reports were removed
                    Path(marker).touch()
            if job.native_id is not None:
                self._cancel_soon(number)

    def close(self, unwanted: Collection[str] | None) -> None:
        """Cancel jobs that have not ended; return when all cancellations have been sent.

        The newest jobs come first, because waiting jobs start when running ones end.

        Args:
            unwanted: The jobs to cancel, if the tasks of all others have ended. `None` to cancel
                all jobs that are not detached. Those that still wait are then not submitted.
        """
        with self._change:
            self._closing = True
            self._change.notify_all()
        ending = unwanted is not None and self._batch is not None
        if not ending:
            unwanted = self._jobs.keys() - (self._detached if unwanted is None else ())
        for number in reversed(list(self._jobs)):
            if number in (unwanted or ()):
                self.cancel(number)
        self._submissions.shutdown(cancel_futures=not ending)
        if ending:
            self._await_scripts()
        self._cancellations.shutdown()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
        if self._list is not None and os.fstat(self._list).st_size == 0:
            (self._directory / LIST).unlink(missing_ok=True)  # there is nothing to take over

    def _await_scripts(self) -> None:
        """Wait until the scripts of ending jobs have written the exit codes of their programs.

        Otherwise, the batch system would account a job as canceled, or as failed, because the
        program removes the directory for its exit code. Jobs that do not end are canceled.
        """
        until = time.monotonic() + SCRIPT_TIMEOUT
        batch: Any = self._batch
        for number, job in list(self._jobs.items()):
            own = number not in self._cancelled and job.native_id is not None
            if own and not (
                getattr(job, "script", True) or getattr(job, "around", True)
            ):  # others write no exit code
                code = batch.work_directory / f"{job.native_id}.ec"
                while number in self._jobs and not code.exists():
                    if time.monotonic() > until:
                        self.cancel(number)
                        break
                    time.sleep(0.02)

    def _submit(self, numbers: Iterable[str]) -> None:
        """Submit jobs that may be in one array."""
        jobs: dict[str, Any] = {}
        for number in numbers:
            job: Any = self._jobs[number]
            if number in self._cancelled:
                self._end(number, "CANCELED")
                continue
            try:
                if self._named:  # PSI/J's scripts use this attribute, which its jobs do not have
                    job.name = job.given["name"]
                job.spec = made_spec(job.given, self._executor)
            except Exception as error:  # PSI/J does not accept a value
                self._end(number, "REFUSED", str(error) or repr(error))
                continue
            jobs[number] = job
        try:
            in_array = len(jobs) > 1 and self._submitted_array([*jobs.values()])
        except Exception as error:  # such as a full disk; the array may have been submitted
            for number in jobs:
                self._end(number, "REFUSED", str(error) or repr(error))
            return
        for number, job in jobs.items():
            try:
                if not in_array and (number in self._cancelled or not self._submitted(number, job)):
                    self._end(number, "CANCELED")
                    continue
                if job.listed is not None:
                    self.add_to_list({"job": job.native_id, **job.listed})
            except Exception as error:  # PSI/J raises the errors of the system's commands
                self._end(number, "REFUSED", str(error) or repr(error))
                continue
            if self._interval > 2 * self._slow:
                self._hurry.set()
            if number in self._cancelled:  # meanwhile
                self._cancel_soon(number)

    def add_to_list(self, values: dict[str, Any]) -> None:
        """Add a line to the list of detached jobs."""
        if self._list is not None:
            os.write(self._list, json.dumps(values).encode() + b"\n")
            os.fsync(self._list)

    def _submitted_array(self, jobs: Sequence[Any]) -> bool:
        """Submit jobs as an array of Slurm.

        PSI/J submits one additional job, whose script contains the scripts of all jobs. The jobs
        are then attached to the elements of the array.

        Returns:
            False if Slurm refused the array. It may still accept some of the jobs.
        """
        array = self._new_job()
        array.name, array.spec, array.around = jobs[0].name, jobs[0].spec, None
        array.options = [*jobs[0].options, f"--array=0-{len(jobs) - 1}"]
        array.members = jobs
        try:
            self._executor.submit(array)
        except psij.SubmitException as error:
            log.warning(
                "job array refused, submitting its %d jobs one by one: %s",
                len(jobs),
                str(error).strip(),
            )
            return False
        for index, job in enumerate(jobs):
            self._executor.attach(job, f"{array.native_id}_{index}")
        return True

    def _submitted(self, number: str, job: psij.Job) -> bool:
        """Submit a job, again and again while the batch system refuses it for what can pass.

        The interval is that of the queries of the queue. Later jobs wait meanwhile; most of them
        would be refused as well.

        Returns:
            False if the job was canceled.

        Raises:
            SubmitException: The batch system has refused the job for another reason.
        """
        while True:
            try:
                self._executor.submit(job)
            except psij.SubmitException as error:
                if not (self._slurm and slurm_refusal(str(error)).passes):
                    raise
                job.executor = None  # PSI/J submits a job only once
                self._report([number, "DELAYED", str(error), None])
            else:
                return True
            with self._change:
                self._change.wait_for(
                    lambda: self._closing or number in self._cancelled, self._slow
                )
                if self._closing or number in self._cancelled:
                    return False

    def _waits(self, reasons: Mapping[str, str]) -> None:
        """Report the reasons for which jobs wait, by native id, if they have changed."""
        for number, job in list(self._jobs.items()):
            reason = reasons.get(str(job.native_id), "")
            if reason != self._reasons.get(number, ""):
                self._reasons[number] = reason
                self._report([number, "WAITING", reason, None])

    def _generate(self, job: Any, context: dict[str, Any], file: TextIO) -> None:
        """Write the script of a job: PSI/J's script, but with the job's own commands, if any."""
        options, body = self._rendered(job, context)
        if job.members:
            batch: Any = self._batch
            bodies = [
                each.script or (self._rendered(each, batch._create_script_context(each))[1], "")
                for each in job.members
            ]
            cases = (f"{index})\n{own}\n;;" for index, (own, _) in enumerate(bodies))
            files = f"{batch.work_directory}/$"  # PSI/J finds them by the native id
            commands = "\n".join([ARRAY, *cases, "esac", bodies[0][1]])
            body = commands.replace(f"{files}SLURM_JOB_ID", f"{files}_r_job")
        elif job.script is not None:
            body = "\n".join(job.script)
        file.write(f"{options}\n{body}\n")

    def _rendered(self, job: Any, context: dict[str, Any]) -> tuple[str, str]:
        """Return the options and the commands of PSI/J's script of a job."""
        script = io.StringIO()
        self._template(job, context, script)
        lines = script.getvalue().splitlines()
        options = "\n".join(line for line in lines if line.startswith("#"))
        body = "\n".join(line for line in lines if not line.startswith("#"))
        if job.around is not None:  # around the launch, before the exit code is written to a file
            before, after = job.around
            launch, _, file_name = body.rpartition('echo "$?"')
            body = f"{before}\n{launch}\n_r_code=$?\necho $_r_code{file_name}\n{after}"
        return options, body

    def _cancel_soon(self, number: str) -> None:
        self._to_cancel.put(number)
        self._cancellations.submit(self._cancel_waiting)

    def _cancel_waiting(self) -> None:
        """Cancel a job whose cancellation was requested; of a batch system, all of them."""
        numbers: list[str] = []
        with suppress(Empty):
            while not numbers or self._batch is not None:
                numbers.append(self._to_cancel.get_nowait())
        for attempt in range(CANCEL_ATTEMPTS):
            jobs = {n: job for n in numbers if (job := self._jobs.get(n)) is not None}
            if not jobs:  # they have ended
                return
            if self._local:
                _kill(*jobs.values())
                return
            errors = self._cancel(jobs)
            self._hurry.set()
            for number, error in errors.items():
                native = jobs[number].native_id
                log.warning("job %s cannot be canceled: %s", native, error)
                if attempt + 1 == CANCEL_ATTEMPTS:
                    self._end(number, "LEFT", f"job {native}: {error}")
            numbers = list(errors)
            if numbers:
                time.sleep(CANCEL_WAIT)

    def _cancel(self, jobs: dict[str, psij.Job]) -> dict[str, Exception]:
        """Send the cancellation of jobs, and return the errors."""
        if len(jobs) > 1 and self._batch is not None:
            first, *others = [str(job.native_id) for job in jobs.values()]
            command = [*self._batch.get_cancel_command(first), *others]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return {}
        errors: dict[str, Exception] = {}
        for number, job in jobs.items():  # some systems fail if one of several jobs has ended
            try:
                job.cancel()
            except Exception as error:  # PSI/J raises the errors of the system's commands
                errors[number] = error
        return errors

    def _poll(self) -> None:
        """Query the queue soon after a cancellation or a submission, then less and less often.

        A submission changes the interval only if the longest has passed, so that a program that
        submits jobs all the time does not query the queue all the time.
        """
        thread: Any = self._executor._queue_poll_thread  # type: ignore[attr-defined]
        while True:
            if self._hurry.wait(min(self._interval, self._slow)):
                self._interval = min(QUICK, self._slow)
                time.sleep(self._interval)
                self._hurry.clear()
            thread._poll()
            self._interval = min(2 * self._interval, 4 * self._slow)

    def _changed(self, job: psij.Job, status: psij.JobStatus) -> None:
        number = self._ids.get(job.id)
        if number is None:
            return
        if status.state == psij.JobState.FAILED and (status.message or "").startswith(NO_ANSWER):
            again = psij.Job(job.spec)
            self._executor.attach(again, str(job.native_id))
            self._ids[again.id], self._jobs[number] = number, again
            if number in self._cancelled:  # PSI/J has ignored this for the failed job
                self._cancel_soon(number)
            return
        if status.final:
            self._end(number, status.state.name, status.message, status.exit_code)
        else:
            self._report([number, status.state.name, None, None])

    def _end(
        self, number: str, state: str, message: str | None = None, code: int | None = None
    ) -> None:
        job = self._jobs.pop(number, None)
        self._reasons.pop(number, None)
        if job is not None:
            self._ids.pop(job.id, None)
        self._report([number, state, message, code])


def made_spec(spec: dict[str, Any], executor: psij.JobExecutor) -> psij.JobSpec:
    """Convert a specification of `rhapsody_psij.jobs` to one of PSI/J."""
    resources = psij.ResourceSpecV1(**spec.pop("resources"))
    attributes = spec.pop("attributes")
    duration = attributes.pop("duration")
    if duration is not None:
        attributes["duration"] = timedelta(seconds=duration)
    made = psij.JobAttributes(**attributes)
    if duration is None and isinstance(executor, BatchSchedulerExecutor):
        made.duration = None  # type: ignore[assignment]  # the default of the queue
    return psij.JobSpec(**spec, resources=resources, attributes=made)


def _with_options(command: Callable[..., list[str]], job: Any, script: Path) -> list[str]:
    """Return the command that submits a job, with the options of its specification."""
    program, *arguments = command(job, script)
    return [program, *job.options, *arguments]


def _status_command(command: Any, native_ids: Collection[str]) -> list[str]:
    """Return the command that queries Slurm, only for the given jobs and with whole reasons."""
    words = [word.replace(",Reason", ",Reason:100") for word in command(native_ids)]
    return [*words, "-r", "-j", ",".join(native_ids)]


def _parse_queue(
    parse: Any, code: int, text: str, *, waiting: Callable[[Mapping[str, str]], None]
) -> dict[str, psij.JobStatus]:
    """Parse the output of `squeue`, with reasons that PSI/J does not know.

    PSI/J's own method, `parse`, raises an error for the whole queue if a reason is unknown or
    contains a space. `squeue` fails if it is asked for a single job that Slurm has forgotten.

    Args:
        parse: PSI/J's method.
        code: The exit code of `squeue`.
        text: Its output.
        waiting: Called with the reasons of the jobs that wait, by job.

    Returns:
        The statuses by job. The message of a failed job contains Slurm's state and reason.
    """
    if code != 0 and "Invalid job id" in text:
        return {}
    rows = [line.split(None, 2) for line in text.splitlines()]
    known = "\n".join(f"{row[0]} {row[1]} {REASON}" for row in rows if len(row) > 1)
    statuses: dict[str, psij.JobStatus] = parse(code, known if code == 0 else text)
    for row in rows:
        if row and row[0] in statuses and statuses[row[0]].message is not None:
            statuses[row[0]].message = " ".join(row[1:])
    waiting({row[0]: row[2].strip() for row in rows if len(row) > 2 and row[1] == "PD"})
    return statuses


def _kill(job: psij.Job) -> None:
    """End the processes of a local job; PSI/J then reports the end of the first, the launcher.

    The local executor's own `cancel` reports the end of a job before its processes have ended, and
    misses processes that start meanwhile. Processes that are stopped cannot start others.
    """
    with suppress(psutil.NoSuchProcess):  # the launcher has ended
        launcher = psutil.Process(int(job.native_id or 0))
        others: set[psutil.Process] = set()
        _stop(launcher, others)
        for process in others:  # they receive SIGTERM when they continue
            with suppress(psutil.NoSuchProcess):
                process.terminate()
                process.resume()
        _wait(others, TERM_TIMEOUT)
        _stop(launcher, others)
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _wait(others, KILL_TIMEOUT)
        launcher.kill()


def _stop(launcher: psutil.Process, others: set[psutil.Process]) -> None:
    """Stop the processes of a job, and add all but the launcher to `others`."""
    stopped: set[psutil.Process] = set()
    while new := {launcher, *launcher.children(recursive=True)} - stopped:
        for process in new:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        stopped |= new
    others |= stopped - {launcher}


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not all(map(_ended, processes)) and time.monotonic() < until:
        time.sleep(0.01)


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # the stopped launcher does not reap
    except psutil.NoSuchProcess:
        return True


def _send(reports: SimpleQueue[list[Any]], out: TextIO) -> None:
    while True:
        batch = [reports.get()]
        while not reports.empty():
            batch.append(reports.get())
        try:
            print(json.dumps(batch), file=out, flush=True)
        except BrokenPipeError:  # the program was killed
            return


def main(directory: str) -> None:
    """Run the client until its standard input ends.

    Args:
        directory: The directory for PSI/J's files, which the command line contains so that the
            client can be found in the list of processes.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # only messages go to standard output
    reports: SimpleQueue[list[Any]] = SimpleQueue()
    try:
        client = JobClient(Path(directory), json.loads(sys.stdin.readline()), reports.put)
    except Exception as error:  # PSI/J loads modules of any origin
        cause = f": {error.__cause__}" if error.__cause__ else ""
        print(json.dumps({"error": f"{error}{cause}"}), file=out, flush=True)
        return
    with suppress(BrokenPipeError):  # the program was killed
        print("{}", file=out, flush=True)
    threading.Thread(target=_send, args=(reports, out), daemon=True).start()
    unwanted: list[str] | None = None
    try:
        for line in sys.stdin:
            if not line.endswith("\n"):  # the program was killed while it sent a message
                break
            message = json.loads(line)
            unwanted = message.get("end")
            for number, native_id in message.get("attach", ()):
                client.attach(number, native_id)
            for number in message.get("cancel", ()):
                client.cancel(number)
            for values in message.get("list", ()):
                try:
                    client.add_to_list(values)
                except OSError as error:  # a full disk
                    log.warning("%s lacks the job %s: %s", LIST, values["job"], error)
            client.submit(message.get("submit", ()))
    finally:
        client.close(unwanted)
    os._exit(0)  # PSI/J's threads never end


if __name__ == "__main__":
    main(sys.argv[1])
