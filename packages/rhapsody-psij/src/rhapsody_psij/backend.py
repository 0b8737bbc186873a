"""Backend that runs tasks as jobs of a batch system, through PSI/J.

PSI/J runs in a separate process, the client (`rhapsody_psij.client`). The client submits and
cancels jobs, and sends PSI/J's status changes in batches. It ends when the program ends, and then
cancels the remaining jobs that are not detached.

A job runs `rhapsody_psij.job` or a script (`rhapsody_psij.jobs`), which runs one or several tasks
and reports when a task starts and when it ends. The reports of all jobs are in one directory, which
the backend lists while there are jobs: after a change soon, then less and less often. A task
therefore ends as soon as its report is there, and not only when the queue is queried next. Only the
end of a job without reports is taken from the status of the job, and that of a task with several
ranks if PSI/J runs no script.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from rhapsody import (
    BackendUnavailableError,
    CapabilityError,
    OutOfMemoryError,
    Resources,
    SubmissionError,
    TaskDescription,
    TaskLostError,
    TasksMainStates,
    TaskTimeoutError,
)
from rhapsody.backends import (
    Capabilities,
    CompletedExecutable,
    EnvironmentCall,
    ManagedBackend,
    SharedSandboxes,
    in_environment,
)
from rhapsody.sdk import (
    OUTPUT_FILES,
    call_spec,
    end_of_file,
    finish,
    in_thread,
    make_sandbox,
    output_of,
    pack,
    require_mpi4py,
    seconds,
    slurm_refusal,
    slurm_waiting,
    unpack,
)
from rhapsody_psij import detached
from rhapsody_psij.job import read_log, read_outcome
from rhapsody_psij.jobs import (
    UNSAFE,
    JobSettings,
    JobSpec,
    cores_of,
    job_spec,
    launch_ranks,
    script_of,
    script_of_ranks,
)
from rhapsody_psij.plugin import capabilities_of

__all__ = ["PsijExecutionBackend"]

log: logging.Logger = logging.getLogger("rhapsody.psij")

COMMANDS = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "pbs_classic": "qsub",
    "lsf": "bsub",
    "cobalt": "qsub",
}
"""The command with which PSI/J submits jobs, by executor."""

SETTINGS = {
    "account": "the option `account`",
    "queue": "the option `queue`, or what exceeds its limits",
    "walltime": "the resource `walltime`, the attribute `duration` or the option `queue`",
    "nodes": "the option `nodes` of the task",
    "memory": "the resource `memory`",
    "cores": "the resources `cores`, `ranks` or `gpus`, or the option `queue`",
    "attributes": "the option `attributes`",
}
"""Phrases for the settings of a job; see `rhapsody.sdk.SlurmReason`."""

TOO_MUCH = "node configuration"
"""Part of Slurm's message about a job that needs more than any node has."""

PROGRAM_KEYS = frozenset((
    "uid", "name", "executable", "arguments", "sandbox", "cwd", "environment", "stdin", "capture",
    "trace_context", "container",
))  # fmt: skip
"""Keys of an executable's description that its job needs."""

TIMED_OUT = ("TO ", "DL ")
"""Slurm's states of jobs that have reached their time limit or deadline, before the reason."""

MAX_JOBS = 100
"""Default maximum number of jobs in a batch system."""

MIN_INTERVAL, MAX_INTERVAL = 0.05, 2.0
"""Seconds between two listings of the reports."""

DELAY = 0.1
"""The interval between two listings, as a fraction of the time since the last change.

The reports are listed because network file systems do not report the changes of other machines.
"""

GROUP_SECONDS = 1.0
"""Expected duration in seconds of all tasks that share a job by default. It is shorter than the
overhead of a batch job, so that no task waits longer than it would for its own job.
"""

TASK_COST = 0.01
"""Overhead in seconds of a task in a shared job."""

MIN_GROUP, MAX_GROUP = 10, 100
"""Number of tasks that share a job by default. A shared job starts Python, which takes longer than
separate jobs for fewer commands.
"""

MIN_MEASURED, MAX_MEASURED = 5, 20
"""Number of run times that must be known before tasks share a job, and number that is kept."""

MAX_ERROR = 2000
"""Number of characters of the client's standard error in a message."""

MAX_LINE = 2**26
"""Maximum length of a message from the client, in bytes."""

Report = tuple[str, str, bytes]


class _WaitingTask:
    """Task that waits for a job or is part of one."""

    def __init__(
        self, task: TaskDescription, spec: JobSpec, call: bytes | None, program: TaskDescription
    ) -> None:
        self.task = task
        self.spec = spec
        self.call = call
        self.program = program
        self.ranks = "executable" in spec
        self.uid = task["uid"]  # in its job
        self.kind: str | None = None  # of the tasks that may share its job by default
        self.job: _Job | None = None
        self.detach = False
        self.started: float | None = None  # by the monotonic clock
        self.cancelled = False
        self.ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    @property
    def order(self) -> dict[str, Any]:
        """The task's entry in the order file of its job."""
        keys = PROGRAM_KEYS if self.call is None else {"uid"}
        task = {key: value for key, value in self.program.items() if key in keys}
        return {"task": task, "call": self.call, "cores": cores_of(self.task)}

    def script(self, reports: str) -> tuple[str, str] | None:
        """Return the script of a job that runs only this task; `None` if the job needs Python."""
        if self.call is not None:
            return None
        order = {"reports": reports, "tasks": [self.order]}
        return script_of(self.program, reports, _python("job"), pickle.dumps(order, 5))


class _Job:
    """Job that was sent to the client.

    Attributes:
        number: The job's id in messages.
        runs: The tasks of the job that have not ended, by their uids in the job.
        shared: True if the job was submitted for several tasks.
        reports: The directory of the job's reports.
        left: The job of an earlier run that this object continues; `None` if this run submits it.
        first_reason: The first reason for which Slurm let the job wait, other than `None`.
        active: True if PSI/J has reported that the job is running.
        status: The final state, message and exit code that PSI/J has reported, if any.
        since: When the final state was reported.
    """

    def __init__(
        self, runs: Sequence[_WaitingTask], reports: Path, left: detached.LeftJob | None = None
    ) -> None:
        self.number = uuid.uuid4().hex
        self.runs = {run.uid: run for run in runs}
        self.shared = len(runs) > 1
        self.reports = reports
        self.left = left
        self.first_reason: str | None = None
        self.active = False
        self.status: tuple[str, str | None, int | None] | None = None
        self.since = 0.0

    @property
    def timed_out(self) -> bool:
        """True if Slurm has ended the job because of its time limit."""
        return self.status is not None and (self.status[1] or "").startswith(TIMED_OUT)

    @property
    def unclaimed(self) -> bool:
        """True if the job of an earlier run continues, and no task has taken it over."""
        return bool(self.left and self.left.tasks) and not self.runs and self.status is None

    @property
    def unwanted(self) -> bool:
        """True if all tasks of the job were canceled or have ended."""
        others = self.left is not None and self.left.tasks
        return not others and all(run.cancelled for run in self.runs.values())


class PsijExecutionBackend(SharedSandboxes, ManagedBackend):
    """Backend that runs each task, or several tasks together, as a job of a batch system.

    The jobs must see this machine's files and Python environment under the same paths.

    Args:
        executor: The executor of PSI/J: `"slurm"`, `"pbs"`, `"pbs_classic"`, `"lsf"`, `"flux"`,
            `"cobalt"`, or `"local"` for processes on this machine.
        queue: The queue or partition.
        account: The account to which the batch system charges the jobs.
        attributes: Attributes of each job: `duration` (a time limit for tasks without `walltime`
            and `timeout`; default: that of the queue), `reservation_id`, and options of the batch
            system, such as `{"slurm.qos": "debug"}`.
        launcher: PSI/J's launcher for tasks with several ranks. Default: `"srun"` on Slurm,
            `"mpirun"` otherwise.
        max_jobs: Maximum number of jobs in the batch system at the same time, including those of
            earlier runs that are taken over. Further tasks wait in the backend. Default: 100, or
            the number of processors with `executor="local"`.
        tasks_per_job: Maximum number of tasks that share a job. A job takes the tasks with the
            same settings that are waiting when it is submitted, and runs them one after the other.
            Tasks with several ranks do not share a job. Default: 1, except for tasks that are
            known to be short: 10 to 100 of them share a job, as many as are expected to take one
            second together.
        detach: True to let jobs continue if the program is killed, or ended by SIGTERM or SIGHUP,
            as when a connection is lost. The next run of the program that resumes this one takes
            over their results. Requires a journal, and an executor other than `"local"`.
        poll_interval: Maximum seconds between two queries of the queue while there are jobs, at
            least 1, or a text such as `"2 min"`. Queries after a submission or a cancellation are
            more frequent: after 5, 10 and 20 seconds.
        name: The name of this object in an engine.

    Attributes:
        patience: Seconds to wait for the report of a task whose job has ended, before the task is
            reported as lost.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid.
    """

    name = "psij"
    running_when_called = False
    patience: float = 10.0

    def __init__(
        self,
        executor: str = "local",
        *,
        queue: str | None = None,
        account: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        launcher: str | None = None,
        max_jobs: int | None = None,
        tasks_per_job: int | None = None,
        detach: bool = False,
        poll_interval: float | str = 30.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if not isinstance(executor, str):
            raise TypeError(f"executor must be a string such as 'slurm', got {executor!r}")
        if max_jobs is None:
            max_jobs = os.cpu_count() or 1 if executor == "local" else MAX_JOBS
        for argument, value in (("max_jobs", max_jobs), ("tasks_per_job", tasks_per_job)):
            if value is None:
                continue
            if type(value) is not int:
                raise TypeError(f"{argument} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        for argument, text in (("queue", queue), ("account", account)):
            if text is not None and executor == "local":
                raise ValueError(
                    f"{argument}={text!r} has no meaning with the executor 'local', which runs "
                    "jobs on this machine: set executor, for example executor='slurm'"
                )
        if not isinstance(detach, bool):
            raise TypeError(f"detach must be True or False, got {detach!r}")
        if detach and executor == "local":
            raise ValueError(
                "detach=True needs a batch system, got executor='local', whose jobs are processes "
                "that end with the program: set executor='slurm', for example, or detach=False"
            )
        self.poll_interval: float = seconds("poll_interval", poll_interval)
        if self.poll_interval < 1:
            raise ValueError(f"poll_interval must be at least 1 second, got {poll_interval!r}")
        self.detach = detach
        self.executor = executor
        self.capabilities: Capabilities = capabilities_of(executor)
        self.settings: JobSettings = JobSettings(
            queue, account, launcher, attributes={} if attributes is None else attributes
        )
        self.max_jobs = max_jobs
        self.tasks_per_job = tasks_per_job
        self._waiting: dict[str, deque[_WaitingTask]] = {}  # by the key of a group
        self._times: dict[str, deque[float]] = {}  # recent run times in seconds, by kind
        self._filling = False
        self._grouped = False  # true after the warning about shared jobs
        self._jobs: dict[str, _Job] = {}
        self._directory: Path | None = None
        self._lock: int | None = None
        self._left = detached.LeftJobs()
        self._left_jobs: dict[detached.LeftJob, _Job] = {}
        self._seen: set[Path] = set()  # reports that were read and are kept
        self._number_left = 0
        self._ready = False  # until `start` has succeeded
        self._offsets: dict[Path, int] = {}  # of the logs of job scripts
        self._warned = False
        self._said: set[str] = set()  # warnings about jobs that wait
        self._client: Process | None = None
        self._node_cores: int | None = None
        self._failure: str | None = None  # why no task can run any longer
        self._background: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._watching = False

    # Start and stop.

    async def start(self) -> None:
        """Start the client process.

        Raises:
            BackendUnavailableError: PSI/J has no such executor, or the batch system's commands are
                not installed.
        """
        command = COMMANDS.get(self.executor)
        if command is not None and shutil.which(command) is None:
            raise BackendUnavailableError(
                f"backend {self.name!r}: the command {command!r} of executor {self.executor!r} is "
                "not in PATH: run the program on a login node"
            )
        directory = Path(self.session.directory(f"{self._prefix}{self.session.uid}"))
        if UNSAFE.search(str(directory)):
            raise BackendUnavailableError(
                f"backend {self.name!r}: PSI/J cannot use the directory {str(directory)!r}, "
                "because its path contains spaces or other special characters: set work_dir"
            )
        self._directory, self._reports = directory, directory / "reports"
        await in_thread(self._prepare)
        with open(directory / "client.log", "wb") as errors:  # noqa: ASYNC230 - once
            self._client = await asyncio.create_subprocess_exec(
                *_python("client", str(directory)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                limit=MAX_LINE,
                start_new_session=True,
            )
        settings = {"poll_interval": self.poll_interval, "detach": self.detach}
        self._send({"executor": self.executor, **settings})
        assert self._client.stdout is not None
        line = await self._client.stdout.readline()
        error = json.loads(line).get("error") if line else end_of_file(errors.name, MAX_ERROR)
        if error is not None:
            raise BackendUnavailableError(
                f"backend {self.name!r}: executor {self.executor!r} cannot be used: {error}"
            )
        self._attach()
        self._spawn(self._listen())
        if self.executor == "slurm":
            self._node_cores = await _slurm_node_cores()
        self._ready = True

    @property
    def _prefix(self) -> str:
        return f"psij-{self.executor}-" if self.detach else "psij-"

    def _prepare(self) -> None:
        assert self._directory is not None
        self._directory.mkdir(parents=True, mode=0o700)
        self._reports.mkdir(mode=0o700)
        if self.detach:
            self._lock = detached.locked(self._directory / detached.LOCK, wait=True)
            journal = os.fsencode(self.session.journal)
            (self._directory / detached.JOURNAL).write_bytes(journal)
            if self.session.earlier:
                pattern = os.path.join(self.session.earlier, f"{self._prefix}*")
                self._left = detached.LeftJobs.take_over(pattern, journal=journal)

    def _attach(self) -> None:
        """Let the client watch the jobs of earlier runs, which it cancels at the end."""
        found = []
        for left in self._left.jobs:
            job = self._left_jobs[left] = _Job((), left.directory / "reports", left)
            found.append((job.number, left.native))
        if found:
            log.info("backend %r: found %d jobs of an earlier run", self.name, len(found))
            self._send({"attach": found})

    def seconds_left(self, task: Any = None) -> float | None:
        """Return no limit if jobs are detached, because the next run takes over their results."""
        return None if self.detach else super().seconds_left(task)

    async def stop(self) -> None:
        """End the client process, and remove the files of the jobs.

        If detached jobs are left, or the client was killed, their files stay.
        """
        stays = self.detach and (self._leaving or self._failure is not None)
        if self._client is not None:
            assert self._client.stdin is not None
            if not self._leaving:
                jobs = self._left_jobs.items()
                self._send({"end": [job.number for left, job in jobs if left.tasks]})
            self._client.stdin.close()
            await self._client.wait()
            self._client = None
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        if self._number_left:
            log.warning(
                "backend %r: the jobs of %d tasks continue (detach=True); run the program again to "
                "take over their results. `rhapsody status` lists the jobs",
                self.name, self._number_left,
            )  # fmt: skip
        directories = self._left.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._directory is not None:
            directories.append(self._directory)
        for directory in directories:
            if stays and (directory / detached.LIST).exists():
                continue
            remove = partial(shutil.rmtree, directory, ignore_errors=True)
            await in_thread(remove, or_here=True)

    @property
    def _leaving(self) -> bool:
        """True if detached jobs continue when the program ends. Ctrl-C cancels them."""
        signals = (signal.SIGTERM, signal.SIGHUP)
        return self.detach and (not self._ready or self.session.signal in signals)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(f"its jobs cannot be watched: {type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        """Fail the open tasks and all later ones. The client cancels the remaining jobs."""
        self._failure = self._failure or reason
        if self._client is not None and self._client.stdin is not None:
            self._client.stdin.close()
        for job in list(self._jobs.values()):
            for run in list(job.runs.values()):
                error = {"exception": self._unavailable()}
                self._end_run(job, run, {"left": reason} if run.cancelled else error)

    def _unavailable(self) -> BackendUnavailableError:
        return BackendUnavailableError(f"backend {self.name!r}: {self._failure}")

    # The life of a task.

    async def run_task(self, task: TaskDescription) -> object:
        """Run a task in a job. If this call is canceled, cancel the task and wait for its end."""
        settings = self.settings.of(task)
        spec = job_spec(task, settings, self.executor, self._node_cores)
        if self.detach:
            outcome = await self._take_over(task)
            if outcome is not None:
                return await self._result(task, outcome, None)
        if task["function"] is None or "sandbox" in task:
            task["sandbox"] = make_sandbox(self.sandbox_of(task))
        call, inside, files = None, None, None
        ranks = (task.get("resources") or Resources()).ranks
        if task["function"] is not None and ranks > 1:
            files = self._files_of_ranks(task)
            packed = _launch_call(spec, task, settings, self.executor, files)
            await in_thread(partial(files.mkdir, mode=0o700))
            await in_thread(_write_private, files / "call", packed)
        elif task["function"] is not None and in_environment(task):
            inside = EnvironmentCall(task, self.sandbox_of(task), cores=cores_of(task))
        elif task["function"] is not None:
            call = pack(task, call_spec(task, cores=cores_of(task)), worker="a job")
        elif ranks > 1:
            launch_ranks(spec, task, settings, self.executor)
        run = _WaitingTask(task, spec, call, task if inside is None else inside.program)
        run.detach = self.detach and "identity" in task and inside is None and files is None
        try:
            outcome = await self._outcome(run)
            if files is not None:
                outcome = await in_thread(_of_ranks, task, files, outcome)
            return await self._result(task, outcome, inside)
        finally:
            if inside is not None:
                inside.close()
            if files is not None:
                await in_thread(partial(shutil.rmtree, files, ignore_errors=True))

    async def _outcome(self, run: _WaitingTask) -> dict[str, Any]:
        """Run a task in a job, and return the outcome that the job has reported."""
        task, spec = run.task, run.spec
        key = task["uid"]
        if self.tasks_per_job != 1 and not run.ranks:
            name = task["name"] if self.tasks_per_job is None else ""
            kind = json.dumps({**spec, "name": name, "detach": run.detach}, sort_keys=True)
            if self.tasks_per_job is None:  # keeps the order of all waiting tasks
                run.kind = kind
            else:
                key = kind
        self._waiting.setdefault(key, deque()).append(run)
        self._fill_soon()
        return await self._ended(run, key)

    async def _ended(self, run: _WaitingTask, key: str) -> dict[str, Any]:
        """Wait for the end of a task, and return its outcome. `key` is that of its group."""
        while not run.ended.done():
            try:
                await asyncio.wait([run.ended])
            except asyncio.CancelledError:
                self._cancel(run, key)
        outcome = run.ended.result()
        if "left" in outcome:
            raise TaskLostError(
                f"task {run.task['name']!r} was not canceled, and its job may continue: "
                f"{outcome['left']}"
            )
        if run.cancelled:
            raise asyncio.CancelledError
        return outcome

    async def _take_over(self, task: TaskDescription) -> dict[str, Any] | None:
        """Take over the job of a task from an earlier run, and return the outcome.

        Returns:
            The outcome; `None` if there is no such job, or the task must run again.
        """
        if "identity" not in task:
            if not self._warned:
                self._warned = True
                log.warning(
                    "task %r: not recorded, so its job ends if the program is killed; "
                    "detach=True needs a journal", task["name"],
                )  # fmt: skip
            return None
        identity, files = task["identity"]
        left, uid = self._left.tasks.pop(identity, (None, ""))
        if left is None:
            return None
        known = left.tasks[uid]
        unchanged = known["files"].items() <= files.items()
        outcome = await in_thread(left.outcome, uid, self.executor)
        del left.tasks[uid]
        self._fill_soon()
        if outcome is None:
            outcome = await self._adopt(task, left, uid, cancel=not unchanged)
        elif not detached.succeeded(outcome):
            return None
        if not unchanged or "lost" in outcome:
            return None
        if known["sandbox"] is not None:
            await in_thread(partial(shutil.rmtree, task["sandbox"], ignore_errors=True))
            task["sandbox"] = known["sandbox"]
        return outcome

    async def _adopt(
        self, task: TaskDescription, left: detached.LeftJob, uid: str, *, cancel: bool
    ) -> dict[str, Any]:
        """Adopt a task that runs or waits in a job of an earlier run, and wait for its end.

        Args:
            task: The task.
            left: The job.
            uid: The uid of the task in the job.
            cancel: True to cancel it first, because it may write to the files of the new attempt.

        Returns:
            The outcome; without meaning if the task was canceled.
        """
        job, run = self._left_jobs[left], _WaitingTask(task, {}, None, task)
        run.uid, run.ranks, run.job = uid, left.ranks, job
        job.runs[uid] = run
        self._jobs[job.number] = job
        self._send({"list": [{"job": left.native, "tasks": {task["uid"]: {}}}]})
        self._watch_soon()
        if job.active and run.ranks:
            self.task_state_cb(task, self.get_task_states_map().RUNNING)
        if cancel:
            self._cancel(run, "")
            await asyncio.wait([run.ended])
            return {}
        return await self._ended(run, "")

    async def _result(
        self, task: TaskDescription, outcome: dict[str, Any], inside: EnvironmentCall | None
    ) -> object:
        if "lost" in outcome:
            raise TaskLostError(f"task {task['name']!r} was lost: {outcome['lost']}")
        called = unpack(outcome["call"]) if "call" in outcome else None
        if inside is not None and "exception" not in outcome:
            called = await in_thread(inside.result, outcome["exit_code"])
        if called is not None:
            error = finish(task, called)
            if error is not None:
                raise error
            return task["return_value"]
        if "interval" in outcome:
            task["interval"] = outcome["interval"]
        if outcome.get("usage"):
            task["usage"] = outcome["usage"]
        if "exception" in outcome:
            raise outcome["exception"]
        if "stdout" not in outcome:  # PSI/J's launcher or a script has written the output
            outcome |= await in_thread(_output, task, task["sandbox"])
        if outcome.get("out_of_memory"):
            raise OutOfMemoryError(
                f"task {task['name']!r} was killed by the kernel because memory ran out: request "
                "more for its job, resources={'memory': ...}",
                exit_code=outcome["exit_code"],
            )
        return CompletedExecutable(outcome["exit_code"], outcome["stdout"], outcome["stderr"])

    def _files_of_ranks(self, task: TaskDescription) -> Path:
        """Return the directory for the files of a function with several ranks."""
        assert self._directory is not None
        return self._directory / f"{task['uid']}.ranks"

    def _cancel(self, run: _WaitingTask, key: str) -> None:
        if run.cancelled or run.ended.done():
            return
        run.cancelled = True
        if run.job is None:
            self._waiting[key].remove(run)
            run.ended.set_result({})
        elif self._leaving and (run.detach or run.job.left is not None):
            self._leave(run, run.job)
        elif run.job.unwanted:
            self._send({"cancel": [run.job.number]})
        else:
            self._spawn(self._cancel_shared(run.job, run))

    def _leave(self, run: _WaitingTask, job: _Job) -> None:
        """End a task whose job continues."""
        self._number_left += 1
        run.task.pop("sandbox", None)  # the job needs it, so the engine must not remove it
        del job.runs[run.uid]
        run.ended.set_result({})
        if not job.runs:
            del self._jobs[job.number]

    async def _cancel_shared(self, job: _Job, run: _WaitingTask) -> None:
        uid = run.uid
        try:
            await in_thread((job.reports / f"{uid}.started").symlink_to, "canceled")
        except FileExistsError:  # the task has started
            await in_thread((job.reports / f"{uid}.cancel").touch)
        else:
            if uid in job.runs:
                self._end_run(job, run, {})

    # From tasks to jobs.

    def _fill_soon(self) -> None:
        if not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        """Submit jobs for the waiting tasks, as far as the limits allow."""
        self._filling = False
        jobs = []
        unclaimed = sum(job.unclaimed for job in self._left_jobs.values())
        while self._waiting and len(self._jobs) + unclaimed < self.max_jobs:
            key = next(iter(self._waiting))
            waiting = self._waiting.pop(key)
            size = min(len(waiting), self.tasks_per_job or 1)
            runs = [waiting.popleft() for _ in range(size)]
            if runs and runs[0].kind is not None:
                runs += self._take_alike(runs[0].task["name"], runs[0].kind)
            if waiting:  # after the tasks with other settings
                self._waiting[key] = waiting
            if not runs:  # all were canceled
                continue
            job = _Job(runs, self._reports)
            self._jobs[job.number] = job
            for run in runs:
                run.job = job
            jobs.append(job)
        if jobs:
            self._spawn(self._submit(jobs))

    def _take_alike(self, name: str, kind: str) -> list[_WaitingTask]:
        """Take the waiting tasks that share the job of a task by default."""
        times = self._times.get(kind, ())
        if len(times) < MIN_MEASURED:
            return []
        size = min(MAX_GROUP, int(GROUP_SECONDS / (max(times) + TASK_COST)))
        if size < MIN_GROUP or len(self._waiting) < MIN_GROUP - 1:
            return []
        found = ((key, waiting[0]) for key, waiting in self._waiting.items() if waiting)
        keys = [key for key, _ in islice((p for p in found if p[1].kind == kind), size - 1)]
        if len(keys) < MIN_GROUP - 1:
            return []
        if not self._grouped:
            self._grouped = True
            log.warning(
                "backend %r: tasks %r share jobs because they take at most %.2g s (%d tasks in the "
                "first job); tasks_per_job=1 disables this",
                self.name, name, max(times), len(keys) + 1,
            )  # fmt: skip
        return [self._waiting.pop(key).popleft() for key in keys]

    def _measure(self, kind: str, outcome: dict[str, Any]) -> None:
        """Store the run time of a task that has succeeded.

        After a task is lost or exceeds its limit, the next tasks of this kind have their own jobs,
        so that one of them cannot repeatedly end the jobs of others.
        """
        if "lost" in outcome or isinstance(outcome.get("exception"), TaskTimeoutError):
            self._times.pop(kind, None)
        elif detached.succeeded(outcome):
            begin, end = outcome.get("interval", (0.0, 0.0))
            times = self._times.setdefault(kind, deque(maxlen=MAX_MEASURED))
            times.append(outcome.get("seconds", end - begin))

    async def _submit(self, jobs: Sequence[_Job]) -> None:
        runs = [list(job.runs.values()) for job in jobs]
        specs = []
        for job, of_job in zip(jobs, runs, strict=True):
            spec = {**of_job[0].spec, "id": job.number}
            if not of_job[0].ranks:
                program, *arguments = _python("job", str(self._order_of(job)))
                spec |= {"executable": program, "arguments": arguments}
                duration = spec["attributes"]["duration"]
                # Tasks that share a job by default are short, so the limit of one task is enough.
                if duration is not None and self.tasks_per_job is not None:
                    duration *= len(of_job)
                    spec["attributes"] = {**spec["attributes"], "duration": duration}
            if of_job[0].detach:
                tasks = {run.uid: detached.entry(run.task) for run in of_job}
                spec["detach"] = {"ranks": of_job[0].ranks, "tasks": tasks}
            specs.append(spec)
        try:
            if self._failure is not None:
                raise self._unavailable()
            await in_thread(self._write_orders, specs, jobs, runs)
        except Exception as error:  # a full disk, an object that cannot be pickled
            for job in jobs:
                self._end_job(job, {"exception": error})
            return
        self._send({"submit": specs})
        self._watch_soon()

    def _watch_soon(self) -> None:
        self._news.set()
        if not self._watching:
            self._watching = True
            self._spawn(self._watch())

    def _order_of(self, job: _Job) -> Path:
        assert self._directory is not None
        return self._directory / job.number

    def _write_orders(
        self, specs: Sequence[JobSpec], jobs: Sequence[_Job], runs: Sequence[Sequence[_WaitingTask]]
    ) -> None:
        """Write the orders of jobs, or add the scripts of those that do not need Python."""
        reports = str(self._reports)
        for spec, job, of_job in zip(specs, jobs, runs, strict=True):
            if of_job[0].ranks:
                if self.executor in COMMANDS:
                    spec["around"] = script_of_ranks(of_job[0].uid, reports)
                continue
            if len(of_job) == 1 and self.executor in COMMANDS:
                script = of_job[0].script(reports)
                if script is not None:
                    spec["script"] = script
                    spec["marker"] = str(self._reports / f"{of_job[0].uid}.cancel")
                    continue
            order = {"reports": reports, "tasks": [run.order for run in of_job]}
            _write_private(self._order_of(job), pickle.dumps(order, 5))

    # From jobs to tasks.

    def _send(self, message: dict[str, Any]) -> None:
        if self._client is not None and self._client.stdin is not None:
            self._client.stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> None:
        """Read the client's messages until it ends."""
        client = self._client
        assert client is not None
        assert client.stdout is not None
        left = {job.number: job for job in self._left_jobs.values()}
        while line := await client.stdout.readline():
            for number, state, message, code in json.loads(line):
                job = self._jobs.get(number) or left.get(number)
                if job is not None:
                    self._changed(job, state, message, code)
        reason = f"the process of PSI/J has ended with exit code {await client.wait()}"
        if self._jobs:
            log.error(
                "backend %r: %s; %d jobs may continue: cancel them with the command of the batch "
                "system", self.name, reason, len(self._jobs),
            )  # fmt: skip
        self._fail(reason)

    def _changed(self, job: _Job, state: str, message: str | None, code: int | None) -> None:
        self._news.set()
        runs = list(job.runs.values())
        if state == "REFUSED" and runs:  # they have the same settings
            kind = CapabilityError if TOO_MUCH in str(message) else SubmissionError
            setting = slurm_refusal(str(message)).setting if self.executor == "slurm" else ""
            cure = f"; change {SETTINGS[setting]}" if setting else ""
            error = kind(f"{self._refusal(runs[0].task)}: {str(message).strip()}{cure}")
            self._end_job(job, {"exception": error})
        elif state == "LEFT":
            log.error(
                "backend %r: a job may continue, because it cannot be canceled (%s); cancel it "
                "with the command of the batch system", self.name, message,
            )  # fmt: skip
            self._end_job(job, {"left": message})
        elif state in ("COMPLETED", "FAILED", "CANCELED"):
            # Flux reports no exit code of successful jobs. A job without an exit code may also
            # have disappeared from the queue of another system.
            if code is None and state == "COMPLETED" and self.executor == "flux":
                code = 0
            if job.left is not None and job.left.ranks:
                code = job.left.exit_code(self.executor)
            job.status, job.since = (state, message, code), monotonic()
            self._fill_soon()
            if self.executor not in COMMANDS and runs and runs[0].ranks and code is not None:
                self._end_job(job, {"exit_code": code})
        elif state == "WAITING":
            self._waits(job, str(message))
        elif state == "DELAYED":
            if runs:
                self._say(f"{self._refusal(runs[0].task)}: {str(message).strip()}; trying again")
        elif state == "ACTIVE" and self.executor not in COMMANDS:  # whose scripts report it
            job.active = True
            if runs and runs[0].ranks:
                self.task_state_cb(runs[0].task, self.get_task_states_map().RUNNING)

    def _say(self, text: str) -> None:
        """Log a warning, once for each text."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    def _waits(self, job: _Job, reason: str) -> None:
        """Handle a new reason for which a job waits; an empty one if it waits no longer."""
        reason = reason.strip(" ()").replace("None", "")
        runs = [run for run in job.runs.values() if not run.cancelled]
        job.first_reason = job.first_reason or reason or None
        meaning = slurm_waiting(reason, job.first_reason)
        if meaning is not None and not meaning.passes and runs:
            given = self._given(runs[0].task)
            error = SubmissionError(
                f"backend {self.name!r}: the job of task {runs[0].task['name']!r}{given} cannot "
                f"start, because Slurm lets it wait for the reason {reason}, which does not pass: "
                f"change {SETTINGS[meaning.setting]}"
            )
            self._send({"cancel": [job.number]})
            self._end_job(job, {"exception": error})
            return
        if meaning is not None:
            self._say(f"backend {self.name!r}: jobs wait for the reason {reason}")
        submitted = TasksMainStates.SUBMITTED
        for run in runs:
            self.task_state_cb(run.task, f"{submitted}: {reason}" if reason else submitted)

    def _refusal(self, task: TaskDescription) -> str:
        """Return the beginning of the message if the batch system has refused a task's job."""
        return f"backend {self.name!r}: {self.executor} has refused a job{self._given(task)}"

    def _given(self, task: TaskDescription) -> str:
        """Return the queue, the account and the resources that the job of a task requests."""
        settings, resources = self.settings.of(task), task.get("resources")
        named = {"queue": settings.queue, "account": settings.account}
        named["duration"] = (
            None if resources and resources.walltime else (settings.attributes.get("duration"))
        )
        given = [f"{name}={value!r}" for name, value in named.items() if value is not None]
        if resources is not None:
            given.append(str(resources))
        return f" with {', '.join(given)}" if given else ""

    async def _watch(self) -> None:
        """Read reports while there are jobs, and find jobs that have ended without a report."""
        changed_at = monotonic()
        while self._jobs:
            self._news.clear()
            ended = [job for job in self._jobs.values() if job.status is not None]
            changed = False
            for directory in {job.reports for job in self._jobs.values()}:
                jobs = [job for job in self._jobs.values() if job.reports == directory]
                uids = {uid for job in jobs for uid in job.runs} if self.detach else None
                take = partial(_take_reports, directory, self._seen, uids, self._offsets)
                found = await in_thread(take)
                by_uid = {uid: job for job in jobs for uid in job.runs}
                for uid, kind, content in found:
                    if uid in by_uid:
                        self._apply(by_uid[uid], uid, kind, content)
                changed = changed or bool(found)
            for job in ended:
                self._end_silent(job)
            now = monotonic()
            changed_at = now if changed else changed_at
            wait = min(max((now - changed_at) * DELAY, MIN_INTERVAL), MAX_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
                changed_at = monotonic()
                await asyncio.sleep(MIN_INTERVAL)
        self._watching = False

    def _apply(self, job: _Job, uid: str, kind: str, content: bytes) -> None:
        run = job.runs[uid]
        if kind == "started":
            run.task["worker"], run.started = content.decode(), monotonic()
            if not run.cancelled:
                self.task_state_cb(run.task, self.get_task_states_map().RUNNING)
            return
        self._end_run(job, run, read_outcome(kind, content))

    def _end_silent(self, job: _Job) -> None:
        """End the tasks of a job that has ended, if they have no report and none can follow."""
        if job.status is None or job.number not in self._jobs:
            return
        state, message, code = job.status
        if all(run.cancelled for run in job.runs.values()):
            self._end_job(job, {})
        elif monotonic() - job.since >= self.patience:
            for run in list(job.runs.values()) if job.timed_out else ():
                limit = run.spec.get("attributes", {}).get("duration")
                # In a shared job, the tasks before may have used the time of a task.
                own = run.started is not None and monotonic() - run.started >= (limit or 0)
                if job.left is None and (own or not job.shared):
                    self._end_run(job, run, {"exception": self._over_limit(run.task, limit)})
            reason = f"its job has ended without a result (state {state})"
            outcome: dict[str, Any] = {"lost": f"{reason}: {message}" if message else reason}
            if code is not None and not job.timed_out and any(r.ranks for r in job.runs.values()):
                outcome = {"exit_code": code}
            self._end_job(job, outcome)

    def _over_limit(self, task: TaskDescription, limit: int | None) -> TaskTimeoutError:
        resources = task.get("resources")
        setting = "the attribute `duration`"
        if resources is not None and resources.walltime is not None:
            setting = "the resource `walltime`"
        elif limit is None:
            setting = "the default of the queue; set the resource `walltime`"
        length = "" if limit is None else f" of {limit} s"
        return TaskTimeoutError(
            f"task {task['name']!r} was ended by Slurm: its job reached its time limit{length}, "
            f"which is that of {setting}. A longer limit for each attempt: "
            "resources=lambda attempt: {'walltime': 3600 * attempt}"
        )

    def _end_job(self, job: _Job, outcome: dict[str, Any]) -> None:
        for run in list(job.runs.values()):
            for kind in ("started", "cancel"):
                path = job.reports / f"{run.uid}.{kind}"
                self._seen.discard(path)
                with suppress(OSError):  # the reports cannot be read
                    path.unlink()
            self._end_run(job, run, dict(outcome))
        self._forget(job)

    def _end_run(self, job: _Job, run: _WaitingTask, outcome: dict[str, Any]) -> None:
        del job.runs[run.uid]
        run.ended.set_result(outcome)
        if run.kind is not None:
            self._measure(run.kind, outcome)
        if not job.runs:
            self._forget(job)
        elif job.unwanted:
            self._send({"cancel": [job.number]})

    def _forget(self, job: _Job) -> None:
        if self._jobs.pop(job.number, None) is not None:
            with suppress(OSError):  # it was not written, or the task has several ranks
                self._order_of(job).unlink()
            self._fill_soon()


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"rhapsody_psij.{module}", *arguments]


async def _slurm_node_cores() -> int | None:
    """Return the number of cores of Slurm's largest node, `None` if `sinfo` does not list any.

    Slurm rejects other impossible requests, but would queue jobs with too many cores forever.
    """
    with suppress(OSError):  # not installed
        sinfo = await asyncio.create_subprocess_exec(
            "sinfo", "--noheader", "--all", "--exact", "--format=%c", stdout=PIPE, stderr=DEVNULL
        )
        listed, _ = await sinfo.communicate()
        return max((int(count) for count in listed.split() if count.isdigit()), default=None)
    return None


def _write_private(path: Path, content: bytes) -> None:
    with open(path, "wb", opener=partial(os.open, mode=0o600)) as file:
        file.write(content)


def _take_reports(
    directory: Path, seen: set[Path], uids: set[str] | None, offsets: dict[Path, int]
) -> list[Report]:
    """Read the new reports, those of starts first, and remove those of ended tasks.

    Args:
        directory: The directory of the reports.
        seen: The reports that were read before and still exist, to which others are added.
        uids: The uids of the tasks whose reports are read but not removed; `None` to read and
            remove all.
        offsets: The number of bytes of each log that were read, if the reports are removed.

    Returns:
        The reports.
    """
    found: list[Report] = []
    names = set(os.listdir(directory))
    for name in names:
        uid, _, kind = name.rpartition(".")
        path = directory / name
        if kind == "log":
            lines, offset = read_log(path, offsets.get(path, 0))
            found += lines
            if uids is None:
                offsets[path] = offset
        elif kind in ("started", "ended") and path not in seen and (uids is None or uid in uids):
            with suppress(FileNotFoundError):  # the task has just ended, or is canceled
                host, newline, outcome = path.read_bytes().partition(b"\n")
                if newline:  # otherwise it is being written
                    found.append((uid, "started", host))
                    if kind == "ended":
                        found.append((uid, kind, outcome))
    new: list[Report] = []
    for uid, kind, content in sorted(found, key=lambda report: report[1] != "started"):
        path = directory / f"{uid}.{kind}"
        if path in seen or not (uids is None or uid in uids):
            continue
        seen.add(path)
        new.append((uid, kind, content))
        if kind != "started" and uids is None:
            seen -= {path, directory / f"{uid}.started"}
            if kind == "ended":
                path.unlink()
            if f"{uid}.cancel" in names:
                (directory / f"{uid}.cancel").unlink(missing_ok=True)
    return new


def _launch_call(
    spec: JobSpec, task: TaskDescription, settings: JobSettings, executor: str, files: Path
) -> bytes:
    """Add the program of a function with several ranks to its job, and return the packed call."""
    require_mpi4py(task)
    order = call_spec(task, cores=cores_of(task))._replace(capture=False)  # by the launcher
    packed = pack(task, order, worker="a job")
    names, ranks = [str(files / name) for name in ("call", "result")], task["resources"].ranks
    program, *arguments = _python("rank", *names, str(ranks))
    described: Any = {"sandbox": str(files), **task, "executable": program, "arguments": arguments}
    launch_ranks(spec, described, settings, executor)
    del spec["directory"]  # functions run in the program's directory
    return packed


def _of_ranks(task: TaskDescription, files: Path, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a function with several ranks."""
    if task.get("capture", True) is not False:
        output = _output(task, task.get("sandbox", str(files)))
        task["stdout"], task["stderr"] = output["stdout"], output["stderr"]
    with suppress(FileNotFoundError):  # the ranks were killed, or not started
        outcome = {"call": (files / "result").read_bytes()}
    if "exit_code" in outcome:
        errors = end_of_file(os.path.join(task.get("sandbox", files), OUTPUT_FILES[1]), MAX_ERROR)
        code = outcome["exit_code"]
        outcome = {"lost": f"its ranks ended with exit code {code}: {errors or 'no message'}"}
    return outcome


def _output(task: TaskDescription, sandbox: str) -> dict[str, str]:
    capture = task.get("capture", True)
    if capture is False:
        return {"stdout": "", "stderr": ""}
    paths = [os.path.join(sandbox, name) for name in OUTPUT_FILES]
    if capture != "files":
        paths = [output_of(path) for path in paths]
    return dict(zip(("stdout", "stderr"), paths, strict=True))
