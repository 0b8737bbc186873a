"""Jobs in which dask-jobqueue starts workers: those that are refused, wait or have ended.

dask-jobqueue logs a refusal and does not submit the job again, replaces an ended job only in an
adaptive cluster, and never queries the batch system. `WorkerJobs` receives the refusals from the
coroutine that submits a job. While tasks wait and the workers of a job are not connected, the
backend's check for waiting tasks, once a minute and 5 s after a worker was lost, looks for jobs
that have ended and replaces them. On Slurm, it runs one `squeue` for these jobs.

Dask's cluster usually runs on a separate event loop and thread. The methods of this class run on
the engine's loop, and change the cluster on the cluster's loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rhapsody.sdk import slurm_refusal, slurm_waiting

log: logging.Logger = logging.getLogger("rhapsody.dask")

MAX_FRUITLESS = 3
"""Number of jobs in a row that end without a task done, after which no other is submitted."""

RETRY = 30.0
"""Seconds after which a job is submitted again if its refusal can pass."""

ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
})  # fmt: skip
"""Slurm's states of a job that has ended."""

ARGUMENTS = {"nodes": "cores", "attributes": "job_extra_directives"}
"""Arguments of dask-jobqueue's clusters that have a name other than the setting of the job."""


class WorkerJobs:
    """Jobs of a cluster of dask-jobqueue.

    Args:
        give_up: Called with a sentence when no worker can be expected any more.
        refused: Called after a job was refused.

    Attributes:
        done: Number of tasks that have ended on the cluster.
        refusal: The batch system's last refusal, or an empty string.
    """

    def __init__(self, give_up: Callable[[str], None], refused: Callable[[], None]) -> None:
        self.done: int = 0
        self.give_up: Callable[[str], None] = give_up
        self._on_refusal = refused
        self._loop: Any = None
        self._cluster: Any = None
        self._open = True
        self._class: Any = None  # the class of the jobs of a cluster that the backend starts
        self._former: Any = None  # the class of the jobs of a cluster that the user has started
        self.refusal: str = ""
        self._retry_at = 0.0
        self._fruitless, self._last_end = 0, ""
        self._submitted: dict[str, int] = {}  # the value of `done` at the submission, by name
        self._reasons: dict[str | None, str] = {}  # the first one of each job that waits
        self._checking = asyncio.Lock()

    def watched_class(self, kind: Any) -> Any:
        """Return a subclass of a cluster's class whose jobs are watched from the first one."""
        if not _is_jobqueue(kind) or getattr(kind, "job_cls", None) is None:
            return kind
        self._loop = asyncio.get_running_loop()
        self._class = self._watched(kind.job_cls)
        return type(kind.__name__, (kind,), {"job_cls": self._class})

    @property
    def uniform(self) -> bool:
        """True if the backend has started the cluster, so that all workers have equal options."""
        return self._class is not None

    def watch(self, cluster: Any) -> bool:
        """Watch the jobs of a cluster that is running.

        Returns:
            True if it is a cluster of dask-jobqueue.
        """
        if not _is_jobqueue(type(cluster)):
            return False
        self._cluster, self._loop = cluster, asyncio.get_running_loop()
        if cluster.new_spec["cls"] is not self._class:  # `worker_spec` contains the same dict
            self._former = cluster.new_spec["cls"]
            cluster.new_spec["cls"] = self._watched(self._former)
        return True

    def close(self) -> None:
        """Stop watching, because the cluster may outlive the backend."""
        self._open = False
        if self._former is not None:
            self._cluster.new_spec["cls"] = self._former

    def _watched(self, job_class: Any) -> Any:
        from distributed.core import Status

        jobs = self

        class WatchedJob(job_class):  # type: ignore[misc]
            async def start(self) -> None:
                name = str(self.name)
                jobs._submitted[name] = jobs.done
                try:
                    await super().start()
                except Exception as error:  # of the command, or of the parser of its output
                    if not jobs._open:
                        raise
                    # Without an exception, `SpecCluster` continues with its other jobs.
                    self.status = Status.running
                    jobs._loop.call_soon_threadsafe(jobs._refused, _sentence(error))

            @contextmanager
            def job_file(self) -> Iterator[str]:
                """Write the script to a file that other users cannot replace."""
                with tempfile.TemporaryDirectory(prefix="rhapsody-dask-") as directory:  # mode 0700
                    path = os.path.join(directory, "job.sh")
                    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with open(file, "w") as stream:
                        stream.write(self.job_script())
                    yield path

            async def close(self) -> None:
                cluster = jobs._cluster if jobs._open else None
                if cluster is not None and self.name in cluster.worker_spec:
                    # Dask closes a job whose worker has been missing for a while.
                    jobs._loop.call_soon_threadsafe(
                        jobs._count_end, str(self.name), f"job {self.job_id}: its worker was lost"
                    )
                await super().close()

        return WatchedJob

    def _refused(self, sentence: str) -> None:
        if sentence != self.refusal:
            self.refusal = sentence
            log.warning("%s", self._refusal_text())
        self._retry_at = monotonic() + RETRY
        self._on_refusal()

    def _refusal_text(self) -> str:
        setting = slurm_refusal(self.refusal).setting
        return f"the batch system has refused a worker job: {self.refusal}. {self._cure(setting)}"

    def _cure(self, setting: str) -> str:
        """Return the advice to change a setting of the jobs."""
        name = ARGUMENTS.get(setting, setting)
        given = getattr(self._cluster, "_job_kwargs", {})
        if not name:
            return (
                "Check the options of the jobs in cluster_kwargs: queue, account, walltime, cores, "
                "memory, job_extra_directives"
            )
        return f"Change {name!r} in cluster_kwargs (now {given.get(name)!r})"

    async def check(self, workers: Collection[str]) -> tuple[str, bool]:
        """Replace the jobs that have ended, and give up if no worker can be expected.

        Args:
            workers: The names of the workers that are connected.

        Returns:
            A phrase about the jobs that wait, or an empty string; and True if jobs are missing.
        """
        if self._cluster is None or self._cluster.status.name != "running":
            return "", False
        async with self._checking:
            ids: dict[str, str | None] = await self._on_cluster(self._job_ids())
            # The name of a worker is that of its job, which may be followed by a number.
            connected = {*workers, *(worker.rpartition("-")[0] for worker in workers)}
            missing = {name: number for name, number in ids.items() if name not in connected}
            refused = {name for name, number in missing.items() if number is None}
            states = await self._states([number for number in missing.values() if number])
            replaced = set()
            for name in missing.keys() - refused:
                state, reason = states.get(str(missing[name]), ("", ""))
                if state in ENDED:
                    how = state if reason in ("None", "") else f"{state}, {reason}"
                    self._count_end(name, f"job {missing[name]}: {how}")
                    replaced.add(name)
            waiting = {name: missing[name] for name in missing.keys() - refused - replaced}
            if self._fruitless >= MAX_FRUITLESS:
                if not workers:
                    cure = self._cure("walltime" if "TIMEOUT" in self._last_end else "")
                    self.give_up(
                        f"the last {self._fruitless} worker jobs have ended without a task done "
                        f"({self._last_end}). {cure}, or read the output of the jobs, which is in "
                        "log_directory"
                    )
                return "", False
            hopeless = self.refusal and not slurm_refusal(self.refusal).passes
            if refused and hopeless and not (workers or waiting or replaced):
                self.give_up(self._refusal_text())
                return "", False
            if refused and (replaced or monotonic() >= self._retry_at):
                replaced |= refused
            if replaced:
                await self._on_cluster(self._replace(replaced))
            text = self._waiting_text(waiting, states, bool(workers))
            return text or (self._refusal_text() if refused else ""), bool(missing)

    def _waiting_text(
        self,
        waiting: Mapping[str, str | None],
        states: Mapping[str, tuple[str, str]],
        has_workers: bool,
    ) -> str:
        """Describe the first job that waits, or give up if all wait for permanent reasons."""
        found = {number: states.get(str(number), ("", "")) for number in waiting.values()}
        reasons = {
            number: reason for number, (state, reason) in found.items() if state == "PENDING"
        }
        if not reasons:
            return ""
        for job, reason in reasons.items():
            if reason != "None":
                self._reasons.setdefault(job, reason)
        meanings = {job: slurm_waiting(why, self._reasons.get(job)) for job, why in reasons.items()}
        number, reason = next(iter(reasons.items()))
        text = f"worker job {number} waits: {reason}"
        first = meanings[number]
        hopeless = all(meaning and not meaning.passes for meaning in meanings.values())
        if hopeless and first and len(meanings) == len(waiting) and not has_workers:
            self.give_up(f"{text}. This reason is permanent. {self._cure(first.setting)}")
        return text

    def _count_end(self, name: str, how: str) -> None:
        """Count the end of a job."""
        before = self._submitted.pop(name, None)
        if before is None:  # it was counted, or submitted before the cluster was watched
            return
        log.info("worker job ended: %s", how)
        self._last_end = how
        self._fruitless = 0 if self.done > before else self._fruitless + 1

    # On the cluster's loop.

    async def _on_cluster(self, work: Coroutine[Any, Any, Any]) -> Any:
        # The work continues if this coroutine is canceled: otherwise, a task of the cluster that
        # submits jobs would be canceled, for which `SpecCluster.close` waits as well.
        loop = self._cluster.loop.asyncio_loop
        future = asyncio.run_coroutine_threadsafe(work, loop)
        return await asyncio.shield(asyncio.wrap_future(future))

    async def _job_ids(self) -> dict[str, str | None]:
        """Submit the jobs that Dask has closed.

        Returns:
            The ids of all jobs by name; a job that was refused has none.
        """
        await self._cluster._correct_state()
        jobs = self._cluster.workers.items()
        return {str(name): job.job_id for name, job in jobs if name in self._cluster.worker_spec}

    async def _replace(self, names: Collection[str]) -> None:
        """Submit a new job instead of each job of these names.

        Dask closes a job when its worker has been missing for a while, so the new one needs
        another name.
        """
        from distributed.core import Status

        cluster = self._cluster
        for name in [name for name in cluster.workers if str(name) in names]:
            if name in cluster.worker_spec:
                cluster._i += 1
                cluster.worker_spec |= cluster.new_worker_spec()
                del cluster.worker_spec[name]
                cluster.workers.pop(name).status = Status.closed
        await cluster._correct_state()

    # Slurm.

    async def _states(self, numbers: list[str]) -> dict[str, tuple[str, str]]:
        """Return Slurm's state and reason of jobs; none of other systems or without an answer.

        Slurm forgets a job some minutes after its end.
        """
        command = getattr(self._cluster.job_cls, "cancel_command", "") or ""
        squeue = shutil.which("squeue")
        if not numbers or squeue is None or not command.startswith("scancel"):
            return {}
        process = await asyncio.create_subprocess_exec(
            squeue, "--noheader", "--states=all", "--format=%i|%T|%r", "--jobs", ",".join(numbers),
            stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        if process.returncode and b"Invalid job id" not in errors:
            log.warning("squeue failed: %s", errors.decode(errors="replace").strip())
            return {}
        rows = [line.split("|", 2) for line in output.decode().splitlines()]
        states = {row[0].strip(): (row[1], row[2]) for row in rows if len(row) == 3}
        missing = ("COMPLETED", "no longer in the queue")
        return {number: states.get(number, missing) for number in numbers}


def _is_jobqueue(kind: Any) -> bool:
    module = sys.modules.get("dask_jobqueue")
    return (
        module is not None and isinstance(kind, type) and issubclass(kind, module.JobQueueCluster)
    )


def _sentence(error: Exception) -> str:
    """Return what the command that submits a job has printed, without dask-jobqueue's text."""
    said = str(error).rpartition("stderr:\n")[2].replace("sbatch: error: ", "") or repr(error)
    return "; ".join(line.strip() for line in said.splitlines() if line.strip()).rstrip(".")
