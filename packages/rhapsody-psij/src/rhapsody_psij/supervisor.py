"""Supervisor: the process that a job of a submitted run starts; see `rhapsody_psij.submission`.

It runs `rhapsody run`, ends it before the time limit of the job or when the user cancels the run,
and submits the next job if the run is to continue. The time limit is known from the submission, so
this works on every batch system. Not all of them can send a signal before the limit.

A batch system that ends a job signals all its processes. The supervisor then only waits for the
end of `rhapsody run`, which has received the same signal: a second one would kill it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rhapsody.sdk import describe_error, seconds_of_job, slurm_refusal
from rhapsody_psij.submission import OUTPUT, RHAPSODY, EndOfRun, JobOfRun, SubmittedRun, no_link

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CHECK_INTERVAL = 2.0
"""Seconds between two checks of whether the user has canceled the run."""

MAX_UNPRODUCTIVE = 3
"""Number of consecutive jobs without a finished task after which the run does not continue."""


class Supervisor:
    """Supervisor of one job.

    Args:
        submission: The submitted run.
        number: The number of the job.
    """

    def __init__(self, submission: SubmittedRun, number: int) -> None:
        self._submission = submission
        self._description = submission.description
        self._job: JobOfRun = submission.started(number)
        self._run = submission.root.with_name(self._job.run)
        self._signaled = asyncio.Event()
        self._at_limit = False
        limits = [self._description["walltime"], seconds_of_job()]
        known = [limit for limit in limits if limit is not None]
        self._limit: float | None = time.monotonic() + min(known) if known else None

    async def run(self) -> EndOfRun | None:
        """Run `rhapsody run` until its end, and submit the next job if the run continues.

        Returns:
            The end of the submitted run; `None` if it continues.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signaled.set)
        if self._submission.is_canceled:
            return EndOfRun("canceled before the start")
        code = await self._run_program()
        until_done: bool = self._description["until_done"]
        status = self._status()
        recorded = status.get("run", {"outcome": "unknown", "held_back": False})
        if recorded["held_back"] and until_done and not self._submission.is_canceled:
            return await self._continue(status, code)
        if recorded["outcome"] in ("done", "failed"):  # a signal may have arrived after the end
            return EndOfRun("the program ended", recorded["exit_code"])
        if self._submission.is_canceled:
            return EndOfRun("canceled", code)
        if self._signaled.is_set() and code != 0:
            return EndOfRun("the job was ended by a signal", code)
        if self._at_limit and code != 0:
            if until_done:
                return await self._continue(status, code)
            return EndOfRun("the time limit of the job was reached", code)
        return EndOfRun("the program ended", code)

    async def _run_program(self) -> int:
        """Run `rhapsody run` in this job, and return its exit code."""
        description, run = self._description, self._run
        arguments = description["arguments"]
        if self._job.number > 1:  # the options that apply to the first job only
            arguments = description["continued_arguments"]
        with self._open_output() as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-u", *RHAPSODY[1:], "run", *arguments,
                cwd=description["cwd"],
                env={**self._submission.environment, "RHAPSODY_RUN": str(run)},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        ended = asyncio.ensure_future(process.wait())
        signaled = asyncio.ensure_future(self._signaled.wait())
        before: float = description["stop_before"]
        stops = [
            (before, signal.SIGTERM),
            (before / 2, signal.SIGTERM),
            (before / 4, signal.SIGKILL),
        ]
        interrupted = False
        while not ended.done():
            left = None if self._limit is None or not stops else self._left() - stops[0][0]
            wait = CHECK_INTERVAL if left is None else max(0.0, min(left, CHECK_INTERVAL))
            events = {ended} if signaled.done() else {ended, signaled}
            await asyncio.wait(events, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            number = None
            if ended.done():
                break
            if not interrupted and signaled.done():
                interrupted = True
                if self._submission.executor == "local":
                    number = signal.SIGTERM
            elif not interrupted and self._submission.is_canceled:
                interrupted, number = True, signal.SIGINT
            elif left is not None and self._left() <= stops[0][0]:
                if not interrupted:
                    self._at_limit = True
                    self._note("the time limit of the job is near; the run stops")
                interrupted, number = True, stops.pop(0)[1]
            if number is not None:
                with suppress(ProcessLookupError):
                    process.send_signal(number)
        signaled.cancel()
        code = ended.result()
        return code if code >= 0 else 128 - code

    def _open_output(self) -> IO[bytes]:
        return open(self._submission.root / OUTPUT, "ab", opener=no_link)

    def _note(self, text: str) -> None:
        """Write a line to the output of the program."""
        with self._open_output() as output:
            output.write(f"rhapsody: {text}\n".encode("utf-8", "backslashreplace"))

    def _left(self) -> float:
        assert self._limit is not None
        return self._limit - time.monotonic()

    def _status(self) -> dict[str, Any]:
        """Return the output of `rhapsody status --json` for the run of this job."""
        command = [*RHAPSODY, "status", "--json", self._run.name]
        said = subprocess.run(command, stdout=subprocess.PIPE, cwd=self._description["cwd"])
        found: dict[str, Any] = json.loads(said.stdout) if said.returncode == 0 else {}
        return found

    async def _continue(self, status: dict[str, Any], code: int) -> EndOfRun | None:
        """Submit the next job, unless the run makes no progress.

        Detached jobs count as progress, because the next job takes over their results. If Slurm
        refuses the job for a reason that can pass, such as a limit on submitted jobs, it is
        submitted again until the time limit of this job.

        Returns:
            The end of the submitted run; `None` if it continues.
        """
        counts = status["run"]["counts"] if status else {"done": 0, "reused": 0}
        progress = counts["done"] > counts["reused"] or (status and status["jobs"])
        unproductive = 0 if progress else self._job.unproductive + 1
        if unproductive >= MAX_UNPRODUCTIVE:
            reason = (
                f"no task finished in {unproductive} consecutive jobs, so the run does not "
                "continue; submit it again with a longer --walltime"
            )
            self._note(reason)
            return EndOfRun(reason, code)
        refused = None
        while True:
            try:
                job = self._submission.submit(unproductive)
                if self._submission.is_canceled:
                    self._submission.remove_from_queue(job)
                    return EndOfRun("canceled", code)
            except Exception as error:  # PSI/J imports third-party executors: any error
                passes = self._submission.executor == "slurm" and slurm_refusal(str(error)).passes
                left = 0 if self._limit is None else self._left()
                if passes and left > 2 * CHECK_INTERVAL and not self._submission.is_canceled:
                    if refused is None:
                        refused = describe_error(error)
                        self._note(f"the next job is refused ({refused}); trying again")
                    await asyncio.sleep(CHECK_INTERVAL)
                    continue
                reason = (
                    f"the job that continues the run was not submitted ({describe_error(error)}); "
                    "submit the run again to continue it"
                )
                self._note(reason)
                return EndOfRun(reason, code)
            self._note(f"job {job.number} of the run was submitted, and continues it")
            return None


async def supervise(root: str, number: str) -> None:
    """Supervise a job, and record the end of the submitted run if it does not continue."""
    submission = SubmittedRun(Path(root))
    end = await Supervisor(submission, int(number)).run()
    if end is not None:
        submission.finish(end)


if __name__ == "__main__":
    asyncio.run(supervise(*sys.argv[1:]))
