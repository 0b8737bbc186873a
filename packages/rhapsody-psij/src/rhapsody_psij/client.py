"""Client process: the process in which PSI/J runs, started and used by the backend.

PSI/J handles SIGCHLD, blocks while it submits a job, and keeps threads that never end. In a
separate process, none of this affects the user's program. The client also outlives a program that
is killed: its standard input then ends, and it cancels the jobs that have not ended and are not
detached.

Messages are lines of JSON. The first line from the program contains the settings. Later ones are
`{"submit": [...]}` with specifications of `rhapsody_psij.jobs`, each with an `id`, `{"cancel":
[...]}` with ids, `{"attach": [...]}` with the ids and the batch system's ids of jobs of an earlier
run, and `{"end": true}` as the last one. If that line is missing, because the program was killed or
leaves its jobs, jobs whose specification contains `detach` continue.

The client replies with `{"error": ...}` after a failed start, or `{}`, and then sends lists of
reports, `[id, state, message, exit code]`. All reports that are waiting are sent together. The
states are those of PSI/J, and `REFUSED` for a job that could not be submitted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import psij
import psutil
from psij.executors.batch.batch_scheduler_executor import (
    BatchSchedulerExecutor,
    BatchSchedulerExecutorConfig,
)

from rhapsody_psij.detached import LIST, locked

log: logging.Logger = logging.getLogger(__name__)

MAX_CANCELLATIONS = 8
"""Maximum number of cancellations that run at the same time."""

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


NO_ANSWER = "Failed to poll for job status"
"""Start of the message with which PSI/J fails all jobs if it cannot query the queue. The jobs
continue, and the client attaches them again.
"""

REASON = "SystemFailure"
"""A reason of Slurm's that PSI/J knows."""


class Client:
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
            queue_polling_interval=settings["ask_every"],
            initial_queue_polling_delay=0,
            keep_files=settings["detach"],
        )
        self._executor = psij.JobExecutor.get_instance(settings["executor"], config=config)
        self._executor.set_job_status_callback(self._changed)
        if settings["executor"] == "slurm":
            executor: Any = self._executor
            executor.parse_status_output = partial(_parse_queue, executor.parse_status_output)
        if isinstance(self._executor, BatchSchedulerExecutor):
            command = partial(_with_options, self._executor.get_submit_command)
            self._executor.get_submit_command = command  # type: ignore[method-assign]
        self._local = settings["executor"] == "local"
        self._named = settings["executor"] in ("slurm", "lsf")
        self._report = report
        self._jobs: dict[str, psij.Job] = {}  # by the id of the specification
        self._ids: dict[str, str] = {}  # by PSI/J's id
        self._cancelled: set[str] = set()
        self._detached: set[str] = set()
        self._list = locked(directory / LIST, wait=True) if settings["detach"] else None
        self._submissions = ThreadPoolExecutor(1)  # one at a time, to keep their order
        self._cancellations = ThreadPoolExecutor(MAX_CANCELLATIONS)

    def submit(self, spec: dict[str, Any]) -> None:
        """Submit a job after those that wait for their submission."""
        number, job, listed = spec.pop("id"), psij.Job(), spec.pop("detach", None)
        self._jobs[number], self._ids[job.id] = job, number
        if listed is not None:
            self._detached.add(number)
        self._submissions.submit(self._submit, number, job, spec, listed)

    def attach(self, number: str, native_id: str) -> None:
        """Watch a detached job of an earlier run."""
        job = psij.Job(psij.JobSpec())
        self._jobs[number], self._ids[job.id] = job, number
        self._detached.add(number)
        self._executor.attach(job, native_id)

    def cancel(self, number: str) -> None:
        """Cancel a job; if it is not submitted yet, do not submit it.

        Its order file is removed first: batch systems can overlook a process that a starting job
        creates while its processes are listed, and such a process then ends without its order.
        """
        self._cancelled.add(number)
        (self._directory / number).unlink(missing_ok=True)
        job = self._jobs.get(number)
        if job is not None and job.native_id is not None:
            self._cancellations.submit(self._cancel, number)

    def close(self, *, detach: bool) -> None:
        """Cancel the jobs that have not ended; return when all cancellations have been sent.

        The newest jobs come first, because waiting jobs start when running ones end.

        Args:
            detach: True to leave detached jobs. Those that still wait are not submitted.
        """
        for number in reversed(list(self._jobs)):
            if not (detach and number in self._detached):
                self.cancel(number)
        self._submissions.shutdown(cancel_futures=detach)
        self._cancellations.shutdown()
        if self._list is not None and os.fstat(self._list).st_size == 0:
            (self._directory / LIST).unlink(missing_ok=True)  # there is nothing to take over

    def _submit(
        self, number: str, job: psij.Job, spec: dict[str, Any], listed: dict[str, Any] | None
    ) -> None:
        if number in self._cancelled:
            self._end(number, "CANCELED")
            return
        try:
            if self._named:  # PSI/J's scripts use this attribute, which its jobs do not have
                job.name = spec["name"]  # type: ignore[attr-defined]
            job.options = spec.pop("options")  # type: ignore[attr-defined]
            job.spec = self._spec(spec)
            self._executor.submit(job)
            if listed is not None and self._list is not None:
                line = json.dumps({"job": job.native_id, **listed})
                os.lseek(self._list, 0, os.SEEK_END)
                os.write(self._list, line.encode() + b"\n")
                os.fsync(self._list)
        except Exception as error:  # PSI/J raises the errors of the system's commands
            self._end(number, "REFUSED", str(error) or repr(error))
            return
        if number in self._cancelled:  # meanwhile
            self._cancel(number)

    def _spec(self, spec: dict[str, Any]) -> psij.JobSpec:
        resources = psij.ResourceSpecV1(**spec.pop("resources"))
        attributes = spec.pop("attributes")
        duration = attributes.pop("duration")
        if duration is not None:
            attributes["duration"] = timedelta(seconds=duration)
        made = psij.JobAttributes(**attributes)
        if duration is None and isinstance(self._executor, BatchSchedulerExecutor):
            made.duration = None  # type: ignore[assignment]  # the default of the queue
        return psij.JobSpec(**spec, resources=resources, attributes=made)

    def _cancel(self, number: str) -> None:
        for attempt in range(CANCEL_ATTEMPTS):
            job = self._jobs.get(number)
            if job is None:  # it has ended
                return
            if self._local:
                _kill(job)
                return
            try:
                job.cancel()
                break
            except Exception as error:  # PSI/J raises the errors of the system's commands
                log.warning("job %s cannot be canceled: %s", job.native_id, error)
                if attempt + 1 == CANCEL_ATTEMPTS:
                    self._end(number, "CANCELED", f"it cannot be canceled: {error}")
                    return
                time.sleep(CANCEL_WAIT)

    def _changed(self, job: psij.Job, status: psij.JobStatus) -> None:
        number = self._ids.get(job.id)
        if number is None:
            return
        if status.state == psij.JobState.FAILED and (status.message or "").startswith(NO_ANSWER):
            again = psij.Job(job.spec)
            self._executor.attach(again, str(job.native_id))
            self._ids[again.id], self._jobs[number] = number, again
            if number in self._cancelled:  # PSI/J has ignored this for the failed job
                self._cancel(number)
            return
        if status.final:
            self._end(number, status.state.name, status.message, status.exit_code)
        else:
            self._report([number, status.state.name, None, None])

    def _end(
        self, number: str, state: str, message: str | None = None, code: int | None = None
    ) -> None:
        job = self._jobs.pop(number, None)
        if job is not None:
            self._ids.pop(job.id, None)
        self._report([number, state, message, code])


def _with_options(command: Callable[..., list[str]], job: Any, script: Path) -> list[str]:
    """Return the command that submits a job, with the options of its specification."""
    program, *arguments = command(job, script)
    return [program, *job.options, *arguments]


def _parse_queue(parse: Any, code: int, text: str) -> dict[str, psij.JobStatus]:
    """Parse the output of `squeue`, with reasons that PSI/J does not know.

    PSI/J's own method, `parse`, raises an error for the whole queue if a reason is unknown or
    contains a space.

    Returns:
        The statuses by job. The message of a failed job contains Slurm's state and reason.
    """
    rows = [line.split(None, 2) for line in text.splitlines()]
    known = "\n".join(f"{row[0]} {row[1]} {REASON}" for row in rows if len(row) > 1)
    statuses: dict[str, psij.JobStatus] = parse(code, known if code == 0 else text)
    for row in rows:
        if row and row[0] in statuses and statuses[row[0]].message is not None:
            statuses[row[0]].message = " ".join(row[1:])
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
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # only messages go to standard output
    reports: SimpleQueue[list[Any]] = SimpleQueue()
    try:
        client = Client(Path(directory), json.loads(sys.stdin.readline()), reports.put)
    except Exception as error:  # PSI/J loads modules of any origin
        cause = f": {error.__cause__}" if error.__cause__ else ""
        print(json.dumps({"error": f"{error}{cause}"}), file=out, flush=True)
        return
    with suppress(BrokenPipeError):  # the program was killed
        print("{}", file=out, flush=True)
    threading.Thread(target=_send, args=(reports, out), daemon=True).start()
    detach = True
    try:
        for line in sys.stdin:
            if not line.endswith("\n"):  # the program was killed while it sent a message
                break
            message = json.loads(line)
            detach = "end" not in message
            for number, native_id in message.get("attach", ()):
                client.attach(number, native_id)
            for number in message.get("cancel", ()):
                client.cancel(number)
            for spec in message.get("submit", ()):
                client.submit(spec)
    finally:
        client.close(detach=detach)
    os._exit(0)  # PSI/J's threads never end


if __name__ == "__main__":
    main(sys.argv[1])
