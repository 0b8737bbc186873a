"""Submitted runs: runs that are jobs of a batch system themselves.

`rhapsody submit` reserves a run directory, the root of the submitted run, and submits a job that
runs `rhapsody_psij.supervisor`. The supervisor starts `rhapsody run`, and submits the next job if
the run is to continue. Each job has a run directory of its own; that of the first one is the root.

The files of the submitted run are in the directory `submission` of the root. Each is written by one
process, so that processes of several hosts need no locks:

- `description.json`: the arguments of `rhapsody run` and the specification of the jobs.
- `environment.json`: the environment variables, until the run has ended.
- `job-1.json`, `job-2.json`, ...: the jobs, written by the process that submits them.
- `host-1`, `host-2`, ...: the names of the hosts on which their supervisors have started.
- `control`: an empty file to which `rhapsody cancel` writes. The supervisor opens it every few
  seconds, because on NFS, changes by other hosts become visible when a file is opened.
- `end.json`: how the run has ended.
- `queue`: PSI/J's files and the output of the supervisors, until the run has ended, and the list
  `jobs.jsonl`, which keeps `rhapsody clean` from removing the root.

The output of the program is in the file `output.txt` of the root.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import psutil

from rhapsody import SubmissionError, reserve_run
from rhapsody_psij.detached import LIST, LeftJob, LeftJobs

DIRECTORY, OUTPUT = "submission", "output.txt"

RHAPSODY = (sys.executable, "-P", "-m", "rhapsody")
"""Command that runs `rhapsody` with this Python."""

PREFIXES = ("SLURM", "PBS_", "LSB_", "LS_", "FLUX_", "COBALT_", "PMI_", "PMIX_")
"""Prefixes of the variables that describe a job, which another job must not inherit."""

OF_A_JOB = frozenset({"CUDA_VISIBLE_DEVICES", "HOSTNAME", "ROCR_VISIBLE_DEVICES", "TMPDIR"})
"""Further variables that another job must not inherit."""


JOB_ID: re.Pattern[str] = re.compile(r"[\w.\[\]][\w.\[\]-]*")
"""Pattern of the id of a job, which the commands of the batch system do not take for an option."""


@dataclass(frozen=True, slots=True)
class JobOfRun:
    """Job of a submitted run.

    Attributes:
        number: The number of the job, from 1.
        run: The name of its run directory.
        job: The id that the batch system has given to the job; `None` before it is submitted.
        unproductive: Number of consecutive jobs before this one in which no task has finished.
    """

    number: int
    run: str
    job: str | None = None
    unproductive: int = 0


@dataclass(frozen=True, slots=True)
class EndOfRun:
    """End of a submitted run.

    Attributes:
        reason: The reason.
        exit_code: The exit code of `rhapsody run` in the last job; `None` if it was killed or has
            not started.
    """

    reason: str
    exit_code: int | None = None


class SubmittedRun:
    """Submitted run.

    Args:
        root: The run directory that was reserved for the first job.

    Attributes:
        root: The argument `root`.
        description: The keys are `script`, `program`, `arguments`, `continued_arguments`, `cwd`,
            `executor`, `spec`, `walltime`, `stop_before` and `until_done`. The values of `program`
            are the path of the script, or the name of the module, and its arguments.

    Raises:
        OSError: The description cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root: Path = root
        self._place = root / DIRECTORY
        self.description: dict[str, Any] = _read(self._place / "description.json")

    @classmethod
    def create(cls, description: Mapping[str, Any]) -> SubmittedRun:
        """Reserve the run directory, and write the description and the environment.

        Returns:
            The submitted run, whose first job is not submitted yet.

        Raises:
            OSError: A file cannot be written.
            DataError: Other users could replace the run directory.
        """
        root = reserve_run(description["script"], description["cwd"])
        place = root / DIRECTORY
        place.mkdir(0o700)
        (place / "queue").mkdir(0o700)
        (place / "control").touch(0o600)
        _write(place / "description.json", description)
        variables = {name: os.environ[name] for name in os.environ if not _is_of_a_job(name)}
        _write(place / "environment.json", variables)
        return cls(root)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the program in the job of this process."""
        return {**os.environ, **_read(self._place / "environment.json")}

    @property
    def jobs(self) -> list[JobOfRun]:
        """The jobs so far.

        Raises:
            SubmissionError: The id of a job is invalid.
        """
        count = len(list(self._place.glob("job-*.json")))
        jobs = [JobOfRun(**_read(self._job_file(n))) for n in range(1, count + 1)]
        for job in jobs:
            if job.job is not None and JOB_ID.fullmatch(job.job) is None:
                raise SubmissionError(
                    f"{self._job_file(job.number)}: {job.job!r} is not the id of a job"
                )
        return jobs

    def _job_file(self, number: int) -> Path:
        return self._place / f"job-{number}.json"

    def host(self, job: JobOfRun) -> str | None:
        """Return the host on which a job has started; `None` while it waits."""
        try:
            return (self._place / f"host-{job.number}").read_text()
        except FileNotFoundError:
            return None

    def started(self, number: int) -> JobOfRun:
        """Record that a job has started on this host, and return the job."""
        with open(self._place / f"host-{number}", "w", opener=no_link) as file:
            file.write(socket.gethostname())
        return self.jobs[number - 1]

    @property
    def end(self) -> EndOfRun | None:
        """The end of the run; `None` while it continues."""
        try:
            return EndOfRun(**_read(self._place / "end.json"))
        except FileNotFoundError:
            return None

    def finish(self, end: EndOfRun) -> None:
        """Record the end of the run, and remove the files that only further jobs need."""
        _write(self._place / "end.json", asdict(end))
        (self._place / "environment.json").unlink(missing_ok=True)
        shutil.rmtree(self._place / "queue", ignore_errors=True)

    @property
    def is_canceled(self) -> bool:
        """True if the user has canceled the run."""
        return (self._place / "control").read_bytes() != b""

    def request_cancellation(self) -> None:
        """Request the cancellation of the run by the supervisor."""
        with open(self._place / "control", "w", opener=no_link) as file:
            file.write("cancel\n")

    @property
    def job_output(self) -> str:
        """Last line of the output of the supervisors, which contains only errors."""
        path = self._place / "queue" / "output"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else ()
        return lines[-1] if lines else ""

    # The batch system.

    @property
    def executor(self) -> str:
        """The executor of PSI/J; `"local"` for a process of this machine."""
        return str(self.description["executor"])

    def submit(self, unproductive: int = 0) -> JobOfRun:
        """Submit the next job.

        Args:
            unproductive: Number of consecutive jobs before it in which no task has finished.

        Returns:
            The job.

        Raises:
            SubmissionError: The batch system refuses the job.
            OSError: A file cannot be written.
            DataError: Other users could replace the run directory.
        """
        number, run = len(self.jobs) + 1, self.root
        if number > 1:
            run = reserve_run(self.description["script"], self.description["cwd"])
        job = JobOfRun(number, run.name, None, unproductive)
        _write(self._job_file(number), asdict(job))  # before the job can start
        try:
            native = self._start(number)
        except BaseException:
            self._job_file(number).unlink()
            if run != self.root:
                shutil.rmtree(run)
            raise
        job = JobOfRun(number, run.name, native, unproductive)
        _write(self._job_file(number), asdict(job))
        queue = self._place / "queue"
        if queue.is_dir():  # the run has not ended in the meantime
            with open(queue / LIST, "w", opener=no_link) as file:
                file.write(json.dumps({"job": native, "tasks": {}}) + "\n")
        return job

    def _start(self, number: int) -> str:
        """Start a supervisor or submit its job, and return the process or job id."""
        command = [sys.executable, "-P", "-m", "rhapsody_psij.supervisor", str(self.root)]
        command.append(str(number))
        queue = self._place / "queue"
        if self.executor == "local":
            with open(queue / "output", "ab", opener=no_link) as output:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            return str(process.pid)
        script = f"exec >>{shlex.quote(str(queue / 'output'))} 2>&1\nexec {shlex.join(command)}"
        return self._submit(script)

    def _submit(self, script: str) -> str:
        import psij

        from rhapsody_psij.client import _with_options, made_spec

        executor, job, spec = self._executor(), psij.Job(), dict(self.description["spec"])
        made: Any = job
        made.name, made.options = spec.pop("name"), spec.pop("options")
        job.spec = made_spec({"executable": sys.executable, **spec}, executor)
        command = partial(_with_options, executor.get_submit_command)
        left_out = [f"--unset={name}" for name in os.environ if _is_of_a_job(name)]
        executor.get_submit_command = lambda *args: ["env", *left_out, *command(*args)]
        template = executor.generate_submit_script

        def generate(job: Any, context: Any, file: TextIO) -> None:
            """Write the script of the job: the options of PSI/J's template, and the commands."""
            rendered = io.StringIO()
            template(job, context, rendered)
            options = [line for line in rendered.getvalue().splitlines() if line.startswith("#")]
            file.write("\n".join([*options, script, ""]))

        executor.generate_submit_script = generate
        try:
            executor.submit(job)
        except psij.SubmitException as error:
            raise SubmissionError(str(error).strip() or repr(error)) from None
        except OSError as error:
            raise SubmissionError(f"the command to submit a job failed: {error}") from None
        return str(job.native_id)

    def _executor(self) -> Any:
        return _made_executor(self.executor, self._place / "queue")

    def status(self, job: JobOfRun) -> str | None:
        """Return the status of a job in the batch system.

        Returns:
            `"running"`, or the reason why the job waits, which is empty if it is unknown, or `None`
            if the job is not in the queue.

        Raises:
            SubmissionError: The batch system does not answer.
        """
        if self.executor == "local":
            host = self.host(job)
            known = host is None or host == socket.gethostname()
            return None if known and not self._is_process(job) else "running"
        native = str(job.job)
        return _statuses(self._executor(), [native]).get(native)

    def _is_process(self, job: JobOfRun) -> bool:
        try:
            return str(self.root) in psutil.Process(int(job.job or 0)).cmdline()
        except psutil.Error:
            return False

    def remove_from_queue(self, job: JobOfRun) -> None:
        """Cancel a job that waits in the queue.

        Raises:
            SubmissionError: The batch system refuses to cancel the job.
        """
        if self.executor == "local":
            return
        _cancel(self._executor(), [str(job.job)])


def _made_executor(name: str, directory: Path) -> Any:
    import psij
    from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig

    config = BatchSchedulerExecutorConfig(
        work_directory=directory, queue_polling_interval=10**8, keep_files=True
    )
    try:
        return psij.JobExecutor.get_instance(name, config=config)
    except ValueError as error:
        raise SubmissionError(f"executor {name!r}: {error}") from None


def _statuses(executor: Any, natives: list[str]) -> dict[str, str]:
    """Return the statuses of the jobs that are in the queue; see `SubmittedRun.status`."""
    from rhapsody_psij.client import _parse_queue, _status_command

    reasons = dict[str, str]()
    command, parse = executor.get_status_command, executor.parse_status_output
    if executor.name == "slurm":
        command = partial(_status_command, command)
        parse = partial(_parse_queue, parse, waiting=reasons.update)
    said = _said(command(natives))
    try:
        found = parse(said.returncode, said.stdout)
    except Exception as error:  # PSI/J parses the output of any version of the commands
        raise SubmissionError(f"the queue cannot be queried: {error}") from None
    return {
        native: reasons.get(native, "") if status.state.name == "QUEUED" else "running"
        for native, status in found.items()
        if native in natives and not status.state.final
    }


def _cancel(executor: Any, natives: list[str]) -> None:
    """Cancel jobs with one command, or one by one if it fails, because one of them has ended."""
    command = [*executor.get_cancel_command(natives[0]), *natives[1:]]
    said = _said(command)
    if said.returncode == 0:
        return
    if len(natives) > 1:
        for native in natives:
            _cancel(executor, [native])
    elif _statuses(executor, natives):
        raise SubmissionError(f"{shlex.join(command)}: {said.stdout.strip()}")


def _said(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def cancel_detached(left: LeftJobs) -> int:
    """Cancel the detached jobs that are in the queue, and remove them from the lists.

    The results of jobs that have ended are kept for the next run.

    Returns:
        The number of canceled jobs.

    Raises:
        SubmissionError: The batch system does not answer, or does not cancel a job.
    """
    jobs: dict[str, dict[str, LeftJob]] = {}
    for job in left.jobs:  # the name of the directory contains that of the executor
        jobs.setdefault(job.directory.name.split("-")[1], {})[job.native] = job
    canceled: set[LeftJob] = set()
    for name, of_executor in jobs.items():
        executor = _made_executor(name, next(iter(of_executor.values())).directory)
        queued = list(_statuses(executor, list(of_executor)))
        if queued:
            _cancel(executor, queued)
            canceled |= {of_executor[native] for native in queued}
    left.remove(canceled)
    return len(canceled)


def _is_of_a_job(name: str) -> bool:
    """Return True for a variable that describes a job, which another job must not inherit."""
    return name != "SLURM_CONF" and (name.startswith(PREFIXES) or name in OF_A_JOB)


def no_link(path: str, flags: int) -> int:
    """Open a file that is not a link; an `opener` for `open`. Only the user can read a new file."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _write(path: Path, content: object) -> None:
    """Replace a file that only the user can read."""
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)
